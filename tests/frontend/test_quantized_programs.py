# SPDX-License-Identifier: Apache-2.0
"""Programs as PT2E quantizes them: the same numbers, and products of bytes where they fit.

Scales are powers of two and weights whole numbers, so that sums of torch in float32 are exact, and all is equal to the
bit.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.ao.quantization.fx._decomposed  # registers quantized_decomposed
import torch.nn.functional as F
from programs import as_dtype, extremes
from reference import relative_norm
from torch import nn

import tvm_involution as ti

OPS = torch.ops.quantized_decomposed
LIMITS = {torch.uint8: (0, 255), torch.int8: (-128, 127)}
SCALE = 2.0**-5


class Converted(nn.Module):
    """What `convert_pt2e` leaves of a network: weights in int8, and activations that are quantized and restored."""

    def __init__(self, rng: np.random.Generator, dtype: torch.dtype, zero: int) -> None:
        super().__init__()
        self.dtype, self.zero = dtype, zero
        shapes = {"first": (8, 3, 3, 3), "wide": (24, 8, 3, 3), "same": (24, 24, 1, 1), "deep": (24, 1, 3, 3)}
        for name, shape in {**shapes, "line": (7, 24)}.items():
            scales = 2.0 ** -rng.integers(8, 10, shape[0]).astype(np.float32)
            self.register_buffer(name, torch.from_numpy(extremes(rng, shape, -127, 127, "int8")))
            self.register_buffer(f"{name}_scales", torch.from_numpy(scales))
            self.register_buffer(f"{name}_zeros", torch.zeros(shape[0], dtype=torch.int64))

    def weight(self, name: str) -> torch.Tensor:
        scales, zeros = (getattr(self, f"{name}_{what}") for what in ("scales", "zeros"))
        return OPS.dequantize_per_channel(getattr(self, name), scales, zeros, 0, -127, 127, torch.int8)

    def restored(self, x: torch.Tensor) -> torch.Tensor:
        given = (SCALE, self.zero, *LIMITS[self.dtype], self.dtype)
        return OPS.dequantize_per_tensor(OPS.quantize_per_tensor(x, *given), *given)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.restored(F.conv2d(self.restored(x), self.weight("first"), None, 2))
        x = self.restored(F.conv2d(x, self.weight("wide"), None, 1, 1).relu())
        y = F.conv2d(x, self.weight("same")) + x
        x = self.restored(F.conv2d(self.restored(F.max_pool2d(y, 2)), self.weight("deep"), None, 1, 1, groups=24))
        return F.linear(self.restored(x.amax((2, 3))), self.weight("line"))


HASWELL = '{"kind": "llvm", "mcpu": "haswell", "mtriple": "x86_64-linux-gnu"}'


@pytest.mark.parametrize(
    ("target", "dtype", "zero"), [("llvm", torch.uint8, 117), ("llvm", torch.int8, -3), (HASWELL, torch.uint8, 0)]
)
def test_network(rng, tmp_path, target, dtype, zero):
    net = Converted(rng, dtype, zero).eval()
    x = (10 * rng.standard_normal((2, 3, 15, 19))).astype(np.float32)
    x[0, 0, 3, :3] = np.inf, -np.inf, np.nan
    library = ti.compile((net, torch.from_numpy(x)), target, debug_dump=tmp_path)
    text = (tmp_path / "1-simplify-the-graph.py").read_text()
    # not the first one, whose inputs are three, nor that of groups
    assert text.count('out_dtype="int32"') == 3
    library.save(tmp_path / "net.so")
    assert np.array_equal(ti.load(tmp_path / "net.so")(x), net(torch.from_numpy(x)).numpy())


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_types(rng, tmp_path, dtype):
    """They do not hold sums of products of bytes, which become infinite in float16."""
    layer = Converted(rng, torch.uint8, 117).eval()
    layer.forward = lambda x: F.conv2d(layer.restored(x), layer.weight("same")).relu()  # type: ignore[method-assign]
    x = as_dtype(np.abs(rng.standard_normal((2, 24, 9, 5))), dtype)
    expected = layer(torch.from_numpy(x.astype(np.float32))).numpy()
    ti.compile((layer, torch.from_numpy(x.astype(np.float32))), dtype=dtype).save(tmp_path / "net.so")
    assert relative_norm(ti.load(tmp_path / "net.so")(x), expected) < 1e-2


class Odd(nn.Module):
    """Weights with a zero of their own, channels of activations with scales of their own, a scale in a tensor."""

    def __init__(self, rng: np.random.Generator) -> None:
        super().__init__()
        self.register_buffer("weight", torch.from_numpy(extremes(rng, (5, 8, 1, 1), 0, 255, "uint8")))
        self.register_buffer("scales", torch.tensor([0.5, 1, 2, 4, 0.25, 1, 1, 8]))
        self.register_buffer("zeros", torch.arange(8))
        self.register_buffer("scale", torch.tensor(0.5))
        self.register_buffer("zero", torch.tensor(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        whole = OPS.quantize_per_channel(x, self.scales, self.zeros, 1, -128, 127, torch.int8)
        x = OPS.dequantize_per_channel(whole, self.scales, self.zeros, 1, -128, 127, torch.int8)
        weight = OPS.dequantize_per_tensor(self.weight, 0.5, 130, 0, 255, torch.uint8)
        given = (self.scale, self.zero, 0, 255, torch.uint8)
        return OPS.dequantize_per_tensor.tensor(OPS.quantize_per_tensor.tensor(F.conv2d(x, weight), *given), *given)


def test_what_does_not_fit(rng, tmp_path):
    net = Odd(rng).eval()
    x = (20 * rng.standard_normal((2, 8, 5, 4))).astype(np.float32)
    ti.compile((net, torch.from_numpy(x))).save(tmp_path / "net.so")
    assert np.array_equal(ti.load(tmp_path / "net.so")(x), net(torch.from_numpy(x)).numpy())


class Dynamic(nn.Module):
    """Takes its scale from the input."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        given = (x.abs().max() / 127, torch.tensor(0), -127, 127, torch.int8)
        return OPS.dequantize_per_tensor.tensor(OPS.quantize_per_tensor.tensor(x, *given), *given)


def test_dynamic_scales_are_refused():
    with pytest.raises(ti.UserError, match="quantize statically"):
        ti.compile((Dynamic(), torch.ones(2, 3)))
