# SPDX-License-Identifier: Apache-2.0
"""Which convolutions of a network are worth quantizing, and which tensors become bytes for them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import tvm
from tvm import relax
from tvm.ir import GenericConst

from ..relax.operators.involution import OP_NAME

CONV = "relax.nn.conv2d"
MAX_POOL = "relax.nn.max_pool2d"
# input channels from which products of four bytes pay: the first convolution sees three
_FEWEST_INPUTS = 16
# what keeps a tensor's place: its epilogue joins the convolution before it
_ELEMENTWISE = frozenset(f"relax.{name}" for name in ("add", "multiply", "subtract", "nn.relu", "clip"))


@dataclass(frozen=True)
class Layer:
    """A convolution with a constant weight, without groups, in NCHW."""

    number: int
    """among the network's convolutions"""
    var: relax.Var
    """what it is bound to"""
    call: relax.Call
    source: relax.Var
    """the tensor that becomes bytes: its input, or what that is the maximum pooling of"""

    @property
    def weight(self) -> np.ndarray:
        """The weight (O, I, KH, KW) in float32."""
        return self.call.args[1].value.numpy()

    @property
    def text(self) -> str:
        """The layer in a few words: `1x1 64 -> 256, 56x56`."""
        out, inputs, height, width = self.weight.shape
        return f"{height}x{width} {inputs} -> {out}, {'x'.join(str(int(d)) for d in self.call.ty.shape.values[2:])}"


@dataclass
class Layers:
    """What `find_layers` found in a function."""

    layers: list[Layer] = field(default_factory=list)
    others: list[relax.Var] = field(default_factory=list)
    """tensors that no convolution reads and that are better bytes, too: pixels of involutions, shortcuts"""
    bound: dict[relax.Var, relax.Expr] = field(default_factory=dict)

    def source(self, value: relax.Var) -> relax.Var:
        """Return the tensor that becomes bytes where `value` should: maxima of bytes are bytes."""
        call = self.bound.get(value)
        while _name(call) == MAX_POOL and isinstance(call.args[0], relax.Var):
            value, call = call.args[0], self.bound.get(call.args[0])
        return value


def find_layers(func: relax.Function) -> Layers:
    """Return the convolutions of a function in one dataflow block; none where it has several."""
    found = Layers()
    if len(func.body.blocks) != 1:
        return found
    bindings = func.body.blocks[0].bindings
    found.bound = {binding.var: binding.value for binding in bindings}
    number = 0
    for binding in bindings:
        if _name(binding.value) != CONV:
            continue
        if _is_dense(binding.value):
            found.layers.append(Layer(number, binding.var, binding.value, found.source(binding.value.args[0])))
        number += 1
    layer_vars = {layer.var for layer in found.layers}
    found.others = list(dict.fromkeys(_others(bindings, layer_vars, found)))
    return found


def _others(bindings, layer_vars: set[relax.Var], found: Layers) -> Iterator[relax.Var]:
    order = {binding.var: place for place, binding in enumerate(bindings)}
    for binding in bindings:
        name = _name(binding.value)
        if name == OP_NAME:
            pixels, kernel = binding.value.args
            if isinstance(pixels, relax.Var) and _root(kernel, found) in layer_vars:
                yield found.source(pixels)
        elif name == "relax.add" and all(isinstance(arg, relax.Var) for arg in binding.value.args):
            # two convolutions meet: the later is written to memory, the sum joins the earlier
            roots = [_root(arg, found) for arg in binding.value.args]
            if roots[0] != roots[1] and all(root in layer_vars for root in roots):
                yield binding.value.args[max((0, 1), key=lambda side: order[roots[side]])]


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


def _is_dense(call: relax.Call) -> bool:
    x, weight = call.args
    attrs = call.attrs
    return (
        isinstance(x, relax.Var)
        and isinstance(weight, GenericConst)
        and str(call.ty.dtype) == str(weight.ty.dtype) == "float32"
        and (attrs.data_layout, attrs.kernel_layout, attrs.out_layout) == ("NCHW", "OIHW", "NCHW")
        and int(attrs.groups) == 1
        and int(weight.ty.shape.values[1]) >= _FEWEST_INPUTS
        and all(isinstance(d, tvm.tirx.IntImm) for d in call.ty.shape.values)
    )


def _name(value: relax.Expr | None) -> str:
    return str(value.op.name) if isinstance(value, relax.Call) and isinstance(value.op, tvm.ir.Op) else ""
