# SPDX-License-Identifier: Apache-2.0
"""Epilogues of matrix products: their loops as pixels x channels."""

from __future__ import annotations

from tvm import s_tir
from tvm.s_tir.schedule import SBlockRV

from ..rule import loop_extents


def flatten_pixels(sch: s_tir.Schedule, epilogue: SBlockRV) -> bool:
    """Make the epilogue's loops pixels x channels; return whether that went."""
    extents = loop_extents(sch, sch.get_loops(epilogue))
    if extents is None:
        return False
    if len(extents) == 4:
        _, height, width, _ = extents
        sch.transform_block_layout(epilogue, lambda b, y, z, o: ((b * height + y) * width + z, o))
    return len(extents) in (2, 4)
