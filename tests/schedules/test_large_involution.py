# SPDX-License-Identifier: Apache-2.0
"""Involution at the size of a detector's finest level: 256 channels of 200x320 pixels, seven by seven."""

from __future__ import annotations

import numpy as np
import tvm
from reference import relative_norm
from tvm import te

from tvm_involution import lowering
from tvm_involution.schedules import default_schedule
from tvm_involution.target import resolve_target
from tvm_involution.te import involution2d

HEIGHT, WIDTH, CHANNELS, GROUPS, KERNEL = 200, 320, 256, 16, 7


def test_pixels_everywhere_in_a_large_map(rng):
    x = rng.standard_normal((1, HEIGHT, WIDTH, CHANNELS), np.float32)
    kernel = rng.standard_normal((1, HEIGHT, WIDTH, GROUPS * KERNEL**2), np.float32)
    inputs = [te.placeholder(a.shape, "float32", name) for name, a in (("x", x), ("kernel", kernel))]
    program = te.create_prim_func([*inputs, involution2d(*inputs, 1, KERNEL // 2, 1, "NHWC", KERNEL)])
    target = resolve_target("llvm")
    sch, rule = default_schedule(program, target)
    assert sch is not None and rule == "Involution"
    out = tvm.runtime.empty(x.shape, "float32")
    lowering.build(sch.mod, target)(tvm.runtime.tensor(x), tvm.runtime.tensor(kernel), out)
    actual = out.numpy()[0]

    pixels = [(int(i), int(j)) for i, j in zip(rng.integers(0, HEIGHT, 300), rng.integers(0, WIDTH, 300), strict=True)]
    pixels += [(i, j) for i in (0, HEIGHT - 1) for j in range(WIDTH)] + [(i, WIDTH - 1) for i in range(HEIGHT)]
    margin = KERNEL // 2
    padded = np.pad(x[0].astype(np.float64), ((margin, margin), (margin, margin), (0, 0)))
    expected = []
    for i, j in pixels:
        window = padded[i : i + KERNEL, j : j + KERNEL].reshape(KERNEL, KERNEL, GROUPS, -1)
        weight = kernel[0, i, j].reshape(GROUPS, KERNEL, KERNEL)
        expected.append(np.einsum("uvgc,guv->gc", window, weight).ravel())
    rows, columns = zip(*pixels, strict=True)
    assert relative_norm(actual[list(rows), list(columns)], np.stack(expected)) < 1e-6
