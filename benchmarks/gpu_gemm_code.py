# SPDX-License-Identifier: Apache-2.0
"""Print what a network's convolutions need of a GPU, without one: the tables of docs/gpu.md, section "Convolutions".

    python benchmarks/gpu_gemm_code.py [NETWORK] [--batch 1] [--dtype float16] [--target nvidia/nvidia-h100]

"bytes" is the time that the arrays take, once each, at the rate of a copy; "products" the time of the multiply-adds at
the rate of the tensor cores. A kernel is at best as fast as the larger of the two.
"""

from __future__ import annotations

import argparse
import math
from collections import Counter

import tvm
from markdown_rows import print_header, print_row
from tvm import s_tir, tirx

from tvm_involution.bench.machine_code import compile_kernel
from tvm_involution.frontend.importer import import_exported_program
from tvm_involution.frontend.network import resolve_network
from tvm_involution.relax import pipeline
from tvm_involution.schedules import default_schedule
from tvm_involution.schedules.rule import find_block
from tvm_involution.target import lowering_config, resolve_target
from tvm_involution.te.blocks import Block


def main() -> None:
    """Print a row a size: what is next to a product differs, the bytes are those of the first."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("network", nargs="?", default="rednet50")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--dtype", default="float16")
    parser.add_argument("--target", default="nvidia/nvidia-h100")
    parser.add_argument("--teraflops", type=float, default=600, help="a second, of mma.sync")
    parser.add_argument("--gigabytes", type=float, default=3030, help="a second, of a copy")
    arguments = parser.parse_args()
    target = resolve_target(arguments.target)
    mod = import_exported_program(resolve_network(arguments.network).export(arguments.batch))
    mod = pipeline.run(mod, target, dtype=arguments.dtype, until="lower operators")
    columns = ["out x pixels x sum", "blocks x threads", "registers", "shared, KiB", "blocks a multiprocessor", "HMMA"]
    columns += ["bytes, us", "products, us"]
    print_header(columns)
    seen = set()
    for _, func in sorted(mod.functions_items(), key=lambda item: -pixels(item[1])):
        if not pixels(func) or (size := sizes(func)) in seen:
            continue
        seen.add(size)
        schedule, _ = default_schedule(func, target)
        assert schedule is not None
        with tvm.transform.PassContext(config=lowering_config(target)):
            source = tvm.compile(schedule.mod, target).mod.imports[0].inspect_source()
        architecture = str(target.attrs["arch"])
        code = compile_kernel(source, architecture)
        blocks = Counter[str]()
        tirx.stmt_functor.post_order_visit(schedule.mod["main"].body, lambda node, found=blocks: count(node, found))
        moved = sum(
            math.prod(int(d) for d in buffer.shape) * tvm.DataType(str(buffer.dtype)).bits // 8
            for buffer in func.params
        )
        cells = [
            " x ".join(map(str, size)),
            f"{blocks['blockIdx.x']} x {code.threads}",
            f"{code.registers}{' (spills)' * bool(code.spilled_bytes + code.stack_bytes)}",
            f"{code.shared_bytes / 1024:.0f}",
            code.resident_threads(architecture) // code.threads,
            code.instructions["HMMA"] or "-",
            f"{moved / arguments.gigabytes / 1e3:.1f}",
            f"{2 * math.prod(size) / arguments.teraflops / 1e6:.1f}",
        ]
        print_row(cells)


def pixels(func: tvm.ir.BaseFunc) -> int:
    """Return the output pixels of a convolution or linear layer, 0 for other programs."""
    if not isinstance(func, tirx.PrimFunc) or find_block(s_tir.Schedule(func), Block.IM2COL) is None:
        return 0
    return math.prod(int(d) for d in func.params[-1].shape[:-1])


def sizes(func: tirx.PrimFunc) -> tuple[int, int, int]:
    """Return output channels, pixels, and the length of the sums (filled up to whole chunks)."""
    _, weight, *_, output = func.params
    filled = math.prod(int(d) for d in weight.shape)
    out = int(output.shape[-1])
    sch = s_tir.Schedule(func)
    block = find_block(sch, Block.CONV2D)
    assert block is not None
    channels = int(sch.get(block).writes[0].source.shape[1])
    return out, pixels(func), filled // channels


def count(node: object, found: Counter[str]) -> None:
    """Note the extent of a loop that is bound to threads or blocks."""
    if isinstance(node, tirx.For) and node.thread_binding is not None:
        found[str(node.thread_binding.thread_tag)] = int(node.extent)


if __name__ == "__main__":
    main()
