# SPDX-License-Identifier: Apache-2.0
"""Involutions of RedNet-50 in bfloat16 on this CPU, with their span: aggregated in float32 beside dot products of two.

    python benchmarks/bfloat16_involution.py

Both with the defaults of their schedule rule, with batch norm and ReLU; kernels alone, in turns, their arrays in the
cache. GFLOP/s count the span's and the window's multiply-adds, two operations each. Needs AVX512_BF16; nothing else may
run on the machine.
"""

from __future__ import annotations

import ml_dtypes
import numpy as np
from alone import Kernel, print_table
from rednet_layers import LAYERS
from tvm import te, topi

from tvm_involution.schedules.cpu.dot_bf16 import has_dot_bf16
from tvm_involution.target import resolve_target
from tvm_involution.te import pack_paired_span, pack_weight, paired_spanned_involution2d, spanned_involution2d

_LANES = 32


def involution(layer: tuple[int, int, int, int], paired: bool) -> Kernel:
    """Return a layer with its numbers, built in one way."""
    channels, side, kernel, stride = layer
    groups, hidden, out, padding = channels // 16, channels // 4, (side - 1) // stride + 1, kernel // 2
    taps = groups * kernel**2
    rng = np.random.default_rng(0)

    def numbers(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape, np.float32).astype(ml_dtypes.bfloat16)

    x, reduced, scale, shift = (
        numbers(1, *shape) for shape in ((side, side, channels), (out, out, hidden), (1, 1, channels), (1, 1, channels))
    )
    weight, bias = numbers(taps, hidden, 1, 1), numbers(taps)
    if paired:
        span = pack_paired_span(weight, bias, kernel, _LANES)
    else:
        empty = -taps % _LANES
        whole = np.pad(weight, ((0, empty), (0, 0), (0, 0), (0, 0)))
        span = pack_weight(whole, _LANES, values=2), np.pad(bias.astype("float32"), (0, empty)).reshape(1, 1, 1, -1)

    def expression(x, reduced, span_weight, span_bias, scale, shift) -> te.Tensor:
        arguments = dict(kernel_size=kernel, groups=groups, stride=stride, padding=padding)
        if not paired:
            arguments["inner_dtype"] = "float32"
        function = paired_spanned_involution2d if paired else spanned_involution2d
        result = function(x, reduced, span_weight, span_bias, **arguments)
        return topi.nn.relu(topi.add(topi.multiply(result, scale), shift))

    exact = [array.astype(np.float64) for array in (x, reduced, weight, bias, scale, shift)]
    values = (exact[1] @ exact[2][:, :, 0, 0].T + exact[3]).reshape(1, out, out, groups, kernel, kernel)
    padded = np.pad(exact[0], ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (kernel, kernel), (1, 2))[:, ::stride, ::stride]
    windows = windows.reshape(1, out, out, groups, 16, kernel, kernel)
    sums = np.einsum("bijgcuv,bijguv->bijgc", windows, values, optimize=True).reshape(1, out, out, channels)
    expected = np.maximum(sums * exact[4] + exact[5], 0)
    operations = 2 * out * out * (taps * hidden + channels * kernel**2)
    return Kernel([x, reduced, *span, scale, shift], expression, expected, operations)


def main() -> None:
    """Print a table."""
    if not has_dot_bf16(resolve_target("llvm")):
        raise SystemExit("this CPU has no AVX512_BF16")
    rows = (
        (f"{channels}, {side}x{side}, {kernel}, {stride}", [involution(layer, way) for way in (False, True)])
        for layer in LAYERS
        for channels, side, kernel, stride in [layer]
    )
    print_table("channels, pixels, kernel, stride", ["float32", "dot products"], rows)


if __name__ == "__main__":
    main()
