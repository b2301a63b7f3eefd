# SPDX-License-Identifier: Apache-2.0
"""Look up the tuning record of a tensor program: of the target itself, else of the nearest one that was tuned.

A folder of tuning logs has one folder a target (`target.target_key`), each with a `TuningDatabase` and a `Manifest`.
"""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from pathlib import Path

import tvm
from tvm import s_tir, tirx

from ..errors import UserError
from ..runtime.tvm_runtime import tvm_version
from ..schedules.gpu import register_mma_intrinsics
from ..target import compute_capability, target_key, vector_bytes
from .database import FAILED, TuningDatabase, databases, exists, seconds
from .folders import log_folders
from .manifest import read_manifest

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Found:
    """A recorded schedule, and the target it was measured on."""

    schedule: s_tir.Schedule
    key: str


class TuningRecords:
    """The records that serve a target; empty where nothing has been tuned."""

    def __init__(self, target: tvm.target.Target, folder: str | os.PathLike[str] | None = None) -> None:
        """Open the records for `target`.

        Args:
            folder: a folder of tuning logs; by default the user's own, then the shipped ones.

        Raises:
            UserError: `folder` was named and does not exist, or a database cannot be read.
        """
        self.key = target_key(target)
        if target.kind.name == "cuda":
            register_mma_intrinsics()  # traces name them
        folders = log_folders(folder)
        own = [logs / self.key for logs in folders]
        others = [path for logs in folders for path in databases(logs) if path.name != self.key]
        near = sorted((path for path in others if _serves(path, target)), key=lambda path: _distance(path, target))
        found = [path for path in (*own, *near) if exists(path) and _current(path)]
        self._databases = [(path.name, TuningDatabase(path)) for path in found]

    def find(self, func: tirx.PrimFunc) -> Found | None:
        """Return the best recorded schedule of `func`, or None; a record that no longer applies is skipped."""
        workload = as_workload(func)
        for key, database in self._databases:
            for record in database.records(workload):
                if seconds(record) >= FAILED:
                    break
                sch = s_tir.Schedule(workload)
                try:
                    record.trace.apply_to_schedule(sch, remove_postproc=False)
                except (RuntimeError, ValueError) as error:
                    _log.warning(
                        "a tuning record of %s no longer applies and is skipped: %s", key, str(error).splitlines()[0]
                    )
                    continue
                return Found(sch, key)
        return None


def as_workload(func: tirx.PrimFunc) -> tvm.IRModule:
    """Return `func` as the key of the database: without the attributes that depend on the network around it."""
    bare = func.without_attr("op_pattern") if func.attrs and "op_pattern" in func.attrs else func
    return tvm.IRModule({"main": bare.with_attr("global_symbol", "main").with_attr("tirx.noalias", True)})


def _current(folder: Path) -> bool:
    """Return whether the records of `folder` are of this TVM; another's may not apply, or mean something else."""
    manifest = read_manifest(folder)
    if manifest is not None and manifest.tvm_version == tvm_version():
        return True
    of = f"are of TVM {manifest.tvm_version}" if manifest is not None else "lack manifest.json, which says of which TVM"
    _log.warning("tuning logs %s %s, this is %s: skipped; tune again", folder, of, tvm_version())
    return False


def _serves(folder: Path, target: tvm.target.Target) -> bool:
    """Return whether code tuned for the target of `folder` is a good guess for `target`, and can be built for it."""
    other = _target_of(folder)
    if other is None or other.kind.name != target.kind.name:
        return False
    if target.kind.name == "cuda":
        limit = "max_shared_memory_per_block"
        fits = int(other.attrs.get(limit, 0)) <= int(target.attrs.get(limit, 0))
        return fits and compute_capability(other) <= compute_capability(target)
    return vector_bytes(other) == vector_bytes(target)


def _distance(folder: Path, target: tvm.target.Target) -> float:
    other = _target_of(folder)
    assert other is not None
    if target.kind.name == "cuda":
        return compute_capability(target) - compute_capability(other)
    return abs(int(other.attrs.get("num-cores") or 0) - int(target.attrs.get("num-cores") or 0))


def _target_of(folder: Path) -> tvm.target.Target | None:
    manifest = read_manifest(folder)
    try:
        return tvm.target.Target(manifest.target) if manifest is not None else None
    except (RuntimeError, ValueError, TypeError) as error:
        raise UserError(f"the manifest of {folder} names no target; tune again or remove the folder") from error
