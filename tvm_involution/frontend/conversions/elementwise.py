# SPDX-License-Identifier: Apache-2.0
"""Operators that work element by element: one operand, two, comparisons, choices."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TypeAlias

import numpy as np
from tvm import relax
from tvm.relax import op

from .operation import Converter, Operation, Scalar, constant, dtype_of

Operand: TypeAlias = relax.Expr | Scalar
# of exponents of whole numbers, a power of 2
_DIGIT = 64


def unary(function: Callable[[relax.Expr], relax.Expr]) -> Converter:
    """Return the converter of a function of one operand, computed in the result's dtype."""
    return lambda operation, x: function(operation.cast(x))


def binary(function: Callable[[relax.Expr, relax.Expr], relax.Expr]) -> Converter:
    """Return the converter of a function of two operands, computed in the result's dtype."""
    return lambda operation, x, y: function(operation.cast(x), operation.cast(y))


def comparison(function: Callable[[relax.Expr, relax.Expr], relax.Expr]) -> Converter:
    """Return the converter of a comparison, made in the dtype that the operands have in common."""

    def convert(operation: Operation, x: Operand, y: Operand) -> relax.Expr:
        if isinstance(x, relax.Var) and x is y and "float" in dtype_of(x) and function not in (op.less, op.greater):
            # whether x is NaN; TVM takes each number to be equal to itself
            number = relax.op.logical_not(relax.op.isnan(x))
            return relax.op.isnan(x) if function is op.not_equal else number
        return function(*operation.common(x, y))

    return convert


def logical(function: Callable[..., relax.Expr]) -> Converter:
    """Return the converter of a function of truth values, which all that is not 0 counts as."""
    return lambda operation, *values: function(*(operation.cast(value, "bool") for value in values))


def integral(whole: Callable[..., relax.Expr], truth: Callable[..., relax.Expr]) -> Converter:
    """Return the converter of a bitwise operator: `whole` of whole numbers, `truth` of truth values."""
    return lambda operation, *values: (truth if operation.dtype == "bool" else whole)(
        *(operation.cast(value) for value in values)
    )


def rounding(function: Callable[[relax.Expr], relax.Expr]) -> Converter:
    """Return the converter of a rounding, which leaves whole numbers as they are."""
    return lambda operation, x: function(x) if "float" in operation.dtype else x


def fails(function: Callable[[relax.Expr], relax.Expr], otherwise: bool) -> Converter:
    """Return the converter of a question about floats, to which whole numbers answer `otherwise`."""

    def convert(operation: Operation, x: relax.Expr) -> relax.Expr:
        if "float" in dtype_of(x):
            return function(x)
        return relax.op.full(operation.shape, relax.const(otherwise, "bool"), "bool")

    return convert


def add(operation: Operation, x: Operand, y: Operand, alpha: Scalar = 1) -> relax.Expr:
    """x + alpha * y."""
    return _logical_or_sum(operation, x, _scaled(operation, y, alpha))


def subtract(operation: Operation, x: Operand, y: Operand, alpha: Scalar = 1) -> relax.Expr:
    """x - alpha * y."""
    return relax.op.subtract(operation.cast(x), _scaled(operation, y, alpha))


def multiply(operation: Operation, x: Operand, y: Operand) -> relax.Expr:
    """x * y; of truth values, both."""
    if operation.dtype == "bool":
        return relax.op.logical_and(operation.cast(x), operation.cast(y))
    return relax.op.multiply(*(_unfolded_zero(operation, value) for value in (x, y)))


def divide(operation: Operation, x: Operand, y: Operand) -> relax.Expr:
    """x / y."""
    if _is_zero(operation, y):
        return relax.op.multiply(operation.cast(x), operation.cast(math.copysign(math.inf, y)))
    return relax.op.divide(operation.cast(x), operation.cast(y))


def divide_rounding(operation: Operation, x: Operand, y: Operand, rounding_mode: str | None) -> relax.Expr:
    """x / y, whole numbers as such, rounded down (`floor`) or to 0 (`trunc`)."""
    if _is_zero(operation, y):
        return divide(operation, x, y)
    if rounding_mode == "floor" and "float" in operation.dtype:
        return _floor_divide(operation, x, y)
    x, y = operation.cast(x), operation.cast(y)
    if rounding_mode == "floor":
        return relax.op.floor_divide(x, y)
    quotient = relax.op.divide(x, y)  # of whole numbers, TVM's is already rounded to 0
    return relax.op.trunc(quotient) if rounding_mode == "trunc" and "float" in operation.dtype else quotient


def _floor_divide(operation: Operation, x: Operand, y: Operand) -> relax.Expr:
    """Return how often y goes into x: what is left over is taken away first, as in torch, so 1 // 0.1 is 9."""
    x, y = (operation.emit(operation.cast(operation.cast(value), "float64")) for value in (x, y))
    zero, one = (operation.cast(value, "float64") for value in (0, 1))
    whole = relax.op.round(relax.op.divide(relax.op.subtract(x, _floor_rest(operation, x, y)), y))
    whole = _unless_smaller(x, y, whole, relax.op.where(_of_other_sign(x, y), relax.op.negative(one), zero))
    return operation.cast(relax.op.where(relax.op.equal(y, zero), relax.op.divide(x, y), whole))


def remainder(operation: Operation, x: Operand, y: Operand) -> relax.Expr:
    """What is left of x when y is taken away as often as it goes, with y's sign."""
    if "float" not in operation.dtype:
        return relax.op.floor_mod(operation.cast(x), operation.cast(y))
    if _is_zero(operation, y):
        return relax.op.multiply(operation.cast(x), operation.cast(math.nan))
    x, y = (operation.emit(operation.cast(operation.cast(value), "float64")) for value in (x, y))
    smaller = relax.op.where(_of_other_sign(x, y), relax.op.add(x, y), x)
    return operation.cast(_unless_smaller(x, y, _floor_rest(operation, x, y), smaller))


def fmod(operation: Operation, x: Operand, y: Operand) -> relax.Expr:
    """What is left of x when y is taken away as often as it goes, with x's sign."""
    if "float" not in operation.dtype:
        return relax.op.mod(operation.cast(x), operation.cast(y))
    if _is_zero(operation, y):
        return relax.op.multiply(operation.cast(x), operation.cast(math.nan))
    x, y = (operation.emit(operation.cast(operation.cast(value), "float64")) for value in (x, y))
    rest = _floor_rest(operation, relax.op.abs(x), operation.emit(relax.op.abs(y)))
    return operation.cast(_unless_smaller(x, y, relax.op.multiply(rest, relax.op.sign(x)), x))


def _floor_rest(operation: Operation, x: relax.Expr, y: relax.Expr) -> relax.Expr:
    """Return x less the largest multiple of y below it: of what was narrower it is exact while |x / y| is below 2^29.

    The quotient may have been rounded across a whole number, so what is left is reduced once more.
    """
    for _ in range(2):
        x = operation.emit(relax.op.subtract(x, relax.op.multiply(relax.op.floor(relax.op.divide(x, y)), y)))
    return x


def _unless_smaller(x: relax.Expr, y: relax.Expr, value: relax.Expr, smaller: relax.Expr) -> relax.Expr:
    """Return `value`, but `smaller` where x is nearer to 0 than y, which may be infinite."""
    return relax.op.where(relax.op.less(relax.op.abs(x), relax.op.abs(y)), smaller, value)


def _of_other_sign(x: relax.Expr, y: relax.Expr) -> relax.Expr:
    """Return whether one of two is above 0 and the other below."""
    return relax.op.less(relax.op.multiply(relax.op.sign(x), relax.op.sign(y)), relax.const(0, "float64"))


def power(operation: Operation, x: Operand, y: Operand) -> relax.Expr:
    """x to the y; small whole exponents as products."""
    if not isinstance(y, relax.Expr):
        base = operation.cast(x)
        if y == 1:
            return base
        if y == 2:
            return relax.op.multiply(base, base)
        if y == 3:
            return relax.op.multiply(relax.op.multiply(base, base), base)
        if y == 0.5:
            return relax.op.sqrt(base)
        if y == -1 and "float" in operation.dtype:
            return relax.op.divide(operation.cast(1), base)
    if "float" in operation.dtype:
        return relax.op.power(operation.cast(x), operation.cast(y))
    return _whole_power(operation, x, y)


def _whole_power(operation: Operation, x: Operand, y: Operand) -> relax.Expr:
    """Return a power of whole numbers, modulo 2 to the number of bits, as torch's wraps."""
    one, zero = operation.cast(1), operation.cast(0)
    if not isinstance(y, relax.Expr) and y < _DIGIT:
        base, result = operation.emit(operation.cast(x)), operation.broadcast(one, operation.shape)
        for bit in range(int(y).bit_length()):
            result = operation.emit(relax.op.multiply(result, base)) if int(y) >> bit & 1 else result
            base = operation.emit(relax.op.multiply(base, base))
        return result
    base, exponent = (operation.broadcast(operation.cast(value), operation.shape) for value in (x, y))
    # digit by digit of the exponent: products along an axis, as a chain of squares would be written out where it is
    # read, twice in each step
    result, power, digits = one, operation.reshape(base, (*operation.shape, 1)), constant(np.arange(_DIGIT - 1))
    digits = operation.cast(digits)
    for shift in range(0, np.iinfo(operation.dtype).bits, int(math.log2(_DIGIT))):
        digit = relax.op.bitwise_and(relax.op.right_shift(exponent, operation.cast(shift)), operation.cast(_DIGIT - 1))
        digit = operation.reshape(digit, (*operation.shape, 1))
        factors = relax.op.where(relax.op.less(digits, digit), power, one)
        result = operation.emit(relax.op.multiply(result, operation.emit(relax.op.prod(factors, -1))))
        copies = operation.broadcast(power, (*operation.shape, _DIGIT))
        power = operation.emit(relax.op.prod(copies, -1, keepdims=True))
    if operation.dtype.startswith("uint"):
        return result
    # one over a whole number is whole for 1 and -1 only
    odd = relax.op.equal(relax.op.bitwise_and(exponent, one), one)
    sign = relax.op.where(odd, base, relax.op.multiply(base, base))
    inverse = relax.op.where(relax.op.equal(relax.op.abs(base), one), sign, zero)
    return relax.op.where(relax.op.less(exponent, zero), inverse, result)


def shifted(function: Callable[[relax.Expr, relax.Expr], relax.Expr]) -> Converter:
    """Return the converter of a shift of bits, `op.left_shift` or `op.right_shift`.

    A shift by all bits or more leaves 0, or -1 of a negative number shifted to the right; as in torch, one by less
    than none counts as such.
    """

    def convert(operation: Operation, x: Operand, y: Operand) -> relax.Expr:
        x, y = operation.cast(x), operation.emit(operation.cast(y))
        bits = int(np.iinfo(operation.dtype).bits)
        within = relax.op.less(y, operation.cast(bits))
        if not operation.dtype.startswith("uint"):
            within = relax.op.logical_and(within, relax.op.greater_equal(y, operation.cast(0)))
        if function is op.left_shift:
            moved = function(x, relax.op.where(within, y, operation.cast(0)))
            return relax.op.where(within, moved, operation.cast(0))
        return function(x, relax.op.where(within, y, operation.cast(bits - 1)))

    return convert


def negative(operation: Operation, x: relax.Expr) -> relax.Expr:
    """-x; TVM has no negative of numbers without a sign."""
    if operation.dtype.startswith("uint"):
        return relax.op.subtract(operation.cast(0), operation.cast(x))
    return relax.op.negative(operation.cast(x))


def reciprocal(operation: Operation, x: relax.Expr) -> relax.Expr:
    """1 / x."""
    return relax.op.divide(operation.cast(1), operation.cast(x))


def log1p(operation: Operation, x: relax.Expr) -> relax.Expr:
    """log(1 + x); for small x, of which 1 + x loses digits, 2 * atanh(x / (2 + x))."""
    x, one = operation.cast(x), operation.cast(1)
    share = operation.emit(relax.op.divide(x, relax.op.add(x, operation.cast(2))))
    small = relax.op.multiply(operation.cast(2), _atanh_of_little(operation, share))
    near = relax.op.less(relax.op.abs(x), operation.cast(0.25))
    return relax.op.where(near, small, relax.op.log(relax.op.add(x, one)))


def _atanh_of_little(operation: Operation, x: relax.Expr) -> relax.Expr:
    """Return the series of atanh for |x| up to a quarter."""
    square = operation.emit(relax.op.multiply(x, x))
    series = operation.cast(1 / 15)
    for divisor in (13, 11, 9, 7, 5, 3, 1):
        series = relax.op.add(relax.op.multiply(series, square), operation.cast(1 / divisor))
    return relax.op.multiply(x, series)


def expm1(operation: Operation, x: relax.Expr) -> relax.Expr:
    """exp(x) - 1, exact to the last digits for small x (Kahan)."""
    x = operation.cast(x)
    grown, difference = exp_minus_one(operation, x)
    return relax.op.where(relax.op.greater(relax.op.abs(x), operation.cast(0.5)), difference, grown)


def exp_minus_one(operation: Operation, x: relax.Expr) -> tuple[relax.Expr, relax.Expr]:
    """Return exp(x) - 1 as it is exact for x near 0, and as it is exact elsewhere."""
    one = operation.cast(1)
    raised = operation.emit(relax.op.exp(x))
    difference = operation.emit(relax.op.subtract(raised, one))
    corrected = relax.op.divide(relax.op.multiply(difference, x), relax.op.log(raised))
    return relax.op.where(relax.op.equal(raised, one), x, corrected), difference


def log_to_base(base: float) -> Converter:
    """Return the converter of the logarithm to `base`."""
    return lambda operation, x: relax.op.multiply(relax.op.log(operation.cast(x)), operation.cast(1 / math.log(base)))


def exp2(operation: Operation, x: relax.Expr) -> relax.Expr:
    """2 to the x."""
    return relax.op.exp(relax.op.multiply(operation.cast(x), operation.cast(math.log(2))))


def sinh(operation: Operation, x: relax.Expr) -> relax.Expr:
    """(exp(x) - exp(-x)) / 2, by what is exact near 0."""
    x = operation.cast(x)
    raised = operation.emit(expm1(operation, operation.emit(relax.op.abs(x))))
    rest = relax.op.divide(raised, relax.op.add(raised, operation.cast(1)))
    halves = relax.op.multiply(operation.cast(0.5), relax.op.add(raised, rest))
    size = operation.emit(relax.op.where(relax.op.isinf(raised), raised, halves))
    return relax.op.where(relax.op.less(x, operation.cast(0)), relax.op.negative(size), size)


def cosh(operation: Operation, x: relax.Expr) -> relax.Expr:
    """(exp(x) + exp(-x)) / 2."""
    x = operation.cast(x)
    both = relax.op.add(relax.op.exp(x), relax.op.exp(relax.op.negative(x)))
    return relax.op.multiply(both, operation.cast(0.5))


def asinh(operation: Operation, x: relax.Expr) -> relax.Expr:
    """sign(x) * log(|x| + sqrt(x^2 + 1)), by what is exact near 0."""
    x, one = operation.cast(x), operation.cast(1)
    size = operation.emit(relax.op.abs(x))
    root = relax.op.sqrt(relax.op.add(relax.op.multiply(size, size), one))
    more = relax.op.divide(relax.op.multiply(size, size), relax.op.add(one, root))
    result = operation.emit(log1p(operation, operation.emit(relax.op.add(size, more))))
    return relax.op.where(relax.op.less(x, operation.cast(0)), relax.op.negative(result), result)


def acosh(operation: Operation, x: relax.Expr) -> relax.Expr:
    """log(x + sqrt(x^2 - 1))."""
    x, one = operation.cast(x), operation.cast(1)
    squared = relax.op.multiply(relax.op.subtract(x, one), relax.op.add(x, one))
    return relax.op.log(relax.op.add(x, relax.op.sqrt(squared)))


def atanh(operation: Operation, x: relax.Expr) -> relax.Expr:
    """log((1 + x) / (1 - x)) / 2; its series for small x, of which 1 + x loses digits."""
    x, one = operation.cast(x), operation.cast(1)
    ratio = relax.op.divide(relax.op.add(one, x), relax.op.subtract(one, x))
    large = relax.op.multiply(operation.cast(0.5), relax.op.log(ratio))
    near = relax.op.less(relax.op.abs(x), operation.cast(0.25))
    return relax.op.where(near, _atanh_of_little(operation, x), large)


def sinc(operation: Operation, x: relax.Expr) -> relax.Expr:
    """sin(pi * x) / (pi * x), 1 at 0; the sine's operand is its own, which half types do not round then."""
    x = operation.cast(x)
    wave = relax.op.sin(relax.op.multiply(x, operation.cast(math.pi)))
    ratio = relax.op.divide(wave, relax.op.multiply(x, operation.cast(math.pi)))
    return relax.op.where(relax.op.equal(x, operation.cast(0)), operation.cast(1), ratio)


def erfc(operation: Operation, x: relax.Expr) -> relax.Expr:
    """1 - erf(x)."""
    return relax.op.subtract(operation.cast(1), relax.op.erf(operation.cast(x)))


def maximum(operation: Operation, x: Operand, y: Operand) -> relax.Expr:
    """The larger of two."""
    return (relax.op.logical_or if operation.dtype == "bool" else relax.op.maximum)(
        operation.cast(x), operation.cast(y)
    )


def minimum(operation: Operation, x: Operand, y: Operand) -> relax.Expr:
    """The smaller of two."""
    function = relax.op.logical_and if operation.dtype == "bool" else relax.op.minimum
    return function(operation.cast(x), operation.cast(y))


def fmax(operation: Operation, x: Operand, y: Operand) -> relax.Expr:
    """The larger of two, of which one may be NaN."""
    return _unless_nan(operation, x, y, maximum(operation, x, y))


def fmin(operation: Operation, x: Operand, y: Operand) -> relax.Expr:
    """The smaller of two, of which one may be NaN."""
    return _unless_nan(operation, x, y, minimum(operation, x, y))


def hypot(operation: Operation, x: Operand, y: Operand) -> relax.Expr:
    """The length of (x, y), scaled by the longer side so that no square overflows."""
    x, y = (operation.emit(relax.op.abs(operation.cast(side))) for side in (x, y))
    long, short = operation.emit(relax.op.maximum(x, y)), operation.emit(relax.op.minimum(x, y))
    zero, one = operation.cast(0), operation.cast(1)
    ratio = operation.emit(relax.op.divide(short, relax.op.where(relax.op.equal(long, zero), one, long)))
    return relax.op.multiply(long, relax.op.sqrt(relax.op.add(one, relax.op.multiply(ratio, ratio))))


def signbit(operation: Operation, x: relax.Expr) -> relax.Expr:
    """Whether there is a minus, also before a 0."""
    if dtype_of(x) == "bool":
        return relax.op.full(operation.shape, relax.const(False, "bool"), "bool")
    zero = relax.const(0, dtype_of(x))
    below = relax.op.less(x, zero)
    if "float" not in dtype_of(x):
        return below
    beneath = relax.op.less(relax.op.divide(relax.const(1, dtype_of(x)), x), zero)
    return relax.op.logical_or(below, relax.op.logical_and(relax.op.equal(x, zero), beneath))


def clamp(operation: Operation, x: relax.Expr, low: Operand | None = None, high: Operand | None = None) -> relax.Expr:
    """x, at least `low` and at most `high`; numbers or tensors that are broadcast."""
    x = operation.cast(x)
    if all(bound is None or isinstance(bound, (int, float)) for bound in (low, high)) and "float" in operation.dtype:
        return relax.op.clip(x, *(-math.inf if low is None else low, math.inf if high is None else high))
    if low is not None:
        x = relax.op.maximum(x, operation.cast(low))
    return x if high is None else relax.op.minimum(x, operation.cast(high))


def clamp_max(operation: Operation, x: relax.Expr, high: Operand) -> relax.Expr:
    """x, at most `high`."""
    return clamp(operation, x, None, high)


def where(operation: Operation, condition: relax.Expr, x: Operand, y: Operand) -> relax.Expr:
    """x where the condition holds, else y."""
    return relax.op.where(operation.cast(condition, "bool"), operation.cast(x), operation.cast(y))


def masked_fill(operation: Operation, x: relax.Expr, mask: relax.Expr, value: Operand) -> relax.Expr:
    """`value` where the mask holds, else x."""
    return where(operation, mask, value, x)


def convert_dtype(operation: Operation, x: relax.Expr, **_: object) -> relax.Expr:
    """x in the result's dtype; its place and memory format mean nothing here."""
    return operation.cast(x)


def same(_: Operation, x: relax.Expr, *__: object, **___: object) -> relax.Expr:
    """x itself."""
    return x


def round_decimals(operation: Operation, x: relax.Expr, decimals: int) -> relax.Expr:
    """x rounded to so many digits behind the point; before it, where negative."""
    if "float" not in operation.dtype:
        return x
    scale = operation.cast(10.0 ** abs(decimals))
    there, back = (relax.op.multiply, relax.op.divide) if decimals > 0 else (relax.op.divide, relax.op.multiply)
    return back(relax.op.round(there(x, scale)), scale)


def sign(operation: Operation, x: relax.Expr) -> relax.Expr:
    """-1, 0 or 1."""
    return x if operation.dtype == "bool" else relax.op.sign(x)


def copysign(operation: Operation, x: Operand, y: Operand) -> relax.Expr:
    """The size of x with the sign of y, that of a 0 too."""
    x, y, zero = operation.cast(x), operation.emit(operation.cast(y)), operation.cast(0)
    size = operation.emit(relax.op.abs(x))
    below = relax.op.less(relax.op.divide(operation.cast(1), y), zero)
    negative = relax.op.where(relax.op.equal(y, zero), below, relax.op.less(y, zero))
    return relax.op.where(negative, relax.op.negative(size), size)


def _unfolded_zero(operation: Operation, value: Operand) -> relax.Expr:
    """Return `value`; a 0 as a tensor of one element, as TVM takes NaN times the number 0 for 0."""
    if _is_zero(operation, value):
        return constant(np.full((1,) * len(operation.shape), value, operation.dtype))
    return operation.cast(value)


def _is_zero(operation: Operation, value: Operand) -> bool:
    """Return whether a float's operand is the number 0, by which TVM refuses to divide."""
    return not isinstance(value, relax.Expr) and value == 0 and "float" in operation.dtype


def _scaled(operation: Operation, y: Operand, alpha: Scalar) -> relax.Expr:
    if alpha == 1:
        return operation.cast(y)
    return relax.op.multiply(operation.cast(y), operation.cast(alpha))


def _logical_or_sum(operation: Operation, x: Operand, y: relax.Expr) -> relax.Expr:
    return (relax.op.logical_or if operation.dtype == "bool" else relax.op.add)(operation.cast(x), y)


def _unless_nan(operation: Operation, x: Operand, y: Operand, chosen: relax.Expr) -> relax.Expr:
    if "float" not in operation.dtype:
        return chosen
    x, y = operation.cast(x), operation.cast(y)
    return relax.op.where(relax.op.isnan(x), y, relax.op.where(relax.op.isnan(y), x, chosen))
