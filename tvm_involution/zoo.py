# SPDX-License-Identifier: Apache-2.0
"""The model zoo, read from models/*.toml."""

from __future__ import annotations

import difflib
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .errors import UserError
from .resources import data_dir

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


@dataclass(frozen=True)
class ModelSpec:
    """One network of the zoo."""

    name: str
    task: str
    description: str
    builder: str
    """Which entry of `nn.build.BUILDERS` makes the module."""
    network: dict[str, Any]
    """Its arguments."""
    image_size: tuple[int, int]
    """Height and width in pixels."""
    published: dict[str, Any] = field(default_factory=dict)
    """Figures with their source: parameters_m, flops_g, counted at flops_size (height, width) where that is not
    image_size, and the accuracies: top1 and top5, box_ap and mask_ap, or miou."""
    preprocessing: dict[str, Any] | None = None
    weights_file: Path | None = None
    classes: tuple[str, ...] | None = None
    class_ids: tuple[int, ...] | None = None
    """The data set's own numbers of the classes, where it counts differently."""
    colours: tuple[tuple[int, int, int], ...] | None = None
    """Red, green and blue of each class in the data set's colour map."""


def list_models() -> list[ModelSpec]:
    """Return every network of the zoo, by name."""
    return sorted((_read(path) for path in data_dir("models").glob("*.toml")), key=_natural)


def get_model(name: str) -> ModelSpec:
    """Return the network called `name`.

    Raises:
        UserError: no such network, with close names.
    """
    known = {path.stem: path for path in data_dir("models").glob("*.toml")}
    if name not in known:
        near = difflib.get_close_matches(name, known, n=3)
        hint = f"did you mean {' or '.join(near)}? " if near else ""
        raise UserError(
            f"unknown model {name[:200]!r}: {hint}expected a name that `tvm-involution models` lists, a .pt2 file or "
            "package.module:function"
        )
    return _read(known[name])


def _read(path: Path) -> ModelSpec:
    data = tomllib.loads(path.read_text(encoding="utf-8"))
    network = dict(data["network"])
    height, width = data["input"]["image_size"]
    weights = data.get("weights", {}).get("file")
    classes = _read_classes(path.parent / "classes" / f"{data['classes_file']}.toml") if "classes_file" in data else {}
    return ModelSpec(
        name=path.stem,
        task=data["task"],
        description=data["description"],
        builder=network.pop("builder"),
        network=network,
        image_size=(height, width),
        published=data.get("published", {}),
        preprocessing=data.get("preprocessing"),
        weights_file=path.parent / weights if weights else None,
        classes=tuple(data["classes"]) if "classes" in data else classes.get("names"),
        class_ids=classes.get("ids"),
        colours=classes.get("colours"),
    )


def _read_classes(path: Path) -> dict[str, Any]:
    data = tomllib.loads(path.read_text(encoding="utf-8"))
    if "colours" in data:
        data["colours"] = [tuple(colour) for colour in data["colours"]]
    return {key: tuple(values) for key, values in data.items()}


def _natural(spec: ModelSpec) -> tuple[str, int]:
    digits = "".join(c for c in spec.name if c.isdigit())
    return spec.name.rstrip("0123456789"), int(digits or 0)
