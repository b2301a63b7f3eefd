# SPDX-License-Identifier: Apache-2.0
"""ONNX Runtime."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..calibration import batches, calibration_pictures
from ..subject import Subject
from .contender import INT8, Contender


class OnnxRuntime(Contender):
    """An `InferenceSession` of the CPU provider, with all graph optimizations (its default).

    For int8 `quantize_static` makes the file: QDQ, bytes by 8-bit weights per channel.
    """

    name = "onnxruntime"
    package = "onnxruntime"
    modules = ("onnxruntime", "onnx", "onnxscript", "torch")
    extra = "compile,bench"
    settings = "CPUExecutionProvider, all graph optimizations, one intra-op pool"
    # its CPU kernels for convolutions take no half types
    dtypes = ("float32", "int8")

    def build(self, subject: Subject) -> None:
        """Export the network to ONNX, and quantize it for int8."""
        from ..network import export_onnx

        export_onnx(subject, subject.folder / _EXPORTED)
        if subject.dtype == INT8:
            _quantize(subject)

    def size_bytes(self, subject: Subject) -> int:
        """Return the size of the ONNX file."""
        return _file(subject).stat().st_size

    def load(self, subject: Subject, inputs: Sequence[np.ndarray]) -> Callable[[], Any]:
        """See `Contender.load`."""
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = subject.threads
        session = onnxruntime.InferenceSession(_file(subject), options, providers=["CPUExecutionProvider"])
        feed = {node.name: array for node, array in zip(session.get_inputs(), inputs, strict=True)}
        return lambda: session.run(None, feed)

    def to_arrays(self, outputs: Any) -> list[np.ndarray]:
        """See `Contender.to_arrays`."""
        return list(outputs)


_EXPORTED = "onnxruntime.onnx"


def _file(subject: Subject) -> Path:
    return subject.folder / ("onnxruntime-int8.onnx" if subject.dtype == INT8 else _EXPORTED)


def _quantize(subject: Subject) -> None:
    import onnx
    from onnxruntime.quantization import CalibrationDataReader, QuantType, quant_pre_process, quantize_static

    prepared = subject.folder / "onnxruntime-prepared.onnx"
    quant_pre_process(subject.folder / _EXPORTED, prepared)
    names = [node.name for node in onnx.load(prepared, load_external_data=False).graph.input]
    calls = iter(batches(calibration_pictures(subject), subject.batch or 1))

    class Shown(CalibrationDataReader):
        def get_next(self) -> dict[str, np.ndarray] | None:
            call = next(calls, None)
            return None if call is None else dict(zip(names, call, strict=True))

    quantize_static(
        prepared,
        _file(subject),
        Shown(),
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
    )
