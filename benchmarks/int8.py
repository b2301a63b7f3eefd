# SPDX-License-Identifier: Apache-2.0
"""RedNet and ResNet in int8 on this CPU, beside ours in bfloat16 and peers in int8, in turns.

    python benchmarks/int8.py                       # RedNet-50 and ResNet-50, all cores
    python benchmarks/int8.py --threads 1 --models rednet26 resnet50 --peers none

Peers run ResNet and RedNet as their own tools quantize them (static, bytes by 8-bit weights per channel): ONNX Runtime
what onnxruntime.quantization makes of the ONNX file (QDQ), OpenVINO what NNCF does (`pip install nncf`; with
`openvino-qdq` the file of ONNX Runtime). Each contender has a process of its own.
Weights are random; time does not depend on them. The shortest call says most where others use the machine.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

CALIBRATION, SEED = 4, 0


def pictures(count: int, size: int) -> np.ndarray:
    """Return random inputs, the same in every process."""
    return np.random.default_rng(SEED).standard_normal((count, 3, size, size)).astype(np.float32)


def build(model: str, contender: str, size: int, folder: Path) -> Path:
    """Make the file that a contender loads."""
    import torch

    import tvm_involution as ti

    torch.manual_seed(SEED)
    if contender.startswith("ours"):
        dtype = contender.removeprefix("ours ")
        path = folder / f"{model}-{dtype}.so"
        shown = pictures(CALIBRATION, size) if dtype == "int8" else None
        ti.compile(model, dtype=dtype, calibration=shown, image_size=(size, size)).save(path)
        return path
    import onnx
    from onnxruntime.quantization import CalibrationDataReader, QuantType, quant_pre_process, quantize_static

    from tvm_involution.bench.network import unfolded
    from tvm_involution.nn import build_model

    exported, prepared = folder / f"{model}-float32.onnx", folder / "prepared.onnx"
    if not exported.exists():
        module = unfolded(build_model(model).eval())
        example = torch.from_numpy(pictures(1, size))
        torch.onnx.export(module, (example,), exported, dynamo=True, verbose=False, external_data=False)
    if contender == "openvino":
        return _by_nncf(exported, folder / f"{model}.xml", size)
    path = folder / f"{model}.onnx"
    if path.exists():
        return path
    quant_pre_process(exported, prepared)

    (input_,) = (one.name for one in onnx.load(prepared, load_external_data=False).graph.input)
    left = [{input_: picture[None]} for picture in pictures(CALIBRATION, size)]

    class Shown(CalibrationDataReader):
        def get_next(self) -> dict[str, np.ndarray] | None:
            return left.pop() if left else None

    quantize_static(
        prepared, path, Shown(), per_channel=True, activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8
    )
    return path


def _by_nncf(exported: Path, path: Path, size: int) -> Path:
    import nncf
    import openvino

    shown = nncf.Dataset(list(pictures(CALIBRATION, size)), lambda picture: picture[None])
    openvino.save_model(nncf.quantize(openvino.Core().read_model(exported), shown), path)
    return path


def load(contender: str, path: Path, size: int, threads: int) -> Callable[[], object]:
    """Return the call that is timed."""
    x = pictures(1, size)
    if contender.startswith("ours"):
        import tvm_involution as ti
        from tvm_involution.runtime.arrays import numpy_dtype

        network = ti.load(path)
        array = x.astype(numpy_dtype(network.metadata.inputs[0].dtype))
        return lambda: network(array)
    if contender == "onnxruntime":
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        return lambda: session.run(None, {session.get_inputs()[0].name: x})
    import openvino

    settings = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY"}
    compiled = openvino.compile_model(str(path), "CPU", settings)
    return lambda: compiled(x)


def work(contender: str, path: Path, size: int, threads: int) -> None:
    """Answer each line on standard input, a number of calls, with their times in milliseconds."""
    call = load(contender, path, size, threads)
    for _ in range(3):
        call()
    print("ready", flush=True)
    for line in sys.stdin:
        times = []
        for _ in range(int(line)):
            start = time.perf_counter()
            call()
            times.append(1e3 * (time.perf_counter() - start))
        print(json.dumps(times), flush=True)


def main() -> None:
    """Build, take turns, print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["rednet50", "resnet50"])
    parser.add_argument("--peers", nargs="+", default=["onnxruntime", "openvino"], help="some of these, or none")
    parser.add_argument("--alone", nargs="+", default=[], help="models that the peers do not run")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--calls", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="for what is built; what is there is used")
    parser.add_argument("--worker", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        work(args.worker[0], Path(args.worker[1]), args.size, args.threads)
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        workers = {}
        environment = {**os.environ, "TVM_NUM_THREADS": str(args.threads)}
        for model in args.models:
            peers = [peer for peer in args.peers if peer != "none" and model not in args.alone]
            for contender in ("ours int8", "ours bfloat16", *peers):
                file = folder / f"{model}-{contender.removeprefix('ours ')}.so"
                path = file if file.exists() else build(model, contender, args.size, folder)
                options = ["--size", str(args.size), "--threads", str(args.threads), "--worker", contender, str(path)]
                process = subprocess.Popen(
                    [sys.executable, __file__, *options],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    text=True,
                    env=environment,
                )
                assert process.stdout is not None and process.stdout.readline().strip() == "ready"
                workers[model, contender] = process
        times: dict[tuple[str, str], list[float]] = {key: [] for key in workers}
        for _ in range(args.rounds):
            for key, process in workers.items():
                assert process.stdin is not None and process.stdout is not None
                print(args.calls, file=process.stdin, flush=True)
                times[key] += json.loads(process.stdout.readline())
        for process in workers.values():
            process.communicate()
    print(f"threads={args.threads} size={args.size} calls={args.rounds * args.calls}, in turns\n")
    print("| network | in | min ms | median ms |\n|---|---|---|---|")
    for (model, contender), values in times.items():
        print(f"| {model} | {contender} | {min(values):.2f} | {np.median(values):.2f} |")


if __name__ == "__main__":
    main()
