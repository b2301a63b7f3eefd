# SPDX-License-Identifier: Apache-2.0
"""The module that a library was compiled from, in torch, on the same pictures: how often the two disagree."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import torch

from ..errors import UserError
from ..frontend.compiled_from import WeightsAreGone, origin_of
from ..frontend.network import resolve_network
from ..runtime import LibraryMetadata
from ..runtime.prepare import prepare_picture
from ..runtime.results import ClassMap, FoundObjects, Result, make_result


class TorchModule:
    """The network in torch, in float32.

    An answer is a picture's best class, a pixel's class, or the objects of a picture: their classes, and boxes that
    overlap by more than 0.9 of their union.
    """

    def __init__(
        self, metadata: LibraryMetadata, score_threshold: float, module: torch.nn.Module | None = None
    ) -> None:
        """Build the network that the library names, or take a copy of `module`."""
        self._metadata, self._threshold, self._given = metadata, score_threshold, module
        self._module = (_named(metadata) if module is None else copy.deepcopy(module).eval()).float()

    def __reduce__(self) -> tuple[Any, ...]:
        return TorchModule, (self._metadata, self._threshold, self._given)  # it is built where it runs

    def compare(self, answer: Result) -> tuple[int, int]:
        """Return how many answers about a picture differ, and of how many."""
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


def _named(metadata: LibraryMetadata) -> torch.nn.Module:
    try:
        origin = origin_of(metadata)
    except WeightsAreGone as error:
        raise UserError(f"{error}, which torch needs and which are not there; leave out --against") from error
    except UserError as error:
        raise UserError(f"{error}; leave out --against, or in Python give the module itself") from error
    network = resolve_network(**vars(origin))
    if network.module is not None:
        return network.module.eval()
    return network.export(1).module()  # a program knows its own batch


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
