# SPDX-License-Identifier: Apache-2.0
"""`compile`: from a network to one shared library with code, weights and metadata inside."""

from __future__ import annotations

import datetime
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import tvm
from tvm import relax

from . import __version__, lowering
from .errors import told_in_one_line
from .files import atomic_write
from .frontend.importer import import_exported_program, output_names
from .frontend.network import Network, resolve_network
from .lowering.cuda_code import check_cuda_compiler
from .lowering.link import link_shared, target_triple
from .records.tuning_records import TuningRecords
from .relax import pipeline
from .relax.passes.apply_schedules import count_kernels
from .relax.passes.capture_cuda_graphs import has_cuda_graphs
from .runtime.library_file import seal
from .runtime.metadata import LibraryMetadata, TensorSpec
from .runtime.tvm_runtime import tvm_version
from .target import cpu_features, resolve_target


class CompiledLibrary:
    """A compiled network, ready to be saved."""

    def __init__(self, executable: relax.VMExecutable, target: tvm.target.Target, metadata: LibraryMetadata) -> None:
        self._executable = executable
        self._target = target
        self.metadata = metadata

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the shared library; `path` appears whole or not at all.

        Raises:
            UserError: the folder cannot be written, or no linker for the target is at hand.
            RuntimeError: the compiler of CUDA's message, where it does not take a kernel.
        """
        with atomic_write(path) as temporary:
            link_shared(self._executable, self._target, temporary)
            seal(temporary, self.metadata)


def compile(  # the contract's verb
    model: str | Path | torch.nn.Module | tuple[torch.nn.Module, Any],
    target: str | tvm.target.Target = "llvm",
    *,
    checkpoint: str | Path | None = None,
    batch: int | Sequence[int] | None = None,
    dtype: str | None = None,
    image_size: tuple[int, int] | None = None,
    tuning_logs: str | Path | None = None,
    cuda_graph: bool = True,
    debug_dump: str | Path | None = None,
    tf32: bool = False,
    progress: Callable[[str], None] = lambda _: None,
) -> CompiledLibrary:
    """Compile a network for a target.

    Args:
        model: a zoo name (`rednet50`), a `.pt2` file of `torch.export.save`, `package.module:function` that returns
            a module, or a module itself. Inputs are (N, C, H, W), or those of the examples in (module, inputs): a
            tensor, a tuple of positional arguments or a dictionary of arguments by name, each of which is a tensor
            or a tuple, list or dictionary of tensors.
        target: `llvm` (this CPU), `cuda` (this GPU), a tag or JSON that `tvm.target.Target` takes, or a target.
        checkpoint: weights for the network: official OpenMMLab files, state dicts, safetensors.
        batch: the batch sizes to build for; 1 by default, for a `.pt2` file the one it was exported for.
        dtype: `float32` (default), `float16` or `bfloat16`, for inputs, weights and outputs; sums stay in float32.
        image_size: height and width in pixels; the zoo's own by default.
        tuning_logs: folder of tuning logs; the shipped ones by default.
        cuda_graph: on GPUs, launch a network's kernels as one CUDA graph, where they can be captured.
        debug_dump: folder for the module's text after each phase.
        tf32: multiply float32 on a GPU's tensor cores (from sm_80), which keep 10 bits of its mantissa.
        progress: told the name of each phase as it starts.

    Raises:
        UserError: whatever is wrong with the arguments, in one line.
    """
    resolved = target if isinstance(target, tvm.target.Target) else resolve_target(target)
    if resolved.kind.name == "cuda":
        check_cuda_compiler(str(resolved.attrs["arch"]))
    network = resolve_network(model, checkpoint=checkpoint, image_size=image_size)
    batches = network.batch_sizes(batch)
    wanted = network.resolve_dtype(dtype)
    records = TuningRecords(resolved, tuning_logs)
    dump = Path(debug_dump) if debug_dump is not None else None

    progress("import from PyTorch")
    functions, programs = {}, {}
    for size in batches:
        programs[size] = program = network.export(size)
        functions[f"batch_{size}"] = import_exported_program(program)["main"].with_attr(
            "global_symbol", f"batch_{size}"
        )
    mod = tvm.IRModule(functions)
    smallest = batches[0]
    first = functions[f"batch_{smallest}"]

    with told_in_one_line(f"cannot compile {network.name} for {resolved.kind.name}"):
        mod = pipeline.run(
            mod,
            resolved,
            dtype=wanted,
            records=records,
            cuda_graph=cuda_graph and resolved.kind.name == "cuda",
            tf32=tf32,
            debug_dump=dump,
            progress=progress,
        )
        kernels = count_kernels(mod)
        progress("generate code")
        executable = lowering.build(mod, resolved)

    host = resolved.host if resolved.host is not None else resolved
    metadata = LibraryMetadata(
        name=network.name,
        task=network.task,
        inputs=_input_specs(first, wanted, smallest),
        outputs=_output_specs(network, programs[smallest], first, wanted, smallest),
        batch_sizes=batches,
        dtype=wanted,
        preprocessing=network.preprocessing,
        classes=network.classes,
        class_ids=network.class_ids,
        colours=network.colours,
        target=json.loads(str(resolved)),
        device_type="cuda" if resolved.kind.name == "cuda" else "cpu",
        triple=target_triple(resolved),
        cpu=str(host.attrs.get("mcpu") or "generic"),
        cpu_features=cpu_features(host),
        tvm_version=tvm_version(),
        package_version=__version__,
        weights_origin=network.weights_origin,
        parameters=network.parameters,
        kernels=kernels,
        cuda_graph=has_cuda_graphs(mod),
        created=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    )
    return CompiledLibrary(executable, resolved, metadata)


def _tensor_spec(name: str, ty: relax.TensorType, dtype: str, batch: int) -> TensorSpec:
    shape: tuple[int | str, ...] = tuple(int(d) for d in ty.shape.values)
    if shape and shape[0] == batch:
        shape = ("batch", *shape[1:])
    own = dtype if str(ty.dtype) == "float32" else str(ty.dtype)
    return TensorSpec(name=name, shape=shape, dtype=own, layout="NCHW" if len(shape) == 4 else "")


def _input_specs(func: relax.Function, dtype: str, batch: int) -> tuple[TensorSpec, ...]:
    names = ["input"] if len(func.params) == 1 else [param.name for param in func.params]
    return tuple(_tensor_spec(name, param.ty, dtype, batch) for name, param in zip(names, func.params, strict=True))


def _output_specs(
    network: Network, program: torch.export.ExportedProgram, func: relax.Function, dtype: str, batch: int
) -> tuple[TensorSpec, ...]:
    returned = func.ret_ty
    types = list(returned.fields) if isinstance(returned, relax.TupleType) else [returned]
    names = network.output_names or output_names(program)
    return tuple(_tensor_spec(name, ty, dtype, batch) for name, ty in zip(names, types, strict=True))
