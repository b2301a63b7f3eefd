# SPDX-License-Identifier: Apache-2.0
"""Search the schedules of the first network, in the first precision, the largest batch first."""

from __future__ import annotations

import tvm_involution as ti
from tvm_involution.tuning.tuner import TuningProgress

from ..results import FAILED, Results, rounded
from ..settings import Settings
from ..workers import NO_TIME, one_line

_LEAST_SECONDS = 10.0
# what the search began before its end comes after the minutes that it is given
_SEARCH = 0.9


def tune(settings: Settings, results: Results) -> None:
    """Give each batch an equal share of the time that is left; the records are in OUT/tuning_logs as they come."""
    precision = settings.precisions[0]
    batches = sorted(settings.batches, reverse=True)
    for position, batch in enumerate(batches):
        key = {"model": settings.models[0], "precision": precision, "batch": batch}
        seconds = settings.seconds_left / (len(batches) - position)
        if precision == "tf32" or seconds < _LEAST_SECONDS:
            results.put("tune", key, **{FAILED: NO_TIME if seconds < _LEAST_SECONDS else "tf32 cannot be tuned"})
            continue
        try:
            run = ti.tune(
                settings.models[0],
                settings.target,
                minutes=seconds * _SEARCH / 60,
                batch=batch,
                dtype=precision,
                image_size=(settings.image_size,) * 2,
                log_dir=settings.tuning_logs,
                compare=False,  # a step of its own
                progress=_report,
            )
        except Exception as error:  # the other batches are tuned all the same
            results.put("tune", key, **{FAILED: one_line(error)})
            continue
        defaults, best = (rounded(1e3 * run.network_seconds(tuned)) for tuned in (False, True))
        results.put("tune", key, trials=run.trials, default_ms=defaults, tuned_ms=best)


def _report(run: TuningProgress) -> None:
    print(f"{run.phase}: {run.trials} trials, {1e3 * run.network_seconds(True):.3f} ms", flush=True)
