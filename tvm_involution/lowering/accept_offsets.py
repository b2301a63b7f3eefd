# SPDX-License-Identifier: Apache-2.0
"""Let kernels take tensors that begin somewhere inside their memory, as `relax.passes.CentreTensors` places them."""

from __future__ import annotations

import tvm
from tvm import tirx
from tvm_ffi import structural_map

from .programs import rewrite_cpu_programs


@tvm.transform.module_pass(opt_level=0, name="AcceptOffsets")
class AcceptOffsets:
    """Give every argument of the scheduled programs for a CPU an offset, which TVM otherwise checks to be 0."""

    def transform_module(self, mod: tvm.IRModule, _: tvm.transform.PassContext) -> tvm.IRModule:
        """Return `mod` with every `PrimFunc` for a CPU rewritten."""
        return rewrite_cpu_programs(mod, _with_offsets)


def _with_offsets(func: tirx.PrimFunc) -> tirx.PrimFunc:
    replaced = {}
    for param in func.params:
        if isinstance(param.ty, tirx.BufferType):
            lanes = 512 // tvm.DataType(str(param.dtype)).bits
            offset = tirx.Var(f"{param.name}_offset", "int64")
            replaced[param] = tirx.decl_buffer(
                param.shape, param.dtype, param.name, elem_offset=offset, offset_factor=lanes, data_alignment=64
            )
    body = structural_map(func.body, (tirx.Var, lambda var: replaced.get(var, var)))
    return tirx.PrimFunc([replaced.get(param, param) for param in func.params], body, attrs=func.attrs)
