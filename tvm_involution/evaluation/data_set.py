# SPDX-License-Identifier: Apache-2.0
"""What every data set does: name its pictures, take answers, and say what share of them is right."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

from ..errors import UserError
from ..runtime import LibraryMetadata
from ..runtime.results import Result


class DataSet(ABC):
    """Pictures with known answers.

    Attributes:
        pictures: their files, in the order in which `add` gets the answers.
    """

    tasks: ClassVar[tuple[str, ...]]
    """of the networks that answer what the data set asks"""
    pictures: Sequence[str]

    @abstractmethod
    def __init__(self, folder: Path, metadata: LibraryMetadata, limit: int | None) -> None:
        """Find the pictures and their answers.

        Raises:
            UserError: the folder is not laid out as expected, or its classes are not the library's.
        """

    @abstractmethod
    def add(self, number: int, answer: Result) -> None:
        """Take the answer about the picture `number`."""

    @abstractmethod
    def figures(self) -> dict[str, float]:
        """Return what was reached, in percent, under the names that the zoo has for published figures."""


def read_text(file: Path, expected: str) -> str:
    """Return a file's text.

    Raises:
        UserError: it cannot be read; `expected` says what it should be.
    """
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise UserError(f"{file} cannot be read: {reason}; expected {expected}") from error


def limited(pictures: Sequence[Any], limit: int | None, folder: Path, expected: str) -> list[Any]:
    """Return the first pictures.

    Raises:
        UserError: there is none; `expected` says how the folder should be laid out.
    """
    if not pictures:
        raise UserError(f"{folder} has no pictures with answers; expected {expected}")
    return list(pictures[:limit])
