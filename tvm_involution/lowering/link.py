# SPDX-License-Identifier: Apache-2.0
"""Link a compiled executable into a shared object, for this machine's architecture or another."""

from __future__ import annotations

import importlib.util
import platform
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import tvm
from tvm import relax

from ..errors import UserError
from .cuda_code import compile_cuda
from .pack_imports import cuda_imports_packer


def link_shared(executable: relax.VMExecutable, target: tvm.target.Target, path: Path) -> None:
    """Write `executable` as the shared object `path`.

    The linker is the C compiler of the target's architecture: `cc` for this machine's, `<triple>-gcc` for another,
    else Zig's (`pip install "tvm-involution[cross]"`), which links for all of them.

    Raises:
        UserError: no such linker, or it failed.
    """
    export_library(executable, target, path, linker_of(target))


def export_library(
    executable: relax.VMExecutable, target: tvm.target.Target, path: str | Path, linker: list[str]
) -> None:
    """Write `executable` as the shared object `path`, by the command `linker`."""
    options = {}
    if target.kind.name == "cuda":
        architecture = str(target.attrs["arch"])
        options["fpack_imports"] = cuda_imports_packer(lambda source: compile_cuda(source, architecture))
    executable.export_library(str(path), fcompile=_shared_linker(linker, target_triple(target)), **options)


def _shared_linker(command: list[str], triple: str) -> Callable[..., None]:
    """Return what TVM's `export_library` takes as `fcompile`: link objects for `triple` by `command`."""

    def link(output: str, objects: list[str], options: list[str] | None = None, **_: object) -> None:
        _run([*command, "-shared", "-fPIC", "-o", output, *objects, *(options or [])])

    link.output_format = "so"  # type: ignore[attr-defined]
    link.get_target_triple = lambda: triple  # type: ignore[attr-defined]
    return link


def linker_of(target: tvm.target.Target) -> list[str]:
    """Return the command that links for the machine that runs `target`.

    Raises:
        UserError: there is none.
    """
    return _linker(target_triple(target))


def target_triple(target: tvm.target.Target) -> str:
    """Return the LLVM triple of the machine that runs `target`: its own, its host's, else this one's."""
    host = target.host if target.host is not None else target
    return str(host.attrs.get("mtriple") or tvm.target.codegen.llvm_get_system_triple())


def _linker(triple: str) -> list[str]:
    arch = triple.split("-", 1)[0]
    if arch == platform.machine():
        for name in ("cc", "gcc", "clang"):
            if found := shutil.which(name):
                return [found]
    elif found := shutil.which(f"{triple}-gcc"):
        return [found]
    if (zig := _zig()) is not None:
        return [zig, "cc", "-target", f"{arch}-linux-gnu"]
    raise UserError(
        f'no linker for {triple}: install a C compiler for it, or `pip install "tvm-involution[cross]"`, '
        "which links for every architecture"
    )


def _zig() -> str | None:
    """Return Zig's own program: `python -m ziglang` would look for modules in the current folder first."""
    spec = importlib.util.find_spec("ziglang")
    folders = spec.submodule_search_locations if spec is not None else None
    return next((str(path) for folder in folders or () if (path := Path(folder, "zig")).is_file()), None)


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        # what the driver of the linker says last is that the linker failed
        lines = [line for line in done.stderr.strip().splitlines() if not re.match("collect2: |.*linker command", line)]
        last = (lines or ["no message"])[-1]
        raise UserError(f"the linker {command[0]} failed: {last}; check that it can link a shared object")
