# SPDX-License-Identifier: Apache-2.0
"""Networks in int8 beside peers: who quantizes, and by which pictures."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import numpy as np
import pytest
from command_line import TESTS, run_cli
from library_fixture import affine_library

from tvm_involution.bench.calibration import batches, calibration_pictures
from tvm_involution.bench.compare import compare, time_layers
from tvm_involution.bench.contenders import select_peers
from tvm_involution.bench.contenders.openvino import OpenVino
from tvm_involution.bench.effort import Effort
from tvm_involution.bench.subject import Subject
from tvm_involution.errors import UserError


def test_ours_beside_who_cannot(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(TESTS), str(TESTS.parent)]))
    subject = Subject("bench_networks:two_convolutions", 1, batch=2, dtype="int8", image_size=(8, 8))
    quick = Effort(rounds=1, calls=1, timeout=120)
    ours, torch = compare([subject], select_peers(["torch"]), quick).results
    assert ours.failure is None and ours.dtype == "int8" and 1e-4 < ours.relative_error < 0.1
    assert torch.failure == "no int8 on a CPU" and not torch.seconds
    table = time_layers(subject, quick)
    assert any("conv2d" in layer.kernel and "cast" in layer.kernel for layer in table.layers)


def test_pictures(tmp_path: Path) -> None:
    """All contenders see the same ones, in whole batches."""
    library = affine_library(tmp_path / "affine.so")
    subject = Subject("affine", 1, given_library=library)
    (first,), (again,) = (calibration_pictures(subject) for _ in range(2))
    assert len(first) == 4 and first.dtype == np.float32 and np.array_equal(first, again) and first.std() > 0.5
    np.save(tmp_path / "own.npy", 7 * first)
    (own,) = calibration_pictures(Subject("affine", 1, given_library=library, calibration=tmp_path / "own.npy"))
    assert np.array_equal(own, 7 * first)
    numbers = np.arange(5)
    assert [call[0].tolist() for call in batches([numbers], 3)] == [[0, 1, 2], [3, 4, 0]]


def test_openvino_without_nncf(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install nncf"):
        OpenVino().build(Subject("rednet26", 1, tmp_path, dtype="int8"))


def test_calibration_is_for_int8(tmp_path: Path) -> None:
    line = run_cli("bench", "rednet26", "--calibration", str(tmp_path)).error_line()
    assert "calibration is for int8 alone" in line
