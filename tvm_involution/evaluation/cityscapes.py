# SPDX-License-Identifier: Apache-2.0
"""Classes of pixels: mean intersection over union, as mmseg's IoUMetric counts it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from ..errors import UserError
from ..runtime import LibraryMetadata
from ..runtime.find_pictures import find_pictures
from ..runtime.results import ClassMap, Result
from .data_set import DataSet, limited

_EXPECTED = (
    "DIR/leftImg8bit/val/CITY/*_leftImg8bit.png and DIR/gtFine/val/CITY/*_gtFine_labelTrainIds.png (or labelIds)"
)
_IGNORED = 255
# Cityscapes' own numbers of the 19 classes that are evaluated, in the order of the logits
_LABEL_IDS = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)


class Cityscapes(DataSet):
    """Cityscapes' validation pictures, or any laid out so."""

    tasks = ("semantic_segmentation",)

    def __init__(self, folder: Path, metadata: LibraryMetadata, limit: int | None) -> None:
        self._count = int(metadata.outputs[0].shape[1])
        root = folder / "leftImg8bit" / "val"
        if not root.is_dir():
            raise UserError(f"{root} is no folder; expected {_EXPECTED}")
        pictures = [path for path in find_pictures([root]) if Path(path).stem.endswith("_leftImg8bit")]
        self.pictures = limited(pictures, limit, folder, _EXPECTED)
        self._truth = [self._truth_of(Path(path), root, folder / "gtFine" / "val") for path in self.pictures]
        self._intersections = np.zeros(self._count, np.int64)
        self._unions = np.zeros(self._count, np.int64)

    @staticmethod
    def _truth_of(picture: Path, root: Path, truths: Path) -> Path:
        stem = picture.stem.removesuffix("_leftImg8bit")
        for kind in ("labelTrainIds", "labelIds"):
            if (file := truths / picture.parent.relative_to(root) / f"{stem}_gtFine_{kind}.png").is_file():
                return file
        raise UserError(f"{picture} has no labels in {truths}; expected {_EXPECTED}")

    def measure(self, number: int, answer: Result) -> tuple[np.ndarray, np.ndarray]:
        assert isinstance(answer, ClassMap)
        truth = self._read(self._truth[number])
        if truth.shape != answer.labels.shape:
            raise UserError(
                f"{self._truth[number]} has another size than its picture, {truth.shape[1]}x{truth.shape[0]}"
            )
        counted = truth != _IGNORED
        told, found = truth[counted], answer.labels[counted]
        if told.size and told.max() >= self._count:
            raise UserError(f"{self._truth[number]} has class {told.max()}, and the library {self._count} classes")
        hits, tolds, founds = (np.bincount(x, minlength=self._count) for x in (told[told == found], told, found))
        return hits, tolds + founds - hits

    def count(self, number: int, measured: tuple[np.ndarray, np.ndarray]) -> None:
        self._intersections += measured[0]
        self._unions += measured[1]

    def _read(self, file: Path) -> np.ndarray:
        """Return a file's numbers of classes in the order of the logits."""
        try:
            with Image.open(file, formats=["PNG"]) as picture:
                labels = np.asarray(picture)
        except Exception as error:  # decoders raise whatever damaged data leads them to
            raise UserError(f"{file} is no picture that can be read; expected labels of pixels, in PNG") from error
        if labels.ndim != 2 or labels.dtype != np.uint8:
            raise UserError(f"{file} is no map of labels; expected grey PNG of 8 bits")
        if file.stem.endswith("labelIds"):
            table = np.full(256, _IGNORED, np.uint8)
            table[list(_LABEL_IDS)] = np.arange(len(_LABEL_IDS))
            labels = table[labels]
        return labels

    def figures(self) -> dict[str, float]:
        seen = self._unions > 0
        return {"miou": float(100 * (self._intersections[seen] / self._unions[seen]).mean()) if seen.any() else 0.0}
