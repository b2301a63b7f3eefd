# SPDX-License-Identifier: Apache-2.0
"""What is predicted of a network on a GPU, with machine code made up where no compiler is."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from tvm_involution.bench import gpu_prediction
from tvm_involution.bench.gpu_card import Cache, card_of
from tvm_involution.bench.machine_code import KernelCode
from tvm_involution.bench.sass import Walk
from tvm_involution.errors import UserError
from tvm_involution.frontend.importer import export_module, import_exported_program

MEGABYTE = 1 << 20


def test_the_cache_keeps_what_was_used_last():
    cache = Cache(4 * MEGABYTE)
    assert cache.run([(0, 2 * MEGABYTE)], [(1, MEGABYTE)]) == 2 * MEGABYTE
    # both are there; what is written over need not be read
    assert cache.run([(0, 2 * MEGABYTE), (1, MEGABYTE)], [(1, MEGABYTE)]) == 0
    # takes the place of both, and what was written goes to memory
    assert cache.run([(2, 4 * MEGABYTE)], []) == 5 * MEGABYTE
    assert cache.run([(0, 2 * MEGABYTE)], []) == 2 * MEGABYTE


def test_what_is_read_again_and_again_but_does_not_fit_is_loaded_each_time():
    cache = Cache(MEGABYTE)
    assert [cache.run([(0, 2 * MEGABYTE)], []) for _ in range(2)] == [2 * MEGABYTE] * 2


def test_bytes_of_a_network(monkeypatch):
    """Of a convolution that strides over pixels, a quarter is read."""
    walk = Walk(issued=Counter(FFMA=1000), loaded=64, copied=128, stored=16, multiply_adds=2048, cycles=(2000, 4000))
    monkeypatch.setattr(gpu_prediction, "compile_kernels", lambda source, *_: MadeUp(walk))
    layer = torch.nn.Sequential(torch.nn.Conv2d(64, 64, 1, bias=False), torch.nn.Conv2d(64, 256, 1, 2, bias=False))
    mod = import_exported_program(export_module(layer.eval(), [torch.zeros(128, 64, 64, 64)]))
    transposed, first, second, *_ = gpu_prediction.predict(mod, card_of("H100"), "float16")
    pixels = 128 * 64 * 64 * 64 * 2
    assert (first.rule, first.shape) == ("TensorCoreGemm", "128 x 64 x 64 x 64")
    # reads and writes share the cache; the rest of what is written goes to memory
    assert transposed.moved == 2 * pixels - card_of("H100").cache_bytes // 2
    assert 2 * pixels < first.moved < 2.1 * pixels
    # a quarter read; as much as the input written, of which half the cache stays there
    assert pixels < second.moved < 1.2 * pixels
    blocks = first.operations // (2 * 2048 * 4)
    assert first.seconds["issue"] >= 4000 * blocks / (4 * 132 * 1.7e9)
    assert first.total > max(first.seconds.values()) > first.floor


class MadeUp(dict):
    """The same machine code for every kernel."""

    def __init__(self, walk: Walk):
        super().__init__(any=KernelCode(128, 32 << 10, 0, 0, 128, 8, Counter(HMMA=8), walk))

    def __missing__(self, name: str) -> KernelCode:
        return self["any"]


def test_without_machine_code_there_is_a_word(monkeypatch):
    monkeypatch.setattr(gpu_prediction, "compile_kernels", lambda source, *_: MadeUp(Walk()))
    mod = import_exported_program(export_module(torch.nn.Conv2d(8, 8, 1).eval(), [torch.zeros(1, 8, 4, 4)]))
    with pytest.raises(UserError, match="put cuobjdump and nvdisasm on PATH"):
        gpu_prediction.predict(mod, card_of("sm_80"), "float16")
    with pytest.raises(UserError, match="name one of H100"):
        card_of("sm_70")
