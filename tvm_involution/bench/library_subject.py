# SPDX-License-Identifier: Apache-2.0
"""A library that was compiled before, as a subject."""

from __future__ import annotations

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
    origin = metadata.weights_origin
    own = origin.startswith(("random initialisation", "models/"))
    if peers and checkpoint is None and not own:
        if not Path(origin).is_file():
            raise UserError(
                f"{library} has weights of {origin}, which peers need and which is not there; name the file with "
                "--checkpoint, or time the library alone with --against none"
            )
        checkpoint = Path(origin)
    shape = metadata.inputs[0].shape
    return Subject(
        model=metadata.name,
        threads=threads,
        batch=batch,
        image_size=(int(shape[2]), int(shape[3])) if len(shape) == 4 else None,
        checkpoint=checkpoint,
        given_library=library,
    )
