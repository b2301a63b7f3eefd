# SPDX-License-Identifier: Apache-2.0
"""Involution on a GPU as its authors published it: NCHW, a thread an output element, all sizes compile-time constants.

The algorithm is that of cls/mmcls/models/utils/involution_cuda.py (there float32 and float64, through CuPy); the half
types are added here, with sums in float32. It is launched through CuPy on torch's current stream.
"""

from __future__ import annotations

import importlib.util
import math
from functools import cache
from typing import Any

import torch
from torch import Tensor

THREADS = 1024
"""of a block, as published"""
_TYPES = {"float32": "float", "float16": "__half", "bfloat16": "__nv_bfloat16"}
_SOURCE = """
#include <cuda_fp16.h>
#include <cuda_bf16.h>
__device__ inline float widen(float a) { return a; }
__device__ inline float widen(__half a) { return __half2float(a); }
__device__ inline float widen(__nv_bfloat16 a) { return __bfloat162float(a); }
__device__ inline void store(float* to, float a) { *to = a; }
__device__ inline void store(__half* to, float a) { *to = __float2half_rn(a); }
__device__ inline void store(__nv_bfloat16* to, float a) { *to = __float2bfloat16_rn(a); }

extern "C" __global__ void __launch_bounds__(%(threads)d) involution(
    const %(type)s* x, const %(type)s* kernel, %(type)s* out) {
  const int index = blockIdx.x * %(threads)d + threadIdx.x;
  if (index >= %(elements)d) return;
  const int column = index %% %(out_width)d;
  const int row = index / %(out_width)d %% %(out_height)d;
  const int channel = index / (%(out_width)d * %(out_height)d) %% %(channels)d;
  const int image = index / (%(out_width)d * %(out_height)d * %(channels)d);
  const int group = channel / %(group_channels)d;
  const %(type)s* plane = x + (image * %(channels)d + channel) * (%(height)d * %(width)d);
  const %(type)s* weight = kernel + (image * %(groups)d + group) *
      (%(window)d * %(window)d * %(out_height)d * %(out_width)d) + row * %(out_width)d + column;
  float sum = 0;
#pragma unroll
  for (int u = 0; u < %(window)d; ++u) {
#pragma unroll
    for (int v = 0; v < %(window)d; ++v) {
      const int i = row * %(stride)d - %(padding)d + u * %(dilation)d;
      const int j = column * %(stride)d - %(padding)d + v * %(dilation)d;
      if (i >= 0 && i < %(height)d && j >= 0 && j < %(width)d)
        sum += widen(weight[(u * %(window)d + v) * (%(out_height)d * %(out_width)d)]) * widen(plane[i * %(width)d + j]);
    }
  }
  store(out + index, sum);
}
"""


def missing() -> str | None:
    """Return why the kernel cannot run here, None where it can."""
    if not torch.cuda.is_available():
        return "no GPU"
    return None if importlib.util.find_spec("cupy") is not None else "CuPy is not installed"


def source(
    x_shape: tuple[int, ...], kernel_shape: tuple[int, ...], window: int, stride: int, dilation: int, dtype: str
) -> str:
    """Return the CUDA C of the kernel `involution(x, kernel, out)` for one size.

    Args:
        x_shape: (N, C, H, W).
        kernel_shape: (N, G*K*K, OH, OW), K being `window`.

    Raises:
        ValueError: an array that the kernel's 32-bit indices don't reach.
    """
    if max(math.prod(x_shape), math.prod(kernel_shape)) >= 1 << 31:
        raise ValueError(f"more than 2**31 elements: x {x_shape}, kernel {kernel_shape}")
    n, channels, height, width = x_shape
    groups = kernel_shape[1] // window**2
    out_height, out_width = kernel_shape[2:]
    return _SOURCE % {
        "type": _TYPES[dtype],
        "threads": THREADS,
        "elements": n * channels * out_height * out_width,
        "channels": channels,
        "height": height,
        "width": width,
        "out_height": out_height,
        "out_width": out_width,
        "groups": groups,
        "group_channels": channels // groups,
        "window": window,
        "stride": stride,
        "dilation": dilation,
        "padding": dilation * (window - 1) // 2,
    }


def involution(x: Tensor, kernel: Tensor, window: int, stride: int, dilation: int) -> Tensor:
    """Return the involution (N, C, OH, OW) of x (N, C, H, W) by a packed kernel (N, G*K*K, OH, OW), all contiguous."""
    import cupy

    dtype = str(x.dtype).removeprefix("torch.")
    launch = _compiled(source(tuple(x.shape), tuple(kernel.shape), window, stride, dilation, dtype))
    out = x.new_empty(x.shape[0], x.shape[1], *kernel.shape[2:])
    blocks = -(-out.numel() // THREADS)
    with cupy.cuda.ExternalStream(torch.cuda.current_stream().cuda_stream):
        launch((blocks,), (THREADS,), tuple(tensor.data_ptr() for tensor in (x, kernel, out)))
    return out


@cache
def _compiled(text: str) -> Any:
    import cupy

    failure: Exception | None = None
    for backend in ("nvrtc", "nvcc"):  # NVRTC does not find the headers of half types everywhere
        try:
            return cupy.RawModule(code=text, backend=backend, options=("-std=c++17",)).get_function("involution")
        except Exception as error:
            failure = error
    assert failure is not None
    raise failure
