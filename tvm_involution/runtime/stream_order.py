# SPDX-License-Identifier: Apache-2.0
"""Calls from several CUDA streams take turns: a network has its buffers once, the networks of a GPU share a pool."""

from __future__ import annotations

import threading
from typing import Protocol


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
