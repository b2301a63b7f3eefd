# SPDX-License-Identifier: Apache-2.0
"""A thread an output, the sum in a register: correct for every program, the default where no better rule applies.

Where nothing is summed and the last axis is a short vector, such as a picture's channels, a thread writes all of it.
"""

from __future__ import annotations

import tvm
from tvm import s_tir, tirx
from tvm.s_tir.schedule import LoopRV, SBlockRV

from ..placing import reverse_compute_at
from ..rule import ScheduleRule, blocks_of, fuse_epilogue, inline_producers, is_spatial, loops_by_kind
from .stage import VECTORS

_THREADS = 256
_VECTOR_BITS = 128


class ThreadPerOutput(ScheduleRule):
    """Inline what is elementwise, fuse each block's outputs and spread them over threads."""

    general = True

    def apply(
        self, func: tirx.PrimFunc, target: tvm.target.Target, tunable: bool = False
    ) -> s_tir.Schedule | list[s_tir.Schedule] | None:
        """See `ScheduleRule.apply`."""
        if tunable:
            return None  # nothing to choose: MetaSchedule's own space is larger
        sch = s_tir.Schedule(func)
        inline_producers(sch)
        for block in [block for block in blocks_of(sch) if not is_spatial(sch, block)]:
            epilogue = fuse_epilogue(sch, block)
            _bind(sch, block, None if epilogue is block else epilogue)
        for block in blocks_of(sch):
            if not _is_bound(sch, block):
                _bind(sch, block, None)
        return sch


def _is_bound(sch: s_tir.Schedule, block: SBlockRV) -> bool:
    loops = sch.get_loops(block)
    return bool(loops) and sch.get(loops[0]).thread_binding is not None


def _bind(sch: s_tir.Schedule, block: SBlockRV, epilogue: SBlockRV | None) -> None:
    spatial, reduced = loops_by_kind(sch, block)
    sch.reorder(*spatial, *reduced)
    if not spatial:
        spatial = [sch.add_unit_loop(reduced[0] if reduced else block)]
    whole = not reduced and len(spatial) > 1 and _is_vector(sch, block, spatial[-1])
    outputs = sch.fuse(*(spatial[:-1] if whole else spatial))
    if whole:
        # one by one into registers, as tests may need it, and from there at once
        sch.unroll(spatial[-1])
        written = sch.cache_write(block, 0, "local")
        reverse_compute_at(sch, written, outputs)
        sch.vectorize(sch.get_loops(written)[-1])
    if reduced:
        if epilogue is None:
            epilogue = sch.cache_write(block, 0, "local")
        reverse_compute_at(sch, epilogue, outputs, preserve_unit_loops=False)
        sch.set_scope(block, 0, "local")
    # split after the epilogue has joined: one that joins an unevenly split loop loses its bound (TVM 0.27)
    blocks, threads = sch.split(outputs, [None, _THREADS])
    sch.bind(blocks, "blockIdx.x")
    sch.bind(threads, "threadIdx.x")
    if reduced:
        sch.decompose_reduction(block, reduced[0])


def _is_vector(sch: s_tir.Schedule, block: SBlockRV, last: LoopRV) -> bool:
    """Return whether the last loop of a block is as long as a vector of floats that CUDA has a type for."""
    dtype, extent = str(sch.get(block).writes[0].source.dtype), sch.get(last).extent
    if not isinstance(extent, tirx.IntImm) or int(extent) not in VECTORS or "float" not in dtype:
        return False
    return tvm.DataType(dtype).bits * int(extent) <= _VECTOR_BITS
