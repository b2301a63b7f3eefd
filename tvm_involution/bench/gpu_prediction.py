# SPDX-License-Identifier: Apache-2.0
"""How long a network should take on a GPU that is not here, kernel by kernel, from its machine code.

A kernel takes as long as the slowest of: its bytes behind the second-level cache; what its threads load past the
first-level cache; its products on tensor cores; the issue of all its instructions; its chain of waiting, once for each
turn of thread blocks. And a launch. No more than a model: it knows nothing of bank conflicts or of what a
multiprocessor's blocks do to each other.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import tvm
from tvm import relax, sym, tirx
from tvm_ffi import structural_walk

from .. import lowering
from ..compute_capability import WARP_THREADS, multiprocessor
from ..errors import UserError
from ..relax import pipeline
from ..target import resolve_target
from .gpu_card import CACHE_SHARE, ISSUE_SHARE, LAUNCH_SECONDS, MEMORY_SHARE, TENSOR_SHARE, Cache, Card
from .machine_code import KernelCode, compile_kernels, cuda_sources
from .sass import Walk

BOUNDS = ("memory", "L2", "tensor cores", "issue", "latency")
# TVM's memory planner takes storage that is at most this many times too large, or too small
_MATCH = 16


@dataclass(frozen=True)
class Launch:
    """A kernel at its place in the network."""

    kernel: str
    rule: str
    moved: int
    """bytes to and from memory, behind the second-level cache"""
    operations: int
    """on tensor cores, with what fills up tiles"""
    seconds: Mapping[str, float]
    """by what might bind it, one of `BOUNDS`"""
    floor: float
    """seconds that its bytes or operations take at the card's rates"""
    shape: str
    """of its result"""

    @property
    def bound(self) -> str:
        """What binds it."""
        return max(self.seconds, key=lambda name: self.seconds[name])

    @property
    def total(self) -> float:
        """Seconds, with the launch."""
        return max(self.seconds.values()) + LAUNCH_SECONDS


def predict(imported: tvm.IRModule, card: Card, dtype: str, cuobjdump: str = "cuobjdump") -> list[Launch]:
    """Return the kernels that a call of a network launches, in order.

    Args:
        imported: from `import_exported_program`.

    Raises:
        UserError: no cuobjdump here.
        RuntimeError: nvcc's message.
    """
    target = resolve_target(f'{{"kind": "cuda", "arch": "{card.architecture}"}}')
    scheduled = pipeline.run(imported, target, dtype=dtype, until="schedule kernels")
    programs = {
        name: func.with_attr("global_symbol", name.name_hint)
        for name, func in scheduled.functions_items()
        if isinstance(func, tirx.PrimFunc)
    }
    built = lowering.build(tvm.IRModule(programs), target)
    code = compile_kernels("\n".join(cuda_sources(built.mod)), card.architecture, cuobjdump)
    if not all(kernel.walk.issued for kernel in code.values()):
        raise UserError(
            "predictions are made from machine code, which is not read here; put cuobjdump and nvdisasm on PATH, or "
            "`pip install nvidia-cuda-cuobjdump nvidia-cuda-nvdisasm`"
        )
    return list(_launches(scheduled, card, code))


def _launches(mod: tvm.IRModule, card: Card, code: Mapping[str, KernelCode]) -> Iterator[Launch]:
    cache, storages = Cache(card.cache_bytes), _Storages()
    for call, variable, last_uses in _calls(mod["main"]):
        func = mod[call.args[0]]
        name, arguments = call.args[0].name_hint, list(call.args[1])
        reads = [
            (storages.of(argument), int(_bytes(argument) * _touched(func, place)))
            for place, argument in enumerate(arguments)
        ]
        results = call.ty_args[0]
        fields = results.fields if isinstance(results, relax.TupleType) else [results]
        writes = storages.make(variable, [_type_bytes(field) for field in fields])
        moved = cache.run(reads, writes)
        for argument in last_uses:
            storages.free(argument)
        grids = _grids(func)
        arrays = sum(size for _, size in (*reads, *writes))
        shape = " x ".join(str(int(extent)) for extent in fields[0].shape)
        rule = str((func.attrs or {}).get("tvm_involution.rule", ""))
        for number, blocks in enumerate(grids):
            kernel = f"{name}_kernel{f'_{number}' if number else ''}"
            yield _launch(kernel, rule, moved // len(grids), arrays, blocks, shape, code[kernel], card)


def _launch(
    kernel: str, rule: str, moved: int, arrays: int, blocks: int, shape: str, code: KernelCode, card: Card
) -> Launch:
    walk, sms = code.walk, card.multiprocessors
    threads = code.threads
    warps = -(-threads // WARP_THREADS)
    # a multiprocessor has whole blocks to do
    uneven = -(-blocks // sms) * sms / blocks
    resident = multiprocessor(card.architecture).resident_blocks(threads, code.registers, code.shared_bytes)
    operations = 2 * walk.multiply_adds * warps * blocks
    instructions = sum(walk.issued.values()) * warps * blocks
    loaded = _cache_bytes(walk, code, arrays, blocks)
    near, far = walk.cycles
    cycles = near + (far - near) * min(1, moved / loaded)
    seconds = {
        "memory": moved / (card.memory * MEMORY_SHARE),
        "L2": loaded / (card.cache * CACHE_SHARE),
        "tensor cores": operations * uneven / (card.tensor * TENSOR_SHARE),
        "issue": instructions * uneven / (4 * sms * card.hertz * ISSUE_SHARE),
        "latency": math.ceil(blocks / (sms * resident)) * cycles / card.hertz,
    }
    floor = max(moved / card.memory, operations / card.tensor)
    return Launch(kernel, rule, moved, operations, seconds, floor, shape)


def _cache_bytes(walk: Walk, code: KernelCode, arrays: int, blocks: int) -> float:
    """Return what goes between the second-level cache and the multiprocessors.

    Where threads share nothing through shared memory, neighbours' loads hit the first-level cache: arrays count once.
    """
    lanes = code.threads * blocks
    if not code.shared_bytes:
        return min(arrays, (walk.loaded + walk.stored) * lanes)
    return (walk.loaded + walk.copied + walk.stored) * lanes


def _calls(main: relax.Function) -> Iterator[tuple[relax.Call, relax.Var, list[relax.Var]]]:
    """Yield the calls of tensor programs, what each is bound to, and what is used for the last time."""
    bindings = [binding for block in main.body.blocks for binding in block.bindings]
    found = []
    for binding in bindings:
        value = binding.value
        if isinstance(value, relax.Call) and getattr(value.op, "name", "") == "relax.call_tir":
            found.append((value, binding.var))
    last: dict[relax.Var, int] = {}
    for place, (call, _) in enumerate(found):
        for argument in call.args[1]:
            if isinstance(argument, relax.Var):
                last[argument] = place
    for place, (call, variable) in enumerate(found):
        yield call, variable, [argument for argument, at in last.items() if at == place]


class _Storages:
    """The storage of each array, taken again once an array is not used any more."""

    def __init__(self) -> None:
        self._of: dict[object, int] = {}
        self._sizes: list[int] = []
        self._free: list[int] = []

    def of(self, array: relax.Expr) -> int:
        """Return the storage of an array; an input or a constant gets one."""
        if array not in self._of:
            self._of[array] = self._new(0)
        return self._of[array]

    def make(self, variable: relax.Var, sizes: list[int]) -> list[tuple[int, int]]:
        """Return storage and bytes of each result of a call."""
        found = []
        for size in sizes:
            fitting = [one for one in self._free if size / _MATCH <= self._sizes[one] <= size * _MATCH]
            large = [one for one in fitting if self._sizes[one] >= size]
            storage = min(large or fitting, key=lambda one: abs(self._sizes[one] - size), default=None)
            if storage is None:
                storage = self._new(size)
            else:
                self._free.remove(storage)
                self._sizes[storage] = max(size, self._sizes[storage])
            found.append((storage, size))
        if len(found) == 1:
            self._of[variable] = found[0][0]
        return found

    def free(self, variable: relax.Var) -> None:
        """Give back the storage of what is not used any more; an input's has no size and is not taken."""
        storage = self._of[variable]
        if self._sizes[storage]:
            self._free.append(storage)

    def _new(self, size: int) -> int:
        self._sizes.append(size)
        return len(self._sizes) - 1


def _bytes(array: relax.Expr) -> int:
    return _type_bytes(array.ty)


def _type_bytes(kind: relax.Type) -> int:
    return math.prod(int(extent) for extent in kind.shape) * tvm.DataType(str(kind.dtype)).bits // 8


def _touched(func: tirx.PrimFunc, place: int) -> float:
    """Return the part of a parameter that a program reads: convolutions that stride leave rows and columns out."""
    buffer, analyzer = func.params[place], sym.Analyzer()
    found: list[list[tuple[int, int]]] = []

    def visit(load: tvm.ir.TensorLoad) -> None:
        if load.source.same_as(buffer):
            sets = [analyzer.modular_set(index) for index in load.indices[:-1]]
            found.append([(int(one.coeff), int(one.base)) for one in sets])

    structural_walk(func.body, (tvm.ir.TensorLoad, visit))
    axes = [set(axis) for axis in zip(*found, strict=True)]
    return 1 / math.prod(max(1, next(iter(axis))[0]) if len(axis) == 1 else 1 for axis in axes)


def _grids(func: tirx.PrimFunc) -> list[int]:
    """Return the thread blocks of each kernel of a scheduled program."""
    found: list[Counter[str]] = [Counter()]

    def visit(loop: tirx.For) -> None:
        if loop.thread_binding is not None and (tag := str(loop.thread_binding.thread_tag)).startswith("blockIdx"):
            if tag in found[-1]:
                found.append(Counter())
            found[-1][tag] = int(loop.extent)

    structural_walk(func.body, (tirx.For, visit))
    return [math.prod(grid.values()) for grid in found]
