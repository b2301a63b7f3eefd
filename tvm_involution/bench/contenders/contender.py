# SPDX-License-Identifier: Apache-2.0
"""What a contender is."""

from __future__ import annotations

import importlib.metadata
import importlib.util
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import numpy as np

from ..subject import Subject

INT8 = "int8"
"""that of `runtime.metadata`, which is not imported here, for what it costs"""


class Contender(ABC):
    """A way to run a network.

    A contender's file imports its library inside `build` and `load`: what a contender costs to load and in memory is
    measured, so nothing may come along with another one.
    """

    name: ClassVar[str]
    """what --against takes"""
    package: ClassVar[str]
    """the distribution whose version is shown"""
    modules: ClassVar[tuple[str, ...]]
    """what must be importable"""
    extra: ClassVar[str]
    """the extras of this project that install them"""
    settings: ClassVar[str]
    """how it is run, in the report's words"""
    dtypes: ClassVar[tuple[str, ...]] = ("float32", "float16", "bfloat16")
    """in what it can compute on a CPU"""

    def missing_modules(self) -> list[str]:
        """Return the modules that are not installed."""
        return [module for module in self.modules if importlib.util.find_spec(module) is None]

    def version(self) -> str:
        """Return the version of `package`, "?" where it is no installed distribution."""
        try:
            return importlib.metadata.version(self.package)
        except importlib.metadata.PackageNotFoundError:
            return "?"

    def build(self, subject: Subject) -> None:  # noqa: B027
        """Do what is done once, ahead of time, in a process that ends before `load`; leave files in the folder."""

    def size_bytes(self, subject: Subject) -> int | None:
        """Return the size of the files that `load` reads, None where the network is built by Python code."""
        return None

    @abstractmethod
    def load(self, subject: Subject, inputs: Sequence[np.ndarray]) -> Callable[[], Any]:
        """Return a call that runs one inference of `inputs` and returns the outputs as the library gives them."""

    @abstractmethod
    def to_arrays(self, outputs: Any) -> list[np.ndarray]:
        """Return what the call returned as arrays."""
