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

OPERATORS = [
    "abs",
    "acos",
    "acosh",
    "add",
    "addcdiv",
    "addcmul",
    "addmm",
    "addmv",
    "addr",
    "all",
    "alias_copy",
    "amax",
    "amin",
    "aminmax",
    "any",
    "argmax",
    "argmin",
    "argsort",
    "asin",
    "asinh",
    "as_strided",
    "as_strided_scatter",
    "atan",
    "atan2",
    "atanh",
    "atleast_1d",
    "atleast_2d",
    "atleast_3d",
    "baddbmm",
    "addbmm",
    "bitwise_and",
    "bitwise_left_shift",
    "bitwise_not",
    "bitwise_or",
    "bitwise_right_shift",
    "bitwise_xor",
    "block_diag",
    "bmm",
    "broadcast_tensors",
    "broadcast_to",
    "bucketize",
    "cartesian_prod",
    "cat",
    "cdist",
    "ceil",
    "chunk",
    "clamp",
    "clamp_max",
    "clamp_min",
    "clone",
    "column_stack",
    "combinations",
    "complex",
    "contiguous",
    "copysign",
    "cos",
    "cosh",
    "count_nonzero",
    "cross",
    "cummax",
    "cumprod",
    "cumsum",
    "cumulative_trapezoid",
    "deg2rad",
    "diag",
    "diag_embed",
    "diagflat",
    "diagonal",
    "diagonal_scatter",
    "diff",
    "dist",
    "div",
    "dot",
    "dsplit",
    "dstack",
    "einsum",
    "eq",
    "equal",
    "erf",
    "erfc",
    "exp",
    "exp2",
    "expand",
    "expand_as",
    "expm1",
    "eye",
    "fill",
    "flatten",
    "flip",
    "fliplr",
    "flipud",
    "float",
    "floor",
    "floor_divide",
    "fmax",
    "fmin",
    "fmod",
    "frac",
    "full_like",
    "gather",
    "ge",
    "geqrf",
    "gradient",
    "grid_sampler_2d",
    "gt",
    "half",
    "heaviside",
    "histc",
    "hsplit",
    "hstack",
    "hypot",
    "index_add",
    "index_copy",
    "index_fill",
    "index_put",
    "index_reduce",
    "index_select",
    "inner",
    "int",
    "isclose",
    "isfinite",
    "isin",
    "isinf",
    "isnan",
    "isreal",
    "kron",
    "kthvalue",
    "le",
    "lerp",
    "linspace",
    "linalg.cholesky",
    "linalg.cross",
    "linalg.det",
    "linalg.diagonal",
    "linalg.inv",
    "linalg.matrix_norm",
    "linalg.matrix_power",
    "linalg.multi_dot",
    "linalg.norm",
    "linalg.solve",
    "linalg.svd",
    "linalg.vander",
    "linalg.vecdot",
    "linalg.vector_norm",
    "log",
    "log10",
    "log1p",
    "log2",
    "log_softmax",
    "logaddexp",
    "logaddexp2",
    "logcumsumexp",
    "logical_and",
    "logical_not",
    "logical_or",
    "logical_xor",
    "logit",
    "logspace",
    "logsumexp",
    "long",
    "lt",
    "masked_fill",
    "masked_scatter",
    "masked_select",
    "matmul",
    "max",
    "maximum",
    "mean",
    "median",
    "meshgrid",
    "min",
    "minimum",
    "mm",
    "mode",
    "movedim",
    "mul",
    "multinomial",
    "mv",
    "mvlgamma",
    "nan_to_num",
    "nanmean",
    "nanmedian",
    "nansum",
    "narrow",
    "narrow_copy",
    "native_layer_norm",
    "native_batch_norm",
    "ne",
    "neg",
    "new_empty",
    "new_full",
    "new_ones",
    "new_zeros",
    "nonzero",
    "norm",
    "ones_like",
    "outer",
    "permute",
    "permute_copy",
    "polar",
    "positive",
    "pow",
    "prod",
    "put",
    "quantile",
    "rad2deg",
    "randn_like",
    "ravel",
    "reciprocal",
    "remainder",
    "renorm",
    "repeat",
    "repeat_interleave",
    "reshape",
    "reshape_as",
    "resize_",
    "roll",
    "rot90",
    "round",
    "rsqrt",
    "rsub",
    "scatter",
    "scatter_add",
    "scatter_reduce",
    "searchsorted",
    "select",
    "select_scatter",
    "sgn",
    "sigmoid",
    "sign",
    "signbit",
    "sin",
    "sinc",
    "sinh",
    "slice",
    "slice_scatter",
    "softmax",
    "sort",
    "split",
    "split_with_sizes",
    "sqrt",
    "square",
    "squeeze",
    "squeeze_copy",
    "stack",
    "std",
    "std_mean",
    "stft",
    "sub",
    "sum",
    "sum_to_size",
    "svd",
    "swapaxes",
    "t",
    "t_copy",
    "take",
    "take_along_dim",
    "tan",
    "tanh",
    "tensor_split",
    "tensordot",
    "tile",
    "to",
    "topk",
    "trace",
    "transpose",
    "transpose_copy",
    "trapezoid",
    "trapz",
    "tril",
    "tril_indices",
    "triu",
    "true_divide",
    "trunc",
    "unbind",
    "unflatten",
    "unfold",
    "unfold_copy",
    "uniform",
    "unique",
    "unravel_index",
    "unsafe_chunk",
    "unsafe_split",
    "unsqueeze",
    "unsqueeze_copy",
    "var",
    "var_mean",
    "vdot",
    "view",
    "view_as",
    "view_copy",
    "vsplit",
    "vstack",
    "where",
    "xlogy",
    "zero_",
    "zeros_like",
    "__getitem__",
    "__radd__",
    "__rdiv__",
    "__rmatmul__",
    "__rmod__",
    "__rmul__",
    "__rpow__",
    "__rsub__",
    "_softmax_backward_data",
    "nn.functional.adaptive_avg_pool1d",
    "nn.functional.adaptive_avg_pool2d",
    "nn.functional.adaptive_avg_pool3d",
    "nn.functional.adaptive_max_pool1d",
    "nn.functional.adaptive_max_pool2d",
    "nn.functional.adaptive_max_pool3d",
    "nn.functional.alpha_dropout",
    "nn.functional.avg_pool1d",
    "nn.functional.avg_pool2d",
    "nn.functional.avg_pool3d",
    "nn.functional.batch_norm",
    "nn.functional.bilinear",
    "nn.functional.binary_cross_entropy",
    "nn.functional.celu",
    "nn.functional.channel_shuffle",
    "nn.functional.conv1d",
    "nn.functional.conv2d",
    "nn.functional.conv3d",
    "nn.functional.conv_transpose1d",
    "nn.functional.conv_transpose2d",
    "nn.functional.conv_transpose3d",
    "nn.functional.cosine_similarity",
    "nn.functional.cross_entropy",
    "nn.functional.dropout",
    "nn.functional.dropout2d",
    "nn.functional.elu",
    "nn.functional.embedding",
    "nn.functional.embedding_bag",
    "nn.functional.feature_alpha_dropout",
    "nn.functional.fold",
    "nn.functional.fractional_max_pool2d",
    "nn.functional.gelu",
    "nn.functional.glu",
    "nn.functional.grid_sample",
    "nn.functional.group_norm",
    "nn.functional.hardshrink",
    "nn.functional.hardsigmoid",
    "nn.functional.hardswish",
    "nn.functional.hardtanh",
    "nn.functional.huber_loss",
    "nn.functional.instance_norm",
    "nn.functional.interpolate",
    "nn.functional.l1_loss",
    "nn.functional.layer_norm",
    "nn.functional.leaky_relu",
    "nn.functional.linear",
    "nn.functional.local_response_norm",
    "nn.functional.logsigmoid",
    "nn.functional.max_pool1d",
    "nn.functional.max_pool2d",
    "nn.functional.max_pool3d",
    "nn.functional.max_unpool1d",
    "nn.functional.max_unpool2d",
    "nn.functional.mish",
    "nn.functional.mse_loss",
    "nn.functional.multi_head_attention_forward",
    "nn.functional.nll_loss",
    "nn.functional.normalize",
    "nn.functional.one_hot",
    "nn.functional.pad",
    "nn.functional.pairwise_distance",
    "nn.functional.pdist",
    "nn.functional.pixel_shuffle",
    "nn.functional.pixel_unshuffle",
    "nn.functional.prelu",
    "nn.functional.relu",
    "nn.functional.relu6",
    "nn.functional.rms_norm",
    "nn.functional.rrelu",
    "nn.functional.scaled_dot_product_attention",
    "nn.functional.selu",
    "nn.functional.silu",
    "nn.functional.smooth_l1_loss",
    "nn.functional.softmin",
    "nn.functional.softplus",
    "nn.functional.softshrink",
    "nn.functional.softsign",
    "nn.functional.tanhshrink",
    "nn.functional.threshold",
    "nn.functional.triplet_margin_loss",
    "nn.functional.unfold",
    "nn.functional.upsample_bilinear",
    "nn.functional.upsample_nearest",
]
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


def main() -> int:
    """Walk and report; the status says whether anything was wrong or raw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--operators", default="", help="parts of names, by commas; all of the list by default")
    parser.add_argument("--samples", type=int, help="at most so many of each operator")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="append a line a sample to this file")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    parts = [part for part in options.operators.split(",") if part]
    names = [name for name in OPERATORS if not parts or any(part in name for part in parts)]
    counts: dict[str, int] = defaultdict(int)
    for verdict in walk(samples(names, options.samples, options.seed)):
        counts[verdict.state] += 1
        if options.json:
            with options.json.open("a") as file:
                file.write(json.dumps(asdict(verdict)) + "\n")
        if verdict.state in ("wrong", "raw"):
            print(f"{verdict.state}: {verdict.operator} {verdict.number} ({verdict.call}): {verdict.why}", flush=True)
    print(dict(counts))
    return 1 if counts["wrong"] or counts["raw"] else 0


if __name__ == "__main__":
    sys.exit(main())
