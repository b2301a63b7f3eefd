# SPDX-License-Identifier: Apache-2.0
"""Kernels alone on this CPU, two ways to the same result in turns: for strassen.py and bfloat16_involution.py."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence

import numpy as np
import tvm
from markdown_rows import print_header, print_row
from tvm import te

from tvm_involution import lowering
from tvm_involution.bench.machine import describe_machine
from tvm_involution.runtime.threads import run_on_pool, thread_count
from tvm_involution.schedules import default_schedule
from tvm_involution.target import resolve_target

_ROUNDS, _CALLS = 30, 20
# seconds until the system has given each thread a core, after compiling
_WARM_UP = 1.0


class Kernel:
    """An expression with the default of its schedule rule, its numbers, and its relative error."""

    def __init__(
        self, arrays: Sequence[np.ndarray], expression: Callable[..., te.Tensor], expected: np.ndarray, operations: int
    ) -> None:
        placeholders = [te.placeholder(array.shape, str(array.dtype), f"in{k}") for k, array in enumerate(arrays)]
        result = expression(*placeholders)
        func = te.create_prim_func([*placeholders, result]).with_attr("global_symbol", "main")
        target = resolve_target("llvm")
        schedule, _ = default_schedule(func, target)
        library = lowering.build(schedule.mod, target)
        tensors = [*map(tvm.runtime.tensor, arrays), tvm.runtime.empty(expected.shape, str(result.dtype))]
        self.call: Callable[[], None] = lambda: library["main"](*tensors)
        run_on_pool(self.call)
        actual = tensors[-1].numpy().astype(np.float64)
        self.error = np.linalg.norm(actual - expected) / np.linalg.norm(expected)
        self.operations = operations

    def microseconds(self) -> float:
        """Return the mean of some calls."""

        def run() -> float:
            start = time.perf_counter()
            for _ in range(_CALLS):
                self.call()
            return 1e6 * (time.perf_counter() - start) / _CALLS

        return run_on_pool(run)


def print_table(layer: str, ways: Sequence[str], rows: Iterable[tuple[str, Sequence[Kernel]]]) -> None:
    """Print medians, rates and errors of each row's two kernels, and the ratio of the second's time to the first's."""
    print(" ".join(f"{key}={value}" for key, value in describe_machine(thread_count()).items()), "\n")
    columns = [column for way in ways for column in (f"{way}, us", "GFLOP/s", "error")]
    print_header([layer, *columns, "ratio"])
    for name, kernels in rows:
        start = time.perf_counter()
        while time.perf_counter() - start < _WARM_UP:
            kernels[0].microseconds()
        times = np.array([[kernel.microseconds() for kernel in kernels] for _ in range(_ROUNDS)])
        cells = []
        for kernel, median in zip(kernels, np.median(times, axis=0), strict=True):
            cells += [f"{median:.0f}", f"{kernel.operations / median / 1e3:.0f}", f"{kernel.error:.1e}"]
        print_row([name, *cells, f"{np.median(times[:, 1] / times[:, 0]):.2f}"])
