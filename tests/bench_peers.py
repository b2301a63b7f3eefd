# SPDX-License-Identifier: Apache-2.0
"""Peers that misbehave, for the tests of the engine; workers import them by name."""

from __future__ import annotations

import os
import signal
import sys
import time

import numpy as np

from tvm_involution.bench.contenders import Contender


class _Peer(Contender):
    package = "numpy"
    modules = ()
    extra = "none"
    settings = "for a test"

    @property
    def name(self):
        return type(self).__name__.lower()

    def load(self, subject, inputs):
        return lambda: np.zeros((len(inputs[0]), 10), np.float32)

    def to_arrays(self, outputs):
        return [outputs]


class Raises(_Peer):
    """An exception of its own while it builds."""

    def build(self, subject):
        raise RuntimeError("no such operator\nand more lines")


class Crashes(_Peer):
    """A dead process, after words on standard error, while it loads."""

    def load(self, subject, inputs):
        print("the driver is on fire", file=sys.stderr, flush=True)
        os.kill(os.getpid(), signal.SIGSEGV)


class Hangs(_Peer):
    """No answer."""

    def load(self, subject, inputs):
        time.sleep(600)


class Wrong(_Peer):
    """The right shape, and zeros."""


class Shapeless(_Peer):
    """Another shape."""

    def load(self, subject, inputs):
        return lambda: np.zeros((3, 3), np.float32)


class Chatty(_Peer):
    """Right, and prints to what is the worker's channel; dies in its second turn."""

    calls = 0

    def load(self, subject, inputs):
        right = np.load(subject.output("ours"))["arr_0"]

        def call():
            print("chatter", flush=True)
            os.write(1, b"more chatter\n")
            self.calls += 1
            if self.calls > 8:
                raise MemoryError("out of luck")
            return right

        return call
