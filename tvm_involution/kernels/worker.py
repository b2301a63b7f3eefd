# SPDX-License-Identifier: Apache-2.0
"""The process that compiles kernels while the one that asked for them trains.

It reads a JSON object a line, `{"operator": ..., "sizes": ..., "target": "llvm" or "cuda", "path": ...}`, writes the
kernel, and answers with a line: what went wrong as a JSON string, or null.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from pathlib import Path

from ..errors import UserError

# who trains has the cores first
_NICE = 10


def main() -> None:
    """Compile what standard input asks for, until it ends."""
    with contextlib.suppress(OSError):
        os.nice(_NICE)
    from ..target import resolve_target
    from .aggregation import Aggregation
    from .build import build_kernel

    for line in sys.stdin:
        asked = json.loads(line)
        problem = None
        try:
            sizes = Aggregation.from_json(asked["sizes"])
            build_kernel(asked["operator"], sizes, resolve_target(asked["target"]), Path(asked["path"]))
        except UserError as error:
            problem = str(error)
        except Exception as error:  # TVM raises several kinds, and one kernel must not end the others
            problem = f"{type(error).__name__}: {str(error).strip().splitlines()[-1] if str(error).strip() else ''}"
        sys.stdout.write(json.dumps(problem) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):  # who asked for kernels has ended
        main()
