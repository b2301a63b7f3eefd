# SPDX-License-Identifier: Apache-2.0
"""Parameters and operations equal the published ones."""

from __future__ import annotations

import pytest
import torch

from tvm_involution.nn import Involution2d, build_model, count_operations, count_parameters
from tvm_involution.zoo import get_model

# depth -> parameters, and multiply-adds of convolutions, classifier and involutions alone in units of 1e9 at 224x224
COUNTS = {
    26: (9_233_166, 1.685),
    38: (12_386_986, 2.167),
    50: (15_540_806, 2.649),
    101: (25_652_950, 4.659),
    152: (33_984_582, 6.679),
}


def count(name: str):
    """Count without computing anything: on the meta device."""
    spec = get_model(name)
    with torch.device("meta"):
        model = build_model(spec)
        return spec.published, count_parameters(model), count_operations(model, (3, *spec.image_size))


@pytest.mark.parametrize("depth", COUNTS)
def test_rednet(depth):
    published, parameters, operations = count(f"rednet{depth}")
    assert (parameters, round(operations.multiply_adds / 1e9, 3)) == COUNTS[depth]
    # 33.98458 is published as 33.99: rounded to 33.985 first, it seems. The other four are within 0.005.
    assert parameters / 1e6 == pytest.approx(published["parameters_m"], abs=0.0055)
    assert operations.total / 1e9 == pytest.approx(published["flops_g"], rel=0.03)


@pytest.mark.parametrize("depth", [50, 101])
def test_resnet(depth):
    published, parameters, operations = count(f"resnet{depth}")
    assert round(parameters / 1e6, 3) == published["parameters_m"]
    assert operations.involution == 0
    assert operations.multiply_adds / 1e9 == pytest.approx(published["flops_g"], rel=0.01)


def test_each_kind_is_counted_by_hand():
    class Sample(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.involution = Involution2d(16, 3, 2)
            self.fc = torch.nn.Linear(16, 5)

        def forward(self, x):
            return self.fc(self.involution(x).mean((2, 3)))

    counts = count_operations(Sample().eval(), (16, 8, 6))
    pixels = 4 * 3
    assert counts.pooling == 16 * 8 * 6
    assert counts.convolution == pixels * (16 * 4 + 4 * 9)
    assert counts.batch_norm == 2 * pixels * 4
    assert counts.relu == pixels * 4
    assert counts.involution == pixels * 16 * 9
    assert counts.linear == 16 * 5
    assert counts.multiply_adds == counts.convolution + counts.linear + counts.involution
    assert counts.total == counts.multiply_adds + counts.batch_norm + counts.relu + counts.pooling


def test_counting_leaves_no_hook_behind():
    model = build_model("rednet_digits")
    count_operations(model, (3, 32, 32))
    assert not any(part._forward_hooks for part in model.modules())
