# SPDX-License-Identifier: Apache-2.0
"""Weights that were packed for another x, which an expression would read past the end of or leave a part of."""

from __future__ import annotations

import numpy as np
import pytest
from tvm import te

import tvm_involution as ti
from tvm_involution.te import MmaFragments, conv2d_windows

WEIGHT = np.ones((32, 32, 3, 3), np.float32)
FRAGMENTS = MmaFragments("float16", 16)


def _like(array: np.ndarray) -> te.Tensor:
    return te.placeholder(array.shape, str(array.dtype), "weight")


def _picture(channels: int, side: int = 8) -> te.Tensor:
    return te.placeholder((1, side, side, channels), "float32", "x")


PACKED = {
    "conv2d_packed": (_like(ti.te.pack_weight(WEIGHT, 16)), {}),
    "conv2d_packed, pairs": (_like(ti.te.pack_weight(WEIGHT, 16, values=2)), {}),
    "conv2d_packed, groups": (_like(ti.te.pack_grouped_weight(WEIGHT[:, :16], 2, 8)), {"groups": 2}),
    "conv2d_winograd": (_like(ti.te.pack_winograd_weight(WEIGHT, 4, 16)), {}),
}


@pytest.mark.parametrize("name", PACKED)
def test_convolution(name: str) -> None:
    weight, more = PACKED[name]
    function = getattr(ti.te, name.partition(",")[0])
    assert list(function(_picture(32), weight, 32, **more).shape) == [1, 6, 6, 32]
    for channels in (16, 30, 34, 64):
        with pytest.raises(ti.UserError, match="weight"):
            function(_picture(channels), weight, 32, **more)
    with pytest.raises(ti.UserError, match="out_channels"):
        function(_picture(32), weight, 33, **more)
    with pytest.raises(ti.UserError, match="larger than the padded x"):
        function(_picture(32, 2), weight, 32, **more)


@pytest.mark.parametrize("channels", [16, 64])
def test_matrix_products(channels: int) -> None:
    rows = te.placeholder((5, channels), "float32", "x")
    with pytest.raises(ti.UserError, match="weight"):
        ti.te.matmul_packed(rows, _like(ti.te.pack_weight(WEIGHT[..., :1, :1], 16)), 32)
    windows = conv2d_windows(_picture(channels), (3, 3))
    with pytest.raises(ti.UserError, match="weight must have shape"):
        ti.te.conv2d_gemm(windows, _like(ti.te.pack_weight_gemm(WEIGHT, 16)), 32, "float32")
    with pytest.raises(ti.UserError, match="weight must have shape"):
        ti.te.conv2d_mma(windows, _like(ti.te.pack_weight_mma(WEIGHT, FRAGMENTS, 2)), 32, FRAGMENTS, "float16")


def test_depthwise_convolution() -> None:
    weight = _like(ti.te.pack_depthwise_weight(WEIGHT[:, :1], 16))
    assert list(ti.te.depthwise_conv2d(_picture(31), weight).shape) == [1, 6, 6, 31]
    with pytest.raises(ti.UserError, match="33 channels"):
        ti.te.depthwise_conv2d(_picture(33), weight)


@pytest.mark.parametrize("arguments", [("int8", 16), ("float16", 0), ("float16", 16, 4), ("float32", 16, 8)])
def test_fragments_that_no_instruction_has(arguments: tuple) -> None:
    with pytest.raises(ti.UserError, match="MmaFragments"):
        MmaFragments(*arguments)
