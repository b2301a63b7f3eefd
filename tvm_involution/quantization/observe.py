# SPDX-License-Identifier: Apache-2.0
"""What values a network's tensors take on calibration pictures: the float32 network, built once more, returns them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import tvm
from tvm import relax

from .. import lowering
from ..errors import UserError
from ..relax import pipeline
from ..runtime.threads import run_on_pool
from ..target import resolve_target

# values of a tensor that are kept of a call, for percentiles and errors, and pictures that are kept whole
_KEPT, _WHOLE = 1 << 14, 4
NAME = "observe"


@dataclass
class Observed:
    """What was seen of a tensor."""

    low: float = np.inf
    high: float = -np.inf
    samples: list[np.ndarray] = field(default_factory=list)
    whole: list[np.ndarray] = field(default_factory=list)
    """of some pictures, (1, ...)"""

    def add(self, values: np.ndarray, rng: np.random.Generator, keep: bool) -> None:
        """Take the tensor of one call, with `keep` all of its first picture.

        Raises:
            UserError: it holds NaN or infinity, which no range is for.
        """
        if not np.isfinite(values).all():
            raise UserError(
                "on these calibration pictures the network itself computes NaN or infinity, which no range is for; "
                "leave such pictures out, or check the weights"
            )
        self.low, self.high = min(self.low, float(values.min())), max(self.high, float(values.max()))
        self.samples.append(rng.choice(values.reshape(-1), _KEPT))
        if keep:
            self.whole.append(values[:1].copy())

    @property
    def sample(self) -> np.ndarray:
        """Some of all values."""
        return np.concatenate(self.samples)

    @property
    def pictures(self) -> np.ndarray:
        """All values of some pictures, (pictures, ...)."""
        return np.concatenate(self.whole)


def observe(
    func: relax.Function,
    tensors: Sequence[relax.Var],
    arrays: Sequence[np.ndarray],
    progress: Callable[[str], None] = lambda _: None,
) -> dict[relax.Var, Observed]:
    """Run `func` on this CPU over `arrays`, one for each parameter, and return what was seen of `tensors`.

    The last call is filled up with the first pictures again.

    Raises:
        UserError: NaN or infinity come out.
    """
    (block,) = func.body.blocks
    outputs = [relax.Var(var.name, var.ty) for var in tensors]
    bindings = [*block.bindings, *(relax.VarBinding(out, var) for out, var in zip(outputs, tensors, strict=True))]
    body = relax.SeqExpr([relax.DataflowBlock(bindings)], relax.Tuple(outputs))
    returned = relax.TupleType([var.ty for var in outputs])
    observing = relax.Function(func.params, body, returned).with_attr("global_symbol", NAME)
    mod = relax.transform.DeadCodeElimination()(tvm.IRModule({NAME: observing}))
    target = resolve_target("llvm")
    executable = lowering.build(pipeline.run(mod, target), target)

    batch, count = int(func.params[0].ty.shape.values[0]), len(arrays[0])
    seen, rng = {var: Observed() for var in tensors}, np.random.default_rng(0)

    def run() -> None:
        machine = relax.VirtualMachine(executable, tvm.cpu())
        starts = range(0, count, batch)
        kept = set(np.linspace(0, len(starts) - 1, _WHOLE).astype(int))
        for number, start in enumerate(starts):
            progress(f"calibrate, {start} of {count}")
            places = np.arange(start, start + batch) % count
            values = machine[NAME](*(tvm.runtime.tensor(np.ascontiguousarray(array[places])) for array in arrays))
            for observed, value in zip(seen.values(), values, strict=True):
                observed.add(value.numpy(), rng, number in kept)

    run_on_pool(run)
    return seen
