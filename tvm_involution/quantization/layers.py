# SPDX-License-Identifier: Apache-2.0
"""Which layers of a network are worth quantizing, and which tensors become bytes for them."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
import tvm
from tvm import relax
from tvm.ir import GenericConst

from ..relax.operators.involution import OP_NAME

CONV, LINEAR = "relax.nn.conv2d", "relax.matmul"
MAX_POOL = "relax.nn.max_pool2d"
# input channels from which products of four bytes pay; the first convolution sees three
_FEWEST_INPUTS = 8
# what keeps a tensor's place: its epilogue joins the layer before it
_ELEMENTWISE = frozenset(f"relax.{name}" for name in ("add", "multiply", "subtract", "nn.relu", "clip"))


@dataclass(frozen=True)
class Layer:
    """A convolution in NCHW without groups, or a linear layer; with a constant weight."""

    number: int
    """among the network's convolutions and products"""
    var: relax.Var
    """what it is bound to"""
    call: relax.Call
    source: relax.Var
    """the tensor that becomes bytes: its input, or what that is the maximum pooling of"""

    @property
    def is_convolution(self) -> bool:
        """Whether it is no linear layer."""
        return _name(self.call) == CONV

    @property
    def weight(self) -> np.ndarray:
        """The weight (O, I, KH, KW), of a linear layer (O, I), in float32."""
        weight = self.call.args[1].value.numpy()
        return weight if self.is_convolution else weight.T

    @property
    def text(self) -> str:
        """The layer in a few words: `1x1 64 -> 256, 56x56`."""
        out, inputs, *window = self.weight.shape
        kind = "x".join(map(str, window)) or "linear"
        pixels = "x".join(str(int(d)) for d in self.call.ty.shape.values[2:])
        return f"{kind} {inputs} -> {out}" + (f", {pixels}" if pixels else "")

    def evaluate(self, x: np.ndarray, weight: np.ndarray) -> np.ndarray:
        """Return what the layer makes of `x` by another weight, in float32."""
        kernel, values = torch.from_numpy(np.ascontiguousarray(weight, np.float32)), torch.from_numpy(x)
        if not self.is_convolution:
            return (values @ kernel.T).numpy()
        attrs = self.call.attrs
        top, left, bottom, right = (int(p) for p in attrs.padding)
        padded = torch.nn.functional.pad(values, (left, right, top, bottom))
        stride, dilation = ([int(v) for v in each] for each in (attrs.strides, attrs.dilation))
        return torch.nn.functional.conv2d(padded, kernel, None, stride, 0, dilation).numpy()


@dataclass
class Layers:
    """What `find_layers` found in a function."""

    layers: list[Layer] = field(default_factory=list)
    pixels: list[relax.Var] = field(default_factory=list)
    """what involutions aggregate, whose kernels a quantized layer makes"""
    bound: dict[relax.Var, relax.Expr] = field(default_factory=dict)

    def source(self, value: relax.Var) -> relax.Var:
        """Return the tensor that becomes bytes where `value` should: maxima of bytes are bytes."""
        call = self.bound.get(value)
        while isinstance(call, relax.Call) and _name(call) == MAX_POOL and isinstance(call.args[0], relax.Var):
            value, call = call.args[0], self.bound.get(call.args[0])
        return value

    @property
    def tensors(self) -> list[relax.Var]:
        """What becomes bytes, in an order that is the same for the same network."""
        return list(dict.fromkeys([*(layer.source for layer in self.layers), *self.pixels]))


def find_layers(func: relax.Function) -> Layers:
    """Return the layers of a function in one dataflow block; none where it has several."""
    found = Layers()
    if len(func.body.blocks) != 1:
        return found
    bindings = func.body.blocks[0].bindings
    found.bound = {binding.var: binding.value for binding in bindings}
    products = [binding for binding in bindings if _name(binding.value) in (CONV, LINEAR)]
    for number, binding in enumerate(products):
        if _can_be_quantized(binding.value):
            found.layers.append(Layer(number, binding.var, binding.value, found.source(binding.value.args[0])))
    made = {layer.var for layer in found.layers}
    for binding in bindings:
        if _name(binding.value) == OP_NAME:
            pixels, kernel = binding.value.args
            if isinstance(pixels, relax.Var) and _root(kernel, found) in made:
                found.pixels.append(found.source(pixels))
    return found


def _root(value: relax.Expr, found: Layers) -> relax.Var | None:
    """Return the convolution whose epilogue computes `value` with numbers alone."""
    while isinstance(value, relax.Var) and value in found.bound:
        call = found.bound[value]
        if _name(call) == CONV:
            return value
        variables = [arg for arg in getattr(call, "args", ()) if isinstance(arg, relax.Var)]
        if _name(call) not in _ELEMENTWISE or len(variables) != 1:
            return None
        value = variables[0]
    return None


def _can_be_quantized(call: relax.Call) -> bool:
    x, weight = call.args
    if not isinstance(x, relax.Var) or not isinstance(weight, GenericConst):
        return False
    if any(str(ty.dtype) != "float32" for ty in (call.ty, x.ty, weight.ty)):
        return False
    if not all(isinstance(d, tvm.tirx.IntImm) for d in call.ty.shape.values):
        return False
    shape = [int(d) for d in weight.ty.shape.values]
    if _name(call) == LINEAR:
        return x.ty.ndim == len(shape) == 2 and shape[0] >= _FEWEST_INPUTS
    attrs = call.attrs
    nchw = (attrs.data_layout, attrs.kernel_layout, attrs.out_layout) == ("NCHW", "OIHW", "NCHW")
    return nchw and int(attrs.groups) == 1 and shape[1] >= _FEWEST_INPUTS


def _name(value: relax.Expr | None) -> str:
    return str(value.op.name) if isinstance(value, relax.Call) and isinstance(value.op, tvm.ir.Op) else ""
