# SPDX-License-Identifier: Apache-2.0
"""RedNet and ResNet in int8 and bfloat16 on this CPU, ours and peers in turns.

    python benchmarks/int8.py                       # RedNet-50 and ResNet-50, all cores
    python benchmarks/int8.py --models rednet26 resnet50 --alone rednet26 --peers openvino

Peers run what their own tools quantize (static, bytes by 8-bit weights per channel): ONNX Runtime what
onnxruntime.quantization makes of the ONNX file (QDQ), OpenVINO what NNCF does (`pip install nncf`); see
`tvm_involution/bench/contenders/`. `TVM_NUM_THREADS` says how many threads. Weights and pictures are random; time does
not depend on them. The shortest call says most where others use the machine.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from markdown_rows import print_header, print_row

from tvm_involution.bench.compare import compare
from tvm_involution.bench.contenders import PEERS, select_peers
from tvm_involution.bench.effort import Effort
from tvm_involution.bench.subject import Subject
from tvm_involution.errors import UserError
from tvm_involution.files import write_json
from tvm_involution.runtime.threads import thread_count


def main() -> None:
    """Compare, print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["rednet50", "resnet50"])
    parser.add_argument("--dtypes", nargs="+", default=["int8", "bfloat16"])
    able = [peer.name for peer in PEERS if "int8" in peer.dtypes]
    parser.add_argument("--peers", nargs="+", default=able, help="some of these, or none")
    parser.add_argument("--alone", nargs="+", default=[], help="models that the peers do not run")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--calibration", type=Path, help="pictures or arrays, as `compile` takes them")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--calls", type=int, default=5)
    parser.add_argument("--json", type=Path)
    words = parser.parse_args()
    peers = select_peers([name for name in words.peers if name != "none"])
    size = (words.size, words.size)
    subjects = [
        Subject(model, thread_count(), batch=words.batch, dtype=dtype, image_size=size, calibration=words.calibration)
        for model in words.models
        for dtype in words.dtypes
    ]
    effort = Effort(words.rounds, words.calls)
    comparison = compare(subjects, peers, effort, lambda text: print(text, file=sys.stderr, flush=True), words.alone)
    print(" ".join(f"{key}={value}" for key, value in comparison.machine.items()), "\n")
    print_header(["network", "in", "by", "median ms", "min ms", "relative error"])
    for row in comparison.results:
        if row.failure is None:
            figures = [f"{row.median_ms:.2f}", f"{row.min_ms:.2f}", f"{row.relative_error:.0e}"]
            print_row([row.network, row.dtype, f"{row.contender} {row.version}", *figures])
    for row in comparison.results:
        if row.failure is not None:
            print(f"\n{row.contender} failed on {row.network} in {row.dtype}: {row.failure}")
    if words.json is not None:
        write_json(words.json, comparison.to_json())


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(str(error))
