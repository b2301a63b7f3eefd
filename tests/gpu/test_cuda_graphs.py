# SPDX-License-Identifier: Apache-2.0
"""What can be told of CUDA graphs and streams without a GPU: what is captured, and who waits for whom."""

from __future__ import annotations

import pytest
import torch
from conftest import tiny_rednet
from tvm import relax

from tvm_involution.frontend.importer import export_module, import_exported_program
from tvm_involution.relax import pipeline
from tvm_involution.relax.passes.capture_cuda_graphs import has_cuda_graphs
from tvm_involution.runtime.stream_order import StreamOrder, order_of
from tvm_involution.target import resolve_target


@pytest.mark.parametrize("wanted", [True, False])
def test_kernels_are_captured(wanted):
    mod = import_exported_program(export_module(tiny_rednet(), [torch.zeros(1, 3, 32, 32)]))
    mod = pipeline.run(mod, resolve_target("nvidia/nvidia-h100"), dtype="float16", cuda_graph=wanted)
    assert has_cuda_graphs(mod) == wanted
    if not wanted:
        return
    kernels = {name.name_hint: 0 for name, func in mod.functions_items() if not isinstance(func, relax.Function)}
    outside = dict(kernels)
    for name, func in mod.functions_items():
        if not isinstance(func, relax.Function):
            continue
        counts = outside if "cuda_graph" not in name.name_hint else kernels

        def visit(expr, counts=counts):
            callee = getattr(getattr(expr, "op", None), "name_hint", None)
            if callee in counts:
                counts[callee] += 1

        relax.analysis.post_order_visit(func, visit)
    # inputs and outputs change their addresses: the kernels that touch them stay outside
    assert sum(kernels.values()) > 20
    assert 1 <= sum(outside.values()) <= 4


class FakeStream:
    """A stream that notes whom it waits for."""

    def __init__(self, handle: int) -> None:
        self.cuda_stream = handle
        self.waited: list[int] = []
        self.idle = 0

    def wait_stream(self, stream) -> None:
        self.waited.append(stream.cuda_stream)

    def synchronize(self) -> None:
        self.idle += 1


def test_networks_of_a_gpu_share_their_order():
    assert order_of(0) is order_of(0) and order_of(0).lock is order_of(0).lock
    assert order_of(0) is not order_of(1)


def test_streams_take_turns():
    order, first, second = StreamOrder(), FakeStream(1), FakeStream(2)
    order.enter(first)
    order.enter(first)
    assert first.waited == []
    order.enter(second)
    assert second.waited == [1]
    order.enter(first)
    assert first.waited == [2]
    order.synchronize()
    assert (first.idle, second.idle) == (1, 1)
