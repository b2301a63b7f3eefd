# SPDX-License-Identifier: Apache-2.0
"""Checks of what users pass to public functions: each argument against its annotation, in one place.

`checked` reads the annotations; `AtLeast` in one adds a lower bound. numpy's whole numbers and floats become Python's,
which torch and TVM want.
"""

from __future__ import annotations

import collections.abc
import functools
import inspect
import math
import numbers
import os
import sys
import types
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin, get_type_hints

from .errors import UserError

_Function = TypeVar("_Function", bound=Callable[..., Any])
# beyond this no tensor fits, and arithmetic on sizes leaves 64 bits
_LARGEST = 1 << 31
_SHOWN = 80


@dataclass(frozen=True)
class AtLeast:
    """The smallest value that an annotated number may have."""

    minimum: int


UNCHECKED = "unchecked"
"""in an annotation: the function itself says better what it takes"""
Size = Annotated[int, AtLeast(1)]
"""a whole number of at least 1"""
Count = Annotated[int, AtLeast(0)]
"""a whole number of at least 0"""


class _Unfit(Exception):
    """The message says what was expected."""


def checked(function: _Function) -> _Function:
    """Make a function, or a class's constructor, check its arguments against its annotations.

    Raises, when called:
        UserError: an argument is missing, surplus or of another type, or a number is out of range or not finite.
    """
    if isinstance(function, type):
        function.__init__ = checked(function.__init__)  # type: ignore[misc]
        return function  # type: ignore[return-value]
    signature = inspect.signature(function)
    name = function.__qualname__.removesuffix(".__init__")

    @functools.wraps(function)
    def call(*args: Any, **keywords: Any) -> Any:
        torch = sys.modules.get("torch")
        if torch is not None and torch.compiler.is_dynamo_compiling():
            # torch.compile follows every line, and cannot follow how annotations are read
            return function(*args, **keywords)
        try:
            bound = signature.bind(*args, **keywords)
        except TypeError as error:
            takes = ", ".join(key for key in signature.parameters if key != "self")
            raise UserError(f"{name}: {error}; it takes {takes}") from error
        hints = _hints(function)
        for key, value in bound.arguments.items():
            if key in hints and signature.parameters[key].kind not in (
                inspect.Parameter.VAR_POSITIONAL,
                inspect.Parameter.VAR_KEYWORD,
            ):
                bound.arguments[key] = check_argument(f"{name}: {key}", value, hints[key])
        return function(*bound.args, **bound.kwargs)

    return call  # type: ignore[return-value]


@functools.cache
def _hints(function: Callable[..., Any]) -> dict[str, Any]:
    return get_type_hints(function, include_extras=True)


def check_argument(name: str, value: Any, hint: Any) -> Any:
    """Return `value` as `hint`, an annotation, wants it.

    Raises:
        UserError: it is something else, with what was expected and what came.
    """
    try:
        return _fit(value, hint)
    except _Unfit as expected:
        raise UserError(f"{name} must be {expected}, got {shown(value)}") from None


def shown(value: Any) -> str:
    """Return a value for a message: short, on one line, with its type where that is not plain."""
    try:
        if hasattr(value, "shape") and hasattr(value, "dtype"):
            return f"{type(value).__name__} of shape {list(value.shape)}, {value.dtype}"
        text = " ".join(repr(value).split())
    except Exception:  # a foreign object's repr raises whatever it likes
        text = object.__repr__(value)
    text = text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."
    return text if value is None or isinstance(value, (bool, int, float, str)) else f"{text} ({type(value).__name__})"


def _fit(value: Any, hint: Any) -> Any:
    origin, parameters = get_origin(hint), get_args(hint)
    if hint is Any or isinstance(hint, TypeVar):
        return value
    if origin is Annotated:
        if UNCHECKED in parameters[1:]:
            return value
        least = next((m.minimum for m in parameters[1:] if isinstance(m, AtLeast)), None)
        value = _fit(value, parameters[0])
        if least is not None and _is_plain(value) and value < least:
            raise _Unfit(_words(hint))
        return value
    if origin in (Union, types.UnionType):
        for choice in parameters:
            try:
                return _fit(value, choice)
            except _Unfit:
                continue
        raise _Unfit(" or ".join(dict.fromkeys(_words(choice) for choice in parameters)))
    if hint is None or hint is type(None):
        return _require(value, value is None, hint)
    if hint is bool:
        return bool(_require(value, isinstance(value, bool) or type(value).__name__ in ("bool_", "SymBool"), hint))
    if hint is int:
        return _whole(value)
    if hint is float:
        return _real(value)
    if origin in (collections.abc.Sequence, list, tuple):
        return _sequence(value, hint, origin, parameters)
    if origin is collections.abc.Callable or hint is collections.abc.Callable:
        return _require(value, callable(value), hint)
    if origin is os.PathLike:
        return _require(value, isinstance(value, os.PathLike), hint)
    kind = origin or hint
    return _require(value, not isinstance(kind, type) or isinstance(value, kind), hint)


def _require(value: Any, fits: bool, hint: Any) -> Any:
    if not fits:
        raise _Unfit(_words(hint))
    return value


def _is_plain(value: Any) -> bool:
    return isinstance(value, (int, float))


def _whole(value: Any) -> Any:
    if _is_symbolic(value):
        return value
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise _Unfit(_words(int))
    if not -_LARGEST <= int(value) < _LARGEST:
        raise _Unfit(f"{_words(int)} below {_LARGEST}")
    return int(value)


def _real(value: Any) -> Any:
    if _is_symbolic(value):
        return value
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise _Unfit(_words(float))
    try:
        number = float(value)
    except (OverflowError, ValueError):
        number = math.inf
    if not math.isfinite(number):
        raise _Unfit("a finite number")
    return number if not isinstance(value, numbers.Integral) else value


def _is_symbolic(value: Any) -> bool:
    """Whether torch or TVM put an expression where a number will be."""
    torch, tvm = sys.modules.get("torch"), sys.modules.get("tvm")
    return (torch is not None and isinstance(value, (torch.SymInt, torch.SymFloat))) or (
        tvm is not None and isinstance(value, tvm.ir.Expr)
    )


def _sequence(value: Any, hint: Any, origin: Any, parameters: tuple[Any, ...]) -> Any:
    if isinstance(value, (str, bytes)) or not (
        isinstance(value, collections.abc.Sequence) or type(value).__name__ in ("ndarray", "Array", "Size")
    ):
        raise _Unfit(_words(hint))
    values = list(value)
    if origin is tuple and parameters[-1:] != (Ellipsis,):
        if len(values) != len(parameters):
            raise _Unfit(_words(hint))
        kinds: Any = parameters
    else:
        kinds = [parameters[0]] * len(values) if parameters else [Any] * len(values)
    try:
        fitted = [_fit(part, kind) for part, kind in zip(values, kinds, strict=True)]
    except _Unfit as unfit:
        raise _Unfit(f"{_words(hint)} (each {unfit})") from None
    return tuple(fitted) if isinstance(value, tuple) or origin is tuple else fitted


def _words(hint: Any) -> str:
    origin, parameters = get_origin(hint), get_args(hint)
    plain = {int: "a whole number", float: "a number", bool: "True or False", str: "a string", type(None): "None"}
    if hint in plain:
        return plain[hint]
    if origin is Annotated:
        least = [f" of at least {m.minimum}" for m in parameters[1:] if isinstance(m, AtLeast)]
        return _words(parameters[0]) + "".join(least)
    if origin in (Union, types.UnionType):
        return " or ".join(_words(choice) for choice in parameters)
    if origin is tuple and parameters[-1:] != (Ellipsis,):
        return f"a tuple of {len(parameters)} ({', '.join(map(_words, parameters))})"
    if origin in (collections.abc.Sequence, list, tuple):
        return f"a sequence of {_plural(parameters[0])}" if parameters else "a sequence"
    if origin is os.PathLike or hint is os.PathLike:
        return "a path"
    if origin is collections.abc.Callable:
        return "a function"
    return f"a {getattr(origin or hint, '__name__', str(hint))}"


def _plural(hint: Any) -> str:
    word, *rest = _words(hint).removeprefix("a ").partition(" of ")
    return f"{word}s{''.join(rest)}"
