# SPDX-License-Identifier: Apache-2.0
"""exp, log, tanh, sigmoid and erf of float32 on CPUs as arithmetic on vectors, not calls of the C library by lane.

Each is within 4 units in the last place of the true value over all of float32, subnormal results included, and does
with NaN and infinities what the C library does (`tests/lowering/test_vector_math.py`). They are functions in LLVM's own
language, which are inlined: TVM's analyzer puts each definition into its uses, and a tanh of a logarithm of an
exponential would take minutes to lower. The polynomials are minimax fits (iteratively reweighted least squares in
float64) on the intervals named beside them.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import tvm
from tvm import tirx
from tvm.ir import Call
from tvm_ffi import structural_map

from .programs import rewrite_cpu_programs

# TVM does not know that these, too, are computed lane by lane
for _name in ("erf", "rsqrt"):
    tvm.ir.register_op_attr(f"tirx.{_name}", "TVectorizable", True)

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
# -log2(1 - erf(x)) / x for 0 <= x <= 4, behind which erf is 1 in float32
_ERFC = (
    1.6279070377349854, 0.9184476137161255, 0.14827707409858704, -0.027632037177681923, -0.00023139113909564912,
    0.002405001549050212, -0.0009129851241596043, 0.00016971903096418828, -1.3353815120353829e-05,
)  # fmt: skip
_ERF_LARGE = 4.0
# (2^r - 1) / r for |r| <= 0.5
_EXP2 = (
    0.6931471824645996, 0.24022650718688965, 0.055503569543361664,
    0.009618030861020088, 0.0013390866806730628, 0.0001546973508084193,
)  # fmt: skip


@tvm.transform.module_pass(opt_level=0, name="VectorMath")
class VectorMath:
    """Replace those intrinsics in the CPU's programs."""

    def transform_module(self, mod: tvm.IRModule, _: tvm.transform.PassContext) -> tvm.IRModule:
        """Return `mod` with every `PrimFunc` for a CPU rewritten."""
        return rewrite_cpu_programs(mod, _rewrite)


def _rewrite(func: tirx.PrimFunc) -> tirx.PrimFunc:
    written: dict[str, str] = {}

    def call_ours(call: Call) -> Call:
        name = getattr(call.op, "name", "").removeprefix("tirx.")
        if name not in _FUNCTIONS or call.ty.dtype.with_lanes(1) != "float32":
            return call
        lanes = call.ty.dtype.lanes
        symbol = f"tvm_involution_{name}_{lanes}"
        written[symbol] = _write(symbol, _FUNCTIONS[name], lanes)
        return tirx.call_pure_extern(call.ty.dtype, symbol, call.args[0])

    body = structural_map(func.body, (Call, call_ours))
    for text in written.values():
        body = tirx.AttrStmt(tirx.const(0, "int32"), "pragma_import_llvm", text, body)
    return func.with_body(body) if written else func


def _write(symbol: str, function: Callable[[_Value], _Value], lanes: int) -> str:
    """Return a function of LLVM that computes `function` of `lanes` numbers."""
    text = _Text(lanes)
    result = function(_Value(text, "float", "%x"))
    kind = text.kind("float")
    lines = "\n".join(text.lines)
    return f"define {kind} @{symbol}({kind} %x) alwaysinline {{\n{lines}\n  ret {kind} {result.name}\n}}\n"


class _Text:
    """The instructions of a function, of vectors of `lanes`."""

    def __init__(self, lanes: int) -> None:
        self.lanes = lanes
        self.lines: list[str] = []

    def kind(self, element: str) -> str:
        """Return the type of a vector, or of one number."""
        return element if self.lanes == 1 else f"<{self.lanes} x {element}>"

    def add(self, element: str, instruction: str) -> _Value:
        """Append an instruction and return its result."""
        name = f"%v{len(self.lines)}"
        self.lines.append(f"  {name} = {instruction}")
        return _Value(self, element, name)


@dataclass(frozen=True)
class _Value:
    """A vector of float32 (`float`), whole numbers (`i32`) or truth values (`i1`)."""

    text: _Text
    element: str
    name: str

    @property
    def kind(self) -> str:
        return self.text.kind(self.element)

    def like(self, number: float) -> _Value:
        """Return a constant of the same type."""
        if self.element == "i32":
            constant = str(number)
        else:
            # as LLVM writes it: the bits of the float64 of the same value
            rounded = struct.unpack("<f", struct.pack("<f", number))[0]
            constant = f"0x{struct.unpack('<Q', struct.pack('<d', rounded))[0]:016X}"
        return _Value(
            self.text, self.element, constant if self.text.lanes == 1 else f"splat ({self.element} {constant})"
        )

    def _binary(self, instruction: str, other: _Value | float) -> _Value:
        other = other if isinstance(other, _Value) else self.like(other)
        return self.text.add(self.element, f"{instruction} {self.kind} {self.name}, {other.name}")

    def _arithmetic(self, instruction: str, other: _Value | float) -> _Value:
        # contracted: a product and a sum may be one instruction
        return self._binary(f"f{instruction} contract" if self.element == "float" else instruction, other)

    def __add__(self, other: _Value | float) -> _Value:
        return self._arithmetic("add", other)

    def __sub__(self, other: _Value | float) -> _Value:
        return self._arithmetic("sub", other)

    def __mul__(self, other: _Value | float) -> _Value:
        return self._arithmetic("mul", other)

    def __truediv__(self, other: _Value | float) -> _Value:
        return self._arithmetic("div", other)

    def __and__(self, other: _Value | int) -> _Value:
        return self._binary("and", other)

    def __or__(self, other: _Value | int) -> _Value:
        return self._binary("or", other)

    def __lshift__(self, other: _Value | int) -> _Value:
        return self._binary("shl", other)

    def __rshift__(self, other: _Value | int) -> _Value:
        return self._binary("ashr", other)

    def is_(self, predicate: str, number: float) -> _Value:
        """Compare with a constant by LLVM's predicate; those that begin with `o` are false of NaN."""
        return self.text.add("i1", f"fcmp {predicate} {self.kind} {self.name}, {self.like(number).name}")

    def choose(self, yes: _Value, no: _Value | float) -> _Value:
        """Return `yes` where this truth value is true, else `no`."""
        no = no if isinstance(no, _Value) else yes.like(no)
        return self.text.add(yes.element, f"select {self.kind} {self.name}, {yes.kind} {yes.name}, {no.kind} {no.name}")

    def cast(self, instruction: str, element: str) -> _Value:
        """Return the value as another type, by `bitcast` or a conversion."""
        return self.text.add(element, f"{instruction} {self.kind} {self.name} to {self.text.kind(element)}")

    @property
    def bits(self) -> _Value:
        """The bits of float32 as whole numbers."""
        return self.cast("bitcast", "i32")

    @property
    def as_float(self) -> _Value:
        """The float32 of these bits."""
        return self.cast("bitcast", "float")


def _exp(x: _Value) -> _Value:
    """exp(x) = 2^n exp(r); 2^n is made of bits, in two factors, since n may lie beyond what an exponent holds."""
    # comparisons with NaN are false, so it passes
    x = x.is_("ogt", 89.0).choose(x.like(89.0), x.is_("olt", -104.0).choose(x.like(-104.0), x))
    rounded = x * _LOG2_E + _ROUND
    n = rounded - _ROUND
    r = x - n * _LN_2_HIGH - n * _LN_2_LOW
    power = rounded.bits - _bits_of(_ROUND)
    half = power >> 1
    value = _polynomial(r, _EXP) * (r * r) + r + 1.0
    return value * _two_to(half) * _two_to(power - half)


def _log(x: _Value) -> _Value:
    """log(2^e m) = e log(2) + log(m), with m around 1."""
    tiny = x.is_("olt", 2.0**-126)
    # subnormal numbers first become normal ones
    bits = tiny.choose(x * 2.0**25, x).bits
    exponent = (bits - _bits_of(math.sqrt(0.5))) >> 23
    f = (bits - (exponent << 23)).as_float - 1.0
    e = exponent.cast("sitofp", "float") - tiny.choose(x.like(25.0), 0.0)
    square = f * f
    positive = _polynomial(f, _LOG) * square * f + e * _LN_2_LOW - square * 0.5 + f + e * _LN_2_HIGH
    # of infinity and of zero; what is negative, and NaN, pass no comparison
    other = x.is_("oeq", math.inf).choose(x, x.is_("oeq", 0.0).choose(x.like(-math.inf), math.nan))
    return (x.is_("ogt", 0.0) & x.is_("olt", math.inf)).choose(positive, other)


def _tanh(x: _Value) -> _Value:
    magnitude, sign = _magnitude_and_sign(x)
    z = magnitude * magnitude
    small = _polynomial(z, _TANH) * z * magnitude + magnitude
    large = x.like(1.0) - x.like(2.0) / (_exp(magnitude + magnitude) + 1.0)
    return (magnitude.is_("olt", _TANH_SMALL).choose(small, large).bits | sign).as_float


def _erf(x: _Value) -> _Value:
    """erf(x) = 1 - 2^-n 2^r = (1 - 2^-n) - 2^-n (2^r - 1): nothing is lost where x is small, as n is 0 there."""
    magnitude, sign = _magnitude_and_sign(x)
    capped = magnitude.is_("ogt", _ERF_LARGE).choose(x.like(_ERF_LARGE), magnitude)
    power = _polynomial(capped, _ERFC) * capped
    rounded = power + _ROUND
    r = rounded - _ROUND - power
    # n stands in the low bits, and nothing but zeros in those above that stay
    scale = (rounded.bits.like(_bits_of(1.0)) - (rounded.bits << 23)).as_float
    positive = x.like(1.0) - scale - scale * (_polynomial(r, _EXP2) * r)
    return (positive.bits | sign).as_float


def _sigmoid(x: _Value) -> _Value:
    # by the exponential that does not overflow
    small = _exp((x.bits | -(2**31)).as_float)
    return x.is_("olt", 0.0).choose(small, 1.0) / (small + 1.0)


_FUNCTIONS: dict[str, Callable[[_Value], _Value]] = {
    "exp": _exp,
    "log": _log,
    "tanh": _tanh,
    "sigmoid": _sigmoid,
    "erf": _erf,
}


def _magnitude_and_sign(x: _Value) -> tuple[_Value, _Value]:
    """Return |x|, and the bit of its sign; so that of zero stays."""
    return (x.bits & (2**31 - 1)).as_float, x.bits & -(2**31)


def _polynomial(x: _Value, coefficients: Sequence[float]) -> _Value:
    """Return the polynomial with `coefficients`, the constant first, by Horner's scheme."""
    value = x.like(coefficients[-1])
    for coefficient in reversed(coefficients[:-1]):
        value = value * x + coefficient
    return value


def _two_to(n: _Value) -> _Value:
    """Return 2^n in float32 for whole numbers between -126 and 127."""
    return ((n + 127) << 23).as_float


def _bits_of(value: float) -> int:
    """Return the bits of a float32 as a whole number."""
    return int(struct.unpack("<i", struct.pack("<f", value))[0])
