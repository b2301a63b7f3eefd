# SPDX-License-Identifier: Apache-2.0
"""How long to measure."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Effort:
    """How often and how long."""

    rounds: int = 10
    """turns of each contender"""
    calls: int = 10
    """inferences a turn"""
    timeout: float = 900.0
    """seconds that a contender may take to build, to load or for a turn"""
    show_output: bool = False
    """let through what the libraries print"""
