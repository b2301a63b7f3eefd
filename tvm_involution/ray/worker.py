# SPDX-License-Identifier: Apache-2.0
"""What runs on a machine of a cluster: a library that is loaded once, and answers about pictures by their names."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .. import __version__
from ..errors import UserError
from ..runtime.predictor import Failure, Predictor
from ..runtime.results import Result
from ..runtime.threads import physical_cores

Work = Callable[[int, Result | Failure], Any]
"""makes the answer about the picture of a number what is sent back"""


class Worker:
    """A loaded library; a Ray actor.

    Args:
        version: of the package where `work` comes from.
        library: the file's bytes, which come through Ray: only pictures need be where the worker sees them.
        work: see `Work`.
        share: the cores that it may use, of those that its machine has for Ray, and how many workers are there.
        settings: of `Predictor`.
    """

    def __init__(
        self, version: str, library: np.ndarray, work: Work, share: tuple[int, int], settings: dict[str, Any]
    ) -> None:
        self._problem: UserError | None = None
        cores, workers = share
        os.environ["TVM_NUM_THREADS"] = str(max(1, min(cores, physical_cores() // workers)))
        self._work = work
        try:
            if version != __version__:
                raise UserError(f"it has tvm-involution {__version__}, this is {version}; install the same everywhere")
            with tempfile.TemporaryDirectory(prefix="tvm-involution-") as folder:
                file = Path(folder, "library.so")
                file.write_bytes(library.data)
                self._predictor = Predictor(file, **settings)
        except UserError as error:
            self._problem = error

    def problem(self) -> str:
        """Return why the library cannot be run here, nothing where it can."""
        return str(self._problem or "")

    def answer(self, first: int, pictures: Sequence[str]) -> list[Any] | UserError:
        """Return what `work` makes of the answers about `pictures`, whose numbers begin with `first`."""
        try:
            return [self._work(number, a) for number, a in enumerate(self._predictor.stream(pictures), first)]
        except UserError as error:
            return error
