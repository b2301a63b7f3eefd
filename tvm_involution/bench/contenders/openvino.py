# SPDX-License-Identifier: Apache-2.0
"""OpenVINO."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ..subject import Subject
from .contender import Contender


class OpenVino(Contender):
    """A model compiled for the CPU with the latency hint, in the precision that is asked for.

    bfloat16 is its own default where the CPU has it; inputs and outputs stay float32.
    """

    name = "openvino"
    package = "openvino"
    modules = ("openvino", "onnx", "onnxscript", "torch")
    extra = "compile,bench"
    settings = "CPU, PERFORMANCE_HINT=LATENCY, INFERENCE_PRECISION_HINT as --dtype"
    dtypes = ("float32", "bfloat16")

    def build(self, subject: Subject) -> None:
        """Export the network to ONNX."""
        from ..network import export_onnx

        export_onnx(subject, subject.folder / _FILE)

    def size_bytes(self, subject: Subject) -> int:
        """Return the size of the ONNX file."""
        return (subject.folder / _FILE).stat().st_size

    def load(self, subject: Subject, inputs: Sequence[np.ndarray]) -> Callable[[], Any]:
        """See `Contender.load`."""
        import openvino

        precision = {"float32": "f32", "bfloat16": "bf16"}[subject.dtype or "float32"]
        settings = {
            "INFERENCE_PRECISION_HINT": precision,
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": subject.threads,
        }
        core = openvino.Core()
        request = core.compile_model(core.read_model(subject.folder / _FILE), "CPU", settings).create_infer_request()
        arrays = list(inputs)
        return lambda: request.infer(arrays, share_inputs=True)

    def to_arrays(self, outputs: Any) -> list[np.ndarray]:
        """See `Contender.to_arrays`."""
        return [np.array(value) for value in outputs.values()]


_FILE = "openvino.onnx"
