# SPDX-License-Identifier: Apache-2.0
"""A callable class for Ray Data: batches of pictures in, the same batches with named answers out."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..errors import UserError
from ..runtime.network import CompiledNetwork
from ..runtime.predictor import Failure
from ..runtime.predictor import Predictor as LocalPredictor
from ..runtime.results import COLUMNS, Result
from ..runtime.threads import physical_cores

# what Ray's readers call them: read_binary_files, read_images, from_items
_PICTURES = ("bytes", "image", "path", "item")


class Predictor:
    """Answers about the pictures of a `ray.data.Dataset`; Ray makes one in each of its workers.

        pictures = ray.data.read_images("photos", include_paths=True)
        answers = pictures.map_batches(Predictor, fn_constructor_args=("lib.so",), batch_size=64, concurrency=8)
        answers.write_parquet("answers")

    Args:
        library: its file, where the workers see it.
        device: see `tvm_involution.load`.
        column: where the pictures are; by default the first there is of `bytes` (a picture's file, as of
            `ray.data.read_binary_files`), `image` (an array (H, W, 3) uint8, as of `ray.data.read_images`), `path` and
            `item` (a file's name, where the workers see it).
        top_k, score_threshold: see `tvm_involution.Predictor`.

    Raises:
        UserError: as `tvm_involution.Predictor`.
    """

    def __init__(
        self,
        library: str | os.PathLike[str] | CompiledNetwork,
        device: str | None = None,
        *,
        column: str | None = None,
        top_k: int = 5,
        score_threshold: float = 0.3,
    ) -> None:
        _take_share()
        self._predictor = LocalPredictor(library, device, top_k=top_k, score_threshold=score_threshold)
        self._column = column

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Answer about a batch.

        Args:
            batch: columns of as many entries.

        Returns:
            The columns, without the pictures themselves (a file's name stays), and those of `run --output OUT.csv`:
            of a classifier `class_1`, `name_1`, `probability_1`, `class_2` ...; of a detector `class`, `name`, `score`,
            `x1`, `y1`, `x2`, `y2`, and of pixels `class`, `name`, `share`, each entry a list; of other networks their
            outputs. `error` says why a picture cannot be read, and is empty elsewhere.

        Raises:
            UserError: there is no column of pictures.
        """
        column = self._find(batch)
        pictures = list(batch[column])
        answers = list(self._predictor.stream(pictures))
        kept = {
            name: values
            for name, values in batch.items()
            if name != column or (pictures and isinstance(pictures[0], str))
        }
        return {**kept, **self._columns(answers), "error": np.array([_error(answer) for answer in answers], object)}

    def _find(self, batch: Mapping[str, Any]) -> str:
        names = _PICTURES if self._column is None else (self._column,)
        if (found := next((name for name in names if name in batch), None)) is None:
            raise UserError(f"a batch has the columns {', '.join(batch) or 'none'}; expected {' or '.join(names)}")
        return found

    def _columns(self, answers: Sequence[Result | Failure]) -> dict[str, np.ndarray]:
        metadata = self._predictor.network.metadata
        if metadata.task == "classification":
            return self._classes(answers)
        if metadata.task in COLUMNS:
            rows = [answer.rows() if isinstance(answer, Result) else [] for answer in answers]
            return {key: _ragged([[row[key] for row in one] for one in rows]) for key in COLUMNS[metadata.task]}
        outputs = [dict(answer.outputs) if isinstance(answer, Result) else {} for answer in answers]
        names = [spec.name for spec in metadata.outputs]
        return {name: _ragged([one[name][0] if one else None for one in outputs]) for name in names}

    def _classes(self, answers: Sequence[Result | Failure]) -> dict[str, np.ndarray]:
        """Return a column for each place; types are the same in every batch, whatever could be read of it."""
        count = min(self._predictor.top_k, int(self._predictor.network.metadata.outputs[0].shape[1]))
        rows = [answer.rows()[0] if isinstance(answer, Result) else {} for answer in answers]
        columns: dict[str, np.ndarray] = {}
        for place in range(1, count + 1):
            columns[f"class_{place}"] = np.array([row.get(f"class_{place}", -1) for row in rows], np.int64)
            columns[f"name_{place}"] = np.array([row.get(f"name_{place}", "") for row in rows], object)
            values = [row.get(f"probability_{place}") for row in rows]
            columns[f"probability_{place}"] = np.array([np.nan if x is None else x for x in values], np.float64)
        return columns


def _take_share() -> None:
    """Run on as many threads as Ray gives this worker CPUs, for others share the machine's cores."""
    ray = sys.modules.get("ray")
    if ray is not None and ray.is_initialized():
        cores = int(ray.get_runtime_context().get_assigned_resources().get("CPU", 0))
        if cores:
            os.environ.setdefault("TVM_NUM_THREADS", str(min(cores, physical_cores())))


def _error(answer: Result | Failure) -> str:
    return str(answer.error) if isinstance(answer, Failure) else ""


def _ragged(entries: Sequence[Any]) -> np.ndarray:
    """Return a column of entries of different lengths."""
    column = np.empty(len(entries), object)
    for number, entry in enumerate(entries):
        column[number] = entry
    return column
