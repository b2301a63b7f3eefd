# SPDX-License-Identifier: Apache-2.0
"""Rows are filled up to strips that keep most of the registers busy, and by little."""

from __future__ import annotations

import pytest
import tvm

from tvm_involution.schedules.cpu import depthwise_convolution, packed_gemm, winograd
from tvm_involution.schedules.cpu.registers import tile_pixels
from tvm_involution.schedules.rule import largest_divisor

REGISTERS = {"skylake-avx512": 32, "haswell": 16}


@pytest.mark.parametrize("cpu", REGISTERS)
def test_tiles_fill_the_registers(cpu):
    target = tvm.target.Target({"kind": "llvm", "mcpu": cpu})
    for vectors in (1, 2):
        pixels = tile_pixels(vectors, target)
        assert pixels * vectors + vectors + 1 <= REGISTERS[cpu] < (pixels + 1) * vectors + vectors + 1


@pytest.mark.parametrize("cpu", REGISTERS)
@pytest.mark.parametrize("rule", [packed_gemm, winograd, depthwise_convolution], ids=lambda rule: rule.__name__)
def test_strips(rule, cpu):
    target = tvm.target.Target({"kind": "llvm", "mcpu": cpu})
    longest = tile_pixels(2, target)
    for pixels in range(longest, 300):
        filled = -(-pixels // (strip := rule.strip_width(pixels, target))) * strip
        assert largest_divisor(filled, longest) >= longest // 2
        assert filled - pixels < longest and (strip == 1 or filled <= pixels + max(2, pixels // 5))
