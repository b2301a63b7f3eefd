# SPDX-License-Identifier: Apache-2.0
"""Memory crosses without a copy where the kernels can take it as it is."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tvm_involution.runtime.arrays import NumpyArrays, TorchTensors, copy_to, numpy_dtype
from tvm_involution.runtime.ffi import tvm_ffi
from tvm_involution.runtime.tvm_runtime import load_runtime


@pytest.fixture(autouse=True, scope="module")
def runtime() -> None:
    load_runtime()


def aligned(rng: np.random.Generator, offset: int) -> np.ndarray:
    """Return 32 numbers at `offset` bytes from a boundary of 64."""
    room = np.zeros(256, np.uint8)
    start = -room.ctypes.data % 64 + offset
    array = room[start : start + 128].view(np.float32).reshape(8, 4)
    array[...] = rng.standard_normal((8, 4))
    return array


def address(tensor) -> int:
    return np.from_dlpack(tensor).ctypes.data


@pytest.mark.parametrize("offset", [0, 4, 16, 32])
def test_only_misaligned_memory_is_copied(rng: np.random.Generator, offset: int) -> None:
    array = aligned(rng, offset)
    tensor = torch.from_numpy(array)
    for kind, given in ((NumpyArrays(("cpu", 0)), array), (TorchTensors(tensor.device), tensor)):
        taken = kind.to_tvm(given)
        assert address(taken) % 64 == 0
        assert (address(taken) == array.ctypes.data) == (offset == 0)
        np.testing.assert_array_equal(np.from_dlpack(taken), array)


@pytest.mark.parametrize("name", ["numpy", "torch"])
def test_outputs_are_not_copied(rng: np.random.Generator, name: str) -> None:
    tensor = tvm_ffi.from_dlpack(aligned(rng, 0))
    if name == "numpy":
        assert NumpyArrays(("cpu", 0)).from_tvm(tensor).ctypes.data == address(tensor)
    else:
        assert TorchTensors(torch.device("cpu")).from_tvm(tensor).data_ptr() == address(tensor)


@pytest.mark.parametrize("name", ["numpy", "torch"])
def test_padding_is_zeros(rng: np.random.Generator, name: str) -> None:
    array = rng.standard_normal((3, 4), np.float32)
    kind = NumpyArrays(("cpu", 0)) if name == "numpy" else TorchTensors(torch.device("cpu"))
    given = array if name == "numpy" else torch.from_numpy(array)
    padded = kind.pad(given, 8, 0)
    np.testing.assert_array_equal(padded, np.concatenate([array, np.zeros((5, 4))]))
    assert kind.pad(given, 3, 0) is given
    np.testing.assert_array_equal(kind.pad(given, 6, 1), np.concatenate([array, np.zeros((3, 2))], 1))


def test_bfloat16_crosses_bit_by_bit() -> None:
    """Every one of the 65536 values, NaN payloads included."""
    array = np.arange(2**16, dtype=np.uint16).view(numpy_dtype("bfloat16"))
    kind = NumpyArrays(("cpu", 0))
    tensor = kind.to_tvm(array)
    assert str(tensor.dtype) == "bfloat16"
    back = kind.from_tvm(tensor)
    assert back.dtype == array.dtype
    np.testing.assert_array_equal(back.view(np.uint16), array.view(np.uint16))


def test_copy_to_a_device(rng: np.random.Generator) -> None:
    array = aligned(rng, 0)
    copy = np.from_dlpack(copy_to(tvm_ffi.from_dlpack(array), tvm_ffi.device("cpu")))
    np.testing.assert_array_equal(copy, array)
    assert not np.shares_memory(copy, array)
