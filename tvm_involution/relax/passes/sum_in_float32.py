# SPDX-License-Identifier: Apache-2.0
"""Half types: averages and softmax keep their sums, and softmax its exponentials, in float32.

TVM's own lowering adds them up in the half type, where 49 values of a 7x7 average are off by several units in the last
place, and bfloat16 stops counting at 256. The casts are part of the operator's program, so no kernel is added.
"""

from __future__ import annotations

from collections.abc import Callable

import tvm
from tvm import relax, te, topi

_HALF = ("float16", "bfloat16")


@tvm.transform.module_pass(opt_level=0, name="SumInFloat32")
class SumInFloat32:
    """Lower `avg_pool2d`, `adaptive_avg_pool2d`, `mean`, `sum` and `softmax` of half types."""

    def transform_module(self, mod: tvm.IRModule, _: tvm.transform.PassContext) -> tvm.IRModule:
        """Return `mod` with those operators as calls of tensor programs."""
        mutator = _Lowerer(mod)
        for name, func in mod.functions_items():
            if isinstance(func, relax.Function):
                mutator.builder_.update_func(name, mutator.visit_expr(func))
        return mutator.builder_.get()


@relax.expr_functor.mutator
class _Lowerer(relax.PyExprMutator):
    def visit_call_(self, call: relax.Call) -> relax.Expr:
        call = self.visit_expr_post_order(call)
        lower = _LOWERINGS.get(getattr(call.op, "name", ""))
        if lower is None or str(getattr(call.args[0].ty, "dtype", "")) not in _HALF:
            return call
        attrs = call.attrs

        def widened(x: te.Tensor) -> te.Tensor:
            return lower(x.astype("float32"), attrs).astype(x.dtype)

        return self.builder_.call_te(widened, call.args[0], primfunc_name_hint=call.op.name.rpartition(".")[2])


def _ints(values) -> tuple[int, ...]:
    return tuple(int(value) for value in values)


def _average_pool(x: te.Tensor, attrs) -> te.Tensor:
    sizes = [_ints(values) for values in (attrs.pool_size, attrs.strides, attrs.dilation, attrs.padding)]
    return topi.nn.pool2d(x, *sizes, "avg", attrs.ceil_mode, attrs.layout, attrs.count_include_pad)


def _adaptive_average_pool(x: te.Tensor, attrs) -> te.Tensor:
    axes = [attrs.layout.index(letter) for letter in "HW"]
    size = _ints(attrs.output_size) if attrs.output_size is not None else [x.shape[axis] for axis in axes]
    return topi.nn.adaptive_pool(x, size, "avg", attrs.layout)


def _sum(x: te.Tensor, attrs) -> te.Tensor:
    return topi.sum(x, _axes(attrs), attrs.keepdims)


def _mean(x: te.Tensor, attrs) -> te.Tensor:
    axes = _axes(attrs)
    count = 1
    for axis in range(len(x.shape)) if axes is None else axes:
        count *= int(x.shape[axis])
    return _sum(x, attrs) * (1.0 / count)


def _axes(attrs) -> list[int] | None:
    return None if attrs.axis is None else list(_ints(attrs.axis))


_LOWERINGS: dict[str, Callable[[te.Tensor, object], te.Tensor]] = {
    "relax.nn.avg_pool2d": _average_pool,
    "relax.nn.adaptive_avg_pool2d": _adaptive_average_pool,
    "relax.mean": _mean,
    "relax.sum": _sum,
    "relax.nn.softmax": lambda x, attrs: topi.nn.softmax(x, int(attrs.axis)),
}
