# SPDX-License-Identifier: Apache-2.0
"""Whole networks as users write them, those of `benchmarks/network_list.py` in small, compiled and compared."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from command_line import TESTS
from reference import relative_norm

import tvm_involution as ti
from tvm_involution.frontend.explain import explain
from tvm_involution.frontend.importer import export_module
from tvm_involution.nn.build import init_weights


def _network_list() -> ModuleType:
    spec = importlib.util.spec_from_file_location("network_list", TESTS.parent / "benchmarks" / "network_list.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


LIST = _network_list()
# sizes that fill no tile, and the involutions that each has
SMALL: dict[str, tuple[dict[str, Any], int]] = {
    "hyperspectral": ({"width": 48, "bands": 21, "patches": 2, "side": 9, "depth": 1}, 1),
    "unet": ({"width": 8, "depth": 2, "side": 26}, 3),
    "generator": ({"width": 8, "steps": 2, "noise": 10}, 1),
    "detector": ({"width": 4, "side": 32}, 6),
    "volumes": ({"width": 8, "size": (5, 10, 14), "depth": 1}, 1),
    "signals": ({"width": 8, "samples": 203, "depth": 1}, 1),
}


def test_all_are_tried() -> None:
    assert SMALL.keys() == LIST.NETWORKS.keys()


@pytest.mark.parametrize("name", SMALL)
def test_network(tmp_path: Path, rng, name: str) -> None:
    sizes, involutions = SMALL[name]
    module, x = LIST.NETWORKS[name](**sizes)
    init_weights(module)
    module.eval()
    x = torch.from_numpy(rng.standard_normal(x.shape).astype("float32"))
    found = explain(export_module(module, [x])).involutions
    assert [one.recognised for one in found] == [True] * involutions
    library = ti.compile((module, x))
    assert not library.notes
    library.save(tmp_path / "net.so")
    actual = ti.load(tmp_path / "net.so")(x).numpy()
    with torch.no_grad():
        expected = module.double()(x.double()).numpy()
    assert relative_norm(actual, expected) < 1e-5
