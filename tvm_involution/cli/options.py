# SPDX-License-Identifier: Apache-2.0
"""Options that several subcommands share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from ..runtime.metadata import DTYPES
from .words import ImageSize


def network_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add `--target`, `--batch`, `--dtype` and `--image-size`: which form of a network is meant."""
    for option in (
        click.option("--image-size", type=ImageSize(), help="Height and width. [default: the network's own]"),
        click.option("--dtype", type=click.Choice(DTYPES), help="[default: float32]"),
        click.option("--batch", type=click.IntRange(1), help="Batch size. [default: 1]"),
        click.option(
            "--target", default="llvm", show_default=True, help="llvm (this CPU), cuda (this GPU), a TVM tag or JSON."
        ),
    ):
        command = option(command)
    return command
