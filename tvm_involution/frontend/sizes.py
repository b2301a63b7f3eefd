# SPDX-License-Identifier: Apache-2.0
"""How large a tensor may be."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch.utils._pytree import tree_leaves

from ..errors import UserError

_MOST_ELEMENTS = 2**31 - 1
"""TVM's kernels count elements in 32 bits"""


def check_size(shape: Sequence[Any], what: str = "the input") -> None:
    """Check that a tensor of `shape` can be addressed.

    Raises:
        UserError: it has too many elements.
    """
    if all(isinstance(d, int) for d in shape) and math.prod(shape) > _MOST_ELEMENTS:
        raise UserError(
            f"{what} of shape {tuple(shape)} would have {math.prod(shape)} elements; expected at most "
            f"{_MOST_ELEMENTS}: take a smaller batch or image size"
        )


def check_sizes(program: torch.export.ExportedProgram) -> None:
    """Check every tensor of a program.

    Raises:
        UserError: one has too many elements.
    """
    for node in program.graph.nodes:
        for value in tree_leaves(node.meta.get("val")):
            if isinstance(value, torch.Tensor):
                check_size(value.shape, f"{node.name} in the network")
