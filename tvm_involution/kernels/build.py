# SPDX-License-Identifier: Apache-2.0
"""A kernel of an involution, or of one of its gradients, as a shared object."""

from __future__ import annotations

from pathlib import Path

import tvm
from tvm import te, tirx

from .. import lowering
from .. import te as expressions
from ..errors import UserError
from ..files import atomic_write
from ..lowering.link import export_library, linker_of
from ..schedules import default_schedule
from .aggregation import FUNCTION, OPERATORS, Aggregation
from .grad_input import grad_input
from .grad_kernel import grad_kernel
from .involution import involution

_CPU_PROGRAMS = dict(zip(OPERATORS, (involution, grad_input, grad_kernel), strict=True))


def build_kernel(operator: str, sizes: Aggregation, target: tvm.target.Target, path: Path) -> None:
    """Write the kernel of an operator, one of `OPERATORS`, as the shared object `path`.

    Its one function takes the operator's two inputs and its output, as `Aggregation` lays them out.

    Raises:
        UserError: there is no such kernel for the target, no linker, or no room.
    """
    program = scheduled_program(operator, sizes, target).with_attr("global_symbol", FUNCTION)
    executable = lowering.build(tvm.IRModule({FUNCTION: program}), target)
    with atomic_write(path) as temporary:
        export_library(executable, target, temporary, linker_of(target))


def scheduled_program(operator: str, sizes: Aggregation, target: tvm.target.Target) -> tirx.PrimFunc:
    """Return the program of an operator: on CPUs of this folder, on GPUs an expression scheduled by the rules.

    Raises:
        UserError: there is none for the target.
    """
    if target.kind.name != "cuda":
        return _CPU_PROGRAMS[operator](sizes, target)
    schedule, _ = default_schedule(_gpu_expression(operator, sizes), target)
    if schedule is None:
        raise UserError(f"no schedule takes {operator} of {sizes} on GPUs")
    return schedule.mod["main"].with_attr("target", target)


def _gpu_expression(operator: str, sizes: Aggregation) -> tirx.PrimFunc:
    geometry = (sizes.stride, sizes.padding, sizes.dilation)
    x, grad = (
        te.placeholder(sizes.feature_shape(s), sizes.dtype, n) for s, n in ((sizes.size, "x"), (sizes.out_size, "grad"))
    )
    kernel = te.placeholder(sizes.kernel_shape, sizes.dtype, "kernel")
    if operator == "involution":
        axes = "DHW"[-len(sizes.size) :]
        layout = f"N{axes}C" if sizes.channels_last else f"NC{axes}"
        return te.create_prim_func([x, kernel, expressions.involution(x, kernel, *geometry, layout)])
    if sizes.channels_last or len(sizes.size) != 2:
        raise UserError("gradients on GPUs are compiled for two axes with channels first alone")
    if operator == "grad_input":
        return te.create_prim_func(
            [grad, kernel, expressions.involution2d_grad_input(grad, kernel, sizes.size, *geometry)]
        )
    made = expressions.involution2d_grad_kernel(grad, x, sizes.groups, sizes.kernel_size, *geometry)
    return te.create_prim_func([grad, x, made])
