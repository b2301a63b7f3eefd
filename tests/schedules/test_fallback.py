# SPDX-License-Identifier: Apache-2.0
"""A convolution or matrix product that falls to a rule for programs of any kind is counted as a fallback."""

from __future__ import annotations

import pytest
from tvm import relax, te, topi

from tvm_involution.relax.passes.apply_schedules import ApplySchedules, count_kernels
from tvm_involution.schedules.contraction import is_contraction
from tvm_involution.target import resolve_target


def placeholder(*shape: int) -> te.Tensor:
    return te.placeholder(shape, "float32")


A = placeholder(3, 8, 8)
B = placeholder(3, 8, 8)


@pytest.mark.parametrize(
    "result, expected",
    [
        (topi.nn.dense(placeholder(5, 8), placeholder(6, 8)), True),
        (topi.nn.group_conv2d_nchw(placeholder(1, 4, 8, 8), placeholder(6, 2, 3, 3), 1, 1, 1, 2), True),
        (topi.sum(topi.multiply(A, A), 1), False),
        (topi.sum(topi.multiply(A, B), 1), False),  # the product is a step of its own, which no sum multiplies
        (topi.nn.softmax(A), False),
        (topi.max(A, 0), False),
        (topi.nn.layer_norm(A, placeholder(8), placeholder(8), [2]), False),
        (topi.add(A, B), False),
    ],
    ids=lambda value: None if isinstance(value, bool) else value.op.name,
)
def test_what_is_a_contraction(result, expected):
    inputs = [t for t in _placeholders(result)]
    assert is_contraction(te.create_prim_func([*inputs, result])) is expected


def _placeholders(tensor: te.Tensor) -> list[te.Tensor]:
    found: dict[str, te.Tensor] = {}

    def visit(tensor: te.Tensor) -> None:
        if not tensor.op.input_tensors:
            found.setdefault(str(hash(tensor)), tensor)
        for read in tensor.op.input_tensors:
            visit(read)

    visit(tensor)
    return list(found.values())


def test_counted_by_rule():
    builder = relax.BlockBuilder()
    x = relax.Var("x", relax.TensorType((3, 8, 8), "float32"))
    with builder.function("main", [x]):
        product = builder.emit(relax.op.matmul(x, x))
        builder.emit_func_output(builder.emit(relax.op.sum(relax.op.nn.relu(product), axis=1)))
    mod = relax.transform.LegalizeOps()(builder.get())
    target = resolve_target("llvm")
    with target:
        kernels = count_kernels(ApplySchedules(target)(mod))
    assert kernels.fallback == 1 and kernels.rule == kernels.total - 1
    assert kernels.by_rule == {"Reduction": 2, "Elementwise": 1}
