# SPDX-License-Identifier: Apache-2.0
"""What local self-attention computes, read from the blocks of `te.local_attention2d`."""

from __future__ import annotations

from typing import NamedTuple

from tvm import s_tir
from tvm.s_tir.schedule import SBlockRV

from ..te.blocks import Block
from .rule import find_blocks, loop_extents


class AttentionBlocks(NamedTuple):
    """The blocks, in the order in which they are computed; what pads or widens the inputs is not among them."""

    queries: SBlockRV
    keys: SBlockRV
    relation: SBlockRV
    """the products of queries and keys"""
    scores: SBlockRV
    peak: SBlockRV
    """the largest score of each window"""
    weights: SBlockRV
    total: SBlockRV
    """the sum of a window's weights"""
    sums: SBlockRV
    """the sums of values by their weights"""
    out: SBlockRV


class AttentionSizes(NamedTuple):
    """The extents of the loops around two of the blocks."""

    relation: list[int]
    """N, heads, H, blocks of pixels, KH, KW, pixels of a block, channels of a head"""
    sums: list[int]
    """N, H, W, C, KH, KW"""


def find_attention(sch: s_tir.Schedule) -> AttentionBlocks | None:
    """Return the blocks, or None where one is missing."""
    found = find_blocks(
        sch,
        Block.QUERIES,
        Block.KEYS,
        Block.RELATION,
        Block.SCORES,
        Block.RELATION_MAX,
        Block.RELATION_EXP,
        Block.RELATION_SUM,
        Block.ATTENTION,
        Block.ATTENTION_OUT,
    )
    return None if found is None else AttentionBlocks(*found)


def attention_sizes(sch: s_tir.Schedule, blocks: AttentionBlocks) -> AttentionSizes | None:
    """Return the sizes in NHWC; None in another layout, or where one is not known at compile time."""
    relation, sums = (loop_extents(sch, sch.get_loops(block)) for block in (blocks.relation, blocks.sums))
    block = sch.get(blocks.sums)
    if relation is None or sums is None or not block.reads[-1].region[-1].min.same_as(block.iter_vars[3].var):
        return None
    return AttentionSizes(relation, sums)
