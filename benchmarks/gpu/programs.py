# SPDX-License-Identifier: Apache-2.0
"""Tensor programs by themselves: build one, count what it moves, run it on torch's tensors."""

from __future__ import annotations

import contextlib
import math
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
import tvm
import tvm_ffi
from tvm import s_tir, tirx
from tvm.s_tir.analysis import estimate_tir_flops

from tvm_involution import lowering
from tvm_involution.lowering.link import export_library, linker_of
from tvm_involution.records.tuning_records import TuningRecords
from tvm_involution.runtime.arrays import numpy_dtype
from tvm_involution.runtime.threads import run_on_pool
from tvm_involution.schedules import default_schedule
from tvm_involution.schedules.rule import blocks_of
from tvm_involution.target import host_cpu


@dataclass(frozen=True)
class Arguments:
    """What a program takes: inputs first, its output last."""

    shapes: tuple[tuple[int, ...], ...]
    dtypes: tuple[str, ...]

    @property
    def bytes(self) -> int:
        """The size of all arguments, each counted once."""
        return sum(
            math.prod(shape) * numpy_dtype(dtype).itemsize
            for shape, dtype in zip(self.shapes, self.dtypes, strict=True)
        )

    def random(self, device: str) -> list[torch.Tensor]:
        """Return tensors of normal random numbers (whole ones, which may be indices, are 0), and NaN as output."""
        tensors = []
        for shape, dtype in zip(self.shapes, self.dtypes, strict=True):
            kind = getattr(torch, dtype)
            made = torch.randn(shape, device=device) if kind.is_floating_point else torch.zeros(shape, device=device)
            tensors.append(made.to(kind))
        if tensors[-1].is_floating_point():
            tensors[-1].fill_(math.nan)
        return tensors


def arguments_of(mod: tvm.IRModule) -> Arguments:
    """Return the arguments of the program `main`."""
    buffers = mod["main"].params
    return Arguments(tuple(tuple(int(d) for d in b.shape) for b in buffers), tuple(str(b.dtype) for b in buffers))


def operations_of(mod: tvm.IRModule) -> int:
    """Return the floating-point operations of one run of `main`, a multiply-add counted as two."""
    return round(estimate_tir_flops(mod))


@dataclass(frozen=True)
class Built:
    """A program as a shared object."""

    library: str
    """its path"""
    arguments: Arguments
    rule: str
    """what scheduled it: a rule's name, `record`, or "" where nothing did"""


def build(mod: tvm.IRModule, target: tvm.target.Target, folder: Path, logs: Path | None = None) -> Built:
    """Schedule the program `main` as a network's are, and build it into `folder`.

    Args:
        logs: tuning logs whose records are preferred to the rules' defaults; none by default.
    """
    schedule, rule = _recorded(mod, target, logs) or default_schedule(mod["main"], target)
    executable = lowering.build(mod if schedule is None else schedule.mod, target)
    path = Path(tempfile.mkdtemp(dir=folder)) / "program.so"
    export_library(executable, target, path, linker_of(target))
    return Built(str(path), arguments_of(mod), rule)


Run = Callable[[Sequence[torch.Tensor]], Callable[[], None]]
"""Given a program's arguments, returns what runs it on them, on a GPU in torch's current stream."""


def build_plain(mod: tvm.IRModule) -> Run:
    """Return the program `main` for this CPU as it is written, its outermost loops on all cores: slow, and right."""
    sch = s_tir.Schedule(mod)
    for block in blocks_of(sch):
        spatial = []
        for loop, axis in zip(sch.get_loops(block), sch.get(block).iter_vars, strict=False):
            if axis.iter_type != tirx.IterVar.DataPar:
                break
            spatial.append(loop)
        if spatial:
            with contextlib.suppress(s_tir.ScheduleError):  # on one core, then
                sch.parallel(sch.fuse(*spatial))
    # the CPU's own features: it converts half types by an instruction
    return _on_tensors(tvm.compile(sch.mod, tvm.target.Target(host_cpu()))["main"], "cpu")


def load(built: Built, device: str) -> Run:
    """Load a built program; `device` is `cuda` or `cpu`."""
    return _on_tensors(tvm.runtime.load_module(built.library)["main"], device)


def _on_tensors(function: Any, device: str) -> Run:
    def bind(tensors: Sequence[torch.Tensor]) -> Callable[[], None]:
        # once: handing tensors over may order streams, which the capture of a graph does not allow
        arguments = [tvm_ffi.from_dlpack(tensor) for tensor in tensors]

        def launch() -> None:
            if device == "cpu":
                run_on_pool(function, *arguments)
                return
            with tvm_ffi.use_raw_stream(tvm_ffi.device("cuda", 0), torch.cuda.current_stream().cuda_stream):
                function(*arguments)

        return launch

    return bind


def relative_error(actual: torch.Tensor, expected: torch.Tensor) -> float:
    """Return ||actual - expected|| / ||expected||, NaN where an element was not written."""
    actual, expected = (tensor.detach().to("cpu", torch.float64) for tensor in (actual, expected))
    return float((actual - expected).norm() / (expected.norm() or 1.0))


@lru_cache(maxsize=1)
def _records(target: tvm.target.Target, logs: Path) -> TuningRecords:
    return TuningRecords(target, logs)


def _recorded(mod: tvm.IRModule, target: tvm.target.Target, logs: Path | None) -> tuple[s_tir.Schedule, str] | None:
    found = _records(target, logs).find(mod["main"]) if logs is not None else None
    return None if found is None else (found.schedule, "record")


def describe(shapes: Sequence[Sequence[int]]) -> str:
    """Return shapes in a few letters: `32x56x56x64, 64x64`."""
    return ", ".join("x".join(map(str, shape)) for shape in shapes)
