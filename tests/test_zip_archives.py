# SPDX-License-Identifier: Apache-2.0
"""Damage in an archive is found, and an archive of two meanings is refused."""

from __future__ import annotations

import struct
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from tvm_involution import UserError
from tvm_involution.zip_archives import check_archive, is_zip, open_archive


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    torch.save({"weight": torch.randn(40, 50)}, path := tmp_path / "a.pth")
    return path


def refuse(path: Path) -> str:
    with pytest.raises(UserError) as caught:
        check_archive(path)
    message = str(caught.value)
    assert str(path) in message and "\n" not in message
    return message


def test_whole_archives(tmp_path: Path, archive: Path) -> None:
    np.savez(tmp_path / "a.npz", a=np.zeros(3))
    with zipfile.ZipFile(tmp_path / "b.npz", "w") as large, large.open("a.npy", "w", force_zip64=True) as entry:
        entry.write(b"data")
    for path in (archive, *tmp_path.glob("*.npz")):
        assert is_zip(path)
        check_archive(path)


def test_every_flipped_bit_of_the_data_is_found(archive: Path, rng: np.random.Generator) -> None:
    whole = archive.read_bytes()
    with zipfile.ZipFile(archive) as opened:
        offset = next(entry.header_offset for entry in opened.infolist() if entry.filename.endswith("data/0"))
    start = offset + 30 + sum(struct.unpack("<HH", whole[offset + 26 : offset + 30]))
    for place in rng.integers(start, start + 8000, 50):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << int(rng.integers(8))
        archive.write_bytes(damaged)
        assert "the sum of a/data/0 does not match" in refuse(archive)


def test_truncated_and_foreign_files(archive: Path, rng: np.random.Generator) -> None:
    whole = archive.read_bytes()
    for length in (0, 3, 21, 22, 97, len(whole) - 1, *rng.integers(0, len(whole), 20)):
        archive.write_bytes(whole[: int(length)])
        assert "damaged or truncated" in refuse(archive)
    archive.write_bytes(rng.bytes(5000))
    refuse(archive)


def test_written_without_sums(tmp_path: Path) -> None:
    torch.serialization.set_crc32_options(False)
    try:
        torch.save({"weight": torch.zeros(3)}, path := tmp_path / "a.pth")
    finally:
        torch.serialization.set_crc32_options(True)
    check_archive(path)


def test_two_entries_of_one_name(tmp_path: Path) -> None:
    path = tmp_path / "twice.pt2"
    with warnings.catch_warnings(), zipfile.ZipFile(path, "w") as twice:
        warnings.simplefilter("ignore")
        twice.writestr("data.pkl", b"harmless")
        twice.writestr("data.pkl", b"harmful")
    assert "more than one way" in refuse(path)


def test_something_before_or_behind(archive: Path) -> None:
    """Python's reader skips what stands before an archive, torch's does not: they would see two directories."""
    whole = archive.read_bytes()
    archive.write_bytes(b"#!/bin/sh\n" + whole)
    assert "more than one way" in refuse(archive)
    with open(archive, "wb") as file:  # with offsets that count it
        file.write(b"#!/bin/sh\n")
        with zipfile.ZipFile(file, "w") as behind:
            behind.writestr("a", b"data")
    assert "more than one way" in refuse(archive)
    archive.write_bytes(whole[:-2] + b"\x07\x00comment")
    assert "more than one way" in refuse(archive)


def test_two_directories(tmp_path: Path) -> None:
    """The end names one directory, and another of the same size lies where Python looks: right before the end."""
    path = tmp_path / "two.pt2"
    parts = []
    for name in ("a", "b"):
        with zipfile.ZipFile(path, "w") as single:
            single.writestr(name, b"data")
        whole = path.read_bytes()
        start = struct.unpack("<L", whole[-6:-2])[0]
        parts.append((whole[:start], whole[start:-22], whole[-22:]))
    (data, directory, end), (_, other, _) = parts
    path.write_bytes(data + directory + other + end)
    assert "more than one way" in refuse(path)


def bombs(folder: Path) -> list[Path]:
    """A megabyte of zeros in a kilobyte; and an entry that says it is larger than the archive."""
    packed, large = folder / "packed.pth", folder / "large.pth"
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/data/0", bytes(1 << 20))
    torch.save({"weight": torch.zeros(9)}, large)
    data = bytearray(large.read_bytes())
    entry = data.rindex(b"PK\x01\x02")
    data[entry + 20 : entry + 28] = struct.pack("<II", 2**31, 2**31)
    large.write_bytes(data)
    return [packed, large]


def test_a_bomb_is_refused_before_any_sum(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = bombs(tmp_path)
    opened: list[object] = []
    monkeypatch.setattr(zipfile.ZipFile, "open", lambda *arguments: opened.append(arguments))
    messages = list(map(refuse, files))
    assert "is compressed" in messages[0] and "larger than itself" in messages[1]
    assert not opened


def test_damage_that_shows_when_an_entry_is_read(tmp_path: Path) -> None:
    with zipfile.ZipFile(path := tmp_path / "a.pt2", "w") as written:
        written.writestr("a", b"data")
    path.write_bytes(path.read_bytes().replace(b"data", b"date"))
    with pytest.raises(UserError, match=r"damaged or truncated .*Bad CRC-32"), open_archive(path) as archive:
        archive.read("a")
