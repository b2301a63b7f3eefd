# SPDX-License-Identifier: Apache-2.0
"""What tests share: fresh random numbers, and one small compiled network."""

from __future__ import annotations

import logging
import os
import secrets
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

import tvm_involution as ti
from tvm_involution.nn.build import init_weights


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what takes long, unless it is asked for by its marker."""
    for marker in ("every_sample", "every_kernel", "every_depth", "aarch64"):
        if marker not in config.getoption("-m"):
            for item in items:
                if item.get_closest_marker(marker):
                    item.add_marker(pytest.mark.skip(reason=f"takes long; -m {marker} runs it"))


@pytest.fixture(scope="session", autouse=True)
def no_tuning_logs_of_the_user(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Keep what the user has tuned out of the tests, and of the processes they start."""
    os.environ["XDG_DATA_HOME"] = str(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="session", autouse=True)
def no_kernels_in_the_background() -> None:
    """Keep involutions in their plain form where a test does not ask for compiled kernels."""
    os.environ["TVM_INVOLUTION_KERNELS"] = "off"


@pytest.fixture(autouse=True)
def no_rule_trips(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail where a schedule rule raised: in use the next rule takes over, which nobody would notice here.

    The marker `rules_may_trip` allows it.
    """
    trips: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: trips.append(record.getMessage())  # type: ignore[method-assign]
    log = logging.getLogger("tvm_involution.schedules")
    log.addHandler(handler)
    yield
    log.removeHandler(handler)
    assert not trips or request.node.get_closest_marker("rules_may_trip"), trips


@pytest.fixture
def rng() -> np.random.Generator:
    """A generator with a fresh seed, printed where the test fails."""
    seed = secrets.randbits(32)
    print(f"seed {seed}")
    torch.manual_seed(seed)
    return np.random.default_rng(seed)


def tiny_rednet() -> torch.nn.Module:
    """A four-stage RedNet that compiles in seconds; inputs (N, 3, H, W), 10 classes."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        backbone = ti.nn.RedNet(stage_blocks=(1, 1, 1, 1), stem_channels=32, base_channels=16)
        model = ti.nn.ImageClassifier(backbone, 10)
        init_weights(model)
    return model.eval()


@pytest.fixture(scope="session")
def small_library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`tiny_rednet` at 32x32 for batches 1 and 4, compiled for this CPU."""
    path = tmp_path_factory.mktemp("library") / "small.so"
    ti.compile(tiny_rednet(), image_size=(32, 32), batch=(1, 4)).save(path)
    return path
