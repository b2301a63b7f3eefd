# SPDX-License-Identifier: Apache-2.0
"""Calls from several CUDA streams take turns: a network has its buffers once, the networks of a GPU share a pool."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import Any, Protocol

from .cuda_device import current_gpu_kept


class Stream(Protocol):
    """What is needed of a `torch.cuda.Stream`."""

    @property
    def cuda_stream(self) -> int:
        """The `cudaStream_t`."""

    def wait_stream(self, stream: Stream) -> None:
        """Let work queued from now on wait for what `stream` was given so far."""

    def synchronize(self) -> None:
        """Block until the stream is idle."""


class StreamOrder:
    """The streams that networks were called on, and the lock under which one at a time is queued.

    A call writes activations that the call before, on another stream, may still be reading; and memory that any network
    of the process dropped is used again, whose last readers may be queued on any stream that outputs were returned on.
    """

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self._streams: dict[int, Stream] = {}
        self._discarded: list[dict[Any, Any]] = []

    @contextlib.contextmanager
    def turn(self) -> Iterator[None]:
        """Return a context that one thread at a time is in, and that leaves the thread the current GPU it had."""
        with self.lock, self._cleaned_up():
            yield

    def discard(self, holder: dict[Any, Any]) -> None:
        """Clear `holder` while no network is called, since freeing memory of a GPU ends another thread's capture.

        At once, or at the end of the call in progress: a finalizer may run within one, and must not wait for it.
        """
        self._discarded.append(holder)
        if self.lock.acquire(blocking=False):
            try:
                with self._cleaned_up():
                    pass
            finally:
                self.lock.release()

    @contextlib.contextmanager
    def _cleaned_up(self) -> Iterator[None]:
        with current_gpu_kept():
            try:
                yield
            finally:
                while self._discarded:
                    self._discarded.pop().clear()

    def enter(self, stream: Stream) -> None:
        """Let `stream` wait for all the others, on the GPU."""
        for handle, other in self._streams.items():
            if handle != stream.cuda_stream:
                stream.wait_stream(other)
        self._streams[stream.cuda_stream] = stream

    def synchronize(self) -> None:
        """Block until all of them are idle."""
        for stream in self._streams.values():
            stream.synchronize()


_orders: dict[int, StreamOrder] = {}


def order_of(gpu: int) -> StreamOrder:
    """Return the one order of all networks of this process on GPU number `gpu`."""
    return _orders.setdefault(gpu, StreamOrder())
