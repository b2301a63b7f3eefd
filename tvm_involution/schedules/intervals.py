# SPDX-License-Identifier: Apache-2.0
"""Between which numbers an index lies, its variables being known to lie between some."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tvm import tirx
from tvm_ffi import structural_equal, structural_walk


@dataclass(frozen=True)
class Interval:
    """Whole numbers from `low` to `high`, both included."""

    low: int
    high: int
    exact: bool = True
    """whether both are reached; otherwise no number lies outside"""

    def __contains__(self, other: Interval) -> bool:
        """Return whether all of another lies in it."""
        return self.low <= other.low and other.high <= self.high


Limits = Sequence[tuple[tirx.Expr, int]]
"""terms of a predicate, each with the largest value that it may have"""


def limits_of(predicate: tirx.Expr) -> Limits:
    """Return the limits that a predicate sets by `<`, of terms that it joins by `and`."""
    if isinstance(predicate, tirx.And):
        return [*limits_of(predicate.a), *limits_of(predicate.b)]
    if isinstance(predicate, tirx.LT) and isinstance(predicate.b, tirx.IntImm):
        return [(predicate.a, int(predicate.b) - 1)]
    return []


def interval_of(expr: tirx.Expr, known: Mapping[tirx.Var, Interval], limits: Limits) -> Interval | None:
    """Return where `expr` lies; None where that is not known, or where it can't be within `limits`."""
    known, limits = _narrow(known, limits)
    found = _interval(expr, known)
    if found is None:
        return None
    exact, high = found.exact, found.high
    moving = {var for var, interval in known.items() if interval.low < interval.high}
    for term, most in limits:
        if structural_equal(term, expr):
            high = min(high, most)
        elif moving & _variables(term) & _variables(expr):
            exact = False
        elif (other := _interval(term, known)) is None or other.low > most:
            return None
    return Interval(found.low, high, exact) if found.low <= high else None


def _narrow(known: Mapping[tirx.Var, Interval], limits: Limits) -> tuple[Mapping[tirx.Var, Interval], Limits]:
    """Give limits of terms in which a single variable moves to that variable; return the intervals and other limits."""
    narrowed, left = dict(known), []
    for term, most in limits:
        moving = [var for var in _variables(term) if var in narrowed and narrowed[var].low < narrowed[var].high]
        if len(moving) != 1:
            left.append((term, most))
            continue
        (var,) = moving
        inside = []
        for value in range(narrowed[var].low, narrowed[var].high + 1):
            reached = _interval(term, {**narrowed, var: Interval(value, value)})
            if reached is None or reached.high <= most:
                inside.append(value)
        if not inside:
            left.append((term, most))
            continue
        narrowed[var] = Interval(min(inside), max(inside))
    return narrowed, left


def _variables(expr: tirx.Expr) -> set[tirx.Var]:
    found: set[tirx.Var] = set()
    structural_walk(expr, (tirx.Var, found.add))
    return found


def _interval(expr: tirx.Expr, known: Mapping[tirx.Var, Interval]) -> Interval | None:
    if isinstance(expr, tirx.IntImm):
        return Interval(int(expr), int(expr))
    if isinstance(expr, tirx.Var):
        return known.get(expr)
    if isinstance(expr, tirx.Cast):
        return _interval(expr.value, known)
    if not isinstance(expr, (tirx.Add, tirx.Sub, tirx.Mul, tirx.FloorDiv, tirx.FloorMod, tirx.Min, tirx.Max)):
        return None
    a, b = _interval(expr.a, known), _interval(expr.b, known)
    if a is None or b is None:
        return None
    exact = a.exact and b.exact
    if isinstance(expr, tirx.Add):
        return Interval(a.low + b.low, a.high + b.high, exact)
    if isinstance(expr, tirx.Sub):
        return Interval(a.low - b.high, a.high - b.low, exact)
    if isinstance(expr, (tirx.Min, tirx.Max)):
        either = min if isinstance(expr, tirx.Min) else max
        return Interval(either(a.low, b.low), either(a.high, b.high), exact)
    if isinstance(expr, tirx.Mul):
        ends = [x * y for x in (a.low, a.high) for y in (b.low, b.high)]
        return Interval(min(ends), max(ends), exact)
    if b.low != b.high or b.low <= 0:
        return None
    if isinstance(expr, tirx.FloorDiv):
        return Interval(a.low // b.low, a.high // b.low, exact)
    if a.low // b.low == a.high // b.low:
        return Interval(a.low % b.low, a.high % b.low, exact)
    return Interval(0, b.low - 1, exact=False)
