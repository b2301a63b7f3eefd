# SPDX-License-Identifier: Apache-2.0
"""NVIDIA's machine code as `cuobjdump -sass` prints it, and a walk of one warp through it.

The walk follows the numbers that loops count by, so that every instruction is counted as often as it is issued, and the
stalls and barriers that the compiler wrote into each instruction, so that chains of waiting are seen. What depends on
threads or data is taken as met: the bodies of tests are run, whichever lanes they are for.
"""

from __future__ import annotations

import operator
import re
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

_LINE = re.compile(
    r"/\*(?P<address>[0-9a-f]{4,})\*/\s+(?:@(?P<guard>!?U?P\w+)\s+)?(?P<name>[A-Z][A-Z0-9_.]*)(?P<operands>[^;]*);"
    r"\s*/\* 0x[0-9a-f]+ \*/\s*/\* 0x(?P<control>[0-9a-f]+) \*/"
)
# cycles until a result arrives whose time the compiler does not know: what is in the second-level cache, in memory, in
# shared memory, the rest
_CACHE, _MEMORY, _SHARED, _OTHER = 270, 620, 33, 24
_GLOBAL = ("LDG", "LDGSTS", "ATOMG")
_BARRIER = 30
_MOST_STEPS = 2_000_000
_COMPARISONS: dict[str, Callable[[int, int], bool]] = {
    "EQ": operator.eq,
    "NE": operator.ne,
    "LT": operator.lt,
    "LE": operator.le,
    "GT": operator.gt,
    "GE": operator.ge,
}


@dataclass(frozen=True)
class Instruction:
    """A line of the listing."""

    address: int
    guard: str
    """the predicate that it is run under, such as `P0` or `!P1`; empty for always"""
    name: str
    """without suffixes"""
    suffixes: tuple[str, ...]
    operands: tuple[str, ...]
    stall: int
    """cycles until the next instruction"""
    sets: int | None
    """barrier that is released with the result"""
    releases: int | None
    """barrier that is released once the operands were read"""
    waits: int
    """for these barriers, one bit each"""

    @property
    def element_bytes(self) -> int:
        """What a lane loads or stores."""
        widths = {"128": 16, "64": 8, "U16": 2, "S16": 2, "16": 2, "U8": 1, "S8": 1}
        return next((widths[suffix] for suffix in self.suffixes if suffix in widths), 4)


@dataclass
class Walk:
    """What a warp does from start to end."""

    issued: Counter[str] = field(default_factory=Counter)
    """instructions by name"""
    loaded: int = 0
    """bytes that a lane loads from global memory into registers"""
    copied: int = 0
    """bytes that a lane copies from there to shared memory, past the first-level cache"""
    stored: int = 0
    """bytes that a lane stores to global memory"""
    multiply_adds: int = 0
    """of a warp on tensor cores"""
    cycles: tuple[int, int] = (0, 0)
    """until its end, alone on the multiprocessor: with all it loads in the second-level cache, with all in memory"""
    open_loops: int = 0
    """loops whose number of turns could not be read: each counts as one turn"""


def parse(text: str) -> tuple[Instruction, ...]:
    """Return the instructions of one function of a listing."""
    found = []
    for match in _LINE.finditer(text):
        control = int(match["control"], 16) >> 41
        name, *suffixes = match["name"].split(".")
        write, read = control >> 5 & 7, control >> 8 & 7
        operands = tuple(part.strip() for part in match["operands"].split(",") if part.strip())
        found.append(
            Instruction(
                address=int(match["address"], 16),
                guard=match["guard"] or "",
                name=name,
                suffixes=tuple(suffixes),
                operands=operands,
                stall=control & 15,
                sets=None if write == 7 else write,
                releases=None if read == 7 else read,
                waits=control >> 11 & 63,
            )
        )
    return tuple(found)


def walk(code: tuple[Instruction, ...]) -> Walk:
    """Follow a warp through `code`."""
    places = {instruction.address: place for place, instruction in enumerate(code)}
    state, clocks, result = _Integers(), (_Clock(_CACHE), _Clock(_MEMORY)), Walk()
    place = steps = 0
    while place < len(code) and steps < _MOST_STEPS:
        instruction, steps = code[place], steps + 1
        place += 1
        met = state.guard(instruction)
        if instruction.name == "NOP" and met is None:
            continue
        for clock in clocks:
            clock.issue(instruction)
        result.issued[instruction.name] += 1
        if met is False:
            continue
        _count(instruction, result)
        if instruction.name == "EXIT" and met:
            break
        if instruction.name == "BRA":
            to = places.get(_target(instruction), place)
            back = to < place
            if back and met is None:
                result.open_loops += 1
            elif met and to == place - 1:
                break  # what fills up the end
            elif met or (met is None and _other_side_loads(code, place, places, to)):
                place = to
        else:
            state.run(instruction, met)
    result.cycles = clocks[0].now, clocks[1].now
    return result


def _other_side_loads(code: tuple[Instruction, ...], place: int, places: dict[int, int], to: int) -> bool:
    """Return whether of two sides of a test the one behind the branch is that which loads, the other writes zeros."""
    before, last = code[place:to], code[to - 1]
    if not before or last.name != "BRA" or last.guard or (end := places.get(_target(last), 0)) <= to:
        return False
    return _loads(code[to:end]) > _loads(before)


def _loads(code: tuple[Instruction, ...]) -> int:
    return sum(instruction.name in ("LDG", "LDGSTS") for instruction in code)


def _target(instruction: Instruction) -> int:
    last = instruction.operands[-1] if instruction.operands else ""
    return int(last, 16) if last.startswith("0x") else -1


def _count(instruction: Instruction, result: Walk) -> None:
    if instruction.name == "LDG":
        result.loaded += instruction.element_bytes
    elif instruction.name == "LDGSTS":
        result.copied += instruction.element_bytes
    elif instruction.name in ("STG", "RED", "ATOMG"):
        result.stored += instruction.element_bytes
    elif instruction.name == "HMMA":
        shape = next((suffix for suffix in instruction.suffixes if re.fullmatch(r"16\d+", suffix)), "16816")
        result.multiply_adds += 16 * 8 * int(shape[3:])


class _Clock:
    """When a warp that is alone issues its instructions."""

    def __init__(self, load: int) -> None:
        self.now, self._load = 0, load
        self._barriers = [0] * 6
        self._group, self._groups = 0, deque[int]()

    def issue(self, instruction: Instruction) -> None:
        name = instruction.name
        for barrier in range(6):
            if instruction.waits >> barrier & 1:
                self.now = max(self.now, self._barriers[barrier])
        if name == "LDGSTS":
            self._group = self.now + self._load
        elif name == "LDGDEPBAR":
            self._groups.append(self._group)
        elif name == "DEPBAR":
            left = int(instruction.operands[-1], 16) if instruction.operands[-1].startswith("0x") else 0
            while len(self._groups) > left:
                self.now = max(self.now, self._groups.popleft())
        elif name == "BAR":
            self.now += _BARRIER
        if instruction.sets is not None:
            shared = _SHARED if name in ("LDS", "LDSM") else _OTHER
            done = self.now + (self._load if name in _GLOBAL else shared)
            self._barriers[instruction.sets] = max(self._barriers[instruction.sets], done)
        if instruction.releases is not None:
            self._barriers[instruction.releases] = max(self._barriers[instruction.releases], self.now + _OTHER)
        self.now += max(1, instruction.stall)


class _Integers:
    """What is known of registers and predicates: what comes from constants."""

    def __init__(self) -> None:
        self._registers: dict[str, int] = {}
        self._predicates: dict[str, bool] = {}

    def guard(self, instruction: Instruction) -> bool | None:
        """Return whether an instruction is run, for a branch whether it is taken; None where that is not known."""
        guards = [instruction.guard] if instruction.guard else []
        if instruction.name == "BRA" and "U" in instruction.suffixes:
            guards += instruction.operands[:-1]
        known = [self._predicate(guard) for guard in guards]
        if False in known:
            return False
        return None if None in known else True

    def _predicate(self, text: str) -> bool | None:
        value = True if text.endswith("PT") else self._predicates.get(text.lstrip("!"))
        return value if value is None or not text.startswith("!") else not value

    def _value(self, text: str) -> int | None:
        text = text.replace(".reuse", "")
        if text.startswith("-") and not text.startswith("-0x"):
            value = self._value(text[1:])
            return None if value is None else -value
        if re.fullmatch(r"-?0x[0-9a-f]+", text):
            return _signed(int(text, 16))
        if re.fullmatch(r"U?RZ|SRZ", text):
            return 0
        return self._registers.get(text)

    def run(self, instruction: Instruction, met: bool | None) -> None:
        """Write what an instruction makes; unknown where it, or whether it is run, is unknown."""
        if not instruction.operands:
            return
        if instruction.name in ("ISETP", "UISETP"):
            self._compare(instruction, met)
            return
        written, *others = instruction.operands
        if instruction.name == "PLOP3":
            self._join(instruction, met)
            return
        if re.fullmatch(r"U?P\d", written):
            self._predicates.pop(written, None)
        register = re.fullmatch(r"(U?R)(\d+)", written)
        if register is None:
            return
        value = self._computed(instruction, others) if met else None
        kind, first = register[1], int(register[2])
        for number in range(first, first + _written_registers(instruction)):
            self._registers.pop(f"{kind}{number}", None)
            if instruction.name == "CS2R" and value is not None:
                self._registers[f"{kind}{number}"] = value
        if value is not None:
            self._registers[written] = value
        for other in others:  # carries
            if re.fullmatch(r"U?P\d", other):
                self._predicates.pop(other, None)

    def _computed(self, instruction: Instruction, operands: list[str]) -> int | None:
        name, suffixes = instruction.name, instruction.suffixes
        operands = [part for part in operands if not re.fullmatch(r"!?U?P[T\d]", part)]
        if name == "HFMA2" and operands[:2] in (["-RZ", "RZ"], ["RZ", "RZ"]) and len(operands) == 4:
            return _halves(*operands[2:])
        values = [self._value(part) for part in operands]
        if any(value is None for value in values):
            return None
        known = [value for value in values if value is not None]
        if name in ("MOV", "UMOV", "CS2R") and known:
            return known[0]
        if name in ("VIADD", "IADD3", "UIADD3", "IADD") and not {"X"} & set(suffixes):
            return _signed(sum(known))
        if name in ("IMAD", "UIMAD") and len(known) == 3 and set(suffixes) <= {"MOV", "SHL", "IADD", "U32"}:
            return _signed(known[0] * known[1] + known[2])
        return None

    def _join(self, instruction: Instruction, met: bool | None) -> None:
        """Look up the result of three predicates in the instruction's table."""
        written, other, *inputs, table, _ = instruction.operands
        known = [self._predicate(text) for text in inputs]
        for predicate in (written, other):
            self._predicates.pop(predicate, None)
        if met and None not in known:
            row = sum(bool(value) << place for place, value in zip((2, 1, 0), known, strict=True))
            self._predicates[written] = bool(int(table, 16) >> row & 1)

    def _compare(self, instruction: Instruction, met: bool | None) -> None:
        written, other, left, right, *also = instruction.operands
        compare = next((_COMPARISONS[suffix] for suffix in instruction.suffixes if suffix in _COMPARISONS), None)
        values = self._value(left), self._value(right)
        result: bool | None = None
        if met and compare and values[0] is not None and values[1] is not None and "EX" not in instruction.suffixes:
            unsigned = "U32" in instruction.suffixes
            result = compare(*(value % 2**32 if unsigned else value for value in (values[0], values[1])))
            joined = self._predicate(also[0]) if also else True
            if "OR" in instruction.suffixes:
                result = True if result else joined
            elif joined is None:
                result = None if result else False
            else:
                result = result and joined
        for predicate in (written, other):
            self._predicates.pop(predicate, None)
        if result is not None and not written.endswith("PT"):
            self._predicates[written] = result


def _written_registers(instruction: Instruction) -> int:
    if instruction.name in ("LDG", "LDS", "LD", "LDC"):
        return max(1, instruction.element_bytes // 4)
    if instruction.name == "HMMA" or (instruction.name == "LDSM" and "4" in instruction.suffixes):
        return 4
    return 2 if instruction.name in ("CS2R", "LDSM") or "WIDE" in instruction.suffixes else 1


def _signed(value: int) -> int:
    return (value + 2**31) % 2**32 - 2**31


def _halves(high: str, low: str) -> int | None:
    """Return two halves that are written as decimal fractions as the integer that they stand for."""
    try:
        bits = [int(np.float16(float(part)).view(np.uint16)) for part in (high, low)]
    except ValueError:
        return None
    return _signed(bits[0] << 16 | bits[1])
