# SPDX-License-Identifier: Apache-2.0
"""OpenVINO."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import UserError
from ..calibration import batches, calibration_pictures
from ..subject import Subject
from .contender import INT8, Contender


class OpenVino(Contender):
    """A model compiled for the CPU with the latency hint, in the precision that is asked for.

    bfloat16 is its own default where the CPU has it, also of what NNCF, which quantizes for int8, leaves in float32;
    inputs and outputs stay float32.
    """

    name = "openvino"
    package = "openvino"
    modules = ("openvino", "onnx", "onnxscript", "torch")
    extra = "compile,bench"
    settings = "CPU, PERFORMANCE_HINT=LATENCY, INFERENCE_PRECISION_HINT as --dtype; int8 by NNCF"
    dtypes = ("float32", "bfloat16", "int8")

    def build(self, subject: Subject) -> None:
        """Export the network to ONNX, and quantize it for int8.

        Raises:
            UserError: there is no NNCF.
        """
        from ..network import export_onnx

        if subject.dtype == INT8 and importlib.util.find_spec("nncf") is None:
            raise UserError("int8 is quantized by NNCF, which is not installed: pip install nncf")
        exported = subject.folder / _EXPORTED
        export_onnx(subject, exported)
        if subject.dtype == INT8:
            import nncf
            import openvino

            shown = batches(calibration_pictures(subject), subject.batch or 1)
            # it shows each name an array, and lists by place only to models with several inputs
            model = openvino.Core().read_model(exported)
            quantized = nncf.quantize(model, nncf.Dataset(shown, lambda call: dict(enumerate(call))))
            openvino.save_model(quantized, _file(subject))

    def size_bytes(self, subject: Subject) -> int:
        """Return the size of the files that it reads."""
        path = _file(subject)
        weights = path.with_suffix(".bin").stat().st_size if path.suffix == ".xml" else 0
        return path.stat().st_size + weights

    def load(self, subject: Subject, inputs: Sequence[np.ndarray]) -> Callable[[], Any]:
        """See `Contender.load`."""
        import openvino

        settings = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": subject.threads}
        if subject.dtype != INT8:
            settings["INFERENCE_PRECISION_HINT"] = {"float32": "f32", "bfloat16": "bf16"}[subject.dtype or "float32"]
        core = openvino.Core()
        request = core.compile_model(core.read_model(_file(subject)), "CPU", settings).create_infer_request()
        arrays = list(inputs)
        return lambda: request.infer(arrays, share_inputs=True)

    def to_arrays(self, outputs: Any) -> list[np.ndarray]:
        """See `Contender.to_arrays`."""
        return [np.array(value) for value in outputs.values()]


_EXPORTED = "openvino.onnx"


def _file(subject: Subject) -> Path:
    return subject.folder / ("openvino.xml" if subject.dtype == INT8 else _EXPORTED)
