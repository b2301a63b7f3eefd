# SPDX-License-Identifier: Apache-2.0
"""A library compiled here, in a process that has neither torch nor the compiler."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ... import __version__
from ..calibration import random_pictures
from ..subject import Subject
from .contender import INT8, Contender


class Ours(Contender):
    """`tvm_involution.compile`, then `tvm_involution.load`."""

    name = "ours"
    package = "apache-tvm"
    modules = ()
    extra = "compile"
    dtypes = (*Contender.dtypes, INT8)
    settings = "compiled for this CPU"

    def version(self) -> str:
        """Return this package's version and TVM's."""
        return f"{__version__}, TVM {super().version()}"

    def build(self, subject: Subject) -> None:
        """Compile the library."""
        import tvm_involution as ti

        compile_network = ti.compile  # says what to install where torch is missing
        import torch

        from ..network import input_shapes

        calibration = None
        if subject.dtype == INT8:
            calibration = subject.calibration or random_pictures(input_shapes(subject))
        torch.manual_seed(0)
        compile_network(
            subject.model,
            "llvm",
            checkpoint=subject.checkpoint,
            batch=subject.batch,
            dtype=subject.dtype,
            calibration=calibration,
            image_size=subject.image_size,
            tuning_logs=subject.tuning_logs,
        ).save(subject.library)

    def size_bytes(self, subject: Subject) -> int:
        """Return the library's size."""
        return subject.library.stat().st_size

    def load(self, subject: Subject, inputs: Sequence[np.ndarray]) -> Callable[[], Any]:
        """See `Contender.load`."""
        from ...runtime import load
        from ...runtime.arrays import numpy_dtype

        network = load(subject.library)
        specs = network.metadata.inputs
        arrays = [array.astype(numpy_dtype(spec.dtype)) for array, spec in zip(inputs, specs, strict=True)]
        return lambda: network(*arrays)

    def to_arrays(self, outputs: Any) -> list[np.ndarray]:
        """See `Contender.to_arrays`."""
        parts = outputs if isinstance(outputs, tuple) else (outputs,)
        arrays = [np.asarray(part) for part in parts]
        return [array.astype(np.float32) if array.dtype.name == "bfloat16" else array for array in arrays]
