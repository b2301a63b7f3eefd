# SPDX-License-Identifier: Apache-2.0
"""What a library says about itself survives JSON, and what is no such JSON is refused."""

from __future__ import annotations

import dataclasses
import json

import pytest
from library_fixture import METADATA

from tvm_involution import UserError
from tvm_involution.runtime import LibraryMetadata, Preprocessing, TensorSpec


@pytest.mark.parametrize("full", [False, True])
def test_json_round_trip(full: bool) -> None:
    metadata = METADATA
    if full:
        metadata = dataclasses.replace(
            metadata,
            preprocessing=Preprocessing(256, 224, (1.0, 2.0, 3.0), (4.0, 5.0, 6.0)),
            inputs=(TensorSpec("input", ("batch", 3, 8, 8), "float32", "NCHW"),),
            classes=("tench", "Kätzchen"),
            class_ids=(3, 7),
            colours=((0, 1, 2), (255, 0, 9)),
            cuda_graph=True,
            cpu_features=("avx2", "fma"),
        )
    assert LibraryMetadata.from_json(metadata.to_json()) == metadata


def test_another_format_is_refused() -> None:
    data = json.loads(METADATA.to_json())
    data["format"] = 2
    with pytest.raises(UserError, match="format 2, this version reads 1"):
        LibraryMetadata.from_json(json.dumps(data))


@pytest.mark.parametrize("field", ["format", "inputs", "kernels", "batch_sizes", "name", "created"])
def test_missing_field_is_refused(field: str) -> None:
    data = json.loads(METADATA.to_json())
    del data[field]
    # `format` has a default in the class, not in the file
    with pytest.raises(UserError, match=field):
        LibraryMetadata.from_json(json.dumps(data))


@pytest.mark.parametrize("text", ["", "{", "[1]", "null"])
def test_what_is_no_metadata_is_refused(text: str) -> None:
    with pytest.raises(UserError):
        LibraryMetadata.from_json(text)


def test_surplus_field_is_refused() -> None:
    with pytest.raises(UserError, match="colour"):
        LibraryMetadata.from_json(json.dumps({**json.loads(METADATA.to_json()), "colour": "blue"}))
