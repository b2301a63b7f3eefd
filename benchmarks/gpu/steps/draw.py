# SPDX-License-Identifier: Apache-2.0
"""OUT/tables.md, and OUT/gpu.png where matplotlib is installed: from the results alone."""

from __future__ import annotations

from tvm_involution.files import atomic_write

from ..results import Results, Row
from ..roofs import read_roofs
from ..settings import OURS, Settings
from ..tables import as_markdown, best_peer

_OURS, _PEERS, _BEST = "#d1495b", "#9aa5b1", "#30638e"
_MARKERS = ("o", "s", "^", "D", "v", "P")


def draw(settings: Settings, results: Results) -> None:
    """Write the tables; then draw the rooflines and the networks' times."""
    with atomic_write(settings.out / "tables.md") as path:
        path.write_text(as_markdown(results))
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError:
        print("no picture: matplotlib is not installed; `--only draw` draws it elsewhere", flush=True)
        return
    groups = sorted({(row["precision"], row["batch"]) for row in results.rows("networks") if "ms" in row})
    figure = Figure(figsize=(11, 5 + 2.4 * len(groups)), layout="constrained")
    axes = figure.subplots(1 + len(groups), 1, squeeze=False, height_ratios=[5, *[2.4] * len(groups)])[:, 0]
    _draw_roofline(axes[0], results, settings.precisions[0])
    for axis, (precision, batch) in zip(axes[1:], groups, strict=True):
        _draw_networks(axis, results, precision, batch)
    with atomic_write(settings.out / "gpu.png") as path:
        figure.savefig(path, dpi=110)


def _draw_roofline(axis, results: Results, precision: str) -> None:
    roofs = read_roofs(results, precision)
    layers = [row for row in results.rows("layers", precision=precision, tuned=False) if "us" in row]
    largest = max((row["batch"] for row in layers), default=0)
    points = [("kernels of the network", row) for row in layers if row["batch"] == largest]
    if points:
        intensities = [row["operations"] / row["bytes"] for _, row in points]
        rates = [max(row["gflops"], 1e-3) / 1e3 for _, row in points]
        sizes = [20 + 400 * row["total_us"] / sum(r["total_us"] for _, r in points) for _, row in points]
        axis.scatter(intensities, rates, sizes, color=_OURS, alpha=0.6, label=f"kernels, batch {largest} (area: time)")
    _draw_operators(axis, results, precision)
    if roofs.gbs and roofs.tflops:
        low, high = 0.05, 4096.0
        ridge = roofs.tflops * 1e3 / roofs.gbs
        axis.plot([low, ridge, high], [low * roofs.gbs / 1e3, roofs.tflops, roofs.tflops], color="black")
        axis.annotate(f"{roofs.gbs:.3g} GB/s", (low, low * roofs.gbs / 1e3), textcoords="offset points", xytext=(4, 10))
        axis.annotate(f"{roofs.tflops:.3g} TFLOP/s", (high, roofs.tflops), ha="right", va="bottom")
    axis.set(xscale="log", yscale="log", xlabel="operations a byte", ylabel="TFLOP/s", title=f"Roofline, {precision}")
    if axis.get_legend_handles_labels()[0]:
        axis.legend(fontsize=7, loc="lower right")


def _draw_operators(axis, results: Results, precision: str) -> None:
    rows = [row for row in results.rows("operators", precision=precision) if "us" in row and "operations" in row]
    largest = max((row["batch"] for row in rows), default=0)
    chosen = [row for row in rows if row["batch"] == largest]
    for number, contender in enumerate(dict.fromkeys(row["contender"] for row in chosen)):
        own = [row for row in chosen if row["contender"] == contender]
        axis.scatter(
            [row["operations"] / row["bytes"] for row in own],
            [row["operations"] / row["us"] / 1e6 for row in own],
            24,
            marker=_MARKERS[number % len(_MARKERS)],
            facecolors="none",
            edgecolors=_BEST if contender.startswith("ours") else _PEERS,
            label=f"involution: {contender}",
        )


def _draw_networks(axis, results: Results, precision: str, batch: int) -> None:
    rows = [row for row in results.rows("networks", precision=precision, batch=batch) if "ms" in row]
    rows.sort(key=lambda row: (row["model"], row["ms"]), reverse=True)
    labels = [f"{row['model']}, {row['contender']}" for row in rows]
    bars = axis.barh(labels, [row["ms"] for row in rows], color=[_colour(row) for row in rows])
    axis.bar_label(bars, fmt="%.3g", padding=3, fontsize=7)
    floors = [(row["floor_ms"], number) for number, row in enumerate(rows) if row.get("floor_ms")]
    if floors:
        axis.scatter(*zip(*floors, strict=True), marker="|", color="black", zorder=3, label="floor")
    if (base := best_peer(results, precision, batch)) is not None:
        axis.axvline(base, color=_BEST, linewidth=0.8, label="best peer's ResNet-50")
    axis.tick_params(labelsize=7)
    axis.set_title(f"{precision}, batch {batch}: milliseconds", fontsize=9)
    if axis.get_legend_handles_labels()[0]:
        axis.legend(fontsize=7, loc="lower right")


def _colour(row: Row) -> str:
    return _OURS if row["contender"] == OURS else _PEERS
