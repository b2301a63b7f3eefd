# SPDX-License-Identifier: Apache-2.0
"""The programs of an involution and its gradients, against autograd in float64."""

from __future__ import annotations

import pytest
import torch
import tvm
from programs import TOLERANCE
from reference import relative_norm

from tvm_involution import lowering
from tvm_involution.kernels.aggregation import OPERATORS, Aggregation
from tvm_involution.kernels.build import build_kernel, scheduled_program
from tvm_involution.nn import involution2d, involution3d
from tvm_involution.nn.memory_layout import feature_map_in_memory, kernel_in_memory
from tvm_involution.target import resolve_target

# batch, channels, groups, size, kernel size, stride, padding, dilation
CASES = [
    (2, 32, 2, (9, 19), (3, 3), (1, 1), (1, 1), (1, 1)),
    (2, 6, 2, (10, 7), (7, 5), (2, 3), (3, 2), (1, 1)),
    (1, 9, 3, (11, 13), (2, 4), (3, 2), (0, 1), (2, 1)),
    (1, 20, 1, (13, 30), (3, 3), (2, 4), (2, 5), (3, 2)),
    (1, 4, 4, (1, 20), (1, 6), (1, 4), (0, 5), (1, 2)),
    (1, 2, 1, (13, 14), (13, 11), (1, 1), (6, 5), (1, 1)),
    (1, 4, 2, (5, 6, 7), (3, 2, 3), (1, 2, 1), (1, 0, 1), (1, 1, 2)),
]
DTYPES = ["float32", "float16", "bfloat16"]


def tensors(sizes: Aggregation) -> dict[str, tuple[torch.Tensor, ...]]:
    """Return of each operator its inputs and what it should compute, in float64."""
    n, groups = sizes.batch, sizes.groups
    shapes = ((n, sizes.channels, *sizes.size), (n, groups, *sizes.kernel_size, *sizes.out_size))
    dtype = getattr(torch, sizes.dtype)
    x, kernel, grad = (torch.randn(s).to(dtype) for s in (*shapes, (n, sizes.channels, *sizes.out_size)))
    wide = [t.double().requires_grad_() for t in (x, kernel)]
    call = involution2d if len(sizes.size) == 2 else involution3d
    out = call(*wide, sizes.stride, sizes.padding, sizes.dilation)
    grad_x, grad_kernel = torch.autograd.grad(out, wide, grad.double())
    x, grad, out, grad_x = (feature_map_in_memory(t.detach(), sizes.channels_last) for t in (x, grad, out, grad_x))
    kernel, grad_kernel = (kernel_in_memory(t, sizes.channels_last) for t in (kernel, grad_kernel))
    return dict(zip(OPERATORS, ((x, kernel, out), (grad, kernel, grad_x), (grad, x, grad_kernel)), strict=True))


@pytest.mark.parametrize(
    ("case", "channels_last"), [*((case, False) for case in CASES), *((CASES[i], True) for i in (0, 1, -1))], ids=str
)
def test_programs(rng, case, channels_last):
    """All of a case in one dtype, a fresh one each time."""
    sizes = Aggregation(*case, DTYPES[int(rng.integers(3))], channels_last)
    print(sizes)
    target = resolve_target("llvm")
    for operator, (first, second, expected) in tensors(sizes).items():
        library = lowering.build(scheduled_program(operator, sizes, target), target)
        made = torch.full_like(expected, torch.nan, dtype=getattr(torch, sizes.dtype))
        library["main"](*map(tvm.runtime.from_dlpack, (first, second, made)))
        assert relative_norm(made.double().numpy(), expected.numpy()) < TOLERANCE[sizes.dtype], operator


def test_sums_of_half_types_are_kept_in_float32():
    """In float16 itself, adding ones stops at 2048."""
    sizes = Aggregation(1, 1, 1, (64, 64), (64, 64), (1, 1), (0, 0), (1, 1), "float16", False)
    target = resolve_target("llvm")
    library = lowering.build(scheduled_program("involution", sizes, target), target)
    ones = [torch.ones(shape, dtype=torch.float16) for shape in ((1, 1, 64, 64), (1, 1, 64, 64, 1, 1))]
    made = torch.empty(1, 1, 1, 1, dtype=torch.float16)
    library["main"](*map(tvm.runtime.from_dlpack, (*ones, made)))
    assert made.item() == 4096


@pytest.mark.parametrize("operator", OPERATORS)
def test_kernels_for_gpus_are_built(operator, tmp_path):
    sizes = Aggregation(2, 32, 2, (9, 11), (3, 3), (1, 1), (1, 1), (1, 1), "float16", False)
    build_kernel(operator, sizes, resolve_target("nvidia/nvidia-h100"), tmp_path / "kernel.so")
    assert (tmp_path / "kernel.so").stat().st_size
