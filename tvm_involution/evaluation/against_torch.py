# SPDX-License-Identifier: Apache-2.0
"""The module that a library was compiled from, in torch, on the same pictures: how often the two disagree."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from ..errors import UserError
from ..runtime import LibraryMetadata
from ..runtime.metadata import RANDOM_WEIGHTS
from ..runtime.prepare import prepare_picture
from ..runtime.results import ClassMap, FoundObjects, Result, make_result


class TorchModule:
    """The network in torch, in float32.

    An answer is a picture's best class, a pixel's class, or the objects of a picture: their classes, and boxes that
    overlap by more than 0.9 of their union.
    """

    def __reduce__(self) -> tuple[Any, ...]:
        return TorchModule, (self._metadata, self._threshold)  # it is built where it runs

    def __init__(self, metadata: LibraryMetadata, score_threshold: float) -> None:
        from ..frontend.network import resolve_network

        origin, key = metadata.weights_origin, None
        own = origin == RANDOM_WEIGHTS or origin.startswith("models/") or origin == "as built by the function"
        if not own and not Path(origin).is_file() and Path(origin.rpartition(":")[0]).is_file():
            origin, _, key = origin.rpartition(":")
        if not own and not Path(origin).is_file():
            raise UserError(
                f"{metadata.name} has weights of {origin}, which torch needs and which are not there; leave out "
                "--against"
            )
        size = metadata.inputs[0].shape[2:]
        network = resolve_network(
            metadata.name,
            checkpoint=None if own else origin,
            checkpoint_key=key,
            image_size=(int(size[0]), int(size[1])),
        )
        if network.module is None:
            raise UserError(f"{metadata.name} was compiled from a program without its module; leave out --against")
        self._module = network.module.float()
        self._metadata, self._threshold = metadata, score_threshold

    def compare(self, answer: Result) -> tuple[int, int]:
        """Return how many answers about a picture differ, and of how many."""
        import torch

        array, placement = prepare_picture(self._metadata, answer.picture)
        with torch.no_grad():
            returned: Any = self._module(torch.from_numpy(np.asarray(array, np.float32)))
        values = returned if isinstance(returned, tuple) else (returned,)
        outputs = {spec.name: value.numpy() for spec, value in zip(self._metadata.outputs, values, strict=True)}
        told = make_result(self._metadata, outputs, answer.picture, placement, score_threshold=self._threshold)
        if isinstance(answer, ClassMap) and isinstance(told, ClassMap):
            return int((answer.labels != told.labels).sum()), answer.labels.size
        if isinstance(answer, FoundObjects) and isinstance(told, FoundObjects):
            return int(not _same_objects(answer, told)), 1
        name = self._metadata.outputs[0].name
        return int(answer.outputs[name].argmax() != told.outputs[name].argmax()), 1


def _same_objects(ours: FoundObjects, theirs: FoundObjects) -> bool:
    if sorted(ours.classes) != sorted(theirs.classes):
        return False
    left = list(theirs.objects)
    for found in ours.objects:
        match = next((o for o in left if o.label == found.label and _overlap(o.box, found.box) > 0.9), None)
        if match is None:
            return False
        left.remove(match)
    return True


def _overlap(a: tuple[float, ...], b: tuple[float, ...]) -> float:
    """Return the intersection of two boxes over their union."""
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    common = max(width, 0.0) * max(height, 0.0)
    union = sum((box[2] - box[0]) * (box[3] - box[1]) for box in (a, b)) - common
    return common / union if union > 0 else float(a == b)
