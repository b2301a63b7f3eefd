# SPDX-License-Identifier: Apache-2.0
"""A compiled network, loaded and ready to be called."""

from __future__ import annotations

import contextlib
import os
import sys
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..arguments import check_argument
from ..errors import UserError
from .arrays import ArrayKind, array_kind, dtype_name, numpy_dtype
from .batching import split_batch
from .ffi import tvm_ffi
from .fresh_outputs import FreshOutputs
from .library_file import OpenedLibrary, check_runnable, opened
from .metadata import UNKNOWN, Signature, TensorSpec, item_bytes
from .stream_order import StreamOrder, order_of
from .threads import run_on_pool
from .tvm_runtime import check_cuda_device, load_runtime, release_memory, tvm_version

if TYPE_CHECKING:
    import torch

# DLPack device types, and the VM's allocator that keeps freed blocks for the next call
_DLPACK = {"cpu": 1, "cuda": 2}
_POOLED = 2
_NO_TURN = contextlib.nullcontext()


class CompiledNetwork:
    """A loaded library; call it with numpy arrays or torch tensors.

    Calls may come from several threads; they run one after another. On a GPU torch tensors run on the caller's current
    stream, and the call returns before the outputs are computed, as torch's own operators do.

    Outputs have memory of their own and outlive the network, whose code, weights and activations are freed with it. It
    is pickled by its library's path. A forked process may call it on a CPU; CUDA does not survive a fork.
    """

    def __init__(self, source: LibrarySource, library: OpenedLibrary, device_index: int) -> None:
        """Load `library`, whose copy of the code may be removed afterwards."""
        self.metadata = metadata = library.metadata
        self._weights = library.weights
        self._signatures = metadata.signatures
        self.device = (metadata.device_type, device_index)
        self._source = source
        self._process = os.getpid()
        self._order = StreamOrder() if metadata.device_type == "cpu" else order_of(device_index)
        devices = [_DLPACK[metadata.device_type], device_index, _POOLED]
        if metadata.device_type != "cpu":
            devices += [_DLPACK["cpu"], 0, _POOLED]
        try:
            with self._turn():
                machine = self._on_device(_start, library.code, devices)
            names = [s.function(size) for s in self._signatures for size in metadata.batch_sizes]
            weights = self._weights.tensors() if self._weights is not None else []
            self._functions = {name: _with_weights(machine, name, weights) for name in names}
        except UserError:
            raise
        except Exception as error:  # the loader's own error classes differ between versions
            raise UserError(
                f"cannot load {source.path}: {_last_line(error)}; compile it again on this machine"
            ) from error
        taken, made = ([item_bytes(spec.dtype) for spec in specs] for specs in (metadata.inputs, metadata.outputs))
        self._fresh = {name: FreshOutputs(taken, made) for name in names}
        order = None if metadata.device_type == "cpu" else self._order
        weakref.finalize(self, _free, order, self._functions, self._fresh).atexit = False

    def __call__(self, *inputs: Any) -> Any:
        """Run the network.

        Args:
            inputs: one array for each of `metadata.inputs`, in that order, with a batch of at least 1: numpy arrays,
                or torch tensors on the network's device, of one of the image sizes that the library is for. Contiguous
                memory on a boundary of 64 bytes is not copied, unless numpy arrays have to go to a GPU.

        Returns:
            The outputs as arrays of the same kind, one alone not in a tuple.

        Raises:
            UserError: wrong number, kind, rank, shape or dtype of inputs; a batch that the library cannot be called
                with; a network on a GPU in a forked process; Python is gone but for destructors.
        """
        self._check_process()
        kind = array_kind(inputs, self.device)
        signature = self._choose(inputs)
        batch = self._check(signature, inputs, kind)
        if batch in self.metadata.batch_sizes:
            outputs = self._call(signature, batch, kind, inputs)
        else:
            outputs = self._call_in_pieces(signature, batch, kind, inputs)
        return outputs[0] if len(outputs) == 1 else tuple(outputs)

    def warm_up(self) -> None:
        """Call the network once with each of its batch and image sizes, on zeros.

        What the first call does is then done: memory is taken, and on a GPU the kernels are captured as CUDA graphs.
        While they are, no other thread may use CUDA, so call it before other threads do.
        """
        for signature in self._signatures:
            for size in self.metadata.batch_sizes:
                self(*(np.zeros(spec.shape_for(size), numpy_dtype(spec.dtype)) for spec in signature.inputs))

    def run(self, *inputs: Any) -> dict[str, Any]:
        """Run the network and return its outputs by name."""
        outputs = self(*inputs)
        if len(self.metadata.outputs) == 1:
            outputs = (outputs,)
        return {spec.name: value for spec, value in zip(self.metadata.outputs, outputs, strict=True)}

    def __repr__(self) -> str:
        inputs, outputs = (
            ", ".join(f"{spec.name} {spec.dtype}[{', '.join(map(str, spec.shape))}]" for spec in specs)
            for specs in (self.metadata.inputs, self.metadata.outputs)
        )
        others = [f"{height}x{width}" for height, width in (form.image_size for form in self.metadata.forms[1:])]
        also = f", also for {', '.join(others)}" if others else ""
        sizes = ", ".join(map(str, self.metadata.batch_sizes))
        return (
            f"<CompiledNetwork {self.metadata.name}: {inputs} -> {outputs}{also}; batch sizes {sizes}; on "
            f"{self.device_name}; {self._source.path}>"
        )

    def __reduce__(self) -> tuple[Any, ...]:
        return _load_again, (self._source, self.device_name)

    @property
    def device_name(self) -> str:
        """`cpu`, or `cuda:N`."""
        return self.device[0] if self.device[0] == "cpu" else f"{self.device[0]}:{self.device[1]}"

    def _call_in_pieces(self, signature: Signature, batch: int, kind: ArrayKind, inputs: Sequence[Any]) -> list[Any]:
        """Serve a batch that the library has no function for with those that it has."""
        pieces = []
        position = 0
        for size in split_batch(batch, self.metadata.batch_sizes):
            taken = min(size, batch - position)
            parts = [
                _padded(spec, _pictures(spec, array, position, position + taken), size, kind)
                for spec, array in zip(signature.inputs, inputs, strict=True)
            ]
            outputs = zip(signature.outputs, self._call(signature, size, kind, parts), strict=True)
            pieces.append([_pictures(spec, output, 0, taken) for spec, output in outputs])
            position += taken
        return [
            parts[0] if len(parts) == 1 or spec.batch_axis is None else kind.concatenate(parts, spec.batch_axis)
            for spec, parts in zip(signature.outputs, zip(*pieces, strict=True), strict=True)
        ]

    def _call(self, signature: Signature, size: int, kind: ArrayKind, inputs: Sequence[Any]) -> list[Any]:
        """Call the function for batches of `size`."""
        with self._turn(), kind.stream(self._order):
            try:
                return self._call_in_turn(signature, size, kind, inputs)
            # without their frames, which would hold tensors on the GPU beyond the turn
            except UserError as error:
                raise error.with_traceback(None) from error.__cause__
            except Exception as error:  # kernels raise what their checks of arguments raise
                raise UserError(
                    f"{self.metadata.name} stopped: {_last_line(error)}; where memory is short free some, otherwise "
                    "compile it again"
                ) from error.with_traceback(None)

    def _call_in_turn(self, signature: Signature, size: int, kind: ArrayKind, inputs: Sequence[Any]) -> list[Any]:
        """Call the function; when this returns, its tensors on the GPU are freed, but for those that are returned."""
        if self._weights is not None:
            self._weights.check()
        given = [kind.to_tvm(array) for array in inputs]
        name = signature.function(size)
        returned = self._on_device(self._functions[name], *given)
        results = [returned] if isinstance(returned, tvm_ffi.Tensor) else list(returned)
        self._check_results(signature, results, size)
        fresh = self._fresh[name].which(results, given)
        arrays = [kind.from_tvm(result) for result in results]
        return [array if own else kind.copy(array) for array, own in zip(arrays, fresh, strict=True)]

    def _turn(self) -> contextlib.AbstractContextManager[Any]:
        # calls on the CPU take turns in the executor thread; a lock that another thread holds would not survive a fork
        return _NO_TURN if self.device[0] == "cpu" else self._order.turn()

    def _on_device(self, function: Callable[..., Any], *arguments: Any) -> Any:
        if self.device[0] == "cpu":
            return run_on_pool(function, *arguments)
        return function(*arguments)

    def _check_process(self) -> None:
        if sys.is_finalizing():
            raise UserError(
                f"{self.metadata.name} was called when Python had shut down; call it in an atexit handler instead"
            )
        if self.device[0] != "cpu" and os.getpid() != self._process:
            raise UserError(f"{self.metadata.name} runs on a GPU, which a forked process cannot use; start it by spawn")

    def _choose(self, inputs: Sequence[Any]) -> Signature:
        """Return the signature whose image size the inputs have."""
        specs = self.metadata.inputs
        if len(inputs) != len(specs):
            names = ", ".join(spec.name for spec in specs)
            raise UserError(f"{self.metadata.name} takes {len(specs)} inputs ({names}), got {len(inputs)}")
        if len(self._signatures) == 1:
            return self._signatures[0]
        fitting = [
            [_fits(spec, array) for spec, array in zip(signature.inputs, inputs, strict=True)]
            for signature in self._signatures
        ]
        for signature, fits in zip(self._signatures, fitting, strict=True):
            if all(fits):
                return signature
        # of inputs that fit apart, the first that does not fit those before it
        position = next(i for i in range(len(specs)) if not any(all(fits[: i + 1]) for fits in fitting))
        shapes = dict.fromkeys(_shape_text(signature.inputs[position].shape) for signature in self._signatures)
        beside = " beside the other inputs" * any(fits[position] for fits in fitting)
        raise UserError(
            f"input {specs[position].name!r} must have shape {' or '.join(shapes)}{beside}, got "
            f"{tuple(int(d) for d in inputs[position].shape)}"
        )

    def _check(self, signature: Signature, inputs: Sequence[Any], kind: ArrayKind) -> int:
        specs, sizes, name = signature.inputs, self.metadata.batch_sizes, self.metadata.name
        batch = sizes[0]
        for spec, array in zip(specs, inputs, strict=True):
            if spec.batch_axis is not None:
                batch = int(array.shape[spec.batch_axis]) // spec.per_picture if array.ndim > spec.batch_axis else 0
                break
        for spec, array in zip(specs, inputs, strict=True):
            _check_input(spec, array, batch, kind)
        if batch not in sizes and self.metadata.mixed_by:
            raise UserError(
                f"{name} takes batches of {' or '.join(map(str, sizes))} alone, got {batch}; compile it for that with "
                f"--batch (why it cannot be served by others: {self.metadata.mixed_by})"
            )
        return batch

    def _check_results(self, signature: Signature, results: Sequence[Any], size: int) -> None:
        specs = signature.outputs
        if len(results) != len(specs) or not all(map(_is_as_said, results, specs, [size] * len(specs))):
            found = [f"{r.dtype}{list(r.shape)}" if isinstance(r, tvm_ffi.Tensor) else str(r) for r in results]
            raise UserError(
                f"{self.metadata.name} answers with {found}, which its metadata do not say; compile it again"
            )


@dataclass(frozen=True)
class LibrarySource:
    """Where a library was loaded from, and its SHA-256."""

    path: str
    """absolute"""
    digest: str


def load(path: str | os.PathLike[str], device: str | torch.device | None = None) -> CompiledNetwork:
    """Load a library made by `tvm_involution.compile`; needs neither torch nor the compiler.

    A library is a program: its sum finds damage and is no signature. Load what you trust.

    Args:
        device: `cpu`, `cuda`, `cuda:1` or a `torch.device`; what the library was compiled for by default.

    Raises:
        UserError: the file is missing, damaged or for another machine, or the device is not there.
    """
    path = check_argument("load: path", path, str | os.PathLike)
    with opened(path) as library:
        metadata = library.metadata
        index = _device_index(device, metadata.device_type, path)
        check_runnable(path, metadata, tvm_version())
        load_runtime()
        if metadata.device_type == "cuda":
            check_cuda_device(index, str(metadata.target.get("arch", "")))
        return CompiledNetwork(LibrarySource(os.path.abspath(path), library.digest), library, index)


def _load_again(source: LibrarySource, device: str) -> CompiledNetwork:
    """Load what was pickled."""
    network = load(source.path, device)
    if network._source.digest != source.digest:
        raise UserError(f"{source.path} is another library than the one that was pickled; load it and pickle it again")
    return network


def _device_index(device: Any, compiled_for: str, path: str | os.PathLike[str]) -> int:
    torch = sys.modules.get("torch")
    if device is None or (torch is not None and isinstance(device, torch.device)):
        device = str(device or compiled_for)
    kind, colon, index = device.partition(":") if isinstance(device, str) else ("", "", "")
    digits = index.isascii() and index.isdecimal() and len(index) < 9
    if kind not in _DLPACK or (colon and not digits) or (kind == "cpu" and index.strip("0")):
        raise UserError(f"unknown device {device!r:.40}; expected cpu, cuda or cuda:N")
    if kind != compiled_for:
        raise UserError(
            f"{path} was compiled for {compiled_for} and cannot run on {kind}; compile it again with "
            f"--target {'cuda' if kind == 'cuda' else 'llvm'}"
        )
    return int(index or 0)


def _start(path: Path, devices: Sequence[int]) -> Any:
    """Return a virtual machine with the code of `path`, which is unmapped when the machine is no longer used."""
    module = tvm_ffi.load_module(str(path), keep_module_alive=False)
    machine = module["vm_load_executable"]()
    machine["vm_initialization"](*devices)
    return machine


def _with_weights(machine: Any, name: str, weights: Sequence[Any]) -> Any:
    """Return a function of the machine that takes the inputs alone."""
    if not weights:
        return machine[name]
    bound = f"{name} with weights"
    machine["save_function"](name, bound, True, *weights)
    return machine[bound]


def _free(order: StreamOrder | None, *holders: dict[str, Any]) -> None:
    # functions hold their machine, and that what it returned last
    for holder in holders:
        if order is None:
            holder.clear()
        else:
            order.discard(holder)
    release_memory()


def _last_line(error: Exception) -> str:
    return " ".join((str(error).strip() or type(error).__name__).splitlines()[-1].split())


def _pictures(spec: TensorSpec, array: Any, start: int, stop: int) -> Any:
    """Return a tensor's part that belongs to some pictures of the batch; all of one that is for any batch."""
    if spec.batch_axis is None:
        return array
    index = slice(start * spec.per_picture, stop * spec.per_picture)
    return array[(slice(None),) * spec.batch_axis + (index,)]


def _padded(spec: TensorSpec, array: Any, size: int, kind: ArrayKind) -> Any:
    return array if spec.batch_axis is None else kind.pad(array, size * spec.per_picture, spec.batch_axis)


def _is_as_said(result: Any, spec: TensorSpec, size: int) -> bool:
    # a dtype of TVM is its name
    if not isinstance(result, tvm_ffi.Tensor) or result.dtype != spec.dtype:
        return False
    return UNKNOWN in spec.shape or tuple(result.shape) == spec.shape_for(size)


def _fits(spec: TensorSpec, array: Any) -> bool:
    """Whether an array has the shape of an input but for the batch."""
    shape = tuple(int(d) for d in array.shape)
    return len(shape) == len(spec.shape) and all(
        axis == spec.batch_axis or d == wanted for axis, (d, wanted) in enumerate(zip(shape, spec.shape, strict=True))
    )


def _shape_text(shape: Sequence[int | str]) -> str:
    return f"({', '.join(map(str, shape))})"


def _check_input(spec: TensorSpec, array: Any, batch: int, kind: ArrayKind) -> None:
    if tuple(array.shape) != spec.shape_for(batch) or batch < 1:
        shape = tuple(int(d) for d in array.shape)
        least = " with a batch of at least 1" if spec.batched else ""
        raise UserError(f"input {spec.name!r} must have shape {_shape_text(spec.shape)}{least}, got {shape}")
    dtype = dtype_name(array.dtype)
    if dtype != spec.dtype:
        raise UserError(
            f"input {spec.name!r} must be {spec.dtype}, got {dtype}; convert it: {kind.conversion(spec.dtype)}"
        )
