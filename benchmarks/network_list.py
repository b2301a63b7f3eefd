# SPDX-License-Identifier: Apache-2.0
"""Whole networks as users write them, with involutions in forms of their own: `python benchmarks/networks_of_users.py`.

Each function returns a module and example inputs; `width` is the number of channels that most of its layers have.
Without arguments they have sizes that people use; in this folder, `tvm-involution bench network_list:unet` takes them.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Network = tuple[nn.Module, Tensor]


class UnfoldInvolution(nn.Module):
    """Involution by `nn.Unfold`, as the paper's algorithm 1 has it: kernel from a bottleneck, windows, product, sum."""

    def __init__(self, channels: int, kernel_size: int, groups: int, act: Callable[[], nn.Module] = nn.ReLU) -> None:
        super().__init__()
        self.kernel_size, self.groups = kernel_size, groups
        self.reduce = nn.Sequential(nn.Conv2d(channels, channels // 4, 1), nn.BatchNorm2d(channels // 4), act())
        self.span = nn.Conv2d(channels // 4, kernel_size**2 * groups, 1)
        self.unfold = nn.Unfold(kernel_size, padding=kernel_size // 2)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> the same."""
        n, c, h, w = x.shape
        kernel = self.span(self.reduce(x)).view(n, self.groups, self.kernel_size**2, h, w).unsqueeze(2)
        windows = self.unfold(x).view(n, self.groups, c // self.groups, self.kernel_size**2, h, w)
        return (kernel * windows).sum(dim=3).view(n, c, h, w)


class WindowedInvolution(nn.Module):
    """Involution along one or three axes by `Tensor.unfold` of a padded tensor and `einsum`."""

    def __init__(self, axes: int, channels: int, kernel_size: int, groups: int) -> None:
        super().__init__()
        convolution = {1: nn.Conv1d, 3: nn.Conv3d}[axes]
        self.axes, self.kernel_size, self.groups = axes, kernel_size, groups
        self.reduce, self.span = (
            convolution(channels, channels // 4, 1),
            convolution(channels // 4, kernel_size**axes * groups, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, *size) -> the same."""
        kernel = self.span(F.relu(self.reduce(x))).unflatten(1, (self.groups, self.kernel_size**self.axes))
        windows = F.pad(x, [self.kernel_size // 2] * 2 * self.axes)
        for axis in range(2, 2 + self.axes):
            windows = windows.unfold(axis, self.kernel_size, 1)
        windows = windows.flatten(2 + self.axes).unflatten(1, (self.groups, -1))
        letters = "dhw"[: self.axes]
        return torch.einsum(f"ngc{letters}k,ngk{letters}->ngc{letters}", windows, kernel).flatten(1, 2)


class PreActivation(nn.Module):
    """Norm and ReLU before an involution and before a pointwise convolution, around an identity."""

    def __init__(self, width: int, groups: int) -> None:
        super().__init__()
        self.branch = nn.Sequential(
            nn.BatchNorm2d(width),
            nn.ReLU(),
            UnfoldInvolution(width, 5, groups),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Conv2d(width, width, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> the same."""
        return x + self.branch(x)


def hyperspectral(width: int = 96, bands: int = 200, patches: int = 64, side: int = 11, depth: int = 3) -> Network:
    """Patches of a hyperspectral cube to 16 classes: pre-activation blocks of involutions with 24 groups."""
    blocks = (PreActivation(width, 24) for _ in range(depth))
    head = (nn.BatchNorm2d(width), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 16))
    return nn.Sequential(nn.Conv2d(bands, width, 1), *blocks, *head).eval(), torch.randn(patches, bands, side, side)


def _stage(before: int, width: int) -> nn.Sequential:
    """Pointwise and depthwise convolution, involution, pointwise convolution behind, each with SiLU."""
    return nn.Sequential(
        nn.Conv2d(before, width, 1),
        nn.SiLU(),
        nn.Conv2d(width, width, 3, padding=1, groups=width, bias=False),
        nn.BatchNorm2d(width),
        nn.SiLU(),
        UnfoldInvolution(width, 3, width // 8, nn.SiLU),
        nn.Conv2d(width, width, 1),
        nn.BatchNorm2d(width),
        nn.SiLU(),
    )


class UNet(nn.Module):
    """Stages on the way down, transposed convolutions and concatenation on the way up."""

    def __init__(self, width: int, depth: int, classes: int) -> None:
        super().__init__()
        widths = [width * 2**level for level in range(depth)]
        self.down = nn.ModuleList(_stage(before, after) for before, after in zip([3, *widths], widths, strict=False))
        self.grow = nn.ModuleList(nn.ConvTranspose2d(2 * w, w, 2, 2) for w in widths[:-1])
        self.up = nn.ModuleList(_stage(2 * w, w) for w in widths[:-1])
        self.head = nn.Conv2d(width, classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, H, W) -> (N, classes, H, W)."""
        kept = []
        for level, stage in enumerate(self.down):
            x = stage(F.max_pool2d(x, 2) if level else x)
            kept.append(x)
        for level in reversed(range(len(self.up))):
            x = self.up[level](torch.cat([self.grow[level](x), kept[level]], 1))
        return self.head(x)


def unet(width: int = 32, depth: int = 4, side: int = 128) -> Network:
    """A U-Net of involutions with pointwise convolutions behind, SiLU, depthwise and transposed convolutions."""
    return UNet(width, depth, 4).eval(), torch.randn(1, 3, side, side)


def generator(width: int = 64, steps: int = 4, noise: int = 100) -> Network:
    """A GAN's generator: noise to a picture of 64x64, by transposed convolutions and an involution half-way."""
    layers: list[nn.Module] = [nn.ConvTranspose2d(noise, width * 2 ** (steps - 1), 4, 1, 0, bias=False)]
    for step in reversed(range(steps)):
        here = width * 2**step
        layers += [nn.BatchNorm2d(here), nn.ReLU(True)]
        layers += [UnfoldInvolution(here, 3, here // 16)] if step == 1 else []
        layers += [nn.ConvTranspose2d(here, here // 2 if step else 3, 4, 2, 1, bias=False)]
    return nn.Sequential(*layers, nn.Tanh()).eval(), torch.randn(1, noise, 1, 1)


class ConvolutionSiLU(nn.Sequential):
    """Convolution, batch norm, SiLU."""

    def __init__(self, before: int, after: int, kernel_size: int = 1, stride: int = 1) -> None:
        super().__init__(
            nn.Conv2d(before, after, kernel_size, stride, kernel_size // 2, bias=False),
            nn.BatchNorm2d(after),
            nn.SiLU(),
        )


class Split(nn.Module):
    """Half of the channels through residual blocks, each block's result kept and joined."""

    def __init__(self, before: int, after: int, blocks: int) -> None:
        super().__init__()
        half = after // 2
        self.before, self.after = ConvolutionSiLU(before, after), ConvolutionSiLU((2 + blocks) * half, after)
        self.blocks = nn.ModuleList(
            nn.Sequential(ConvolutionSiLU(half, half, 3), UnfoldInvolution(half, 3, max(1, half // 16), nn.SiLU))
            for _ in range(blocks)
        )

    def forward(self, x: Tensor) -> Tensor:
        """(N, before, H, W) -> (N, after, H, W)."""
        parts = list(self.before(x).chunk(2, 1))
        for block in self.blocks:
            parts.append(parts[-1] + block(parts[-1]))
        return self.after(torch.cat(parts, 1))


class Detector(nn.Module):
    """A backbone of strides 8 to 32, pooling pyramid, the way up and three heads."""

    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        w = width
        self.stem = nn.Sequential(ConvolutionSiLU(3, w, 3, 2), ConvolutionSiLU(w, 2 * w, 3, 2), Split(2 * w, 2 * w, 1))
        self.eighth = nn.Sequential(ConvolutionSiLU(2 * w, 4 * w, 3, 2), Split(4 * w, 4 * w, 1))
        self.sixteenth = nn.Sequential(ConvolutionSiLU(4 * w, 8 * w, 3, 2), Split(8 * w, 8 * w, 1))
        self.last = nn.Sequential(ConvolutionSiLU(8 * w, 16 * w, 3, 2), Split(16 * w, 16 * w, 1))
        self.squeeze, self.spread = ConvolutionSiLU(16 * w, 8 * w), ConvolutionSiLU(32 * w, 16 * w)
        self.up = nn.ModuleList([Split(24 * w, 8 * w, 1), Split(12 * w, 4 * w, 1)])
        self.heads = nn.ModuleList(nn.Conv2d(c * w, 5 + classes, 1) for c in (4, 8, 16))

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, H, W) -> (N, cells of all strides, 5 + classes)."""
        eighth = self.eighth(self.stem(x))
        sixteenth = self.sixteenth(eighth)
        pools = [self.squeeze(self.last(sixteenth))]
        for _ in range(3):
            pools.append(F.max_pool2d(pools[-1], 5, 1, 2))
        maps = [self.spread(torch.cat(pools, 1))]
        for join, kept in zip(self.up, (sixteenth, eighth), strict=True):
            maps.append(join(torch.cat([F.interpolate(maps[-1], scale_factor=2.0), kept], 1)))
        found = [head(part).flatten(2) for head, part in zip(self.heads, reversed(maps), strict=True)]
        return torch.cat(found, 2).transpose(1, 2).sigmoid()


def detector(width: int = 16, side: int = 256) -> Network:
    """A YOLO-like detector with SiLU: split blocks, pooling pyramid, nearest upsampling, three heads."""
    return Detector(width, 80).eval(), torch.randn(1, 3, side, side)


class WindowedBlock(nn.Module):
    """1x1 convolution, involution and 1x1 convolution around an identity."""

    def __init__(self, axes: int, width: int, kernel_size: int) -> None:
        super().__init__()
        convolution, norm = {1: (nn.Conv1d, nn.BatchNorm1d), 3: (nn.Conv3d, nn.BatchNorm3d)}[axes]
        half = width // 2
        self.branch = nn.Sequential(
            convolution(width, half, 1, bias=False),
            norm(half),
            nn.ReLU(),
            WindowedInvolution(axes, half, kernel_size, max(1, half // 16)),
            norm(half),
            nn.ReLU(),
            convolution(half, width, 1, bias=False),
            norm(width),
        )

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, *size) -> the same."""
        return F.relu(x + self.branch(x))


def volumes(width: int = 64, size: tuple[int, int, int] = (16, 64, 64), depth: int = 3) -> Network:
    """A classifier of volumes, with involutions of 3x3x3."""
    layers = (nn.Conv3d(1, width, 3, 2, 1, bias=False), nn.BatchNorm3d(width), nn.ReLU())
    blocks = (WindowedBlock(3, width, 3) for _ in range(depth))
    pools = nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(width, 10)
    return nn.Sequential(*layers, *blocks, *pools).eval(), torch.randn(1, 1, *size)


def signals(width: int = 64, samples: int = 16_000, depth: int = 3) -> Network:
    """A classifier of sound, with involutions of 7."""
    layers = (nn.Conv1d(1, width, 9, 4, 4, bias=False), nn.BatchNorm1d(width), nn.ReLU())
    blocks = (WindowedBlock(1, width, 7) for _ in range(depth))
    pools = nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(width, 10)
    return nn.Sequential(*layers, *blocks, *pools).eval(), torch.randn(1, 1, samples)


NETWORKS: dict[str, Callable[..., Network]] = {
    build.__name__: build for build in (hyperspectral, unet, generator, detector, volumes, signals)
}
