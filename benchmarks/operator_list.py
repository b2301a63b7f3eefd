# SPDX-License-Identifier: Apache-2.0
"""The operators of operators.py, with the shapes that they have in networks that people use, batch 1."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn


@dataclass(frozen=True)
class Operator:
    """An operator as a module, and its input."""

    name: str
    network: str
    """where its shape comes from"""
    make: Callable[[], nn.Module]
    shape: tuple[int, ...]
    channels_first: bool = True
    """(N, C, ...), which may be laid out channels last; else channels are the last axis already"""


def conv(i: int, o: int, k: int = 1, stride: int = 1, groups: int = 1, dilation: int = 1, padding: int | None = None):
    """Return a maker of a 2-D convolution that keeps the size at stride 1."""
    pad = dilation * (k - 1) // 2 if padding is None else padding
    return lambda: nn.Conv2d(i, o, k, stride, pad, dilation, groups)


def conv1d(i: int, o: int, k: int, stride: int = 1, groups: int = 1, dilation: int = 1):
    """Return a maker of a 1-D convolution."""
    return lambda: nn.Conv1d(i, o, k, stride, dilation * (k - 1) // 2, dilation, groups)


def behind(first: Callable[[], nn.Module], *rest: Callable[[], nn.Module]):
    """Return a maker of several modules, one after the other."""
    return lambda: nn.Sequential(first(), *(make() for make in rest))


def upsample(**options: object):
    """Return a maker of an interpolation."""
    return lambda: nn.Upsample(**options)


class SqueezeExcite(nn.Module):
    """Scale each channel by a function of all channels' means."""

    def __init__(self, channels: int, inner: int) -> None:
        super().__init__()
        self.down, self.up = nn.Conv2d(channels, inner, 1), nn.Conv2d(inner, channels, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the scaled x (N, C, H, W)."""
        inner = nn.functional.silu(self.down(x.mean((2, 3), keepdim=True)))
        return x * torch.sigmoid(self.up(inner))


def _depthwise(network: str, channels: int, side: int, k: int, stride: int = 1, dilation: int = 1) -> Operator:
    name = f"depthwise {k}x{k} {channels}x{side}" + f" s{stride}" * (stride > 1) + f" d{dilation}" * (dilation > 1)
    return Operator(name, network, conv(channels, channels, k, stride, channels, dilation), (1, channels, side, side))


def _grouped(network: str, channels: int, side: int, groups: int, stride: int = 1) -> Operator:
    name = f"grouped 3x3 {channels}x{side} g{groups}" + f" s{stride}" * (stride > 1)
    return Operator(name, network, conv(channels, channels, 3, stride, groups), (1, channels, side, side))


def _pointwise(network: str, i: int, o: int, height: int, width: int | None = None) -> Operator:
    width = width or height
    return Operator(f"conv 1x1 {i}-{o} {height}x{width}", network, conv(i, o), (1, i, height, width))


def _dense(network: str, i: int, o: int, side: int, k: int = 3, stride: int = 1, dilation: int = 1) -> Operator:
    name = f"conv {k}x{k} {i}-{o} {side}" + f" s{stride}" * (stride > 1) + f" d{dilation}" * (dilation > 1)
    return Operator(name, network, conv(i, o, k, stride, 1, dilation), (1, i, side, side))


def _transposed(network: str, i: int, o: int, side: int, k: int, stride: int, pad: int, extra: int = 0) -> Operator:
    name = f"transposed {k}x{k} {i}-{o} {side} s{stride}"
    return Operator(name, network, lambda: nn.ConvTranspose2d(i, o, k, stride, pad, extra), (1, i, side, side))


def _audio(
    network: str, i: int, o: int, length: int, k: int, stride: int = 1, groups: int = 1, dilation: int = 1
) -> Operator:
    name = f"conv1d {k} {i}-{o} {length}" + f" s{stride}" * (stride > 1) + f" g{groups}" * (groups > 1)
    return Operator(
        name + f" d{dilation}" * (dilation > 1), network, conv1d(i, o, k, stride, groups, dilation), (1, i, length)
    )


def _map(name: str, network: str, make: Callable[[], nn.Module], channels: int, side: int) -> Operator:
    return Operator(f"{name} {channels}x{side}", network, make, (1, channels, side, side))


def _tokens(name: str, network: str, make: Callable[[], nn.Module], *shape: int) -> Operator:
    return Operator(f"{name} {'x'.join(map(str, shape[1:]))}", network, make, shape, channels_first=False)


class Scores(nn.Module):
    """Products of each row with each row, head by head, as self-attention makes them."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, heads, rows, channels) -> (N, heads, rows, rows)."""
        return x @ x.transpose(-1, -2)


class Product(nn.Module):
    """Products of matrices with themselves."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, rows, rows) -> the same."""
        return torch.bmm(x, x)


OPERATORS: tuple[Operator, ...] = (
    # depthwise convolutions
    _depthwise("MobileNet", 32, 112, 3),
    _depthwise("MobileNet", 64, 112, 3, 2),
    _depthwise("MobileNet", 144, 56, 3),
    _depthwise("MobileNet", 144, 56, 3, 2),
    _depthwise("MobileNet", 192, 28, 3),
    _depthwise("MobileNet", 512, 14, 3),
    _depthwise("MobileNet", 960, 7, 3),
    _depthwise("EfficientNet", 240, 28, 5),
    _depthwise("EfficientNet", 144, 56, 5, 2),
    _depthwise("EfficientNet", 672, 14, 5),
    _depthwise("EfficientNet", 1152, 7, 5),
    _depthwise("ConvNeXt", 96, 56, 7),
    _depthwise("ConvNeXt", 192, 28, 7),
    _depthwise("ConvNeXt", 768, 7, 7),
    _depthwise("DeepLab", 256, 33, 3, 1, 6),
    _depthwise("DeepLab", 256, 65, 3, 1, 2),
    _depthwise("ShuffleNet", 58, 28, 3),
    Operator("depthwise 3x3 + SiLU 96x56", "EfficientNet", behind(conv(96, 96, 3, 1, 96), nn.SiLU), (1, 96, 56, 56)),
    # grouped convolutions
    _grouped("ResNeXt-50 32x4d", 128, 56, 32),
    _grouped("ResNeXt-50 32x4d", 256, 28, 32),
    _grouped("ResNeXt-50 32x4d", 256, 56, 32, 2),
    _grouped("ResNeXt-50 32x4d", 512, 14, 32),
    _grouped("ResNeXt-50 32x4d", 1024, 7, 32),
    _grouped("ResNeXt-101 32x8d", 256, 56, 32),
    _grouped("ResNeXt-101 32x8d", 512, 28, 32),
    _grouped("RegNet", 224, 28, 14),
    _grouped("RegNet", 448, 14, 7),
    Operator("grouped 1x1 240x28 g3", "ShuffleNet", conv(240, 240, 1, 1, 3), (1, 240, 28, 28)),
    # 1x1 convolutions
    _pointwise("ResNet", 256, 64, 56),
    _pointwise("ResNet", 64, 256, 56),
    _pointwise("ResNet", 1024, 256, 14),
    _pointwise("odd", 64, 256, 57),
    _pointwise("odd", 256, 64, 57),
    _pointwise("odd", 128, 512, 29),
    _pointwise("odd", 256, 256, 50),
    _pointwise("odd", 256, 1024, 25),
    _pointwise("DeepLab", 304, 256, 65),
    _pointwise("MobileNet", 24, 144, 56),
    _pointwise("MobileNet", 16, 96, 112),
    _pointwise("EfficientNet", 40, 240, 28),
    _pointwise("YOLO", 256, 255, 26),
    _pointwise("YOLO", 128, 64, 40),
    _pointwise("SegFormer", 256, 19, 128),
    # dense convolutions
    _dense("ResNet", 3, 64, 224, 7, 2),
    _dense("ResNet", 64, 64, 56),
    _dense("ResNet", 128, 128, 28),
    _dense("ResNet", 128, 128, 56, 3, 2),
    _dense("ResNet", 512, 512, 7),
    _dense("odd", 64, 64, 57),
    _dense("YOLO", 32, 64, 160, 3, 2),
    _dense("U-Net", 64, 64, 128),
    _dense("DeepLab", 256, 256, 33, 3, 1, 6),
    _dense("MobileNet", 3, 32, 224, 3, 2),
    _dense("GAN", 64, 3, 64, 7),
    _dense("ViT", 3, 384, 224, 16, 16),
    _dense("SRGAN", 64, 64, 48),
    Operator("conv 3x3 + SiLU 64-64 80", "YOLO", behind(conv(64, 64, 3), nn.SiLU), (1, 64, 80, 80)),
    # transposed convolutions
    _transposed("GAN", 128, 64, 16, 4, 2, 1),
    _transposed("GAN", 256, 128, 8, 4, 2, 1),
    _transposed("GAN", 64, 3, 32, 4, 2, 1),
    _transposed("GAN", 100, 512, 1, 4, 1, 0),
    _transposed("CycleGAN", 128, 64, 64, 3, 2, 1, 1),
    _transposed("pose", 256, 256, 16, 4, 2, 1),
    _transposed("U-Net", 128, 64, 32, 2, 2, 0),
    _transposed("FCN", 21, 21, 28, 16, 8, 4),
    # 1-D convolutions
    _audio("wav2vec", 512, 512, 1000, 3, 2),
    _audio("wav2vec", 1, 512, 4000, 10, 5),
    _audio("WaveNet", 64, 128, 4000, 3, 1, 1, 4),
    _audio("Whisper", 80, 384, 3000, 3),
    _audio("Conformer", 256, 256, 500, 31, 1, 256),
    _audio("HiFi-GAN", 32, 32, 8192, 7),
    _audio("spectra", 16, 32, 1021, 5),
    _audio("Conv-TasNet", 512, 128, 1000, 1),
    Operator(
        "transposed 1d 16 128-64 256 s8", "HiFi-GAN", lambda: nn.ConvTranspose1d(128, 64, 16, 8, 4), (1, 128, 256)
    ),
    # pooling
    _map("max pool 3x3 s2", "ResNet", lambda: nn.MaxPool2d(3, 2, 1), 64, 112),
    _map("max pool 2x2", "U-Net", lambda: nn.MaxPool2d(2), 64, 128),
    _map("max pool 5x5 s1", "YOLO", lambda: nn.MaxPool2d(5, 1, 2), 256, 20),
    _map("max pool 1x1", "odd", lambda: nn.MaxPool2d(1), 64, 56),
    _map("mean pool 2x2", "DenseNet", lambda: nn.AvgPool2d(2), 128, 56),
    _map("mean pool 3x3 s1", "Inception", lambda: nn.AvgPool2d(3, 1, 1), 288, 35),
    _map("global mean", "ResNet", lambda: nn.AdaptiveAvgPool2d(1), 2048, 7),
    _map("global mean", "EfficientNet", lambda: nn.AdaptiveAvgPool2d(1), 96, 112),
    _map("adaptive mean 7", "VGG", lambda: nn.AdaptiveAvgPool2d(7), 512, 10),
    _map("adaptive mean 6", "PSPNet", lambda: nn.AdaptiveAvgPool2d(6), 512, 60),
    _map("adaptive mean 3", "UPerNet", lambda: nn.AdaptiveAvgPool2d(3), 512, 32),
    _map("adaptive mean same", "VGG", lambda: nn.AdaptiveAvgPool2d(14), 256, 14),
    _map("adaptive max 5", "odd", lambda: nn.AdaptiveMaxPool2d(5), 128, 28),
    # norms
    _tokens("layer norm", "ViT", lambda: nn.LayerNorm(768), 1, 197, 768),
    _tokens("layer norm", "ViT", lambda: nn.LayerNorm(192), 1, 197, 192),
    _tokens("layer norm", "Swin", lambda: nn.LayerNorm(96), 1, 3136, 96),
    _map("group norm 32", "diffusion", lambda: nn.GroupNorm(32, 320), 320, 32),
    _map("group norm 8", "U-Net", lambda: nn.GroupNorm(8, 64), 64, 64),
    _map("group norm 1", "PoolFormer", lambda: nn.GroupNorm(1, 96), 96, 56),
    _map("instance norm", "style", lambda: nn.InstanceNorm2d(64, affine=True), 64, 128),
    _map("instance norm", "CycleGAN", lambda: nn.InstanceNorm2d(256), 256, 64),
    # interpolation
    _map("nearest 2x", "FPN", upsample(scale_factor=2, mode="nearest"), 256, 32),
    _map("nearest 2x", "YOLO", upsample(scale_factor=2, mode="nearest"), 128, 40),
    _map("bilinear 2x", "U-Net", upsample(scale_factor=2, mode="bilinear", align_corners=True), 64, 64),
    _map("bilinear 4x", "segmentation", upsample(scale_factor=4, mode="bilinear"), 19, 128),
    _map("bilinear 65", "DeepLab", upsample(size=(65, 65), mode="bilinear"), 256, 17),
    _map("bicubic 2x", "SRGAN", upsample(scale_factor=2, mode="bicubic"), 3, 96),
    _map("bicubic 2x", "super-resolution", upsample(scale_factor=2, mode="bicubic"), 64, 48),
    # activations alone
    _map("SiLU", "YOLO", nn.SiLU, 128, 80),
    _map("SiLU", "EfficientNet", nn.SiLU, 96, 28),
    _map("GELU", "ConvNeXt", nn.GELU, 384, 56),
    _tokens("GELU", "ViT", nn.GELU, 1, 197, 3072),
    _map("Mish", "YOLOv4", nn.Mish, 64, 104),
    _map("softplus", "depth", nn.Softplus, 32, 64),
    _map("ELU", "ENet", nn.ELU, 64, 64),
    _map("tanh", "GAN", nn.Tanh, 3, 256),
    _map("sigmoid", "segmentation", nn.Sigmoid, 19, 128),
    _map("hardswish", "MobileNet", nn.Hardswish, 240, 28),
    _map("ReLU", "ResNet", nn.ReLU, 256, 56),
    _map("PReLU", "SRGAN", lambda: nn.PReLU(64), 64, 48),
    _tokens("softmax", "ViT", lambda: nn.Softmax(-1), 1, 3, 197, 197),
    _map("log softmax channels", "segmentation", lambda: nn.LogSoftmax(1), 19, 128),
    _map("softmax channels", "segmentation", lambda: nn.Softmax(1), 21, 65),
    _tokens("log softmax", "GPT", lambda: nn.LogSoftmax(-1), 16, 30522),
    # products of what is computed
    _tokens("scores", "ViT", Scores, 1, 12, 197, 64),
    _tokens("bmm", "attention", Product, 8, 128, 128),
    # others
    _map("pixel shuffle 2", "SRGAN", lambda: nn.PixelShuffle(2), 256, 48),
    _map("channel shuffle", "ShuffleNet", lambda: nn.ChannelShuffle(2), 116, 28),
    _map("batch norm", "DenseNet", lambda: nn.BatchNorm2d(256), 256, 28),
    _map("squeeze and excite", "EfficientNet", lambda: SqueezeExcite(240, 10), 240, 28),
    _map("reflection pad 3", "CycleGAN", lambda: nn.ReflectionPad2d(3), 64, 128),
    _tokens("linear", "ViT", lambda: nn.Linear(768, 3072), 1, 197, 768),
    _tokens("linear", "ViT", lambda: nn.Linear(192, 576), 1, 197, 192),
    _tokens("linear", "ResNet", lambda: nn.Linear(2048, 1000), 1, 2048),
)
