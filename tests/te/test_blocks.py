# SPDX-License-Identifier: Apache-2.0
"""Names of blocks: whatever is looked for is made, and whatever is in the table is looked for."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from fuzz_functions import te_calls
from tvm import s_tir, te, topi

import tvm_involution
from tvm_involution.schedules.rule import blocks_of
from tvm_involution.te.blocks import Block
from tvm_involution.te.interpolation import interpolate2d

PACKAGE = Path(tvm_involution.__file__).parent
LOOK_UPS = ("find_block", "find_blocks", "get_sblock")


def placeholders(tensor: te.Tensor) -> dict[int, te.Tensor]:
    inputs = list(tensor.op.input_tensors)
    found = {} if inputs else {hash(tensor): tensor}
    for read in inputs:
        found |= placeholders(read)
    return found


def made() -> set[str]:
    """Return the names of the blocks of every expression."""
    results = [getattr(tvm_involution.te, name)(**arguments) for name, arguments in te_calls().items() if arguments]
    image = te.placeholder((1, 8, 8, 8), name="image")
    results.append(topi.nn.pool2d(image, (3, 3), (1, 1), (1, 1), (1, 1, 1, 1), "max"))
    half = te.placeholder((1, 8, 8, 8), "float16", name="half")
    results.append(tvm_involution.te.local_attention2d(half, half, half, 3, 2, layout="NHWC"))
    pictures, places, weights = (te.placeholder(*one) for one in (((1, 4, 5, 8),), ((3, 2), "int32"), ((3, 2),)))
    results.append(interpolate2d(pictures, places, weights, places, weights))
    programs = [
        s_tir.Schedule(te.create_prim_func([*placeholders(result).values(), result]))
        for result in results
        if isinstance(result, te.Tensor)
    ]
    return {str(sch.get(block).name_hint) for sch in programs for block in blocks_of(sch)}


def sources() -> Iterator[str]:
    """Yield the files that look for blocks."""
    for folder in ("schedules", "lowering", "relax", "tuning"):
        yield from (path.read_text() for path in (PACKAGE / folder).rglob("*.py"))


def test_all_that_are_looked_for_are_made():
    assert {block.value for block in Block} <= made()


def test_none_is_in_the_table_that_nobody_looks_for():
    used = {name for text in sources() for name in re.findall(r"\bBlock\.([A-Z_0-9]+)\b", text)}
    assert used == set(Block.__members__)


def test_names_are_those_of_the_table():
    literal = [
        (node.lineno, argument.value)
        for text in sources()
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Call) and getattr(node.func, "attr", getattr(node.func, "id", "")) in LOOK_UPS
        for argument in node.args
        if isinstance(argument, ast.Constant) and argument.value != "root"
    ]
    assert not literal
