# SPDX-License-Identifier: Apache-2.0
"""Objects in pictures: average precision of boxes and masks, counted by pycocotools."""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import UserError
from ..extras import missing_extra
from ..runtime import LibraryMetadata
from ..runtime.results import FoundObjects, Result
from .data_set import DataSet, limited, read_text

_EXPECTED = "DIR/annotations/instances_val2017.json and the pictures in DIR/val2017"


class Coco(DataSet):
    """COCO's validation pictures, or any annotated so."""

    tasks = ("detection", "instance_segmentation")

    def __init__(self, folder: Path, metadata: LibraryMetadata, limit: int | None) -> None:
        _import_pycocotools()
        file = folder / "annotations" / "instances_val2017.json"
        try:
            content = json.loads(read_text(file, _EXPECTED))
            images = sorted(content["images"], key=lambda image: image["id"])
            categories = {category["name"]: int(category["id"]) for category in content["categories"]}
            found = [(str(folder / "val2017" / image["file_name"]), int(image["id"])) for image in images]
            annotations = content["annotations"]
            if not isinstance(annotations, list):
                raise TypeError("annotations are no list")
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise UserError(f"{file} holds no annotations of COCO ({error}); expected {_EXPECTED}") from error
        found = limited(found, limit, folder, _EXPECTED)
        self.pictures, self._ids = [picture for picture, _ in found], [number for _, number in found]
        self._content = content
        self._categories = _categories_of(metadata, categories, file)
        self._kinds = {"box_ap": "bbox", **({"mask_ap": "segm"} if metadata.task == "instance_segmentation" else {})}
        self._results: list[dict[str, Any]] = []

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_content": None, "_results": []}

    def measure(self, number: int, answer: Result) -> list[dict[str, Any]]:
        assert isinstance(answer, FoundObjects)
        results = []
        for found in answer.objects:
            x1, y1, x2, y2 = found.box
            entry: dict[str, Any] = {
                "image_id": self._ids[number],
                "category_id": self._categories[found.label],
                "bbox": [x1, y1, x2 - x1, y2 - y1],
                "score": found.score,
            }
            if found.mask is not None:
                from pycocotools import mask

                entry["segmentation"] = mask.encode(np.asfortranarray(found.mask, np.uint8))
            results.append(entry)
        return results

    def count(self, number: int, measured: list[dict[str, Any]]) -> None:
        self._results += measured

    def figures(self) -> dict[str, float]:
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval

        if not self._results:
            return dict.fromkeys(self._kinds, 0.0)
        figures = {}
        with contextlib.redirect_stdout(io.StringIO()):  # its report
            truth = COCO()
            truth.dataset = self._content
            truth.createIndex()
            for name, kind in self._kinds.items():
                # without masks the areas are those of the boxes; as mmdet does
                results = [{k: v for k, v in r.items() if kind == "segm" or k != "segmentation"} for r in self._results]
                evaluation = COCOeval(truth, truth.loadRes(results), kind)
                evaluation.params.imgIds = self._ids
                evaluation.evaluate()
                evaluation.accumulate()
                evaluation.summarize()
                figures[name] = float(100 * evaluation.stats[0])
        return figures


def _categories_of(metadata: LibraryMetadata, categories: dict[str, int], file: Path) -> list[int]:
    """Return the data set's numbers of the library's classes."""
    names = metadata.classes
    if names is not None and set(names) <= set(categories):
        return [categories[name] for name in names]
    if metadata.class_ids is not None and set(metadata.class_ids) <= set(categories.values()):
        return list(metadata.class_ids)
    raise UserError(
        f"{metadata.name} has classes that {file} has not; expected a library that names them as the annotations do, "
        "compiled with --classes"
    )


def _import_pycocotools() -> None:
    try:
        import pycocotools.cocoeval  # noqa: F401
    except ModuleNotFoundError as error:
        if (missing := missing_extra(error, "evaluating on COCO")) is None:
            raise
        raise missing from error
