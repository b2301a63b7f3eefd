# SPDX-License-Identifier: Apache-2.0
"""Epilogues of matrix products: their loops as pixels x channels."""

from __future__ import annotations

from tvm import s_tir, tirx
from tvm.s_tir.schedule import SBlockRV

from ..rule import loop_extents


def flatten_pixels(sch: s_tir.Schedule, epilogue: SBlockRV) -> bool:
    """Make the epilogue's loops pixels x channels; return whether that went."""
    extents = loop_extents(sch, sch.get_loops(epilogue))
    if extents is None:
        return False
    if len(extents) > 2:
        *sizes, _ = extents

        def flatten(*index):
            pixel = index[0]
            for place, size in zip(index[1:-1], sizes[1:], strict=True):
                pixel = pixel * size + place
            return pixel, index[-1]

        dtype = str(sch.get(epilogue).iter_vars[0].var.ty)
        sch.transform_block_layout(epilogue, tirx.IndexMap.from_func(flatten, ndim=len(extents), index_dtype=dtype))
    return len(extents) > 1
