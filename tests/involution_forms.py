# SPDX-License-Identifier: Apache-2.0
"""Involution as it has been written: each form takes x (2, 8, 6, 5) and what the kernel is made of.

A kernel of G = 2 groups and 3x3 taps comes as (2, 18, 6, 5), channels in the order that the form reads.
"""

from __future__ import annotations

import functools
import itertools

import torch
from torch import Tensor
from torch.nn import functional as F

N, C, H, W = 2, 8, 6, 5
G, K, KK = 2, 3, 9
# weights of a depthwise convolution whose output channels are the taps
PICK = {
    dtype: torch.eye(KK, dtype=dtype).view(KK, 1, K, K).repeat(C, 1, 1, 1) for dtype in (torch.float32, torch.float64)
}


def windows(x: Tensor) -> Tensor:
    """(N, C, H, W) -> (N, G, C/G, KK, H, W)."""
    return F.unfold(x, K, padding=1).view(N, G, C // G, KK, H, W)


def grouped(kernel: Tensor) -> Tensor:
    """(N, G*KK, H, W) -> (N, G, 1, KK, H, W)."""
    return kernel.view(N, G, 1, KK, H, W)


def back(out: Tensor) -> Tensor:
    return out.reshape(N, C, H, W)


def shifted(x: Tensor, kernel: Tensor) -> list[Tensor]:
    padded, kernel = F.pad(x, (1, 1, 1, 1)), kernel.view(N, G, KK, 1, H, W)
    return [
        padded[:, :, u : u + H, v : v + W].view(N, G, C // G, H, W) * kernel[:, :, u * K + v]
        for u in range(K)
        for v in range(K)
    ]


def added_to_zeros(x, kernel):
    out = torch.zeros_like(x)
    for product in shifted(x, kernel):
        out += product.reshape(x.shape)
    return out


def by_addcmul(x, kernel):
    padded, out = F.pad(x, (1, 1, 1, 1)), torch.zeros_like(x)
    taps = kernel.view(N, G, KK, H, W).repeat_interleave(C // G, 1)
    for tap in range(KK):
        u, v = divmod(tap, K)
        out = torch.addcmul(out, padded[:, :, u : u + H, v : v + W], taps[:, :, tap])
    return out


def one_hot(x: Tensor) -> Tensor:
    return F.conv2d(x, PICK[x.dtype], padding=1, groups=C).view(N, G, C // G, KK, H, W)


def chained(x: Tensor) -> Tensor:
    """(N, C, H, W) -> (N, C, H, W, K, K)."""
    return F.pad(x, (1, 1, 1, 1)).unfold(2, K, 1).unfold(3, K, 1)


def strided(x: Tensor) -> Tensor:
    """(N, C, H, W) -> (N, C, H - 2, W - 2, K, K), without padding."""
    x = x.contiguous()
    return x.as_strided((N, C, H - 2, W - 2, K, K), (*x.stride(), W, 1))


def by_padding(mode: str):
    def form(x, kernel):
        padded = F.pad(x, (1, 1, 1, 1), mode=mode)
        return back((F.unfold(padded, K).view(N, G, C // G, KK, H, W) * grouped(kernel)).sum(3))

    return form


def cropped(x, kernel):
    kernel = kernel[:, :, 1:-1, 1:-1].reshape(N, G, 1, KK, H - 2, W - 2)
    return (F.unfold(x, K).view(N, G, C // G, KK, H - 2, W - 2) * kernel).sum(3).view(N, C, H - 2, W - 2)


def in_place(x, kernel):
    product = windows(x).clone()
    product.mul_(grouped(kernel))
    return back(product.sum(3))


def channels_last_around(x, kernel):
    x, kernel = x.permute(0, 2, 3, 1).contiguous(), kernel.permute(0, 2, 3, 1).contiguous()
    x, kernel = x.permute(0, 3, 1, 2), kernel.permute(0, 3, 1, 2)
    out = (F.unfold(x, K, padding=1).view(N, G, C // G, KK, H, W) * kernel.reshape(N, G, 1, KK, H, W)).sum(3)
    return back(out).permute(0, 2, 3, 1).contiguous()


def channels_last_inside(x, kernel):
    x, kernel = x.permute(0, 2, 3, 1).contiguous(), kernel.permute(0, 2, 3, 1).reshape(N, H, W, G, 1, KK)
    padded = F.pad(x, (0, 0, 1, 1, 1, 1))
    taken = padded.unfold(1, K, 1).unfold(2, K, 1).reshape(N, H, W, G, C // G, KK)
    return (taken * kernel).sum(-1).reshape(N, H, W, C)


def split(x, kernel):
    """Windows and kernel of one tensor."""
    both = torch.cat([x, kernel], 1).relu()
    x, kernel = both.split([C, G * KK], 1)
    return back((windows(x) * grouped(kernel)).sum(3))


def rolled(x, kernel):
    kernel = kernel.view(N, G, 1, K, K, H, W)
    total = 0
    for u in range(K):
        for v in range(K):
            moved = torch.roll(x, (1 - u, 1 - v), (2, 3)).view(N, G, C // G, H, W)
            total = total + moved * kernel[:, :, :, u, v]
    return back(total)


def rolled_padded(x, kernel):
    x, kernel = F.pad(x, (1, 1, 1, 1)), kernel.view(N, G, 1, K, K, H, W)
    total = 0
    for u in range(K):
        for v in range(K):
            moved = torch.roll(x, (1 - u, 1 - v), (2, 3))[:, :, 1:-1, 1:-1].reshape(N, G, C // G, H, W)
            total = total + moved * kernel[:, :, :, u, v]
    return back(total)


def rolled_twice(x, kernel):
    kernel = kernel.view(N, G, 1, KK, H, W)
    taps = [torch.roll(torch.roll(x, 1 - u, 2), 1 - v, 3).view(N, G, C // G, H, W) for u in range(K) for v in range(K)]
    return back((torch.stack(taps, 3) * kernel).sum(3))


def rolled_and_masked(x, kernel):
    """What comes from the other side of the border times zeros."""
    kernel, total = kernel.view(N, G, 1, K, K, H, W), 0
    for u, v in itertools.product(range(K), range(K)):
        mask = x.new_zeros(1, 1, H, W)
        mask[:, :, max(1 - u, 0) : H + min(1 - u, 0), max(1 - v, 0) : W + min(1 - v, 0)] = 1
        moved = torch.roll(x, (1 - u, 1 - v), (2, 3)) * mask
        total = total + moved.view(N, G, C // G, H, W) * kernel[:, :, :, u, v]
    return back(total)


def by_matmul(x, kernel):
    taken = F.unfold(x, K, padding=1).view(N, G, C // G, KK, H * W).permute(0, 1, 4, 2, 3)
    kernel = kernel.view(N, G, KK, H * W).permute(0, 1, 3, 2).unsqueeze(-1)
    return back((taken @ kernel).squeeze(-1).permute(0, 1, 3, 2))


def by_bmm(x, kernel):
    taken = F.unfold(x, K, padding=1).view(N, G, C // G, KK, H * W).permute(0, 1, 4, 2, 3).reshape(-1, C // G, KK)
    kernel = kernel.view(N, G, KK, H * W).permute(0, 1, 3, 2).reshape(-1, KK, 1)
    return back(torch.bmm(taken, kernel).view(N, G, H * W, C // G).permute(0, 1, 3, 2))


def interleaved(x, kernel):
    """Channel c takes the kernel of group c % G."""
    taken = F.unfold(x, K, padding=1).view(N, C // G, G, KK, H, W)
    return back((taken * kernel.view(N, 1, G, KK, H, W)).sum(3))


def permuted_windows(x, kernel):
    taken = F.unfold(x, K, padding=1).view(N, C, KK, H, W).permute(0, 3, 4, 1, 2).reshape(N, H, W, G, C // G, KK)
    kernel = kernel.view(N, G, KK, H, W).permute(0, 3, 4, 1, 2).unsqueeze(4)
    return (taken * kernel).sum(-1).reshape(N, H, W, C).permute(0, 3, 1, 2)


def two_taps_axes(x, kernel):
    taken = F.unfold(x, K, padding=1).view(N, G, C // G, K, K, H, W)
    return back((taken * kernel.view(N, G, 1, K, K, H, W)).sum((3, 4)))


def flipped(x, kernel):
    return back((windows(x) * grouped(kernel).flip(3)).sum(3))


def repeated_then_activated(x, kernel):
    kernel = torch.sigmoid(kernel.view(N, G, 1, KK, H, W).repeat(1, 1, C // G, 1, 1, 1))
    return back((windows(x) * kernel).sum(3))


def expanded_then_softmax(x, kernel):
    kernel = grouped(kernel).expand(N, G, C // G, KK, H, W).softmax(3)
    return back((windows(x) * kernel).sum(3))


# by what is said of it in docs/importing.md; each equals an involution
FORMS = {
    "official": lambda x, k: back((windows(x) * k.view(N, G, KK, H, W).unsqueeze(2)).sum(dim=3)),
    "kernel by view": lambda x, k: back((windows(x) * grouped(k)).sum(3)),
    "kernel by reshape": lambda x, k: back((windows(x) * k.reshape(N, G, -1, KK, H, W)).sum(3)),
    "kernel by unflatten": lambda x, k: back((k.unflatten(1, (G, KK)).unsqueeze(2) * windows(x)).sum(3)),
    "kernel by None": lambda x, k: back((windows(x) * k.view(N, G, KK, H, W)[:, :, None]).sum(3)),
    "kernel by expand_as": lambda x, k: back((windows(x) * grouped(k).expand_as(windows(x))).sum(3)),
    "kernel by repeat": lambda x, k: back((windows(x) * grouped(k).repeat(1, 1, C // G, 1, 1, 1)).sum(3)),
    "kernel by repeat_interleave": lambda x, k: (
        F.unfold(x, K, padding=1).view(N, C, KK, H, W) * k.view(N, G, KK, H, W).repeat_interleave(C // G, 1)
    ).sum(2),
    "sum(-3)": lambda x, k: back((windows(x) * grouped(k)).sum(-3)),
    "sum with keepdim": lambda x, k: back((windows(x) * grouped(k)).sum(3, keepdim=True).squeeze(3)),
    "sum((3, 4))": two_taps_axes,
    "mean times a number": lambda x, k: back((windows(x) * grouped(k)).mean(3) * KK),
    "mean": lambda x, k: back((windows(x) * grouped(k)).mean(3)),
    "scaled kernel": lambda x, k: back((windows(x) * (grouped(k) / 3)).sum(3)),
    "einsum": lambda x, k: back(torch.einsum("bgckhw,bgkhw->bgchw", windows(x), k.view(N, G, KK, H, W))),
    "einsum, other letters": lambda x, k: torch.einsum(
        "zqtyx,zqrtyx->zqryx", k.view(N, G, KK, H, W), windows(x)
    ).flatten(1, 2),
    "einsum, two axes of taps": lambda x, k: back(
        torch.einsum("bguvhw,bgchwuv->bgchw", k.view(N, G, K, K, H, W), chained(x).reshape(N, G, C // G, H, W, K, K))
    ),
    "matmul": by_matmul,
    "bmm": by_bmm,
    "mul_": in_place,
    "flat spatial axes": lambda x, k: back(
        (F.unfold(x, K, padding=1).view(N, G, C // G, KK, H * W) * k.view(N, G, 1, KK, H * W)).sum(3)
    ),
    "channels last around": channels_last_around,
    "channels last inside": channels_last_inside,
    "windows permuted": permuted_windows,
    "kernel (k, k, G)": lambda x, k: back((windows(x) * k.view(N, KK, G, H, W).transpose(1, 2).unsqueeze(2)).sum(3)),
    "kernel flipped": flipped,
    "groups interleaved": interleaved,
    "F.pad with zeros": by_padding("constant"),
    "F.pad, reflect": by_padding("reflect"),
    "F.pad, replicate": by_padding("replicate"),
    "F.pad, circular": by_padding("circular"),
    "cropped": cropped,
    "Tensor.unfold": lambda x, k: back(
        (chained(x).reshape(N, G, C // G, H, W, KK) * k.view(N, G, KK, H, W).permute(0, 1, 3, 4, 2).unsqueeze(2)).sum(
            -1
        )
    ),
    "as_strided": lambda x, k: torch.einsum(
        "ngchwuv,nguvhw->ngchw",
        strided(x).reshape(N, G, C // G, H - 2, W - 2, K, K),
        k[:, :, 1:-1, 1:-1].reshape(N, G, K, K, H - 2, W - 2),
    ).flatten(1, 2),
    "one-hot convolution": lambda x, k: back((one_hot(x) * grouped(k)).sum(3)),
    "shifted slices added": lambda x, k: back(sum(shifted(x, k))),
    "shifted slices stacked": lambda x, k: back(torch.stack(shifted(x, k)).sum(0)),
    "shifted slices concatenated": lambda x, k: back(torch.cat([p.unsqueeze(3) for p in shifted(x, k)], 3).sum(3)),
    "shifted slices added to zeros": added_to_zeros,
    "shifted slices by addcmul": by_addcmul,
    "rolled and cropped": rolled_padded,
    "rolled around the border": rolled,
    "rolled along one axis after the other": rolled_twice,
    "rolled and masked": rolled_and_masked,
    "windows of a product": lambda x, k: back((windows(x * x.sigmoid()) * grouped(k)).sum(3)),
    "a kernel that is a product": lambda x, k: back((windows(x) * grouped(k * k.sigmoid())).sum(3)),
    "a result that is a factor": lambda x, k: back((windows(x) * grouped(k)).sum(3)) * x.sigmoid(),
    "windows and kernel of one tensor": split,
    "softmax before": lambda x, k: back((windows(x) * k.view(N, G, KK, H, W).softmax(2).unsqueeze(2)).sum(3)),
    "softmax behind": lambda x, k: back((windows(x) * grouped(k).softmax(3)).sum(3)),
    "tanh behind": lambda x, k: back((windows(x) * grouped(k).tanh()).sum(3)),
    "repeated, then sigmoid": repeated_then_activated,
    "expanded, then softmax": expanded_then_softmax,
}


def line(x, kernel):
    """Tensor.unfold along one axis: x (2, 8, 9), kernel (2, 6, 9)."""
    taken = F.pad(x, (1, 1)).unfold(2, K, 1).reshape(N, G, C // G, 9, K)
    return (taken * kernel.view(N, G, 1, K, 9).transpose(3, 4)).sum(-1).view(N, C, 9)


def line_by_unfold(x, kernel):
    taken = F.unfold(x.unsqueeze(2), (1, K), padding=(0, 1)).view(N, G, C // G, K, 9)
    return (taken * kernel.view(N, G, 1, K, 9)).sum(3).view(N, C, 9)


def line_of_slices(x, kernel):
    padded, kernel = F.pad(x, (2, 2)), kernel.view(N, G, K, 1, 9)
    return sum(padded[:, :, 2 * u : 2 * u + 9].view(N, G, -1, 9) * kernel[:, :, u] for u in range(K)).view(N, C, 9)


def volume(x, kernel):
    """Tensor.unfold along three axes: x (2, 8, 4, 5, 3), kernel (2, 54, 4, 5, 3)."""
    taken = F.pad(x, (1,) * 6).unfold(2, K, 1).unfold(3, K, 1).unfold(4, K, 1)
    taken = taken.reshape(N, G, C // G, 4, 5, 3, K**3)
    kernel = kernel.view(N, G, 1, K**3, 4, 5, 3).permute(0, 1, 2, 4, 5, 6, 3)
    return (taken * kernel).sum(-1).view(N, C, 4, 5, 3)


def volume_by_einsum(x, kernel):
    taken = F.pad(x, (1,) * 6).unfold(2, K, 1).unfold(3, K, 1).unfold(4, K, 1).reshape(N, G, C // G, 4, 5, 3, K, K, K)
    return torch.einsum("ngcdhwijk,ngijkdhw->ngcdhw", taken, kernel.view(N, G, K, K, K, 4, 5, 3)).flatten(1, 2)


def slices(x, kernel, join):
    """Of a padded tensor along any axes, one for each tap, times the kernel; `join` sums the list."""
    sizes, axes = x.shape[2:], x.dim() - 2
    padded, kernel = F.pad(x, (1, 1) * axes), kernel.view(N, G, K**axes, 1, *sizes)
    products = []
    for number, tap in enumerate(itertools.product(range(K), repeat=axes)):
        here = padded[(slice(None), slice(None), *(slice(u, u + size) for u, size in zip(tap, sizes, strict=True)))]
        products.append(here.reshape(N, G, C // G, *sizes) * kernel[:, :, number])
    return join(products).reshape(x.shape)


JOINS = {
    "added": sum,
    "stacked": lambda products: torch.stack(products).sum(0),
    "concatenated": lambda products: torch.cat([part.unsqueeze(3) for part in products], 3).sum(3),
}


# along other than two axes: the operator, x's spatial size, the form
OTHER_AXES = {
    "Tensor.unfold along one axis": ("involution1d", (9,), line),
    "slices of one axis": ("involution1d", (9,), line_of_slices),
    "Unfold((1, k))": ("involution2d", (9,), line_by_unfold),
    "triple Tensor.unfold": ("involution3d", (4, 5, 3), volume),
    "triple Tensor.unfold, einsum": ("involution3d", (4, 5, 3), volume_by_einsum),
}
SLICES = {
    f"{len(size)}-D slices {name}": (f"involution{len(size)}d", size, functools.partial(slices, join=join))
    for size in ((9,), (4, 5, 3))
    for name, join in JOINS.items()
}
