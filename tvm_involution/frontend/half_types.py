# SPDX-License-Identifier: Apache-2.0
"""Programs exported in half types, as `module.half()` is.

TVM's importer types many operators for float32 alone, and rounds their numbers. So a program in a half type is imported
one type wider, and the pass that takes float32 networks to half types (`relax/passes/convert_dtype.py`) takes it back.
"""

from __future__ import annotations

import torch

from ..errors import UserError
from .retype import retyped

_HALF = (torch.float16, torch.bfloat16)
# float32 in a program of half types is what its author wants in float32
_WIDER = dict.fromkeys(_HALF, torch.float32) | {torch.float32: torch.float64}


def half_type(program: torch.export.ExportedProgram) -> str | None:
    """Return the half type of the weights and inputs of `program`; None where it has none.

    Raises:
        UserError: it has both.
    """
    inputs = [node.meta.get("val") for node in program.graph.nodes if node.op == "placeholder"]
    found = {x.dtype for x in inputs if isinstance(x, torch.Tensor) and x.dtype in _HALF}
    if len(found) > 1:
        raise UserError(
            "the network has float16 and bfloat16 tensors; a library holds one half type: convert one of them"
        )
    return str(found.pop()).removeprefix("torch.") if found else None


def in_wider_types(program: torch.export.ExportedProgram) -> torch.export.ExportedProgram:
    """Return `program` with float32 for its half type and float64 for float32; `program` itself is left as it is."""
    return retyped(program, _WIDER)
