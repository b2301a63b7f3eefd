# SPDX-License-Identifier: Apache-2.0
"""Take the numbers of a loop in vectors and what is left in shorter ones, and its sum in as many partial sums.

TVM splits loops into vectors evenly, or checks each number of them; sums it leaves in the order in which they are
written, in which each addition waits for the one before. Where a schedule asks for each number of a vector whether it
is there, because the last pack of output channels is filled up, all are asked at once: a store by a mask.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import tvm
from tvm import tirx
from tvm_ffi import structural_equal, structural_map, structural_walk

from ..schedules.rule import LANES
from .programs import rewrite_cpu_programs

_IDENTITIES = {tirx.Add: 0, tirx.Mul: 1}
_IDEMPOTENT = (tirx.Max, tirx.Min)
_SELECTION = "tvm_involution.select"
_MASKED = "tvm_involution.masked"
# numbers of a rest that are taken in one vector with some of those before it
_OVERLAPPING = 16
# bits of the numbers that CPUs store by a mask, from AVX on; bfloat16 is rewritten later, but not behind a mask
_MASKED_BITS = (32, 64)
# bfloat16 becomes a whole number later, but not where it is shuffled
_SHUFFLED = ("float16", "float32", "float64", "int32", "int64")


@tvm.transform.module_pass(opt_level=0, name="KeepSelections")
class KeepSelections:
    """Hide selections of float32 in those loops from TVM, which makes branches of what no vector has yet.

    `TakeVectors` brings them back.
    """

    def transform_module(self, mod: tvm.IRModule, _: tvm.transform.PassContext) -> tvm.IRModule:
        """Return `mod` with calls of `_SELECTION` for selections."""

        def hide(selection: tirx.Select) -> tirx.Expr:
            parts = (selection.condition, selection.true_value, selection.false_value)
            dtype = str(selection.ty.dtype)
            return tirx.call_pure_extern(dtype, _SELECTION, *parts) if dtype == "float32" else selection

        def visit(loop: tirx.For) -> tirx.For:
            return structural_map(loop, (tirx.Select, hide)) if LANES in loop.annotations else loop

        for name, func in mod.functions_items():
            if isinstance(func, tirx.PrimFunc):
                mod[name] = func.with_body(structural_map(func.body, (tirx.For, visit)))
        return mod


@tvm.transform.module_pass(opt_level=0, name="TakeVectors")
class TakeVectors:
    """Rewrite the loops of the CPU's lowered programs that bear the annotation `LANES`.

    A loop that stores elsewhere each time becomes one over vectors. One that adds to the same number each time, or
    takes the largest or the least of both, does so in partial sums. Any other stays as it is.
    """

    def transform_module(self, mod: tvm.IRModule, _: tvm.transform.PassContext) -> tvm.IRModule:
        """Return `mod` with those loops vectorized."""
        found: list[tirx.Stmt] = []

        def visit(loop: tirx.For) -> tirx.Stmt:
            if LANES not in loop.annotations:
                return loop
            loop = structural_map(loop, (tvm.ir.Call, _selection))
            if (taken := _taken(loop)) is None:
                return loop
            found.append(taken)
            return taken

        def rewrite(func: tirx.PrimFunc) -> tirx.PrimFunc:
            return func.with_body(structural_map(func.body, (tirx.For, visit)))

        mod = rewrite_cpu_programs(mod, rewrite)
        if not found:
            return mod
        mod = rewrite_cpu_programs(tirx.transform.VectorizeLoop()(mod), _mask_stores)
        # neighbours in memory are known as such once the indices are simplified
        return tirx.transform.StmtSimplify()(mod)


def _taken(loop: tirx.For) -> tirx.Stmt | None:
    """Return what becomes of a loop; None where it stays."""
    if (asked := _asked(loop)) is not None:
        return asked
    store, lanes = _store(loop.body), int(loop.annotations[LANES])
    if store is None or not isinstance(loop.extent, tirx.IntImm):
        return None
    while lanes > int(loop.extent):
        lanes //= 2
    if lanes < 2:
        return None
    if any(_reads(index, loop.loop_var) for index in store.indices):
        if (shuffled := _shuffled(loop, store, lanes)) is not None:
            return shuffled
        again = not _loads(store.value, store.buffer)
        pieces = _pieces(loop, lanes, lambda place, *_, **__: _with(store, loop, place), again)
        return tirx.SeqStmt(pieces) if len(pieces) > 1 else pieces[0]
    return _sum(loop, store, lanes)


def _shuffled(loop: tirx.For, store: tirx.BufferStore, lanes: int) -> tirx.Stmt | None:
    """Return a copy that takes numbers from two to eight places in turns as vectors of each place, shuffled.

    So are channels shuffled: one of the first half, one of the second. None of other copies.
    """
    load, var, extent = store.value, loop.loop_var, int(loop.extent)
    if not isinstance(load, tvm.ir.TensorLoad) or not tvm.sym.Analyzer().can_prove_equal(loop.min, 0):
        return None
    if str(store.buffer.dtype) not in _SHUFFLED:
        return None
    if len(load.indices) != 1 or not _neighbours(store.indices, var):
        return None
    if tvm.sym.detect_linear_equation(load.indices[0], [var]):
        return None
    dtype, vector = var.ty.dtype, tirx.Var("vector", var.ty.dtype)
    first = vector * lanes
    fitting = [ways for ways in (2, 4, 8) if ways < lanes and extent % ways == 0]
    starts = {ways: [_start(loop, load, first, ways, way, lanes) for way in range(ways)] for ways in fitting}
    ways = next((ways for ways, found in starts.items() if None not in found), 0)
    if not ways:
        return None

    def piece(first: tirx.Expr, count: int) -> tirx.Stmt:
        sources = [_start(loop, load, first, ways, way, count) for way in range(ways)]
        vectors = [tirx.BufferLoad(load.source, [_run(source, count // ways)]) for source in sources]
        order = [
            tirx.const(place, "int32") for turn in range(count // ways) for place in range(turn, count, count // ways)
        ]
        return tirx.BufferStore(store.buffer, tirx.Shuffle(vectors, order), [_run(_with(into, loop, first), count)])

    (into,), whole = store.indices, extent // lanes
    bounds = (tirx.const(0, dtype), tirx.const(whole, dtype))
    pieces = [tirx.For(vector, *bounds, tirx.ForKind.SERIAL, piece(first, lanes))]
    done, length = whole * lanes, lanes // 2
    while length > ways:
        if extent - done >= length:
            pieces.append(piece(tirx.const(done, dtype), length))
            done += length
        length //= 2
    pieces += [_with(store, loop, tirx.const(place, dtype)) for place in range(done, extent)]
    return tirx.SeqStmt(pieces) if len(pieces) > 1 else pieces[0]


def _start(
    loop: tirx.For, load: tvm.ir.TensorLoad, first: tirx.Expr, ways: int, way: int, count: int
) -> tirx.Expr | None:
    """Return where the neighbours begin that every `ways`-th of `count` numbers is; None where they are none."""
    turn, analyzer = tirx.Var("turn", loop.loop_var.ty.dtype), tvm.sym.Analyzer()
    analyzer.bind(turn, tvm.ir.Range(0, count // ways))
    index = analyzer.simplify(_with(load.indices[0], loop, first + turn * ways + way))
    step = tvm.sym.detect_linear_equation(index, [turn])
    return step[1] if step and structural_equal(step[0], tirx.const(1, turn.ty.dtype)) else None


def _run(start: tirx.Expr, count: int) -> tirx.Expr:
    """Return so many indices from `start` on."""
    return start if count == 1 else tirx.Ramp(start, tirx.const(1, start.ty.dtype), count)


def _asked(loop: tirx.For) -> tirx.Stmt | None:
    """Return a loop of one vector whose numbers may not be there, for `_mask_stores`; None of others."""
    asked, lanes, var = loop.body, loop.extent, loop.loop_var
    if not isinstance(asked, tirx.IfThenElse) or asked.else_case is not None or not isinstance(lanes, tirx.IntImm):
        return None
    store, numbers = _store(asked.then_case), int(lanes)
    if store is None or not _reads(asked.condition, var) or numbers & (numbers - 1) or numbers == 1:
        return None
    if not _reads(store.indices[-1], var):  # of one output channel TVM knows the index
        return None
    calls: list[tvm.ir.Call] = []
    structural_walk(store, (tvm.ir.Call, calls.append))
    if not all(isinstance(call.op, tvm.ir.Op) and call.op.get_attr("TVectorizable") for call in calls):
        return None
    loads: list[tvm.ir.TensorLoad] = []
    structural_walk(store.value, (tvm.ir.TensorLoad, loads.append))
    places = [(store.buffer, store.indices), *((load.source, load.indices) for load in loads)]
    if any(tvm.DataType(str(buffer.dtype)).bits not in _MASKED_BITS for buffer, _ in places):
        return None
    if not all(_reads(at[-1], var) and _neighbours(at, var) for _, at in places if any(_reads(i, var) for i in at)):
        return None
    either = tirx.Select(asked.condition, store.value, tirx.const(0, store.value.ty.dtype))
    store = tirx.BufferStore(store.buffer, either, store.indices)
    body = tirx.For(var, loop.min, loop.extent, tirx.ForKind.VECTORIZED, store)
    return tirx.AttrStmt(tirx.const(0, "int32"), _MASKED, tirx.const(1, "int32"), body)


def _neighbours(indices: Sequence[tirx.Expr], var: tirx.Var) -> bool:
    """Return whether `var` walks number by number."""
    step = tvm.sym.detect_linear_equation(indices[-1], [var])
    return bool(step) and structural_equal(step[0], tirx.const(1, var.ty.dtype)) and len(indices) == 1


def _mask_stores(func: tirx.PrimFunc) -> tirx.PrimFunc:
    """Make stores and loads by a mask of what `_asked` made, which by now are vectors."""

    def masked(attr: tirx.AttrStmt) -> tirx.Stmt:
        if attr.attr_key != _MASKED:
            return attr
        store = attr.body
        mask = store.value.condition

        def load(node: tvm.ir.TensorLoad) -> tirx.Expr:
            # sums in registers have all their lanes
            if node.source.scope() == "local" or node.ty.dtype.lanes == 1:
                return node
            return tirx.op.masked_load(str(node.ty.dtype), node.source, *node.indices, mask)

        value = structural_map(store.value.true_value, (tvm.ir.TensorLoad, load))
        return tirx.Evaluate(tirx.op.masked_store(store.buffer, value, *store.indices, mask))

    return func.with_body(structural_map(func.body, (tirx.AttrStmt, masked)))


def _selection(call: tvm.ir.Call) -> tirx.Expr:
    """Return the selection that a call stands for; other calls as they are."""
    name = getattr(call.op, "name", "") == "tirx.call_pure_extern" and getattr(call.args[0], "value", "")
    return tirx.Select(*call.args[1:]) if name == _SELECTION else call


def _sum(loop: tirx.For, store: tirx.BufferStore, lanes: int) -> tirx.Stmt | None:
    """Return a loop that sums into `lanes` numbers, then the sum of the two halves of these, and so on."""
    kind, total = type(store.value), store.buffer
    if kind not in (*_IDENTITIES, *_IDEMPOTENT):
        return None
    operands = [store.value.a, store.value.b]
    own = [_is_load(one, total, store.indices) for one in operands]
    if own.count(True) != 1:
        return None
    term, before = operands[own.index(False)], operands[own.index(True)]
    if _loads(term, total):
        return None
    sums = tirx.decl_buffer((lanes,), store.value.ty.dtype, "partial", scope="local")
    start = before if kind in _IDEMPOTENT else tirx.const(_IDENTITIES[kind], store.value.ty.dtype)

    def join(lane: tirx.Expr, other: tirx.Expr) -> tirx.Stmt:
        return tirx.BufferStore(sums, kind(sums[lane], other), [lane])

    def fold(half: int) -> tirx.Stmt:
        return _vector(half, loop, lambda lane: join(lane, sums[lane + half]))

    def add(place: tirx.Expr, lane: tirx.Expr, taken: int = 0) -> tirx.Stmt:
        other = _with(term, loop, place)
        if taken and kind not in _IDEMPOTENT:
            other = tirx.Select(lane >= taken, other, tirx.const(_IDENTITIES[kind], store.value.ty.dtype))
        return join(lane, other)

    steps = [
        tirx.AllocBuffer(sums),
        _vector(lanes, loop, lambda lane: tirx.BufferStore(sums, start, [lane])),
        *_pieces(loop, lanes, add, str(store.value.ty.dtype) in _SHUFFLED, fold),
        tirx.BufferStore(total, kind(before, sums[0]), store.indices),
    ]
    return tirx.SeqStmt(steps)


def _pieces(
    loop: tirx.For,
    lanes: int,
    body: Callable[..., tirx.Stmt],
    again: bool,
    before: Callable[[int], tirx.Stmt] | None = None,
) -> list[tirx.Stmt]:
    """Return a loop of whole vectors, and a vector of each length at which the rest has one.

    Args:
        body: of the place in `loop`, of the lane, and of how many lanes are taken a second time, where there are such.
        again: whether numbers may be taken a second time: then a rest is one vector that begins before it.
        before: what is done before the vectors of each length but the first.
    """
    extent, dtype = int(loop.extent), loop.loop_var.ty.dtype
    whole = extent // lanes
    count = tirx.Var("vector", dtype)
    vector = _vector(lanes, loop, lambda lane: body(loop.min + count * lanes + lane, lane))
    pieces = [tirx.For(count, tirx.const(0, dtype), tirx.const(whole, dtype), tirx.ForKind.SERIAL, vector)]
    done, length = whole * lanes, lanes
    while length:
        if before is not None and length < lanes:
            pieces.append(before(length))
        rest = extent - done
        if again and length // 2 < rest < length <= min(extent, _OVERLAPPING) and rest & (rest - 1):
            taken = length - rest
            pieces.append(_vector(length, loop, functools.partial(_at, body, loop.min + done - taken, taken=taken)))
            done = extent
        elif rest >= length:
            pieces.append(_vector(length, loop, functools.partial(_at, body, loop.min + done)))
            done += length
        length //= 2
    return pieces


def _vector(lanes: int, loop: tirx.For, body: Callable[[tirx.Expr], tirx.Stmt]) -> tirx.Stmt:
    """Return `body` of each lane at once."""
    dtype = loop.loop_var.ty.dtype
    if lanes == 1:
        return body(tirx.const(0, dtype))
    lane = tirx.Var("lane", dtype)
    return tirx.For(lane, tirx.const(0, dtype), tirx.const(lanes, dtype), tirx.ForKind.VECTORIZED, body(lane))


def _at(body: Callable[..., tirx.Stmt], first: tirx.Expr, lane: tirx.Expr, **taken: int) -> tirx.Stmt:
    return body(first + lane, lane, **taken)


def _store(body: tirx.Stmt) -> tirx.BufferStore | None:
    """Return the one store of a loop, what is bound before it put in its place; None where there is more."""
    *bound, last = body.seq if isinstance(body, tirx.SeqStmt) else [body]
    if not isinstance(last, tirx.BufferStore) or not all(isinstance(one, tirx.Bind) for one in bound):
        return None
    for one in reversed(bound):
        last = _substitute(last, one.var, one.value)
    return last


def _with(node: tvm.ir.Node, loop: tirx.For, place: tirx.Expr) -> tvm.ir.Node:
    """Return `node` at a place in the loop."""
    return _substitute(node, loop.loop_var, place)


def _substitute(node: tvm.ir.Node, var: tirx.Var, value: tirx.Expr) -> tvm.ir.Node:
    return structural_map(node, (tirx.Var, lambda found: value if found.same_as(var) else found))


def _reads(node: tirx.Expr, var: tirx.Var) -> bool:
    return any(var.same_as(found) for found in tirx.analysis.undefined_vars(node, []))


def _is_load(node: tirx.Expr, buffer: tirx.Buffer, indices: Sequence[tirx.Expr]) -> bool:
    return (
        isinstance(node, tvm.ir.TensorLoad)
        and node.source.same_as(buffer)
        and all(structural_equal(one, other) for one, other in zip(node.indices, indices, strict=True))
    )


def _loads(node: tirx.Expr, buffer: tirx.Buffer) -> bool:
    found: list[tvm.ir.TensorLoad] = []
    structural_walk(node, (tvm.ir.TensorLoad, found.append))
    return any(load.source.same_as(buffer) for load in found)
