# SPDX-License-Identifier: Apache-2.0
"""The ways to run a network or an involution that ours is compared with, each with its best settings.

Peers get the official form of involution, with `nn.Unfold` (`tvm_involution.bench.network.unfolded`), or the paper's
own kernel; batch norm is folded into convolutions beforehand, as their users would.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from tvm_involution.bench.network import unfolded
from tvm_involution.nn import Involution2d

from . import paper_kernel
from .involutions import Layer

EAGER, PAPER = "torch NHWC", "torch, paper's kernel"
COMPILED, COMPILED_NHWC = "torch.compile NCHW", "torch.compile NHWC"
PEERS = (EAGER, PAPER, COMPILED, COMPILED_NHWC)


def absent(contender: str, module: nn.Module) -> str | None:
    """Return why a contender cannot run a network here, None where it can."""
    if contender != PAPER:
        return None
    involved = any(isinstance(part, Involution2d) for part in module.modules())
    return paper_kernel.missing() if involved else "no involution in it"


def prepare(contender: str, module: nn.Module, precision: str, example: Tensor) -> Callable[[Tensor], Tensor]:
    """Return a call of a module (float32, on the CPU); compile it where that is the contender's way.

    Args:
        example: of what the call takes, (N, 3, H, W) on the device, in `memory_format(contender)`.
    """
    allow_tf32(precision == "tf32")
    torch.backends.cudnn.benchmark = True
    folded = fold_batch_norms(module)
    form = with_paper_kernel(folded) if contender == PAPER else unfolded(folded)
    ready = form.to(example.device, example.dtype).to(memory_format=memory_format(contender))
    return _compiled(ready, example) if contender in (COMPILED, COMPILED_NHWC) else ready


def memory_format(contender: str) -> torch.memory_format:
    """Return how the contender's arrays lie in memory."""
    return torch.channels_last if contender in (EAGER, COMPILED_NHWC) else torch.contiguous_format


def allow_tf32(wanted: bool) -> None:
    """Let torch multiply float32 on tensor cores, or not."""
    torch.backends.cuda.matmul.allow_tf32 = wanted
    torch.backends.cudnn.allow_tf32 = wanted


def fold_batch_norms(module: nn.Module) -> nn.Module:
    """Fold each batch norm into the convolution right before it, in place."""
    for parent in list(module.modules()):
        children = list(parent.named_children())
        for (name, conv), (norm_name, norm) in itertools.pairwise(children):
            if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                setattr(parent, name, fuse_conv_bn_eval(conv, norm))
                setattr(parent, norm_name, nn.Identity())
    return module


def with_paper_kernel(module: nn.Module) -> nn.Module:
    """Let the involutions of a module run the paper's kernel, in place."""

    def forward(self: Involution2d, x: Tensor) -> Tensor:
        kernel = self.generate_kernel(x).flatten(1, 3).contiguous()
        # of the paper's networks, whose windows are square
        geometry = (values[0] for values in (self.kernel_size, self.stride, self.dilation))
        return paper_kernel.involution(x.contiguous(), kernel, *geometry)

    for part in module.modules():
        if isinstance(part, Involution2d):
            part.forward = forward.__get__(part)  # type: ignore[method-assign]
    return module


def _compiled(module: nn.Module, example: Tensor) -> Callable[[Tensor], Tensor]:
    """Return it compiled: CUDA graphs, and weights frozen, which lays them out once, where torch can do that."""
    import torch._inductor.config

    for freezing in (True, False):
        torch._dynamo.reset()
        torch._inductor.config.freezing = freezing
        compiled = torch.compile(module, mode="reduce-overhead", dynamic=False)
        try:
            compiled(example)
            break
        except Exception as error:
            if not freezing:
                raise
            print(f"not frozen: {type(error).__name__}: {str(error)[:300]}", flush=True)

    def run(x: Tensor) -> Tensor:
        torch.compiler.cudagraph_mark_step_begin()
        return compiled(x)

    return run


def unfold_involution(layer: Layer) -> Callable[[Tensor, Tensor], Tensor]:
    """Return the official naive form of x (N, C, H, W) by a packed kernel (N, G*K*K, OH, OW) -> (N, C, OH, OW)."""
    window, (height, width) = layer.kernel_size, layer.out

    def run(x: Tensor, kernel: Tensor) -> Tensor:
        windows = nn.functional.unfold(x, window, layer.dilation, layer.padding, layer.stride)
        windows = windows.view(len(x), layer.groups, layer.group_channels, window**2, height, width)
        weights = kernel.view(len(x), layer.groups, 1, window**2, height, width)
        return (weights * windows).sum(3).view(len(x), layer.channels, height, width)

    return run


def compiled_unfold_involution(layer: Layer) -> Callable[[Tensor, Tensor], Tensor]:
    """Return the same, compiled by torch for this one size."""
    torch._dynamo.reset()  # it gives up compiling a function after a few sizes
    return torch.compile(unfold_involution(layer), dynamic=False)


def reference_logits(module: nn.Module, x: Any, device: str, images: int = 16) -> Tensor:
    """Return the outputs of a module (float32, on the CPU) in float64, a few images at a time."""
    exact = module.to(device, torch.float64)
    parts = torch.as_tensor(x).double().split(images)
    return torch.cat([exact(part.to(device)).cpu() for part in parts])
