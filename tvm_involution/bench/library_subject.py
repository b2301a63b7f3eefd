# SPDX-License-Identifier: Apache-2.0
"""A library that was compiled before, as a subject."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from ..errors import UserError
from ..runtime.library_file import read_metadata
from .subject import Subject


def subject_of_library(
    library: Path, threads: int, *, batch: int | None = None, checkpoint: Path | None = None, peers: bool
) -> Subject:
    """Return a library that was compiled before as a subject.

    Args:
        peers: whether peers are to run its network, and so need its weights.

    Raises:
        UserError: it is not for a CPU, or the weights that it was compiled with are no longer there.
    """
    metadata = read_metadata(library)
    if metadata.device_type != "cpu":
        raise UserError(f"{library} was compiled for {metadata.device_type}; `bench` times libraries for this CPU")
    from ..frontend.compiled_from import WeightsAreGone, origin_of

    if not peers:
        return Subject(model=metadata.name, threads=threads, batch=batch, given_library=library)
    try:
        origin = origin_of(metadata if checkpoint is None else replace(metadata, weights_origin=str(checkpoint)))
    except WeightsAreGone as error:
        raise UserError(
            f"{library}: {error}, which peers need and which is not there; name the file with --checkpoint, or time "
            "the library alone with --against none"
        ) from error
    return Subject(
        model=origin.model,
        threads=threads,
        batch=batch,
        image_size=origin.image_size,
        checkpoint=Path(origin.checkpoint) if origin.checkpoint is not None else None,
        checkpoint_key=origin.checkpoint_key,
        num_classes=origin.num_classes,
        given_library=library,
    )
