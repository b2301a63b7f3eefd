# SPDX-License-Identifier: Apache-2.0
"""`compile`: from a network to one shared library with code, weights and metadata inside."""

from __future__ import annotations

import datetime
import itertools
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import tvm
from tvm import relax

from . import __version__, lowering
from .arguments import UNCHECKED, Size, checked
from .cpu_features import cpu_features
from .errors import UserError, told_in_one_line
from .files import atomic_write, check_apart, check_room
from .frontend.batch_axes import BatchAxes
from .frontend.importer import import_exported_program, output_names
from .frontend.network import Network, resolve_network
from .lowering.cuda_code import check_cuda_compiler
from .lowering.link import link_shared, linker_of, target_triple
from .quantization import Calibration, quantize, read_calibration
from .records.tuning_records import TuningRecords
from .relax import pipeline
from .relax.dtypes import in_half
from .relax.lift_weights import lift_weights
from .relax.passes.apply_schedules import count_kernels
from .relax.passes.capture_cuda_graphs import has_cuda_graphs
from .runtime.arrays import numpy_dtype
from .runtime.library_file import seal
from .runtime.metadata import INT8, Form, LibraryMetadata, QuantizedLayer, TensorSpec, function_name, picture_problems
from .runtime.threads import thread_count
from .runtime.tvm_runtime import tvm_version
from .schedules.cpu.dot_int8 import has_dot_int8
from .target import as_target


class CompiledLibrary:
    """A compiled network, ready to be saved.

    Attributes:
        notes: what its author might want to know, a line each: products with windows that are no involution, which
            tuning records were used and why others did not fit.
    """

    def __init__(
        self,
        executable: relax.VMExecutable,
        target: tvm.target.Target,
        metadata: LibraryMetadata,
        weights: Sequence[tuple[str, np.ndarray]] = (),
        notes: Sequence[str] = (),
        read: Sequence[str | Path] = (),
    ) -> None:
        self._executable = executable
        self._target = target
        self._weights = weights
        self.metadata = metadata
        self.notes = tuple(dict.fromkeys(notes))
        self._read = tuple(read)

    @checked
    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the shared library; `path` appears whole or not at all.

        Raises:
            UserError: it is the file of the network or its weights, the folder cannot be written, a disk has no room,
                or no linker for the target is at hand.
            RuntimeError: the compiler of CUDA's message, where it does not take a kernel.
        """
        check_apart(Path(path), *self._read)
        # weights and some code: the least that it takes
        check_room(path, self.metadata.parameters * numpy_dtype(self.metadata.dtype).itemsize + (4 << 20))
        with atomic_write(path) as temporary:
            link_shared(self._executable, self._target, temporary)
            seal(temporary, self.metadata, self._weights)


@checked
def compile(  # the contract's verb
    model: Annotated[
        str | Path | torch.nn.Module | tuple[torch.nn.Module, Any] | torch.export.ExportedProgram, UNCHECKED
    ],
    target: str | tvm.target.Target = "llvm",
    *,
    checkpoint: str | Path | Mapping[str, Any] | None = None,
    checkpoint_key: str | None = None,
    batch: Size | Sequence[Size] | None = None,
    dtype: str | None = None,
    calibration: Annotated[Calibration | None, UNCHECKED] = None,
    image_size: tuple[Size, Size] | Sequence[tuple[Size, Size]] | None = None,
    num_classes: Size | None = None,
    classes: str | Path | Sequence[str] | None = None,
    preprocessing: str | Path | Mapping[str, Any] | None = None,
    tuning_logs: str | Path | None = None,
    cuda_graph: bool = True,
    debug_dump: str | Path | None = None,
    tf32: bool = False,
    progress: Callable[[str], None] = lambda _: None,
) -> CompiledLibrary:
    """Compile a network for a target.

    Args:
        model: a zoo name (`rednet50`) or a `.toml` file like the zoo's, a `.pt2` file of `torch.export.save`,
            `package.module:function` that returns a module, a module itself, or a program of `torch.export`. Inputs of
            modules are (N, C, H, W), or those of the examples in (module, inputs): a tensor, a tuple of positional
            arguments or a dictionary of arguments by name, each of which is a tensor or a tuple, list or dictionary of
            tensors.
        target: `llvm` (this CPU), `cuda` (this GPU), a tag or JSON that `tvm.target.Target` takes, or a target.
        checkpoint: weights for the network: files of trainers, state dicts (also one in memory), safetensors; see
            `nn.load_checkpoint`.
        checkpoint_key: which of several state dicts in the file to take, such as `ema_state_dict`.
        batch: the batch sizes to build for; 1 by default, for a program with one batch size that.
        dtype: `float32` (default), `float16` or `bfloat16`, for inputs, weights and outputs; sums stay in float32. Or
            `int8` on CPUs, for weights and what convolutions read; inputs and outputs are float32 then.
        calibration: for `int8`, pictures that show which values are to be expected: a folder of them, a .npy or .npz
            file of prepared inputs with the batch first, or such arrays.
        image_size: height and width in pixels, or several of them, of which the input chooses; the zoo's own by
            default, for a `.pt2` file the one it was exported with.
        num_classes: by default as many as the checkpoint's head has, else the zoo's; of a function, an argument of it.
        classes: their names, or a file of them, a line each; by default those that the checkpoint tells, else the
            zoo's. With names, a network of the user's with an output (batch, classes) or (batch, classes, height,
            width) is taken for a classifier of pictures or of pixels.
        preprocessing: how a picture becomes an input: `mean` and `std`, where wanted `resize`, `crop` and `backend`; a
            table, or a `.toml` file of it. By default the zoo's.
        tuning_logs: folder of tuning logs; by default the user's own, then the shipped ones.
        cuda_graph: on GPUs, launch a network's kernels as one CUDA graph, where they can be captured.
        debug_dump: folder for the module's text after each phase.
        tf32: multiply float32 on a GPU's tensor cores (from sm_80), which keep 10 bits of its mantissa.
        progress: told the name of each phase as it starts.

    Raises:
        UserError: whatever is wrong with the arguments, in one line.
    """
    thread_count()  # what is computed at compile time runs on TVM's threads
    resolved = as_target(target)
    cpu_features(resolved if resolved.host is None else resolved.host)  # an unknown CPU is refused before all work
    if resolved.kind.name == "cuda":
        check_cuda_compiler(str(resolved.attrs["arch"]))
    linker_of(resolved)  # that there is none is told at once
    _check_int8(dtype, calibration, resolved)
    network = resolve_network(
        model,
        checkpoint=checkpoint,
        checkpoint_key=checkpoint_key,
        image_size=image_size,
        num_classes=num_classes,
        classes=classes,
        preprocessing=preprocessing,
    )
    batches = network.batch_sizes(batch)
    if dtype == INT8:
        _check_quantizable(network)
    wanted = network.resolve_dtype("float32" if dtype == INT8 else dtype)
    network.check_weights(wanted)
    records = TuningRecords(resolved, tuning_logs)
    dump = Path(debug_dump) if debug_dump is not None else None

    progress("import from PyTorch")
    functions = {}
    notes = network.notes()
    sizes = network.image_sizes if len(network.image_sizes) > 1 else (None,)
    for image_size, size in itertools.product(sizes, batches):
        name, program = function_name(size, image_size), network.export(size, image_size)
        functions[name] = import_exported_program(program, notes.append)["main"].with_attr("global_symbol", name)
    mod = tvm.IRModule(functions)
    axes = [network.batch_axes(batches, image_size) for image_size in sizes]
    first, program = functions[function_name(batches[0], sizes[0])], network.export(batches[0])
    inputs = _input_specs(first, axes[0], wanted, "NCHW" if network.takes_pictures else "")
    outputs = _output_specs(first, axes[0], wanted, network.output_names or output_names(program))
    network.tell_task(outputs)
    outputs = _output_specs(first, axes[0], wanted, network.output_names or output_names(program))
    for problem in picture_problems(network.task, inputs, outputs, network.preprocessing, network.classes):
        raise UserError(f"{network.name} cannot be given pictures as is said: {problem}")

    layers: tuple[QuantizedLayer, ...] = ()
    if dtype == INT8:
        assert calibration is not None
        pictures = read_calibration(calibration, inputs, network.preprocessing)
        with told_in_one_line(f"cannot quantize {network.name}"):
            simplified = pipeline.run(mod, resolved, progress=progress, until="simplify the graph")
            progress("calibrate")
            mod, layers = quantize(simplified, str(first.attrs["global_symbol"]), pictures, resolved, progress=progress)
        notes += _notes_of_int8(layers, resolved)

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
        notes += records.notes(network.name, batches, wanted, network.input_size)
        progress("generate code")
        # a GPU has them copied to its memory, and graphs that are captured want constants
        mod, weights = lift_weights(mod) if resolved.kind.name == "llvm" else (mod, [])
        executable = lowering.build(mod, resolved)

    host = resolved.host if resolved.host is not None else resolved
    metadata = LibraryMetadata(
        name=network.name,
        task=network.task,
        inputs=inputs,
        outputs=outputs,
        batch_sizes=batches,
        dtype=INT8 if layers else wanted,
        quantized=layers,
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
        mixed_by=next((found.mixed_by for found in axes if found.mixed_by), ""),
        forms=tuple(
            Form(image_size, found.inputs, found.outputs)
            for image_size, found in zip(sizes, axes, strict=True)
            if image_size is not None
        ),
        cuda_graph=has_cuda_graphs(mod),
        model=str(model) if isinstance(model, (str, Path)) else "",
        num_classes=num_classes,
        created=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    )
    read = [file for file in (model, checkpoint, classes, preprocessing, calibration) if isinstance(file, (str, Path))]
    return CompiledLibrary(executable, resolved, metadata, weights, notes, read)


def _check_int8(dtype: str | None, calibration: Calibration | None, target: tvm.target.Target) -> None:
    """Check what can be told of int8 before all work.

    Raises:
        UserError: a GPU, or one of dtype and calibration without the other.
    """
    if dtype != INT8:
        if calibration is not None:
            raise UserError("calibration is for int8 alone; add --dtype int8, or leave out --calibration")
        return
    if target.kind.name != "llvm":
        raise UserError("int8 is for CPUs; leave out --dtype int8 for float32, or take --dtype float16 on a GPU")
    if calibration is None:
        raise UserError(
            "int8 needs pictures like those to come, from which ranges are taken; give --calibration, a folder of "
            "pictures, or prepared inputs in .npy or .npz"
        )
    if isinstance(calibration, (str, Path)) and not Path(calibration).exists():
        raise UserError(f"{calibration} does not exist; name a folder of pictures, or arrays in .npy or .npz")


def _check_quantizable(network: Network) -> None:
    if network.task in ("detection", "instance_segmentation"):
        raise UserError(
            f"{network.name} computes boxes in pixels, which int8 is too coarse for; leave out --dtype int8"
        )


def _notes_of_int8(layers: Sequence[QuantizedLayer], target: tvm.target.Target) -> list[str]:
    kept = [layer for layer in layers if layer.kept_because]
    notes = [f"layer {layer.number} ({layer.layer}) stays in float32: {layer.kept_because}" for layer in kept]
    if not has_dot_int8(target):
        notes.append("the target has no dot product of bytes: int8 is right there, and not fast")
    return notes


def _input_specs(func: relax.Function, axes: BatchAxes, dtype: str, layout: str) -> tuple[TensorSpec, ...]:
    names = ["input"] if len(func.params) == 1 else [param.name for param in func.params]
    types = [param.ty for param in func.params]
    return _tensor_specs(names, axes.inputs, types, dtype, layout)


def _output_specs(func: relax.Function, axes: BatchAxes, dtype: str, names: Sequence[str]) -> tuple[TensorSpec, ...]:
    returned = func.ret_ty
    types = list(returned.fields) if isinstance(returned, relax.TupleType) else [returned]
    return _tensor_specs(names, axes.outputs, types, dtype)


def _tensor_specs(
    names: Sequence[str],
    shapes: Sequence[tuple[int | str, ...]],
    types: Sequence[relax.Type],
    dtype: str,
    layout: str = "",
) -> tuple[TensorSpec, ...]:
    halves = {} if dtype == "float32" else in_half(dtype)
    return tuple(
        TensorSpec(name, shape, halves.get(str(ty.dtype), str(ty.dtype)), layout)
        for name, shape, ty in zip(names, shapes, types, strict=True)
    )
