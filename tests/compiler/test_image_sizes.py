# SPDX-License-Identifier: Apache-2.0
"""One library for several image sizes: the input chooses, the weights are stored once."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from command_line import run_cli
from reference import relative_norm
from torch import nn

import tvm_involution as ti

SIZES = ((40, 32), (24, 56))


def network() -> nn.Module:
    """A convolution whose weights are most of it, and one to a picture of scores."""
    torch.manual_seed(3)
    return nn.Sequential(nn.Conv2d(3, 512, 9, 4), nn.Conv2d(512, 7, 1)).eval()


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory):
    """Compiled of a file in which batch, height and width vary."""
    path = tmp_path_factory.mktemp("sizes") / "net.so"
    sizes = {axis: torch.export.Dim.DYNAMIC for axis in (0, 2, 3)}
    program = torch.export.export(network(), (torch.zeros(2, 3, 64, 48),), dynamic_shapes=(sizes,))
    torch.export.save(program, path.with_suffix(".pt2"))
    ended = run_cli(
        "compile", path.with_suffix(".pt2"), "-o", path, "--batch", "2,1,2", "--image-size", "40x32,24x56,40x32"
    )
    assert ended.status == 0, ended.err
    return path


def test_the_input_chooses(library, rng):
    loaded = ti.load(library)
    loaded.warm_up()
    for batch, size in ((1, SIZES[0]), (2, SIZES[1]), (3, SIZES[1]), (1, SIZES[0])):
        x = rng.standard_normal((batch, 3, *size)).astype("float32")
        with torch.no_grad():
            expected = network().double()(torch.from_numpy(x).double()).numpy()
        assert relative_norm(loaded(x), expected) < 1e-5
    assert "also for 24x56" in repr(loaded)


def test_another_size_is_told_which_there_are(library):
    loaded = ti.load(library)
    shapes = r"\(batch, 3, 40, 32\) or \(batch, 3, 24, 56\)"
    for wrong in ((1, 3, 32, 40), (3, 40, 32), (1, 4, 40, 32)):
        with pytest.raises(ti.UserError, match=rf"input 'input' must have shape {shapes}, got"):
            loaded(np.zeros(wrong, np.float32))
    with pytest.raises(ti.UserError, match="with a batch of at least 1, got"):
        loaded(np.zeros((0, 3, 40, 32), np.float32))


def test_inspect_shows_all(library):
    text = run_cli("inspect", library).out
    assert "image sizes  40x32, 24x56 (the input chooses)" in text
    assert "input: float32 (batch, 3, 40, 32) or (batch, 3, 24, 56)" in text


def test_weights_are_stored_once(library, tmp_path):
    ti.compile(network(), image_size=SIZES[0]).save(tmp_path / "one.so")
    weights = sum(p.numel() for p in network().parameters()) * 4
    assert library.stat().st_size < (tmp_path / "one.so").stat().st_size + weights / 2


def test_words_of_the_command_line(tmp_path):
    for words, message in (
        ("8x8,", "'' is no image size; expected height x width in pixels, such as 224x224"),
        ("8x8,9", "'9' is no image size"),
    ):
        ended = run_cli("compile", "rednet26", "-o", tmp_path / "x.so", "--image-size", words)
        assert message in ended.error_line()
    for wrong in ([], [8, 8, 8], [(8, 8), (8,)], "8x8"):
        with pytest.raises(ti.UserError, match="image_size must "):
            ti.compile(network(), image_size=wrong)
