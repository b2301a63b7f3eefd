# SPDX-License-Identifier: Apache-2.0
"""What a library says about itself survives JSON, and what is no such JSON is refused."""

from __future__ import annotations

import dataclasses
import json

import pytest
from library_fixture import METADATA

from tvm_involution import UserError
from tvm_involution.runtime import LibraryMetadata, Preprocessing, TensorSpec
from tvm_involution.runtime.metadata import Form


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


FORMS = (
    Form((2, 3), (("batch", 4),), (("batch", 4),)),
    Form((3, 3), (("batch", 9),), (("batch", 1),)),
)


def test_signatures_of_forms() -> None:
    metadata = LibraryMetadata.from_json(dataclasses.replace(METADATA, forms=FORMS).to_json())
    assert [one.function(8) for one in metadata.signatures] == ["batch_8_2x3", "batch_8_3x3"]
    assert [one.inputs[0].shape for one in metadata.signatures] == [("batch", 4), ("batch", 9)]
    assert [one.function(8) for one in METADATA.signatures] == ["batch_8"]


@pytest.mark.parametrize(
    ("forms", "message"),
    [
        (FORMS[:1], "two or more"),
        (FORMS[::-1], "the first of forms"),
        ((FORMS[0], dataclasses.replace(FORMS[0], image_size=(4, 4))), "must differ"),
        ((FORMS[0], dataclasses.replace(FORMS[1], image_size=(2, 3))), "must differ"),
        ((FORMS[0], dataclasses.replace(FORMS[1], outputs=(("batch", 1, 1),))), "of as many axes"),
        ((FORMS[0], dataclasses.replace(FORMS[1], inputs=())), "of as many axes"),
        ((FORMS[0], dataclasses.replace(FORMS[1], outputs=(("batch", "x"),))), 'sizes and the word "batch"'),
    ],
)
def test_forms_that_contradict(forms: tuple[Form, ...], message: str) -> None:
    with pytest.raises(UserError, match=message):
        LibraryMetadata.from_json(dataclasses.replace(METADATA, forms=forms).to_json())


def test_another_format_is_refused() -> None:
    data = json.loads(METADATA.to_json())
    data["format"] = 1
    with pytest.raises(UserError, match="format 1, this version reads 2"):
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
