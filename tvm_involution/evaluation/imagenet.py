# SPDX-License-Identifier: Apache-2.0
"""Classes of pictures: top-1 and top-5 accuracy."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ..errors import UserError
from ..runtime import LibraryMetadata
from ..runtime.find_pictures import find_pictures
from ..runtime.results import Result
from .data_set import DataSet, limited, read_text

_EXPECTED = (
    "a folder for each class in DIR/val or DIR, or DIR/val and mmcls's DIR/meta/val.txt (a file and a number a line)"
)


class ImageNet(DataSet):
    """ImageNet's validation pictures, or any that lie in a folder for each class.

    Folders are the classes in the order of their names, as those of ImageNet's numbers (n01440764 ...) are; where they
    are called like the library's classes, in the library's order.
    """

    tasks = ("classification",)

    def __init__(self, folder: Path, metadata: LibraryMetadata, limit: int | None) -> None:
        self._count = int(metadata.outputs[0].shape[1])
        root = folder / "val" if (folder / "val").is_dir() else folder
        listed = folder / "meta" / "val.txt"
        found = self._listed(listed, root) if listed.is_file() else self._in_folders(root, metadata)
        found = limited(found, limit, folder, _EXPECTED)
        self.pictures = [picture for picture, _ in found]
        self._answers = np.array([number for _, number in found])
        self._ranks = np.full(len(found), self._count)

    def _listed(self, file: Path, root: Path) -> list[tuple[str, int]]:
        found = []
        for number, line in enumerate(
            read_text(file, "a file's name and the number of its class a line").splitlines(), 1
        ):
            name, _, label = line.strip().rpartition(" ")
            if not name or not label.isascii() or not label.isdecimal() or int(label) >= self._count:
                raise UserError(
                    f"line {number} of {file} is {line[:80]!r}; expected a file and a class below {self._count}"
                )
            found.append((str(root / name), int(label)))
        return found

    def _in_folders(self, root: Path, metadata: LibraryMetadata) -> list[tuple[str, int]]:
        if not root.is_dir():
            raise UserError(f"{root} is no folder; expected {_EXPECTED}")
        names = sorted(path.name for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
        if metadata.classes is not None and set(names) == set(metadata.classes) and len(names) == self._count:
            names = list(metadata.classes)
        if len(names) != self._count:
            raise UserError(
                f"{root} has folders of {len(names)} classes, and {metadata.name} {self._count}; expected {_EXPECTED}"
            )
        return [(picture, i) for i, name in enumerate(names) for picture in find_pictures([root / name])]

    def measure(self, number: int, answer: Result) -> int:
        logits = np.asarray(answer.outputs[answer.metadata.outputs[0].name], np.float64)[0]
        best = np.argsort(-logits, kind="stable")
        return int(np.flatnonzero(best == self._answers[number])[0])

    def count(self, number: int, measured: int) -> None:
        self._ranks[number] = measured

    def figures(self) -> dict[str, float]:
        return {f"top{k}": float(100 * (self._ranks < k).mean()) for k in (1, 5)}
