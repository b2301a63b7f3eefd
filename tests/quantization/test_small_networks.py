# SPDX-License-Identifier: Apache-2.0
"""The shipped networks in int8 answer as they do in float32."""

from __future__ import annotations

import numpy as np
import pytest
from command_line import TESTS

import tvm_involution as ti


@pytest.fixture
def datasets(monkeypatch):
    monkeypatch.syspath_prepend(str(TESTS.parent / "examples"))
    import small_datasets

    return small_datasets


def photos_to_calibrate(datasets) -> np.ndarray:
    rng = np.random.default_rng(1)
    crops = [datasets.random_crop(part, 96, rng) for part in datasets.training_parts() for _ in range(6)]
    return datasets.normalize(np.stack(crops))


def accuracy(library, held_out, path) -> float:
    library.save(path)
    network, images = ti.load(path), held_out.images
    answers = np.concatenate([network(images[i : i + 8]) for i in range(0, len(images), 8)]).argmax(1)
    return 100 * float((answers == held_out.labels).mean())


HASWELL = '{"kind": "llvm", "mcpu": "haswell", "mtriple": "x86_64-linux-gnu"}'


@pytest.mark.parametrize(
    ("name", "target"), [("rednet_digits", "llvm"), ("rednet_digits", HASWELL), ("rednet_photos", "llvm")]
)
def test_accuracy(datasets, name, target, tmp_path):
    """Within half a point of float32; on four times as many crops as are published, so that three do not decide."""
    if name == "rednet_digits":
        train, held_out = datasets.digits()
        shown = train.images[:64]
    else:
        shown, held_out = photos_to_calibrate(datasets), datasets.held_out_photos(crops=160)
    np.save(tmp_path / "shown.npy", shown)
    library = ti.compile(name, target, dtype="int8", calibration=tmp_path / "shown.npy", batch=8)
    metadata = library.metadata
    assert metadata.dtype == "int8" and metadata.inputs[0].dtype == metadata.outputs[0].dtype == "float32"
    assert sum(not layer.kept_because for layer in metadata.quantized) >= 0.9 * len(metadata.quantized)
    assert metadata.kernels.fallback == 0
    exact = accuracy(ti.compile(name, batch=8), held_out, tmp_path / "float32.so")
    assert accuracy(library, held_out, tmp_path / "int8.so") == pytest.approx(exact, abs=0.5)
