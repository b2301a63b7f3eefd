# SPDX-License-Identifier: Apache-2.0
"""Every kernel of the first network by itself: where its time goes, and how far each is from its roof."""

from __future__ import annotations

from tvm_involution.runtime.threads import physical_cores
from tvm_involution.target import resolve_target
from tvm_involution.tuning.tasks import Program, extract_programs

from ..models import find_network
from ..programs import Built, arguments_of, build, describe, load, operations_of
from ..results import FAILED, Results, Row, rounded
from ..roofs import Roofs, read_roofs
from ..settings import Settings, dtype_of
from ..timing import Timing, sets_needed, time_launches
from ..workers import Worker, do_all

_BUILD_SECONDS, _SECONDS = 120.0, 60.0


def layers(settings: Settings, results: Results) -> None:
    """Time the kernels with their rules' defaults."""
    measure_layers(settings, results, tuned=False)


def measure_layers(settings: Settings, results: Results, tuned: bool) -> None:
    """Time the kernels of the first network in the first precision, the largest batch first.

    Args:
        tuned: with the records of OUT/tuning_logs.
    """
    for batch in sorted(settings.batches, reverse=True):
        _measure_batch(settings, results, settings.precisions[0], batch, tuned)


def _measure_batch(settings: Settings, results: Results, precision: str, batch: int, tuned: bool) -> None:
    target, roofs = resolve_target(settings.target), read_roofs(results, precision)
    logs = settings.tuning_logs if tuned else None
    network = find_network(settings.models[0], settings.image_size)
    programs = extract_programs(network, target, batch=batch, dtype=dtype_of(precision), tf32=precision == "tf32")
    missing: list[tuple[Row, Program]] = []
    for program in programs:
        shapes = describe(arguments_of(program.mod).shapes)
        key = {"kernel": program.name, "shapes": shapes, "batch": batch, "precision": precision, "tuned": tuned}
        if results.row("layers", **key) is None:
            missing.append((key, program))
    missing.sort(key=lambda one: -one[1].calls * (roofs.floor_us(*_counts(one[1])) or _counts(one[1])[0]))
    jobs = [(program.mod, target, settings.scratch, logs) for _, program in missing]
    built = dict(do_all(settings, build, jobs, _BUILD_SECONDS, physical_cores()))
    with Worker(settings) as worker:
        for number, (key, program) in enumerate(missing):
            outcome = built[number]
            if outcome.failure is None:
                rule = outcome.value.rule
                outcome = worker.do(time_program, outcome.value, settings.device, seconds=_SECONDS)
            if outcome.failure is None:
                results.put("layers", key, rule=rule, **_fields(program, outcome.value, roofs))
            else:
                results.put("layers", key, **{FAILED: outcome.failure})


def time_program(built: Built, device: str) -> Timing:
    """Time a built program on random arrays that take turns."""
    run = load(built, device)
    sets = [built.arguments.random(device) for _ in range(sets_needed(built.arguments.bytes, device))]
    return time_launches([run(arrays) for arrays in sets], device)


def _counts(program: Program) -> tuple[int, int]:
    return arguments_of(program.mod).bytes, operations_of(program.mod)


def _fields(program: Program, timing: Timing, roofs: Roofs) -> Row:
    moved, operations = _counts(program)
    floor = roofs.floor_us(moved, operations)
    return {
        **timing.fields(),
        "calls": program.calls,
        "total_us": rounded(program.calls * timing.median_us),
        "bytes": moved,
        "operations": operations,
        "gbs": rounded(moved / timing.median_us / 1e3),
        "gflops": rounded(operations / timing.median_us / 1e3),
        "floor_us": rounded(floor),
        "share_of_roof": floor and rounded(floor / timing.median_us),
    }
