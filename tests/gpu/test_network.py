# SPDX-License-Identifier: Apache-2.0
"""Every kernel of a network as it is scheduled for GPUs, run on this CPU beside the program without a schedule."""

from __future__ import annotations

from pathlib import Path

import cuda_emulator
import numpy as np
import pytest
import skimage
import torch
import tvm
import tvm_ffi
from conftest import tiny_rednet
from cuda_emulator import run_cuda
from emulated_network import run_emulated
from PIL import Image
from programs import TOLERANCE, as_dtype
from reference import relative_norm
from tvm import tirx

from tvm_involution.frontend.importer import export_module, import_exported_program
from tvm_involution.frontend.network import resolve_network
from tvm_involution.relax import pipeline
from tvm_involution.relax.passes.apply_schedules import SOURCE_ATTR
from tvm_involution.runtime.preprocessing import picture_to_array
from tvm_involution.schedules import default_schedule
from tvm_involution.target import resolve_target

pytestmark = pytest.mark.skipif(not cuda_emulator.available, reason="needs g++")
BOUNDS = {"float32": 1e-5, "float16": 2e-3, "bfloat16": 1e-2}


def test_every_kernel(rng):
    dtype, architecture = [("float32", "sm_90a"), ("float16", "sm_80")][int(rng.integers(2))]
    print(dtype, architecture)
    target = tvm.target.Target({"kind": "cuda", "arch": architecture}, host="llvm")
    mod = import_exported_program(export_module(tiny_rednet(), [torch.zeros(1, 3, 16, 16)]))
    mod = pipeline.run(mod, target, dtype=dtype, until="lower operators")
    programs = {}
    for _, func in mod.functions_items():
        if isinstance(func, tirx.PrimFunc) and SOURCE_ATTR not in (func.attrs or {}):
            programs[tvm_ffi.structural_hash(func.without_attr("global_symbol"))] = func
    rules = set()
    for func in programs.values():
        *inputs, output = func.params
        arrays = [as_dtype(rng.standard_normal([int(d) for d in p.shape]), str(p.dtype)) for p in inputs]
        expected = run_plain(func, arrays, output)
        schedule, rule = default_schedule(func, target)
        error = relative_norm(run_cuda(schedule, arrays, target)[0], expected)
        assert error < TOLERANCE[dtype], (rule, func)
        rules.add(rule)
    assert ("SpannedInvolution" if dtype == "float32" else "TensorCoreInvolution") in rules


def test_trained_network_on_a_photograph(rng):
    """All kernels one after the other, as on a GPU, on real activations."""
    dtype, architecture = str(rng.choice(list(BOUNDS))), str(rng.choice(["sm_80", "sm_90a", "sm_120"]))
    print(dtype, architecture)
    network = resolve_network("rednet_photos")
    with Image.open(Path(skimage.__file__).parent / "data" / "astronaut.png") as picture:
        x = picture_to_array(picture.convert("RGB").resize((96, 96)), network.preprocessing)
    with torch.no_grad():
        expected = network.module.double()(torch.from_numpy(x).double()).numpy()
    target = resolve_target(f'{{"kind": "cuda", "arch": "{architecture}"}}')
    actual = run_emulated(network.module.float(), x, target, dtype)
    assert relative_norm(actual, expected) < BOUNDS[dtype]
    assert network.classes[actual.argmax()] == "astronaut"


def run_plain(func: tirx.PrimFunc, arrays: list[np.ndarray], output) -> np.ndarray:
    library = tvm.compile(func.with_attr("global_symbol", "main"), target="llvm")
    result = tvm.runtime.empty([int(d) for d in output.shape], str(output.dtype))
    library["main"](*map(tvm.runtime.tensor, arrays), result)
    return result.numpy()
