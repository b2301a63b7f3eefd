# SPDX-License-Identifier: Apache-2.0
"""The file format, and every file that is not one of ours, before any code is loaded."""

from __future__ import annotations

import dataclasses
import os
import platform
import re
import struct
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import run_python
from library_fixture import METADATA, affine_library

import tvm_involution as ti
from tvm_involution import UserError
from tvm_involution.runtime import KernelCoverage, LibraryMetadata, Preprocessing, TensorSpec, library_file
from tvm_involution.runtime.library_file import check_runnable, read_metadata, seal

FOOTER = 32 + 8 + 16
AARCH64, X86_64 = 183, 62


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return affine_library(tmp_path_factory.mktemp("file") / "affine.so")


def test_seal_and_read(tmp_path: Path, rng: np.random.Generator) -> None:
    path = tmp_path / "any.so"
    code = rng.bytes(3000)
    path.write_bytes(code)
    seal(path, METADATA)
    assert read_metadata(path) == METADATA
    data = path.read_bytes()
    assert data.startswith(code)
    text = METADATA.to_json().encode()
    assert data[3000:-FOOTER] == text
    assert struct.unpack("<Q", data[-24:-16]) == (len(text),)


def test_missing_file(tmp_path: Path) -> None:
    for path in (tmp_path / "none.so", "x" * 5000, "a\0b"):
        with pytest.raises(UserError, match="does not exist"):
            ti.load(path)
    for path in (tmp_path, "/dev/null"):
        with pytest.raises(UserError, match="is no file"):
            ti.load(path)
    with pytest.raises(UserError, match="path must be a string or a path, got None"):
        ti.load(None)  # type: ignore[arg-type]


def test_other_files(tmp_path: Path, library: Path) -> None:
    plain = tmp_path / "plain.so"
    for content in (b"", b"short", library.read_bytes()[:-FOOTER], b"\x7fELF" + bytes(1000)):
        plain.write_bytes(content)
        with pytest.raises(UserError, match="no tvm-involution library, or is truncated"):
            ti.load(plain)


def test_truncated_anywhere(tmp_path: Path, library: Path, rng: np.random.Generator) -> None:
    data = library.read_bytes()
    path = tmp_path / "truncated.so"
    for length in (len(data) - 1, len(data) // 2, *rng.integers(0, len(data), 10)):
        path.write_bytes(data[: int(length)])
        with pytest.raises(UserError, match="truncated"):
            ti.load(path)


def test_hole_in_the_middle(tmp_path: Path, library: Path) -> None:
    data = library.read_bytes()
    path = tmp_path / "hole.so"
    path.write_bytes(data[:1000] + data[2000:])
    with pytest.raises(UserError, match="damaged"):
        ti.load(path)


def test_any_flipped_bit(tmp_path: Path, library: Path, rng: np.random.Generator) -> None:
    data = bytearray(library.read_bytes())
    path = tmp_path / "flipped.so"
    sealed = len(data) - 24
    for position in (0, 5, sealed - 1, *rng.integers(0, sealed, 10)):
        damaged = data.copy()
        damaged[int(position)] ^= 1 << int(rng.integers(8))
        path.write_bytes(damaged)
        with pytest.raises(UserError, match="damaged"):
            ti.load(path)


def test_length_beyond_the_file(tmp_path: Path, library: Path) -> None:
    data = bytearray(library.read_bytes())
    data[-24:-16] = struct.pack("<Q", 2**63)
    path = tmp_path / "length.so"
    path.write_bytes(data)
    with pytest.raises(UserError, match="damaged"):
        ti.load(path)


def test_library_of_another_architecture(tmp_path: Path) -> None:
    """Its metadata can be read here; it is refused by its triple, before it is mapped."""
    path = tmp_path / "foreign.so"
    foreign = "aarch64" if platform.machine() == "x86_64" else "x86_64"
    affine_library(path, triple=f"{foreign}-linux-gnu")
    assert read_metadata(path).triple == f"{foreign}-linux-gnu"
    with pytest.raises(UserError, match=f"compiled for {foreign}-linux-gnu, this machine is"):
        ti.load(path)


def test_foreign_code_under_a_native_label(tmp_path: Path, library: Path) -> None:
    """The loader's refusal comes out as one line too."""
    path = tmp_path / "mislabelled.so"
    data = bytearray(library.read_bytes())
    length = struct.unpack("<Q", data[-24:-16])[0]
    machine = AARCH64 if platform.machine() == "x86_64" else X86_64
    data[18:20] = struct.pack("<H", machine)
    path.write_bytes(data[: -FOOTER - length])
    seal(path, METADATA)
    with pytest.raises(UserError, match="cannot load") as caught:
        ti.load(path)
    assert "\n" not in str(caught.value)


def test_missing_cpu_feature(tmp_path: Path) -> None:
    path = affine_library(tmp_path / "feature.so", cpu="znver9", cpu_features=("avx1024",))
    with pytest.raises(UserError, match="compiled for znver9 and needs avx1024, which this CPU lacks"):
        ti.load(path)


@pytest.mark.parametrize(
    ("version", "fits"), [("0.27.0", True), ("0.27.9", True), ("0.28.0", False), ("1.27.0", False)]
)
def test_tvm_version(version: str, fits: bool) -> None:
    metadata = dataclasses.replace(METADATA, tvm_version=version)
    if fits:
        check_runnable("x.so", metadata, "0.27.0")
    else:
        with pytest.raises(UserError, match=f"compiled with TVM {version}, this is 0.27.0"):
            check_runnable("x.so", metadata, "0.27.0")


def test_what_is_mapped_is_what_was_checked(tmp_path: Path, library: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever happens to the file meanwhile: what is copied is what went into the sum."""
    path = tmp_path / "changing.so"
    whole = library.read_bytes()
    digest = library_file._digest

    def change_before(*arguments: Any) -> Any:
        path.write_bytes(whole[:1000] + bytes([whole[1000] ^ 1]) + whole[1001:])
        return digest(*arguments)

    def change_after(*arguments: Any) -> Any:
        found = digest(*arguments)
        path.write_bytes(bytes(len(whole)))
        return found

    path.write_bytes(whole)
    monkeypatch.setattr(library_file, "_digest", change_before)
    with pytest.raises(UserError, match=r"changing.so is damaged"):
        ti.load(path)
    path.write_bytes(whole)
    monkeypatch.setattr(library_file, "_digest", change_after)
    assert ti.load(path)(np.zeros((1, 4), np.float32)).tolist() == [[1.0] * 4]


def test_a_folder_where_no_code_may_run(library: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = os.statvfs
    flags = types.SimpleNamespace(f_flag=own("/").f_flag | os.ST_NOEXEC)
    monkeypatch.setattr(os, "statvfs", lambda path: flags)
    with pytest.raises(UserError, match=r"is mounted noexec, .* set TMPDIR to a folder where programs may run"):
        ti.load(library)


@pytest.mark.skipif(not os.statvfs("/dev/shm").f_flag & os.ST_NOEXEC, reason="programs may run from /dev/shm")
def test_a_real_folder_where_no_code_may_run(library: Path) -> None:
    code = """
import sys
import tvm_involution as ti
try:
    ti.load(sys.argv[1])
except ti.UserError as error:
    print(error)
"""
    assert "/dev/shm is mounted noexec" in run_python(code, library, TMPDIR="/dev/shm")


def test_no_room_for_the_copy(library: Path, tmp_path: Path) -> None:
    """The limit on a file's size stands for the end of the disk: the write fails in the same place."""
    code = """
import resource, sys
import tvm_involution as ti
resource.setrlimit(resource.RLIMIT_FSIZE, (5000, resource.RLIM_INFINITY))
try:
    ti.load(sys.argv[1])
except ti.UserError as error:
    print(error)
"""
    printed = run_python(code, library, TMPDIR=str(tmp_path))
    assert printed.startswith(f"cannot copy {library} to {tmp_path}") and "set TMPDIR to another folder" in printed
    assert printed.count("\n") == 1 and not list(tmp_path.iterdir())


def test_no_folder_for_the_copy(library: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "gone"))
    with pytest.raises(UserError, match=r"cannot copy .*: No such file or directory; set TMPDIR"):
        ti.load(library)


def test_the_document_names_every_field() -> None:
    """docs/library-format.md has a row for each field of the metadata, and names those of its parts."""
    text = (Path(__file__).parents[2] / "docs" / "library-format.md").read_text()
    table = text.split("## Metadata")[1].split("\n## ")[0]
    rows = [line for line in table.splitlines() if line.startswith("| `")]
    first = [name for row in rows for name in re.findall(r"`(\w+)`", row.split("|")[1])]
    assert sorted(first) == sorted(field.name for field in dataclasses.fields(LibraryMetadata))
    for kind, start in ((TensorSpec, "`inputs`"), (Preprocessing, "`preprocessing`"), (KernelCoverage, "`kernels`")):
        (row,) = [row for row in rows if start in row.split("|")[1]]
        named = set(re.findall(r"`(\w+)`", row.split("|")[2]))
        assert {field.name for field in dataclasses.fields(kind)} <= named, start
