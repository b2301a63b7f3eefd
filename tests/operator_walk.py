# SPDX-License-Identifier: Apache-2.0
"""PyTorch's own samples of its operators (OpInfo), through export, import, compilation and a run, against PyTorch.

python tests/operator_walk.py [--operators PART,PART] [--samples N] [--json FILE] [--write docs/torch-operators.md]
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import warnings
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tvm
from torch.testing._internal.common_methods_invocations import op_db
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten
from tvm import relax

from tvm_involution import lowering
from tvm_involution.errors import UserError
from tvm_involution.frontend.importer import export_module, import_exported_program
from tvm_involution.relax import pipeline
from tvm_involution.target import resolve_target

# those samples' module forbids every later test to set flags of torch's backends, and `torch.backends` wraps its module
torch.backends.flags_frozen.__globals__["__allow_nonbracketed_mutation_flag"] = True

OPERATORS = (Path(__file__).parent / "torch_operators.txt").read_text().split()
_TOGETHER = 40
"""samples that are compiled as functions of one module"""


@dataclass
class Sample:
    """One call of an operator, all tensors of at least one element and one axis being inputs."""

    operator: str
    number: int
    module: torch.nn.Module
    inputs: tuple[torch.Tensor, ...]


@dataclass
class Verdict:
    """What came of a sample: `computed`, `refused`, `wrong` or `raw`, an exception that is no UserError."""

    operator: str
    number: int
    state: str
    why: str = ""
    call: str = ""


class _Call(torch.nn.Module):
    """A call whose positional tensors, also those in lists, are inputs; those by name are constants."""

    def __init__(self, function: Any, leaves: Sequence[Any], spec: Any, keywords: dict[str, Any]) -> None:
        super().__init__()
        self.function, self.leaves, self.spec, self.keywords = function, leaves, spec, keywords

    def forward(self, *tensors: torch.Tensor) -> Any:
        given = iter(tensors)
        leaves = [next(given) if leaf is Ellipsis else leaf for leaf in self.leaves]
        return self.function(*tree_unflatten(leaves, self.spec), **self.keywords)

    def __repr__(self) -> str:
        shown = ["tensor" if leaf is Ellipsis else str(leaf) for leaf in self.leaves]
        shown += [f"{name}={value}" for name, value in self.keywords.items()]
        return ", ".join(re.sub(r"\s+", " ", word)[:60] for word in shown)


def samples(names: Iterable[str] = OPERATORS, at_most: int | None = None, seed: int = 0) -> Iterator[Sample]:
    """Yield OpInfo's float32 samples of the operators: all, or `at_most` of each, chosen by the seed."""
    wanted, rng = set(names), np.random.default_rng(seed)
    for operator in op_db:
        if operator.name not in wanted or torch.float32 not in operator.dtypes:
            continue
        name = ".".join(filter(None, [operator.name, operator.variant_test_name]))
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            found = list(enumerate(operator.sample_inputs("cpu", torch.float32, requires_grad=False)))
        if at_most is not None and len(found) > at_most:
            found = [found[place] for place in sorted(rng.choice(len(found), at_most, replace=False))]
        for number, sample in found:
            leaves, spec = tree_flatten((sample.input, *sample.args))
            tensors = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor) and leaf.dim() and leaf.numel()]
            if not tensors:
                continue
            inputs = tuple(tensor.detach() for tensor in tensors)
            rest = [Ellipsis if any(leaf is tensor for tensor in tensors) else leaf for leaf in leaves]
            yield Sample(name, number, _Call(operator.op, rest, spec, sample.kwargs).eval(), inputs)


def walk(chosen: Iterable[Sample]) -> Iterator[Verdict]:
    """Yield what comes of each sample."""
    waiting: list[tuple[Sample, list[torch.Tensor], tvm.ir.BaseFunc]] = []
    for sample in chosen:
        try:
            with torch.no_grad():
                results = sample.module(*(tensor.clone() for tensor in sample.inputs))
            expected = [leaf for leaf in tree_leaves(results) if isinstance(leaf, torch.Tensor)]
        except Exception:  # samples that torch itself does not take so
            continue
        try:
            program = export_module(sample.module, sample.inputs)
            waiting.append((sample, expected, import_exported_program(program)["main"]))
        except Exception as error:
            yield _verdict(sample, error)
        if len(waiting) >= _TOGETHER:
            yield from _run_all(waiting)
            waiting = []
    if waiting:
        yield from _run_all(waiting)


def _run_all(waiting: list[tuple[Sample, list[torch.Tensor], tvm.ir.BaseFunc]]) -> Iterator[Verdict]:
    """Compile functions together; where that fails, in two halves."""
    target = resolve_target("llvm")
    functions = {
        f"sample_{n}": func.with_attr("global_symbol", f"sample_{n}") for n, (_, _, func) in enumerate(waiting)
    }
    try:
        executable = lowering.build(pipeline.run(tvm.IRModule(functions), target), target)
        machine = relax.VirtualMachine(executable, tvm.cpu())
    except Exception as error:
        if len(waiting) == 1:
            yield _verdict(waiting[0][0], error)
        else:
            middle = len(waiting) // 2
            yield from _run_all(waiting[:middle])
            yield from _run_all(waiting[middle:])
        return
    for number, (sample, expected, _) in enumerate(waiting):
        try:
            arrays = [tvm.runtime.tensor(np.ascontiguousarray(tensor.numpy())) for tensor in sample.inputs]
            returned = machine[f"sample_{number}"](*arrays)
            actual = [returned] if isinstance(returned, tvm.runtime.Tensor) else list(returned)
            yield _compared(sample, [array.numpy() for array in actual], expected)
        except Exception as error:
            yield _verdict(sample, error)


def _compared(sample: Sample, actual: Sequence[np.ndarray], expected: Sequence[torch.Tensor]) -> Verdict:
    shapes, wanted = [array.shape for array in actual], [tuple(tensor.shape) for tensor in expected]
    if shapes != wanted:
        return Verdict(sample.operator, sample.number, "wrong", f"shapes {shapes} for {wanted}", repr(sample.module))
    for array, tensor in zip(actual, expected, strict=True):
        reference = tensor.detach().resolve_neg().numpy()
        if array.dtype != reference.dtype:
            why = f"{array.dtype} for {reference.dtype}"
            return Verdict(sample.operator, sample.number, "wrong", why, repr(sample.module))
        same = np.isclose(array, reference, rtol=1e-4, atol=1e-5, equal_nan=True)
        if not same.all() and not _near_as_a_whole(array, reference):
            why = f"{int((~same).sum())} of {same.size} values differ"
            return Verdict(sample.operator, sample.number, "wrong", why, repr(sample.module))
    return Verdict(sample.operator, sample.number, "computed")


def _near_as_a_whole(array: np.ndarray, reference: np.ndarray) -> bool:
    """Return whether two tensors are as near as sums of large numbers can be."""
    finite = np.isfinite(array) & np.isfinite(reference)
    if not np.array_equal(array[~finite], reference[~finite], equal_nan=True):
        return False
    actual, expected = array[finite].astype("float64"), reference[finite].astype("float64")
    return bool(np.linalg.norm(actual - expected) <= 1e-6 * np.linalg.norm(expected))


def _verdict(sample: Sample, error: Exception) -> Verdict:
    lines = str(error).strip().splitlines() or [""]
    refused = isinstance(error, UserError) and len(lines) == 1
    why = lines[0] if refused else f"{type(error).__name__}: {lines[0]}"
    return Verdict(sample.operator, sample.number, "refused" if refused else "raw", why, repr(sample.module))


def table(verdicts: Sequence[Verdict], at_most: int | None, seed: int) -> str:
    """Return the page of the documentation that says which operators are computed and which refused, and why."""
    of_operator: dict[str, list[Verdict]] = defaultdict(list)
    for verdict in verdicts:
        of_operator[verdict.operator].append(verdict)
    whole = [name for name, own in of_operator.items() if all(v.state == "computed" for v in own)]
    computed = sum(v.state == "computed" for v in verdicts)
    few = f"at most {at_most} samples of each" if at_most else "all samples of each"
    lines = [
        "# Operators of PyTorch",
        "",
        "Written by `PYTHONPATH=. python tests/operator_walk.py"
        + (f" --samples {at_most} --seed {seed}" if at_most else "")
        + " --write docs/torch-operators.md`, not by hand: PyTorch's own samples of its operators (OpInfo, float32), "
        f"{few}, exported, imported, compiled for a CPU, run and compared with PyTorch. torch {torch.__version__}: "
        f"{len(verdicts)} samples of {len(of_operator)} operators and variants, {computed} computed and right, "
        f"{sum(v.state == 'refused' for v in verdicts)} refused in one line, "
        f"{sum(v.state == 'wrong' for v in verdicts)} wrong, {sum(v.state == 'raw' for v in verdicts)} raw exceptions.",
        "",
        "A few samples, others each time, are part of `make test`; `pytest -m every_sample` walks all of them. An",
        "operator is one function in a file of `tvm_involution/frontend/conversions/` and one line in the table of its",
        "`__init__.py`; what it returns is checked against the shape and dtype that PyTorch says come out.",
        "",
        "## Indices out of range",
        "",
        "PyTorch raises where an index of `nn.Embedding`, `gather`, `scatter` or `x[i]`, say, is out of range.",
        "Compiled code can't: an index only known at run time is moved to the nearest in range, so that nothing",
        "outside the tensor is ever read or written. Where PyTorch lets indices count from the end (`x[i]`,",
        "`take`), so do they here. An index known at compile time is checked then.",
        "",
        "## Computed",
        "",
        ", ".join(f"`{name}`" for name in whole),
        "",
        "## Refused, wholly or in part",
        "",
        "| operator | computed | refused | why |",
        "|---|---|---|---|",
    ]
    for name, own in of_operator.items():
        if name not in whole:
            good = sum(v.state == "computed" for v in own)
            reasons = dict.fromkeys(_reason(v.why) for v in own if v.state != "computed")
            lines.append(f"| `{name}` | {good} | {len(own) - good} | {'; '.join(reasons)} |")
    return "\n".join(lines) + "\n"


def _reason(why: str) -> str:
    """Return a refusal without the sample's shapes, values and line."""
    why = re.sub(r" \(/.*?\.py:\d+: .*?\)(?=;|$)", "", why.removeprefix("cannot import the network: "))
    why = re.sub(r"torch.export cannot trace _Call for inputs .*?\]: (?!\[)", "torch.export: ", why)
    return re.sub(r"\s+", " ", why.replace("|", "\\|"))[:160]


def main() -> int:
    """Walk and report; the status says whether anything was wrong or raw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--operators", default="", help="parts of names, by commas; all of the list by default")
    parser.add_argument("--samples", type=int, help="at most so many of each operator")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="append a line a sample to this file")
    parser.add_argument("--write", type=Path, help="write the table of operators to this file")
    parser.add_argument("--from", dest="walked", type=Path, help="walk nothing: take what --json wrote")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    parts = [part for part in options.operators.split(",") if part]
    names = [name for name in OPERATORS if not parts or any(part in name for part in parts)]
    counts: dict[str, int] = defaultdict(int)
    verdicts: list[Verdict] = []
    walked = walk(samples(names, options.samples, options.seed))
    if options.walked:
        walked = (Verdict(**json.loads(line)) for line in options.walked.read_text().splitlines())
    for verdict in walked:
        counts[verdict.state] += 1
        verdicts.append(verdict)
        if options.json and not options.walked:
            with options.json.open("a") as file:
                file.write(json.dumps(asdict(verdict)) + "\n")
        if verdict.state in ("wrong", "raw"):
            print(f"{verdict.state}: {verdict.operator} {verdict.number} ({verdict.call}): {verdict.why}", flush=True)
    print(dict(counts))
    if options.write:
        options.write.write_text(table(verdicts, options.samples, options.seed))
    return 1 if counts["wrong"] or counts["raw"] else 0


if __name__ == "__main__":
    sys.exit(main())
