# SPDX-License-Identifier: Apache-2.0
"""A compiled network, loaded and ready to be called."""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tvm_ffi

from ..errors import UserError
from .batching import split_batch
from .library_file import check_runnable, read_metadata
from .metadata import LibraryMetadata, TensorSpec
from .threads import run_on_pool
from .tvm_runtime import load_cuda_runtime, load_runtime, tvm_version

# DLPack device types, and the VM's allocator that keeps freed blocks for the next call
_DLPACK = {"cpu": 1, "cuda": 2}
_POOLED = 2
# TVM's kernels load whole vectors and assume allocations on this boundary
_ALIGNMENT = 64


class CompiledNetwork:
    """A loaded library; call it with numpy arrays or torch tensors.

    Calls may come from several threads; they run one after another.
    """

    def __init__(self, path: Path, metadata: LibraryMetadata, device_index: int) -> None:
        self.metadata = metadata
        self.device = (metadata.device_type, device_index)
        self._lock = threading.Lock()
        self._module = _load_module(path)
        self._vm = self._module["vm_load_executable"]()
        devices = [_DLPACK[metadata.device_type], device_index, _POOLED]
        if metadata.device_type != "cpu":
            devices += [_DLPACK["cpu"], 0, _POOLED]
        self._on_device(self._vm["vm_initialization"], *devices)
        self._functions = {size: self._vm[f"batch_{size}"] for size in metadata.batch_sizes}

    def __call__(self, *inputs: Any) -> Any:
        """Run the network.

        Args:
            inputs: one array for each of `metadata.inputs`, in that order, with a batch of at least 1; numpy arrays
                or torch tensors, on the library's device. Aligned contiguous memory is not copied.

        Returns:
            The outputs as arrays of the same kind, one alone not in a tuple.

        Raises:
            UserError: wrong number, kind, rank, shape or dtype of inputs.
        """
        kind = _array_kind(inputs)
        batch = self._check(inputs)
        pieces = []
        position = 0
        for size in split_batch(batch, self.metadata.batch_sizes):
            taken = min(size, batch - position)
            parts = [kind.pad(array[position : position + taken], size) for array in inputs]
            with self._lock, kind.stream():
                outputs = self._on_device(self._functions[size], *(kind.to_tvm(part) for part in parts))
            results = [outputs] if isinstance(outputs, tvm_ffi.Tensor) else list(outputs)
            pieces.append([kind.from_tvm(result)[:taken] for result in results])
            position += taken
        joined = [parts[0] if len(parts) == 1 else kind.concatenate(parts) for parts in zip(*pieces, strict=True)]
        return joined[0] if len(joined) == 1 else tuple(joined)

    def run(self, *inputs: Any) -> dict[str, Any]:
        """Run the network and return its outputs by name."""
        outputs = self(*inputs)
        if len(self.metadata.outputs) == 1:
            outputs = (outputs,)
        return {spec.name: value for spec, value in zip(self.metadata.outputs, outputs, strict=True)}

    def _on_device(self, function: Any, *arguments: Any) -> Any:
        if self.device[0] == "cpu":
            return run_on_pool(function, *arguments)
        return function(*arguments)

    def _check(self, inputs: Sequence[Any]) -> int:
        specs = self.metadata.inputs
        if len(inputs) != len(specs):
            names = ", ".join(spec.name for spec in specs)
            raise UserError(f"{self.metadata.name} takes {len(specs)} inputs ({names}), got {len(inputs)}")
        for spec, array in zip(specs, inputs, strict=True):
            _check_input(spec, array, int(inputs[0].shape[0]) if inputs[0].ndim else 0)
        return int(inputs[0].shape[0])


def load(path: str | os.PathLike[str], device: str | None = None) -> CompiledNetwork:
    """Load a library made by `tvm_involution.compile`; needs neither torch nor the compiler.

    Args:
        device: `cpu`, `cuda` or `cuda:1`; what the library was compiled for by default.

    Raises:
        UserError: the file is missing, damaged or for another machine, or the device is not there.
    """
    metadata = read_metadata(path)
    wanted, _, index = (device or metadata.device_type).partition(":")
    if wanted not in _DLPACK or (index and not index.isdigit()):
        raise UserError(f"unknown device {device!r}; expected cpu, cuda or cuda:N")
    if wanted != metadata.device_type:
        raise UserError(
            f"{path} was compiled for {metadata.device_type} and can't run on {wanted}; compile it for that"
        )
    check_runnable(path, metadata, tvm_version())
    load_runtime()
    if wanted == "cuda":
        load_cuda_runtime()
    return CompiledNetwork(Path(path), metadata, int(index or 0))


def _load_module(path: Path) -> tvm_ffi.Module:
    """Load the shared object through a name of its own.

    dlopen caches by path: a library rewritten at the same path would give the old code in a process that has it loaded.
    """
    with tempfile.TemporaryDirectory(prefix="tvm-involution-") as folder:
        alias = Path(folder) / "library.so"
        alias.symlink_to(path.resolve())
        try:
            return tvm_ffi.load_module(str(alias))
        except Exception as error:  # the loader's own error classes differ between versions
            reason = str(error).strip().splitlines()[-1]
            raise UserError(f"cannot load {path}: {reason}; compile it again on this machine") from error


def _check_input(spec: TensorSpec, array: Any, batch: int) -> None:
    shape = tuple(int(d) for d in array.shape)
    wanted = (batch, *spec.shape[1:])
    if shape != wanted or batch < 1:
        text = ", ".join(str(d) for d in spec.shape)
        raise UserError(f"input {spec.name!r} must have shape ({text}) with a batch of at least 1, got {shape}")
    dtype = str(array.dtype).removeprefix("torch.")
    if dtype != spec.dtype:
        raise UserError(f"input {spec.name!r} must be {spec.dtype}, got {dtype}; convert it first")


class _NumpyArrays:
    """How numpy arrays go in and out."""

    def pad(self, array: np.ndarray, size: int) -> np.ndarray:
        if len(array) == size:
            return array
        return np.concatenate([array, np.zeros((size - len(array), *array.shape[1:]), array.dtype)])

    def to_tvm(self, array: np.ndarray) -> tvm_ffi.Tensor:
        if not array.flags.c_contiguous or array.ctypes.data % _ALIGNMENT or not array.flags.writeable:
            array = _aligned_copy(array)
        if array.dtype.name == "bfloat16":
            raise UserError("bfloat16 goes in as a torch tensor: numpy has no such dtype of its own")
        return tvm_ffi.from_dlpack(array)

    def from_tvm(self, tensor: tvm_ffi.Tensor) -> np.ndarray:
        return np.from_dlpack(tensor)

    def concatenate(self, parts: Sequence[np.ndarray]) -> np.ndarray:
        return np.concatenate(parts)

    @contextlib.contextmanager
    def stream(self) -> Iterator[None]:
        yield


class _TorchTensors:
    """How torch tensors go in and out; used only where the caller has imported torch."""

    def __init__(self, device: Any) -> None:
        self._torch = sys.modules["torch"]
        self._device = device

    def pad(self, array: Any, size: int) -> Any:
        if len(array) == size:
            return array
        return self._torch.cat([array, array.new_zeros(size - len(array), *array.shape[1:])])

    def to_tvm(self, array: Any) -> tvm_ffi.Tensor:
        array = array.detach().contiguous()
        if array.data_ptr() % _ALIGNMENT:
            array = array.clone()
        return tvm_ffi.from_dlpack(array)

    def from_tvm(self, tensor: tvm_ffi.Tensor) -> Any:
        return self._torch.from_dlpack(tensor)

    def concatenate(self, parts: Sequence[Any]) -> Any:
        return self._torch.cat(list(parts))

    def stream(self) -> contextlib.AbstractContextManager[Any]:
        """Run on the caller's current CUDA stream."""
        if self._device.type != "cuda":
            return contextlib.nullcontext()
        return tvm_ffi.use_torch_stream()


def _array_kind(inputs: Sequence[Any]) -> Any:
    if inputs and all(isinstance(array, np.ndarray) for array in inputs):
        return _NumpyArrays()
    torch = sys.modules.get("torch")
    if torch is not None and inputs and all(isinstance(array, torch.Tensor) for array in inputs):
        return _TorchTensors(inputs[0].device)
    kinds = ", ".join(type(array).__name__ for array in inputs) or "nothing"
    raise UserError(f"a network takes numpy arrays or torch tensors, all of one kind; got {kinds}")


def _aligned_copy(array: np.ndarray) -> np.ndarray:
    room = np.empty(array.nbytes + _ALIGNMENT, np.uint8)
    start = -room.ctypes.data % _ALIGNMENT
    copy = room[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    copy[...] = array
    return copy
