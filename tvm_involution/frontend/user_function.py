# SPDX-License-Identifier: Apache-2.0
"""`package.module:function`: import it, also from the current folder, and call it."""

from __future__ import annotations

import importlib
import importlib.machinery
import importlib.util
import inspect
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from ..errors import UserError
from ..runtime.library_file import read_metadata


def call_user_function(reference: str, **arguments: Any) -> Any:
    """Return what `package.module:function` returns when it is called with `arguments`.

    Modules are looked for in the current folder too, which `python -m` does and a console script does not; but there
    last, so that a file that is called like somebody's module is not taken for it.

    Raises:
        UserError: no such function, one that takes arguments, whatever its code raises.
    """
    module_name, _, function_name = reference.partition(":")
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    try:
        function = getattr(_import(module_name), function_name)
    except Exception as error:  # its own code runs
        raise UserError(f"cannot import {reference}: {_reason(error)}; expected package.module:function") from error
    except SystemExit as error:
        raise UserError(f"cannot import {reference}: it ends the process ({error}); guard what it runs") from error
    if not callable(function):
        raise UserError(f"{reference} is a {type(function).__name__}; expected a function that returns a module")
    _check_arguments(function, reference, arguments)
    try:
        return function(**arguments)
    except UserError:
        raise
    except (Exception, SystemExit) as error:
        raise UserError(f"{reference} failed: {_reason(error)}; --debug shows where") from error


def source_file(reference: str) -> Path | None:
    """Return the file in which `package.module:function` is, without importing it; None where none is found."""
    parts = reference.partition(":")[0].split(".")
    for folder in (*sys.path, os.getcwd()):
        for file in (Path(folder, *parts).with_suffix(".py"), Path(folder, *parts, "__init__.py")):
            if ":" in reference and file.is_file():
                return file
    return None


def _import(name: str) -> ModuleType:
    """Import a module; its source, where a library of ours that is called like it lies before it in Python's order."""
    found = importlib.util.find_spec(name)
    if found is None or not isinstance(found.loader, importlib.machinery.ExtensionFileLoader):
        return importlib.import_module(name)
    source = Path(str(found.origin)).with_name(f"{name.rpartition('.')[2]}.py")
    spec = importlib.util.spec_from_file_location(name, source)
    if not source.is_file() or not _is_library(str(found.origin)) or spec is None or spec.loader is None:
        return importlib.import_module(name)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def _is_library(path: str) -> bool:
    try:
        read_metadata(path)
    except UserError:
        return False
    return True


def _check_arguments(function: Callable[..., Any], reference: str, arguments: Mapping[str, Any]) -> None:
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # some built-in functions do not tell
        return
    try:
        signature.bind(**arguments)
    except TypeError as error:
        if arguments:
            raise UserError(
                f"{reference} cannot be called with {', '.join(arguments)} ({error}); leave that out, or have the "
                "function take it"
            ) from error
        raise UserError(
            f"{reference} cannot be called without arguments ({error}); expected a function of none that returns a "
            "module"
        ) from error


def _reason(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
