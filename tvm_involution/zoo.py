# SPDX-License-Identifier: Apache-2.0
"""The model zoo, read from models/*.toml."""

from __future__ import annotations

import difflib
import sys
from dataclasses import asdict, dataclass, field
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
TASKS = ("classification", "semantic_segmentation", "detection", "instance_segmentation")


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


def read_model(path: Path) -> ModelSpec:
    """Return the network of a file that is written like those in models/.

    Files that it names lie beside it; `classes_file` may also be one of models/classes.

    Raises:
        UserError: no such file, or one with a table or key that is missing, misspelt or of another type.
    """
    return _read(path)


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
    backend: str = "pillow"


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
    network: dict[str, Any]
    input: _Input
    description: str = ""
    published: _Published | None = None
    preprocessing: _Preprocessing | None = None
    weights: _Weights | None = None
    classes: tuple[str, ...] | None = None
    classes_file: str | None = None


@dataclass(frozen=True)
class Classes:
    """What models/classes/*.toml may hold."""

    names: tuple[str, ...]
    ids: tuple[int, ...] | None = None
    colours: tuple[tuple[int, int, int], ...] | None = None


def _read(path: Path) -> ModelSpec:
    data, file = _decode(_File, path)
    if file.task not in TASKS:
        raise UserError(f"{path}: unknown task {file.task!r:.80}; expected one of {', '.join(TASKS)}")
    if min(file.input.image_size) < 1:
        raise UserError(f"{path}: image_size must be a height and a width in pixels")
    network = dict(file.network)
    if not isinstance(builder := network.pop("builder", None), str):
        raise UserError(f"{path}: [network] lacks a builder, an entry of BUILDERS in tvm_involution/nn/build.py")
    classes = Classes(file.classes) if file.classes else None
    if file.classes_file is not None:
        shipped = data_dir("models") / "classes" / f"{file.classes_file}.toml"
        own = "/" in file.classes_file or not shipped.is_file()
        classes = read_classes(path.parent / file.classes_file if own else shipped)
    if classes is not None and network.get("num_classes", len(classes.names)) != len(classes.names):
        raise UserError(f"{path}: {network['num_classes']} classes, and names of {len(classes.names)}")
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


def read_classes(path: Path) -> Classes:
    """Return what a .toml file says of classes.

    Raises:
        UserError: it cannot be read, or a key is missing, misspelt or of another type.
    """
    _, classes = _decode(Classes, path)
    for name, values in (("ids", classes.ids), ("colours", classes.colours)):
        if not classes.names or (values is not None and len(values) != len(classes.names)):
            raise UserError(f"{path}: there must be names, and as many {name} where there are some")
    if any(not 0 <= part <= 255 for colour in classes.colours or () for part in colour):
        raise UserError(f"{path}: colours must lie between 0 and 255")
    return classes


def read_preprocessing(path: Path) -> dict[str, Any]:
    """Return the table [preprocessing] of a .toml file, which may also be without that heading.

    Raises:
        UserError: it cannot be read, or a key is missing, misspelt or of another type.
    """
    data = _read_toml(path)
    return decode_preprocessing(data.get("preprocessing", data), path.name)


def decode_preprocessing(data: Any, where: str) -> dict[str, Any]:
    """Return a table as under [preprocessing].

    Raises:
        UserError: a key is missing, misspelt or of another type.
    """
    try:
        table: _Preprocessing = decode(_Preprocessing, _as_in_json(data), where)
    except ValueError as error:
        raise UserError(f"{error}; expected mean, std, and where wanted resize, crop and backend") from error
    return asdict(table)


def _as_in_json(value: Any) -> Any:
    """Return a table of Python's with lists for its tuples."""
    if isinstance(value, dict):
        return {key: _as_in_json(entry) for key, entry in value.items()}
    return list(value) if isinstance(value, tuple) else value


def _decode(kind: type[_Kind], path: Path) -> tuple[dict[str, Any], _Kind]:
    """Return the tables of a TOML file as they stand there, and as `kind`.

    Raises:
        UserError: no TOML, or a table or key that is missing, misspelt or of another type.
    """
    data = _read_toml(path)
    try:
        return data, decode(kind, data, path.name)
    except ValueError as error:
        raise UserError(f"{path} cannot be read: {error}") from error


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise UserError(f"{path} cannot be read: {reason}; expected a TOML file") from error


def _natural(spec: ModelSpec) -> tuple[str, int]:
    digits = "".join(c for c in spec.name if c.isdigit())
    return spec.name.rstrip("0123456789"), int(digits or 0)
