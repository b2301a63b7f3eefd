# SPDX-License-Identifier: Apache-2.0
"""What every data set does: name its pictures, measure and count answers, and say what share of them is right."""

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
        pictures: their files, in by which `add` numbers the answers.
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

    def add(self, number: int, answer: Result) -> None:
        """Take the answer about the picture `number`."""
        self.count(number, self.measure(number, answer))

    @abstractmethod
    def measure(self, number: int, answer: Result) -> Any:
        """Return what counts of the answer about the picture `number`, little as it is.

        The library may have run elsewhere: so the data set can be pickled, and nothing is kept here.
        """

    @abstractmethod
    def count(self, number: int, measured: Any) -> None:
        """Take what `measure` returned."""

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
