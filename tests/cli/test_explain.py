# SPDX-License-Identifier: Apache-2.0
"""`explain`: what would be compiled, with the user's lines, and what could not be."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from command_line import run_cli

NETWORK = """
import torch
import torch.nn.functional as F
import tvm_involution as ti

class Network(torch.nn.Module):
    def __init__(self, sort):
        super().__init__()
        self.whole = ti.nn.Involution2d(16, 3, 2, 8)
        self.kernel = torch.nn.Conv2d(16, 2 * 25, 1)
        self.sort = sort
    def forward(self, x):
        x = self.whole(x)
        kernel = self.kernel(x).view(1, 2, 1, 25, 5, 6)
        windows = F.unfold(x, 5, padding=2).view(1, 2, 8, 25, 5, 6)
        y = (windows * kernel).sum(3).view(1, 16, 5, 6)
        y = y + (windows * windows).sum(3).view(1, 16, 5, 6)
        if self.sort:
            y = torch.special.bessel_j0(y)
            y = torch.special.i1(y)
        return y

def build():
    return Network(False).eval(), torch.zeros(1, 16, 10, 12)

def refused():
    return Network(True).eval(), torch.zeros(1, 16, 10, 12)

class Branches(torch.nn.Module):
    def forward(self, x):
        return x + 1 if x.sum() > 0 else x - 1

def branches():
    return Branches(), torch.zeros(1, 3)

class Parent(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.made, self.kernel = Product(), torch.nn.Conv2d(16, 9, 1)

    def forward(self, x):
        return self.made(x, self.kernel(x)).view(x.shape)

class Product(torch.nn.Module):
    def forward(self, x, kernel):
        windows = torch.nn.functional.unfold(x, 3, padding=1).view(1, 16, 9, -1)
        return (windows * kernel.view(1, 1, 9, -1)).sum(2)

def parent():
    return Parent(), torch.zeros(1, 16, 10, 12)
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "explained_network.py").write_text(NETWORK)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_involutions_and_their_lines(folder: Path) -> None:
    result = run_cli("explain", "explained_network:build", "--json")
    assert (result.status, result.err) == (0, "")
    found = json.loads(result.out)
    whole, recognised = found["involutions"]
    assert (whole["kernel_size"], whole["stride"], whole["groups"], whole["recognised"]) == ([3, 3], [2, 2], 2, False)
    assert (whole["input_size"], whole["output_size"]) == ([10, 12], [5, 6])
    assert (recognised["kernel_size"], recognised["padding"], recognised["recognised"]) == ([5, 5], [2, 2], True)
    assert f"{folder / 'explained_network.py'}:" in recognised["source"] and "kernel" in recognised["source"]
    assert whole["module"] == "whole" and "self.whole(x)" in whole["source"]
    (note,) = found["notes"]
    assert "windows * windows" in note and not found["refusals"]
    assert found["operators"]["convolution"] == 3
    text = run_cli("explain", "explained_network:build").out
    for part in ("2 involutions, 1 of them by what they compute", "5x5", "explained_network.py:", "note: a product"):
        assert part in text, part


def test_what_cannot_be_imported(folder: Path) -> None:
    result = run_cli("explain", "explained_network:refused", "--json")
    assert (result.status, result.err) == (0, "")
    found = json.loads(result.out)
    assert len(found["involutions"]) == 2
    reasons = [(refusal["reason"], refusal["source"]) for refusal in found["refusals"]]
    assert len(reasons) == 2
    for name, (reason, source) in zip(("bessel_j0", "i1"), reasons, strict=True):
        assert name in reason and name in source


def test_a_branch_on_values_is_one_line(folder: Path) -> None:
    result = run_cli("explain", "explained_network:branches")
    assert result.status == 2 and result.err.count("\n") == 1 and "data-dependent" in result.err


def test_a_result_that_another_module_reshapes(folder: Path) -> None:
    (found,) = json.loads(run_cli("explain", "explained_network:parent", "--json").out)["involutions"]
    assert found["module"] == "made" and "sum(2)" in found["source"]


def test_what_the_importer_refuses_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A network that keeps a state cannot be compiled; one with an output of None can."""
    (tmp_path / "kept_state.py").write_text(
        "import torch\n"
        "class Kept(torch.nn.Module):\n"
        "    def __init__(self, keep):\n"
        "        super().__init__()\n"
        "        self.keep = keep\n"
        "        self.register_buffer('seen', torch.zeros(1, 3))\n"
        "    def forward(self, x):\n"
        "        if self.keep:\n"
        "            self.seen.add_(1)\n"
        "            return x + self.seen\n"
        "        return x * 2, None\n"
        "def kept():\n    return Kept(True).eval(), torch.zeros(1, 3)\n"
        "def plain():\n    return Kept(False).eval(), torch.zeros(1, 3)\n"
    )
    monkeypatch.chdir(tmp_path)
    (refusal,) = json.loads(run_cli("explain", "kept_state:kept", "--json").out)["refusals"]
    assert "changes its buffer 'seen'" in refusal["reason"]
    assert json.loads(run_cli("explain", "kept_state:plain", "--json").out)["refusals"] == []


def test_zoo() -> None:
    result = run_cli("explain", "rednet26", "--image-size", "64x64")
    assert (result.status, result.err) == (0, "")
    assert "rednet26: 9 involutions\n" in result.out and "backbone.layer4.0.conv2" in result.out


def test_unknown_model() -> None:
    assert run_cli("explain", "rednet51").status == 2
