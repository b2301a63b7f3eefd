# SPDX-License-Identifier: Apache-2.0
"""NaN, infinities and -0 through every kind of operator, as torch has them in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import tiny_rednet
from programs import as_dtype
from torch import nn
from torch.utils._pytree import tree_leaves

import tvm_involution as ti
from tvm_involution.cpu_features import cpu_features
from tvm_involution.target import resolve_target

SPECIAL = (float("nan"), float("inf"), float("-inf"), -0.0)
HASWELL = '{"kind": "llvm", "mtriple": "x86_64-linux-gnu", "mcpu": "haswell"}'
TOLERANCE = {"float32": 1e-5, "float16": 1e-2, "bfloat16": 5e-2}

OPERATORS = {
    "relu": F.relu,
    "relu6": F.relu6,
    "clamp": lambda x: x.clamp(-1, 2),
    "clamp_min": lambda x: x.clamp_min(0.5),
    "clamp_max": lambda x: x.clamp_max(0.5),
    "hardtanh": F.hardtanh,
    "hardswish": F.hardswish,
    "hardsigmoid": F.hardsigmoid,
    "leaky_relu": F.leaky_relu,
    "elu": F.elu,
    "celu": F.celu,
    "gelu": F.gelu,
    "silu": F.silu,
    "mish": F.mish,
    "softplus": F.softplus,
    "softshrink": F.softshrink,
    "hardshrink": F.hardshrink,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "erf": torch.erf,
    "sign": torch.sign,
    "softmax": lambda x: F.softmax(x, -1),
    "log_softmax": lambda x: F.log_softmax(x, -1),
    "normalize": lambda x: x / x.abs().amax(1, keepdim=True).clamp_min(1e-6),
    "maximum": lambda x: torch.maximum(x, x.flip(-1)),
    "minimum": lambda x: torch.minimum(x, x.flip(-1)),
    "amax": lambda x: x.amax(-1),
    "amax_of_pixels": lambda x: x.amax((1, 2)),
    "argmax": lambda x: x.argmax(-1),
    "argmin": lambda x: x.argmin(-1),
    "topk": lambda x: x.topk(5, -1).values,
    "topk_of_least": lambda x: x.topk(5, -1, largest=False).values,
    "sort": lambda x: torch.sort(x, dim=-1, stable=True),
    "sort_descending": lambda x: torch.sort(x, dim=1, descending=True, stable=True),
    "max_pool1d": lambda x: F.max_pool1d(x[:, :, 0], 3, 2, 1),
    "max_pool2d": lambda x: F.max_pool2d(x, 3, 2, 1),
    "max_pool2d_without_padding": lambda x: F.max_pool2d(x, 2),
    "max_pool3d": lambda x: F.max_pool3d(x[:, None], 2),
    "avg_pool2d": lambda x: F.avg_pool2d(x, 3, 2, 1),
    "times_zero": lambda x: x * 0.0,
    "zero_by": lambda x: 0.0 / x,
    "less_itself": lambda x: x - x,
    "is_nan": lambda x: torch.where(x != x, 1.0, x),
    "is_no_nan": lambda x: torch.where(x == x, 1.0, 2.0),
}


class Every(nn.Module):
    """All operators on one tensor; a dictionary of their outputs."""

    def __init__(self):
        super().__init__()
        self.prelu = nn.PReLU()

    def forward(self, x):
        return {"prelu": self.prelu(x), **{name: operator(x) for name, operator in OPERATORS.items()}}


def special_inputs(rng: np.random.Generator) -> np.ndarray:
    """Each special value (two pictures each) at one place, and at many, among them whole rows."""
    x = rng.standard_normal((2 * len(SPECIAL), 4, 4, 16))
    for n, value in enumerate(SPECIAL):
        x[2 * n, 1, 2, 5] = value
        x[2 * n + 1, :, :, ::3] = value
        x[2 * n + 1, 2, 1] = value
    return x


@pytest.mark.parametrize(
    ("target", "dtype"), [("llvm", "float32"), ("llvm", "float16"), ("llvm", "bfloat16"), (HASWELL, "float32")]
)
def test_operators(tmp_path, rng, target, dtype):
    if not set(cpu_features(resolve_target(target))) <= set(cpu_features(resolve_target("llvm"))):
        pytest.skip("this CPU lacks instructions of that one")
    x = as_dtype(special_inputs(rng), dtype)
    ti.compile((Every(), torch.zeros(x.shape)), target, dtype=dtype).save(tmp_path / "net.so")
    network = ti.load(tmp_path / "net.so")
    with torch.no_grad():
        expected = tree_leaves(Every().double()(torch.from_numpy(x.astype("float64"))))
    for spec, actual, right in zip(network.metadata.outputs, network(x), expected, strict=True):
        np.testing.assert_allclose(
            actual.astype("float64"), right.double(), TOLERANCE[dtype], TOLERANCE[dtype], err_msg=spec.name
        )


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_one_pixel_through_a_network(tmp_path, rng, dtype):
    """A NaN reaches every logit, as in torch; of an infinite pixel, too, nothing finite comes."""
    model = tiny_rednet()
    ti.compile(model, image_size=(32, 32), dtype=dtype).save(tmp_path / "net.so")
    network, model = ti.load(tmp_path / "net.so"), model.double()
    for value in SPECIAL[:3]:
        x = rng.standard_normal((1, 3, 32, 32))
        x[0, 1, 16, 17] = value
        x = as_dtype(x, dtype)
        with torch.no_grad():
            assert not model(torch.from_numpy(x.astype("float64"))).isfinite().any()
        assert not np.isfinite(network(x).astype("float64")).any()
