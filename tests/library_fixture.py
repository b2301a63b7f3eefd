# SPDX-License-Identifier: Apache-2.0
"""Small libraries built straight with TVM, so that tests of the runtime and the command line need no network."""

from __future__ import annotations

import dataclasses
import platform
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import tvm
from tvm import relax

from tvm_involution.runtime import KernelCoverage, LibraryMetadata, Preprocessing, TensorSpec
from tvm_involution.runtime.library_file import seal
from tvm_involution.runtime.tvm_runtime import tvm_version

PICTURE_SIZE = (8, 12)
COLOURS = ("red", "green", "blue")
PIXELS = {"red": (250, 0, 0), "green": (0, 250, 0), "blue": (0, 0, 250)}

METADATA = LibraryMetadata(
    name="small",
    task="unknown",
    inputs=(TensorSpec("x", ("batch", 4), "float32"),),
    outputs=(TensorSpec("y", ("batch", 4), "float32"),),
    batch_sizes=(1, 8),
    dtype="float32",
    preprocessing=None,
    classes=None,
    target={"kind": "llvm"},
    device_type="cpu",
    triple=f"{platform.machine()}-linux-gnu",
    cpu="generic",
    cpu_features=(),
    tvm_version=tvm_version(),
    package_version="0.1.0",
    weights_origin="none",
    parameters=0,
    kernels=KernelCoverage(total=3, record=0, rule=2, fallback=1),
    created="2026-01-01T00:00:00+00:00",
)


def build_library(path: Path, body: Callable[..., relax.Expr], **changes: object) -> Path:
    """Compile `body` for each batch size and seal it at `path`.

    Args:
        body: takes a relax.Var for each input of the metadata, returns the expression of one output or a relax.Tuple.
        changes: fields of `METADATA` that differ.
    """
    metadata = dataclasses.replace(METADATA, **changes)  # type: ignore[arg-type]
    builder = relax.BlockBuilder()
    for batch in metadata.batch_sizes:
        parameters = [
            relax.Var(spec.name, relax.TensorType(spec.shape_for(batch), spec.dtype)) for spec in metadata.inputs
        ]
        with builder.function(f"batch_{batch}", parameters):
            with builder.dataflow():
                result = builder.emit_output(body(*parameters))
            builder.emit_func_output(result)
    tvm.compile(builder.finalize(), target="llvm").export_library(str(path))
    seal(path, metadata)
    return path


def affine_library(path: Path, scale: float = 2.0, batch_sizes: Sequence[int] = (1, 8), **changes: object) -> Path:
    """`y = scale * x + 1`, (batch, 4) float32."""
    return build_library(
        path,
        lambda x: relax.op.add(relax.op.multiply(x, relax.const(scale, "float32")), relax.const(1.0, "float32")),
        batch_sizes=tuple(batch_sizes),
        **changes,
    )


def pair_library(path: Path) -> Path:
    """Two inputs `a` and `b`, (batch, 4) float32; two outputs `sum` and `product`."""
    return build_library(
        path,
        lambda a, b: relax.Tuple([relax.op.add(a, b), relax.op.multiply(a, b)]),
        inputs=tuple(TensorSpec(name, ("batch", 4), "float32") for name in ("a", "b")),
        outputs=tuple(TensorSpec(name, ("batch", 4), "float32") for name in ("sum", "product")),
    )


def colour_library(path: Path, dtype: str = "float32", **changes: object) -> Path:
    """Classify a picture, (batch, 3, 8, 12), by the mean of each channel: `logits` of red, green and blue."""
    return build_library(
        path,
        lambda x: relax.op.astype(relax.op.mean(relax.op.astype(x, "float32"), axis=[2, 3]), dtype),
        **{
            "task": "classification",
            "inputs": (TensorSpec("input", ("batch", 3, *PICTURE_SIZE), dtype, "NCHW"),),
            "outputs": (TensorSpec("logits", ("batch", 3), dtype),),
            "dtype": dtype,
            "preprocessing": Preprocessing(12, 12, (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)),
            "classes": COLOURS,
            **changes,
        },
    )


WHOLE = Preprocessing(None, None, (123.675, 116.28, 103.53), (58.395, 57.12, 57.375))


def whole_library(path: Path, task: str, outputs: dict[str, np.ndarray], **changes: object) -> Path:
    """A network for whole pictures, (1, 3, 8, 12), that answers `outputs` whatever it sees."""

    def body(x: relax.Var) -> relax.Expr:
        answers = [relax.const(value, str(value.dtype)) for value in outputs.values()]
        return relax.Tuple(answers) if len(answers) > 1 else answers[0]

    specs = (TensorSpec(name, ("batch", *a.shape[1:]), str(a.dtype)) for name, a in outputs.items())
    return build_library(
        path,
        body,
        **{
            "task": task,
            "batch_sizes": (1,),
            "inputs": (TensorSpec("input", ("batch", 3, *PICTURE_SIZE), "float32", "NCHW"),),
            "outputs": tuple(specs),
            "preprocessing": WHOLE,
            "classes": COLOURS,
            **changes,
        },
    )
