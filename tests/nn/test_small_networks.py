# SPDX-License-Identifier: Apache-2.0
"""The shipped networks: what they were trained on is apart from what they are judged on, and they are what it says."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from command_line import TESTS

from tvm_involution.nn import build_model
from tvm_involution.zoo import get_model


@pytest.fixture
def datasets(monkeypatch):
    monkeypatch.syspath_prepend(str(TESTS.parent / "examples"))
    import small_datasets

    return small_datasets


def test_digits_are_split_once_and_for_all(datasets):
    train, held_out = datasets.digits()
    assert (len(train.labels), len(held_out.labels)) == (1438, 359)
    assert train.images.shape[1:] == held_out.images.shape[1:] == (3, 32, 32)
    assert set(held_out.labels) == set(train.labels) == set(range(10))
    seen = {image.tobytes() for image in train.images}
    assert not any(image.tobytes() in seen for image in held_out.images)


def test_photographs_are_cut_apart(datasets):
    for name, trained in zip(datasets.PHOTOGRAPHS, datasets.training_parts(), strict=True):
        whole = np.asarray(datasets.load_photograph(name))
        columns = round(whole.shape[1] * datasets.TRAINED_SHARE)
        assert np.array_equal(np.asarray(trained), whole[:, :columns])


def test_held_out_crops_come_from_the_rest(datasets, monkeypatch):
    """Paint what is trained on; no held-out crop may change."""
    before = datasets.held_out_photos(crops=3)
    assert before.images.shape == (30, 3, 96, 96) and np.array_equal(before.labels, np.repeat(np.arange(10), 3))
    load = datasets.load_photograph

    def painted(name):
        picture = load(name)
        picture.paste((255, 0, 255), (0, 0, round(picture.width * datasets.TRAINED_SHARE), picture.height))
        return picture

    monkeypatch.setattr(datasets, "load_photograph", painted)
    assert np.array_equal(datasets.held_out_photos(crops=3).images, before.images)


def test_classes_of_the_photographs_are_in_order(datasets):
    assert get_model("rednet_photos").classes == tuple(datasets.PHOTOGRAPHS)


@pytest.mark.parametrize("name", ["rednet_digits", "rednet_photos"])
def test_stated_accuracy(datasets, name):
    split = datasets.digits()[1] if name == "rednet_digits" else datasets.held_out_photos()
    with torch.no_grad():
        answers = build_model(name)(torch.from_numpy(split.images)).argmax(1).numpy()
        untrained = build_model(name, pretrained=False)(torch.from_numpy(split.images)).argmax(1).numpy()
    # one picture in 359 or 400 may stand on the edge between two classes
    assert 100 * (answers == split.labels).mean() == pytest.approx(
        get_model(name).published["held_out_accuracy"], abs=0.3
    )
    assert (untrained == split.labels).mean() < 0.4
