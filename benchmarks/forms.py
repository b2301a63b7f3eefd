# SPDX-License-Identifier: Apache-2.0
"""Each way in which an involution has been written (`tests/involution_forms.py`), compiled, beside the operator itself.

    python benchmarks/forms.py [--only unfold einsum] [--rounds 40] [--json FILE]

One thread, float32, untuned: generation of a kernel of 4 groups and 3x3 taps, and the involution of 64x56x56. All take
turns in one process. `ratio` is the median over the rounds of a form's time to that of the operator in the same round,
`least` that of the shortest times. What a form does beside (softmax, other padding) is in its time; kernels tell it.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path

os.environ["TVM_NUM_THREADS"] = os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np
import torch
from beside_eager import compiled, in_turns
from markdown_rows import print_header, print_row
from torch import Tensor, nn

from tvm_involution.bench.machine import describe_machine
from tvm_involution.files import write_json
from tvm_involution.nn import involution2d

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
import involution_forms as written

_BATCH, _CHANNELS, _GROUPS, _SIDE = 1, 64, 4, 56
_TOLERANCE = 1e-4
_Form = Callable[[Tensor, Tensor], Tensor]


class Written(nn.Module):
    """The generation of a kernel and an involution in one of its forms."""

    def __init__(self, form: _Form) -> None:
        super().__init__()
        self.form = form
        inner = _CHANNELS // 4
        self.generate = nn.Sequential(
            nn.Conv2d(_CHANNELS, inner, 1, bias=False),
            nn.BatchNorm2d(inner),
            nn.ReLU(),
            nn.Conv2d(inner, _GROUPS * written.KK, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return the involution of x (N, C, H, W)."""
        return self.form(x, self.generate(x))


def by_operator(x: Tensor, kernel: Tensor) -> Tensor:
    """Return the involution of x (N, C, H, W) by this package's operator."""
    return involution2d(x, kernel.view(_BATCH, _GROUPS, written.K, written.K, _SIDE, _SIDE), 1, 1, 1)


def main() -> None:
    """Compile all, time them in turns, print a table, the slowest first."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=[""], help="forms whose name has one of these in it")
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--json", type=Path)
    words = parser.parse_args()
    torch.set_num_threads(1)
    written.N, written.C, written.G, written.H, written.W = _BATCH, _CHANNELS, _GROUPS, _SIDE, _SIDE
    eye = torch.eye(written.KK).view(written.KK, 1, written.K, written.K)
    written.PICK = {torch.float32: eye.repeat(_CHANNELS, 1, 1, 1)}
    forms = {name: form for name, form in written.FORMS.items() if any(part in name for part in words.only)}
    machine = {**describe_machine(1), "torch": torch.__version__}
    print(" ".join(f"{key}={value}" for key, value in machine.items()), "\n")

    x = torch.randn(_BATCH, _CHANNELS, _SIDE, _SIDE)
    calls, kernels = [], []
    for name, form in {"": by_operator, **forms}.items():
        torch.manual_seed(0)
        module = Written(form).eval()
        library, network = compiled(module, x)
        with torch.inference_mode():
            expected = module(x)
        error = float((network(x) - expected).norm() / expected.norm())
        if not error < _TOLERANCE:
            sys.exit(f"{name}: relative error {error:.1e}")
        calls.append(lambda network=network: network(x))
        kernels.append(", ".join(f"{count} {rule}" for rule, count in library.metadata.kernels.by_rule.items()))
    in_turns(calls, 3)
    operator, *times = in_turns(calls, words.rounds)
    rows = [
        (name, 1e3 * float(np.median(time)), float(np.median(time / operator)), time.min() / operator.min(), rules)
        for name, time, rules in zip(forms, times, kernels[1:], strict=True)
    ]
    print(f"the operator: {1e3 * np.median(operator):.0f} us, {kernels[0]}\n")
    print_header(["form", "us", "ratio", "least", "rules"])
    for name, median, ratio, least, rules in sorted(rows, key=lambda row: -row[3]):
        print_row([name, f"{median:.0f}", f"{ratio:.2f}", f"{least:.2f}", rules])
    if words.json is not None:
        keys = ("form", "us", "ratio", "least", "rules")
        write_json(words.json, {"machine": machine, "forms": [dict(zip(keys, row, strict=True)) for row in rows]})


if __name__ == "__main__":
    main()
