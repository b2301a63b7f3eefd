# SPDX-License-Identifier: Apache-2.0
"""Where C++ programs find `tvm_involution.hpp`, and the headers and libraries of the wheels that it stands on."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from .errors import UserError

_PACKAGE = Path(__file__).resolve().parent
_LIBRARIES = {"tvm": ("tvm_runtime", "tvm_runtime_extra"), "tvm_ffi": ("tvm_ffi",)}


def include_dir() -> Path:
    """Return the folder of `tvm_involution.hpp`."""
    return _PACKAGE / "include"


def cmake_dir() -> Path:
    """Return the folder of the file by which CMake's `find_package(tvm_involution)` finds the header."""
    return _PACKAGE / "cmake"


def compile_flags(wheels: Path | None = None) -> list[str]:
    """Return what a C++ compiler is told.

    Args:
        wheels: a folder in which the wheels apache-tvm and apache-tvm-ffi of another machine are unpacked; the
            installed ones by default.

    Raises:
        UserError: they are not there.
    """
    folders = [include_dir(), *(folder / "include" for folder in _wheels(wheels).values())]
    return ["-std=c++17", *(f"-I{folder}" for folder in folders)]


def link_flags(wheels: Path | None = None) -> list[str]:
    """Return what the linker is told; libraries of this machine are found again where they are now.

    Args and errors as `compile_flags`.
    """
    folders = {name: folder / "lib" for name, folder in _wheels(wheels).items()}
    # the runtime registers itself when it is loaded; nothing in a program names it
    flags = [*(f"-L{folder}" for folder in folders.values()), "-Wl,--no-as-needed"]
    for name, folder in folders.items():
        flags += [f"-l{library}" for library in _LIBRARIES[name] if (folder / f"lib{library}.so").is_file()]
    flags += ["-Wl,--as-needed", "-pthread"]
    if wheels is None:
        return [*flags, *(f"-Wl,-rpath,{folder}" for folder in folders.values())]
    # the libraries that these need are on the other machine
    return [*flags, "-Wl,--allow-shlib-undefined"]


def wheels_dirs(wheels: Path | None = None) -> list[Path]:
    """Return the folders of the packages `tvm` and `tvm_ffi`.

    Args and errors as `compile_flags`.
    """
    return list(_wheels(wheels).values())


def _wheels(wheels: Path | None) -> dict[str, Path]:
    found = {}
    for name in _LIBRARIES:
        if wheels is None:
            spec = importlib.util.find_spec(name)
            folder = Path(spec.origin).parent if spec is not None and spec.origin is not None else None
        else:
            folder = wheels / name
        if folder is None or not (folder / "include").is_dir() or not (folder / "lib").is_dir():
            place = "is not installed" if wheels is None else f"is not in {wheels}"
            raise UserError(f"the package {name} {place}; expected the wheels apache-tvm and apache-tvm-ffi there")
        found[name] = folder
    return found
