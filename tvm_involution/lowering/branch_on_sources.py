# SPDX-License-Identifier: Apache-2.0
"""Copy into shared memory from the one array or the other behind a branch, as asynchronous copies need it.

A product over two inputs (`te.joined_windows`) stores `if_then_else(first, x[i], y[j])`. TVM 0.27 makes an asynchronous
copy of a store of one load, which a condition may replace by zeros; so each input gets a store of its own.
"""

from __future__ import annotations

import tvm
from tvm import tirx
from tvm_ffi import structural_map, structural_walk


@tvm.transform.module_pass(opt_level=0, name="BranchOnSources")
class BranchOnSources:
    """Rewrite stores to shared memory in scheduled programs."""

    def transform_module(self, mod: tvm.IRModule, _: tvm.transform.PassContext) -> tvm.IRModule:
        """Return `mod` with every `PrimFunc` rewritten."""
        for name, func in mod.functions_items():
            if isinstance(func, tirx.PrimFunc):
                mod[name] = func.with_body(structural_map(func.body, (tirx.BufferStore, _branch)))
        return mod


def _branch(store: tirx.BufferStore) -> tirx.Stmt:
    value = store.value
    if store.buffer.scope() != "shared" or getattr(getattr(value, "op", None), "name", "") != "tirx.if_then_else":
        return store
    condition, *sides = value.args
    if not all(_loads(side) for side in sides):
        return store
    first, second = (tirx.BufferStore(store.buffer, side, store.indices) for side in sides)
    return tirx.IfThenElse(condition, first, second)


def _loads(value: tirx.Expr) -> bool:
    found: list[tvm.ir.TensorLoad] = []
    structural_walk(value, (tvm.ir.TensorLoad, found.append))
    return bool(found)
