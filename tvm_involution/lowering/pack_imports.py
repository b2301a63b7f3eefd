# SPDX-License-Identifier: Apache-2.0
"""Pack what a library embeds (bytecode, weights, kernels) with machine code in the place of CUDA C.

`export_library` of TVM 0.27 serializes a module for CUDA as it stands: on a machine without a GPU as source, which only
a process with the whole compiler could load.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path

import tvm
import tvm_ffi

_ROOT, _CUDA = b"_lib", b"cuda"


def cuda_imports_packer(compile_source: Callable[[str], bytes]) -> Callable[[tvm.runtime.Module, bool, str, str], str]:
    """Return what `export_library` takes as `fpack_imports`.

    Args:
        compile_source: gives the machine code (a cubin) of CUDA C.
    """

    def pack(module: tvm.runtime.Module, is_system_lib: bool, prefix: str, folder: str) -> str:
        assert not is_system_lib
        packed = bytes(tvm_ffi.get_global_func("runtime.ModulePackImportsToTensor")(module).numpy())
        blob, assembly = Path(folder, "imports.bin"), Path(folder, "imports.s")
        blob.write_bytes(compile_cuda_modules(packed, compile_source))
        symbol = prefix + tvm_ffi.get_global_func("runtime.ModuleImportsBlobName")()
        assembly.write_text(
            f'.section .rodata\n.globl {symbol}\n.balign 64\n{symbol}:\n.incbin "{blob}"\n'
            '.section .note.GNU-stack,"",%progbits\n'
        )
        return str(assembly)

    return pack


def compile_cuda_modules(packed: bytes, compile_source: Callable[[str], bytes]) -> bytes:
    """Return packed imports in which every module of CUDA C is one of machine code.

    The format is that of TVM's `ModulePackImportsToTensor`: the length; the tree of imports, as two arrays; for each
    module its kind and, but for the root, its bytes. All numbers have 64 bits.
    """
    reader = _Reader(packed)
    assert reader.number() == len(packed) - 8
    start = reader.position
    modules = len(reader.numbers()) - 1
    reader.numbers()
    pieces = [packed[start : reader.position]]
    for _ in range(modules):
        kind = reader.string()
        pieces.append(_string(kind))
        if kind != _ROOT:
            content = reader.string()
            pieces.append(_string(_compile_module(content, compile_source) if kind == _CUDA else content))
    assert reader.position == len(packed)
    return _string(b"".join(pieces))


def packed_cuda_modules(packed: bytes) -> list[tuple[str, bytes]]:
    """Return the format (`cuda`, `cubin`, ...) and the code of each module for CUDA in packed imports."""
    found: list[tuple[str, bytes]] = []
    reader = _Reader(packed)
    reader.number()
    modules = len(reader.numbers()) - 1
    reader.numbers()
    for _ in range(modules):
        kind = reader.string()
        if kind != _ROOT:
            content = reader.string()
            if kind == _CUDA:
                form, _, code = _split_module(content)
                found.append((form.decode(), code))
    return found


def _compile_module(content: bytes, compile_source: Callable[[str], bytes]) -> bytes:
    form, functions, code = _split_module(content)
    if form != _CUDA:  # compiled already, where there is a GPU
        return content
    return _string(b"cubin") + functions + _string(compile_source(code.decode()))


def _split_module(content: bytes) -> tuple[bytes, bytes, bytes]:
    """Return the format of a module's code, the functions in it as they are serialized, and the code."""
    reader = _Reader(content)
    form = reader.string()
    start = reader.position
    for _ in range(reader.number()):
        reader.string()  # key
        reader.string()  # name
        reader.skip(reader.number(), 4)  # types of the arguments
        for _ in range(reader.number()):
            reader.string()  # tags of launch parameters
        reader.skip(reader.number(), 4)  # tags of the arguments
    functions = content[start : reader.position]
    code = reader.string()
    assert reader.position == len(content)
    return form, functions, code


def _string(content: bytes) -> bytes:
    return struct.pack("<Q", len(content)) + content


class _Reader:
    """Reads TVM's serialization from the front."""

    def __init__(self, content: bytes) -> None:
        self._content = content
        self.position = 0

    def number(self) -> int:
        (value,) = struct.unpack_from("<Q", self._content, self.position)
        self.position += 8
        return int(value)

    def numbers(self) -> list[int]:
        return [self.number() for _ in range(self.number())]

    def string(self) -> bytes:
        length = self.number()
        self.skip(length)
        return self._content[self.position - length : self.position]

    def skip(self, count: int, size: int = 1) -> None:
        self.position += count * size
        assert self.position <= len(self._content)
