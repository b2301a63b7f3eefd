# SPDX-License-Identifier: Apache-2.0
"""Detectors and segmentation networks as tuning tasks."""

from __future__ import annotations

import logging

import pytest
from dense_networks import small_detector, small_retinanet, small_segmentor

from tvm_involution.frontend.network import resolve_network
from tvm_involution.target import resolve_target
from tvm_involution.tuning.tasks import METASCHEDULE, extract_tasks


@pytest.mark.parametrize(
    "module", [small_detector(True), small_retinanet(), small_segmentor("upernet")], ids=["mask", "retina", "upernet"]
)
def test_every_task_has_a_rule_and_a_space(module, caplog):
    with caplog.at_level(logging.WARNING):
        tasks = extract_tasks(resolve_network(module, image_size=(64, 64)), resolve_target("llvm"))
    assert not caplog.records
    assert all(task.spaces and task.rule and task.rule != METASCHEDULE for task in tasks)
    assert "PackedGemm" in {task.rule for task in tasks}
