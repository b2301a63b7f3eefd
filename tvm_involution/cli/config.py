# SPDX-License-Identifier: Apache-2.0
"""`tvm-involution config`."""

from __future__ import annotations

from pathlib import Path

import click

from .. import cpp
from .command import Command


@click.command("config", cls=Command)
@click.option("--includedir", is_flag=True, help="Print the folder of tvm_involution.hpp.")
@click.option("--cxxflags", is_flag=True, help="Print the compiler's options.")
@click.option("--ldflags", is_flag=True, help="Print the linker's options.")
@click.option("--cmake", is_flag=True, help="Print CMake's options, for find_package(tvm_involution).")
@click.option(
    "--wheels",
    type=click.Path(path_type=Path),
    help="Folder with another machine's wheels apache-tvm and apache-tvm-ffi, unpacked; the installed ones by default.",
)
def config_command(includedir: bool, cxxflags: bool, ldflags: bool, cmake: bool, wheels: Path | None) -> None:
    """Show how C++ programs are built that run libraries by tvm_involution.hpp.

    \b
    Examples:
      c++ main.cpp $(tvm-involution config --cxxflags --ldflags)
      cmake -S . -B build $(tvm-involution config --cmake)
    """
    wheels = wheels.absolute() if wheels is not None else None
    words: list[str] = []
    if includedir:
        words.append(str(cpp.include_dir()))
    if cxxflags:
        words += cpp.compile_flags(wheels)
    if ldflags:
        words += cpp.link_flags(wheels)
    if cmake:
        tvm, ffi = cpp.wheels_dirs(wheels)
        words += [f"-Dtvm_involution_DIR={cpp.cmake_dir()}", f"-DTVM_DIR={tvm}", f"-DTVM_FFI_DIR={ffi}"]
    if not words:
        raise click.UsageError("nothing is asked for; expected --includedir, --cxxflags, --ldflags or --cmake")
    click.echo(" ".join(words))
