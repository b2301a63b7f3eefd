# SPDX-License-Identifier: Apache-2.0
"""Launch a network's kernels as one CUDA graph, captured by the first call of each batch size.

TVM's `RewriteCUDAGraph` lifts whatever depends on planned memory and constants alone. A kernel that reads an input or
writes an output stays outside: the graph bakes addresses in, and those of inputs and outputs change from call to call.
"""

from __future__ import annotations

import tvm
import tvm_ffi
from tvm import relax, s_tir, tirx

_CAPTURED = "vm.builtin.cuda_graph.run_or_capture"


@tvm.transform.module_pass(opt_level=0, name="CaptureCudaGraphs")
class CaptureCudaGraphs:
    """Rewrite the module's Relax functions; runs right after `StaticPlanBlockMemory`.

    Nothing where a kernel has a workspace of its own: the runtime takes that from a pool of the calling thread, which
    goes with the thread, and a graph would go on writing there.
    """

    def transform_module(self, mod: tvm.IRModule, _: tvm.transform.PassContext) -> tvm.IRModule:
        """Return `mod` with its kernels in graphs."""
        programs = [func for _, func in mod.functions_items() if isinstance(func, tirx.PrimFunc)]
        if any(_has_workspace(program) for program in programs):
            return mod
        with tvm.transform.PassContext(config={"relax.backend.use_cuda_graph": True}):
            return relax.transform.RewriteCUDAGraph()(mod)


def has_cuda_graphs(mod: tvm.IRModule) -> bool:
    """Return whether any function of the module launches a graph."""
    found = False

    def visit(expr: relax.Expr) -> None:
        nonlocal found
        found = found or (isinstance(expr, relax.ExternFunc) and expr.global_symbol == _CAPTURED)

    for _, func in mod.functions_items():
        if isinstance(func, relax.Function):
            relax.analysis.post_order_visit(func, visit)
    return found


def _has_workspace(program: tirx.PrimFunc) -> bool:
    buffers: list[tirx.Buffer] = []
    tvm_ffi.structural_walk(
        program.body,
        [
            (s_tir.SBlock, lambda block: buffers.extend(block.alloc_buffers)),
            (tirx.AllocBuffer, lambda allocation: buffers.append(allocation.buffer)),
        ],
    )
    return any(buffer.scope() in ("", "global") for buffer in buffers)
