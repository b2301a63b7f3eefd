# SPDX-License-Identifier: Apache-2.0
"""The pool has one thread for each physical core that this process may use."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from command_line import run_python
from library_fixture import affine_library

from tvm_involution import UserError
from tvm_involution.runtime import threads

_POOL = """
import os, sys
import numpy as np
import tvm_involution as ti
from tvm_involution.runtime import threads
from tvm_involution.runtime.ffi import tvm_ffi

if sys.argv[2]:
    os.sched_setaffinity(0, {int(sys.argv[2])})
before = os.sched_getaffinity(0)
net = ti.load(sys.argv[1])
net(np.ones((8, 4), np.float32))
assert os.sched_getaffinity(0) == before, "the caller's thread was pinned"
count = threads.run_on_pool(tvm_ffi.get_global_func("runtime.NumThreads"))
assert threads.run_on_pool(os.sched_getaffinity, 0) == before, "the pool has other CPUs than the caller"
print(count)
"""


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return affine_library(tmp_path_factory.mktemp("threads") / "affine.so")


def test_one_thread_a_core(library: Path) -> None:
    assert int(run_python(_POOL, library, "", TVM_NUM_THREADS="")) == threads.physical_cores()


def test_affinity_counts(library: Path) -> None:
    cpu = max(os.sched_getaffinity(0))
    assert int(run_python(_POOL, library, cpu, TVM_NUM_THREADS="")) == 1


@pytest.mark.parametrize("count", [1, 3])
def test_the_users_number_wins(library: Path, count: int) -> None:
    assert int(run_python(_POOL, library, "", TVM_NUM_THREADS=str(count))) == count


@pytest.mark.parametrize("text", ["", " "])
def test_no_number(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv("TVM_NUM_THREADS", text)
    assert threads.thread_count() == threads.physical_cores()


@pytest.mark.parametrize("text", ["0", "-2", "many", "1.5", "²", "1025", "100000", "9" * 5000])
def test_a_number_that_is_none(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv("TVM_NUM_THREADS", text)
    with pytest.raises(UserError, match="expected a whole number from 1 to 1024"):
        threads.thread_count()


def test_a_number_that_is_none_at_the_first_call(library: Path) -> None:
    code = """
import sys
import tvm_involution as ti
for _ in range(2):
    try:
        ti.load(sys.argv[1])
    except ti.UserError as error:
        print(error)
"""
    printed = run_python(code, library, TVM_NUM_THREADS="100000").splitlines()
    assert len(printed) == 2 and all(line.startswith("TVM_NUM_THREADS is '100000'; expected") for line in printed)


@pytest.mark.parametrize(
    ("quota", "cores"),
    [
        ("max 100000", 3),
        ("200000 100000", 2),
        ("150000 100000", 1),
        ("50000 100000", 1),
        ("900000 100000", 3),
        (None, 3),
    ],
)
def test_hyper_threads_and_quota(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quota: str | None, cores: int
) -> None:
    """Two packages: cores 0 and 1 of the first with two threads each, core 0 of the second with one."""
    for cpu, (package, core) in enumerate([(0, 0), (0, 1), (0, 0), (0, 1), (1, 0)]):
        topology = tmp_path / f"devices/system/cpu/cpu{cpu}/topology"
        topology.mkdir(parents=True)
        (topology / "physical_package_id").write_text(f"{package}\n")
        (topology / "core_id").write_text(f"{core}\n")
    if quota is not None:
        (tmp_path / "fs/cgroup").mkdir(parents=True)
        (tmp_path / "fs/cgroup/cpu.max").write_text(quota + "\n")
    monkeypatch.setattr(threads, "_SYSFS", tmp_path)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 3, 4})
    assert threads.physical_cores() == cores
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {1, 3})
    assert threads.physical_cores() == 1


def test_without_topology_each_cpu_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "_SYSFS", tmp_path)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 5, 7})
    assert threads.physical_cores() == 3
