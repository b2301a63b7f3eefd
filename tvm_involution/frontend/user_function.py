# SPDX-License-Identifier: Apache-2.0
"""`package.module:function`: import it, also from the current folder, and call it."""

from __future__ import annotations

import importlib
import importlib.machinery
import importlib.util
import inspect
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..errors import UserError


def call_user_function(reference: str) -> Any:
    """Return what `package.module:function` returns.

    Modules are looked for in the current folder too, which `python -m` does and a console script does not; but there
    last, so that a file that is called like somebody's module is not taken for it.

    Raises:
        UserError: no such function, one that takes arguments, whatever its code raises.
    """
    module_name, _, function_name = reference.partition(":")
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    try:
        module = importlib.import_module(module_name)
        function = getattr(module, function_name)
    except Exception as error:  # its own code runs
        if (library := _in_place_of_source(module_name)) is not None:
            raise UserError(
                f"cannot import {reference}: Python takes {library} for it; move that library out of the way"
            ) from error
        raise UserError(f"cannot import {reference}: {_reason(error)}; expected package.module:function") from error
    except SystemExit as error:
        raise UserError(f"cannot import {reference}: it ends the process ({error}); guard what it runs") from error
    if not callable(function):
        raise UserError(f"{reference} is a {type(function).__name__}; expected a function that returns a module")
    _check_without_arguments(function, reference)
    try:
        return function()
    except UserError:
        raise
    except (Exception, SystemExit) as error:
        raise UserError(f"{reference} failed: {_reason(error)}; --debug shows where") from error


def check_not_shadowed(model: str, output: Path) -> None:
    """Check that the library `output` would not be imported in place of the module that `model` names.

    Raises:
        UserError: it would.
    """
    name = model.partition(":")[0].rpartition(".")[2]
    if not any(output.name == name + suffix for suffix in importlib.machinery.EXTENSION_SUFFIXES):
        return
    source = output.absolute().parent / f"{name}.py"
    if source.is_file():
        raise UserError(
            f"{output} beside {source.name} would be imported in its place the next time; choose another name, such as "
            f"{output.with_name(f'{name}_compiled.so')}"
        )


def _in_place_of_source(module_name: str) -> str | None:
    """Return the library that Python finds for a module and that lies beside the module's source."""
    try:
        spec = importlib.util.find_spec(module_name)
    except (ImportError, ValueError, AttributeError):
        return None
    found = spec.origin if spec is not None else None
    if not isinstance(spec and spec.loader, importlib.machinery.ExtensionFileLoader) or found is None:
        return None
    source = Path(found).with_name(f"{module_name.rpartition('.')[2]}.py")
    return found if source.is_file() else None


def _check_without_arguments(function: Callable[..., Any], reference: str) -> None:
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # some built-in functions do not tell
        return
    try:
        signature.bind()
    except TypeError as error:
        raise UserError(
            f"{reference} cannot be called without arguments ({error}); expected a function of none that returns a "
            "module"
        ) from error


def _reason(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
