# SPDX-License-Identifier: Apache-2.0
"""Does a candidate compute what its program says? The program itself, unscheduled on this CPU, is the reference."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import tvm
from tvm.s_tir import meta_schedule as ms

from ..errors import UserError
from ..runtime.arrays import numpy_dtype
from ..target import reference_cpu
from .fleet import LostDeviceError
from .measure import Measurer
from .tasks import TuningTask

TOLERANCE = {"float64": 1e-12, "float32": 1e-5}
_HALF_TOLERANCE = 1e-2


class Verifier:
    """Random inputs and expected outputs of one task, made when first asked for."""

    def __init__(self, task: TuningTask) -> None:
        self._task = task
        self._arrays: list[np.ndarray] | None = None
        self._expected: list[np.ndarray] = []

    def error(self, measurer: Measurer, artifact: Path) -> str | None:
        """Run a built candidate; return what is wrong with its results, or None.

        Outputs agree where ||actual - expected|| / ||expected|| is under 1e-5 in float32, 1e-2 in the half types.

        Raises:
            LostDeviceError: the devices that it ran on went.
            UserError: no device is left.
        """
        if self._arrays is None:
            self._prepare()
        assert self._arrays is not None
        try:
            outputs = measurer.run_once(artifact, self._arrays)
        except (LostDeviceError, UserError):
            raise
        except Exception as error:  # the worker process raises whatever it died of
            return f"crashed on random inputs: {str(error).strip().splitlines()[-1] if str(error).strip() else error!r}"
        for actual, expected in zip(outputs, self._expected, strict=True):
            wanted = expected.astype(np.float64)
            distance = np.linalg.norm(actual.astype(np.float64) - wanted) / (np.linalg.norm(wanted) or 1.0)
            if not distance <= TOLERANCE.get(str(actual.dtype), _HALF_TOLERANCE):
                return f"wrong results: relative norm {distance:.1e}"
        return None

    def _prepare(self) -> None:
        rng = np.random.default_rng()
        self._arrays = [_random(rng, info) for info in self._task.args_info]
        library = tvm.compile(self._task.mod, target=reference_cpu())
        tensors = []
        for array in self._arrays:
            tensor = tvm.runtime.empty(array.shape, str(array.dtype))
            tensor.copyfrom(array)
            tensors.append(tensor)
        library["main"](*tensors)
        self._expected = [tensor.numpy() for tensor in tensors]


def _random(rng: np.random.Generator, info: ms.arg_info.ArgInfo) -> np.ndarray:
    shape, dtype = [int(d) for d in info.shape], numpy_dtype(str(info.dtype))
    if dtype.kind in "iub":
        return rng.integers(0, 2, shape).astype(dtype)
    return rng.standard_normal(shape).astype(dtype)
