# SPDX-License-Identifier: Apache-2.0
"""PyTorch's own samples of its operators (OpInfo), through export, import, compilation and a run, against PyTorch.

In half types the samples are rounded first and what comes out is compared with PyTorch in float64.

python tests/operator_walk.py [--operators PART,PART] [--samples N] [--dtype float16] [--part K/N] [--json FILE]
                              [--write docs/torch-operators.md]
"""

from __future__ import annotations

import argparse
import itertools
import json
import re
import sys
import warnings
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tvm
from programs import as_dtype
from torch.testing._internal.common_methods_invocations import op_db
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map, tree_unflatten
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
_HALF_TYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16}
# which of equal values come first is not said, and in half types many are equal
_ORDER_LEFT_OPEN = ("topk",)


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


@dataclass
class _Imported:
    """A sample on its way through the compiler.

    Attributes:
        expected: what comes out of torch, in float64 where the sample is in a half type.
        of_torch: what comes out of torch in the sample's half type, if torch has the operator in it.
    """

    sample: Sample
    expected: list[torch.Tensor]
    of_torch: list[torch.Tensor] | None
    function: tvm.ir.BaseFunc


def walk(chosen: Iterable[Sample], dtype: str = "float32") -> Iterator[Verdict]:
    """Yield what comes of each sample, its inputs in `dtype`.

    In a half type every other sample is exported in it, the others in float32 and converted, as `--dtype` does.
    """
    waiting: list[_Imported] = []
    for sample in chosen:
        exported, exact, of_torch = sample, sample, None
        if dtype in _HALF_TYPES:
            sample = _retyped(sample, _HALF_TYPES[dtype])
            of_torch = _results(sample)
            exact = _retyped(sample, torch.float64)
            exported = sample if of_torch is not None and sample.number % 2 else _retyped(sample, torch.float32)
        expected = _results(exact)
        if expected is None:  # torch itself does not take it so
            continue
        try:
            function = import_exported_program(export_module(exported.module, exported.inputs))["main"]
            waiting.append(_Imported(sample, expected, of_torch, function))
        except Exception as error:
            yield _verdict(sample, error)
        if len(waiting) >= _TOGETHER:
            yield from _run_all(waiting, dtype)
            waiting = []
    if waiting:
        yield from _run_all(waiting, dtype)


def _results(sample: Sample) -> list[torch.Tensor] | None:
    """Return the tensors that torch computes; None where it raises."""
    try:
        with torch.no_grad():
            results = sample.module(*(tensor.clone() for tensor in sample.inputs))
    except Exception:
        return None
    return [leaf.detach().resolve_neg() for leaf in tree_leaves(results) if isinstance(leaf, torch.Tensor)]


def _retyped(sample: Sample, dtype: torch.dtype) -> Sample:
    """Return the sample with all floating-point tensors in `dtype`."""

    def retyped(leaf: Any) -> Any:
        return leaf.to(dtype) if isinstance(leaf, torch.Tensor) and leaf.is_floating_point() else leaf

    call = sample.module
    module = _Call(call.function, list(map(retyped, call.leaves)), call.spec, tree_map(retyped, call.keywords))
    return replace(sample, module=module.eval(), inputs=tuple(map(retyped, sample.inputs)))


def _run_all(waiting: list[_Imported], dtype: str) -> Iterator[Verdict]:
    """Compile functions together; where that fails, in two halves."""
    target = resolve_target("llvm")
    functions = {f"sample_{n}": one.function.with_attr("global_symbol", f"sample_{n}") for n, one in enumerate(waiting)}
    try:
        executable = lowering.build(pipeline.run(tvm.IRModule(functions), target, dtype=dtype), target)
        machine = relax.VirtualMachine(executable, tvm.cpu())
    except Exception as error:
        if len(waiting) == 1:
            yield _verdict(waiting[0].sample, error)
        else:
            middle = len(waiting) // 2
            yield from _run_all(waiting[:middle], dtype)
            yield from _run_all(waiting[middle:], dtype)
        return
    for number, one in enumerate(waiting):
        try:
            returned = machine[f"sample_{number}"](*map(_to_tvm, one.sample.inputs))
            actual = [returned] if isinstance(returned, tvm.runtime.Tensor) else list(returned)
            yield _compared(one, [array.numpy() for array in actual], dtype)
        except Exception as error:
            yield _verdict(one.sample, error)


def _to_tvm(tensor: torch.Tensor) -> tvm.runtime.Tensor:
    if tensor.dtype is torch.bfloat16:
        return tvm.runtime.tensor(as_dtype(tensor.float().numpy(), "bfloat16"))
    return tvm.runtime.tensor(np.ascontiguousarray(tensor.numpy()))


def _compared(one: _Imported, actual: Sequence[np.ndarray], dtype: str) -> Verdict:
    sample = one.sample
    shapes, wanted = [array.shape for array in actual], [tuple(tensor.shape) for tensor in one.expected]
    why = f"shapes {shapes} for {wanted}" if shapes != wanted else ""
    for number, (array, tensor) in enumerate(zip(actual, one.expected, strict=not why)):
        if dtype in _HALF_TYPES:
            other = one.of_torch[number] if one.of_torch is not None else None
            open_order = sample.operator in _ORDER_LEFT_OPEN and not tensor.is_floating_point()
            why = why or ("" if open_order else _difference_in_half(array, tensor, other))
        else:
            why = why or _difference(array, _to_tvm(tensor).numpy())
    return Verdict(
        sample.operator, sample.number, "wrong" if why else "computed", why, repr(sample.module) if why else ""
    )


def _difference(array: np.ndarray, reference: np.ndarray) -> str:
    """Return how far a result is off; an empty string where it is right."""
    if array.dtype != reference.dtype:
        return f"{array.dtype} for {reference.dtype}"
    if "float16" in str(array.dtype):
        array, reference = array.astype("float64"), reference.astype("float64")
    same = np.isclose(array, reference, rtol=1e-4, atol=1e-5, equal_nan=True)
    right = same.all() or _near_as_a_whole(array, reference)
    return "" if right else f"{int((~same).sum())} of {same.size} values differ"


def _difference_in_half(array: np.ndarray, exact: torch.Tensor, of_torch: torch.Tensor | None) -> str:
    """Return how far a result is off: 1e-2 in relative norm may be lost, or four times what torch loses."""
    dtype, floats = str(array.dtype), exact.is_floating_point()
    if dtype not in ((*_HALF_TYPES, "float32") if floats else (str(exact.dtype).removeprefix("torch."),)):
        return f"{dtype} for {exact.dtype}"
    actual, reference = array.astype("float64") if floats else array, exact.numpy()
    own = None if of_torch is None else (of_torch.double() if floats else of_torch).numpy()
    if not floats:  # a comparison of what is equal but for rounding may end as torch's does
        differ = (actual != reference) & (True if own is None else actual != own)
        return f"{int(differ.sum())} of {differ.size} values differ" if differ.any() else ""
    with np.errstate(all="ignore"):
        largest = torch.finfo(getattr(torch, dtype)).max
        beyond = np.isfinite(reference) & (np.abs(reference) > largest)
        finite = np.isfinite(reference) & ~beyond
        if (np.sign(actual[beyond]) * actual[beyond] < 0.99 * largest).any():
            return f"{actual[beyond][:3]} for {reference[beyond][:3]}"
        if not np.array_equal(actual[~finite & ~beyond], reference[~finite & ~beyond], equal_nan=True):
            return f"{actual[~finite & ~beyond][:3]} for {reference[~finite & ~beyond][:3]}"
        error = _relative_norm(actual[finite], reference[finite])
        torchs = _relative_norm(own[finite], reference[finite]) if own is not None else 0.0
        allowed = max(1e-2, 4 * torchs if np.isfinite(torchs) else 0.0)
    return "" if error <= allowed else f"relative error {error:.1e}, {allowed:.1e} allowed"


def _relative_norm(actual: np.ndarray, reference: np.ndarray) -> float:
    """Return the norm of the error, relative to that of the reference unless this is 0."""
    distance, size = np.linalg.norm(actual - reference), np.linalg.norm(reference)
    return float(distance / size) if size else float(distance)


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
    parser.add_argument("--dtype", choices=("float32", *_HALF_TYPES), default="float32")
    parser.add_argument("--part", default="0/1", help="K/N: every N-th sample from number K, for several processes")
    parser.add_argument("--json", type=Path, help="append a line a sample to this file")
    parser.add_argument("--write", type=Path, help="write the table of operators to this file")
    parser.add_argument("--from", dest="walked", type=Path, help="walk nothing: take what --json wrote")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    parts = [part for part in options.operators.split(",") if part]
    names = [name for name in OPERATORS if not parts or any(part in name for part in parts)]
    counts: dict[str, int] = defaultdict(int)
    verdicts: list[Verdict] = []
    first, step = map(int, options.part.split("/"))
    walked = walk(itertools.islice(samples(names, options.samples, options.seed), first, None, step), options.dtype)
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
