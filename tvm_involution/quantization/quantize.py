# SPDX-License-Identifier: Apache-2.0
"""The quantized graph: convolutions and linear layers multiply bytes, tensors that they read are bytes in memory.

    y = conv2d(x, w) + b    becomes    y = conv2d(q(x), q(w)) * scale + b

with sums in int32 and the rest in float32, which joins the convolution as its epilogue, up to the next `q`. Where `x`
has other readers, they read `q(x)`, too. What of `x` is not zero where its byte is, is subtracted from the sums, as
far as it is the same for all pixels: `zero * sum(w)`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import tvm
from tvm import relax

from ..errors import UserError
from ..relax.integer_products import MIDDLE, integer_products
from ..runtime.metadata import QuantizedLayer
from ..schedules.cpu.dot_int8 import wants_pairs, wants_signed
from .layers import MAX_POOL, Layer, Layers, find_layers
from .observe import Observed, observe
from .ranges import LEVELS, Range, candidates, decibels, quantized_weight

LEAST_DECIBELS = 20.0
"""of a layer's signal to the noise of its quantization; with less it stays in float32"""
_CLIPPING_PAYS = 1.0
"""decibels that a range narrower than the whole must gain"""


def quantize(
    mod: tvm.IRModule,
    first: str,
    calibration: Sequence[np.ndarray],
    target: tvm.target.Target,
    least_decibels: float = LEAST_DECIBELS,
    progress: Callable[[str], None] = lambda _: None,
) -> tuple[tvm.IRModule, tuple[QuantizedLayer, ...]]:
    """Quantize the layers of `mod`; returns the module and what became of its layers.

    Args:
        mod: in float32, after the phase "simplify the graph"; its functions are one network for several sizes.
        first: the name of the function that calibration is run through.
        calibration: an array for each input, with any number of pictures of the size that it takes.
        target: the CPU, whose instructions say what bytes and weights may be.
        least_decibels: layers whose signal to noise is less stay in float32.

    Raises:
        UserError: there is no convolution that can be quantized.
    """
    functions = {name.name_hint: func for name, func in mod.functions_items() if isinstance(func, relax.Function)}
    found = {name: find_layers(func) for name, func in functions.items()}
    layers, tensors = found[first].layers, found[first].tensors
    if not layers or len({len(one.layers) for one in found.values()}) > 1:
        raise UserError(
            "the network has no convolution and no linear layer that int8 is for: of 8 or more input channels, with "
            "constant weights and without groups; leave out --dtype int8"
        )
    inputs = [layer.call.args[0] for layer in layers]
    seen = observe(functions[first], list(dict.fromkeys([*tensors, *inputs])), calibration, progress)
    progress("choose ranges")
    weights = {layer.var: quantized_weight(layer.weight, wants_pairs(target)) for layer in layers}
    readers = {var: [layer for layer in layers if layer.source == var] for var in tensors}
    ranges = [_choose(seen[var], readers[var], seen, weights) for var in tensors]
    by_tensor = dict(zip(tensors, ranges, strict=True))
    report = [
        _report(layer, by_tensor[layer.source], seen[layer.call.args[0]], weights[layer.var], least_decibels)
        for layer in layers
    ]
    quantized = tvm.IRModule(dict(mod.functions_items()))
    for name, func in functions.items():
        own = found[name]
        wanted = {layer.var: layer for layer, told in zip(own.layers, report, strict=True) if not told.kept_because}
        used = {layer.source for layer in wanted.values()} | set(own.pixels)
        known = {var: one for var, one in zip(own.tensors, ranges, strict=True) if var in used}
        quantized[name] = _Quantizer(own, wanted, known, target).visit_expr(func)
    return relax.transform.DeadCodeElimination()(quantized), tuple(report)


_Weight = tuple[np.ndarray, np.ndarray]
"""in int8, and the scale of each output channel"""


def _choose(
    observed: Observed, readers: Sequence[Layer], seen: dict[relax.Var, Observed], weights: dict[relax.Var, _Weight]
) -> Range:
    """Return the range with which the layers that read a tensor lose least, or it itself where none does."""
    options = list(dict.fromkeys(candidates(observed.low, observed.high, observed.sample)))

    def quality(option: Range) -> float:
        if not readers:
            return decibels(observed.sample, option.restored(option.quantized(observed.sample)) - observed.sample)
        return float(
            np.mean([_decibels(layer, option, seen[layer.call.args[0]], weights[layer.var]) for layer in readers])
        )

    # what is cut off is rare and large, and decides more than its power says: it must pay
    gains = [quality(option) - _CLIPPING_PAYS * (option is not options[0]) for option in options]
    return options[int(np.argmax(gains))]


def _decibels(layer: Layer, option: Range, observed: Observed, quantized: _Weight) -> float:
    """Return the ratio of signal to noise behind a layer whose input and weight are quantized, on some pictures."""
    x, weight = observed.pictures, layer.weight
    bytes_, scale = quantized
    rounded = bytes_ * scale.reshape(-1, *(1,) * (weight.ndim - 1))
    signal = layer.evaluate(x, weight)
    return decibels(signal, layer.evaluate(option.restored(option.quantized(x)), rounded) - signal)


def _report(layer: Layer, chosen: Range, observed: Observed, quantized: _Weight, least: float) -> QuantizedLayer:
    reached = _decibels(layer, chosen, observed, quantized)
    kept = f"{reached:.1f} dB, less than {least:g}" if reached < least else ""
    return QuantizedLayer(layer.number, layer.text, chosen.method, chosen.scale, chosen.zero, round(reached, 2), kept)


@relax.expr_functor.mutator
class _Quantizer(relax.PyExprMutator):
    """Rewrites one function; `ranges` are of the tensors that become bytes."""

    def __init__(
        self,
        found: Layers,
        layers: dict[relax.Var, Layer],
        ranges: dict[relax.Var, Range],
        target: tvm.target.Target,
    ):
        super().__init__()
        self.in_pairs, self.signed = wants_pairs(target), wants_signed(target)
        self.found, self.layers, self.ranges = found, layers, ranges
        self.bytes: dict[relax.Var, relax.Var] = {}
        self.bound: relax.Var | None = None

    def visit_var_binding_(self, binding: relax.VarBinding) -> None:
        self.bound = binding.var
        super().visit_var_binding_(binding)

    def visit_call_(self, call: relax.Call) -> relax.Expr:
        layer = self.layers.get(self.bound)
        if layer is not None:
            return self._products(layer)
        arguments = [self._argument(arg) for arg in call.args]
        return relax.Call(call.op, arguments, call.attrs, call.ty_args)

    def _argument(self, value: relax.Expr) -> relax.Expr:
        """Return an argument as it is, or as the numbers that its bytes stand for."""
        if not isinstance(value, relax.Var) or self.found.source(value) not in self.ranges:
            return self.visit_expr(value)
        known = self.ranges[self.found.source(value)]
        numbers = self._emit(relax.op.astype(self._quantized(value), "float32"))
        if zero := self._zero(known):
            numbers = self._emit(relax.op.subtract(numbers, _number(zero, value)))
        return self._emit(relax.op.multiply(numbers, _number(known.scale, value)))

    def _zero(self, known: Range) -> int:
        """Return which byte zero is."""
        return known.zero - int(MIDDLE) if self.signed else known.zero

    def _quantized(self, value: relax.Var) -> relax.Var:
        """Return a tensor in bytes."""
        if value not in self.bytes:
            call = self.found.bound.get(value)
            if value not in self.ranges:
                assert isinstance(call, relax.Call) and call.op.name == MAX_POOL
                self.bytes[value] = self._emit(relax.Call(call.op, [self._quantized(call.args[0])], call.attrs))
            else:
                known = self.ranges[value]
                scaled = self._emit(relax.op.multiply(self.visit_expr(value), _number(1 / known.scale, value)))
                if known.zero:
                    scaled = self._emit(relax.op.add(scaled, _number(known.zero, value)))
                clipped = self._emit(relax.op.clip(scaled, 0, LEVELS))
                rounded = self._emit(relax.op.add(clipped, relax.const(np.float32(0.5))))
                whole = self._emit(relax.op.astype(rounded, "uint8"))
                if self.signed:
                    whole = self._emit(relax.op.subtract(relax.op.astype(whole, "int32"), relax.const(MIDDLE)))
                    whole = self._emit(relax.op.astype(whole, "int8"))
                self.bytes[value] = whole
        return self.bytes[value]

    def _products(self, layer: Layer) -> relax.Expr:
        """Return the layer in integers, and its sums as the numbers that they stand for."""
        known = self.ranges[layer.source]
        weight, scale = quantized_weight(layer.weight, self.in_pairs)
        x = self._quantized(layer.call.args[0])
        return integer_products(layer.call, x, known.scale, self._zero(known), weight, scale, self._emit)

    def _emit(self, value: relax.Expr) -> relax.Var:
        return self.builder_.emit(value)


def _number(value: float, tensor: relax.Expr) -> relax.Expr:
    """Return a number with as many axes as `tensor`: programs read it, so that layers of one shape share a program."""
    return relax.const(np.full((1,) * tensor.ty.ndim, value, np.float32))
