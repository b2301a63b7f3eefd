# SPDX-License-Identifier: Apache-2.0
"""Is every kernel right? Those of the first network, and involutions of odd sizes, on fresh random inputs.

A network's kernels are compared with the same programs as they are written, without a schedule, on this machine's CPU;
the involutions with torch in float64. Outputs are full of NaN before, so what a kernel leaves out is seen.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import tvm

from tvm_involution.runtime.threads import physical_cores
from tvm_involution.target import resolve_target
from tvm_involution.tuning.tasks import extract_programs

from ..involutions import FUSED, OURS, SPAN, Layer, bind, make_case, our_program, reference, span
from ..models import find_network
from ..programs import arguments_of, build, build_plain, describe, load, relative_error
from ..results import FAILED, Results, Row, rounded
from ..settings import TOLERANCE, Settings, dtype_of
from ..workers import NO_TIME, Outcome, do_all

_SECONDS = 120.0
SMALL_BATCHES = (2, 1)
_DTYPES = ("float16", "float32", "bfloat16")
# channels and groups that no tile divides, odd sizes, every stride and dilation
LAYERS = (
    Layer(30, 13, 11, 3, 1, 7, group_channels=6),
    Layer(36, 9, 14, 5, 2, 10, group_channels=12),
    Layer(48, 15, 7, 7, 1, 12),
    Layer(34, 17, 13, 7, 2, 9, group_channels=17),
    Layer(32, 14, 14, 3, 1, 8, dilation=2),
    Layer(20, 11, 19, 7, 1, 5, dilation=2, group_channels=5),
    Layer(64, 56, 56, 7, 1, 16),
)


def check(settings: Settings, results: Results) -> None:
    """Check the kernels of the network in every precision, the involutions between; then large batches in the first."""
    first, *others = settings.precisions
    network_kernels(settings, results, first, SMALL_BATCHES)
    involutions(settings, results)
    network_kernels(settings, results, first, sorted(set(settings.batches) - set(SMALL_BATCHES)))
    for precision in others:
        network_kernels(settings, results, precision, SMALL_BATCHES)


def network_kernels(settings: Settings, results: Results, precision: str, batches: Sequence[int]) -> None:
    """Check all kernels of the first network, whole batches of them: tiles and threads follow the batch."""
    target = resolve_target(settings.target)
    for batch in batches:
        programs = extract_programs(
            find_network(settings.models[0], settings.image_size),
            target,
            batch=batch,
            dtype=dtype_of(precision),
            tf32=precision == "tf32",
        )
        jobs = []
        for program in programs:
            shapes = describe(arguments_of(program.mod).shapes)
            key = {"kernel": program.name, "shapes": shapes, "batch": batch, "precision": precision}
            jobs.append((key, (program.mod, target, settings.device, settings.scratch)))
        _check_all(settings, results, check_program, jobs)


def involutions(settings: Settings, results: Results) -> None:
    """Check our involutions alone."""
    target = resolve_target(settings.target)
    jobs = []
    for dtype in [dtype for dtype in _DTYPES if dtype in settings.precisions]:
        for layer in LAYERS:
            for name in OURS:
                key = {"kernel": name, "shapes": layer.label(), "batch": 3, "precision": dtype}
                jobs.append((key, (name, layer, 3, dtype, target, settings.device, settings.scratch)))
    _check_all(settings, results, check_involution, jobs)


def _check_all(settings: Settings, results: Results, job: Any, jobs: list[tuple[Row, tuple]]) -> None:
    missing = [one for one in jobs if results.row("check", **one[0]) is None]
    processes = max(1, physical_cores() * 3 // 4)
    for number, outcome in do_all(settings, job, [arguments for _, arguments in missing], _SECONDS, processes):
        results.put("check", missing[number][0], **_fields(outcome, missing[number][0]["precision"]))


def _fields(outcome: Outcome, precision: str) -> Row:
    if outcome.failure is not None:
        return {"right": None if outcome.failure == NO_TIME else False, FAILED: outcome.failure}
    error = outcome.value["error"]
    fields = {**outcome.value, "error": rounded(error, 3)}
    return {**fields, "right": bool(error < TOLERANCE[precision])}


def check_program(mod: tvm.IRModule, target: tvm.target.Target, device: str, folder: Path) -> Row:
    """Run a program with its schedule and without, on the same random arrays."""
    arrays = arguments_of(mod).random("cpu")
    expected = [array.clone() for array in arrays]
    build_plain(mod)(expected)()
    built = build(mod, target, folder)
    own = [array.to(device) for array in arrays]
    load(built, device)(own)()
    return {"error": relative_error(own[-1], expected[-1]), "unwritten": _unwritten(own[-1]), "rule": built.rule}


def check_involution(
    name: str, layer: Layer, batch: int, dtype: str, target: tvm.target.Target, device: str, folder: Path
) -> Row:
    """Run one of our involutions on a random case."""
    case = make_case(layer, batch, dtype, device, secrets.randbits(31))
    program = our_program(name, layer, batch, target, case)
    built = build(program.mod, target, folder)
    arguments, out = bind(program, case)
    load(built, device)(arguments)()
    if name == SPAN:
        expected = span(case.hidden, case.weight, case.bias, torch.float64)
    else:
        expected = reference(layer, case, name == FUSED)
    return {"error": relative_error(out, expected), "unwritten": _unwritten(out), "rule": built.rule}


def _unwritten(out: torch.Tensor) -> int:
    """Return how many elements are NaN still."""
    return int(torch.isnan(out).sum())
