# SPDX-License-Identifier: Apache-2.0
"""How numpy arrays and torch tensors go into the virtual machine and come out of it."""

from __future__ import annotations

import contextlib
import functools
import sys
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import numpy as np

from ..errors import UserError
from .cuda_device import synchronize_default_stream
from .ffi import tvm_ffi
from .stream_order import StreamOrder

# TVM's kernels load whole vectors and assume allocations on this boundary
_ALIGNMENT = 64
_NO_STREAM = contextlib.nullcontext()


class ArrayKind(Protocol):
    """One library of arrays."""

    def pad(self, array: Any, size: int, axis: int) -> Any:
        """Return `array` with zeros after it, up to `size` entries along `axis`."""

    def to_tvm(self, array: Any) -> Any:
        """Return `array` as a TVM tensor on the network's device; without a copy where its memory serves."""

    def from_tvm(self, tensor: Any) -> Any:
        """Return a TVM tensor as an array, without a copy where it lies in memory of that kind."""

    def copy(self, array: Any) -> Any:
        """Return an array in memory of its own."""

    def concatenate(self, parts: Sequence[Any], axis: int) -> Any:
        """Join arrays along a dimension."""

    def conversion(self, dtype: str) -> str:
        """Return the call that converts an array to `dtype`, for messages."""

    def stream(self, order: StreamOrder) -> contextlib.AbstractContextManager[Any]:
        """Return a context in which the network runs on the caller's stream, after the calls on others.

        An error leaves it when nothing that was queued runs any more.
        """


def array_kind(inputs: Sequence[Any], device: tuple[str, int]) -> ArrayKind:
    """Return the kind that all `inputs` are of.

    Raises:
        UserError: they are neither all numpy arrays nor all torch tensors, one is more or less than numbers in memory
            (masked, sparse, quantized, without storage), or a tensor lies on another device.
    """
    if inputs and all(isinstance(array, np.ndarray) for array in inputs):
        # not `np.ma`, which is imported when first named: a child forked meanwhile would wait for that import for ever
        masked = sys.modules.get("numpy.ma")
        if masked is not None and any(isinstance(array, masked.MaskedArray) for array in inputs):
            raise UserError("a network knows no masks, got a masked array; give every value: .filled(0)")
        return _numpy_arrays(device)
    torch = sys.modules.get("torch")
    if torch is not None and inputs and all(isinstance(array, torch.Tensor) for array in inputs):
        kind = _torch_tensors(device)
        for tensor in inputs:
            if tensor.device != kind.device:
                raise UserError(
                    f'the network runs on {kind.device}, got a tensor on {tensor.device}; move it: .to("{kind.device}")'
                )
            if strangeness := _strangeness(tensor, torch.strided):
                raise UserError(f"a network takes plain tensors, got one {strangeness}")
        return kind
    kinds = ", ".join(type(array).__name__ for array in inputs) or "nothing"
    raise UserError(f"a network takes numpy arrays or torch tensors, all of one kind; got {kinds}")


@functools.cache
def _numpy_arrays(device: tuple[str, int]) -> NumpyArrays:
    return NumpyArrays(device)


@functools.cache
def _torch_tensors(device: tuple[str, int]) -> TorchTensors:
    torch = sys.modules["torch"]
    return TorchTensors(torch.device(device[0]) if device[0] == "cpu" else torch.device(*device))


def _strangeness(tensor: Any, strided: Any) -> str:
    """Return why a torch tensor is not what its shape and dtype say, and what to do; nothing where it is."""
    if tensor.is_quantized:
        return "that is quantized; convert it: .dequantize()"
    if tensor.is_nested:
        return "that is nested; pad it: .to_padded_tensor(0)"
    if tensor.layout is not strided:
        return f"of layout {str(tensor.layout).removeprefix('torch.')}; convert it: .to_dense()"
    try:
        in_memory = tensor.data_ptr() or not tensor.numel()
    except RuntimeError:
        in_memory = False
    return "" if in_memory else "without memory: fake, masked, or under vmap or another transform of torch.func"


@functools.cache
def dtype_name(dtype: Any) -> str:
    """Return the name of a dtype of numpy or torch."""
    return str(dtype).removeprefix("torch.")


def numpy_dtype(name: str) -> np.dtype:
    """Return numpy's dtype called `name`; `bfloat16` is that of ml_dtypes."""
    if name == "bfloat16":
        import ml_dtypes

        return np.dtype(ml_dtypes.bfloat16)
    return np.dtype(name)


class NumpyArrays:
    """numpy arrays, in the CPU's memory; copied to the device and back where it is a GPU."""

    def __init__(self, device: tuple[str, int]) -> None:
        self._index = device[1]
        self._device = None if device[0] == "cpu" else tvm_ffi.device(*device)

    def pad(self, array: np.ndarray, size: int, axis: int) -> np.ndarray:
        if array.shape[axis] == size:
            return array
        missing = (*array.shape[:axis], size - array.shape[axis], *array.shape[axis + 1 :])
        return np.concatenate([array, np.zeros(missing, array.dtype)], axis)

    def to_tvm(self, array: np.ndarray) -> Any:
        if not array.flags.c_contiguous or array.ctypes.data % _ALIGNMENT or not array.flags.writeable:
            array = _aligned_copy(array)
        if dtype_name(array.dtype) == "bfloat16":
            # numpy exports no bfloat16: it crosses as integers of the same size
            tensor = tensor_view(tvm_ffi.from_dlpack(array.view(np.uint16)), "bfloat16", array.shape)
        else:
            tensor = tvm_ffi.from_dlpack(array)
        return tensor if self._device is None else copy_to(tensor, self._device)

    def from_tvm(self, tensor: Any) -> np.ndarray:
        if self._device is not None:
            tensor = copy_to(tensor, tvm_ffi.device("cpu"))
        if str(tensor.dtype) == "bfloat16":
            return np.from_dlpack(tensor_view(tensor, "uint16", tensor.shape)).view(numpy_dtype("bfloat16"))
        return np.from_dlpack(tensor)

    def copy(self, array: np.ndarray) -> np.ndarray:
        return array.copy()

    def concatenate(self, parts: Sequence[np.ndarray], axis: int) -> np.ndarray:
        return np.concatenate(parts, axis)

    def conversion(self, dtype: str) -> str:
        return f'.astype("{dtype}")' if dtype != "bfloat16" else ".astype(ml_dtypes.bfloat16)"

    def stream(self, order: StreamOrder) -> contextlib.AbstractContextManager[Any]:
        return _NO_STREAM if self._device is None else self._on_default_stream(order)

    @contextlib.contextmanager
    def _on_default_stream(self, order: StreamOrder) -> Iterator[None]:
        # the default stream, on which copies wait until they are done
        order.synchronize()
        try:
            yield
        except BaseException:
            with contextlib.suppress(Exception):
                synchronize_default_stream(self._index)
            raise


class TorchTensors:
    """torch tensors on the network's device; only made where the caller has imported torch."""

    def __init__(self, device: Any) -> None:
        self._torch = sys.modules["torch"]
        self.device = device

    def pad(self, array: Any, size: int, axis: int) -> Any:
        if array.shape[axis] == size:
            return array
        missing = (*array.shape[:axis], size - array.shape[axis], *array.shape[axis + 1 :])
        return self._torch.cat([array, array.new_zeros(missing)], axis)

    def to_tvm(self, array: Any) -> Any:
        # a lazy negative or conjugate is a bit beside the memory
        if array.is_conj() or array.is_neg():
            array = array.resolve_conj().resolve_neg()
        if array.requires_grad:
            array = array.detach()
        array = array.contiguous()
        if array.data_ptr() % _ALIGNMENT:
            array = array.clone()
        return tvm_ffi.from_dlpack(array)

    def from_tvm(self, tensor: Any) -> Any:
        return self._torch.from_dlpack(tensor)

    def copy(self, array: Any) -> Any:
        return array.clone()

    def concatenate(self, parts: Sequence[Any], axis: int) -> Any:
        return self._torch.cat(list(parts), axis)

    def conversion(self, dtype: str) -> str:
        return f".to(torch.{dtype})"

    def stream(self, order: StreamOrder) -> contextlib.AbstractContextManager[Any]:
        return _NO_STREAM if self.device.type != "cuda" else self._on_current_stream(order)

    @contextlib.contextmanager
    def _on_current_stream(self, order: StreamOrder) -> Iterator[None]:
        stream = self._torch.cuda.current_stream(self.device)
        order.enter(stream)
        # TVM makes the network's GPU the thread's current one; the caller's comes back after that
        with (
            self._torch.cuda.device(self.device),
            tvm_ffi.use_raw_stream(tvm_ffi.device("cuda", self.device.index), stream.cuda_stream),
        ):
            try:
                yield
            except BaseException:
                # what was queued still reads and writes memory that the next call is given
                with contextlib.suppress(Exception):
                    stream.synchronize()
                raise


def copy_to(tensor: Any, device: Any) -> Any:
    """Return a copy of a TVM tensor on `device`, made on the default stream, like the calls of numpy's users."""
    allocate = tvm_ffi.get_global_func("runtime.TVMTensorAllocWithScope")
    copy = allocate(tvm_ffi.Shape(tensor.shape), tensor.dtype, device, None)
    tvm_ffi.get_global_func("runtime.TVMTensorCopyFromTo")(tensor, copy)
    return copy


def tensor_view(tensor: Any, dtype: str, shape: Sequence[int]) -> Any:
    """Return a TVM tensor of another dtype and shape in the same memory."""
    view = tvm_ffi.get_global_func("runtime.TVMTensorCreateView")
    return view(tensor, tvm_ffi.Shape(tuple(shape)), tvm_ffi.dtype(dtype), 0)


def _aligned_copy(array: np.ndarray) -> np.ndarray:
    room = np.empty(array.nbytes + _ALIGNMENT, np.uint8)
    start = -room.ctypes.data % _ALIGNMENT
    copy = room[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    copy[...] = array
    return copy
