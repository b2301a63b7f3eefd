# SPDX-License-Identifier: Apache-2.0
"""RedNets on this machine's GPU, in one bounded command: check every kernel, time networks, tune, time again.

    python benchmarks/gpu.py --out out/gpu                       # about 25 minutes
    python benchmarks/gpu.py --out out/gpu --only check,networks
    python benchmarks/gpu.py --out out/cpu --target llvm --models rednet_digits --image-size 32 --batch 1

Each step is a process of its own with a time limit and writes OUT/STEP.json; one that fails leaves its last lines in
OUT/STEP.log, and the next goes on. Tuning records go to OUT/tuning_logs. Nothing else may run on the machine.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tvm

import tvm_involution as ti
from tvm_involution.bench.machine import describe_machine
from tvm_involution.bench.network import unfolded
from tvm_involution.files import atomic_write
from tvm_involution.nn import build_model
from tvm_involution.relax.network import resolve_network
from tvm_involution.runtime.threads import run_on_pool, thread_count
from tvm_involution.target import lowering_config, resolve_target
from tvm_involution.tuning.tasks import extract_tasks

# step -> its share of the minutes; the most valuable first
STEPS = {"check": 0.2, "networks": 0.25, "tune": 0.35, "tuned": 0.2}
TOLERANCE = {"float32": 1e-5, "float16": 1e-2, "bfloat16": 1e-2}
_ROUNDS, _CALLS = 5, 20


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=25.0)
    parser.add_argument("--only", type=lambda text: text.split(","), default=list(STEPS))
    parser.add_argument("--target", default="cuda")
    parser.add_argument("--models", nargs="+", default=["rednet50", "resnet50"])
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 32, 128])
    parser.add_argument("--dtype", nargs="+", default=["float16"])
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--step", choices=list(STEPS), help=argparse.SUPPRESS)
    return parser.parse_args()


def check(words: argparse.Namespace) -> Any:
    """Run every kernel's default schedule on random inputs against the unscheduled program on the CPU."""
    target, rows = resolve_target(words.target), []
    device = tvm.cuda() if target.kind.name == "cuda" else tvm.cpu()
    rng = np.random.default_rng()
    network = resolve_network(words.models[0], image_size=(words.image_size,) * 2)
    for dtype in TOLERANCE:
        for task in extract_tasks(network, target, batch=2, dtype=dtype):
            row: dict[str, Any] = {"kernel": task.name, "dtype": dtype, "rule": task.rule}
            try:
                with tvm.transform.PassContext(config=lowering_config(target)):
                    ours = tvm.compile(task.default.mod, target=target)
                plain = tvm.compile(task.mod, target="llvm")
                arrays = [rng.standard_normal([int(d) for d in info.shape]) for info in task.args_info]
                types = [str(info.dtype) for info in task.args_info]
                row["error"] = _relative_norm(ours, plain, arrays, types, device)
                row["right"] = bool(row["error"] < TOLERANCE[dtype])
            except Exception as error:  # the next kernel is checked all the same
                row.update(error=str(error).strip().splitlines()[-1][:200], right=False)
            rows.append(row)
    wrong = [row for row in rows if not row["right"]]
    return {"kernels": len(rows), "wrong": wrong, "worst": max(_numbers(rows), default=None), "rows": rows}


def _numbers(rows: list[dict[str, Any]]) -> list[float]:
    return [row["error"] for row in rows if isinstance(row["error"], float)]


def _relative_norm(ours: Any, plain: Any, arrays: list[np.ndarray], types: list[str], device: Any) -> float:
    from tvm_involution.runtime.arrays import numpy_dtype

    outputs = []
    for library, where in ((ours, device), (plain, tvm.cpu())):
        tensors = []
        for array, dtype in zip(arrays, types, strict=True):
            tensor = tvm.runtime.empty(array.shape, dtype, where)
            tensor.copyfrom(array.astype(numpy_dtype(dtype)))
            tensors.append(tensor)
        run_on_pool(library["main"], *tensors)
        outputs.append(tensors[-1].numpy().astype(np.float64))
    return float(np.linalg.norm(outputs[0] - outputs[1]) / (np.linalg.norm(outputs[1]) or 1.0))


def networks(words: argparse.Namespace, logs: Path | None = None) -> Any:
    """Time the models in ours, torch and torch.compile, in turns; medians in ms."""
    rows = []
    for dtype in words.dtype:
        for batch in words.batch:
            calls = {}
            for model in words.models:
                calls.update(_contenders(words, model, batch, dtype, logs, rows))
            times: dict[tuple[str, str], list[float]] = {name: [] for name in calls}
            for _ in range(_ROUNDS):
                for name, call in calls.items():
                    times[name] += _milliseconds(call, words.target)
            for (model, runtime), values in times.items():
                rows.append({"model": model, "in": runtime, "batch": batch, "dtype": dtype, "ms": _median(values)})
                print(rows[-1], flush=True)
    return rows


def _median(values: list[float]) -> float:
    return round(statistics.median(values), 4)


def _contenders(
    words: argparse.Namespace, model: str, batch: int, dtype: str, logs: Path | None, failures: list[Any]
) -> dict[tuple[str, str], Callable[[], Any]]:
    """Return the runtimes that ran the model once, with what runs it again."""
    device = "cuda" if words.target == "cuda" else "cpu"
    x = torch.randn(batch, 3, words.image_size, words.image_size, dtype=getattr(torch, dtype), device=device)

    def ours() -> Callable[[], Any]:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "network.so"
            size = (words.image_size,) * 2
            ti.compile(model, words.target, batch=batch, dtype=dtype, image_size=size, tuning_logs=logs).save(path)
            network = ti.load(path)
        return lambda: network(x)

    def eager() -> Callable[[], Any]:
        module = unfolded(build_model(model)).to(device, x.dtype, memory_format=torch.channels_last)
        channels_last = x.to(memory_format=torch.channels_last)
        return lambda: module(channels_last)

    def compiled() -> Callable[[], Any]:
        module = torch.compile(unfolded(build_model(model)).to(device, x.dtype), mode="reduce-overhead")
        return lambda: module(x)

    found: dict[tuple[str, str], Callable[[], Any]] = {}
    for runtime, make in {"ours": ours, "torch": eager, "torch.compile": compiled}.items():
        if runtime != "ours" and logs is not None:
            continue
        try:
            call = make()
            with torch.no_grad():
                call()
            found[model, runtime] = call
        except Exception as error:  # the others are timed all the same
            reason = (str(error).strip().splitlines() or [repr(error)])[-1][:200]
            failures.append({"model": model, "in": runtime, "batch": batch, "dtype": dtype, "failed": reason})
    return found


def _milliseconds(call: Callable[[], Any], target: str) -> list[float]:
    values = []
    with torch.no_grad():
        call()
        for _ in range(_CALLS):
            if target == "cuda":
                start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
                start.record()
                call()
                end.record()
                end.synchronize()
                values.append(start.elapsed_time(end))
            else:
                before = time.perf_counter()
                call()
                values.append(1e3 * (time.perf_counter() - before))
    return values


def tune(words: argparse.Namespace) -> Any:
    """Search the first model's schedules, the largest batch first."""
    minutes = words.minutes * STEPS["tune"] * 0.9 / (len(words.batch) * len(words.dtype))
    done = []
    for dtype in words.dtype:
        for batch in sorted(words.batch, reverse=True):
            run = ti.tune(
                words.models[0],
                words.target,
                minutes=minutes,
                batch=batch,
                dtype=dtype,
                image_size=(words.image_size,) * 2,
                log_dir=words.out / "tuning_logs",
            )
            seconds = [run.network_seconds(tuned) for tuned in (False, True)]
            done.append({"batch": batch, "dtype": dtype, "trials": run.trials, "default, tuned ms": seconds})
    return done


def tuned(words: argparse.Namespace) -> Any:
    """Time ours again, with what tuning found."""
    return networks(words, words.out / "tuning_logs")


def main() -> None:
    """Run one step, or each in a process of its own."""
    words = arguments()
    words.out.mkdir(parents=True, exist_ok=True)
    if words.step is not None:
        result = {"check": check, "networks": networks, "tune": tune, "tuned": tuned}[words.step](words)
        gpu = torch.cuda.get_device_name() if words.target == "cuda" else None
        with atomic_write(words.out / f"{words.step}.json") as path:
            path.write_text(
                json.dumps({"machine": describe_machine(thread_count()), "gpu": gpu, "result": result}, indent=1)
            )
        return
    for step in (step for step in STEPS if step in words.only):
        print(step, flush=True)
        with (words.out / f"{step}.log").open("w") as log:
            command = [sys.executable, __file__, *sys.argv[1:], "--step", step]
            limit = 60 * words.minutes * STEPS[step]
            try:
                status = subprocess.run(command, stdout=log, stderr=log, timeout=limit, check=False).returncode
            except subprocess.TimeoutExpired:
                status = f"stopped after {limit:.0f} s"
        print(f"  {'done' if status == 0 else f'failed ({status}): see {log.name}'}", flush=True)


if __name__ == "__main__":
    main()
