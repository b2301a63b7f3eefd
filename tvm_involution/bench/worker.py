# SPDX-License-Identifier: Apache-2.0
"""What runs in a contender's process: `python -m tvm_involution.bench.worker`.

Reads a line of JSON, {"step": "build" | "reference" | "run" | "layers", "contender": "module:class", "subject": {...}},
and answers in lines of JSON; after "run" it reads the number of inferences of each turn until its input ends. Its
standard output is for these lines alone: what libraries print goes to standard error.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from ..errors import UserError
from .subject import Subject

if TYPE_CHECKING:
    from .contenders.contender import Contender

_WARM_UP = 4


class Reply(Protocol):
    """Send a line to the parent."""

    def __call__(self, **fields: Any) -> None: ...


def main() -> None:
    """Do the step that the parent asks for."""
    with os.fdopen(os.dup(1), "w", buffering=1) as replies:
        os.dup2(2, 1)

        def reply(**fields: Any) -> None:
            replies.write(json.dumps(fields) + "\n")

        line = sys.stdin.readline()
        if not line:  # the parent was interrupted before it could ask
            return
        request = json.loads(line)
        subject = Subject.from_json(request["subject"])
        try:
            _STEPS[request["step"]](request, subject, reply)
        except Exception as error:
            traceback.print_exc()
            reply(error=_one_line(error), users_error=isinstance(error, UserError))


def _build(request: dict[str, Any], subject: Subject, reply: Reply) -> None:
    contender = _contender(request)
    start = time.perf_counter()
    contender.build(subject)
    reply(build_s=time.perf_counter() - start)


def _reference(_: dict[str, Any], subject: Subject, reply: Reply) -> None:
    from .network import write_reference

    write_reference(subject)
    reply()


def _layers(_: dict[str, Any], subject: Subject, reply: Reply) -> None:
    from .per_layer import measure_layers

    reply(**measure_layers(subject).to_json())


def _run(request: dict[str, Any], subject: Subject, reply: Reply) -> None:
    contender = _contender(request)
    inputs = subject.read_inputs()
    start = time.perf_counter()
    call = contender.load(subject, inputs)
    loaded = time.perf_counter()
    outputs = call()
    first = time.perf_counter()
    np.savez(subject.output(contender.name), *contender.to_arrays(outputs))
    for _ in range(_WARM_UP):
        call()
    reply(load_s=loaded - start, first_result_s=first - start)
    for line in sys.stdin:
        reply(seconds=_times(call, int(line)), peak_memory_bytes=peak_memory())


def _times(call: Callable[[], Any], count: int) -> list[float]:
    call()  # brings threads and caches back after the others' turns
    times = []
    for _ in range(count):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return times


def peak_memory() -> int:
    """Return the process's own peak; that of getrusage begins at the parent's."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return 0


def _contender(request: dict[str, Any]) -> Contender:
    module, _, name = request["contender"].partition(":")
    return getattr(importlib.import_module(module), name)()


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).strip().split("\n")[0].split())
    return text if isinstance(error, UserError) else f"{type(error).__name__}: {text}".rstrip(": ")


_STEPS: dict[str, Callable[[dict[str, Any], Subject, Reply], None]] = {
    "build": _build,
    "reference": _reference,
    "run": _run,
    "layers": _layers,
}


if __name__ == "__main__":
    main()
