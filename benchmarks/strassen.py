# SPDX-License-Identifier: Apache-2.0
"""1x1 convolutions of RedNet-50 on this CPU: the plain product beside a step of Strassen's algorithm.

    python benchmarks/strassen.py

Both with the defaults of their schedule rules, with bias and ReLU, and the residual where the network has one; kernels
alone, in turns, their arrays in the cache. Nothing else may run on the machine.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import tvm
from tvm import te, topi

from tvm_involution import lowering
from tvm_involution.bench.machine import describe_machine
from tvm_involution.runtime.threads import run_on_pool, thread_count
from tvm_involution.schedules import default_schedule
from tvm_involution.target import resolve_target
from tvm_involution.te import conv2d_packed, conv2d_strassen, pack_strassen_weight, pack_weight

# pixels a side, input channels, output channels, stride, residual
LAYERS = [
    (14, 1024, 256, 1, False),
    (14, 256, 1024, 1, True),
    (28, 512, 128, 1, False),
    (28, 128, 512, 1, True),
    (28, 512, 256, 1, False),
    (28, 512, 1024, 2, True),
    (14, 1024, 512, 1, False),
    (56, 256, 128, 1, False),
    (56, 256, 512, 2, True),
    (56, 256, 64, 1, False),
    (56, 64, 256, 1, True),
]
_LANES, _ROUNDS, _CALLS = 32, 15, 20


class Convolution:
    """A layer with its numbers, built in one way."""

    def __init__(self, layer: tuple[int, int, int, int, bool], strassen: bool) -> None:
        side, inputs, outputs, stride, residual = layer
        rng, out = np.random.default_rng(0), (side - 1) // stride + 1
        x = rng.standard_normal((1, side, side, inputs), np.float32)
        weight = rng.standard_normal((outputs, inputs, 1, 1), np.float32) / np.sqrt(np.float32(inputs))
        packed = pack_strassen_weight(weight, _LANES) if strassen else pack_weight(weight, _LANES)
        added = [rng.standard_normal((1, 1, 1, outputs), np.float32)]
        if residual:
            added.append(rng.standard_normal((1, out, out, outputs), np.float32))
        arrays = [x, packed, *added]
        placeholders = [te.placeholder(array.shape, "float32", f"in{k}") for k, array in enumerate(arrays)]
        strides = (stride, stride)
        convolve = conv2d_strassen if strassen else lambda a, b, s: conv2d_packed(a, b, outputs, s)
        result = convolve(*placeholders[:2], strides)
        for term in placeholders[2:]:
            result = topi.add(result, term)
        func = te.create_prim_func([*placeholders, topi.nn.relu(result)]).with_attr("global_symbol", "main")
        target = resolve_target("llvm")
        schedule, _ = default_schedule(func, target)
        library = lowering.build(schedule.mod, target)
        tensors = [*map(tvm.runtime.tensor, arrays), tvm.runtime.empty((1, out, out, outputs), "float32")]
        self.call: Callable[[], None] = lambda: library["main"](*tensors)
        exact = x[:, ::stride, ::stride].astype(np.float64) @ weight[:, :, 0, 0].T.astype(np.float64)
        expected = np.maximum(exact + sum(added), 0)
        run_on_pool(self.call)
        self.error = np.linalg.norm(tensors[-1].numpy() - expected) / np.linalg.norm(expected)
        self.operations = 2 * out * out * inputs * outputs

    def microseconds(self) -> float:
        """Return the mean of some calls."""

        def run() -> float:
            start = time.perf_counter()
            for _ in range(_CALLS):
                self.call()
            return 1e6 * (time.perf_counter() - start) / _CALLS

        return run_on_pool(run)


def main() -> None:
    """Print a table; GFLOP/s count the operations of the plain product for both."""
    print(" ".join(f"{key}={value}" for key, value in describe_machine(thread_count()).items()), "\n")
    print("| pixels, channels, stride | plain, us | GFLOP/s | error | Strassen, us | GFLOP/s | error | ratio |")
    print("|---|---|---|---|---|---|---|---|")
    for layer in LAYERS:
        ways = [Convolution(layer, strassen) for strassen in (False, True)]
        times = np.array([[way.microseconds() for way in ways] for _ in range(_ROUNDS)])
        cells = []
        for way, median in zip(ways, np.median(times, axis=0), strict=True):
            cells += [f"{median:.0f}", f"{way.operations / median / 1e3:.0f}", f"{way.error:.1e}"]
        side, inputs, outputs, stride, _ = layer
        name = f"{side}x{side}, {inputs} to {outputs}, {stride}"
        print(f"| {name} | {' | '.join(cells)} | {np.median(times[:, 1] / times[:, 0]):.2f} |", flush=True)


if __name__ == "__main__":
    main()
