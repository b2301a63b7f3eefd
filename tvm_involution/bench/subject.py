# SPDX-License-Identifier: Apache-2.0
"""What is timed: one network at one size, and the files that its contenders share."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np


@dataclasses.dataclass(frozen=True)
class Subject:
    """One network for one batch size, image size and dtype; every worker gets it as JSON."""

    model: str
    """a zoo name, a .pt2 file or package.module:function; for a library that was compiled before, its network"""
    threads: int
    folder: Path = Path()
    """for the files that the contenders make; a temporary one of `compare`"""
    batch: int | None = None
    dtype: str | None = None
    image_size: tuple[int, int] | None = None
    checkpoint: Path | None = None
    checkpoint_key: str | None = None
    num_classes: int | None = None
    tuning_logs: Path | None = None
    calibration: Path | None = None
    """for int8, pictures or arrays as `compile` takes them; random ones where there are none"""
    given_library: Path | None = None
    """a library that was compiled before; compiled from `model` where there is none"""

    @property
    def library(self) -> Path:
        """Our compiled library."""
        return self.given_library or self.folder / "ours.so"

    @property
    def reference(self) -> Path:
        """Where the outputs of the reference are."""
        return self.folder / "reference.npz"

    def output(self, contender: str) -> Path:
        """Where the outputs of `contender` are."""
        return self.folder / f"{contender}.npz"

    def read_inputs(self) -> list[np.ndarray]:
        """Return the network's inputs, (N, ...) float32 with values that its dtype can hold."""
        return read_arrays(self.folder / "inputs.npz")

    def write_inputs(self, inputs: Sequence[np.ndarray]) -> None:
        """Store what `read_inputs` returns."""
        np.savez(self.folder / "inputs.npz", *inputs)

    def to_json(self) -> dict[str, Any]:
        """Return the fields as JSON holds them."""
        return {k: str(v) if isinstance(v, Path) else v for k, v in dataclasses.asdict(self).items()}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Subject:
        """Read what `to_json` returned."""
        paths = {
            k: Path(data[k]) for k in ("folder", "checkpoint", "tuning_logs", "calibration", "given_library") if data[k]
        }
        size = tuple(data["image_size"]) if data["image_size"] else None
        return cls(**{**data, **paths, "image_size": size})


def read_arrays(path: Path) -> list[np.ndarray]:
    """Return the arrays that `numpy.savez` was given, in their order."""
    with np.load(path) as file:
        return [file[name] for name in file.files]
