# SPDX-License-Identifier: Apache-2.0
"""exp, log, tanh, sigmoid and erf of float32 on CPUs as arithmetic on vectors, not calls of the C library by lane.

Each is within 4 units in the last place of the true value over all of float32, subnormal results included, and does
with NaN and infinities what the C library does (`tests/lowering/test_vector_math.py`). The polynomials are minimax fits
(iteratively reweighted least squares in float64) on the intervals named beside them.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Sequence

import tvm
from tvm import tirx
from tvm.ir import Call
from tvm_ffi import structural_map

from .programs import rewrite_cpu_programs

_LOG2_E = 1.4426950408889634
# log(2) in two parts: the first has 9 bits, so its products with whole exponents are exact
_LN_2_HIGH, _LN_2_LOW = 0.693359375, -2.12194440054690583e-4
# adding and subtracting it rounds to the nearest whole number, which then stands in the low bits
_ROUND = 1.5 * 2.0**23

# (exp(r) - 1 - r) / r^2 for |r| < 0.35
_EXP = (
    0.5,
    0.1666666716337204,
    0.04166625440120697,
    0.008333262987434864,
    0.0013947224942967296,
    0.00019919377518817782,
)
# (log(1 + f) - f + f^2 / 2) / f^3 for sqrt(1/2) <= 1 + f < sqrt(2)
_LOG = (
    0.3333331048488617, -0.24999986588954926, 0.20002226531505585, -0.16669249534606934, 0.14218655228614807,
    -0.1238437220454216, 0.11873020231723785, -0.11789684742689133, 0.06915125250816345,
)  # fmt: skip
# (tanh(x) / x - 1) / x^2 in x^2, for |x| < 0.625
_TANH = (
    -0.3333333134651184, 0.13333210349082947, -0.05394720286130905,
    0.021702967584133148, -0.008182673715054989, 0.0021475369576364756,
)  # fmt: skip
_TANH_SMALL = 0.625
# erf(x) / x in x^2, for |x| < 0.92
_ERF = (
    1.128379225730896, -0.37612634897232056, 0.11283703148365021, -0.026859799399971962,
    0.005201960448175669, -0.0008152627851814032, 8.409920701524243e-05,
)  # fmt: skip
_ERF_SMALL = 0.92
# log(1 - erf(x)) for 0.92 <= x < 4, where erf is 1 in float32
_ERFC = (
    0.00016308158228639513, -1.129448652267456, -0.633509635925293, -0.10805604606866837, 0.02493032068014145,
    -0.004070942755788565, 0.00040201490628533065, -1.521291778772138e-05, -4.5644910073860956e-07,
)  # fmt: skip
_ERF_LARGE = 4.0
# float32's
_LARGEST = float.fromhex("0x1.fffffep127")


@tvm.transform.module_pass(opt_level=0, name="VectorMath")
class VectorMath:
    """Replace those intrinsics in the CPU's programs."""

    def transform_module(self, mod: tvm.IRModule, _: tvm.transform.PassContext) -> tvm.IRModule:
        """Return `mod` with every `PrimFunc` for a CPU rewritten."""
        return rewrite_cpu_programs(mod, lambda func: func.with_body(structural_map(func.body, (Call, _expand))))


def _expand(call: Call) -> tirx.PrimExpr:
    function = _FUNCTIONS.get(getattr(call.op, "name", ""))
    if function is None or call.ty.dtype.with_lanes(1) != "float32":
        return call
    steps = _Steps()
    return steps.before(function(steps.name(call.args[0]), steps))


class _Steps:
    """Intermediate values under names, so that each is computed once."""

    def __init__(self) -> None:
        self._named: list[tuple[tirx.Var, tirx.PrimExpr]] = []

    def name(self, value: tirx.PrimExpr) -> tirx.Var:
        """Return a name for `value`."""
        self._named.append((tirx.Var("v", value.ty.dtype), value))
        return self._named[-1][0]

    def before(self, result: tirx.PrimExpr) -> tirx.PrimExpr:
        """Return `result` after the definitions of the names."""
        for var, value in reversed(self._named):
            result = tirx.Let(var, value, result)
        return result


def _exp(x: tirx.PrimExpr, steps: _Steps) -> tirx.PrimExpr:
    """exp(x) = 2^n exp(r); 2^n is made of bits, in two factors, since n may lie beyond what an exponent holds."""
    # comparisons with NaN are false, so it passes
    x = tirx.Select(x > _like(x, 89.0), _like(x, 89.0), tirx.Select(x < _like(x, -104.0), _like(x, -104.0), x))
    x = steps.name(x)
    rounded = steps.name(x * _like(x, _LOG2_E) + _like(x, _ROUND))
    n = steps.name(rounded - _like(x, _ROUND))
    r = steps.name(x - n * _like(x, _LN_2_HIGH) - n * _like(x, _LN_2_LOW))
    power = steps.name(_bits(rounded) - _like(_bits(x), _bits_of(_ROUND)))
    half = steps.name(power >> _like(power, 1))
    value = _polynomial(r, _EXP) * (r * r) + r + _like(x, 1.0)
    return value * _two_to(half) * _two_to(power - half)


def _log(x: tirx.PrimExpr, steps: _Steps) -> tirx.PrimExpr:
    """log(2^e m) = e log(2) + log(m), with m around 1."""
    tiny = x < _like(x, 2.0**-126)
    # subnormal numbers first become normal ones
    bits = steps.name(_bits(tirx.Select(tiny, x * _like(x, 2.0**25), x)))
    exponent = steps.name((bits - _like(bits, _bits_of(math.sqrt(0.5)))) >> _like(bits, 23))
    f = steps.name(_float(bits - (exponent << _like(bits, 23))) - _like(x, 1.0))
    e = steps.name(exponent.astype(x.ty.dtype) - tirx.Select(tiny, _like(x, 25.0), _like(x, 0.0)))
    square = steps.name(f * f)
    rest = _polynomial(f, _LOG) * square * f + e * _like(x, _LN_2_LOW) - _like(x, 0.5) * square
    positive = rest + f + e * _like(x, _LN_2_HIGH)
    # of zero and of infinity; NaN and what is negative are neither, and fail every comparison
    at_ends = tirx.Select(x > _like(x, _LARGEST), x, _like(x, -math.inf))
    inside = tirx.And(x > _like(x, 0.0), x <= _like(x, _LARGEST))
    return tirx.Select(inside, positive, tirx.Select(x >= _like(x, 0.0), at_ends, _like(x, math.nan)))


def _tanh(x: tirx.PrimExpr, steps: _Steps) -> tirx.PrimExpr:
    magnitude, sign = _magnitude_and_sign(x, steps)
    z = steps.name(magnitude * magnitude)
    small = _polynomial(z, _TANH) * z * magnitude + magnitude
    large = _like(x, 1.0) - _like(x, 2.0) / (_exp(magnitude + magnitude, steps) + _like(x, 1.0))
    return _float(_bits(tirx.Select(magnitude < _like(x, _TANH_SMALL), small, large)) | sign)


def _erf(x: tirx.PrimExpr, steps: _Steps) -> tirx.PrimExpr:
    magnitude, sign = _magnitude_and_sign(x, steps)
    small = _polynomial(steps.name(magnitude * magnitude), _ERF) * magnitude
    capped = steps.name(tirx.Select(magnitude > _like(x, _ERF_LARGE), _like(x, _ERF_LARGE), magnitude))
    large = _like(x, 1.0) - _exp(_polynomial(capped, _ERFC), steps)
    return _float(_bits(tirx.Select(magnitude < _like(x, _ERF_SMALL), small, large)) | sign)


def _sigmoid(x: tirx.PrimExpr, steps: _Steps) -> tirx.PrimExpr:
    # by the exponential that does not overflow
    small = steps.name(_exp(_float(_bits(x) | _like(_bits(x), -(2**31))), steps))
    return tirx.Select(x < _like(x, 0.0), small, _like(x, 1.0)) / (_like(x, 1.0) + small)


_FUNCTIONS: dict[str, Callable[[tirx.PrimExpr, _Steps], tirx.PrimExpr]] = {
    "tirx.exp": _exp,
    "tirx.log": _log,
    "tirx.tanh": _tanh,
    "tirx.sigmoid": _sigmoid,
    "tirx.erf": _erf,
}


def _magnitude_and_sign(x: tirx.PrimExpr, steps: _Steps) -> tuple[tirx.Var, tirx.Var]:
    """Return |x|, and the bit of its sign; so that of zero stays."""
    bits = steps.name(_bits(x))
    magnitude = steps.name(_float(bits & _like(bits, 2**31 - 1)))
    return magnitude, steps.name(bits & _like(bits, -(2**31)))


def _polynomial(x: tirx.PrimExpr, coefficients: Sequence[float]) -> tirx.PrimExpr:
    """Return the polynomial with `coefficients`, the constant first, by Horner's scheme."""
    value = _like(x, coefficients[-1])
    for coefficient in reversed(coefficients[:-1]):
        value = value * x + _like(x, coefficient)
    return value


def _two_to(n: tirx.PrimExpr) -> tirx.PrimExpr:
    """Return 2^n in float32 for whole numbers between -126 and 127."""
    return _float((n + _like(n, 127)) << _like(n, 23))


def _like(x: tirx.PrimExpr, value: float) -> tirx.PrimExpr:
    """Return `value` in the type and lanes of `x`."""
    return tirx.const(value, x.ty.dtype)


def _bits(x: tirx.PrimExpr) -> tirx.PrimExpr:
    return tirx.reinterpret(str(x.ty.dtype).replace("float", "int"), x)


def _float(bits: tirx.PrimExpr) -> tirx.PrimExpr:
    return tirx.reinterpret(str(bits.ty.dtype).replace("int", "float"), bits)


def _bits_of(value: float) -> int:
    """Return the bits of a float32 as a whole number."""
    return int(struct.unpack("<i", struct.pack("<f", value))[0])
