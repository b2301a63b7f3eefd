# SPDX-License-Identifier: Apache-2.0
"""What users say of their own networks: the classes' names, and how a picture becomes an input."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .. import zoo
from ..errors import UserError
from ..runtime.metadata import Preprocessing, preprocessing_from, preprocessing_problems
from ..schema import decode

_LARGEST_FILE = 16 << 20


def read_classes(given: str | Path | Sequence[str]) -> zoo.Classes:
    """Return names of classes, in the order of the logits.

    Args:
        given: the names; or a file of them, a line each, or a .toml with `names` and, where wanted, the data set's own
            `ids` and `colours`, as in models/classes.

    Raises:
        UserError: no such file, or what are no names.
    """
    if not isinstance(given, (str, Path)):
        return _checked_names(list(given), "classes")
    file = Path(given)
    if file.suffix.lower() == ".toml":
        return zoo.read_classes(file)
    lines = [line.strip() for line in _read_text(file).splitlines()]
    while lines and not lines[-1]:
        lines.pop()
    if "" in lines:
        raise UserError(f"line {lines.index('') + 1} of {file} is empty; expected a name of a class on each")
    return _checked_names(lines, str(file))


def _checked_names(names: list[Any], where: str) -> zoo.Classes:
    try:
        classes: zoo.Classes = decode(zoo.Classes, {"names": names}, where)
    except ValueError as error:
        raise UserError(f"{error}; expected the classes' names") from error
    if not names or not all(names):
        raise UserError(f"{where} must have the classes' names, a line each, got {'an empty one' if names else 'none'}")
    return classes


def read_preprocessing(given: str | Path | Mapping[str, Any]) -> Preprocessing:
    """Return how a picture becomes an input.

    Args:
        given: a table with `mean` and `std`, and where wanted `resize`, `crop` and `backend`, as under [preprocessing]
            in models/*.toml; or a .toml file of it, with or without that heading.

    Raises:
        UserError: no such file, no such table, or values that prepare no picture.
    """
    if isinstance(given, Mapping):
        where, preprocessing = "preprocessing", zoo.decode_preprocessing(dict(given), "preprocessing")
    else:
        where, preprocessing = str(given), zoo.read_preprocessing(Path(given))
    made = preprocessing_from(preprocessing)
    if problem := next(preprocessing_problems(made), None):
        raise UserError(f"{where}: {problem}")
    return made


def _read_text(file: Path) -> str:
    try:
        if file.is_file() and file.stat().st_size > _LARGEST_FILE:
            raise UserError(f"{file} has more than {_LARGEST_FILE >> 20} MiB; expected the classes' names, a line each")
        return file.read_text(encoding="utf-8-sig")
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"classes file {file} cannot be read: {reason}; expected a text file, a name a line") from error
