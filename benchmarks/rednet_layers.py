# SPDX-License-Identifier: Apache-2.0
"""The involutions of a RedNet at 224x224: the stem's, then the stages' first and others."""

from __future__ import annotations

LAYERS = [
    (32, 112, 3, 1),
    (64, 56, 7, 1),
    (128, 56, 7, 2),
    (128, 28, 7, 1),
    (256, 28, 7, 2),
    (256, 14, 7, 1),
    (512, 14, 7, 2),
    (512, 7, 7, 1),
]
"""channels, pixels a side of x, kernel size, stride; groups of 16 channels, a quarter of the channels hidden"""
