# SPDX-License-Identifier: Apache-2.0
"""The Relax operator: shapes, layouts, legalization."""

from __future__ import annotations

import numpy as np
import pytest
import reference
import tvm
from tvm import relax

from tvm_involution.relax.operators import involution as operator


def build(x_shape, kernel_shape, dtype="float32", **arguments) -> tvm.IRModule:
    builder = relax.BlockBuilder()
    x = relax.Var("x", relax.TensorType(x_shape, dtype))
    kernel = relax.Var("kernel", relax.TensorType(kernel_shape, dtype))
    with builder.function("main", [x, kernel]):
        with builder.dataflow():
            out = builder.emit_output(builder.emit(operator.involution2d(x, kernel, **arguments)))
        builder.emit_func_output(out)
    return builder.get()


def output_shape(mod: tvm.IRModule) -> list[int]:
    return [int(d) for d in mod["main"].ret_ty.shape.values]


@pytest.mark.parametrize(
    ("x", "kernel", "arguments", "expected"),
    [
        ((2, 8, 9, 7), (2, 18, 9, 7), {"kernel_size": (3, 3), "padding": (1, 1)}, [2, 8, 9, 7]),
        ((1, 6, 9, 8), (1, 30, 5, 3), {"kernel_size": (3, 5), "stride": (2, 3), "padding": (1, 2)}, [1, 6, 5, 3]),
        (
            (1, 9, 7, 8),
            (1, 9, 5, 18),
            {"kernel_size": (3, 3), "padding": (1, 1), "layout": "NHWC", "stride": (1, 1)},
            None,
        ),
        ((1, 9, 7, 8), (1, 9, 7, 18), {"kernel_size": (3, 3), "padding": (1, 1), "layout": "NHWC"}, [1, 9, 7, 8]),
    ],
)
def test_shape_inference(x, kernel, arguments, expected):
    if expected is None:
        with pytest.raises(ValueError, match=r"\[1, 9, 5, 18\]"):
            build(x, kernel, **arguments)
    else:
        assert output_shape(build(x, kernel, **arguments)) == expected


@pytest.mark.parametrize(
    ("x", "kernel", "words"),
    [
        ((1, 8, 4, 4), (1, 17, 4, 4), "groups x 9 taps"),
        ((1, 7, 4, 4), (1, 18, 4, 4), "multiple of the groups"),
        ((1, 8, 4), (1, 18, 4, 4), "rank 4"),
    ],
)
def test_errors_name_the_shapes(x, kernel, words):
    with pytest.raises(ValueError) as error:
        build(x, kernel, kernel_size=(3, 3), padding=(1, 1))
    assert words in str(error.value)


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_legalized_program_is_right(rng, layout):
    x = rng.standard_normal((2, 8, 7, 6)).astype("float32")
    kernel = rng.standard_normal((2, 2, 3, 3, 4, 3)).astype("float32")
    expected = reference.involution2d(x, kernel, (2, 2), (1, 1))
    packed = kernel.reshape(2, 18, 4, 3)
    if layout == "NHWC":
        x, packed, expected = (a.transpose(0, 2, 3, 1) for a in (x, packed, expected))
    mod = build(x.shape, packed.shape, kernel_size=(3, 3), stride=(2, 2), padding=(1, 1), layout=layout)
    mod = relax.transform.LegalizeOps()(mod)
    assert operator.OP_NAME not in mod.script()
    vm = relax.VirtualMachine(tvm.compile(mod, target="llvm"), tvm.cpu())
    inputs = [tvm.runtime.tensor(np.ascontiguousarray(a)) for a in (x, packed)]
    assert reference.relative_norm(vm["main"](*inputs).numpy(), expected) < 1e-5


@pytest.mark.parametrize("layout", ["NCW", "NWC", "NCDHW", "NDHWC"])
def test_other_axes(rng, layout):
    """Shapes, layout conversion to channels last and the legalized program, along one and three axes."""
    axes = len(layout) - 2
    size, kernel_size, stride, padding, out = ((5, 7, 6), (3, 1, 3), (1, 2, 2), (1, 0, 1), (5, 4, 3))
    size, kernel_size, stride, padding, out = (v[-axes:] for v in (size, kernel_size, stride, padding, out))
    taps = int(np.prod(kernel_size))
    x = rng.standard_normal((2, 8, *size)).astype("float32")
    kernel = rng.standard_normal((2, 2, *kernel_size, *out)).astype("float32")
    expected = reference.involution(x, kernel, stride, padding, (1,) * axes)
    packed = kernel.reshape(2, 2 * taps, *out)
    if layout.endswith("C"):
        x, packed, expected = (np.moveaxis(array, 1, -1) for array in (x, packed, expected))
    ones = (1,) * axes
    builder = relax.BlockBuilder()
    inputs = [relax.Var(name, relax.TensorType(a.shape, "float32")) for name, a in (("x", x), ("kernel", packed))]
    with builder.function("main", inputs):
        with builder.dataflow():
            call = operator.involution(*inputs, kernel_size, stride, padding, ones, layout)
            result = builder.emit_output(builder.emit(call))
        builder.emit_func_output(result)
    mod = builder.get()
    assert output_shape(mod) == list(expected.shape)
    wanted = operator.CHANNELS_LAST[axes]
    converted = relax.transform.ConvertLayout({operator.OP_NAMES[axes]: [wanted, wanted]})(mod)
    calls = []
    relax.analysis.post_order_visit(converted["main"], lambda e: calls.append(e) if isinstance(e, relax.Call) else None)
    layouts = [str(c.attrs["layout"]) for c in calls if getattr(c.op, "name", "") == operator.OP_NAMES[axes]]
    assert layouts == [wanted]
    vm = relax.VirtualMachine(tvm.compile(relax.transform.LegalizeOps()(converted), target="llvm"), tvm.cpu())
    arrays = [tvm.runtime.tensor(np.ascontiguousarray(array)) for array in (x, packed)]
    assert reference.relative_norm(vm["main"](*arrays).numpy(), expected) < 1e-5


def test_layout_conversion_moves_both_inputs(rng):
    mod = build((1, 8, 5, 5), (1, 18, 5, 5), kernel_size=(3, 3), padding=(1, 1))
    converted = relax.transform.ConvertLayout({operator.OP_NAME: ["NHWC", "NHWC"]})(mod)
    calls = []
    relax.analysis.post_order_visit(converted["main"], lambda e: calls.append(e) if isinstance(e, relax.Call) else None)
    involution = [c for c in calls if getattr(c.op, "name", "") == operator.OP_NAME]
    assert [str(c.attrs["layout"]) for c in involution] == ["NHWC"]
    assert [int(d) for d in involution[0].args[1].ty.shape.values] == [1, 5, 5, 18]
    assert output_shape(converted) == [1, 8, 5, 5]
    inputs = [rng.standard_normal(s).astype("float32") for s in ((1, 8, 5, 5), (1, 18, 5, 5))]
    results = []
    for module in (mod, converted):
        vm = relax.VirtualMachine(tvm.compile(relax.transform.LegalizeOps()(module), target="llvm"), tvm.cpu())
        results.append(vm["main"](*(tvm.runtime.tensor(a) for a in inputs)).numpy())
    assert reference.relative_norm(results[1], results[0]) < 1e-6
