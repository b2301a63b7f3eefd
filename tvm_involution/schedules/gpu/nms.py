# SPDX-License-Identifier: Apache-2.0
"""Suppression on a GPU: a thread block an image, whose threads compare a box with all that are kept at once.

Boxes still wait for the ones before them. Boxes whose score is too low are passed over by the block's width.
"""

from __future__ import annotations

import tvm
from tvm import s_tir, te, tirx
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from ...te.nms import box_iou
from ..rule import ScheduleRule, find_block

_THREADS = 256


class NMS(ScheduleRule):
    """Replace the loops of `te.nms`."""

    def apply(
        self, func: tirx.PrimFunc, target: tvm.target.Target, tunable: bool = False
    ) -> s_tir.Schedule | list[s_tir.Schedule] | None:
        """See `ScheduleRule.apply`."""
        sch = s_tir.Schedule(func)
        block = find_block(sch, "nms")
        if block is None or tunable:
            return None
        annotations = sch.get(block).annotations
        thresholds = [tirx.const(float(annotations[f"{name}_threshold"]), "float32") for name in ("score", "iou")]
        *inputs, kept = func.params
        tensors = [te.placeholder(buffer.shape, buffer.dtype, name=buffer.name) for buffer in inputs]
        suppressed = te.extern(
            kept.shape,
            tensors,
            lambda ins, outs: _cooperate([*ins, outs[0]], *thresholds),
            name="nms",
            dtype=str(kept.dtype),
        )
        return s_tir.Schedule(te.create_prim_func([*tensors, suppressed]).with_attrs(func.attrs))


def _cooperate(buffers, score_threshold, iou_threshold):
    batch, candidates = (int(extent) for extent in buffers[1].shape)
    max_output = int(buffers[3].shape[1])
    boxes, scores, groups, kept = (T.buffer_proxy(b) for b in buffers)
    with IRBuilder() as builder:
        n, thread = te.thread_axis("blockIdx.x"), te.thread_axis("threadIdx.x")
        with T.attr(n, "thread_extent", batch), T.attr(thread, "thread_extent", _THREADS):
            n, thread = n.var, thread.var
            winners = T.buffer_proxy(T.alloc_buffer((max_output,), "int32", scope="shared"))
            count = T.buffer_proxy(T.alloc_buffer((1,), "int32", scope="shared"))
            flag = T.buffer_proxy(T.alloc_buffer((1,), "int32", scope="shared"))

            def together(statement):
                """Have the first thread do something between all threads' reads and writes."""
                _synchronize()
                with T.If(thread == 0), T.Then():
                    statement()
                _synchronize()

            def clear(cell):
                cell[0] = T.int32(0)

            together(lambda: clear(count))
            with T.serial(0, -(-candidates // _THREADS)) as chunk:
                together(lambda: clear(flag))
                own = chunk * _THREADS + thread
                with T.If(own < candidates), T.Then(), T.If(scores[n, own] > score_threshold), T.Then():
                    flag[0] = T.int32(1)
                _synchronize()
                with T.If(tirx.all(flag[0] == 1, count[0] < max_output)), T.Then():
                    with T.serial(0, te.min(_THREADS, candidates - chunk * _THREADS)) as step:
                        k = chunk * _THREADS + step
                        with T.If(tirx.all(scores[n, k] > score_threshold, count[0] < max_output)), T.Then():
                            together(lambda: clear(flag))
                            with T.serial(0, (count[0] - thread + _THREADS - 1) // _THREADS) as i:
                                rival = winners[i * _THREADS + thread]
                                same = groups[n, rival] == groups[n, k]
                                with T.If(tirx.all(same, box_iou(boxes, n, rival, k) > iou_threshold)), T.Then():
                                    flag[0] = T.int32(1)

                            def keep(k=k):
                                with T.If(flag[0] == 0), T.Then():
                                    winners[count[0]] = k
                                    count[0] = count[0] + 1

                            together(keep)
                _synchronize()
            with T.serial(0, -(-max_output // _THREADS)) as i:
                place = i * _THREADS + thread
                with T.If(place < max_output), T.Then():
                    kept[n, place] = tirx.if_then_else(
                        place < count[0], winners[place].astype("int64"), tirx.const(-1, "int64")
                    )
        return builder.get()


def _synchronize():
    T.evaluate(T.tvm_storage_sync("shared"))
