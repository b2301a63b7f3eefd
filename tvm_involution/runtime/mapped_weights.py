# SPDX-License-Identifier: Apache-2.0
"""The weights of a library, mapped from its file: once in memory, however many processes use them."""

from __future__ import annotations

import mmap
import os
from collections.abc import Sequence
from typing import Any, BinaryIO

import numpy as np

from ..errors import UserError
from .arrays import tensor_view
from .ffi import tvm_ffi
from .metadata import WeightSpec


class MappedWeights:
    """Weights in the memory of the file, which stays open.

    A file that another replaces (`mv`, `compile -o`, package managers) stays as it is for whoever has it open. One that
    is written into changes under its readers, and one that is cut off kills them: `check` tells before a call.
    """

    def __init__(
        self, file: BinaryIO, path: str | os.PathLike[str], specs: Sequence[WeightSpec], state: tuple[int, int]
    ) -> None:
        """Map `file`, which was found sound when its `state_of` was `state`."""
        self._path, self._specs, self._state = path, specs, state
        self._file = os.fdopen(os.dup(file.fileno()), "rb")
        self.check()
        try:
            # pages that are written to, which nobody does, would be copied
            self._memory = mmap.mmap(self._file.fileno(), 0, access=mmap.ACCESS_COPY)
        except OSError as error:
            raise UserError(f"cannot map {path}: {error.strerror}; copy it to a disk of this machine") from error

    def tensors(self) -> list[Any]:
        """Return each weight in TVM's own class; when its runtime has been loaded."""
        return [
            tensor_view(
                tvm_ffi.from_dlpack(np.frombuffer(self._memory, np.uint8, spec.bytes, spec.offset)),
                spec.dtype,
                spec.shape,
            )
            for spec in self._specs
        ]

    def check(self) -> None:
        """Check that nobody has written into the file.

        Raises:
            UserError: somebody has.
        """
        if self.state_of(self._file) != self._state:
            raise UserError(
                f"{self._path} was overwritten while it was in use; load it again, and replace libraries by renaming "
                "(mv), which leaves the old one to those who use it"
            )

    @staticmethod
    def state_of(file: BinaryIO) -> tuple[int, int]:
        """Return what changes when the file is written to."""
        found = os.fstat(file.fileno())
        return found.st_size, found.st_mtime_ns
