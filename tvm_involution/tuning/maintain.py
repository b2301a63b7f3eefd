# SPDX-License-Identifier: Apache-2.0
"""Keep folders of tuning logs: join what several machines measured, drop what is of no use."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tvm import s_tir
from tvm.s_tir import meta_schedule as ms

from ..errors import UserError
from ..records.database import FAILED, TuningDatabase, databases, exists, seconds, write_best
from ..records.manifest import Manifest, read_manifest, writable_manifest
from ..runtime.tvm_runtime import tvm_version


def merge(sources: Sequence[Path], into: Path, keep: int = 3) -> dict[str, int]:
    """Add the records of several folders of logs to `into`; the `keep` fastest of each workload stay.

    Returns:
        The number of records now in the folder of each target.

    Raises:
        UserError: a source holds no records, is damaged, or of another TVM than this; nothing has been written.
    """
    # everything is read before anything is written
    parts = []
    for source in sources:
        folders = databases(source)
        if not folders:
            raise UserError(f"{source} holds no tuning logs; name a folder with one folder a target")
        for folder in folders:
            manifest = _manifest(folder)
            if manifest.tvm_version != tvm_version():
                raise UserError(
                    f"{folder} is of TVM {manifest.tvm_version}, this is {tvm_version()}; tune again with this one"
                )
            target = into / folder.name
            writable_manifest(target, exists(target))
            parts.append((target, manifest, TuningDatabase(folder).all_records()))
    counts: dict[str, int] = {}
    for target, manifest, records in parts:
        own = writable_manifest(target, exists(target))
        joined = own or Manifest(manifest.tvm_version, manifest.target, manifest.machine)
        write_best(target, records, keep, replace=False)
        for network in manifest.networks:
            joined.add(network)
        joined.write(target)
        counts[target.name] = len(TuningDatabase(target).all_records())
    return counts


def prune(logs: Path, keep: int = 3) -> dict[str, tuple[int, int]]:
    """Keep the `keep` fastest records of each workload, of those that still apply.

    Returns:
        The number of records before and after, for the folder of each target.

    Raises:
        UserError: `logs` holds no records or is damaged.
    """
    folders = databases(logs)
    if not folders:
        raise UserError(f"{logs} holds no tuning logs; name a folder with one folder a target")
    counts = {}
    for folder in folders:
        records = TuningDatabase(folder).all_records()
        write_best(folder, [record for record in records if _applies(record)], keep)
        counts[folder.name] = (len(records), len(TuningDatabase(folder).all_records()))
    return counts


def _manifest(folder: Path) -> Manifest:
    manifest = read_manifest(folder)
    if manifest is None:
        raise UserError(f"{folder} has no manifest.json; it was not made by `tvm-involution tune`")
    return manifest


def _applies(record: ms.database.TuningRecord) -> bool:
    if seconds(record) >= FAILED:
        return False
    sch = s_tir.Schedule(record.workload.mod)
    try:
        record.trace.apply_to_schedule(sch, remove_postproc=False)
    except (RuntimeError, ValueError):
        return False
    return True
