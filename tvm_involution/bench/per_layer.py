# SPDX-License-Identifier: Apache-2.0
"""Time the kernels of our network where they run: inside it, one after another, on our threads.

The virtual machine tells an instrument before and after each kernel. Kernels timed alone would find their arguments in
the cache and their threads awake, which in the network they don't.
"""

from __future__ import annotations

import math
import statistics
import time
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import tvm
from tvm import relax, tirx
from tvm.s_tir.analysis import estimate_tir_flops

from .. import lowering
from ..frontend.importer import import_exported_program
from ..frontend.network import Network
from ..quantization import quantize, read_calibration
from ..records.tuning_records import TuningRecords
from ..relax import pipeline
from ..relax.passes.apply_schedules import RULE_ATTR, SOURCE_ATTR
from ..runtime.arrays import numpy_dtype
from ..runtime.metadata import BATCH, INT8, TensorSpec
from ..runtime.threads import run_on_pool
from ..target import resolve_target
from .calibration import random_pictures
from .layer import Layer, LayerTable
from .network import resolve
from .peak import measure_peak
from .subject import Subject

_WARM_UP, _RUNS = 5, 50
# a word in the name of a kernel -> what it is; the first that fits
_KINDS = {
    "involution": "involution",
    "conv2d": "convolution",
    "linear": "linear",
    "matmul": "linear",
    "pool": "pooling",
    "mean": "pooling",
}


def measure_layers(subject: Subject) -> LayerTable:
    """Compile the subject's network for this CPU and time its kernels; to be called in a process of its own.

    Raises:
        UserError: the network cannot be compiled.
    """
    torch.set_num_threads(subject.threads)
    peak = measure_peak(subject.dtype or "float32")
    target = resolve_target("llvm")
    network = resolve(subject)
    (batch,) = network.batch_sizes(subject.batch)
    dtype = "float32" if subject.dtype == INT8 else network.resolve_dtype(subject.dtype)
    mod = import_exported_program(network.export(batch))
    if subject.dtype == INT8:
        mod = _quantized(mod, subject, network, target)
    programs = _programs(pipeline.run(mod, target, dtype=dtype, until="lower operators"))
    records = TuningRecords(target, subject.tuning_logs)
    scheduled = pipeline.run(mod, target, dtype=dtype, records=records)
    kernels = _programs(scheduled)
    executable = lowering.build(scheduled, target)
    rng = np.random.default_rng(0)
    shapes = [[int(d) for d in param.ty.shape.values] for param in mod["main"].params]
    inputs = [rng.standard_normal(shape, np.float32).astype(numpy_dtype(dtype)) for shape in shapes]
    network_seconds, times = run_on_pool(_time_kernels, executable, inputs, set(kernels))
    layers = [
        Layer(
            kernel=name,
            kind=next((kind for word, kind in _KINDS.items() if word in name), "elementwise"),
            shapes=tuple(tuple(int(d) for d in buffer.shape) for buffer in programs[name].params),
            calls=len(seconds) // _RUNS,
            operations=round(estimate_tir_flops(tvm.IRModule({"main": programs[name]}))),
            bytes=sum(_bytes(buffer) for buffer in programs[name].params),
            microseconds=1e6 * statistics.median(seconds),
            schedule=str(kernels[name].attrs[SOURCE_ATTR]),
            rule=str(kernels[name].attrs.get(RULE_ATTR, "")),
        )
        for name, seconds in times.items()
    ]
    layers.sort(key=lambda layer: -layer.total_us)
    return LayerTable(tuple(layers), peak.gflops, peak.gbs, 1e6 * network_seconds)


def _quantized(mod: tvm.IRModule, subject: Subject, network: Network, target: tvm.target.Target) -> tvm.IRModule:
    params = mod["main"].params
    shapes = [tuple(int(d) for d in param.ty.shape.values) for param in params]
    pictures: Sequence[np.ndarray] = random_pictures(shapes)
    if subject.calibration is not None:
        specs = [
            TensorSpec(one.name, (BATCH, *shape[1:]), "float32") for one, shape in zip(params, shapes, strict=True)
        ]
        pictures = read_calibration(subject.calibration, specs, network.preprocessing)
    quantized, _ = quantize(pipeline.run(mod, target, until="simplify the graph"), "main", pictures, target)
    return quantized


def _programs(mod: tvm.IRModule) -> dict[str, tirx.PrimFunc]:
    return {name.name_hint: func for name, func in mod.functions_items() if isinstance(func, tirx.PrimFunc)}


def _bytes(buffer: tirx.Buffer) -> int:
    return math.prod(int(d) for d in buffer.shape) * numpy_dtype(str(buffer.dtype)).itemsize


def _time_kernels(
    executable: relax.VMExecutable, inputs: list[np.ndarray], kernels: set[str]
) -> tuple[float, dict[str, list[float]]]:
    """Run the network; return the median seconds of a run, and those of every call of every kernel."""
    seconds: dict[str, list[float]] = defaultdict(list)
    started = 0.0

    def instrument(_: Any, name: str, before_run: bool, *__: Any) -> None:
        nonlocal started
        if name not in kernels:
            return
        if before_run:
            started = time.perf_counter()
        else:
            seconds[name].append(time.perf_counter() - started)

    machine = relax.VirtualMachine(executable, tvm.cpu())
    tensors = [tvm.runtime.tensor(array) for array in inputs]
    runs = []
    for _ in range(_WARM_UP + _RUNS):
        start = time.perf_counter()
        machine["main"](*tensors)
        runs.append(time.perf_counter() - start)
    machine.set_instrument(instrument)
    for _ in range(_RUNS):
        machine["main"](*tensors)
    return statistics.median(runs[_WARM_UP:]), seconds
