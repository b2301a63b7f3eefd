# SPDX-License-Identifier: Apache-2.0
"""Batch norm at inference: into the convolution before it, else one multiply and one add.

The importer's decomposition would leave a subtraction, a division, a multiplication and an addition. A batch norm
after an involution can't go into weights (the kernel is shared by the channels of a group), so it stays as an
epilogue of two operations.
"""

from __future__ import annotations

import numpy as np
import tvm
from tvm import relax
from tvm.ir import GenericConst
from tvm.relax.dpl import TupleGetItemPattern, is_const, is_op, rewrite_call, wildcard

from ..constants import constant, to_float
from ..rewrite import update_functions
from ..uses import count_uses


@tvm.transform.module_pass(opt_level=0, name="FoldBatchNorm")
class FoldBatchNorm:
    """Rewrite `relax.nn.batch_norm` with constant statistics; convolutions of one to three axes, channels first."""

    def transform_module(self, mod: tvm.IRModule, _: tvm.transform.PassContext) -> tvm.IRModule:
        """Return `mod` with every inference batch norm folded."""
        return update_functions(mod, lambda func, _: _fold(func))


def _fold(func: relax.Function) -> relax.Function:
    for axes in (1, 2, 3):
        func = _fold_into_convolutions(func, axes)
    return _to_scale_and_shift(func)


def _batch_norm_pattern(data):
    parameters = [is_const() for _ in range(4)]
    norm = is_op("relax.nn.batch_norm")(data, *parameters)
    return norm, parameters


def _scale_and_shift(norm: relax.Call, parameters: list[GenericConst]) -> tuple[np.ndarray, np.ndarray]:
    gamma, beta, mean, variance = (to_float(p) for p in parameters)
    attrs = norm.attrs
    if not attrs.scale:
        gamma = np.ones_like(gamma)
    if not attrs.center:
        beta = np.zeros_like(beta)
    scale = gamma / np.sqrt(variance + float(attrs.epsilon))
    return scale, beta - mean * scale


def _fold_into_convolutions(func: relax.Function, axes: int) -> relax.Function:
    x, weight = wildcard(), is_const()
    conv = is_op(f"relax.nn.conv{axes}d")(x, weight)
    bias = is_const()
    reshaped_bias = is_op("relax.reshape")(bias, wildcard())
    uses = count_uses(func)
    for biased in (False, True):
        before = is_op("relax.add")(conv, bias | reshaped_bias) if biased else conv
        norm, parameters = _batch_norm_pattern(before)

        def rewrite(expr, matches, biased=biased, before=before, norm=norm, parameters=parameters):
            call = matches[conv]
            inner = [matches[before]] + ([call] if biased else [])
            if call.attrs.kernel_layout != f"OI{'DHW'[-axes:]}" or any(uses.get(c, 2) != 1 for c in inner):
                return expr
            scale, shift = _scale_and_shift(matches[norm], [matches[p] for p in parameters])
            if biased:
                shift = shift + to_float(matches[bias]).reshape(-1) * scale
            dtype = call.ty.dtype
            folded = to_float(matches[weight]) * scale.reshape(-1, 1, *(1,) * axes)
            new_conv = relax.Call(call.op, [matches[x], constant(folded, dtype)], call.attrs)
            return relax.op.add(new_conv, constant(shift.reshape(1, -1, *(1,) * axes), dtype))

        func = rewrite_call(TupleGetItemPattern(norm, 0), rewrite, func)
    return func


def _to_scale_and_shift(func: relax.Function) -> relax.Function:
    data = wildcard()
    norm, parameters = _batch_norm_pattern(data)

    def rewrite(expr, matches):
        call = matches[norm]
        if call.attrs.training:
            return expr
        scale, shift = _scale_and_shift(call, [matches[p] for p in parameters])
        ty = matches[data].ty
        shape = [1] * ty.ndim
        shape[int(call.attrs.axis)] = -1
        scaled = relax.op.multiply(matches[data], constant(scale.reshape(shape), ty.dtype))
        return relax.op.add(scaled, constant(shift.reshape(shape), ty.dtype))

    return rewrite_call(TupleGetItemPattern(norm, 0), rewrite, func)
