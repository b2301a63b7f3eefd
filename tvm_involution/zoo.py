# SPDX-License-Identifier: Apache-2.0
"""The model zoo, read from models/*.toml."""

from __future__ import annotations

import difflib
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from .errors import UserError
from .resources import data_dir
from .schema import decode

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


_Kind = TypeVar("_Kind")


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


@dataclass(frozen=True)
class _Input:
    image_size: tuple[int, int]


@dataclass(frozen=True)
class _Weights:
    file: str


@dataclass(frozen=True)
class _Preprocessing:
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    resize: int | None = None
    crop: int | None = None


@dataclass(frozen=True)
class _Published:
    """See `ModelSpec.published`."""

    source: str
    parameters_m: float
    flops_g: float
    flops_size: tuple[int, int] | None = None
    top1: float | None = None
    top5: float | None = None
    box_ap: float | None = None
    mask_ap: float | None = None
    miou: float | None = None
    held_out_accuracy: float | None = None


@dataclass(frozen=True)
class _File:
    """What models/*.toml may hold; [network] has `builder`, and that builder's arguments."""

    task: str
    description: str
    network: dict[str, Any]
    input: _Input
    published: _Published | None = None
    preprocessing: _Preprocessing | None = None
    weights: _Weights | None = None
    classes: tuple[str, ...] | None = None
    classes_file: str | None = None


@dataclass(frozen=True)
class _Classes:
    """What models/classes/*.toml may hold."""

    names: tuple[str, ...]
    ids: tuple[int, ...] | None = None
    colours: tuple[tuple[int, int, int], ...] | None = None


def _read(path: Path) -> ModelSpec:
    data, file = _decode(_File, path)
    network = dict(file.network)
    if not isinstance(builder := network.pop("builder", None), str):
        raise UserError(f"{path}: [network] lacks a builder, an entry of BUILDERS in tvm_involution/nn/build.py")
    classes = _Classes(file.classes) if file.classes else None
    if file.classes_file is not None:
        _, classes = _decode(_Classes, path.parent / "classes" / f"{file.classes_file}.toml")
    return ModelSpec(
        name=path.stem,
        task=file.task,
        description=file.description,
        builder=builder,
        network=network,
        image_size=file.input.image_size,
        published=data.get("published", {}),
        preprocessing=data.get("preprocessing"),
        weights_file=path.parent / file.weights.file if file.weights else None,
        classes=classes.names if classes else None,
        class_ids=classes.ids if classes else None,
        colours=classes.colours if classes else None,
    )


def _decode(kind: type[_Kind], path: Path) -> tuple[dict[str, Any], _Kind]:
    """Return the tables of a TOML file as they stand there, and as `kind`.

    Raises:
        UserError: no TOML, or a table or key that is missing, misspelt or of another type.
    """
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
        return data, decode(kind, data, path.name)
    except (OSError, ValueError) as error:
        raise UserError(f"the zoo's {path} cannot be read: {error}") from error


def _natural(spec: ModelSpec) -> tuple[str, int]:
    digits = "".join(c for c in spec.name if c.isdigit())
    return spec.name.rstrip("0123456789"), int(digits or 0)
