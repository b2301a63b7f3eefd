# SPDX-License-Identifier: Apache-2.0
"""What readers say of a block is what the expression was made with."""

from __future__ import annotations

import numpy as np
import pytest
from tvm import s_tir, te

from tvm_involution.schedules.gpu.mma_product import read_mma
from tvm_involution.schedules.packed_weight import packed_weight
from tvm_involution.schedules.rule import find_block, find_blocks
from tvm_involution.te import (
    MmaFragments,
    conv2d_mma,
    conv2d_packed,
    conv2d_strassen,
    conv2d_windows,
    conv2d_winograd,
    pack_strassen_weight,
    pack_weight,
    pack_weight_mma,
    pack_winograd_weight,
)
from tvm_involution.te.blocks import Block

LANES = 16


def block_of(block: Block, x: te.Tensor, weight: np.ndarray, expression) -> s_tir.SBlock:
    packed = te.placeholder(weight.shape, str(weight.dtype), "weight")
    sch = s_tir.Schedule(te.create_prim_func([x, packed, expression(x, packed)]))
    return sch.get(sch.get_sblock(block))


def image(dtype: str = "float32") -> te.Tensor:
    return te.placeholder((1, 8, 8, 24), dtype, "x")


@pytest.mark.parametrize("pairs", [False, True])
def test_packed(pairs):
    weight = pack_weight(np.ones((48, 24, 3, 3), np.float32), LANES, 2 if pairs else 1)
    found = packed_weight(block_of(Block.CONV2D, image(), weight, lambda x, w: conv2d_packed(x, w, 48)))
    assert (found.packs, found.steps, found.lanes, found.values) == (3, 24 // (1 + pairs), LANES, 1 + pairs)
    assert found.values == (2 if pairs else 1) and found.pack_bytes == 9 * 24 * LANES * 4


def test_winograd_and_strassen():
    weight = pack_winograd_weight(np.ones((48, 24, 3, 3), np.float32), 4, LANES)
    found = packed_weight(block_of(Block.WINOGRAD, image(), weight, lambda x, w: conv2d_winograd(x, w, 48)))
    assert (found.packs, found.steps, found.lanes, found.values) == (3, 24, LANES, 1)
    weight = pack_strassen_weight(np.ones((64, 24, 1, 1), np.float32), LANES)
    found = packed_weight(block_of(Block.STRASSEN, image(), weight, conv2d_strassen))
    assert (found.packs, found.steps, found.lanes, found.values) == (2, 12, LANES, 1)


@pytest.mark.parametrize(
    "fragments",
    [
        MmaFragments("float16", 8),
        MmaFragments("float16", 16, 8),
        MmaFragments("float16", 16),
        MmaFragments("bfloat16", 16),
        MmaFragments("float32", 8),
    ],
    ids=str,
)
def test_mma(fragments):
    weight = pack_weight_mma(np.ones((64, 24, 1, 1), np.float32), fragments, 2)
    x, packed = image(fragments.dtype), te.placeholder(weight.shape, fragments.dtype, "weight")
    out = conv2d_mma(conv2d_windows(x, (1, 1)), packed, 64, fragments, fragments.dtype)
    sch = s_tir.Schedule(te.create_prim_func([x, packed, out]))
    found = read_mma(sch.get(sch.get_sblock(Block.MMA)))
    assert found.fragments == fragments and (found.packs, found.tiles) == (2, 2)
    assert found.chunks == -(-24 // fragments.chunk)


def test_one_block_that_is_missing_is_enough():
    weight = te.placeholder((3, 1, 1, 24, LANES), name="weight")
    x = image()
    sch = s_tir.Schedule(te.create_prim_func([x, weight, conv2d_packed(x, weight, 48)]))
    assert find_block(sch, Block.MMA) is None and find_blocks(sch, Block.CONV2D, Block.MMA) is None
    assert len(find_blocks(sch, Block.CONV2D_OUT, Block.CONV2D) or ()) == 2
