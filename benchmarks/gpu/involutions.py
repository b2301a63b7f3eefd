# SPDX-License-Identifier: Apache-2.0
"""Involution layers by themselves: those of a network, our programs for one, its arrays and what is right for them."""

from __future__ import annotations

from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest import mock

import numpy as np
import torch
import tvm
from torch import Tensor, nn
from tvm import relax, te, tirx

from tvm_involution.frontend.importer import export_module, import_exported_program
from tvm_involution.nn import Involution2d
from tvm_involution.nn.ops import involution2d
from tvm_involution.records.tuning_records import as_workload
from tvm_involution.relax import pipeline
from tvm_involution.relax.passes.apply_schedules import SOURCE_ATTR
from tvm_involution.relax.passes.fuse_kernel_generation import FuseKernelGeneration
from tvm_involution.te import involution2d as involution2d_expression

from .models import find_module
from .programs import arguments_of

# whose windows in float64 lie in memory at a time
_IMAGES = 8


@dataclass(frozen=True)
class Layer:
    """An involution, its kernel spanned from hidden pixels by a 1x1 convolution."""

    channels: int
    height: int
    width: int
    kernel_size: int
    stride: int
    hidden: int
    """channels that the kernel is spanned from"""
    dilation: int = 1
    group_channels: int = 16

    @property
    def padding(self) -> int:
        """Zeros around the image."""
        return self.dilation * (self.kernel_size - 1) // 2

    @property
    def groups(self) -> int:
        """Kernels of a pixel."""
        return self.channels // self.group_channels

    @property
    def taps(self) -> int:
        """Values of all kernels of a pixel."""
        return self.groups * self.kernel_size**2

    @property
    def out(self) -> tuple[int, int]:
        """Rows and columns of the result."""
        return -(-self.height // self.stride), -(-self.width // self.stride)

    def label(self) -> str:
        """Return it in a few letters: `64, 56x56, K 7, stride 1`."""
        dilated = f", dilation {self.dilation}" if self.dilation > 1 else ""
        size = f"{self.channels}, {self.height}x{self.width}"
        return f"{size}, K {self.kernel_size}, stride {self.stride}{dilated}"


def layers_of(model: str, image_size: int) -> dict[Layer, int]:
    """Return the involution layers of a network, in its order, and how often each comes."""
    found: Counter[Layer] = Counter()

    def hook(module: Involution2d, inputs: tuple[Tensor, ...], _: Tensor) -> None:
        channels, height, width = inputs[0].shape[1:]
        hidden = module.conv2.conv.in_channels
        group = module.channels // module.groups
        kernel_size, stride, dilation = (values[0] for values in (module.kernel_size, module.stride, module.dilation))
        found[Layer(channels, height, width, kernel_size, stride, hidden, dilation, group)] += 1

    network = find_module(model, image_size)
    for module in network.modules():
        if isinstance(module, Involution2d):
            module.register_forward_hook(hook)
    with torch.no_grad():
        network(torch.zeros(1, 3, image_size, image_size))
    return dict(found)


@dataclass(frozen=True)
class Case:
    """The arrays of a layer, as torch has them (NCHW)."""

    x: Tensor
    """(N, C, H, W)"""
    hidden: Tensor
    """(N, R, OH, OW)"""
    weight: Tensor
    """(G*K*K, R), of the span"""
    bias: Tensor
    """(G*K*K,)"""
    kernel: Tensor
    """(N, G*K*K, OH, OW), the span's result, rounded"""


def make_case(layer: Layer, batch: int, dtype: str, device: str, seed: int) -> Case:
    """Return fresh random arrays, whose kernels are about one in size; `seed` alone decides the weights."""
    kind = getattr(torch, dtype)
    generator = torch.Generator().manual_seed(seed)
    weight = (torch.randn(layer.taps, layer.hidden, generator=generator) / layer.hidden**0.5).to(device, kind)
    bias = torch.randn(layer.taps, generator=generator).to(device, kind)
    x = torch.randn(batch, layer.channels, layer.height, layer.width, device=device).to(kind)
    hidden = torch.randn(batch, layer.hidden, *layer.out, device=device).to(kind)
    return Case(x, hidden, weight, bias, span(hidden, weight, bias, torch.float32).to(kind))


def span(hidden: Tensor, weight: Tensor, bias: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the kernels (N, G*K*K, OH, OW), computed in `dtype`."""
    return nn.functional.conv2d(hidden.to(dtype), weight.to(dtype)[:, :, None, None], bias.to(dtype))


def reference(layer: Layer, case: Case, fused: bool) -> Tensor:
    """Return the results (N, C, OH, OW), computed in float64, on the CPU, a few images at a time.

    Args:
        fused: of a kernel that is not rounded on its way.
    """
    parts = []
    for x, hidden, given in zip(*(array.split(_IMAGES) for array in (case.x, case.hidden, case.kernel)), strict=True):
        kernel = span(hidden, case.weight, case.bias, torch.float64) if fused else given.double()
        parts.append(aggregate(layer, x.double(), kernel).cpu())
    return torch.cat(parts)


def aggregate(layer: Layer, x: Tensor, kernel: Tensor) -> Tensor:
    """Return the involution of x by a packed kernel, by the operator of `tvm_involution.nn`."""
    windows = kernel.unflatten(1, (layer.groups, layer.kernel_size, layer.kernel_size))
    return involution2d(x, windows, layer.stride, layer.padding, layer.dilation)


@dataclass(frozen=True)
class OurProgram:
    """A tensor program of ours for a layer."""

    mod: tvm.IRModule
    roles: tuple[str, ...]
    """of its arguments, the output last: fields of `Case`, `constant0` and so on, `out`"""
    constants: tuple[np.ndarray, ...]
    """weights as the pipeline has packed them"""
    layout: str = "NHWC"


FUSED, GIVEN, GIVEN_NCHW, SPAN = "ours fused", "ours NHWC", "ours NCHW", "ours span"
OURS = (FUSED, GIVEN, GIVEN_NCHW, SPAN)


def our_program(name: str, layer: Layer, batch: int, target: tvm.target.Target, case: Case) -> OurProgram:
    """Return the program called `name` for arrays like those of `case`, as the pipeline makes it.

    Args:
        case: of any batch; its weights become constants.
    """
    dtype = str(case.x.dtype).removeprefix("torch.")
    if name == GIVEN_NCHW:
        return _given_nchw(layer, batch, dtype)
    module = _SpanAndInvolution(layer, case)
    shapes = [(batch, layer.channels, layer.height, layer.width), (batch, layer.hidden, *layer.out)]
    exported = export_module(module, [torch.zeros(shape) for shape in shapes])
    with _fusing(name == FUSED):
        mod = pipeline.run(import_exported_program(exported), target, dtype=dtype, until="lower operators")
    word = "conv2d" if name == SPAN else "involution2d"
    return _extract(mod, word, layer, batch)


class _SpanAndInvolution(nn.Module):
    """x (N, C, H, W) and hidden pixels (N, R, OH, OW) -> (N, C, OH, OW)."""

    def __init__(self, layer: Layer, case: Case) -> None:
        super().__init__()
        self.layer = layer
        self.span = nn.Conv2d(layer.hidden, layer.taps, 1)
        self.span.weight = nn.Parameter(case.weight.float().cpu()[:, :, None, None])
        self.span.bias = nn.Parameter(case.bias.float().cpu())

    def forward(self, x: Tensor, hidden: Tensor) -> Tensor:
        return aggregate(self.layer, x, self.span(hidden))


@contextmanager
def _fusing(wanted: bool):
    """Have the pipeline fuse the kernel's generation, or not, whatever it expects of it."""

    def forced(target: tvm.target.Target, tf32: bool = False) -> tvm.transform.Pass:
        return FuseKernelGeneration(target, tf32, fuse=wanted)

    with mock.patch.object(pipeline, "FuseKernelGeneration", forced):
        yield


def _given_nchw(layer: Layer, batch: int, dtype: str) -> OurProgram:
    x = te.placeholder((batch, layer.channels, layer.height, layer.width), dtype, "x")
    kernel = te.placeholder((batch, layer.taps, *layer.out), dtype, "kernel")
    out = involution2d_expression(
        x, kernel, layer.stride, layer.padding, layer.dilation, layout="NCHW", kernel_size=layer.kernel_size
    )
    mod = as_workload(te.create_prim_func([x, kernel, out]))
    return OurProgram(mod, ("x", "kernel", "out"), (), "NCHW")


def _extract(mod: tvm.IRModule, word: str, layer: Layer, batch: int) -> OurProgram:
    """Return the program whose name has `word` in it, and what the network calls it with."""
    shapes = {
        (batch, layer.height, layer.width, layer.channels): "x",
        (batch, *layer.out, layer.hidden): "hidden",
        (batch, *layer.out, layer.taps): "kernel",
    }
    calls = [call for call in _calls(mod) if word in call.args[0].name_hint]
    (call,) = calls
    func = mod[call.args[0]]
    assert isinstance(func, tirx.PrimFunc) and SOURCE_ATTR not in (func.attrs or {})
    workload = as_workload(func)
    roles: list[str] = []
    constants: list[np.ndarray] = []
    for argument, shape in zip(call.args[1].fields, arguments_of(workload).shapes, strict=False):
        if isinstance(argument, tvm.ir.GenericConst):
            roles.append(f"constant{len(constants)}")
            constants.append(argument.value.numpy())
        else:
            roles.append(shapes[shape])
    return OurProgram(workload, (*roles, "out"), tuple(constants))


def _calls(mod: tvm.IRModule) -> list[Any]:
    calls = []

    def visit(expr: relax.Expr) -> None:
        if isinstance(expr, relax.Call) and getattr(expr.op, "name", "") == "relax.call_tir":
            calls.append(expr)

    relax.analysis.post_order_visit(mod["main"], visit)
    return calls


def bind(program: OurProgram, case: Case) -> tuple[list[Tensor], Tensor]:
    """Return the program's arguments for a case, and its output, full of NaN, as (N, C, OH, OW)."""
    device = case.x.device
    arguments = []
    for role in program.roles[:-1]:
        if role.startswith("constant"):
            value = torch.from_dlpack(tvm.runtime.tensor(program.constants[int(role[8:])]))
            arguments.append(value.to(device))
        else:
            value = getattr(case, role)
            arguments.append((value.permute(0, 2, 3, 1) if program.layout == "NHWC" else value).contiguous())
    result = torch.full(arguments_of(program.mod).shapes[-1], torch.nan, dtype=case.x.dtype, device=device)
    arguments.append(result)
    return arguments, result.permute(0, 3, 1, 2) if program.layout == "NHWC" else result
