# SPDX-License-Identifier: Apache-2.0
"""Average pooling of what is quantized reads bytes, and not their numbers in float32 from memory.

TVM fuses nothing into a sum over windows; so the cast is made a part of the pooling's own program.
"""

from __future__ import annotations

import tvm
from tvm import relax

from ..constants import is_number
from ..dtypes import tensor_dtype
from ..rewrite import Graph, is_call, rewrite_calls
from .widen_half_types import pool


@tvm.transform.module_pass(opt_level=0, name="PoolBytes")
class PoolBytes:
    """Rewrite `avg_pool2d(astype(x) * scale)` of x in uint8: the scale is multiplied behind."""

    def transform_module(self, mod: tvm.IRModule, _: tvm.transform.PassContext) -> tvm.IRModule:
        """Return `mod` with those poolings as programs."""
        return rewrite_calls(mod, {"relax.nn.avg_pool2d": _rewrite})


def _rewrite(call: relax.Call, graph: Graph) -> relax.Expr:
    scaled = graph.bound(call.args[0])
    if not is_call(scaled, "relax.multiply") or not is_number(scaled.args[1]):
        return call
    cast = graph.bound(scaled.args[0])
    if not is_call(cast, "relax.astype") or tensor_dtype(cast.args[0].ty) != "uint8":
        return call
    sums = graph.builder.call_te(pool, cast.args[0], call.attrs, "avg", 2, "float32", primfunc_name_hint="avg_pool2d")
    return relax.op.multiply(graph.emit(sums), scaled.args[1])
