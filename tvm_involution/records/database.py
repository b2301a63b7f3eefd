# SPDX-License-Identifier: Apache-2.0
"""MetaSchedule's two tables as files that survive a kill and a full disk.

`database_workload.json` holds a tensor program a line, `database_tuning_record.json` a measured schedule a line:
[index of its workload, [trace, seconds, target, arguments]]. A schedule that failed has `FAILED` seconds. What is being
measured is appended, a line at a time; what is kept for `compile` is written whole, its workloads compressed
(`database_workload.json.xz`): MetaSchedule reads it after `xz -d`.
"""

from __future__ import annotations

import json
import logging
import lzma
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import tvm
from tvm import tirx
from tvm.ir import Array, Map, save_json
from tvm.s_tir import meta_schedule as ms
from tvm.s_tir.meta_schedule import _ffi_api

from ..errors import UserError
from ..files import atomic_write
from ..schedules.cpu.dot_products import register_named

_log = logging.getLogger(__name__)

WORKLOADS, RECORDS = "database_workload.json", "database_tuning_record.json"
PACKED = f"{WORKLOADS}.xz"
_BLOCK = 1 << 16
FAILED = 1e10
"""seconds of a schedule that could not be built or run, or computed wrong results; MetaSchedule's own mark"""


class TuningDatabase:
    """The records of a folder, in memory for MetaSchedule, and appended to the folder as they come."""

    def __init__(self, folder: Path) -> None:
        """Read `folder`, and change nothing there.

        A line at the end of a file that a kill tore, or that another process is just writing, is left out.

        Raises:
            UserError: a file is damaged.
        """
        self.folder = folder
        self.memory = ms.database.MemoryDatabase()
        self._index: dict[ms.database.Workload, int] = {}
        try:
            # before the workloads, which a run that is still writing enters before their records
            lines = _lines(folder / RECORDS)
            for line in lines:
                register_named(line)
            records = [json.loads(line) for line in lines]
            texts = map(json.loads, _lines(_workload_file(folder)))
            workloads = [ms.database.Workload.from_json(text) for text in texts]
            for workload in workloads:
                self._index[self.memory.commit_workload(workload.mod)] = len(self._index)
            for index, record in records:
                if type(index) is not int or index < 0:
                    raise ValueError(f"{index!r:.20} is no workload")
                own = self.memory.commit_workload(workloads[index].mod)
                self.memory.commit_tuning_record(ms.database.TuningRecord.from_json(record, own))
        except OSError as error:
            raise UserError(
                f"tuning logs {folder} cannot be read: {error.strerror}; check their permissions"
            ) from error
        except (RuntimeError, ValueError, TypeError, IndexError, EOFError, lzma.LZMAError) as error:
            reason = (str(error) or type(error).__name__).splitlines()[0]
            raise UserError(f"tuning logs {folder} cannot be read ({reason}); tune again or remove them") from error

    def append(self, mod: tvm.IRModule, record: ms.database.TuningRecord) -> None:
        """Add a record of the workload `mod`, on the disk when this returns.

        Raises:
            UserError: the disk is full or the folder cannot be written; the files are as before.
        """
        workload = self.memory.commit_workload(mod)
        if workload not in self._index:
            _append(self.folder / WORKLOADS, json.dumps(workload.as_json()))
            self._index[workload] = len(self._index)
        _append(self.folder / RECORDS, json.dumps([self._index[workload], record_as_json(record)]))
        self.memory.commit_tuning_record(record)

    def records(self, mod: tvm.IRModule) -> list[ms.database.TuningRecord]:
        """Return the records of the workload `mod`, the fastest first, failures last."""
        workload = self.memory.commit_workload(mod)
        found = [record for record in self.memory.get_all_tuning_records() if record.workload.same_as(workload)]
        return sorted(found, key=seconds)

    def all_records(self) -> list[ms.database.TuningRecord]:
        """Return every record, in no order."""
        return list(self.memory.get_all_tuning_records())


def record_as_json(record: ms.database.TuningRecord) -> Any:
    """Return what `TuningRecord.as_json` does, of traces with index maps too.

    TVM 0.27 reads a map as a string of its own JSON, but does not write one in a record.
    """
    return _plain(_ffi_api.TuningRecordAsJSON(record))


def _plain(node: Any) -> Any:
    if isinstance(node, Array):
        return [_plain(item) for item in node]
    if isinstance(node, Map):
        return {_plain(key): _plain(value) for key, value in node.items()}
    if isinstance(node, tirx.IndexMap):
        return save_json(node)
    if isinstance(node, tirx.IntImm | tirx.FloatImm):
        return node.value
    return str(node) if isinstance(node, str) else node


def seconds(record: ms.database.TuningRecord) -> float:
    """Return the measured time of a record."""
    return min(float(value) for value in record.run_secs)


def write_best(folder: Path, records: Iterable[ms.database.TuningRecord], keep: int = 3, replace: bool = True) -> None:
    """Write the `keep` fastest records of each workload to `folder`, beside those of other workloads there.

    Args:
        replace: drop what the folder holds for the workloads of `records`; otherwise the fastest of both stay.

    Raises:
        UserError: the folder cannot be written.
    """
    records = list(records)
    kept = TuningDatabase(folder)
    fresh = {kept.memory.commit_workload(record.workload.mod) for record in records} if replace else set()
    everything = [record for record in kept.all_records() if record.workload not in fresh] + records
    # a workload keeps its number, so that a kill between the two files leaves records that point where they should
    order = list(kept._index)
    best: dict[ms.database.Workload, list[ms.database.TuningRecord]] = {workload: [] for workload in order}
    for record in sorted(everything, key=seconds):
        rows = best.setdefault(kept.memory.commit_workload(record.workload.mod), [])
        if seconds(record) < FAILED and len(rows) < keep:
            rows.append(record)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write {folder}: {error.strerror}; name a folder, or one that can be made") from error
    lines = "".join(json.dumps(workload.as_json()) + "\n" for workload in best)
    with atomic_write(folder / PACKED) as path:
        path.write_bytes(lzma.compress(lines.encode()))
    (folder / WORKLOADS).unlink(missing_ok=True)
    with atomic_write(folder / RECORDS) as path:
        numbered = ((index, record) for index, found in enumerate(best.values()) for record in found)
        path.write_text("".join(json.dumps([index, record_as_json(record)]) + "\n" for index, record in numbered))


def exists(folder: Path) -> bool:
    """Return whether `folder` holds a database."""
    return (folder / RECORDS).is_file() and _workload_file(folder).is_file()


def databases(logs: Path) -> list[Path]:
    """Return the folders in `logs` that hold a database, sorted; none where `logs` does not exist.

    One with a table missing is named in a warning.

    Raises:
        UserError: `logs` is no folder, or cannot be read.
    """
    try:
        folders = sorted(path for path in logs.iterdir() if path.is_dir())
        for path in folders:
            if not exists(path) and ((path / RECORDS).is_file() or _workload_file(path).is_file()):
                missing = WORKLOADS if (path / RECORDS).is_file() else RECORDS
                _log.warning("tuning logs %s lack %s: skipped; tune again or remove them", path, missing)
        return [path for path in folders if exists(path)]
    except FileNotFoundError:
        return []
    except OSError as error:
        raise UserError(
            f"tuning logs {logs} cannot be read: {error.strerror}; name a folder with one folder a target, and check "
            "its permissions"
        ) from error


def _workload_file(folder: Path) -> Path:
    packed = folder / PACKED
    return packed if packed.is_file() else folder / WORKLOADS


def _lines(path: Path) -> list[bytes]:
    if not path.is_file():
        return []
    data = lzma.decompress(path.read_bytes()) if path.suffix == ".xz" else path.read_bytes()
    *whole, _ = data.split(b"\n")
    return whole


def _append(path: Path, line: str) -> None:
    data = line.encode() + b"\n"
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            size = _end_of_lines(descriptor)
            os.ftruncate(descriptor, size)
            try:
                while data:
                    data = data[os.write(descriptor, data) :]
                os.fsync(descriptor)
            except OSError:
                os.ftruncate(descriptor, size)
                raise
        finally:
            os.close(descriptor)
    except OSError as error:
        raise UserError(
            f"cannot write {path}: {error.strerror}; what was measured before is safe: make room and run the same "
            "command again"
        ) from error


def _end_of_lines(descriptor: int) -> int:
    """Return the size of a file without a line that a kill tore: the next one must not be glued to it."""
    end = os.fstat(descriptor).st_size
    while end:
        start = max(0, end - _BLOCK)
        if (last := os.pread(descriptor, end - start, start).rfind(b"\n")) >= 0:
            return start + last + 1
        end = start
    return 0
