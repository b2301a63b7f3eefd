# SPDX-License-Identifier: Apache-2.0
"""Try bad arguments on every public function and class: `python tests/fuzz_functions.py`.

Bad values come from the annotations: other types, None, truth values, zero, negative and huge numbers, NaN, tensors of
other ranks, sizes, dtypes and layouts. A call must return, or raise one `UserError` of one line that names the argument
or the function. Prints how many were tried, how many were clean, and each that was not.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import inspect
import os
import random
import tempfile
import typing
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tvm import te

import tvm_involution as ti
from tvm_involution.arguments import shown


@dataclasses.dataclass
class Case:
    """A call with one argument that is not the good one."""

    name: str
    function: Callable[..., Any]
    arguments: dict[str, Any]
    key: str
    wrong: bool
    """whether it is wrong for certain, so that a result is a finding"""

    def __str__(self) -> str:
        value = shown(self.arguments[self.key]) if self.key in self.arguments else "(left out)"
        return f"{self.name}({self.key}={value})"


def judge(case: Case) -> str | None:
    """Call, and return what is wrong with how it ended."""
    try:
        case.function(**case.arguments)
    except ti.UserError as error:
        text = str(error)
        if "\n" in text or not text:
            return f"not one line: {text!r}"
        general = ("kernel_size", "state dict", "channels", "shape", "dtype", "window", "pairs")
        named = any(word in text for word in (case.key, case.name.rsplit(".", 1)[-1], *general))
        return None if named else f"names nothing: {text}"
    except Exception as error:
        return f"{type(error).__name__}: {' '.join(str(error).split())[:150]}"
    return "took what is wrong" if case.wrong else None


# ---------------------------------------------------------------- good calls


def _t(*shape: int, dtype: str = "float32") -> te.Tensor:
    return te.placeholder(shape, dtype, "t")


def te_calls() -> dict[str, dict[str, Any]]:
    """Return good arguments for everything in `te.__all__`."""
    fragments = ti.te.MmaFragments("float16", 16)
    image, windows = _t(2, 8, 8, 32), ti.te.conv2d_windows(_t(2, 8, 8, 32), (3, 3))
    generator = ti.te.KernelGenerator(_t(8, 32), _t(18, 8), _t(18), (3, 3))
    weight, span, bias = (
        np.ones((32, 32, 3, 3), np.float32),
        np.ones((18, 8, 1, 1), np.float32),
        np.ones(18, np.float32),
    )
    half, nchw = _t(2, 8, 8, 32, dtype="float16"), _t(2, 32, 8, 8)
    packed_span, packed_bias = ti.te.pack_paired_span(span, bias, 3, 16)
    mma_span, mma_bias = ti.te.pack_span_mma(span, bias, 3, fragments)
    ones, depthwise = np.ones((64, 32, 1, 1), np.float32), np.ones((32, 1, 3, 3), np.float32)
    boxes, scores, groups = _t(2, 5, 4), _t(2, 5), _t(2, 5, dtype="int64")
    spanned = {"kernel_size": 3, "stride": 1, "padding": 1, "dilation": 1}

    def shaped(array: np.ndarray, dtype: str = "float32") -> te.Tensor:
        return _t(*array.shape, dtype=dtype)

    return {
        "BatchNorm": {"scale": _t(8), "shift": _t(8), "mean": _t(8), "variance": _t(8), "epsilon": 1e-5},
        "KernelGenerator": {
            **{"reduce_weight": _t(8, 32), "span_weight": _t(18, 8), "span_bias": _t(18), "kernel_size": (3, 3)},
            **{"batch_norm": None, "reduce_bias": _t(8)},
        },
        "MmaFragments": {"dtype": "float16", "depth": 16, "lane_bytes": 16},
        "conv2d_gemm": {
            **{"windows": windows, "weight": shaped(ti.te.pack_weight_gemm(weight, 16)), "out_channels": 32},
            "dtype": "float32",
        },
        "conv2d_mma": {
            "windows": ti.te.conv2d_windows(half, (3, 3)),
            "weight": shaped(ti.te.pack_weight_mma(weight, fragments, 2), "float16"),
            **{"out_channels": 32, "fragments": fragments, "dtype": "float16"},
        },
        "conv2d_packed": {
            **{"x": image, "weight": shaped(ti.te.pack_weight(weight, 16)), "out_channels": 32, "stride": (1, 1)},
            **{"padding": (1, 1, 1, 1), "dilation": (1, 1), "out_dtype": "float32"},
        },
        "conv2d_strassen": {"x": image, "weight": shaped(ti.te.pack_strassen_weight(ones, 16)), "stride": (1, 1)},
        "conv2d_windows": {
            **{"x": image, "kernel_size": (3, 3), "stride": (1, 1), "padding": (1, 1, 1, 1), "dilation": (1, 1)},
        },
        "conv2d_winograd": {
            **{"x": image, "weight": shaped(ti.te.pack_winograd_weight(weight, 4, 16)), "out_channels": 32},
            **{"padding": (1, 1, 1, 1), "strip": 1},
        },
        "depthwise_conv2d": {
            **{"x": image, "weight": shaped(ti.te.pack_depthwise_weight(depthwise, 16)), "stride": (1, 1)},
            **{"padding": (1, 1, 1, 1), "dilation": (1, 1), "strip": 1},
        },
        "generate_kernel": {"x": nchw, "generator": generator, "stride": 1, "layout": "NCHW"},
        "generated_involution2d": {
            **{"x": nchw, "generator": generator, "stride": 1, "padding": 1, "dilation": 1, "layout": "NCHW"},
        },
        "involution": {
            **{"x": _t(2, 32, 8), "kernel": _t(2, 2, 3, 8), "stride": 1, "padding": (1,), "dilation": 1},
            **{"layout": "NCW", "kernel_size": 3},
        },
        "involution2d": {
            **{"x": nchw, "kernel": _t(2, 2, 3, 3, 8, 8), "stride": 1, "padding": 1, "dilation": (1, 1)},
            **{"layout": "NCHW", "kernel_size": 3},
        },
        "involution2d_grad_input": {
            **{"grad": nchw, "kernel": _t(2, 2, 3, 3, 8, 8), "input_size": (8, 8), "stride": 1, "padding": 1},
            "dilation": 1,
        },
        "involution2d_grad_kernel": {
            **{"grad": nchw, "x": nchw, "groups": 2, "kernel_size": 3, "stride": 1, "padding": 1, "dilation": 1},
        },
        "involution2d_output_size": {"size": 8, "kernel_size": 3, "stride": 1, "padding": 1, "dilation": 1},
        "joined_windows": {"first": windows, "second": windows, "chunk": 16},
        "local_attention2d": {
            **{"query": nchw, "key": nchw, "value": nchw, "kernel_size": 3, "num_heads": 2, "dilation": 1},
            **{"scale": 0.5, "layout": "NCHW", "bias": _t(2, 3, 3), "border": "masked", "lanes": 4},
        },
        "matmul_packed": {
            **{"x": _t(5, 32), "weight": shaped(ti.te.pack_weight(ones, 16)), "out_channels": 64},
        },
        "matrix_windows": {"x": _t(5, 32)},
        "nms": {
            **{"boxes": boxes, "scores": scores, "groups": groups, "score_threshold": 0.1, "iou_threshold": 0.5},
            "max_output": 3,
        },
        "pack_depthwise_weight": {"weight": depthwise, "lanes": 16},
        "pack_grouped_weight": {"weight": np.ones((32, 16, 3, 3), np.float32), "groups": 2, "lanes": 16},
        "pack_paired_span": {"weight": span, "bias": bias, "kernel_size": 3, "lanes": 16},
        "pack_span_mma": {"weight": span, "bias": bias, "kernel_size": 3, "fragments": fragments},
        "pack_strassen_weight": {"weight": ones, "lanes": 16},
        "pack_weight": {"weight": weight, "lanes": 16, "values": 1},
        "pack_weight_gemm": {"weight": weight, "lanes": 16},
        "pack_weight_mma": {"weight": weight, "fragments": fragments, "tiles": 2},
        "pack_winograd_weight": {"weight": weight, "m": 4, "lanes": 16},
        "paired_spanned_involution2d": {
            "x": _t(2, 8, 8, 32, dtype="bfloat16"),
            "hidden": _t(2, 8, 8, 8, dtype="bfloat16"),
            **{"span_weight": shaped(packed_span, "bfloat16"), "span_bias": shaped(packed_bias), "groups": 2},
            **spanned,
        },
        "paste_masks": {"masks": _t(2, 5, 4, 4), "boxes": boxes, "height": 8, "width": 8, "threshold": 0.5},
        "roi_align": {
            **{"features": [image, image], "rois": boxes, "levels": groups, "output_size": 2},
            **{"spatial_scales": [0.5, 0.25], "sampling_ratio": 0},
        },
        "spanned_involution2d": {
            "x": image,
            "hidden": _t(2, 8, 8, 8),
            **{"span_weight": _t(2, 1, 1, 8, 16), "span_bias": _t(1, 1, 1, 18), "inner_dtype": None, "groups": None},
            **spanned,
        },
        "spanned_involution2d_mma": {
            "x": half,
            "hidden": _t(2, 8, 8, 8, dtype="float16"),
            **{"span_weight": shaped(mma_span, "float16"), "span_bias": shaped(mma_bias), "groups": 2},
            **{"fragments": fragments, **spanned},
        },
    }


def nn_calls() -> dict[str, dict[str, Any]]:
    """Return good arguments for everything in `nn.__all__`."""
    backbone = ti.nn.RedNet(
        stage_blocks=(1,), stem_channels=32, base_channels=16, strides=(1,), dilations=(1,), out_indices=(0,)
    )
    conv, x = torch.nn.Conv2d(3, 4, 3), torch.randn(2, 32, 8, 8)
    boxes, scores, groups = torch.rand(2, 5, 4), torch.rand(2, 5), torch.zeros(2, 5, dtype=torch.int64)
    layer = {"channels": 32, "kernel_size": 3, "stride": 1, "group_channels": 16, "reduction_ratio": 4, "dilation": 1}
    geometry = {"stride": 1, "dilation": 1}
    convolution = {"in_channels": 4, "out_channels": 8, "kernel_size": 3, "stride": 1, "padding": 1}
    detector = {"backbone": conv, "neck": conv}
    folder = tempfile.mkdtemp()
    model = ti.nn.build_model("rednet_digits")
    ti.nn.save_pretrained(model, folder, "rednet_digits")
    return {
        "FPN": {
            **{"in_channels": [8, 16], "out_channels": 8, "num_outs": 3, "start_level": 0},
            "extra_convs_on_input": False,
        },
        "InvolutionFPN": {
            **{"in_channels": [8, 16], "out_channels": 16, "num_outs": 3, "start_level": 0},
            "extra_convs_on_input": False,
        },
        "AttentionResNet": {"depth": 26, "num_classes": 5},
        "Bottleneck": {"in_channels": 64, "out_channels": 64, "stride": 1, "dilation": 1, "downsample": None},
        "ConvModule": {**convolution, "norm": True, "act": True},
        "ImageClassifier": {"backbone": backbone, "num_classes": 5},
        "Involution1d": layer,
        "Involution2d": {**layer, "stride": (1, 1)},
        "Involution3d": {**layer, "kernel_size": (3, 3, 3)},
        "LocalAttention2d": {
            **{"channels": 32, "kernel_size": 3, "num_heads": 2, "out_channels": 16, "dilation": 1},
            **{"border": "masked", "relative_position": "bias"},
        },
        "LinearClsHead": {"in_channels": 8, "num_classes": 5},
        "Operations": {},
        "RedNet": {
            **{"depth": None, "stage_blocks": (1, 1), "in_channels": 3, "stem_channels": 32, "stem_kernel_size": 3},
            **{"base_channels": 16, "strides": (1, 2), "dilations": (1, 1), "out_indices": (1,)},
        },
        "ResNet": {"depth": 26, "num_classes": 5},
        "Segmentor": {"backbone": conv, "neck": None, "decode_head": conv, "auxiliary_head": None},
        "SingleStageDetector": {**detector, "bbox_head": ti.nn.detector.RetinaHead(2), "limits": None},
        "TwoStageDetector": {
            **detector,
            "rpn_head": ti.nn.detector.RPNHead(16),
            "roi_head": ti.nn.detector.RoIHead(ti.nn.detector.BBoxHead(2, 8, 2, 16)),
        },
        "build_model": {"model": "rednet_digits", "seed": 0, "pretrained": False},
        "count_operations": {"model": conv, "input_size": (3, 8, 8)},
        "count_parameters": {"model": conv},
        "involution1d": {
            **{"input": torch.randn(2, 32, 8), "kernel": torch.randn(2, 2, 3, 8), "padding": (1,), **geometry},
        },
        "involution2d": {"input": x, "kernel": torch.randn(2, 2, 3, 3, 8, 8), "padding": (1, 1), **geometry},
        "involution3d": {
            **{"input": torch.randn(2, 32, 4, 4, 4), "kernel": torch.randn(2, 2, 3, 3, 3, 4, 4, 4)},
            **{"padding": (1, 1, 1), **geometry},
        },
        "load_checkpoint": {"model": conv, "source": conv.state_dict()},
        "local_attention2d": {
            **{"query": x, "key": x, "value": x, "kernel_size": 3, "num_heads": 2, "dilation": 1, "scale": 0.5},
            **{"bias": torch.randn(2, 3, 3), "embedding": torch.randn(32, 3, 3), "border": "masked"},
        },
        "nms": {
            **{"boxes": boxes, "scores": scores, "groups": groups, "score_threshold": 0.1, "iou_threshold": 0.5},
            "max_output": 3,
        },
        "paste_masks": {"masks": torch.rand(2, 5, 4, 4), "boxes": boxes, "height": 8, "width": 8, "threshold": 0.5},
        "from_pretrained": {"folder": folder},
        "replace_involutions": {"module": torch.nn.Conv2d(32, 4, 3), "example": x},
        "roi_align": {
            **{"features": [x, x], "rois": boxes, "levels": groups, "output_size": 2},
            **{"spatial_scales": [0.5, 0.25], "sampling_ratio": 0},
        },
        "save_pretrained": {"model": model, "folder": folder, "name": "rednet_digits", "classes": None},
        "use_kernels": {"mode": "off"},
        "wait_for_kernels": {"timeout": 1.0},
    }


# ---------------------------------------------------------------- bad values

_ALIENS = (object(), {"a": 1}, 3j, b"x", [[]], set(), float("nan"), torch.float32, np.zeros((2, 2), object), print)
_NUMBERS = (0, -1, -(2**40), 10**30, 1.5, float("inf"), "8", "", True, None, [], [1, 2, 3], (0, 0), (-1, 2), (1, "2"))


def bad_values(good: Any) -> Iterator[tuple[Any, bool]]:
    """Yield what is no, or perhaps no, argument where `good` is one, and whether it is wrong for certain."""
    for alien in _ALIENS:
        yield alien, True
    if isinstance(good, (int, float, tuple)):
        for number in _NUMBERS:
            yield number, False
    if isinstance(good, tuple):
        yield good[:-1], False
        yield (*good, good[-1]), False
    if type(good) is int:
        yield np.int64(good), False
        yield good + 1, False
    if isinstance(good, torch.Tensor):
        yield from _bad_tensors(good)
    elif isinstance(good, te.Tensor):
        shape = [int(d) for d in good.shape]
        for other in (
            [],
            shape[:-1],
            [*shape, 1],
            [0, *shape[1:]],
            [*shape[:-1], shape[-1] + 1],
            [shape[0] + 1, *shape[1:]],
        ):
            yield te.placeholder(other, good.dtype, "t"), False
        for dtype in ("int8", "float64", "bool", "int64", "float16"):
            yield te.placeholder(shape, dtype, "t"), False
        yield np.zeros(shape, "float32"), True
    elif isinstance(good, np.ndarray):
        for other in (good[..., 0], good[None], good[:0], good[:-1], good[..., 0:0], good.astype(complex)):
            yield other, False
        for dtype in ("object", "U3", "M8[s]"):
            yield np.zeros(good.shape, dtype), True
    elif isinstance(good, list):
        yield from (
            (value, False) for value in ([], good[:-1], [*good, good[-1]], good[0], [None], [1.5], [0] * len(good))
        )
    elif isinstance(good, str):
        yield from ((value, False) for value in ("", "bogus", "nchw", "\n", "\udcff", "x" * 3000, "/", "int8", "../x"))
    if good is not None and not isinstance(good, (int, float, tuple)):
        yield None, False
        yield 3, True


def _bad_tensors(good: torch.Tensor) -> Iterator[tuple[Any, bool]]:
    for other in (good[0], good[None], good[..., :-1], good[:0], good[..., :0], good[:1], good.sum()):
        yield other, False
    for dtype in (torch.complex64, torch.int8, torch.bool, torch.float64, torch.float16):
        yield good.to(dtype), False
    yield good.to_sparse(), True
    yield torch.empty_like(good, device="meta"), True
    yield torch.quantize_per_tensor(good.float(), 0.1, 0, torch.quint8), True
    yield torch.nested.nested_tensor([good[0], good[1]]), True
    yield good.numpy(), True


def cases() -> Iterator[Case]:
    """Yield every call with one bad argument, and each with one left out or surplus."""
    for module, calls in ((ti.te, te_calls()), (ti.nn, nn_calls())):
        for name in module.__all__:
            function, good = getattr(module, name), calls[name]
            label = f"{module.__name__.rsplit('.', 1)[-1]}.{name}"
            if not good:
                continue
            for key, value in good.items():
                free = inspect.signature(function).parameters[key].annotation == "Any"
                for bad, wrong in bad_values(value):
                    yield Case(label, function, {**good, key: bad}, key, wrong and not free)
                if inspect.signature(function).parameters[key].default is inspect.Parameter.empty:
                    yield Case(label, function, {k: v for k, v in good.items() if k != key}, key, True)
            yield Case(label, function, {**good, "bogus": 1}, "bogus", True)


def fuzz(count: int | None = None, seed: int = 0, room: str = "") -> tuple[int, list[str]]:
    """Try `count` cases, or all, of a `room` (`nn`, `te`) or both; return how many were tried and what was found."""
    tried = [case for case in cases() if case.name.startswith(room)]
    if count is not None:
        tried = random.Random(seed).sample(tried, count)
    with tempfile.TemporaryDirectory() as folder, _inside(Path(folder, "a", "b")):
        found = [(case, judge(case)) for case in tried]
    return len(found), [f"{case}: {what}" for case, what in found if what is not None]


@contextlib.contextmanager
def _inside(folder: Path) -> Iterator[None]:
    """Make a folder the current one: names that are tried may be written to."""
    before = os.getcwd()
    folder.mkdir(parents=True)
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def check_good_calls() -> None:
    """Call everything with the arguments that the bad ones are made of."""
    for module, calls in ((ti.te, te_calls()), (ti.nn, nn_calls())):
        assert set(calls) == set(module.__all__), set(calls) ^ set(module.__all__)
        for name, arguments in calls.items():
            getattr(module, name)(**arguments)


def main() -> None:
    """Print what was tried and found."""
    parser = argparse.ArgumentParser(description=typing.cast(str, __doc__))
    parser.add_argument("--count", type=int, help="cases; all by default")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    check_good_calls()
    tried, found = fuzz(arguments.count, arguments.seed)
    print("\n".join(found))
    print(f"tried {tried}, clean {tried - len(found)}, not clean {len(found)}")


if __name__ == "__main__":
    main()
