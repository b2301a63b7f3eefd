# SPDX-License-Identifier: Apache-2.0
"""Convolutions and linear layers on AMX's tiles: built for any CPU that has them, run where this one does."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import tvm
from programs import TOLERANCE, as_dtype, extremes, random_point, run_expression
from reference import relative_norm
from tvm import te

import tvm_involution as ti
from tvm_involution import lowering
from tvm_involution.lowering.link import export_library, linker_of
from tvm_involution.runtime import machine
from tvm_involution.schedules import default_schedule
from tvm_involution.schedules.cpu import AmxGemm
from tvm_involution.schedules.cpu.amx import has_amx
from tvm_involution.target import resolve_target
from tvm_involution.te import conv2d_packed, matmul_packed, pack_weight

SAPPHIRE_RAPIDS = json.dumps({"kind": "llvm", "mcpu": "sapphirerapids", "num-cores": 2})
needs_tiles = pytest.mark.skipif(not has_amx(resolve_target("llvm"), "bfloat16"), reason="this CPU has no AMX")

# N, H, W, I, O, kernel, padding, lanes
CASES = [
    (1, 14, 14, 64, 64, (1, 1), 0, 32),
    (2, 5, 12, 36, 20, (1, 1), 0, 16),
    (1, 7, 7, 128, 33, (1, 1), 0, 32),
    (3, 6, 16, 7, 49, (3, 3), 1, 16),
    (1, 9, 10, 96, 40, (2, 3), 1, 32),
    (1, 4, 20, 10, 64, (5, 3), 2, 32),
]


@needs_tiles
@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("epilogue", [False, True], ids=["bare", "epilogue"])
def test_convolution(rng, case, epilogue):
    n, h, w, i, o, window, padding, lanes = case
    x, weight = (as_dtype(rng.standard_normal(shape), "bfloat16") for shape in ((n, h, w, i), (o, i, *window)))
    exact = [torch.from_numpy(a.astype(np.float64)) for a in (x, weight)]
    expected = torch.nn.functional.conv2d(exact[0].permute(0, 3, 1, 2), exact[1], None, 1, padding).permute(0, 2, 3, 1)
    arrays = [x, pack_weight(weight, lanes, 2)]
    if epilogue:
        residual = as_dtype(rng.standard_normal(tuple(expected.shape)), "bfloat16")
        expected = (expected + torch.from_numpy(residual.astype(np.float64))).relu()
        arrays.append(residual)

    def expression(data, packed, *rest):
        out = conv2d_packed(data, packed, o, padding=(padding,) * 4)
        return tvm.topi.nn.relu(tvm.topi.add(out, rest[0])) if rest else out

    actual = run_expression(expression, arrays, "bfloat16", "AmxGemm")
    assert relative_norm(actual, expected.numpy()) < TOLERANCE["bfloat16"]


@needs_tiles
@pytest.mark.parametrize("case", CASES, ids=str)
def test_bytes(rng, case):
    """Exact, at the ends of what bytes hold."""
    n, h, w, i, o, window, padding, lanes = case
    i *= 2
    x = extremes(rng, (n, h, w, i), 0, 255, "uint8")
    weight = extremes(rng, (o, i, *window), -127, 127, "int8")
    exact = [torch.from_numpy(a.astype(np.float64)) for a in (x, weight)]
    expected = torch.nn.functional.conv2d(exact[0].permute(0, 3, 1, 2), exact[1], None, 1, padding).permute(0, 2, 3, 1)
    packed = pack_weight(weight, lanes, 4)
    actual = run_expression(
        lambda data, by: conv2d_packed(data, by, o, padding=(padding,) * 4, out_dtype="int32"),
        [x, packed],
        None,
        "AmxGemm",
    )
    np.testing.assert_array_equal(actual, expected.numpy())


@needs_tiles
@pytest.mark.parametrize(("rows", "inputs", "outputs"), [(4, 40, 10), (30, 9, 33), (16, 256, 96)])
def test_linear(rng, rows, inputs, outputs):
    x, weight = (as_dtype(rng.standard_normal(shape), "bfloat16") for shape in ((rows, inputs), (outputs, inputs)))
    packed = pack_weight(weight[:, :, None, None], 16, 2)
    actual = run_expression(lambda a, b: matmul_packed(a, b, outputs), [x, packed], "bfloat16", "AmxGemm")
    assert relative_norm(actual, x.astype(np.float64) @ weight.astype(np.float64).T) < TOLERANCE["bfloat16"]


def placeholders(columns: int = 14, pixels: int = 14) -> tuple[te.Tensor, te.Tensor]:
    x = te.placeholder((1, pixels, columns, 64), "bfloat16", "x")
    return x, te.placeholder((2, 3, 3, 32, 32, 2), "bfloat16", "w")


def program(columns: int = 14, **arguments: object) -> tvm.tirx.PrimFunc:
    x, weight = placeholders(columns)
    return te.create_prim_func([x, weight, conv2d_packed(x, weight, 64, **arguments)])


def test_what_vectors_take():
    """Few pixels of a row, steps and holes of a window, other CPUs."""
    target = resolve_target(SAPPHIRE_RAPIDS)
    assert default_schedule(program(), target)[1] == "AmxGemm"
    for other in (program(columns=5), program(columns=19), program(stride=(2, 2)), program(dilation=(1, 2))):
        assert default_schedule(other, target)[1] == "PackedGemm"
    assert default_schedule(program(), resolve_target('{"kind": "llvm", "mcpu": "cooperlake"}'))[1] == "PackedGemm"


def test_code_of_another_cpu():
    """The instruction is there, and the library says what it needs."""
    target = resolve_target(SAPPHIRE_RAPIDS)
    sch, _ = default_schedule(program(), target)
    source = lowering.build(sch.mod["main"].with_attr("global_symbol", "main"), target).mod.inspect_source("asm")
    assert "tdpbf16ps" in source and "tilerelease" in source
    library = ti.compile(torch.nn.Conv2d(32, 32, 1), SAPPHIRE_RAPIDS, dtype="bfloat16", image_size=(8, 8))
    assert {"amx_tile", "amx_bf16"} <= set(library.metadata.cpu_features)
    assert library.metadata.kernels.by_rule["AmxGemm"] == 1


@needs_tiles
def test_points_of_the_space(rng):
    func, target = program(padding=(1, 1, 1, 1)), resolve_target("llvm")
    spaces = AmxGemm().apply(func, target, tunable=True)
    assert len(spaces) > 2
    arrays = [as_dtype(rng.standard_normal([int(d) for d in b.shape]), "bfloat16") for b in func.params[:-1]]
    results = []
    for space in spaces:
        point = random_point(rng, func, [space])
        library = lowering.build(point.mod["main"].with_attr("global_symbol", "main"), target)
        result = tvm.runtime.empty([int(d) for d in func.params[-1].shape], "bfloat16")
        library["main"](*map(tvm.runtime.tensor, arrays), result)
        results.append(result.numpy().astype(np.float64))
    x, weight = (array.astype(np.float64) for array in arrays)
    weight = weight.transpose(0, 4, 3, 5, 1, 2).reshape(64, 64, 3, 3)
    expected = torch.nn.functional.conv2d(torch.from_numpy(x).permute(0, 3, 1, 2), torch.from_numpy(weight), padding=1)
    for result in results:
        assert relative_norm(result, expected.permute(0, 2, 3, 1).numpy()) < TOLERANCE["bfloat16"]


@needs_tiles
def test_a_library_asks_for_the_tiles_itself(tmp_path: Path):
    """In a process that knows TVM alone, as servers of a fleet do."""
    target = resolve_target("llvm")
    sch, _ = default_schedule(program(), target)
    export_library(
        lowering.build(sch.mod["main"].with_attr("global_symbol", "main"), target),
        target,
        tmp_path / "tiles.so",
        linker_of(target),
    )
    code = (
        "import sys, tvm\nshapes = ((1, 14, 14, 64), (2, 3, 3, 32, 32, 2), (1, 12, 12, 64))\n"
        "tvm.runtime.load_module(sys.argv[1])['main'](*(tvm.runtime.empty(s, 'bfloat16') for s in shapes))"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "tiles.so")]
    done = subprocess.run(command, env=dict(os.environ), capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr


def test_where_tiles_are_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(machine, "architecture", lambda: "x86_64")
    monkeypatch.setattr(machine, "_cpuinfo", lambda key: "fpu avx2 amx_tile amx_bf16 amx_int8")
    for granted, missing in ((True, []), (False, ["amx_tile", "amx_bf16"])):
        monkeypatch.setattr(machine, "tiles_are_granted", lambda granted=granted: granted)
        assert machine.missing_features(["avx2", "amx_tile", "amx_bf16"]) == missing
