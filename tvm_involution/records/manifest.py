# SPDX-License-Identifier: Apache-2.0
"""`manifest.json` of a folder of tuning logs: what was tuned, with which TVM, on which machine."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ..errors import UserError
from ..files import write_json
from ..runtime.tvm_runtime import tvm_version

NAME = "manifest.json"


@dataclass(frozen=True)
class TunedNetwork:
    """One network at one batch size and dtype."""

    model: str
    batch: int
    dtype: str
    image_size: tuple[int, ...]
    """height and width in pixels"""
    kernels: int
    recorded: int
    """kernels that have a record"""
    trials: int
    minutes: float
    default_ms: float
    """the sum of the kernels' times with the rules' defaults"""
    tuned_ms: float
    """the sum with the records"""
    date: str

    @property
    def label(self) -> str:
        """`model/batch/dtype`."""
        return f"{self.model}/{self.batch}/{self.dtype}"


@dataclass
class Manifest:
    """What is known of a folder's records."""

    tvm_version: str
    target: dict[str, Any]
    machine: str
    networks: list[TunedNetwork] = field(default_factory=list)

    def add(self, network: TunedNetwork) -> None:
        """Enter a network in place of an older entry for the same."""

        def key(entry: TunedNetwork) -> tuple[str, tuple[int, ...]]:
            return entry.label, entry.image_size

        self.networks = [*(entry for entry in self.networks if key(entry) != key(network)), network]

    def write(self, folder: Path) -> None:
        """Write it to `folder`, whole or not at all."""
        write_json(folder / NAME, asdict(self))


def writable_manifest(folder: Path, holds_records: bool) -> Manifest | None:
    """Return the manifest of a folder that records are added to; None where it holds none yet.

    Raises:
        UserError: the records there are of another TVM, or do not say of which.
    """
    found = read_manifest(folder)
    if found is None and not holds_records:
        return None
    if found is None or found.tvm_version != tvm_version():
        of = (
            f"are of TVM {found.tvm_version}" if found is not None else f"lack {NAME}, which says of which TVM they are"
        )
        raise UserError(f"the records in {folder} {of}, this is {tvm_version()}; move them away or name another folder")
    return found


def read_manifest(folder: Path) -> Manifest | None:
    """Return the manifest of `folder`, None where there is none.

    Raises:
        UserError: it is damaged.
    """
    try:
        data = json.loads((folder / NAME).read_text())
        networks = [TunedNetwork(**{**row, "image_size": tuple(row["image_size"])}) for row in data.pop("networks")]
        return Manifest(**data, networks=networks)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UserError(f"{folder / NAME} cannot be read ({error}); tune again or remove the folder") from error
