# SPDX-License-Identifier: Apache-2.0
"""Calls on a GPU take turns, tried without one: a network runs on the CPU and is told that it is on a GPU.

What is looked at is what CUDA would see: the current GPU, what is freed under the lock, and what is waited for.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import weakref
from types import SimpleNamespace
from typing import ClassVar

import numpy as np
import pytest
from library_fixture import METADATA, affine_library

import tvm_involution as ti
from tvm_involution.runtime import arrays, cuda_device, network
from tvm_involution.runtime.arrays import NumpyArrays, TorchTensors
from tvm_involution.runtime.library_file import OpenedLibrary
from tvm_involution.runtime.stream_order import StreamOrder, order_of

GPU = 3


class FakeRuntime:
    """CUDA's runtime library, of which a thread's current GPU is asked for and set."""

    def __init__(self) -> None:
        self.current = 1

    def cudaGetDevice(self, pointer) -> int:
        ctypes.cast(pointer, ctypes.POINTER(ctypes.c_int))[0] = self.current
        return 0

    def cudaSetDevice(self, device: int) -> int:
        self.current = device
        return 0


class FakeArrays(NumpyArrays):
    """Arrays that are copied to a GPU, which is the CPU; notes whether the lock is held when a copy is freed."""

    freed_under_lock: ClassVar[list[bool]] = []

    def __init__(self, order: StreamOrder, runtime: FakeRuntime) -> None:
        super().__init__(("cpu", 0))
        self.order, self.runtime = order, runtime

    def to_tvm(self, array):
        self.runtime.current = GPU
        copy = arrays._aligned_copy(array)
        weakref.finalize(copy, lambda: self.freed_under_lock.append(self.order.lock.locked()))
        return super().to_tvm(copy)

    @contextlib.contextmanager
    def stream(self, order):
        self._device, self._index = "a GPU", GPU
        with super().stream(order):
            self._device = None
            yield


@pytest.fixture
def runtime(monkeypatch) -> FakeRuntime:
    fake = FakeRuntime()
    monkeypatch.setattr(cuda_device, "runtime_library", lambda: fake)
    return fake


@pytest.fixture
def waited(monkeypatch) -> list[tuple[int, bool]]:
    """The GPUs whose default stream was waited for, and whether under the lock."""
    noted: list[tuple[int, bool]] = []
    monkeypatch.setattr(
        arrays, "synchronize_default_stream", lambda gpu: noted.append((gpu, order_of(gpu).lock.locked()))
    )
    return noted


@pytest.fixture
def net(tmp_path, monkeypatch, runtime, waited):
    loaded = ti.load(affine_library(tmp_path / "net.so"))
    loaded.device, loaded._order = ("cuda", GPU), order_of(GPU)
    monkeypatch.setattr(FakeArrays, "freed_under_lock", [])
    monkeypatch.setattr(network, "array_kind", lambda inputs, device: FakeArrays(order_of(GPU), runtime))
    return loaded


def test_what_a_call_leaves(rng, net, runtime, waited):
    x = rng.standard_normal((9, 4), np.float32)
    for _ in range(3):
        np.testing.assert_allclose(net(x), 2 * x + 1, rtol=1e-6)
    assert runtime.current == 1
    # a batch of 9 is served by two functions
    assert FakeArrays.freed_under_lock == [True] * 6
    assert not order_of(GPU).lock.locked() and not waited


@pytest.mark.parametrize("error", [RuntimeError("no room"), ti.UserError("refused"), KeyboardInterrupt()], ids=repr)
def test_what_an_error_leaves(rng, net, runtime, waited, error):
    """Nothing runs on, no tensor of the call outlives its turn, even while the error is looked at."""

    def stop(*_):
        raise error

    net._functions["batch_1"] = stop
    with pytest.raises(type(error) if isinstance(error, (ti.UserError, KeyboardInterrupt)) else ti.UserError) as caught:
        net(rng.standard_normal((1, 4), np.float32))
    assert waited == [(GPU, True)]
    assert runtime.current == 1 and not order_of(GPU).lock.locked()
    if not isinstance(error, KeyboardInterrupt):
        assert caught.value is not None and FakeArrays.freed_under_lock == [True]


def test_an_answer_that_is_not_as_said_is_freed_in_turn(rng, net):
    net._functions["batch_1"] = lambda x: [x, x]
    with pytest.raises(ti.UserError, match="which its metadata do not say") as caught:
        net(rng.standard_normal((1, 4), np.float32))
    assert caught.value is not None and FakeArrays.freed_under_lock == [True]


def test_no_room_for_the_inputs(rng, net, monkeypatch):
    def full(*_):
        raise RuntimeError("CUDA: out of memory")

    monkeypatch.setattr(FakeArrays, "to_tvm", full)
    with pytest.raises(ti.UserError, match="small stopped: CUDA: out of memory; where memory is short free some"):
        net(rng.standard_normal((1, 4), np.float32))


def test_loading_waits_for_its_turn(tmp_path, monkeypatch, runtime):
    seen = []

    def start(*_):
        runtime.current = GPU
        seen.append(order_of(GPU).lock.locked())
        raise ti.UserError("seen")

    monkeypatch.setattr(network, "_start", start)
    metadata = dataclasses.replace(METADATA, device_type="cuda")
    with pytest.raises(ti.UserError, match="seen"):
        network.CompiledNetwork(
            network.LibrarySource("x.so", ""), OpenedLibrary(tmp_path / "x.so", metadata, "", None), GPU
        )
    assert seen == [True]
    assert runtime.current == 1 and not order_of(GPU).lock.locked()


def test_what_is_discarded_during_a_call_is_freed_at_its_end(runtime):
    """A finalizer runs in any thread, also in the one that holds the lock, and must not wait for it."""
    order, holder, other = StreamOrder(), {1: object()}, {1: object()}
    with order.turn():
        order.discard(holder)
        assert holder
    assert not holder
    order.discard(other)
    assert not other and not order.lock.locked()


class FakeStream:
    cuda_stream = 5

    def __init__(self) -> None:
        self.idle = 0

    def synchronize(self) -> None:
        self.idle += 1


def test_torch_streams_are_waited_for_before_numpy_runs(runtime, waited):
    order, stream = StreamOrder(), FakeStream()
    order.enter(stream)
    with FakeArrays(order, runtime).stream(order):
        assert stream.idle == 1


def test_torch_streams_are_waited_for_after_an_error(monkeypatch):
    stream, nothing = FakeStream(), contextlib.nullcontext
    monkeypatch.setattr(arrays.tvm_ffi, "use_raw_stream", lambda *_: nothing())
    monkeypatch.setattr(arrays.tvm_ffi, "device", lambda *_: None)
    kind = TorchTensors(SimpleNamespace(type="cuda", index=GPU))
    kind._torch = SimpleNamespace(cuda=SimpleNamespace(current_stream=lambda _: stream, device=lambda _: nothing()))
    with kind.stream(StreamOrder()):
        pass
    assert stream.idle == 0
    with pytest.raises(RuntimeError, match="no room"), kind.stream(StreamOrder()):
        raise RuntimeError("no room")
    assert stream.idle == 1
