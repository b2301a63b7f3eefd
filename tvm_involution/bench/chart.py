# SPDX-License-Identifier: Apache-2.0
"""The medians as bars."""

from __future__ import annotations

from pathlib import Path

from ..errors import UserError
from ..files import atomic_write
from .result import Comparison

_OURS, _PEERS = "#d1495b", "#9aa5b1"


def check_chart(path: Path) -> None:
    """Raise before the measurement what `draw_chart` would raise after it.

    Raises:
        UserError: matplotlib is not installed, or has no writer for the suffix of `path`.
    """
    try:
        from matplotlib.backend_bases import FigureCanvasBase
    except ModuleNotFoundError as error:
        raise UserError('--chart needs matplotlib: pip install "tvm-involution[bench]"') from error
    if path.suffix.lstrip(".").lower() not in FigureCanvasBase.get_supported_filetypes():
        raise UserError(f"cannot write {path}: unknown kind of picture; name a .png, .svg or .pdf file")


def draw_chart(comparison: Comparison, path: Path) -> None:
    """Write the picture `path`, in the format of its suffix.

    Raises:
        UserError: the folder cannot be written.
    """
    from matplotlib.figure import Figure

    rows = [result for result in comparison.results if result.median_ms is not None][::-1]
    figure = Figure(figsize=(8, 0.42 * len(rows) + 1.2), layout="constrained")
    axis = figure.subplots()
    drawn = axis.barh(
        [f"{row.network}, {row.contender}" for row in rows],
        [row.median_ms or 0.0 for row in rows],
        color=[_OURS if row.contender == "ours" else _PEERS for row in rows],
    )
    axis.bar_label(drawn, fmt="%.1f", padding=3)
    axis.set_xlabel("milliseconds a batch (median)")
    axis.set_title(comparison.title(), fontsize=10)
    axis.spines[["top", "right"]].set_visible(False)
    with atomic_write(path) as temporary:
        figure.savefig(temporary, dpi=120)
