# SPDX-License-Identifier: Apache-2.0
"""Print what the involutions of RedNet-50 need of a GPU, without one: the table of docs/gpu.md, section "Involution".

    python benchmarks/gpu_involution_code.py [--architecture sm_90a] [--batch 32] [--cuobjdump PATH]

"loops" are the instructions of the aggregation and of the kernel's generation, on tensor cores of both in one (of the
whole kernel where the compiler left no loop); "issue" is the time they take at one a cycle and scheduler; "bytes" the
time that the arrays take at the rate of a copy. A kernel is at best as fast as the larger of the two.
"""

from __future__ import annotations

import argparse
import math
from collections import Counter

import numpy as np
import tvm
from markdown_rows import print_header, print_row
from tvm import s_tir, te, tirx, topi

from tvm_involution.bench.machine_code import compile_kernel
from tvm_involution.schedules import default_schedule
from tvm_involution.schedules.gpu import mma_fragments
from tvm_involution.target import lowering_config
from tvm_involution.te import involution2d, pack_span_mma, spanned_involution2d, spanned_involution2d_mma
from tvm_involution.te.blocks import Block

# channels, rows and columns, kernel, stride, hidden channels of the kernel's generation
LAYERS = [
    (32, 112, 3, 1, 8),
    (64, 56, 7, 1, 16),
    (128, 56, 7, 2, 32),
    (128, 28, 7, 1, 32),
    (256, 28, 7, 2, 64),
    (256, 14, 7, 1, 64),
    (512, 14, 7, 2, 128),
    (512, 7, 7, 1, 128),
]

# where the kernel comes from: memory, or generated here
SOURCES = ("given", "CUDA cores", "tensor cores")


def main() -> None:
    """Print a row a layer, type and source of the kernel."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--architecture", default="sm_90a")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--dtype", nargs="+", default=["float32", "float16"])
    parser.add_argument("--cuobjdump", default="cuobjdump")
    parser.add_argument("--multiprocessors", type=int, default=132, help="of the GPU whose times are predicted")
    parser.add_argument("--gigahertz", type=float, default=1.7)
    parser.add_argument("--gigabytes", type=float, default=3030, help="a second, of a copy")
    arguments = parser.parse_args()
    target = tvm.target.Target({"kind": "cuda", "arch": arguments.architecture}, host="llvm")
    columns = ["C, HxW, K, stride", "type", "kernel", "threads", "registers", "shared, KiB", "resident"]
    columns += ["issue, us", "bytes, us", "loops"]
    print_header(columns)
    for layer in LAYERS:
        for dtype in arguments.dtype:
            for source in SOURCES if dtype != "float32" else SOURCES[:2]:
                func = program(arguments.batch, *layer, dtype, source, target)
                schedule, _ = default_schedule(func, target)
                assert schedule is not None
                code = compile_kernel(build(schedule, target), arguments.architecture, arguments.cuobjdump)
                channels, size, kernel_size, stride, hidden = layer
                if source == "tensor cores":
                    # one loop over the rows of the window makes the kernels and uses them
                    loops = [next(loop for loop in code.loops if loop["HMMA"])]
                    warps = blocks(schedule) * -(-code.threads // 32)
                    instructions = warps * kernel_size * sum(loops[0].values())
                else:
                    # only generation reads global memory in its loop; its first loop is that of whole turns
                    busy = [loop for loop in code.loops if loop["FFMA"] >= 16]
                    aggregating = [loop for loop in busy if not loop["LDG"]] or [code.instructions]
                    loops = [aggregating[-1], *[loop for loop in busy if loop["LDG"]][:1]]
                    products = multiply_adds(
                        arguments.batch, channels, size, kernel_size, stride, hidden if source == "CUDA cores" else 0
                    )
                    ratios = (sum(loop.values()) / loop["FFMA"] for loop in loops)
                    instructions = sum(count * ratio for count, ratio in zip(products, ratios, strict=False))
                    instructions /= code.threads / -(-code.threads // 32)
                issue = instructions / (4 * arguments.multiprocessors * arguments.gigahertz * 1e3)
                moved = sum(
                    math.prod(map(int, buffer.shape)) * tvm.DataType(str(buffer.dtype)).bits // 8
                    for buffer in func.params
                )
                cells = [
                    f"{channels}, {size}x{size}, {kernel_size}, {stride}",
                    dtype,
                    source,
                    code.threads,
                    f"{code.registers}{' (spills)' * bool(code.spilled_bytes + code.stack_bytes)}",
                    f"{code.shared_bytes / 1024:.1f}",
                    code.resident_threads(arguments.architecture),
                    f"{issue:.1f}",
                    f"{moved / arguments.gigabytes / 1e3:.1f}",
                    "; ".join(map(describe, loops)),
                ]
                print_row(cells)


def program(
    batch: int,
    channels: int,
    size: int,
    kernel_size: int,
    stride: int,
    hidden: int,
    dtype: str,
    source: str,
    target: tvm.target.Target,
) -> tirx.PrimFunc:
    """Return an involution of RedNet with batch norm and ReLU behind it, as the pipeline makes it.

    Args:
        source: of the kernel, one of `SOURCES`.
    """
    out, groups, lanes = -(-size // stride), channels // 16, 16
    taps = groups * kernel_size**2
    shapes, bias = [(batch, size, size, channels), *[(1, 1, 1, channels)] * 2, (batch, out, out, hidden)], dtype
    fragments = mma_fragments(target, dtype, channels=hidden)
    if source == "tensor cores":
        assert fragments is not None
        packed = pack_span_mma(np.zeros((taps, hidden, 1, 1)), np.zeros(taps), kernel_size, fragments)
        shapes, bias = [*shapes, *(array.shape for array in packed)], "float32"
    elif source == "CUDA cores":
        shapes += [(-(-taps // lanes), 1, 1, hidden, lanes), (1, 1, 1, taps)]
    else:
        shapes[-1] = (batch, out, out, taps)
    dtypes = [*[dtype] * 5, bias]
    inputs = [te.placeholder(shape, dtypes[i], f"input{i}") for i, shape in enumerate(shapes)]
    x, scale, shift, *kernel = inputs
    if source == "tensor cores":
        result = spanned_involution2d_mma(x, *kernel, kernel_size, groups, fragments, stride, kernel_size // 2)
    elif source == "CUDA cores":
        result = spanned_involution2d(x, *kernel, kernel_size, stride, kernel_size // 2)
    else:
        result = involution2d(x, *kernel, stride, kernel_size // 2, layout="NHWC", kernel_size=kernel_size)
    result = topi.nn.relu(topi.add(topi.multiply(result, scale), shift))
    return te.create_prim_func([*inputs, result]).with_attr("global_symbol", "main")


def build(schedule: s_tir.Schedule, target: tvm.target.Target) -> str:
    """Return the CUDA C of a scheduled program."""
    with tvm.transform.PassContext(config=lowering_config(target)):
        return tvm.compile(schedule.mod, target).mod.imports[0].inspect_source()


def blocks(schedule: s_tir.Schedule) -> int:
    """Return the thread blocks of a schedule, whose first loop is that over them."""
    return int(schedule.get(schedule.get_loops(schedule.get_sblock(Block.KERNEL))[0]).extent)


def multiply_adds(batch: int, channels: int, size: int, kernel_size: int, stride: int, hidden: int) -> tuple[int, int]:
    """Return the multiply-adds of the aggregation and of the kernel's generation."""
    taps = batch * (-(-size // stride)) ** 2 * channels * kernel_size**2
    return taps, taps // 16 * hidden


def describe(loop: Counter[str]) -> str:
    """Return a loop's instructions: `392 FFMA + 153 convert + 62 load + 5 other, 1.56 a multiply-add`."""
    total = sum(loop.values())
    loads = loop["LDS"] + loop["LDG"] + loop["LDL"]
    convert = loop["HADD2"] + loop["PRMT"] + loop["F2FP"]
    tensor = f" + {loop['HMMA']} HMMA" if loop["HMMA"] else ""
    rest = total - loop["FFMA"] - loop["HMMA"] - loads - convert
    text = f"{loop['FFMA']} FFMA{tensor} + {convert} convert + {loads} load + {rest} other"
    return f"{text}, {total / loop['FFMA']:.2f} a FFMA"


if __name__ == "__main__":
    main()
