# SPDX-License-Identifier: Apache-2.0
"""Work for the tests of clusters; its machines import it by name."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tvm_involution.runtime.predictor import Failure
from tvm_involution.runtime.results import Result


@dataclass(frozen=True)
class Barrier:
    """Names each picture's class, and holds every machine at its first picture until the test lets it go on.

    A machine leaves a file in `folder`, called like its node, when it begins. One whose node stands in the file
    `killed` never goes on, the others do when there is a file `go`.
    """

    folder: Path

    def __call__(self, number: int, answer: Result | Failure) -> tuple[str, str]:
        """Return the picture's class, and the node that answered."""
        import ray

        node = ray.get_runtime_context().get_node_id()
        (self.folder / node).touch()
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            if (self.folder / "go").exists() and (self.folder / "killed").read_text() != node:
                break
            time.sleep(0.01)
        return _name(answer), node


@dataclass(frozen=True)
class EndsWorkers:
    """Kills the process that answers about the picture `number`."""

    number: int

    def __call__(self, number: int, answer: Result | Failure) -> str:
        """Return the picture's class."""
        if number == self.number:
            os._exit(1)
        return _name(answer)


def _name(answer: Any) -> str:
    return answer.classes[0].name if isinstance(answer, Result) else "none"
