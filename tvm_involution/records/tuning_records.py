# SPDX-License-Identifier: Apache-2.0
"""Look up the tuning record of a tensor program: of the target itself, else of the nearest one that was tuned.

A folder of tuning logs has one folder a target (`target.target_key`), each with a `TuningDatabase` and a `Manifest`.
"""

from __future__ import annotations

import logging
import math
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tvm
from tvm import s_tir, tirx
from tvm.s_tir import meta_schedule as ms

from ..errors import UserError
from ..runtime.tvm_runtime import tvm_version
from ..schedules import rules_for
from ..schedules.gpu import register_mma_intrinsics
from ..schedules.rule import nodes_of
from ..target import compute_capability, target_key, vector_bytes
from .database import FAILED, TuningDatabase, databases, exists, seconds
from .folders import log_folders
from .manifest import read_manifest

_log = logging.getLogger(__name__)
# programs at other sizes that are asked for their decisions, the nearest first
_KIN = 3


@dataclass(frozen=True)
class Found:
    """A recorded schedule, the target it was measured on, and the folder of the record."""

    schedule: s_tir.Schedule
    key: str
    folder: Path
    lent: bool = False
    """whether the record is of the same program at another batch or size"""

    @property
    def origin(self) -> str:
        """What it was measured on, for reports."""
        return f"{self.key} at another batch or size" if self.lent else self.key


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
        self._target, self._named = target, folder is not None
        if target.kind.name == "cuda":
            register_mma_intrinsics()  # traces name them
        folders = log_folders(folder)
        own = [logs / self.key for logs in folders]
        others = [path for logs in folders for path in databases(logs) if path.name != self.key]
        # one without a manifest serves nobody, which is said
        near = [path for path in others if read_manifest(path) is None or _serves(path, target)]
        near.sort(key=lambda path: _distance(path, target))
        found = [path for path in (*own, *near) if exists(path) and _current(path)]
        self._databases = [(path, TuningDatabase(path)) for path in found]
        self._kin: dict[str, list[tuple[Path, TuningDatabase, tvm.IRModule]]] | None = None
        self._uses: Counter[tuple[Path, bool]] = Counter()
        self._unfound = 0

    def find(self, func: tirx.PrimFunc) -> Found | None:
        """Return the best recorded schedule of `func`, or None; a record that no longer applies is skipped.

        Where `func` has no record of its own, one of the same program at another batch or size lends its decisions, if
        they make a point of `func`'s own design space.
        """
        workload = as_workload(func)
        found = self._own(workload) or self._lent(workload)
        if found is None:
            self._unfound += 1
        else:
            self._uses[found.folder, found.lent] += 1
        return found

    def notes(self, network: str, batches: Sequence[int], dtype: str, size: Sequence[int]) -> list[str]:
        """Say which folders gave the records so far, and why what they hold of `network` did not fit."""
        said = []
        for (folder, lent), count in self._uses.items():
            of = " of another batch or size" if lent else ""
            said.append(f"{count} kernel{'s have' if count > 1 else ' has'} a tuning record{of} from {folder}")
        if not self._unfound:
            return said
        for folder, _ in self._databases:
            manifest = read_manifest(folder)
            tuned = [entry for entry in manifest.networks if entry.model == network] if manifest is not None else []
            forms = {f"batch {e.batch}, {e.dtype}, {'x'.join(map(str, e.image_size))}" for e in tuned}
            wanted = {f"batch {batch}, {dtype}, {'x'.join(map(str, size))}" for batch in batches}
            if tuned and not wanted <= forms:
                missing = "; ".join(sorted(wanted - forms))
                said.append(f"{folder} holds {network} at {'; '.join(sorted(forms))}, not at {missing}: tune it there")
            elif not tuned and self._named:
                said.append(f"{folder} holds no records of {network}")
        return said

    def _own(self, workload: tvm.IRModule) -> Found | None:
        for folder, database in self._databases:
            for record in database.records(workload):
                if seconds(record) >= FAILED:
                    break
                sch = s_tir.Schedule(workload)
                try:
                    record.trace.apply_to_schedule(sch, remove_postproc=False)
                except (RuntimeError, ValueError) as error:
                    reason = str(error).splitlines()[0]
                    _log.warning("a tuning record of %s no longer applies and is skipped: %s", folder.name, reason)
                    continue
                return Found(sch, folder.name, folder)
        return None

    def _lent(self, workload: tvm.IRModule) -> Found | None:
        texts: set[str] = set()
        for folder, database, other in self._kin_of(workload)[:_KIN]:
            record = database.records(other)[0]
            if seconds(record) >= FAILED or (sch := _as_evenly(record, workload)) is None:
                continue
            # what a rule would choose among anyway is right here too, and no other trace is known to be
            texts = texts or {_without_decisions(variant.trace) for variant in _variants(workload, self._target)}
            if _without_decisions(record.trace) in texts:
                return Found(sch, folder.name, folder, lent=True)
        return None

    def _kin_of(self, workload: tvm.IRModule) -> list[tuple[Path, TuningDatabase, tvm.IRModule]]:
        """Return the recorded programs that differ from `workload` in batch and size alone, the nearest size first."""
        if self._kin is None:
            self._kin = {}
            for folder, database in self._databases:
                workloads = {record.workload for record in database.all_records()}
                for other in workloads:
                    self._kin.setdefault(_kind_of(other.mod), []).append((folder, database, other.mod))
        size = _elements(workload)
        return sorted(self._kin.get(_kind_of(workload), []), key=lambda kin: abs(math.log(_elements(kin[2]) / size)))


def _as_evenly(record: ms.database.TuningRecord, workload: tvm.IRModule) -> s_tir.Schedule | None:
    """Return `workload` scheduled as the record's own program is, None where its tiles do not divide it as evenly.

    Much quicker than to ask a rule for its space.
    """
    schedules = []
    for mod in (record.workload.mod, workload):
        sch = s_tir.Schedule(mod)
        try:
            record.trace.apply_to_schedule(sch, remove_postproc=False)
        except (RuntimeError, ValueError):
            return None
        schedules.append(sch)
    own, lent = (
        sum(not isinstance(node.predicate, tirx.IntImm) for node in nodes_of(sch.mod["main"].body, s_tir.SBlockRealize))
        for sch in schedules
    )
    return schedules[1] if lent <= own else None


def _variants(workload: tvm.IRModule, target: tvm.target.Target) -> list[s_tir.Schedule]:
    for rule in rules_for(target):
        try:
            space = rule.apply(workload["main"], target, tunable=True)
        except (RuntimeError, ValueError):
            continue
        if space is not None:
            assert isinstance(space, list)
            return space
    return []


def _without_decisions(trace: s_tir.schedule.Trace) -> str:
    return str(s_tir.schedule.Trace(trace.insts, {}))


def _kind_of(workload: tvm.IRModule) -> str:
    """Return what programs share that differ in batch and size alone: dtypes, channels, the blocks with their sums."""
    func = workload["main"]
    words = [f"{buffer.dtype} {len(buffer.shape)} {list(buffer.shape)[-1:]}" for buffer in func.params]
    for block in nodes_of(func.body, s_tir.SBlock):
        sums = [str(axis.dom.extent) for axis in block.iter_vars if axis.iter_type == tirx.IterVar.CommReduce]
        words.append(f"{block.name_hint} {len(block.iter_vars)} {' '.join(sums)}")
    return "\n".join(words)


def _elements(workload: tvm.IRModule) -> int:
    return max(1, sum(math.prod(int(d) for d in buffer.shape) for buffer in workload["main"].params))


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
    if other is None:
        return 0.0
    if target.kind.name == "cuda":
        return compute_capability(target) - compute_capability(other)
    return abs(int(other.attrs.get("num-cores") or 0) - int(target.attrs.get("num-cores") or 0))


def _target_of(folder: Path) -> tvm.target.Target | None:
    manifest = read_manifest(folder)
    try:
        return tvm.target.Target(manifest.target) if manifest is not None else None
    except (RuntimeError, ValueError, TypeError) as error:
        raise UserError(f"the manifest of {folder} names no target; tune again or remove the folder") from error
