# SPDX-License-Identifier: Apache-2.0
"""Every involution of the first network by itself: ours, the paper's kernel, torch; beside the time its bytes take."""

from __future__ import annotations

import math
import secrets
from collections.abc import Callable
from pathlib import Path

import torch
import tvm
from torch import Tensor, nn

from tvm_involution.runtime.threads import physical_cores
from tvm_involution.target import resolve_target

from .. import paper_kernel, peers
from ..involutions import (
    FUSED,
    GIVEN,
    GIVEN_NCHW,
    OURS,
    SPAN,
    Case,
    Layer,
    OurProgram,
    bind,
    layers_of,
    make_case,
    our_program,
    reference,
    span,
)
from ..programs import Built, build, load, relative_error
from ..results import FAILED, Results, Row, rounded
from ..roofs import Roofs, read_roofs
from ..settings import Settings
from ..timing import Timing, sets_needed, time_launches
from ..workers import Outcome, Worker, do_all

PAPER, UNFOLD, COMPILED, TORCH_SPAN = "paper", "torch unfold", "torch.compile unfold", "torch span"
CONTENDERS = (FUSED, GIVEN, GIVEN_NCHW, SPAN, TORCH_SPAN, PAPER, UNFOLD)
_SPANS = (SPAN, TORCH_SPAN)
_DTYPES = ("float16", "float32")
_BUILD_SECONDS, _SECONDS = 120.0, 60.0


def operators(settings: Settings, results: Results) -> None:
    """Time all contenders on all layers; those that torch has to compile last, which takes longest."""
    layers = list(layers_of(settings.models[0], settings.image_size))
    dtypes = [dtype for dtype in _DTYPES if dtype in settings.precisions]
    # the batches that the bounds are stated for before that of 1
    batches = sorted(settings.batches, key=lambda batch: (batch == 1, batch))
    groups = [(dtype, batch) for dtype in dtypes for batch in batches]
    for contenders in (CONTENDERS, (COMPILED,)):
        wanted = [name for name in contenders if settings.wants(name)]
        for dtype, batch in groups:
            _measure_group(settings, results, layers, dtype, batch, wanted)


def _measure_group(
    settings: Settings, results: Results, layers: list[Layer], dtype: str, batch: int, contenders: list[str]
) -> None:
    missing = [
        (layer, name)
        for layer in layers
        for name in contenders
        if results.row("operators", **_key(layer, batch, dtype, name)) is None
    ]
    target, roofs = resolve_target(settings.target), read_roofs(results, dtype)
    ours = [one for one in missing if one[1] in OURS]
    seed = secrets.randbits(31)
    jobs = [(name, layer, batch, dtype, seed, target, settings.scratch) for layer, name in ours]
    built: dict[tuple[Layer, str], Outcome] = {}
    for number, outcome in do_all(settings, build_ours, jobs, _BUILD_SECONDS, physical_cores()):
        built[ours[number]] = outcome
    with Worker(settings) as worker:
        for layer, name in missing:
            outcome = built.get((layer, name), Outcome(failure=paper_kernel.missing() if name == PAPER else None))
            if outcome.failure is None:
                arguments = (name, layer, batch, dtype, seed, settings.device, outcome.value)
                outcome = worker.do(measure, *arguments, seconds=_SECONDS)
            key = _key(layer, batch, dtype, name)
            if outcome.failure is None:
                work = work_of(layer, batch, getattr(torch, dtype).itemsize, name)
                results.put("operators", key, **_fields(*outcome.value, *work, roofs))
            else:
                results.put("operators", key, **{FAILED: outcome.failure})


def _key(layer: Layer, batch: int, dtype: str, name: str) -> Row:
    return {"layer": layer.label(), "batch": batch, "precision": dtype, "contender": name}


def _fields(timing: Timing, error: float, extra: Row, moved: int, operations: int, roofs: Roofs) -> Row:
    floor = None if roofs.gbs is None else moved / roofs.gbs / 1e3
    return {
        **timing.fields(),
        "error": rounded(error, 3),
        "bytes": moved,
        "operations": operations,
        "floor_us": rounded(floor),
        "share_of_floor": floor and rounded(floor / timing.median_us),
        **extra,
    }


def work_of(layer: Layer, batch: int, itemsize: int, name: str) -> tuple[int, int]:
    """Return the bytes that a contender must read and write, each array once, and its operations."""
    pixels = batch * math.prod(layer.out)
    x, out = batch * layer.height * layer.width * layer.channels, pixels * layer.channels
    hidden, kernel, weights = pixels * layer.hidden, pixels * layer.taps, layer.taps * (layer.hidden + 1)
    spanning, aggregating = 2 * kernel * layer.hidden, 2 * out * layer.kernel_size**2
    if name in _SPANS:
        return itemsize * (hidden + weights + kernel), spanning
    if name == FUSED:
        return itemsize * (x + out + hidden + weights), spanning + aggregating
    return itemsize * (x + out + kernel), aggregating


# What follows runs in the worker processes.


def build_ours(
    name: str, layer: Layer, batch: int, dtype: str, seed: int, target: tvm.target.Target, folder: Path
) -> tuple[OurProgram, Built]:
    """Build our program, whose weights come along packed."""
    program = our_program(name, layer, batch, target, make_case(layer, 1, dtype, "cpu", seed))
    return program, build(program.mod, target, folder)


def measure(
    name: str,
    layer: Layer,
    batch: int,
    dtype: str,
    seed: int,
    device: str,
    ours: tuple[OurProgram, Built] | None,
) -> tuple[Timing, float, Row]:
    """Check and time one contender; return its time, its relative error and what else is known.

    Args:
        seed: of the weights.
        ours: from `build_ours`, for one of ours.
    """
    moved, _ = work_of(layer, batch, getattr(torch, dtype).itemsize, name)
    cases = [make_case(layer, batch, dtype, device, seed) for _ in range(sets_needed(moved, device))]
    contender = _contender(name, layer, device, ours)
    launches = [contender(case) for case in cases]
    if name in _SPANS:
        expected = span(cases[0].hidden, cases[0].weight, cases[0].bias, torch.float64)
    else:
        expected = reference(layer, cases[0], fused=name == FUSED)
    error = relative_error(launches[0](), expected)
    del expected
    return time_launches(launches, device), error, {} if ours is None else {"rule": ours[1].rule}


def _contender(
    name: str, layer: Layer, device: str, ours: tuple[OurProgram, Built] | None
) -> Callable[[Case], Callable[[], Tensor]]:
    """Return what takes a case and returns what runs the contender on it once, for (N, C, OH, OW)."""
    if ours is not None:
        program, built = ours
        bound = load(built, device)

        def bind_ours(case: Case) -> Callable[[], Tensor]:
            arguments, out = bind(program, case)
            run = bound(arguments)

            def launch() -> Tensor:
                run()
                return out

            return launch

        return bind_ours
    if name == TORCH_SPAN:
        return _bind_linear
    if name == PAPER:
        sizes = layer.kernel_size, layer.stride, layer.dilation
        return lambda case: lambda: paper_kernel.involution(case.x, case.kernel, *sizes)
    peer = (peers.compiled_unfold_involution if name == COMPILED else peers.unfold_involution)(layer)
    return lambda case: lambda: peer(case.x, case.kernel)


def _bind_linear(case: Case) -> Callable[[], Tensor]:
    pixels = case.hidden.permute(0, 2, 3, 1).contiguous()
    return lambda: nn.functional.linear(pixels, case.weight, case.bias).permute(0, 3, 1, 2)
