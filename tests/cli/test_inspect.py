# SPDX-License-Identifier: Apache-2.0
"""`tvm-involution inspect` shows what a library is, for libraries of other machines too."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from command_line import run_cli
from library_fixture import METADATA, affine_library, colour_library

from tvm_involution.runtime.library_file import read_metadata


def test_text(tmp_path: Path) -> None:
    path = colour_library(tmp_path / "colour.so", weights_origin="colour.pth", parameters=1_234_000)
    result = run_cli("inspect", path)
    assert (result.status, result.err) == (0, "")
    for part in (
        "small (classification), 1.23 M parameters",
        "input: float32 (batch, 3, 8, 12) NCHW",
        "logits: float32 (batch, 3)",
        "1, 8",
        "colour.pth",
        "3 named",
        "3 kernels: 0 from tuning records, 2 from rules' defaults, 1 that no rule was made for",
        f"TVM {METADATA.tvm_version}",
        "MiB",
    ):
        assert part in result.out, part


def test_json_is_the_metadata(tmp_path: Path) -> None:
    path = colour_library(tmp_path / "colour.so")
    data = json.loads(run_cli("inspect", path, "--json").out)
    assert data == json.loads(read_metadata(path).to_json())
    assert data["outputs"] == [{"name": "logits", "shape": ["batch", 3], "dtype": "float32", "layout": ""}]


def test_library_of_another_machine(tmp_path: Path) -> None:
    path = affine_library(
        tmp_path / "elsewhere.so", triple="riscv64-linux-gnu", device_type="cuda", tvm_version="9.9.9"
    )
    result = run_cli("inspect", path)
    assert result.status == 0 and "riscv64-linux-gnu" in result.out and "TVM 9.9.9" in result.out


@pytest.mark.parametrize("damage", ["missing", "text", "truncated", "corrupt", "folder"])
def test_what_is_no_library(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "library.so"
    data = bytearray(affine_library(tmp_path / "whole.so").read_bytes())
    if damage == "text":
        path.write_text("not a library")
    elif damage == "truncated":
        path.write_bytes(data[:-1000])
    elif damage == "corrupt":
        data[1000] ^= 1
        path.write_bytes(data)
    elif damage == "folder":
        path.mkdir()
    expected = {"text": "truncated", "corrupt": "damaged", "folder": "is no file", "missing": "does not exist"}
    line = run_cli("inspect", path).error_line()
    assert str(path) in line and expected.get(damage, damage) in line
