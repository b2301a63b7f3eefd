# SPDX-License-Identifier: Apache-2.0
"""Elements taken from known places that a formula gives: windows, slices with steps, mirrored borders.

TVM reads each place from memory, and fuses nothing with what does. By a formula windows are part of the kernel that
pads before them and orders them afterwards.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import tvm
from tvm import relax, te
from tvm.ir import GenericConst

from ..conv2d import is_static
from ..rewrite import rewrite_functions

_Formula = Callable[..., tvm.tirx.Expr]


@tvm.transform.module_pass(opt_level=0, name="ComputePlaces")
class ComputePlaces:
    """Rewrite `relax.take` along an axis by constants that are a sum of steps, or go to and fro once."""

    def transform_module(self, mod: tvm.IRModule, _: tvm.transform.PassContext) -> tvm.IRModule:
        """Return `mod` with those calls as tensor programs."""
        return rewrite_functions(mod, _Computer(mod))


@relax.expr_functor.mutator
class _Computer(relax.PyExprMutator):
    def visit_call_(self, call: relax.Call) -> relax.Expr:
        call = self.visit_expr_post_order(call)
        if getattr(call.op, "name", "") != "relax.take" or call.attrs.axis is None or not is_static(call):
            return call
        x, places = call.args
        if not isinstance(places, GenericConst) or not isinstance(x.ty, relax.TensorType):
            return call
        axis = int(call.attrs.axis) % x.ty.ndim
        values = places.value.numpy()
        size = x.ty.shape[axis]
        if not isinstance(size, tvm.tirx.IntImm) or not values.size or values.min() < 0 or values.max() >= int(size):
            return call
        formula = _steps(values) or _mirrored(values, int(size))
        if formula is None:
            return call

        def taken(x: te.Tensor) -> te.Tensor:
            behind = axis + values.ndim

            def element(*index):
                return x(*index[:axis], formula(*index[axis:behind]), *index[behind:])

            return te.compute([int(d) for d in call.ty.shape], element, name="take", tag="injective")

        return self.builder_.call_te(taken, x, primfunc_name_hint="take")


def _steps(places: np.ndarray) -> _Formula | None:
    """Return the places as a first one and a step along each axis; None where they are not that."""
    first = int(places.flat[0])
    steps = [int(np.take(places, 1, axis).flat[0]) - first if size > 1 else 0 for axis, size in enumerate(places.shape)]
    grid = sum((step * at for step, at in zip(steps, np.indices(places.shape), strict=True)), start=np.array(first))
    if not np.array_equal(places, grid):
        return None
    return lambda *index: sum((step * at for step, at in zip(steps, index, strict=True) if step), start=first)


def _mirrored(places: np.ndarray, size: int) -> _Formula | None:
    """Return places that go on backwards before the first and behind the last, as reflection padding has them."""
    if places.ndim != 1:
        return None
    before, last = int(places[0]), size - 1
    if not np.array_equal(places, last - abs(last - abs(np.arange(len(places)) - before))):
        return None

    def mirrored(at):
        distance = tvm.tirx.max(at - before, before - at)
        return tvm.tirx.min(distance, 2 * last - distance)

    return mirrored
