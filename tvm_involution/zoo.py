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
    """Figures with their source: parameters_m, flops_g, top1, top5."""
    preprocessing: dict[str, Any] | None = None
    weights_file: Path | None = None
    classes: tuple[str, ...] | None = None


def list_models() -> list[ModelSpec]:
    """Return every network of the zoo, by name."""
    return sorted((_read(path) for path in data_dir("models").glob("*.toml")), key=_natural)


def get_model(name: str) -> ModelSpec:
    """Return the network called `name`.

    Raises:
        UserError: no such network, with close names.
    """
    path = data_dir("models") / f"{name}.toml"
    if "/" in name or not path.is_file():
        near = difflib.get_close_matches(name, [p.stem for p in data_dir("models").glob("*.toml")], n=3)
        hint = f"did you mean {' or '.join(near)}? " if near else ""
        raise UserError(
            f"unknown model {name!r}: {hint}expected a name that `tvm-involution models` lists, a .pt2 file or "
            "package.module:function"
        )
    return _read(path)


def _read(path: Path) -> ModelSpec:
    data = tomllib.loads(path.read_text(encoding="utf-8"))
    network = dict(data["network"])
    height, width = data["input"]["image_size"]
    weights = data.get("weights", {}).get("file")
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
        classes=tuple(data["classes"]) if "classes" in data else None,
    )


def _natural(spec: ModelSpec) -> tuple[str, int]:
    digits = "".join(c for c in spec.name if c.isdigit())
    return spec.name.rstrip("0123456789"), int(digits or 0)
