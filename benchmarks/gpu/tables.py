# SPDX-License-Identifier: Apache-2.0
"""The results as Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from markdown_rows import markdown_header, markdown_row

from .results import FAILED, Results, Row
from .settings import OURS, TUNED

_RATIO = "to the best peer's ResNet-50"


def as_markdown(results: Results) -> str:
    """Return all tables; a step without rows has none."""
    parts = [_machine(results), _check(results), *_networks(results), *_operators(results), *_layers(results)]
    parts += [_tune(results), *_tuned(results), _failures(results)]
    return "\n\n".join(part for part in parts if part) + "\n"


def best_peer(results: Results, precision: str, batch: int) -> float | None:
    """Return the milliseconds of the fastest peer on a ResNet-50 (or what else the second network is)."""
    rows = results.rows("networks", precision=precision, batch=batch)
    times = [row["ms"] for row in rows if _is_baseline(row) and row["contender"] != OURS and "ms" in row]
    return min(times, default=None)


def _is_baseline(row: Row) -> bool:
    return row["model"] == "resnet50"


def _machine(results: Results) -> str:
    about = results.row("machine", roof="none")
    if about is None:
        return ""
    lines = [f"- {name}: {value}" for name, value in about.items() if name != "roof" and value is not None]
    roofs = [row for row in results.rows("machine") if row["roof"] != "none"]
    table = _table(
        ("roof", "measured", "us"),
        (
            (row["roof"], _either(row, "gbs", " GB/s") or _either(row, "tflops", " TFLOP/s"), _value(row, "us"))
            for row in roofs
        ),
    )
    return "\n".join(["## Machine", "", *lines, "", table])


def _check(results: Results) -> str:
    rows = results.rows("check")
    if not rows:
        return ""
    groups: dict[tuple[str, int], list[Row]] = {}
    for row in rows:
        groups.setdefault((row["precision"], row["batch"]), []).append(row)
    summary = _table(
        ("precision", "batch", "kernels", "right", "wrong", "not checked", "worst relative error"),
        (
            (
                precision,
                batch,
                len(group),
                sum(row["right"] is True for row in group),
                sum(row["right"] is False for row in group),
                sum(row["right"] is None for row in group),
                max((row["error"] for row in group if row.get("error") is not None), default="-"),
            )
            for (precision, batch), group in groups.items()
        ),
    )
    wrong = [row for row in rows if row["right"] is False]
    details = _table(
        ("kernel", "shapes", "batch", "precision", "rule", "relative error", "unwritten", "failure"),
        (
            [_value(row, name) for name in ("kernel", "shapes", "batch", "precision", "rule", "error", "unwritten")]
            + [row.get(FAILED, "")]
            for row in wrong
        ),
    )
    return f"## Kernels against plain programs\n\n{summary}" + (f"\n\n{details}" if wrong else "")


def _networks(results: Results) -> Iterable[str]:
    for key, rows in _groups(results.rows("networks"), "precision", "batch"):
        base = best_peer(results, *key)
        cells = []
        for row in sorted(rows, key=lambda row: (row["model"], row.get("ms", float("inf")))):
            ratio = f"{row['ms'] / base:.2f}" if base and "ms" in row else "-"
            cells.append(
                (
                    row["model"],
                    row["contender"],
                    *(_value(row, name) for name in ("ms", "min_ms", "latency_ms")),
                    ratio,
                    *(_value(row, name) for name in ("floor_ms", "gflop", "megabytes", "launches", "error", "build_s")),
                    row.get(FAILED, ""),
                )
            )
        columns = ("network", "in", "ms", "min ms", "latency ms", _RATIO, "floor ms", "GFLOP")
        columns += ("MB", "kernels", "relative error", "ready after s", "failure")
        yield f"## Networks, {key[0]}, batch {key[1]}\n\n" + _table(columns, cells)


def _operators(results: Results) -> Iterable[str]:
    for key, rows in _groups(results.rows("operators"), "precision", "batch"):
        contenders = list(dict.fromkeys(row["contender"] for row in rows))
        lines = []
        for layer in dict.fromkeys(row["layer"] for row in rows):
            cells: list[Any] = [layer]
            for contender in contenders:
                row = next((r for r in rows if r["layer"] == layer and r["contender"] == contender), {})
                share = row.get("share_of_floor")
                failure = row.get(FAILED, "-")
                cells.append(f"{row['us']:.1f}" + (f" ({share:.2f})" if share else "") if "us" in row else failure)
            worst = max((row["error"] for row in rows if row["layer"] == layer and row.get("error")), default="-")
            lines.append([*cells, worst])
        columns = ("channels, size, K, stride", *contenders, "worst relative error")
        yield (
            f"## Involutions, {key[0]}, batch {key[1]}: us (share of the floor)\n\n"
            "The floor: x, kernel and result once each; fused: x, hidden pixels, weights and result; span alone: "
            "hidden pixels, weights and kernel.\n\n" + _table(columns, lines)
        )


def _layers(results: Results) -> Iterable[str]:
    for (precision, batch, tuned), rows in _groups(results.rows("layers"), "precision", "batch", "tuned"):
        timed = sorted((row for row in rows if "us" in row), key=lambda row: -row["total_us"])
        columns = (
            "kernel",
            "shapes",
            "calls",
            "us",
            "total us",
            "GFLOP/s",
            "GB/s",
            "floor us",
            "share of roof",
            "rule",
        )
        names = ("kernel", "shapes", "calls", "us", "total_us", "gflops", "gbs", "floor_us", "share_of_roof", "rule")
        table = _table(columns, ([_value(row, name) for name in names] for row in timed))
        total = sum(row["total_us"] for row in timed) / 1e3
        floor = sum(row["calls"] * row["floor_us"] for row in timed if row["floor_us"]) / 1e3
        network = _network_ms(results, precision, batch, tuned)
        beside = f"; the network takes {network:.3f} ms" if network else ""
        reasons = dict.fromkeys(row[FAILED] for row in rows if FAILED in row)
        failed = "".join(
            f"\n- {reason}: {', '.join(row['kernel'] for row in rows if row.get(FAILED) == reason)}"
            for reason in reasons
        )
        yield (
            f"## Layers, {precision}, batch {batch}{', with tuning records' if tuned else ''}\n\n{table}\n\n"
            f"Sum {total:.3f} ms, floors {floor:.3f} ms{beside}.{failed}"
        )


def _network_ms(results: Results, precision: str, batch: int, tuned: bool) -> float | None:
    step, contender = ("tuned", TUNED) if tuned else ("networks", OURS)
    rows = results.rows(step, precision=precision, batch=batch, contender=contender)
    return next((row["ms"] for row in rows if "ms" in row), None)


def _tune(results: Results) -> str:
    rows = results.rows("tune")
    names = ("model", "precision", "batch", "trials", "default_ms", "tuned_ms")
    columns = ("network", "precision", "batch", "trials", "sum of default kernels, ms", "tuned, ms", "failure")
    table = _table(columns, ([*(_value(row, name) for name in names), row.get(FAILED, "")] for row in rows))
    return f"## Tuning\n\n{table}" if rows else ""


def _tuned(results: Results) -> Iterable[str]:
    for key, rows in _groups(results.rows("tuned"), "precision", "batch"):
        base = best_peer(results, *key)
        cells = [
            (
                row["model"],
                row["contender"],
                *(_value(row, name) for name in ("ms", "min_ms", "error", "kernels")),
                f"{row['ms'] / base:.2f}" if base and "ms" in row else "-",
                row.get(FAILED, ""),
            )
            for row in rows
        ]
        columns = (
            "network",
            "in",
            "ms",
            "min ms",
            "relative error",
            "kernels",
            _RATIO,
            "failure",
        )
        yield f"## Tuned, {key[0]}, batch {key[1]}\n\n" + _table(columns, cells)


def _failures(results: Results) -> str:
    rows = results.rows("failures")
    return "## Steps that failed\n\n" + "\n".join(f"- {row['step']}: {row[FAILED]}" for row in rows) if rows else ""


def _groups(rows: Sequence[Row], *names: str) -> Iterable[tuple[tuple, list[Row]]]:
    groups: dict[tuple, list[Row]] = {}
    for row in rows:
        groups.setdefault(tuple(row[name] for name in names), []).append(row)
    return groups.items()


def _table(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    return "\n".join([markdown_header(columns), *map(markdown_row, rows)])


def _value(row: Row, name: str) -> Any:
    value = row.get(name)
    return "-" if value is None else value


def _either(row: Row, name: str, unit: str) -> str:
    return f"{row[name]}{unit}" if name in row else ""
