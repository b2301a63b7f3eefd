# SPDX-License-Identifier: Apache-2.0
"""Run the CUDA C that TVM generates on this CPU, so that a kernel's correctness can be tested without a GPU.

The source of a compiled program becomes C++ beside `cuda_emulator.h`: shared arrays and inline assembly are replaced by
calls into that header, g++ compiles it, and a process of its own runs it on arrays in files. The header says what it
notices.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import ml_dtypes
import numpy as np
import tvm
from tvm import s_tir, tirx

from tvm_involution.target import lowering_config

HEADER = Path(__file__).with_name("cuda_emulator.h")
# registers that are read before they are written hold huge numbers
_FLAGS = [
    "-std=c++17",
    "-O1",
    "-w",
    "-march=native",
    "-fwrapv",
    "-fno-strict-aliasing",
    "-ftrivial-auto-var-init=pattern",
]
available = shutil.which("g++") is not None


@dataclass(frozen=True)
class Array:
    """A parameter or a temporary of a program."""

    name: str
    shape: tuple[int, ...]
    dtype: str

    @property
    def bytes(self) -> int:
        """The array's size."""
        return int(np.prod(self.shape)) * tvm.DataType(self.dtype).bits // 8


@dataclass(frozen=True)
class Launch:
    """One kernel's launch."""

    kernel: str
    arguments: tuple[str, ...]
    """names of arrays"""
    grid: tuple[int, int, int]
    block: tuple[int, int, int]
    dynamic_shared_bytes: int

    @property
    def threads(self) -> int:
        """Threads of a block."""
        return int(np.prod(self.block))


@dataclass(frozen=True)
class CudaProgram:
    """A tensor program built for CUDA."""

    source: str
    """CUDA C"""
    parameters: tuple[Array, ...]
    temporaries: tuple[Array, ...]
    launches: tuple[Launch, ...]


def build_cuda(program: tirx.PrimFunc | tvm.IRModule | s_tir.Schedule, target: tvm.target.Target) -> CudaProgram:
    """Build a scheduled program of static shapes, called `main` where it is in a module."""
    mod = program.mod if isinstance(program, s_tir.Schedule) else program
    func = mod["main"] if isinstance(mod, tvm.IRModule) else mod
    func = func.with_attr("global_symbol", "main")
    names = [f"arg{i}" for i in range(len(func.params))]
    parameters = tuple(
        Array(name, tuple(int(d) for d in buffer.shape), str(buffer.dtype))
        for name, buffer in zip(names, func.params, strict=True)
    )
    snapshot = _AfterSplit()
    with tvm.transform.PassContext(instruments=[snapshot], config={**lowering_config(target), **tvm.transform.PassContext.current().config}):
        library = tvm.compile(tvm.IRModule({"main": func}), target)
    assert snapshot.mod is not None
    temporaries, launches = _read_host(snapshot.mod["main"], names)
    source = "\n".join(module.inspect_source() for module in library.mod.imports)
    return CudaProgram(source, parameters, temporaries, launches)


def run_cuda(
    program: CudaProgram | tirx.PrimFunc | tvm.IRModule | s_tir.Schedule,
    inputs: Sequence[np.ndarray],
    target: tvm.target.Target,
) -> list[np.ndarray]:
    """Run a program on arrays in the place of its first parameters; return the others, its outputs.

    Raises:
        AssertionError: a kernel accessed memory outside its arrays, diverged at a barrier or does not compile.
    """
    built = program if isinstance(program, CudaProgram) else build_cuda(program, target)
    with tempfile.TemporaryDirectory(prefix="cuda-emulator-") as folder:
        source, binary = Path(folder, "program.cpp"), Path(folder, "program")
        source.write_text(as_cpp(built))
        command = ["g++", *_FLAGS, f"-I{HEADER.parent}", source, "-o", binary]
        compiled = subprocess.run(command, capture_output=True, text=True)
        assert compiled.returncode == 0, f"{compiled.stderr}\n{built.source}"
        files = [Path(folder, array.name) for array in built.parameters]
        for file, array, value in zip(files, built.parameters, inputs, strict=False):
            assert value.shape == array.shape and str(value.dtype) == array.dtype, (array, value.shape, value.dtype)
            file.write_bytes(np.ascontiguousarray(value).tobytes())
        ran = subprocess.run([binary, *files], capture_output=True, text=True, timeout=120)
        assert ran.returncode == 0, ran.stderr or ran.returncode
        outputs = zip(files[len(inputs) :], built.parameters[len(inputs) :], strict=True)
        return [np.frombuffer(file.read_bytes(), _dtype(array)).reshape(array.shape) for file, array in outputs]


def as_cpp(program: CudaProgram) -> str:
    """Return the program as C++; its `main` takes a file a parameter: those that exist are read, the others written."""
    body = re.sub(r"#include <(cuda|mma)\w*\.h>", "", program.source)
    body = _replace_shared(_replace_assembly(body))
    arrays = (*program.parameters, *program.temporaries)
    lines = [f'static emulator::Memory& {a.name} = emulator::memory("{a.name}", {a.bytes});' for a in arrays]
    lines.append("int main(int count, char** files) {")
    parameters = ", ".join(f"&{array.name}" for array in program.parameters)
    lines.append(f"  emulator::Memory* parameters[] = {{{parameters}}};")
    lines.append("  emulator::read_files(parameters, files + 1, count - 1);")
    for launch in program.launches:
        arguments = ", ".join(f"emulator::Argument{{{name}.data}}" for name in launch.arguments)
        grid, block = (", ".join(map(str, extent)) for extent in (launch.grid, launch.block))
        call = f"[] {{ {launch.kernel}({arguments}); }}"
        lines.append(f"  emulator::launch({call}, {{{grid}}}, {{{block}}}, {launch.dynamic_shared_bytes});")
    lines.append("  emulator::write_files(parameters, files + 1, count - 1);")
    lines.append("}\n")
    return "\n".join([f'#include "{HEADER.name}"', body, *lines])


@tvm.instrument.pass_instrument
class _AfterSplit:
    """Keeps the module as it is once kernels and host code are apart."""

    def __init__(self) -> None:
        self.mod: tvm.IRModule | None = None

    def run_after_pass(self, mod: tvm.IRModule, info: tvm.transform.PassInfo) -> None:
        if info.name == "tirx.SplitHostDevice":
            self.mod = mod


def _read_host(main: tirx.PrimFunc, names: Sequence[str]) -> tuple[tuple[Array, ...], tuple[Launch, ...]]:
    """Return the temporaries and the launches of the host's function."""
    known = dict(zip(main.params, names, strict=True))
    temporaries: list[Array] = []
    launches: list[Launch] = []
    for statement in _statements(main.body):
        if isinstance(statement, tirx.AllocBuffer):
            buffer = statement.buffer
            array = Array(f"temporary{len(temporaries)}", tuple(int(d) for d in buffer.shape), str(buffer.dtype))
            known[buffer] = array.name
            temporaries.append(array)
        elif isinstance(statement, tirx.DeclBuffer):
            known[statement.buffer] = known[statement.data.args[0]]
        elif isinstance(statement, tirx.Evaluate) and statement.value.op.name == "tirx.call_ffi_kernel":
            launches.append(_read_launch(statement.value, known))
    return tuple(temporaries), tuple(launches)


def _statements(body: tirx.Stmt) -> Iterator[tirx.Stmt]:
    if isinstance(body, tirx.SeqStmt):
        for statement in body.seq:
            yield from _statements(statement)
    elif isinstance(body, tirx.AttrStmt):
        yield from _statements(body.body)
    else:
        yield body


def _read_launch(call: tvm.ir.Call, known: dict[tvm.ir.Expr, str]) -> Launch:
    tags = [str(tag) for tag in call.attrs["launch_params"]]
    kernel, *arguments = call.args
    arguments, extents = arguments[: -len(tags)], dict(zip(tags, arguments[-len(tags) :], strict=True))
    grid, block = (tuple(int(extents.get(f"{kind}.{axis}", 1)) for axis in "xyz") for kind in ("blockIdx", "threadIdx"))
    shared = int(extents.get("tirx.use_dyn_shared_memory", 0))
    return Launch(str(kernel.value), tuple(known[argument.args[0]] for argument in arguments), grid, block, shared)


def _replace_shared(source: str) -> str:
    """Declare shared arrays as pointers to memory of the emulator's."""
    source = re.sub(r"extern __shared__ ([^;]*?)(\w+) (\w+)\[\];", r"\2* \3 = (\2*)emulator::dynamic_shared();", source)
    numbers = iter(range(1, 1000))

    def declare(match: re.Match[str]) -> str:
        dtype, name, count = match.groups()
        return f'{dtype}* {name} = ({dtype}*)emulator::shared({next(numbers)}, "{name}", sizeof({dtype}[{count}]));'

    return re.sub(r"__shared__ (?:alignas\(\d+\) |__align__\(\d+\) )?([\w ]+?) (\w+)\[(\d+)\];", declare, source)


# instructions of inline assembly and the functions that emulate them, with the pattern's groups as template arguments
_INSTRUCTIONS = {
    r"mma\.sync\.aligned\.m16n8k(\d+)\.row\.col\.f32\.(f16|bf16|tf32)\.\2\.f32": "mma_m16n8<{}, emulator::{}>",
    r"ldmatrix\.sync\.aligned\.m8n8\.x(\d)(\.trans)?\.shared(?:::cta)?\.b16": "ldmatrix<{}, {}>",
    r"cp\.async\.c[ag]\.shared(?:::cta)?\.global[\w.:]*": "cp_async",
    r"cp\.async\.commit_group": "cp_async_commit",
    r"cp\.async\.wait_group": "cp_async_wait_group",
    r"cp\.async\.wait_all": "cp_async_wait_all",
    r"cvt\.rna\.tf32\.f32": "round_to_tf32",
}
_GROUPS = {"f16": "F16", "bf16": "BF16", "tf32": "TF32", ".trans": "true", None: "false"}


def _replace_assembly(source: str) -> str:
    """Replace each statement of inline assembly by a call of the function that emulates it."""
    pieces, position = [], 0
    for match in re.finditer(r"\b(?:asm|__asm__)\s*(?:volatile|__volatile__)?\s*\(", source):
        end = _closing(source, match.end())
        pieces += [source[position : match.start()], _emulated(source[match.end() : end])]
        position = end + 1
    return "".join([*pieces, source[position:]])


def _emulated(statement: str) -> str:
    template, outputs, inputs, *_ = [*_split(statement, ":"), "", ""]
    text = "".join(re.findall(r'"((?:[^"\\]|\\.)*)"', template)).replace("\\n", " ")
    operands = []  # (is written, is read, expression)
    for operand in [*_split(outputs, ","), *_split(inputs, ",")]:
        if operand.strip():
            constraint, expression = re.fullmatch(r'\s*"([^"]*)"\s*\((.*)\)\s*', operand, re.DOTALL).groups()
            operands.append((constraint[0] in "=+", constraint[0] != "=", expression))
    for pattern, function in _INSTRUCTIONS.items():
        found = re.search(pattern + r"(?![\w.])([^;]*)", text)
        if found:
            *groups, arguments = found.groups()
            function = function.format(*(_GROUPS.get(group, group) for group in groups))
            break
    else:
        raise AssertionError(f"the emulator does not know this instruction: {text}")
    values, results = [], []
    for argument in re.findall(r"%\d+|(?<![\w%])\d+", arguments):
        written, read, expression = operands[int(argument[1:])] if argument[0] == "%" else (False, True, argument)
        if written:
            results.append(f"emulator::assign({expression}, v[{len(values)}]);")
        values.append(f"emulator::bits({expression})" if read else "0")
    call = f"emulator::{function}(v, {len(values)}, __LINE__);"
    guard = re.search(r"setp\.(eq|ne)\.\w+ p, %(\d+), (\d)", text)
    if guard:  # of a copy, with zeros otherwise where the text stores them
        relation, number, constant = guard.groups()
        condition = f"({operands[int(number)][2]}) {'==' if relation == 'eq' else '!='} {constant}"
        if "@!p st.shared" in text:
            values.append(f"({condition}) ? emulator::bits({operands[2][2]}) : 0")
            call = f"emulator::{function}(v, {len(values)}, __LINE__);"
        else:
            call = f"if ({condition}) {call}"
    return f"do {{ uint64_t v[] = {{{', '.join(values) or '0'}}}; {call} {' '.join(results)} }} while (0)"


def _split(text: str, separator: str) -> list[str]:
    """Split at a separator that is neither in a string nor in brackets."""
    pieces, depth, start, position = [], 0, 0, 0
    while position < len(text):
        char = text[position]
        if char == '"':
            position = re.compile(r'"(?:[^"\\]|\\.)*"').match(text, position).end()
            continue
        depth += (char in "([{") - (char in ")]}")
        if char == separator and depth == 0:
            pieces.append(text[start:position])
            start = position + 1
        position += 1
    return [*pieces, text[start:]]


def _closing(text: str, position: int) -> int:
    """Return where the bracket closes that opened before `position`."""
    depth = 1
    while depth:
        if text[position] == '"':
            position = re.compile(r'"(?:[^"\\]|\\.)*"').match(text, position).end()
            continue
        depth += (text[position] == "(") - (text[position] == ")")
        position += 1
    return position - 1


def _dtype(array: Array) -> np.dtype:
    return np.dtype(ml_dtypes.bfloat16 if array.dtype == "bfloat16" else array.dtype)
