# SPDX-License-Identifier: Apache-2.0
"""Involutions in training by compiled kernels: when they are there, what they compute, what they may not change."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from reference import relative_norm
from torch.utils.checkpoint import checkpoint

from tvm_involution import UserError
from tvm_involution.kernels import store as kernel_store
from tvm_involution.kernels.compiling import Compiling
from tvm_involution.nn import Involution2d, involution1d, involution2d, involution3d, use_kernels, wait_for_kernels

FUNCTIONS = {1: involution1d, 2: involution2d, 3: involution3d}
FORMATS = {2: torch.channels_last, 3: torch.channels_last_3d}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A cache that the tests of this file share."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def compiling():
    """The process that compiles for them."""
    return Compiling()


@pytest.fixture(autouse=True)
def store(monkeypatch, folder, compiling):
    """A process without kernels, but for those in the folder; they are waited for."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    fresh = kernel_store.Store()
    fresh.mode = "wait"
    fresh._compiling = compiling
    monkeypatch.setattr(kernel_store, "_store", fresh)
    return fresh


def inputs(axes=2, dtype=torch.float32, channels_last=False):
    """Return x (2, 32, ...), a kernel of 3 taps an axis and 2 groups for stride 2, and a gradient."""
    size = (9, 8, 7)[:axes]
    out = [-(-extent // 2) for extent in size]
    x, packed = torch.randn(2, 32, *size).to(dtype), torch.randn(2, 2 * 3**axes, *out).to(dtype)
    grad = torch.randn(2, 32, *out).to(dtype)
    if channels_last:
        x, packed, grad = (t.contiguous(memory_format=FORMATS[axes]) for t in (x, packed, grad))
    return x.requires_grad_(), packed.view(2, 2, *[3] * axes, *out).detach().requires_grad_(), grad


def gradients(x, kernel, grad, axes=2):
    out = FUNCTIONS[axes](x, kernel, 2, 1)
    return [out, *torch.autograd.grad(out, (x, kernel), grad)]


@pytest.mark.parametrize(
    ("axes", "dtype", "channels_last"),
    [(1, "float32", False), (2, "float32", True), (2, "bfloat16", False), (3, "float16", True)],
)
def test_kernels_compute_what_the_plain_form_does(store, axes, dtype, channels_last):
    """And lie in memory as it does, which `torch.compile` is told beforehand."""
    given = inputs(axes, getattr(torch, dtype), channels_last)
    with use_kernels("off"):
        plain = gradients(*given, axes)
    fast = gradients(*given, axes)
    assert store.counts() == {"ready": 3, "compiling": 0, "refused": 0}
    for actual, expected in zip(fast, plain, strict=True):
        assert actual.dtype == expected.dtype and actual.stride() == expected.stride()
        error = relative_norm(actual.detach().double().numpy(), expected.detach().double().numpy())
        assert error < (1e-6 if dtype == "float32" else 4e-3)
    assert all(map(torch.equal, fast, gradients(*given, axes)))
    assert fast[0].is_contiguous(memory_format=FORMATS[axes] if channels_last else torch.contiguous_format)


def test_tensors_may_lie_anyhow(store):
    x, kernel, grad = inputs()
    expected = gradients(x, kernel, grad)
    # on no boundary of 64 bytes
    moved = torch.cat([x.new_zeros(1), x.flatten()])[1:].view(x.shape).detach().requires_grad_()
    strided = kernel.permute(0, 4, 5, 1, 2, 3).contiguous().permute(0, 3, 4, 5, 1, 2).detach().requires_grad_()
    spread = torch.zeros_like(grad[:1, :1]).expand(grad.shape)
    for actual, wanted in zip(gradients(moved, strided, grad), expected, strict=True):
        torch.testing.assert_close(actual, wanted)
    assert not gradients(moved, strided, spread)[1].any()


def test_third_call_of_a_shape_has_it_compiled_and_the_next_process_has_it_at_once(store, monkeypatch):
    x, kernel = torch.randn(1, 16, 5, 6), torch.randn(1, 1, 3, 3, 5, 6)
    with use_kernels("background"):
        for _ in range(2):
            involution2d(x, kernel, 1, 1)
            assert store.counts()["compiling"] == 0
        plain = involution2d(x, kernel, 1, 1)
        assert wait_for_kernels(60)
        torch.testing.assert_close(involution2d(x, kernel, 1, 1), plain)
        assert store.counts()["ready"] == 1
    code = (
        "import torch, tvm_involution.nn as nn; from tvm_involution.kernels.store import store\n"
        "nn.involution2d(torch.ones(1, 16, 5, 6), torch.ones(1, 1, 3, 3, 5, 6), 1, 1)\n"
        "print(store().counts()['ready'])"
    )
    monkeypatch.setenv("TVM_INVOLUTION_KERNELS", "background")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "1\n", done.stderr


def test_what_cannot_be_compiled_keeps_the_plain_form(store, monkeypatch, caplog):
    store._compiling = Compiling()
    monkeypatch.setattr("tvm_involution.kernels.compiling._START", "import sys; sys.exit(3)")
    monkeypatch.setattr(kernel_store, "cache_folder", lambda name: kernel_store.Path("/proc/none"))
    x, kernel = torch.randn(1, 16, 5, 7), torch.randn(1, 1, 3, 3, 5, 7)
    for _ in range(2):
        assert involution2d(x, kernel, 1, 1).shape == x.shape
    assert store.counts() == {"ready": 0, "compiling": 0, "refused": 1}
    assert sum("plain form" in record.message for record in caplog.records) == 1


def test_float64_and_changing_strides_keep_the_plain_form(store):
    x, kernel = torch.randn(1, 2, 12, 12), torch.randn(1, 1, 1, 1, 3, 3)
    involution2d(x.double(), kernel.double(), 4)
    involution2d(x, torch.randn(1, 1, 1, 1, 2, 2), 6)  # 36 phases
    involution2d(x[:0], kernel[:0], 4)
    assert store.counts()["ready"] == 0


def test_second_gradients(store):
    """The three operators are each other's gradients; so are those of a function of gradients by kernels."""
    x, kernel, grad = inputs()
    results = []
    for mode in ("wait", "off"):
        with use_kernels(mode):
            out = involution2d(x, kernel, 2, 1)
            first = torch.autograd.grad(out, (x, kernel), grad, create_graph=True)
            results.append(torch.autograd.grad(sum((g**2).sum() for g in first), (x, kernel)))
    for actual, expected in zip(*results, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("ending", ["grad_input", "grad_kernel"])
def test_gradients_are_registered_soundly(ending):
    x, kernel, grad = inputs(channels_last=True)
    rest = ([2, 2], [1, 1], [1, 1], True)
    operator = getattr(torch.ops.tvm_involution, f"involution2d_{ending}").default
    grad.requires_grad_()
    given = (grad, kernel, [9, 8], *rest) if ending == "grad_input" else (grad, x, 2, [3, 3], *rest)
    torch.library.opcheck(operator, given)


def test_layers_under_autocast_checkpointing_and_torch_compile(store):
    """All of them run by the same kernels."""
    layer, x = Involution2d(32, 3).eval(), torch.randn(2, 32, 9, 8, requires_grad=True)
    compiled = torch.compile(layer, backend="aot_eager")
    with torch.autocast("cpu", torch.bfloat16):
        outs = [layer(x), checkpoint(layer, x, use_reentrant=False), compiled(x)]
    assert all(out.dtype == torch.bfloat16 for out in outs)
    grads = [torch.autograd.grad(out.float().sum(), (x, layer.conv2.conv.weight)) for out in outs]
    for other in grads[1:]:
        for actual, expected in zip(other, grads[0], strict=True):
            assert relative_norm(actual.double().numpy(), expected.double().numpy()) < 1e-2
    assert store.counts()["ready"] == 3


def test_deterministic_algorithms_wait_for_kernels(store):
    x, kernel, grad = inputs()
    torch.use_deterministic_algorithms(True)
    try:
        with use_kernels("background"):
            first = gradients(x, kernel, grad)
            assert store.counts()["ready"] == 3
            assert all(map(torch.equal, first, gradients(x, kernel, grad)))
    finally:
        torch.use_deterministic_algorithms(False)


def test_unknown_modes(monkeypatch):
    with pytest.raises(UserError, match="mode must be one of background, wait, off, got 'fast'"):
        use_kernels("fast")
    monkeypatch.setenv("TVM_INVOLUTION_KERNELS", "on")
    with pytest.raises(UserError, match="TVM_INVOLUTION_KERNELS must be one of background, wait, off, got 'on'"):
        kernel_store.Store()
