# SPDX-License-Identifier: Apache-2.0
"""The kernels of this process: compiled for the shapes that come again, kept in memory and in a folder.

A shape that comes for the third time is compiled in another process, while the plain form of the operator serves. The
folder has what was compiled before, by any process, at once.
"""

from __future__ import annotations

import functools
import hashlib
import json
import logging
import os
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from ..errors import UserError
from ..library_cache import cache_folder, compiler_words, cpu_words, make_private, prune
from .aggregation import FUNCTION, Aggregation
from .compiling import Compiling

MODES = ("background", "wait", "off")
VARIABLE = "TVM_INVOLUTION_KERNELS"
Run = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], None]
"""runs a kernel on its two inputs and its output, contiguous in the order of `Aggregation`'s shapes"""

# calls of a shape without a kernel; what is called once, for a look, is not worth one
_CALLS = 2
# kernels of a process; who gives other sizes all the time keeps the plain form
_MOST = 1024
_DTYPES = {torch.float32: "float32", torch.float16: "float16", torch.bfloat16: "bfloat16"}
# programs have a part for each phase of a stride; their tiles are of a row of windows at least
_MOST_PHASES = 16
_MOST_TAPS = 1024
_TARGETS = {"cpu": "llvm", "cuda": "cuda"}
_log = logging.getLogger("tvm_involution")


def mode_of_environment() -> str:
    """Return the mode that the environment asks for, `background` by default.

    Raises:
        UserError: it is none.
    """
    asked = os.environ.get(VARIABLE) or "background"
    if asked not in MODES:
        raise UserError(f"{VARIABLE} must be one of {', '.join(MODES)}, got {asked!r:.40}")
    return asked


def check_mode(mode: str) -> str:
    """Return a mode.

    Raises:
        UserError: it is none.
    """
    if mode not in MODES:
        raise UserError(f"mode must be one of {', '.join(MODES)}, got {mode!r:.40}")
    return mode


class Store:
    """The kernels of a process."""

    def __init__(self) -> None:
        self.mode = mode_of_environment()
        self._changed = threading.Condition()
        self._kernels: dict[Any, _Kernel] = {}
        self._compiling = Compiling()
        self._own_folder: tempfile.TemporaryDirectory[str] | None = None
        self._failed = False

    def find(self, operator: str, sizes: Aggregation, device: torch.device) -> Run | None:
        """Return what runs an operator on tensors of these sizes; None where the plain form has to serve."""
        mode = self.mode
        if mode == "background" and torch.are_deterministic_algorithms_enabled():
            mode = "wait"  # a kernel's sums are in another order than the plain form's
        if mode == "off":
            return None
        key = (operator, sizes, device)
        kernel = self._kernels.get(key)
        if kernel is None:
            if len(self._kernels) >= _MOST or not _can_be(sizes):
                return None
            kernel = self._kernels.setdefault(key, _Kernel())
        if kernel.run is None and not kernel.refused:
            self._next(kernel, operator, sizes, device, wait=mode == "wait")
        return kernel.run

    def wait(self, timeout: float | None = None) -> bool:
        """Block until all kernels that are being compiled are there, or so many seconds; return whether they are."""
        end = None if timeout is None else time.monotonic() + timeout
        with self._changed:
            while any(kernel.asked for kernel in self._kernels.values()):
                left = None if end is None else end - time.monotonic()
                if left is not None and left <= 0:
                    return False
                self._changed.wait(left)
        return True

    def counts(self) -> dict[str, int]:
        """Return how many kernels are ready, being compiled, and refused."""
        kernels = list(self._kernels.values())
        return {
            "ready": sum(kernel.run is not None for kernel in kernels),
            "compiling": sum(kernel.asked for kernel in kernels),
            "refused": sum(kernel.refused for kernel in kernels),
        }

    def _next(self, kernel: _Kernel, operator: str, sizes: Aggregation, device: torch.device, wait: bool) -> None:
        """Do what brings a kernel nearer: take it from the folder, ask for it, or count the calls."""
        if kernel.path is None:
            kernel.path = self._path(operator, sizes, device)
            if kernel.path.exists():
                self._load(kernel, device)
                if kernel.run is not None:
                    return
        with self._changed:
            kernel.calls += 1
            if not kernel.asked and not kernel.compiled and (wait or kernel.calls > _CALLS):
                kernel.asked = True
                done = functools.partial(self._done, kernel)
                self._compiling.ask(operator, sizes, _TARGETS[device.type], kernel.path, done)
            if wait:
                self._changed.wait_for(lambda: not kernel.asked)
        if kernel.compiled:
            self._load(kernel, device)

    def _done(self, kernel: _Kernel, problem: str | None) -> None:
        if problem is not None:
            level = logging.DEBUG if self._failed else logging.WARNING
            _log.log(level, "an involution runs in its plain form: %s", problem)
            self._failed = True
        elif kernel.path is not None:
            _log.info("compiled a kernel: %s", kernel.path)
            prune(kernel.path.parent)
        # the last, for somebody may wait for it
        with self._changed:
            kernel.compiled, kernel.refused, kernel.asked = problem is None, problem is not None, False
            self._changed.notify_all()

    def _load(self, kernel: _Kernel, device: torch.device) -> None:
        from .calling import load_kernel  # tvm_ffi, which the first kernel alone needs

        assert kernel.path is not None
        try:
            os.utime(kernel.path)
            kernel.run = load_kernel(kernel.path, device)
        except Exception as error:  # the loader's own error classes differ between versions
            _log.warning("a kernel cannot be loaded and is compiled again: %s", str(error).strip().splitlines()[-1])
            kernel.refused = kernel.compiled
            kernel.compiled = False

    def _path(self, operator: str, sizes: Aggregation, device: torch.device) -> Path:
        folder = cache_folder("kernels")
        if not make_private(folder):
            self._own_folder = self._own_folder or tempfile.TemporaryDirectory(prefix="tvm-involution-")
            folder = Path(self._own_folder.name)
        words = [operator, json.dumps(sizes.to_json()), FUNCTION, *_machine(device), *compiler_words()]
        return folder / f"{hashlib.sha256(chr(0).join(words).encode()).hexdigest()}.so"


class _Kernel:
    """What is known of one kernel."""

    def __init__(self) -> None:
        self.calls = 0
        self.path: Path | None = None
        self.asked = False
        """it is being compiled"""
        self.compiled = False
        """it was, in this process"""
        self.refused = False
        """there is none, and will be none"""
        self.run: Run | None = None


def sizes_of(
    tensor: torch.Tensor,
    shape: tuple[int, ...],
    kernel_size: tuple[int, ...],
    groups: int,
    geometry: tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]],
    channels_last: bool,
) -> Aggregation | None:
    """Return the sizes of an involution of an input of this shape; None where no kernel is made for the tensor's dtype
    or device."""
    dtype = _DTYPES.get(tensor.dtype)
    if dtype is None or tensor.device.type not in _TARGETS:
        return None
    n, channels, *size = shape
    return Aggregation(n, channels, groups, tuple(size), kernel_size, *geometry, dtype, channels_last)


def _can_be(sizes: Aggregation) -> bool:
    """Return whether the programs are made for such sizes: places in tensors are numbers of 32 bits."""
    phases = taps = 1
    for step, extent in zip(sizes.stride, sizes.kernel_size, strict=True):
        phases, taps = phases * step, taps * extent
    numbers = max(sizes.multiply_adds // max(1, sizes.group_channels), sizes.channels * sizes.batch)
    return sizes.multiply_adds > 0 and numbers < 1 << 31 and phases <= _MOST_PHASES and taps <= _MOST_TAPS


def _machine(device: torch.device) -> list[str]:
    if device.type == "cuda":
        return [torch.cuda.get_device_name(device), str(torch.cuda.get_device_capability(device))]
    return cpu_words()


_store: Store | None = None


def store() -> Store:
    """Return the kernels of this process."""
    global _store
    if _store is None:
        _store = Store()
    return _store


def _forget_processes() -> None:
    # a forked child has neither the process that compiles nor the thread that listens to it
    if _store is not None:
        fresh = Store()
        fresh.mode = _store.mode
        fresh._kernels = {key: kernel for key, kernel in _store._kernels.items() if kernel.run is not None}
        globals()["_store"] = fresh


os.register_at_fork(after_in_child=_forget_processes)
