# SPDX-License-Identifier: Apache-2.0
"""What is promised in half types: each operator's table is one network, compared with float64 and with torch."""

from __future__ import annotations

import copy

import pytest
import torch
from half_type_operators import GROUPS, Operator
from torch import nn

import tvm_involution as ti

DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16}


class Table(nn.Module):
    """All operators of a group, beside each other."""

    def __init__(self, operators: list[Operator]) -> None:
        super().__init__()
        self.operators = operators
        self.layers = nn.ModuleDict({str(i): op.function for i, op in enumerate(operators) if is_layer(op)})

    def forward(self, *inputs):
        return [self.run(i, arguments) for i, arguments in enumerate(self.split(inputs))]

    def run(self, index: int, arguments) -> torch.Tensor:
        return (self.layers[str(index)] if is_layer(self.operators[index]) else self.operators[index].function)(
            *arguments
        )

    def split(self, inputs) -> list[list[torch.Tensor]]:
        """Return the inputs of each operator."""
        rest = iter(inputs)
        return [[next(rest) for _ in operator.inputs] for operator in self.operators]


def is_layer(operator: Operator) -> bool:
    return isinstance(operator.function, nn.Module)


def error_of_torch(table: Table, index: int, arguments, expected: torch.Tensor) -> float:
    """Return how far off torch is in the type of `arguments`; infinity where it cannot compute in it."""
    try:
        return relative_norm(table.run(index, arguments), expected)
    except (NotImplementedError, RuntimeError):
        return float("inf")


def relative_norm(actual: torch.Tensor, expected: torch.Tensor) -> float:
    return float((actual.double() - expected).norm() / expected.norm())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("group", GROUPS)
def test_operators(group, dtype, tmp_path, rng):
    operators, half = GROUPS[group], DTYPES[dtype]
    way = str(rng.choice(["converted from float32", "exported in it"]))
    print(way)
    inputs = [make().to(half) for operator in operators for make in operator.inputs]
    table = copy.deepcopy(Table(operators)).eval().to(half)
    with torch.no_grad():
        expected = copy.deepcopy(table).double()(*[x.double() for x in inputs])
        pairs = zip(table.split(inputs), expected, strict=True)
        of_torch = [error_of_torch(table, i, *pair) for i, pair in enumerate(pairs)]
    if way == "converted from float32":
        library = ti.compile((copy.deepcopy(table).float(), tuple(x.float() for x in inputs)), dtype=dtype)
    else:
        library = ti.compile((table, tuple(inputs)))
    library.save(tmp_path / "net.so")
    network = ti.load(tmp_path / "net.so")
    assert {spec.dtype for spec in network.metadata.outputs} == {dtype}
    wrong = []
    for operator, actual, exact, other in zip(operators, network(*inputs), expected, of_torch, strict=True):
        error, bound = relative_norm(actual, exact), min(1e-2, 4 * other + torch.finfo(half).eps / 2)
        print(f"{operator.name}: {error:.1e}, bound {bound:.1e}")
        if not error < bound:
            wrong.append(operator.name)
    assert not wrong
