# SPDX-License-Identifier: Apache-2.0
"""What a converter is given: the node of torch's graph that it converts, and where to write Relax."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from tvm import relax
from tvm.ir import GenericConst

# torch.fx types a node's arguments as a union of everything
Node: TypeAlias = Any
Scalar: TypeAlias = bool | int | float
Result: TypeAlias = relax.Expr | Sequence[relax.Expr]
Converter: TypeAlias = Callable[..., Result]
"""`(operation, *arguments)`, all arguments of torch's schema in its order, those by name by name -> the result(s)."""


class Operation:
    """One call of an operator in torch's graph.

    Attributes:
        node: the call; `node.meta["val"]` is what torch says that comes out.
    """

    def __init__(self, node: Node, builder: relax.BlockBuilder, values: Mapping[Node, Any]) -> None:
        self.node = node
        self._builder = builder
        self._values = values

    @property
    def results(self) -> tuple[torch.Tensor, ...]:
        """What comes out, without values: one tensor or several."""
        value = self.node.meta["val"]
        return tuple(value) if isinstance(value, (tuple, list)) else (value,)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the (first) result."""
        return tuple(int(size) for size in self.results[0].shape)

    @property
    def dtype(self) -> str:
        """The dtype of the (first) result."""
        return dtype_name(self.results[0].dtype)

    def uses(self, result: int) -> bool:
        """Return whether anybody looks at result number `result`."""
        return any(user.args[1] == result for user in self.node.users)

    def value_of(self, node: Node) -> relax.Expr:
        """Return what an earlier node became."""
        return self._values[node]

    def emit(self, expression: relax.Expr) -> relax.Expr:
        """Bind `expression`, so that its shape and dtype are known; what is bound or constant stays itself."""
        if isinstance(expression, (relax.Var, GenericConst)):
            return expression
        return self._builder.emit(expression)

    def cast(self, value: relax.Expr | Scalar, dtype: str | None = None) -> relax.Expr:
        """Return `value` in `dtype`, by default the result's; numbers become constants."""
        dtype = dtype or self.dtype
        if not isinstance(value, relax.Expr):
            if "int" in dtype:  # what lies outside is taken modulo 2 to the number of bits, as torch does
                value = int(np.array(int(value)).astype(dtype))
            return relax.const(bool(value) if dtype == "bool" else value, dtype)
        value = self.emit(value)
        if dtype_of(value) == dtype:
            return value
        if dtype == "bool":
            return self.emit(relax.op.not_equal(value, relax.const(0, dtype_of(value))))
        whole = known(value) if "int" in dtype and "int" in dtype_of(value) else None
        if whole is not None:  # TVM refuses what lies outside, which is taken modulo 2 to the number of bits
            return constant(whole.astype(dtype))
        return self.emit(relax.op.astype(value, dtype))

    def common(self, *values: relax.Expr | Scalar) -> list[relax.Expr]:
        """Return `values` in the dtype that torch computes with where such operands meet."""
        stand_ins = [_stand_in(value) if isinstance(value, relax.Expr) else value for value in values]
        first: Any
        first, *others = stand_ins
        for other in others:
            first = torch.empty((), dtype=torch.result_type(first, other), device="meta")[(None,) * _rank(first, other)]
        return [self.cast(value, dtype_name(first.dtype)) for value in values]

    def reshape(self, value: relax.Expr, shape: Sequence[int]) -> relax.Expr:
        """Return `value` in another shape of as many elements; itself where it has that shape."""
        value = self.emit(value)
        return value if shape_of(value) == tuple(shape) else self.emit(relax.op.reshape(value, list(shape)))

    def broadcast(self, value: relax.Expr, shape: Sequence[int]) -> relax.Expr:
        """Return `value` repeated along axes of size 1 and new leading ones."""
        value = self.emit(value)
        return value if shape_of(value) == tuple(shape) else self.emit(relax.op.broadcast_to(value, list(shape)))


def shape_of(value: relax.Expr) -> tuple[int, ...]:
    """Return the shape of a bound expression."""
    return tuple(int(size) for size in value.ty.shape.values)


def dtype_of(value: relax.Expr) -> str:
    """Return the dtype of a bound expression."""
    return str(value.ty.dtype)


def dtype_name(dtype: torch.dtype) -> str:
    """Return TVM's name of a dtype of torch."""
    return str(dtype).removeprefix("torch.")


def constant(values: np.ndarray) -> relax.Expr:
    """Return values known at compile time."""
    return relax.const(np.ascontiguousarray(values).reshape(values.shape), str(values.dtype))


def known(value: relax.Expr) -> np.ndarray | None:
    """Return the values of an expression where they are known at compile time."""
    return value.value.numpy() if isinstance(value, GenericConst) else None


def axes_of(dims: Sequence[int] | int | None, rank: int) -> list[int]:
    """Return axes counted from the front: `dims`, all of them where torch is given none."""
    if dims is None or (isinstance(dims, Sequence) and not dims):
        return list(range(rank))
    return [dim % rank for dim in (dims if isinstance(dims, Sequence) else [dims])] if rank else []


def _stand_in(value: relax.Expr) -> torch.Tensor:
    return torch.empty((1,) * len(shape_of(value)), dtype=getattr(torch, dtype_of(value)), device="meta")


def _rank(*values: Any) -> int:
    return max((value.dim() for value in values if isinstance(value, torch.Tensor)), default=0)
