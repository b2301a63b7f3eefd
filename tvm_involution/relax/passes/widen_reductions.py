# SPDX-License-Identifier: Apache-2.0
"""Pooling, means, sums and softmax of half types in float32; one rounding at the end.

TVM sums in the type of the input: a mean over 49 pixels in bfloat16 loses a digit of the two it has. On CPUs maximum
pooling, too: TVM 0.27 makes no vectors of a padded maximum of bfloat16.
"""

from __future__ import annotations

import tvm
from tvm import relax, te, topi

_POOLS = {"relax.nn.avg_pool2d": "avg", "relax.nn.max_pool2d": "max"}
_SUMS = ("relax.nn.adaptive_avg_pool2d", "relax.nn.softmax", "relax.nn.log_softmax", "relax.mean", "relax.sum")


@tvm.transform.module_pass(opt_level=0, name="WidenReductions")
class WidenReductions:
    """Cast the input of those operators to float32, and their output back."""

    def __init__(self, target: tvm.target.Target):
        self.pools = {name: kind for name, kind in _POOLS.items() if kind != "max" or target.kind.name == "llvm"}

    def transform_module(self, mod: tvm.IRModule, _: tvm.transform.PassContext) -> tvm.IRModule:
        """Return `mod` with those operators in float32."""
        mutator = _Widener(mod, self.pools)
        for name, func in mod.functions_items():
            if isinstance(func, relax.Function):
                mutator.builder_.update_func(name, mutator.visit_expr(func))
        return mutator.builder_.get()


@relax.expr_functor.mutator
class _Widener(relax.PyExprMutator):
    def __init__(self, mod: tvm.IRModule, pools: dict[str, str]):
        super().__init__(mod)
        self.pools = pools

    def visit_call_(self, call: relax.Call) -> relax.Expr:
        call = self.visit_expr_post_order(call)
        name = getattr(call.op, "name", None)
        if name not in self.pools and name not in _SUMS:
            return call
        dtype = str(call.ty.dtype)
        if dtype not in ("float16", "bfloat16"):
            return call
        if name in self.pools:
            # the other users of the input keep it as it is, so the cast must not be a tensor of its own
            return self.builder_.call_te(
                _pool2d, call.args[0], call.attrs, self.pools[name], primfunc_name_hint=f"{self.pools[name]}_pool2d"
            )
        wide = self.builder_.emit(relax.op.astype(call.args[0], "float32"))
        result = self.builder_.emit(relax.Call(call.op, [wide, *call.args[1:]], call.attrs))
        return relax.op.astype(result, dtype)


def _pool2d(x: te.Tensor, attrs: tvm.ir.Attrs, kind: str) -> te.Tensor:
    pooled = topi.nn.pool2d(
        topi.cast(x, "float32"),
        kernel=attrs.pool_size,
        stride=attrs.strides,
        dilation=attrs.dilation,
        padding=attrs.padding,
        pool_type=kind,
        ceil_mode=attrs.ceil_mode,
        layout=attrs.layout,
        count_include_pad=attrs.count_include_pad,
    )
    return topi.cast(pooled, x.dtype)
