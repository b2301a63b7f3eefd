# SPDX-License-Identifier: Apache-2.0
"""What passes over scheduled programs share."""

from __future__ import annotations

from collections.abc import Callable

import tvm
from tvm import tirx


def rewrite_cpu_programs(mod: tvm.IRModule, rewrite: Callable[[tirx.PrimFunc], tirx.PrimFunc]) -> tvm.IRModule:
    """Return `mod` with every `PrimFunc` for a CPU rewritten."""
    for name, func in mod.functions_items():
        target = (func.attrs or {}).get("target")
        if isinstance(func, tirx.PrimFunc) and target is not None and target.kind.name == "llvm":
            mod[name] = rewrite(func)
    return mod
