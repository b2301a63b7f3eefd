# SPDX-License-Identifier: Apache-2.0
"""What core operators of torch mean to recognition: which move elements, which multiply and add."""

from __future__ import annotations

import operator

import torch

_ATEN = torch.ops.aten

IM2COL = _ATEN.im2col.default
CONVOLUTION = _ATEN.convolution.default
PAD = _ATEN.constant_pad_nd.default
VIEWS = (_ATEN.view.default, _ATEN.reshape.default, _ATEN._unsafe_view.default)
EXPAND = _ATEN.expand.default

# every element of the result is an element of an operand, or a constant
MOVEMENTS = {
    *VIEWS,
    EXPAND,
    IM2COL,
    PAD,
    operator.getitem,
    _ATEN.alias.default,
    _ATEN.as_strided.default,
    _ATEN.cat.default,
    _ATEN.clone.default,
    _ATEN.copy.default,
    _ATEN.detach.default,
    _ATEN.diagonal.default,
    _ATEN.flip.default,
    _ATEN.index.Tensor,
    _ATEN.index_select.default,
    _ATEN.permute.default,
    _ATEN.reflection_pad2d.default,
    _ATEN.repeat.default,
    _ATEN.replication_pad2d.default,
    _ATEN.roll.default,
    _ATEN.select.int,
    _ATEN.select_scatter.default,
    _ATEN.slice.Tensor,
    _ATEN.slice_scatter.default,
    _ATEN.split_with_sizes.default,
    _ATEN.squeeze.dim,
    _ATEN.squeeze.dims,
    _ATEN.transpose.int,
    _ATEN.unfold.default,
    _ATEN.unsqueeze.default,
}
# those that take indices, which must be known
PICKS = {_ATEN.index.Tensor, _ATEN.index_select.default}
# movements that make windows by themselves
WINDOWS = {IM2COL, _ATEN.unfold.default, _ATEN.as_strided.default}
# of two tensors, linear in each
PRODUCTS = {_ATEN.mul.Tensor, _ATEN.bmm.default, _ATEN.mm.default}
SUMS = {_ATEN.sum.dim_IntList, _ATEN.mean.dim}
ADDITIONS = {_ATEN.add.Tensor, _ATEN.sub.Tensor}
# by a number
SCALINGS = {
    _ATEN.mul.Tensor,
    _ATEN.mul.Scalar,
    _ATEN.div.Tensor,
    _ATEN.div.Scalar,
    _ATEN.neg.default,
}
# the result holds elements of one tensor alone, each perhaps several times
REPETITIONS = {
    *VIEWS,
    EXPAND,
    _ATEN.alias.default,
    _ATEN.clone.default,
    _ATEN.permute.default,
    _ATEN.repeat.default,
    _ATEN.squeeze.dim,
    _ATEN.squeeze.dims,
    _ATEN.transpose.int,
    _ATEN.unsqueeze.default,
}
# element by element, of one tensor: they may come before its elements are repeated as well as after
ELEMENTWISE = {
    _ATEN.relu.default,
    _ATEN.sigmoid.default,
    _ATEN.tanh.default,
    _ATEN.exp.default,
    _ATEN.abs.default,
    _ATEN.neg.default,
    _ATEN.gelu.default,
    _ATEN.elu.default,
    _ATEN.hardtanh.default,
    _ATEN.leaky_relu.default,
    _ATEN.clamp.default,
    _ATEN.clamp_min.default,
    _ATEN.clamp_max.default,
}
