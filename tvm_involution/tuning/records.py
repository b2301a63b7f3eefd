# SPDX-License-Identifier: Apache-2.0
"""Look up the tuning record of a tensor program.

A folder of tuning logs has one folder a target (`target.target_key`), each with a MetaSchedule JSON database:
`database_workload.json` and `database_tuning_record.json`.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path

import tvm
from tvm import s_tir, tirx
from tvm.s_tir import meta_schedule as ms

from ..errors import UserError
from ..resources import data_dir
from ..target import target_key

WORKLOADS, RECORDS = "database_workload.json", "database_tuning_record.json"
_log = logging.getLogger(__name__)


class TuningRecords:
    """The records for one target; empty where nothing has been tuned."""

    def __init__(self, target: tvm.target.Target, folder: str | os.PathLike[str] | None = None) -> None:
        """Open the records for `target`.

        Args:
            folder: a folder of tuning logs; the shipped ones by default.

        Raises:
            UserError: `folder` was named and does not exist, or its database cannot be read.
        """
        self._target = target
        self._database: ms.Database | None = None
        logs = Path(folder) if folder is not None else data_dir("tuning_logs")
        if not logs.is_dir():
            raise UserError(f"tuning logs {logs} do not exist; name a folder with one folder a target, or leave it out")
        workloads, records = (logs / target_key(target) / name for name in (WORKLOADS, RECORDS))
        if workloads.is_file() and records.is_file():
            try:
                self._database = ms.database.JSONDatabase(str(workloads), str(records), allow_missing=False)
            except (RuntimeError, ValueError, TypeError) as error:
                raise UserError(f"tuning logs {workloads.parent} cannot be read; tune again or remove them") from error

    def find(self, func: tirx.PrimFunc) -> s_tir.Schedule | None:
        """Return the best recorded schedule of `func`, or None; a record that no longer applies is skipped."""
        if self._database is None:
            return None
        try:
            return self._database.query_schedule(as_workload(func), self._target, "main")
        except (RuntimeError, ValueError) as error:
            _log.warning("a tuning record no longer applies and is skipped: %s", str(error).splitlines()[0])
            return None


def as_workload(func: tirx.PrimFunc) -> tvm.IRModule:
    """Return `func` as the key of the database: without the attributes that depend on the network around it."""
    bare = func.without_attr("op_pattern") if func.attrs and "op_pattern" in func.attrs else func
    return tvm.IRModule({"main": bare.with_attr("global_symbol", "main").with_attr("tirx.noalias", True)})
