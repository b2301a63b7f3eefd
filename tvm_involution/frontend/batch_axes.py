# SPDX-License-Identifier: Apache-2.0
"""Where the batch is in the tensors of a program, and whether the pictures of a batch stay apart.

Nothing is guessed from one size: the program is compared, operator by operator, with the same program for another batch
size. The axis that grows is the batch. An operator of the tables below that does not work along that axis keeps
pictures apart; any other may mix them, and a program that has one is served at its own batch sizes alone.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import fx
from torch.utils._pytree import tree_leaves

from ..runtime.metadata import BATCH, UNKNOWN
from .source import source_line

Word = int | str
"""an entry of a shape in the metadata"""


def _names(words: str) -> frozenset[str]:
    return frozenset(words.split())


# not tagged as pointwise, but so: an output is made from the input of its place
_IN_PLACE_OF = _names(
    "alias clone contiguous copy detach detach_ dropout feature_dropout fill lift_fresh lift_fresh_copy _to_copy to "
    "type_as zeros_like ones_like full_like empty_like prelu _assert_tensor_metadata masked_fill where "
    "hardswish log_sigmoid rsub fmod remainder isfinite isreal isclose real copysign special_ndtr fill_ zero zero_"
)
# the same elements in the same order, under another shape
_VIEWS = _names("view reshape _unsafe_view flatten unflatten squeeze unsqueeze view_as reshape_as")
# axes change places; of one grown axis on each side, each is the other
_AXES = _names("permute transpose t mT numpy_T movedim moveaxis swapaxes swapdims expand expand_as")
# (N, ...) first: the first argument, or all, have pictures on their first axis, and so has the result
_PICTURES_FIRST = _names(
    "conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d convolution batch_norm group_norm "
    "instance_norm max_pool1d max_pool2d max_pool3d max_pool1d_with_indices max_pool2d_with_indices "
    "max_pool3d_with_indices avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d adaptive_avg_pool2d "
    "adaptive_avg_pool3d _adaptive_avg_pool2d _adaptive_avg_pool3d adaptive_max_pool1d adaptive_max_pool2d "
    "adaptive_max_pool3d upsample_nearest1d upsample_nearest2d upsample_nearest3d _upsample_nearest_exact1d "
    "_upsample_nearest_exact2d _upsample_nearest_exact3d upsample_linear1d upsample_bilinear2d upsample_trilinear3d "
    "upsample_bicubic2d _upsample_bilinear2d_aa _upsample_bicubic2d_aa grid_sampler grid_sampler_2d grid_sampler_3d "
    "affine_grid_generator pixel_shuffle pixel_unshuffle channel_shuffle im2col col2im bmm baddbmm pad "
    "constant_pad_nd reflection_pad1d reflection_pad2d reflection_pad3d replication_pad1d replication_pad2d "
    "replication_pad3d involution1d involution2d involution3d nms roi_align paste_masks"
)
# works along the axes that an argument names, and apart along the others
_ALONG = _names(
    "sum mean nansum nanmean amax amin aminmax max min argmax argmin prod any all var std var_mean std_mean logsumexp "
    "norm linalg_vector_norm count_nonzero softmax _softmax log_softmax _log_softmax softmin cumsum cumprod cummax "
    "cummin logcumsumexp sort argsort topk kthvalue median mode cat concat concatenate stack split split_with_sizes "
    "chunk unbind select slice narrow index_select gather take_along_dim scatter scatter_add flip roll glu unfold "
    "diff cosine_similarity repeat_interleave"
)
_AXIS_ARGUMENTS = ("dim", "dims", "dimension", "axis")
# whose other tensors may have no pictures: the same rows for each
_SHARED_INDEX = _names("index_select")
_FILLED = _names("zeros ones empty full new_zeros new_ones new_empty new_full")
# integers of these are sizes, and may grow with the batch
_SIZED = _VIEWS | _FILLED | _names("expand repeat tile")


@dataclass(frozen=True)
class BatchAxes:
    """What another batch size changes."""

    inputs: tuple[tuple[Word, ...], ...]
    """shapes, in which `batch` and `K*batch` stand for what grows with the batch, `?` for what changes otherwise"""
    outputs: tuple[tuple[Word, ...], ...]
    mixed_by: str = ""
    """the operator that mixes pictures, or may mix them, with its line; empty where each stays apart"""


@dataclass(frozen=True)
class Trace:
    """Of a program, what is compared."""

    graph: fx.Graph
    """whose nodes have what they make in `meta["val"]`"""
    graph_signature: torch.export.ExportGraphSignature
    constants: dict[str, Any]


Program = torch.export.ExportedProgram | Trace


@dataclass(frozen=True)
class _Axis:
    """The axis of a tensor along which pictures lie one after another, each `per_picture` long."""

    position: int
    per_picture: int


class _Mixed(Exception):
    """The message says what mixes pictures."""


def fixed(program: Program) -> BatchAxes:
    """Return the shapes of a program that exists for one batch size alone."""
    inputs, outputs = ([tuple(int(d) for d in x.shape) for x in part] for part in (_inputs(program), _outputs(program)))
    return BatchAxes(tuple(inputs), tuple(outputs), "its program is for one batch size alone")


def compare_batches(first: Program, n: int, second: Program, m: int) -> BatchAxes:
    """Compare the programs of one network for batches of `n` and of `m`."""
    if len(_outputs(first)) != len(_outputs(second)):
        return replace(fixed(first), mixed_by="the number of its outputs changes with the batch size")
    inputs = [_words(a, n, b, m) for a, b in zip(_inputs(first), _inputs(second), strict=True)]
    outputs = [_words(a, n, b, m) for a, b in zip(_outputs(first), _outputs(second), strict=True)]
    try:
        _check_apart(first, n, second, m)
        mixed_by = ""
    except _Mixed as reason:
        mixed_by = str(reason)
    return BatchAxes(tuple(inputs), tuple(outputs), mixed_by)


def _inputs(program: Program) -> list[torch.Tensor]:
    names = set(program.graph_signature.user_inputs)
    return [node.meta["val"] for node in program.graph.nodes if node.op == "placeholder" and node.name in names]


def _outputs(program: Program) -> list[torch.Tensor]:
    by_name = {node.name: node for node in program.graph.nodes}
    names = [name for name in program.graph_signature.user_outputs if isinstance(name, str) and name in by_name]
    return [by_name[name].meta["val"] for name in names]


def _words(a: torch.Tensor, n: int, b: torch.Tensor, m: int) -> tuple[Word, ...]:
    if a.dim() != b.dim():
        return (UNKNOWN,) * a.dim()
    return tuple(_word(int(d), n, int(e), m) for d, e in zip(a.shape, b.shape, strict=True))


def _word(d: int, n: int, e: int, m: int) -> Word:
    if d == e:
        return d
    if d % n or d // n * m != e:
        return UNKNOWN
    return BATCH if d == n else f"{d // n}*{BATCH}"


def _check_apart(first: Program, n: int, second: Program, m: int) -> None:
    ones, others = list(first.graph.nodes), list(second.graph.nodes)
    if [(node.op, node.target) for node in ones] != [(node.op, node.target) for node in others]:
        raise _Mixed("its program depends on the batch size")
    if not all(_equal(value, second.constants.get(name)) for name, value in first.constants.items()):
        raise _Mixed("its constants depend on the batch size")
    axes: dict[fx.Node, list[_Axis | None]] = {}
    for node, other in zip(ones, others, strict=True):
        if node.op == "output":
            continue
        try:
            axes[node] = [_axis(a, n, b, m) for a, b in zip(_tensors(node.meta), _tensors(other.meta), strict=True)]
            if node.op == "call_function" and node.target is not operator.getitem:
                _check_node(node, other, axes)
        except _Mixed:
            raise _Mixed(_reason(node)) from None


def _equal(a: Any, b: Any) -> bool:
    return not isinstance(a, torch.Tensor) or (isinstance(b, torch.Tensor) and torch.equal(a, b))


def _tensors(meta: dict[str, Any]) -> list[torch.Tensor]:
    return [value for value in tree_leaves(meta.get("val")) if isinstance(value, torch.Tensor)]


def _axis(a: torch.Tensor, n: int, b: torch.Tensor, m: int) -> _Axis | None:
    grown = [i for i, (d, e) in enumerate(zip(a.shape, b.shape, strict=False)) if d != e]
    if a.dim() != b.dim() or len(grown) > 1:
        raise _Mixed
    if not grown:
        return None
    d, e = int(a.shape[grown[0]]), int(b.shape[grown[0]])
    if d % n or d // n * m != e:
        raise _Mixed
    return _Axis(grown[0], d // n)


def _reason(node: fx.Node) -> str:
    return f"{node.target}{source_line(node)} mixes the pictures of a batch, or is not known to keep them apart"


@dataclass(frozen=True)
class _Operand:
    """A tensor that an operator takes."""

    position: int
    """of the argument; the tensors of a list have the list's"""
    shape: tuple[int, ...]
    axis: _Axis | None


def _operands(node: fx.Node, axes: dict[fx.Node, list[_Axis | None]]) -> Iterator[_Operand]:
    for position, argument in enumerate((*node.args, *node.kwargs.values())):
        for leaf in tree_leaves(argument):
            if isinstance(leaf, fx.Node):
                for value, axis in zip(_tensors(leaf.meta), axes[leaf], strict=True):
                    yield _Operand(position, tuple(int(d) for d in value.shape), axis)


def _check_node(node: fx.Node, other: fx.Node, axes: dict[fx.Node, list[_Axis | None]]) -> None:
    """Raise `_Mixed` unless the operator makes each picture of its results from that picture of its operands."""
    if not isinstance(node.target, torch._ops.OpOverload):
        raise _Mixed
    name = node.target._schema.name.partition("::")[2]
    if node.target._schema.is_mutable and name.endswith("_"):
        name = name[:-1]
    _check_literals(name, node, other)
    operands = list(_operands(node, axes))
    batched = [operand for operand in operands if operand.axis is not None]
    results = [(tuple(int(d) for d in v.shape), a) for v, a in zip(_tensors(node.meta), axes[node], strict=True)]
    if not batched:
        # the same values for each picture
        if any(axis is not None for _, axis in results) and name not in _FILLED | {"expand", "repeat", "tile"}:
            raise _Mixed
        return
    if name in _FILLED:  # x.new_zeros: of x, only the type
        return
    for shape, axis in results:
        if axis is None or not _keeps_apart(name, node, operands, shape, axis):
            raise _Mixed


def _check_literals(name: str, node: fx.Node, other: fx.Node) -> None:
    """Raise `_Mixed` where a number among the arguments depends on the batch size and is no tensor's size."""
    if name in ("full", "new_full"):
        position = 1 if name == "full" else 2
        if node.args[position] != other.args[position]:
            raise _Mixed
    if name in _SIZED:
        return
    ones, others = (
        [leaf for leaf in tree_leaves((n.args, n.kwargs)) if not isinstance(leaf, fx.Node)] for n in (node, other)
    )
    if [repr(leaf) for leaf in ones] != [repr(leaf) for leaf in others]:
        raise _Mixed


def _keeps_apart(name: str, node: fx.Node, operands: Sequence[_Operand], shape: tuple[int, ...], axis: _Axis) -> bool:
    batched = [(operand, operand.axis) for operand in operands if operand.axis is not None]
    positions = {found.position for _, found in batched}
    assert isinstance(node.target, torch._ops.OpOverload)
    if torch.Tag.pointwise in node.target.tags or name in _IN_PLACE_OF:
        return all(found.position - len(o.shape) == axis.position - len(shape) for o, found in batched)
    if name in _VIEWS:
        (source, found), *_ = batched
        return math.prod(source.shape[: found.position]) == math.prod(shape[: axis.position])
    if name in _AXES:
        return True
    if name in ("repeat", "tile"):
        (source, found), *_ = batched
        same_place = found.position - len(source.shape) == axis.position - len(shape)
        return same_place and found.per_picture == axis.per_picture
    if name in _PICTURES_FIRST:
        training = name == "batch_norm" and _argument(node, "training")
        return positions == {0} and axis.position == 0 and not training
    if name in ("linear", "layer_norm", "rms_norm"):
        (source, found), *more = batched
        kept = len(source.shape) - (1 if name == "linear" else len(_argument(node, "normalized_shape")))
        return not more and source.position == 0 and found.position == axis.position < kept
    if name == "embedding":
        return [o.position for o, _ in batched] == [1] and positions == {axis.position}
    if name in ("mm", "addmm", "matmul", "mv", "dot"):
        return _product(operands[-2:], axis, shape) and all(o.axis is None for o in operands[:-2])
    if name == "scaled_dot_product_attention":
        shared = [o for o in operands[3:] if o.axis is None]
        return all(o in shared or (o.axis == axis and axis.position < len(o.shape) - 2) for o in operands)
    if name == "local_attention2d":
        return axis.position == 0 and all(o.axis == (axis if o.position < 3 else None) for o in operands)
    if name == "einsum":
        return _einsum(str(node.args[0]), operands, axis)
    if name == "index":
        return _indexed(node, operands, axis)
    if name in _ALONG:
        return _along(name, node, operands, shape, axis)
    return False


def _argument(node: fx.Node, name: str) -> Any:
    """Return an argument of the operator by name, its default where it was not given; None where it has none such."""
    assert isinstance(node.target, torch._ops.OpOverload)
    for position, parameter in enumerate(node.target._schema.arguments):
        if parameter.name == name:
            if position < len(node.args):
                return node.args[position]
            return node.kwargs.get(name, parameter.default_value)
    return None


def _along(name: str, node: fx.Node, operands: Sequence[_Operand], shape: tuple[int, ...], axis: _Axis) -> bool:
    values = [value for key in _AXIS_ARGUMENTS if (value := _argument(node, key)) is not None]
    if len(values) != 1 or values[0] == []:  # all axes
        return False
    along = values[0] if isinstance(values[0], (list, tuple)) else [values[0]]
    relevant = [o for o in operands if o.position == 0] if name in _SHARED_INDEX else list(operands)
    if any(o.axis != relevant[0].axis for o in relevant) or any(o.axis for o in operands if o not in relevant):
        return False
    source, found = relevant[0], relevant[0].axis
    assert found is not None
    if name == "stack":
        return axis.position not in [d % len(shape) for d in along]
    if name == "slice" and source.shape[found.position] == shape[axis.position] and len(source.shape) == len(shape):
        return True  # x[:], or of another axis
    return found.position not in [d % len(source.shape) for d in along]


def _product(operands: Sequence[_Operand], axis: _Axis, shape: tuple[int, ...]) -> bool:
    """Whether a matrix product with pictures in one factor, or on an outer axis of both, keeps them apart."""
    a, b = operands
    if a.axis is not None and b.axis is not None:
        from_right = {a.axis.position - len(a.shape), b.axis.position - len(b.shape), axis.position - len(shape)}
        return len(from_right) == 1 and from_right.pop() < -2
    if a.axis is not None:
        return a.axis.position < len(a.shape) - 1
    return b.axis is not None and len(b.shape) > 1 and b.axis.position != len(b.shape) - 2


def _einsum(equation: str, operands: Sequence[_Operand], axis: _Axis) -> bool:
    left, arrow, right = equation.replace(" ", "").partition("->")
    if not arrow or "." in left:
        return False
    letters = {o_letters[o.axis.position] for o, o_letters in zip(operands, left.split(","), strict=True) if o.axis}
    return letters == {right[axis.position]}


def _indexed(node: fx.Node, operands: Sequence[_Operand], axis: _Axis) -> bool:
    source, *indices = operands
    if source.axis is None:
        from_right = {o.axis.position - len(o.shape) for o in indices if o.axis is not None}
        return len(from_right) == 1
    chosen = node.args[1]
    assert isinstance(chosen, (list, tuple))
    free = source.axis.position >= len(chosen) or chosen[source.axis.position] is None
    return free and all(o.axis is None for o in indices)
