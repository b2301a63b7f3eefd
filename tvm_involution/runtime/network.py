# SPDX-License-Identifier: Apache-2.0
"""A compiled network, loaded and ready to be called."""

from __future__ import annotations

import os
import shutil
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..arguments import check_argument
from ..errors import UserError
from .arrays import ArrayKind, array_kind
from .batching import split_batch
from .ffi import tvm_ffi
from .library_file import check_runnable, read_metadata
from .metadata import LibraryMetadata, TensorSpec
from .stream_order import StreamOrder
from .threads import run_on_pool
from .tvm_runtime import check_cuda_device, load_runtime, tvm_version

# DLPack device types, and the VM's allocator that keeps freed blocks for the next call
_DLPACK = {"cpu": 1, "cuda": 2}
_POOLED = 2


class CompiledNetwork:
    """A loaded library; call it with numpy arrays or torch tensors.

    Calls may come from several threads; they run one after another. On a GPU torch tensors run on the caller's current
    stream, and the call returns before the outputs are computed, as torch's own operators do.
    """

    def __init__(self, path: Path, metadata: LibraryMetadata, device_index: int) -> None:
        self.metadata = metadata
        self.device = (metadata.device_type, device_index)
        self._lock = threading.Lock()
        self._order = StreamOrder()
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
            inputs: one array for each of `metadata.inputs`, in that order, with a batch of at least 1: numpy arrays,
                or torch tensors on the network's device. Contiguous memory on a boundary of 64 bytes is not copied,
                unless numpy arrays have to go to a GPU.

        Returns:
            The outputs as arrays of the same kind, one alone not in a tuple.

        Raises:
            UserError: wrong number, kind, rank, shape or dtype of inputs.
        """
        kind = array_kind(inputs, self.device)
        batch = self._check(inputs, kind)
        pieces = []
        position = 0
        for size in split_batch(batch, self.metadata.batch_sizes):
            taken = min(size, batch - position)
            parts = [
                kind.pad(array[position : position + taken], size) if spec.batched else array
                for spec, array in zip(self.metadata.inputs, inputs, strict=True)
            ]
            with self._lock, kind.stream(self._order):
                outputs = self._on_device(self._functions[size], *(kind.to_tvm(part) for part in parts))
            results = [outputs] if isinstance(outputs, tvm_ffi.Tensor) else list(outputs)
            arrays = [kind.from_tvm(result) for result in results]
            outputs = zip(self.metadata.outputs, arrays, strict=True)
            pieces.append([a if taken == size else _cut(spec, a, taken) for spec, a in outputs])
            position += taken
        joined = [
            parts[0] if len(parts) == 1 or spec.batch_axis is None else kind.concatenate(parts, spec.batch_axis)
            for spec, parts in zip(self.metadata.outputs, zip(*pieces, strict=True), strict=True)
        ]
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

    def _check(self, inputs: Sequence[Any], kind: ArrayKind) -> int:
        specs = self.metadata.inputs
        if len(inputs) != len(specs):
            names = ", ".join(spec.name for spec in specs)
            raise UserError(f"{self.metadata.name} takes {len(specs)} inputs ({names}), got {len(inputs)}")
        sizes = self.metadata.batch_sizes
        first = next((array for spec, array in zip(specs, inputs, strict=True) if spec.batched), None)
        batch = sizes[0] if first is None else int(first.shape[0]) if first.ndim else 0
        for spec, array in zip(specs, inputs, strict=True):
            _check_input(spec, array, batch, kind)
        if batch not in sizes and self.metadata.mixed_by:
            raise UserError(
                f"{self.metadata.name} takes batches of {' or '.join(map(str, sizes))} alone, got {batch}; compile it "
                f"for that with --batch (why it cannot be served by others: {self.metadata.mixed_by})"
            )
        return batch


def _cut(spec: TensorSpec, array: Any, pictures: int) -> Any:
    """Return the part of an output that belongs to the first `pictures`; all of one that has no batch."""
    if spec.batch_axis is None:
        return array
    return array[(slice(None),) * spec.batch_axis + (slice(pictures * spec.per_picture),)]


def load(path: str | os.PathLike[str], device: str | None = None) -> CompiledNetwork:
    """Load a library made by `tvm_involution.compile`; needs neither torch nor the compiler.

    Args:
        device: `cpu`, `cuda` or `cuda:1`; what the library was compiled for by default.

    Raises:
        UserError: the file is missing, damaged or for another machine, or the device is not there.
    """
    path = check_argument("load: path", path, str | os.PathLike)
    if not isinstance(device, (str, type(None))) and type(device).__module__ == "torch":
        device = str(device)  # a torch.device
    device = check_argument("load: device", device, str | None)
    metadata = read_metadata(path)
    wanted, colon, index = (device or metadata.device_type).partition(":")
    if wanted not in _DLPACK or (colon and (wanted == "cpu" or not index.isdecimal())):
        raise UserError(f"unknown device {device!r}; expected cpu, cuda or cuda:N")
    if wanted != metadata.device_type:
        raise UserError(
            f"{path} was compiled for {metadata.device_type} and cannot run on {wanted}; compile it again with "
            f"--target {'cuda' if wanted == 'cuda' else 'llvm'}"
        )
    check_runnable(path, metadata, tvm_version())
    load_runtime()
    if wanted == "cuda":
        check_cuda_device(int(index or 0), str(metadata.target.get("arch", "")))
    return CompiledNetwork(Path(path), metadata, int(index or 0))


def _load_module(path: Path) -> tvm_ffi.Module:
    """Load a private copy of the shared object.

    dlopen caches by path and inode, so a library rewritten in place would give the old code; and the file of a loaded
    library may be overwritten, which would crash the process if it were mapped itself.
    """
    with tempfile.TemporaryDirectory(prefix="tvm-involution-") as folder:
        copy = Path(folder) / "library.so"
        shutil.copyfile(path, copy)
        try:
            return tvm_ffi.load_module(str(copy))
        except Exception as error:  # the loader's own error classes differ between versions
            reason = str(error).strip().splitlines()[-1]
            raise UserError(f"cannot load {path}: {reason}; compile it again on this machine") from error


def _check_input(spec: TensorSpec, array: Any, batch: int, kind: ArrayKind) -> None:
    shape = tuple(int(d) for d in array.shape)
    if shape != spec.shape_for(batch) or batch < 1:
        text = ", ".join(str(d) for d in spec.shape)
        least = " with a batch of at least 1" if spec.batched else ""
        raise UserError(f"input {spec.name!r} must have shape ({text}){least}, got {shape}")
    dtype = str(array.dtype).removeprefix("torch.")
    if dtype != spec.dtype:
        raise UserError(
            f"input {spec.name!r} must be {spec.dtype}, got {dtype}; convert it: {kind.conversion(spec.dtype)}"
        )
