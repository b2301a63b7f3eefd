# SPDX-License-Identifier: Apache-2.0
"""From parsed JSON or TOML to dataclasses, by their annotations: every field there, none else, each of its type."""

from __future__ import annotations

import dataclasses
import sys
import types
import typing
import unicodedata
from typing import Any

_EXPECTED = {str: "a string", int: "a whole number", float: "a number", bool: "true or false", dict: "an object"}

_LONGEST = 4096


def decode(kind: Any, value: Any, where: str) -> Any:
    """Return a JSON value as an instance of `kind`.

    Args:
        kind: a dataclass, whose fields without a default must be there; `tuple[X, ...]`, `tuple[X, Y]`, `X | Y`,
            `dict[str, Any]`, `str`, `int`, `float` or `bool`.
        where: the value's name, for messages.

    Raises:
        ValueError: something is missing, foreign or of another type, a number is not finite or beyond 64 bits, a string
            has more than 4096 characters, or one that controls terminals.
    """
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if dataclasses.is_dataclass(kind):
        return _decode_fields(kind, value, where)
    if origin in (types.UnionType, typing.Union):
        return _decode_union(arguments, value, where)
    if origin is tuple:
        return _decode_tuple(arguments, value, where)
    if kind is types.NoneType:
        fits = value is None
    elif kind is float:
        fits = type(value) in (int, float) and abs(value) <= sys.float_info.max
    else:
        fits = type(value) is (origin or kind)
    if fits and kind is int:
        fits = abs(value) < 2**63
    elif fits and kind is str:
        fits = len(value) <= _LONGEST and not any(unicodedata.category(letter) in ("Cc", "Cs") for letter in value)
    if not fits:
        raise ValueError(f"{where} must be {_EXPECTED.get(origin or kind, 'null')}, got {_shorten(value)}")
    return float(value) if kind is float else value


def _decode_fields(kind: Any, value: Any, where: str) -> Any:
    if not isinstance(value, dict):
        raise ValueError(f"{where} must be an object, got {_shorten(value)}")
    kinds = typing.get_type_hints(kind)
    fields = {field.name: field for field in dataclasses.fields(kind)}
    missing = [name for name, field in fields.items() if name not in value and _is_required(field)]
    if strange := [*missing, *(name for name in value if name not in fields)]:
        raise ValueError(f"{where} {'lacks' if missing else 'has a foreign field'} {_shorten(strange[0])}")
    return kind(**{name: decode(kinds[name], entry, f"{where}.{name}") for name, entry in value.items()})


def _is_required(field: dataclasses.Field[Any]) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def _decode_union(kinds: tuple[Any, ...], value: Any, where: str) -> Any:
    problem = ""  # not the errors, which would hold the frames of all callers, and what is in them
    for kind in kinds:
        try:
            return decode(kind, value, where)
        except ValueError as error:
            problem = problem or str(error)
    raise ValueError(problem)


def _decode_tuple(kinds: tuple[Any, ...], value: Any, where: str) -> tuple[Any, ...]:
    if not isinstance(value, list):
        raise ValueError(f"{where} must be a list, got {_shorten(value)}")
    if kinds[1:] == (...,):
        kinds = kinds[:1] * len(value)
    if len(kinds) != len(value):
        raise ValueError(f"{where} must have {len(kinds)} entries, got {len(value)}")
    return tuple(decode(kind, entry, f"{where}[{i}]") for i, (kind, entry) in enumerate(zip(kinds, value, strict=True)))


def _shorten(value: Any) -> str:
    text = ascii(value)
    return text if len(text) <= 40 else text[:37] + "..."
