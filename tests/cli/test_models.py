# SPDX-License-Identifier: Apache-2.0
"""`tvm-involution models` and `targets`: tables for people, JSON for programs."""

from __future__ import annotations

import json

from command_line import run_cli

from tvm_involution.zoo import list_models


def test_models_table() -> None:
    result = run_cli("models")
    assert (result.status, result.err) == (0, "")
    (row,) = [line for line in result.out.splitlines() if " rednet50 " in line]
    assert "15.54" in row and "2.71" in row and "classification" in row
    for spec in list_models():
        assert spec.name in result.out
    assert "top-1 78.35" in row
    (row,) = [line for line in result.out.splitlines() if "mask_rcnn_rednet50_neck " in line]
    assert "instance_segmentation" in row and "181.3" in row and "mask AP 36.4" in row


def test_models_json() -> None:
    data = json.loads(run_cli("models", "--json").out)
    assert [entry["name"] for entry in data] == [spec.name for spec in list_models()]
    rednet26 = next(entry for entry in data if entry["name"] == "rednet26")
    assert rednet26["task"] == "classification" and rednet26["image_size"] == [224, 224]
    assert rednet26["published"]["parameters_m"] == 9.23


def test_targets_table() -> None:
    result = run_cli("targets")
    assert (result.status, result.err) == (0, "")
    assert "this machine's CPU" in result.out and "nvidia/nvidia-h100" in result.out


def test_targets_json() -> None:
    data = json.loads(run_cli("targets", "--json").out)
    by_name = {entry["name"]: entry for entry in data}
    assert by_name["llvm"]["present"] is True
    assert set(by_name["cuda"]) == {"name", "description", "present", "tuned"}
    descriptions = " ".join(entry["description"] for entry in data)
    for architecture in ("sm_75", "sm_80", "sm_86", "sm_89", "sm_90a", "sm_100a", "sm_120"):
        assert f"cuda {architecture}: " in descriptions
    assert by_name["nvidia/nvidia-t4"]["description"].endswith("64 KiB shared memory, tensor cores for float16")
    assert by_name["nvidia/nvidia-a100"]["description"].endswith("tensor cores for float16, bfloat16, tf32")
