# SPDX-License-Identifier: Apache-2.0
"""What several subcommands print or read alike."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from typing import Any

import click
import numpy as np
from rich.console import Console
from rich.table import Table

from ..runtime.metadata import KernelCoverage, LibraryMetadata

# longer numbers are no sizes: TVM counts elements in 32 bits
_NUMBER = re.compile(r"0*[1-9][0-9]{0,8}")


class ImageSize(click.ParamType):
    """`HxW` in pixels, such as 224x224."""

    name = "HxW"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return (height, width)."""
        parts = str(value).lower().split("x")
        if len(parts) != 2 or not all(map(_NUMBER.fullmatch, parts)):
            self.fail(f"{value!r} is no image size; expected height x width in pixels, such as 224x224", param, ctx)
        return int(parts[0]), int(parts[1])


class ImageSizes(ImageSize):
    """`HxW` or `HxW,HxW,...`, such as 224x224,320x320."""

    name = "HxW[,HxW...]"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return a tuple of (height, width)."""
        return tuple(super(ImageSizes, self).convert(part.strip(), param, ctx) for part in str(value).split(","))


class BatchSizes(click.ParamType):
    """`N` or `N,N,...`, such as 1,8."""

    name = "N[,N...]"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return a tuple of sizes."""
        parts = [part.strip() for part in str(value).split(",")]
        if not all(map(_NUMBER.fullmatch, parts)):
            self.fail(
                f"{value!r} is no list of batch sizes; expected positive whole numbers, such as 1,8",
                param,
                ctx,
            )
        return tuple(int(part) for part in parts)


class Number(click.FloatRange):
    """A number that is one: not NaN, not infinite."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return a float."""
        number = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value!r} is no number", param, ctx)
        return number


def print_json(data: Any) -> None:
    """Print machine-readable output."""
    click.echo(json.dumps(data, indent=1))


def remark(text: str) -> None:
    """Say something on standard error that ends nothing."""
    click.echo(f"tvm-involution: {text}", err=True)


def storable(array: np.ndarray) -> np.ndarray:
    """Return what the .npy format can hold: it has no bfloat16, and float32 has all of its values."""
    return array.astype(np.float32) if array.dtype.name == "bfloat16" else array


def print_table(title: str, columns: list[str], rows: list[list[str]]) -> None:
    """Print a table as wide as the terminal, or as it needs where there is none."""
    table = Table(*columns, title=title, title_justify="left")
    table.columns[0].no_wrap = True  # names are for copying
    for row in rows:
        table.add_row(*row)
    console = Console()
    if not console.is_terminal:
        console = Console(width=160)
    console.print(table)


def left_out_lines(tasks: Sequence[tuple[str, float, str]], of: str) -> list[str]:
    """Name the tasks that tuning leaves out, and their share.

    Args:
        tasks: name of each task, its part of what the share is `of`, and why it is left out, "" where it is not.
    """
    total = sum(part for _, part, _ in tasks) or 1.0
    return [f"left out: {name}, {part / total:.1%} of {of}: {why}" for name, part, why in tasks if why]


def kernels_text(kernels: KernelCoverage) -> str:
    """Say where the kernels' schedules came from."""
    borrowed = f" ({kernels.borrowed} of them measured on {kernels.borrowed_from})" if kernels.borrowed else ""
    rules = ", ".join(f"{name} {count}" for name, count in kernels.by_rule.items())
    return (
        f"{kernels.total} kernels: {kernels.record} from tuning records{borrowed}, "
        f"{kernels.rule} from rules' defaults, {kernels.fallback} that no rule was made for"
    ) + (f" ({rules})" if rules else "")


def warn_of_random_weights(metadata: LibraryMetadata) -> None:
    """Say on standard error that answers mean nothing, where nobody trained the weights."""
    if metadata.weights_are_random:
        remark(
            f"warning: the weights of {metadata.name} are random, so its answers mean nothing; compile it with "
            "--checkpoint"
        )
