# SPDX-License-Identifier: Apache-2.0
"""Drop what TVM's scripts leave in programs and its code generator warns of, once for each on standard error."""

from __future__ import annotations

import tvm
from tvm import tirx
from tvm_ffi import structural_map

_SCOPE = "pragma_scope"


@tvm.transform.module_pass(opt_level=0, name="DropPragmas")
class DropPragmas:
    """Take the attribute out of every `PrimFunc`; it says nothing that code could depend on."""

    def transform_module(self, mod: tvm.IRModule, _: tvm.transform.PassContext) -> tvm.IRModule:
        """Return `mod` with every `PrimFunc` rewritten."""
        for name, func in mod.functions_items():
            if isinstance(func, tirx.PrimFunc):
                mod[name] = func.with_body(structural_map(func.body, (tirx.AttrStmt, _drop)))
        return mod


def _drop(statement: tirx.AttrStmt) -> tirx.Stmt:
    return statement.body if statement.attr_key == _SCOPE else statement
