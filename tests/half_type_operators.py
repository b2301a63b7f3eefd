# SPDX-License-Identifier: Apache-2.0
"""Operators that are promised in half types, as modules with inputs that sums in half types would not survive."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

import tvm_involution as ti

Make = Callable[[], torch.Tensor]


@dataclass(frozen=True)
class Operator:
    """A module or function of tensors, and what makes fresh inputs for it."""

    name: str
    function: Callable[..., torch.Tensor]
    inputs: tuple[Make, ...]


def normal(*shape: int, mean: float = 0.0, deviation: float = 1.0) -> Make:
    return lambda: torch.randn(shape) * deviation + mean


def filled(value: float, *shape: int) -> Make:
    return lambda: torch.full(shape, value)


def positive(*shape: int) -> Make:
    return lambda: torch.rand(shape) + 0.5


def trained_batch_norm(channels: int) -> nn.BatchNorm2d:
    norm = nn.BatchNorm2d(channels)
    for values in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
        nn.init.uniform_(values, 0.5, 2)
    return norm


class Attention(nn.Module):
    """By hand, as many networks spell it."""

    def forward(self, q, k, v):
        scores = q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5
        return (scores + torch.ones(q.shape[-2], k.shape[-2], dtype=q.dtype).triu(1) * -10).softmax(-1) @ v


class SelfAttention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(64, 4, batch_first=True)

    def forward(self, x):
        return self.attention(x, x, x)[0]


class Involution(nn.Module):
    def __init__(self, groups: int, size: int, stride: int = 1) -> None:
        super().__init__()
        self.groups, self.size, self.stride = groups, size, stride

    def forward(self, x, kernel):
        n, _, h, w = kernel.shape
        kernel = kernel.view(n, self.groups, self.size, self.size, h, w)
        return ti.nn.involution2d(x, kernel, self.stride, self.size // 2)


class UnfoldInvolution(nn.Module):
    """As the official repository writes it without its CUDA kernel."""

    def forward(self, x, kernel):
        n, c, h, w = x.shape
        windows = F.unfold(x, 7, padding=3).view(n, 4, c // 4, 49, h, w)
        return (kernel.view(n, 4, 49, h, w).unsqueeze(2) * windows).sum(dim=3).view(n, c, h, w)


LINEAR = [
    Operator("product", lambda x: x @ x.transpose(1, 2), (filled(0.05, 1, 2, 16384),)),
    Operator("matmul", torch.matmul, (normal(2, 3, 24, 512, mean=0.5), normal(2, 3, 512, 20, mean=0.5))),
    Operator("matrix by vector", torch.matmul, (normal(16, 3000, mean=1), normal(3000, mean=1))),
    Operator("bmm", torch.bmm, (normal(4, 16, 600), normal(4, 600, 24))),
    Operator(
        "einsum", lambda a, b: torch.einsum("bij,bkj->bik", a, b), (normal(2, 16, 900, mean=1), normal(2, 12, 900))
    ),
    Operator("outer", torch.outer, (normal(40), normal(50))),
    Operator("linear", nn.Linear(2048, 40), (normal(4, 2048, mean=1),)),
    Operator("linear of rows", nn.Linear(1024, 40), (normal(2, 5, 1024, mean=1),)),
    Operator("scaled dot product attention", F.scaled_dot_product_attention, (normal(1, 2, 40, 64, deviation=2),) * 3),
    Operator(
        "causal attention",
        lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True),
        (normal(1, 2, 40, 64, deviation=2),) * 3,
    ),
    Operator("attention by hand", Attention(), (normal(2, 40, 64, deviation=2),) * 3),
    Operator("multi-head attention", SelfAttention(), (normal(2, 30, 64),)),
]

CONVOLUTIONS = [
    Operator("conv1d", nn.Conv1d(256, 16, 5, padding=2), (normal(2, 256, 40, mean=1),)),
    Operator("conv1d, grouped", nn.Conv1d(64, 16, 3, groups=4), (normal(2, 64, 40, mean=1),)),
    Operator("conv2d", nn.Conv2d(64, 32, 3, padding=1), (normal(1, 64, 9, 11, mean=1),)),
    Operator("conv2d, grouped", nn.Conv2d(512, 32, 3, padding=1, groups=2), (normal(1, 512, 6, 7, mean=1),)),
    Operator("conv2d, depthwise", nn.Conv2d(32, 32, 7, padding=3, groups=32), (normal(1, 32, 12, 11, mean=1),)),
    Operator("conv2d, dilated", nn.Conv2d(64, 24, 3, padding=4, dilation=4, stride=2), (normal(1, 64, 15, 14),)),
    Operator("conv3d", nn.Conv3d(32, 8, 3, padding=1), (normal(1, 32, 5, 6, 7, mean=1),)),
    Operator("conv_transpose1d", nn.ConvTranspose1d(128, 8, 4, 2, 1), (normal(1, 128, 12, mean=1),)),
    Operator("conv_transpose2d", nn.ConvTranspose2d(128, 8, 4, 2, 1), (normal(1, 128, 6, 5, mean=1),)),
    Operator("conv_transpose2d, no overlap", nn.ConvTranspose2d(128, 8, 2, 2), (normal(1, 128, 6, 5, mean=1),)),
    Operator("conv_transpose2d, grouped", nn.ConvTranspose2d(128, 16, 3, 2, 1, 1, groups=4), (normal(1, 128, 6, 5),)),
    Operator("convolution by an activation", F.conv2d, (normal(1, 64, 8, 7, mean=1), normal(8, 64, 3, 3))),
    Operator("involution", Involution(4, 7), (normal(1, 64, 9, 8, mean=1), normal(1, 4 * 49, 9, 8))),
    Operator("involution, 3x3, stride 2", Involution(2, 3, 2), (normal(1, 32, 9, 8), normal(1, 18, 5, 4))),
    Operator("involution by unfold", UnfoldInvolution(), (normal(1, 64, 9, 8, mean=1), normal(1, 4 * 49, 9, 8))),
    Operator("involution layer", ti.nn.Involution2d(64, 7), (normal(1, 64, 9, 8),)),
    Operator("involution layer, stride 2", ti.nn.Involution2d(64, 7, stride=2), (normal(1, 64, 10, 8),)),
]

REDUCTIONS = [
    Operator("sum", lambda x: x.sum(1), (filled(0.05, 3, 16384),)),
    Operator("sum of all", lambda x: x.sum(), (normal(40, 500, mean=0.1),)),
    Operator("mean", lambda x: x.mean(1), (normal(2, 70000, mean=1),)),
    Operator("mean of images", lambda x: x.mean((2, 3), keepdim=True), (normal(2, 8, 40, 50, mean=3),)),
    Operator("var", lambda x: x.var(1), (normal(2, 1000, mean=10, deviation=200),)),
    Operator("var of large values", lambda x: x.var(1, correction=0), (normal(2, 1000, mean=3000, deviation=100),)),
    Operator("std", lambda x: x.std(1), (normal(2, 1000, mean=10, deviation=600),)),
    Operator("norm", lambda x: torch.linalg.vector_norm(x, dim=1), (normal(3, 1000, deviation=400),)),
    Operator("1-norm", lambda x: x.norm(p=1, dim=1), (normal(3, 5000),)),
    Operator("3-norm", lambda x: x.norm(p=3, dim=1), (normal(3, 1000, deviation=60),)),
    Operator("maximum norm", lambda x: x.norm(p=float("inf"), dim=1), (normal(3, 1000, deviation=60),)),
    Operator("Frobenius norm", lambda x: torch.linalg.matrix_norm(x), (normal(3, 40, 50, deviation=400),)),
    Operator("normalize", lambda x: F.normalize(x, dim=1), (normal(3, 1000, deviation=400),)),
    Operator("cosine similarity", F.cosine_similarity, (normal(3, 1000), normal(3, 1000))),
    Operator("prod", torch.prod, (lambda: torch.rand(3, 64) * 0.02 + 0.99,)),
    Operator("cumsum", lambda x: x.cumsum(1), (filled(0.05, 2, 4096),)),
    Operator("cumsum of columns", lambda x: x.cumsum(1), (normal(2, 2000, 3, mean=1),)),
    Operator("cumprod", lambda x: x.cumprod(1), (lambda: torch.rand(3, 64) * 0.2 + 0.9,)),
    Operator("logsumexp", lambda x: torch.logsumexp(x, 1), (normal(3, 3000, deviation=3),)),
    Operator("softmax", lambda x: x.softmax(1), (normal(3, 3000, deviation=3),)),
    Operator("softmax of channels", lambda x: x.softmax(1), (normal(2, 300, 4, 5, deviation=3),)),
    Operator("log_softmax", lambda x: x.log_softmax(1), (normal(3, 3000, deviation=3),)),
    Operator("layer_norm", nn.LayerNorm(768), (normal(2, 5, 768, mean=20, deviation=9),)),
    Operator("layer_norm without weights", lambda x: F.layer_norm(x, (8, 300)), (normal(2, 8, 300, deviation=400),)),
    Operator("group_norm", nn.GroupNorm(4, 64), (normal(2, 64, 9, 8, mean=3, deviation=300),)),
    Operator("instance_norm", nn.InstanceNorm2d(16, affine=True), (normal(2, 16, 9, 8, mean=3, deviation=300),)),
    Operator("batch_norm", trained_batch_norm(16), (normal(2, 16, 9, 8, mean=3),)),
    Operator("rms_norm", nn.RMSNorm(768), (normal(2, 5, 768, mean=20, deviation=300),)),
    Operator("max", lambda x: x.amax(1), (normal(3, 1000),)),
    Operator(
        "trace of a product", lambda x, y: (x * y).sum((1, 2)), (normal(2, 60, 50, mean=1), normal(2, 60, 50, mean=1))
    ),
]

POOLING = [
    Operator("avg_pool1d", lambda x: F.avg_pool1d(x, 64, 32), (normal(1, 8, 256, mean=10),)),
    Operator("avg_pool2d", lambda x: F.avg_pool2d(x, 25, 5), (normal(1, 16, 30, 35, mean=10),)),
    Operator("avg_pool2d, padded", lambda x: F.avg_pool2d(x, 3, 2, 1), (normal(1, 16, 9, 9, mean=10),)),
    Operator("avg_pool3d", lambda x: F.avg_pool3d(x, 6), (normal(1, 4, 12, 13, 14, mean=10),)),
    Operator("max_pool1d", lambda x: F.max_pool1d(x, 3, 2, 1), (normal(1, 8, 30),)),
    Operator("max_pool2d", lambda x: F.max_pool2d(x, 3, 2, 1), (normal(1, 16, 9, 9),)),
    Operator("max_pool3d", lambda x: F.max_pool3d(x, 2), (normal(1, 4, 6, 8, 6),)),
    Operator("adaptive_avg_pool1d", lambda x: F.adaptive_avg_pool1d(x, 2), (normal(1, 4, 4000, mean=10),)),
    Operator("adaptive_avg_pool2d", lambda x: F.adaptive_avg_pool2d(x, 1), (normal(1, 16, 60, 70, mean=10),)),
    Operator("adaptive_avg_pool2d, uneven", lambda x: F.adaptive_avg_pool2d(x, (3, 4)), (normal(1, 16, 10, 13),)),
    Operator("adaptive_avg_pool3d", lambda x: F.adaptive_avg_pool3d(x, 1), (normal(1, 4, 12, 13, 14, mean=10),)),
    Operator("nearest", lambda x: F.interpolate(x, scale_factor=2), (normal(1, 8, 7, 6),)),
    Operator("bilinear", lambda x: F.interpolate(x, (15, 11), mode="bilinear"), (normal(1, 8, 7, 6),)),
    Operator("bicubic", lambda x: F.interpolate(x, (15, 11), mode="bicubic"), (normal(1, 8, 7, 6),)),
]

FUNCTIONS = [
    Operator(name, function, (make,))
    for name, function, make in (
        ("pow", lambda x: x.pow(3), normal(500)),
        ("pow of a fraction", lambda x: x**0.3, positive(500)),
        ("square", torch.square, normal(500)),
        ("exp", torch.exp, normal(500)),
        ("expm1", torch.expm1, normal(500)),
        ("log", torch.log, positive(500)),
        ("log1p", torch.log1p, positive(500)),
        ("log2", torch.log2, positive(500)),
        ("sqrt", torch.sqrt, positive(500)),
        ("rsqrt", torch.rsqrt, positive(500)),
        ("reciprocal", torch.reciprocal, positive(500)),
        ("sin", torch.sin, normal(500)),
        ("cos", torch.cos, normal(500)),
        ("tan", torch.tan, lambda: torch.rand(500)),
        ("atan", torch.atan, normal(500)),
        ("tanh", torch.tanh, normal(500)),
        ("erf", torch.erf, normal(500)),
        ("sigmoid", torch.sigmoid, normal(500)),
        ("logsigmoid", F.logsigmoid, normal(500)),
        ("gelu", F.gelu, normal(500)),
        ("gelu of tanh", lambda x: F.gelu(x, approximate="tanh"), normal(500)),
        ("silu", F.silu, normal(500)),
        ("mish", F.mish, normal(500)),
        ("softplus", F.softplus, normal(500)),
        ("elu", F.elu, normal(500)),
        ("hardswish", F.hardswish, normal(500)),
        ("hardsigmoid", F.hardsigmoid, normal(500)),
        ("hardtanh", F.hardtanh, normal(500)),
        ("relu", F.relu, normal(500)),
        ("relu6", F.relu6, normal(500)),
        ("leaky_relu", F.leaky_relu, normal(500)),
        ("prelu", nn.PReLU(), normal(5, 100)),
        ("clamp", lambda x: x.clamp(-0.5, 0.7), normal(500)),
        ("abs", torch.abs, normal(500)),
        ("floor", torch.floor, normal(500)),
        ("where", lambda x: torch.where(x > 0, x, -2 * x), normal(500)),
    )
]

GROUPS = {
    "linear": LINEAR,
    "convolutions": CONVOLUTIONS,
    "reductions": REDUCTIONS,
    "pooling": POOLING,
    "functions": FUNCTIONS,
}
