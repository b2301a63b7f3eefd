# SPDX-License-Identifier: Apache-2.0
"""What a block `involution2d` computes, read from the block."""

from __future__ import annotations

from dataclasses import dataclass

import tvm
from tvm import s_tir, tirx
from tvm.s_tir.schedule import SBlockRV


@dataclass(frozen=True)
class Window:
    """The sizes of an involution."""

    layout: str
    """NHWC or NCHW"""
    batch: int
    out_rows: int
    out_columns: int
    channels: int
    groups: int
    kernel_rows: int
    kernel_columns: int
    stride: tuple[int, int]
    dilation: tuple[int, int]
    dtype: str
    """of x and the kernel"""

    @property
    def element_bytes(self) -> int:
        """Bytes of an element of x or the kernel."""
        return tvm.DataType(self.dtype).bits // 8

    @property
    def group_channels(self) -> int:
        """Channels that share a kernel."""
        return self.channels // self.groups

    @property
    def taps(self) -> int:
        """Kernel values of a pixel and group."""
        return self.kernel_rows * self.kernel_columns

    @property
    def outputs(self) -> int:
        """Elements of the output."""
        return self.batch * self.out_rows * self.out_columns * self.channels

    def seen(self, rows: int, columns: int) -> tuple[int, int]:
        """Return the rows and columns of x that the windows of a box of outputs cover."""
        return (
            (rows - 1) * self.stride[0] + (self.kernel_rows - 1) * self.dilation[0] + 1,
            (columns - 1) * self.stride[1] + (self.kernel_columns - 1) * self.dilation[1] + 1,
        )


def read_window(sch: s_tir.Schedule, block: SBlockRV) -> Window | None:
    """Return the sizes of an `involution2d` block; None where one is not known at compile time."""
    iter_vars = sch.get(block).iter_vars
    if len(iter_vars) != 6 or not all(isinstance(iter_var.dom.extent, tirx.IntImm) for iter_var in iter_vars):
        return None
    x, kernel = sch.get(block).reads
    variables = [iter_var.var for iter_var in iter_vars]
    nhwc = x.region[-1].min.same_as(variables[3])
    layout = "NHWC" if nhwc else "NCHW"
    extents = dict(zip(f"{layout}UV", (int(iter_var.dom.extent) for iter_var in iter_vars), strict=True))
    row, column, u, v = (variables[f"{layout}UV".index(dim)] for dim in "HWUV")
    row_index, column_index = (x.region[layout.index(dim)].min for dim in "HW")
    shape = [int(d) for d in kernel.source.shape]
    taps = extents["U"] * extents["V"]
    packed = shape[layout.index("C")]
    return Window(
        layout=layout,
        batch=extents["N"],
        out_rows=extents["H"],
        out_columns=extents["W"],
        channels=extents["C"],
        groups=packed if len(shape) == 6 else packed // taps,
        kernel_rows=extents["U"],
        kernel_columns=extents["V"],
        stride=(_step(row_index, row), _step(column_index, column)),
        dilation=(_step(row_index, u), _step(column_index, v)),
        dtype=str(x.source.dtype),
    )


def _step(index: tirx.Expr, variable: tirx.Var) -> int:
    """Return how far a step of `variable` moves `index`; 1 where a single step leaves none."""
    coefficients = tvm.sym.detect_linear_equation(index, [variable])
    return int(coefficients[0]) or 1
