# SPDX-License-Identifier: Apache-2.0
"""ONNX Runtime."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ..subject import Subject
from .contender import Contender


class OnnxRuntime(Contender):
    """An `InferenceSession` of the CPU provider, with all graph optimizations (its default)."""

    name = "onnxruntime"
    package = "onnxruntime"
    modules = ("onnxruntime", "onnx", "onnxscript", "torch")
    extra = "compile,bench"
    settings = "CPUExecutionProvider, all graph optimizations, one intra-op pool"
    # its CPU kernels for convolutions take float32 alone
    dtypes = ("float32",)

    def build(self, subject: Subject) -> None:
        """Export the network to ONNX."""
        from ..network import export_onnx

        export_onnx(subject, subject.folder / _FILE)

    def size_bytes(self, subject: Subject) -> int:
        """Return the size of the ONNX file."""
        return (subject.folder / _FILE).stat().st_size

    def load(self, subject: Subject, inputs: Sequence[np.ndarray]) -> Callable[[], Any]:
        """See `Contender.load`."""
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = subject.threads
        session = onnxruntime.InferenceSession(subject.folder / _FILE, options, providers=["CPUExecutionProvider"])
        feed = {node.name: array for node, array in zip(session.get_inputs(), inputs, strict=True)}
        return lambda: session.run(None, feed)

    def to_arrays(self, outputs: Any) -> list[np.ndarray]:
        """See `Contender.to_arrays`."""
        return list(outputs)


_FILE = "onnxruntime.onnx"
