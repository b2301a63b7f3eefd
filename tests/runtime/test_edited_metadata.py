# SPDX-License-Identifier: Apache-2.0
"""Whatever a library's metadata is changed to, sealed again: it works as it says, or is refused in one line."""

from __future__ import annotations

import copy
import dataclasses
import json
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import run_cli
from library_fixture import COLOURS, PICTURE_SIZE, colour_library, whole_library
from PIL import Image

import tvm_involution as ti
from tvm_involution import UserError
from tvm_involution.runtime import LibraryMetadata, library_file
from tvm_involution.runtime.arrays import numpy_dtype
from tvm_involution.runtime.library_file import read_metadata

_VALUES: list[Any] = [
    None, True, False, 0, 1, -1, 3, 2**31, 10**12, 10**400, 1.5, -0.0, 1e308, float("nan"), float("inf"),
    "", "batch", "x", "\n", "\x1b[2J", "\ud800", "float32", "?", "2*batch", "0*batch", "ü" * 5000,
    [], [0], [1, 8], [8, 1], [1, 1], [None], [[]], [2**40] * 3, ["a", "b", "c"], ["batch"], [[300, 0, 0]] * 3,
    [[1, 2, 3]] * 3, {}, {"kind": 3}, {"kind": "llvm"}, {"a": {"b": {}}},
]  # fmt: skip


def places(data: Any) -> Iterator[tuple[Any, ...]]:
    """Yield the path to every entry, however deep."""
    entries = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    for key, value in entries:
        yield (key,)
        yield from ((key, *rest) for rest in places(value))


def edited(data: Any, place: tuple[Any, ...], value: Any) -> Any:
    """Return a copy with another value at a place, or without it where the value is `...`."""
    data = copy.deepcopy(data)
    holder = data
    for key in place[:-1]:
        holder = holder[key]
    if value is ...:
        del holder[place[-1]]
    else:
        holder[place[-1]] = value
    return data


class Sealed:
    """A library whose metadata can be replaced."""

    def __init__(self, path: Path) -> None:
        data = path.read_bytes()
        length = struct.unpack("<Q", data[-24:-16])[0]
        self.path, self._code = path, data[: -56 - length]
        self.metadata = json.loads(data[-56 - length : -56])

    def seal(self, text: bytes) -> None:
        self.path.write_bytes(self._code)
        with open(self.path, "r+b") as file:
            digest = library_file._digest(file, len(self._code))
            digest.update(text)
            file.seek(0, os.SEEK_END)
            file.write(text + library_file._FOOTER.pack(digest.digest(), len(text), library_file._MAGIC))


@pytest.fixture(scope="module", params=["classifier", "segmentor", "detector"])
def sealed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Sealed:
    path = tmp_path_factory.mktemp("edited") / f"{request.param}.so"
    if request.param == "classifier":
        colour_library(path, batch_sizes=(1, 8), class_ids=(1, 2, 5))
    elif request.param == "segmentor":
        logits = np.zeros((1, 3, *PICTURE_SIZE), np.float32)
        colours = ((1, 2, 3), (0, 255, 0), (0, 0, 255))
        whole_library(path, "semantic_segmentation", {"logits": logits}, colours=colours)
    else:
        found = {"boxes": np.ones((1, 2, 4), np.float32), "scores": np.ones((1, 2), np.float32)}
        whole_library(path, "detection", {**found, "labels": np.zeros((1, 2), np.int64)})
    return Sealed(path)


def use(sealed: Sealed, picture: Path) -> str:
    """Load and call a library in every way; return the line with which it was refused, if it was."""
    refusals = set()
    try:
        net = ti.load(sealed.path)
        for batch in (1, 3):
            inputs = [np.zeros(spec.shape_for(batch), numpy_dtype(spec.dtype)) for spec in net.metadata.inputs]
            for name, value in net.run(*inputs).items():
                spec = next(spec for spec in net.metadata.outputs if spec.name == name)
                assert (value.shape, str(value.dtype)) == (spec.shape_for(batch), spec.dtype)
    except UserError as error:
        refusals.add(str(error))
    for words in (["inspect", sealed.path], ["run", sealed.path, "--input", picture]):
        result = run_cli(*words)
        if result.status:
            assert "Traceback" not in result.err
            refusals.add(result.error_line())
    for line in refusals:
        assert "\n" not in line and line.isprintable() and len(line) < 600, line
    return "; ".join(sorted(refusals))


def test_every_edit_is_taken_or_refused(sealed: Sealed) -> None:
    refused = tried = 0
    for place in places(sealed.metadata):
        for value in (..., *_VALUES):
            tried += 1
            try:
                metadata = LibraryMetadata.from_json(json.dumps(edited(sealed.metadata, place, value)))
            except UserError as error:
                assert str(error).isprintable(), str(error)
                refused += 1
            else:
                # what is taken is written as it was read
                assert LibraryMetadata.from_json(metadata.to_json()) == metadata
    assert refused > tried / 2


def test_random_edits(sealed: Sealed, tmp_path: Path, rng: np.random.Generator) -> None:
    picture = tmp_path / "picture.png"
    Image.new("RGB", (24, 16)).save(picture)
    everywhere = list(places(sealed.metadata))
    refused = 0
    for _ in range(100):
        data, edits = sealed.metadata, []
        for _ in range(rng.integers(1, 3)):
            place = everywhere[rng.integers(len(everywhere))]
            value = [..., *_VALUES][rng.integers(len(_VALUES) + 1)]
            edits.append((place, value))
            try:
                data = edited(data, place, value)
            except (KeyError, IndexError, TypeError, AttributeError):
                continue  # the first edit took the place away
        sealed.seal(json.dumps(data).encode())
        try:
            refused += bool(use(sealed, picture))
        except Exception:
            print(ascii(edits)[:500])
            raise
    assert refused > 20


@pytest.mark.parametrize(
    "text",
    [b"", b"{", b"[]", b"null", b"\xff\xfe{}", b"[" * 100_000, b"1" * 10_000, b'{"format": ' + b"9" * 10_000 + b"}"],
    ids=lambda text: ascii(text[:12]),
)
def test_other_texts(sealed: Sealed, text: bytes) -> None:
    sealed.seal(text)
    for call in (ti.load, read_metadata):
        with pytest.raises(UserError, match=r"metadata is (not as expected|no text)") as caught:
            call(sealed.path)
        assert str(sealed.path) in str(caught.value) and "\n" not in str(caught.value)


def test_every_flipped_bit_behind_the_code(sealed: Sealed) -> None:
    """The trailer's length and magic are not part of the sum."""
    sealed.seal(json.dumps(sealed.metadata).encode())
    whole = sealed.path.read_bytes()
    for place in range(len(whole) - 56, len(whole)):
        for bit in range(8):
            damaged = bytearray(whole)
            damaged[place] ^= 1 << bit
            sealed.path.write_bytes(damaged)
            with pytest.raises(UserError) as caught:
                read_metadata(sealed.path)
            assert "\n" not in str(caught.value)


def sound(**changes: Any) -> dict[str, Any]:
    """Return the metadata of a classifier."""
    data = {
        "name": "colours", "task": "classification",
        "inputs": [{"name": "input", "shape": ["batch", 3, 8, 12], "dtype": "float32", "layout": "NCHW"}],
        "outputs": [{"name": "logits", "shape": ["batch", 3], "dtype": "float32", "layout": ""}],
        "batch_sizes": [1, 8], "dtype": "float32",
        "preprocessing": {"resize": 12, "crop": 12, "mean": [1, 2, 3.5], "std": [4, 5, 6]},
        "classes": list(COLOURS), "target": {"kind": "llvm"}, "device_type": "cpu", "triple": "x86_64-linux-gnu",
        "cpu": "generic", "cpu_features": ["avx2"], "tvm_version": "0.27.0", "package_version": "0.1.0",
        "weights_origin": "none", "parameters": 0,
        "kernels": {"total": 3, "record": 0, "rule": 2, "fallback": 1, "borrowed": 0, "borrowed_from": ""},
        "created": "2026-01-01T00:00:00+00:00", "format": 2,
    }  # fmt: skip
    return {**data, **changes}


def test_the_sound_one() -> None:
    metadata = LibraryMetadata.from_json(json.dumps(sound()))
    assert metadata.preprocessing is not None and metadata.preprocessing.mean == (1.0, 2.0, 3.5)
    assert LibraryMetadata.from_json(metadata.to_json()) == metadata


_INPUT, _OUTPUT = sound()["inputs"][0], sound()["outputs"][0]
_PREPARED, _KERNELS = sound()["preprocessing"], sound()["kernels"]


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("name", 3, "metadata.name must be a string, got 3"),
        ("name", "a\nb", "metadata.name must be a string"),
        ("name", "", "name and triple must not be empty"),
        ("inputs", {}, "metadata.inputs must be a list"),
        ("inputs", [3], r"metadata.inputs\[0\] must be an object"),
        ("inputs", [{**_INPUT, "shape": ["batch", 3, 8, 12.0]}], r"shape\[3\] must be a whole number"),
        ("inputs", [{**_INPUT, "shape": ["batch", 3, 8, True]}], r"shape\[3\] must be a whole number"),
        ("inputs", [{**_INPUT, "shape": ["batch", 3, 8, "wide"]}], 'sizes and the word "batch"'),
        ("inputs", [{**_INPUT, "shape": ["batch", 3, 8, -1]}], 'sizes and the word "batch"'),
        ("inputs", [{**_INPUT, "shape": ["batch", 3, 10**6, 10**6]}], "more than 2147483648 elements"),
        ("inputs", [{**_INPUT, "dtype": "float33"}], "no dtype 'float33'"),
        ("inputs", [{**_INPUT, "layout": "NCH"}], "a capital letter for each axis"),
        ("inputs", [{**_INPUT, "colour": 1}], "foreign field 'colour'"),
        ("inputs", [_INPUT, _INPUT], "inputs must have names, each its own"),
        ("inputs", [{**_INPUT, "shape": ["batch", 4, 8, 12]}], "one input of pictures"),
        ("outputs", [], "outputs must not be empty"),
        ("outputs", [{**_OUTPUT, "name": "answer"}], "classification has an output logits of 2 axes"),
        ("outputs", [{**_OUTPUT, "shape": ["batch", 4]}], "classes must be as many as logits"),
        ("batch_sizes", [], "must ascend"),
        ("batch_sizes", [8, 1], "must ascend"),
        ("batch_sizes", [0, 1], "must be positive"),
        ("batch_sizes", [1.0], r"batch_sizes\[0\] must be a whole number"),
        ("dtype", "int3", "dtype must be one of"),
        ("preprocessing", {**_PREPARED, "crop": None}, "both resize and crop, or neither"),
        ("preprocessing", {**_PREPARED, "crop": 13}, "crop something"),
        ("preprocessing", {**_PREPARED, "resize": 10**9}, "crop something"),
        ("preprocessing", {**_PREPARED, "resize": None, "crop": None}, "without a crop is for"),
        ("preprocessing", {**_PREPARED, "std": [1, 1]}, "std must have 3 entries, got 2"),
        ("preprocessing", {**_PREPARED, "std": [1, 1, 0]}, "positive deviation"),
        ("preprocessing", {**_PREPARED, "mean": [1, 1, float("nan")]}, r"mean\[2\] must be a number"),
        ("preprocessing", {**_PREPARED, "mean": [1, 1, 1e30]}, "mean of pixels"),
        ("classes", ["red"], "classes must be as many as logits"),
        ("class_ids", [1], "class_ids must be as many as classes"),
        ("colours", [[0, 0, 256]] * 3, "between 0 and 255"),
        ("colours", [[0, 0]] * 3, r"colours\[0\] must have 3 entries"),
        ("target", {}, "target must have a kind"),
        ("device_type", "tpu", "cpu or cuda"),
        ("tvm_version", "new", "must be a version"),
        ("parameters", -1, "must not be negative"),
        ("kernels", {**_KERNELS, "total": 4}, "add up"),
        ("kernels", {**_KERNELS, "rule": 4, "fallback": -1}, "must not be negative"),
        ("kernels", {**_KERNELS, "borrowed": 1}, "add up"),
        ("kernels", {**_KERNELS, "by_rule": {"Involution": 0}}, "positive numbers"),
        ("kernels", {**_KERNELS, "by_rule": {"a\x1b[2J": 1}}, "positive numbers"),
        ("kernels", {**_KERNELS, "by_rule": {"Involution": 4}}, "some of them"),
        ("kernels", {**_KERNELS, "by_rule": []}, "by_rule must be an object"),
        ("created", "yesterday", "isoformat"),
        ("format", 1, "format 1, this version reads 2"),
        ("format", True, "format True, this version reads 2"),
        ("cuda_graph", 1, "must be true or false"),
    ],
)  # fmt: skip
def test_what_is_refused(field: str, value: Any, said: str) -> None:
    with pytest.raises(UserError, match=said) as caught:
        LibraryMetadata.from_json(json.dumps(sound(**{field: value})))
    assert "\n" not in str(caught.value)


def test_nobody_writes_what_nobody_can_read(tmp_path: Path) -> None:
    metadata = dataclasses.replace(LibraryMetadata.from_json(json.dumps(sound())), batch_sizes=(8, 1))
    (path := tmp_path / "a.so").write_bytes(b"code")
    with pytest.raises(UserError, match="must ascend"):
        library_file.seal(path, metadata)
    assert path.read_bytes() == b"code"
