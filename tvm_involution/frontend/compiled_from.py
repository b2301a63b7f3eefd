# SPDX-License-Identifier: Apache-2.0
"""What a library was compiled from, so that torch can run the same network."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from .. import zoo
from ..errors import UserError
from ..runtime import LibraryMetadata
from ..runtime.metadata import RANDOM_WEIGHTS


@dataclass(frozen=True)
class Origin:
    """A library's network, in the words of `resolve_network`."""

    model: str
    num_classes: int | None
    image_size: tuple[int, int] | None
    checkpoint: str | None
    checkpoint_key: str | None


class WeightsAreGone(UserError):
    """The file of a library's weights is not there."""


def origin_of(metadata: LibraryMetadata) -> Origin:
    """Return what a library says it was compiled from.

    Raises:
        UserError: a module in memory, or an older library that does not say.
        WeightsAreGone: a checkpoint that is no longer there.
    """
    model = metadata.model or metadata.name
    if not metadata.model and ":" not in model and not any(spec.name == model for spec in zoo.list_models()):
        raise UserError(f"{model} was compiled from a module in memory, which its library does not have")
    shape = metadata.inputs[0].shape
    # programs and examples have their own sizes
    size = (int(shape[2]), int(shape[3])) if metadata.inputs[0].layout == "NCHW" else None
    checkpoint, key = (None, None) if model.endswith(".pt2") else _weights(metadata)
    return Origin(model, metadata.num_classes, size, checkpoint, key)


def _weights(metadata: LibraryMetadata) -> tuple[str | None, str | None]:
    """Return the checkpoint and its key, none where the network brings its weights itself."""
    origin = metadata.weights_origin.removesuffix(f", the rest {RANDOM_WEIGHTS}")
    if origin in (RANDOM_WEIGHTS, "as built by the function") or origin.startswith("models/"):
        return None, None
    if Path(origin).is_file():
        return origin, None
    file, _, key = origin.rpartition(":")
    if Path(file).is_file():
        return file, key
    raise WeightsAreGone(f"{metadata.name} has weights of {origin}")
