# SPDX-License-Identifier: Apache-2.0
"""Calls from several CUDA streams take turns on a network's buffers, which it has once."""

from __future__ import annotations

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
    """The streams that a network was called on.

    A call writes activations that the call before, on another stream, may still be reading; and memory of outputs that
    were dropped is used again, whose last readers may be queued on any stream that outputs were returned on.
    """

    def __init__(self) -> None:
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
