# SPDX-License-Identifier: Apache-2.0
"""Run a whole network as it is scheduled for a GPU, kernel by kernel in the emulator."""

from __future__ import annotations

import numpy as np
import torch
import tvm
from cuda_emulator import run_cuda
from programs import as_dtype
from tvm import relax

from tvm_involution.frontend.importer import export_module, import_exported_program
from tvm_involution.relax import pipeline
from tvm_involution.relax.constants import to_float


def run_emulated(module: torch.nn.Module, x: np.ndarray, target: tvm.target.Target, dtype: str) -> np.ndarray:
    """Compile `module` for `target` in `dtype` and run it on `x` (N, C, H, W) float32; return its output as float64."""
    mod = import_exported_program(export_module(module, [torch.zeros(x.shape)]))
    mod = pipeline.run(mod, target, dtype=dtype, until="schedule kernels")
    main = mod["main"]
    values: dict[relax.Var, np.ndarray] = {main.params[0]: as_dtype(x, dtype)}
    for block in main.body.blocks:
        for binding in block.bindings:
            values[binding.var] = _evaluate(mod, binding.value, values, target)
    return values[main.body.body].astype(np.float64)


def _evaluate(mod, value, values, target) -> np.ndarray:
    if isinstance(value, relax.Var):
        return values[value]
    assert value.op.name == "relax.call_tir", value
    callee, arguments = value.args[:2]
    func = mod[callee]
    arrays = [_array(argument, values) for argument in arguments.fields]
    return run_cuda(func, arrays, target)[0]


def _array(argument, values) -> np.ndarray:
    if isinstance(argument, relax.Var):
        return values[argument]
    return as_dtype(to_float(argument), str(argument.ty.dtype))
