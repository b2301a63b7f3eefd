# SPDX-License-Identifier: Apache-2.0
"""Weights lie in memory once: mapped from the library's file, by all processes that use it."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from library_fixture import METADATA

import tvm_involution as ti
from tvm_involution import UserError
from tvm_involution.runtime.library_file import _FOOTER, _MAGIC, read_metadata
from tvm_involution.runtime.metadata import WeightSpec

MEGABYTES = 32


class Heavy(torch.nn.Module):
    """A layer of 32 MiB, and a weight that is returned as it is."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(2048, MEGABYTES * 128)
        self.register_buffer("table", torch.arange(4096, dtype=torch.int64))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.linear(x), self.table


@pytest.fixture(scope="module")
def heavy(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, torch.nn.Module]:
    module = Heavy().eval()
    path = tmp_path_factory.mktemp("weights") / "heavy.so"
    ti.compile((module, (torch.zeros(1, 2048),)), batch=(1, 2)).save(path)
    return path, module


def test_where_they_lie(heavy: tuple[Path, torch.nn.Module]) -> None:
    """Once for all batch sizes, aligned, as the metadata says; the shared object before them is small."""
    path, _ = heavy
    weights = read_metadata(path).weights
    assert MEGABYTES << 20 <= sum(weight.bytes for weight in weights) < (MEGABYTES + 1) << 20
    assert weights[0].offset < 1 << 20 and all(weight.offset % 64 == 0 for weight in weights)
    (table,) = (weight for weight in weights if weight.dtype == "int64")
    with open(path, "rb") as file:
        file.seek(table.offset)
        np.testing.assert_array_equal(np.frombuffer(file.read(table.bytes), np.int64), np.arange(4096))


def test_two_processes_share_them(heavy: tuple[Path, torch.nn.Module]) -> None:
    code = """
import os, resource, sys
import numpy as np
import tvm_involution as ti

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

def mapped():
    found, inside = {"Rss": 0, "Pss": 0}, False
    for line in open("/proc/self/smaps"):
        key, _, value = line.partition(":")
        if not key.isalpha() and "-" in key.split()[0]:
            inside = line.rstrip().endswith(sys.argv[1])
        elif inside and key in found:
            found[key] += int(value.split()[0]) / 1024
    return found["Rss"], found["Pss"]

net = ti.load(sys.argv[1])
small = np.zeros((1, 2048), np.float32)
before = peak()
for _ in range(3):
    net(small)
print(*mapped(), peak() - before, flush=True)
sys.stdin.readline()
print(*mapped(), flush=True)
sys.stdin.readline()
del net
assert mapped() == (0, 0)
"""
    path, _ = heavy
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-c", code, str(path)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "env": environment}
    processes = [subprocess.Popen(command, **pipes) for _ in range(2)]
    try:
        for process in processes:
            resident, _, grown = map(float, process.stdout.readline().split())
            assert resident > MEGABYTES * 0.9 and grown < MEGABYTES * 1.4
        for process in processes:
            process.stdin.write("\n")
            process.stdin.flush()
            resident, share = map(float, process.stdout.readline().split())
            assert resident > MEGABYTES * 0.9 and share < MEGABYTES * 0.6
        for process in processes:
            assert process.communicate("\n", timeout=60) == ("", None) and process.returncode == 0
    finally:
        for process in processes:
            process.kill()
            process.wait()


def test_answers(heavy: tuple[Path, torch.nn.Module], rng: np.random.Generator) -> None:
    """As in torch; what is returned and written into is no weight."""
    path, module = heavy
    net = ti.load(path)
    for batch in (1, 2, 3):
        x = rng.standard_normal((batch, 2048), np.float32)
        want = (torch.from_numpy(x).double() @ module.linear.weight.double().T + module.linear.bias.double()).detach()
        y, table = net(x)
        assert np.linalg.norm(y - want.numpy()) < 1e-5 * np.linalg.norm(want)
        np.testing.assert_array_equal(table, np.arange(4096))
        table += 1


def test_a_file_that_changes(heavy: tuple[Path, torch.nn.Module], tmp_path: Path, rng: np.random.Generator) -> None:
    """One that is replaced goes on for whoever has it; one that is written into is noticed before the next call."""
    path = tmp_path / "changing.so"
    x = rng.standard_normal((1, 2048), np.float32)
    shutil.copy(heavy[0], path)
    net = ti.load(path)
    before = net(x)[0]
    shutil.copy(heavy[0], tmp_path / "other.so")
    os.replace(tmp_path / "other.so", path)
    np.testing.assert_array_equal(net(x)[0], before)
    again = ti.load(path)
    path.write_bytes(b"short")
    with pytest.raises(UserError, match=r"changing.so was overwritten while it was in use; load it again, and replace"):
        again(x)
    np.testing.assert_array_equal(net(x)[0], before)


@pytest.mark.parametrize(
    ("weight", "message"),
    [
        (WeightSpec("float32", (4,), 1 << 20), "ends before its weights do"),
        (WeightSpec("float32", (4,), 100), "on a boundary of 64 bytes"),
        (WeightSpec("float32", (0,), 64), "weights must have sizes"),
        (WeightSpec("complex64", (4,), 64), "there is no dtype 'complex64'"),
    ],
)
def test_weights_that_are_not_there(tmp_path: Path, weight: WeightSpec, message: str) -> None:
    path = tmp_path / "edited.so"
    edited = dataclasses.replace(METADATA, weights=(weight,))
    # as `seal` does, which writes what is there
    text = edited.to_json().encode()
    body = bytes(1000) + text
    path.write_bytes(body + _FOOTER.pack(hashlib.sha256(body).digest(), len(text), _MAGIC))
    with pytest.raises(UserError, match=message) as caught:
        ti.load(path)
    assert "\n" not in str(caught.value)
