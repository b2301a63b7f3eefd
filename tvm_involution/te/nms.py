# SPDX-License-Identifier: Apache-2.0
"""Greedy non-maximum suppression, written as a loop: each box waits for the ones before it."""

from __future__ import annotations

from typing import Any

from tvm import te, tirx
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from ..arguments import Size, checked
from .blocks import Block
from .checks import check_rank, check_shape, check_single
from .loops import computed_by_loops


@checked
def nms(
    boxes: te.Tensor,
    scores: te.Tensor,
    groups: te.Tensor,
    score_threshold: float,
    iou_threshold: float,
    max_output: Size,
) -> te.Tensor:
    """Return the positions (N, max_output) int64 of the boxes that are kept, then -1.

    One block, `nms`, an image a point, annotated with the thresholds.

    Args:
        boxes: (N, K, 4), (x1, y1, x2, y2), in the order in which they are tried.
        scores: (N, K); a box whose score is not above `score_threshold` is passed over.
        groups: (N, K), integers; boxes of different groups leave each other alone.
        iou_threshold: a box goes where its intersection over union with a kept one is above this.
    """
    check_rank("scores", scores, 2)
    batch, candidates = scores.shape
    check_shape("boxes", boxes, (batch, candidates, 4))
    check_shape("groups", groups, (batch, candidates))
    check_single(boxes=boxes, scores=scores)
    return computed_by_loops(
        (batch, max_output),
        "int64",
        [boxes, scores, groups],
        lambda buffers: _loops(buffers, score_threshold, iou_threshold, max_output),
    )


def _loops(buffers, score_threshold, iou_threshold, max_output):
    batch, candidates = (int(extent) for extent in buffers[1].shape)
    boxes, scores, groups, kept = (T.buffer_proxy(b) for b in buffers)
    with IRBuilder() as builder:
        with T.serial(0, batch) as image, T.sblock(Block.NMS):
            n = T.axis.spatial(batch, image)
            T.reads(buffers[0][n, 0:candidates, 0:4], *(b[n, 0:candidates] for b in buffers[1:3]))
            T.writes(buffers[3][n, 0:max_output])
            T.sblock_attr({"score_threshold": score_threshold, "iou_threshold": iou_threshold})
            count = T.buffer_proxy(T.sblock_alloc_buffer((1,), "int32", scope="local"))
            free = T.buffer_proxy(T.sblock_alloc_buffer((1,), "bool", scope="local"))
            count[0] = T.int32(0)
            with T.serial(0, max_output) as i:
                kept[n, i] = T.int64(-1)
            with T.serial(0, candidates) as k:
                eligible = tirx.all(count[0] < max_output, scores[n, k] > tirx.const(score_threshold, "float32"))
                with T.If(eligible), T.Then():
                    free[0] = T.bool(True)
                    with T.serial(0, count[0]) as i:
                        rival = kept[n, i]
                        with T.If(tirx.all(free[0], groups[n, rival] == groups[n, k])), T.Then():
                            free[0] = box_iou(boxes, n, rival, k) <= tirx.const(iou_threshold, "float32")
                    with T.If(free[0]), T.Then():
                        kept[n, count[0]] = k.astype("int64")
                        count[0] = count[0] + 1
        return builder.get()


def box_iou(boxes: Any, n: Any, a: Any, b: Any) -> tirx.Expr:
    """Return the intersection over union of two boxes of image n; 0 where neither has an area."""
    zero = tirx.const(0, "float32")

    def area(k):
        return (boxes[n, k, 2] - boxes[n, k, 0]) * (boxes[n, k, 3] - boxes[n, k, 1])

    width = te.max(te.min(boxes[n, a, 2], boxes[n, b, 2]) - te.max(boxes[n, a, 0], boxes[n, b, 0]), zero)
    height = te.max(te.min(boxes[n, a, 3], boxes[n, b, 3]) - te.max(boxes[n, a, 1], boxes[n, b, 1]), zero)
    union = area(a) + area(b) - width * height
    return tirx.Select(union > zero, width * height / union, zero)
