# SPDX-License-Identifier: Apache-2.0
"""Suppression on a GPU: a thread block an image, whose threads compare a box with all that are kept at once.

Boxes still wait for the ones before them. Boxes whose score is too low are passed over by the block's width.
"""

from __future__ import annotations

import tvm
from tvm import s_tir, te, tirx
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from ...te.blocks import Block
from ...te.loops import computed_by_loops
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
        block = find_block(sch, Block.NMS)
        if block is None or tunable:
            return None
        annotations = sch.get(block).annotations
        thresholds = [tirx.const(float(annotations[f"{name}_threshold"]), "float32") for name in ("score", "iou")]
        *inputs, kept = func.params
        tensors = [te.placeholder(buffer.shape, buffer.dtype, name=buffer.name) for buffer in inputs]
        suppressed = computed_by_loops(
            kept.shape, str(kept.dtype), tensors, lambda buffers: _cooperate(buffers, *thresholds)
        )
        return s_tir.Schedule(te.create_prim_func([*tensors, suppressed]).with_attrs(func.attrs))


def _cooperate(buffers, score_threshold, iou_threshold):
    batch, candidates = (int(extent) for extent in buffers[1].shape)
    max_output = int(buffers[3].shape[1])
    boxes, scores, groups, kept = (T.buffer_proxy(b) for b in buffers)
    n, thread = te.thread_axis("blockIdx.x"), te.thread_axis("threadIdx.x")
    with IRBuilder() as builder:
        with T.attr(n, "thread_extent", batch), T.attr(thread, "thread_extent", _THREADS):
            n, thread = n.var, thread.var
            # of the block: the kept boxes, how many there are, and a flag that any thread may raise
            winners, count, flag = (_allocate(extent, "shared") for extent in (max_output, 1, 1))
            # of a thread: what it has read of the block's, for TVM puts no barriers into conditions
            rival, seen_count, seen_flag = (_allocate(1, "local") for _ in range(3))

            def first_thread(statement):
                """Have one thread do something after all others' reads and before their next ones."""
                _synchronize()
                with T.If(thread == 0), T.Then():
                    statement()
                _synchronize()

            def lower(cell):
                cell[0] = T.int32(0)

            def look():
                _synchronize()
                seen_count[0] = count[0]
                seen_flag[0] = flag[0]

            def keep(k):
                with T.If(seen_flag[0] == 0), T.Then():
                    winners[seen_count[0]] = k
                    count[0] = seen_count[0] + 1

            first_thread(lambda: lower(count))
            with T.serial(0, -(-candidates // _THREADS)) as chunk:
                first_thread(lambda: lower(flag))
                own = chunk * _THREADS + thread
                with T.If(own < candidates), T.Then(), T.If(scores[n, own] > score_threshold), T.Then():
                    flag[0] = T.int32(1)
                look()
                steps = tirx.if_then_else(seen_flag[0] == 1, te.min(_THREADS, candidates - chunk * _THREADS), 0)
                with T.serial(0, steps) as step:
                    k = chunk * _THREADS + step
                    with T.If(tirx.all(scores[n, k] > score_threshold, seen_count[0] < max_output)), T.Then():
                        first_thread(lambda: lower(flag))
                        with T.serial(0, (seen_count[0] - thread + _THREADS - 1) // _THREADS) as i:
                            rival[0] = winners[i * _THREADS + thread]
                            same = groups[n, rival[0]] == groups[n, k]
                            with T.If(tirx.all(same, box_iou(boxes, n, rival[0], k) > iou_threshold)), T.Then():
                                flag[0] = T.int32(1)
                        look()
                        first_thread(lambda k=k: keep(k))
                        look()
            with T.serial(0, -(-max_output // _THREADS)) as i:
                place = i * _THREADS + thread
                with T.If(place < max_output), T.Then():
                    kept[n, place] = T.int64(-1)
                with T.If(place < seen_count[0]), T.Then():
                    kept[n, place] = winners[place].astype("int64")
        return builder.get()


def _allocate(extent, scope):
    return T.buffer_proxy(T.alloc_buffer((extent,), "int32", scope=scope))


def _synchronize():
    T.evaluate(T.tvm_storage_sync("shared"))
