# SPDX-License-Identifier: Apache-2.0
"""The tables of records survive kills and full disks, and stay MetaSchedule's."""

from __future__ import annotations

import json
import lzma
import os
import subprocess
import sys
from pathlib import Path

import pytest
import tvm
from command_line import TESTS, run_python
from tvm import te
from tvm.s_tir import Schedule
from tvm.s_tir import meta_schedule as ms

from tvm_involution import UserError
from tvm_involution.records.database import FAILED, PACKED, RECORDS, WORKLOADS, TuningDatabase, seconds, write_best
from tvm_involution.records.tuning_records import as_workload


def workload(extent: int) -> tvm.IRModule:
    x = te.placeholder((extent,), "float32", "x")
    return as_workload(te.create_prim_func([x, te.compute((extent,), lambda i: x[i] + 1.0, name="add")]))


def record(mod: tvm.IRModule, value: float, split: int = 1) -> ms.database.TuningRecord:
    sch = Schedule(mod)
    sch.split(sch.get_loops(sch.get_sblock("add"))[0], [None, split])
    own = ms.database.MemoryDatabase().commit_workload(mod)
    args = ms.arg_info.ArgInfo.from_prim_func(mod["main"])
    return ms.database.TuningRecord(sch.trace, own, [value], tvm.target.Target("llvm"), args)


def fill(folder: Path, *values: float) -> TuningDatabase:
    folder.mkdir(exist_ok=True)
    database = TuningDatabase(folder)
    for value in values:
        database.append(workload(8), record(workload(8), value))
    return database


def times(folder: Path, mod: tvm.IRModule) -> list[float]:
    return [seconds(found) for found in TuningDatabase(folder).records(mod)]


def test_what_is_appended_is_read_again_fastest_first(tmp_path):
    database = fill(tmp_path / "a", 3e-3, FAILED, 1e-3)
    database.append(workload(16), record(workload(16), 2e-3))
    assert times(tmp_path / "a", workload(8)) == pytest.approx([1e-3, 3e-3, FAILED])
    assert times(tmp_path / "a", workload(16)) == pytest.approx([2e-3])
    assert times(tmp_path / "a", workload(32)) == []


def test_metaschedule_reads_the_tables(tmp_path):
    fill(tmp_path / "a", 3e-3, 1e-3)
    tables = [str(tmp_path / "a" / name) for name in (WORKLOADS, RECORDS)]
    theirs = ms.database.JSONDatabase(*tables, allow_missing=False)
    best = theirs.query_tuning_record(workload(8), tvm.target.Target("llvm"), "main")
    assert float(best.run_secs[0]) == pytest.approx(1e-3)


@pytest.mark.parametrize("name", [WORKLOADS, RECORDS])
@pytest.mark.parametrize("torn", [b'[0, [[["GetSBl', b"[0, \xff\x00"], ids=["text", "no text"])
def test_a_torn_line_is_dropped_and_the_next_is_whole(tmp_path, name, torn):
    fill(tmp_path / "a", 3e-3)
    with open(tmp_path / "a" / name, "ab") as file:
        file.write(torn)
    database = TuningDatabase(tmp_path / "a")
    database.append(workload(16), record(workload(16), 1e-3))
    assert times(tmp_path / "a", workload(8)) == pytest.approx([3e-3])
    assert times(tmp_path / "a", workload(16)) == pytest.approx([1e-3])


@pytest.mark.parametrize(
    "damage",
    [
        "this is no record\n",
        "[7, []]\n",
        "[-1, []]\n",
        "[true, []]\n",
        "[0]\n",
        "3\n",
        '[0, [[["Bogus", [], [], []]], [1.0], {}, []]]\n',
    ],
)
def test_damage_in_the_middle_is_named(tmp_path, damage):
    fill(tmp_path / "a", 3e-3)
    file = tmp_path / "a" / RECORDS
    file.write_text(damage + file.read_text())
    with pytest.raises(UserError, match="cannot be read") as error:
        TuningDatabase(tmp_path / "a")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", [WORKLOADS, RECORDS])
def test_readers_only_read(tmp_path, monkeypatch, name):
    """Also where a run is in the middle of a line, and where nothing may be written."""
    fill(tmp_path / "a", 3e-3)
    file = tmp_path / "a" / name
    with open(file, "a") as half:
        half.write('[0, [[["GetSBl')
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in (tmp_path / "a").iterdir()}
    for function in ("open", "truncate", "ftruncate", "replace"):
        monkeypatch.setattr(os, function, lambda *_: pytest.fail("a reader writes"))
    assert times(tmp_path / "a", workload(8)) == pytest.approx([3e-3])
    assert {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in (tmp_path / "a").iterdir()} == before


def test_a_reader_beside_a_run_that_writes(tmp_path):
    """A record is entered after its workload: whoever reads both tables meanwhile finds the workload of each."""
    fill(tmp_path / "a", 3e-3)
    code = """
import sys
from pathlib import Path
import records.test_database as t
database = t.TuningDatabase(Path(sys.argv[1]))
print("ready", flush=True)
for extent in range(9, 60):
    database.append(t.workload(extent), t.record(t.workload(extent), 1e-3))
"""
    words = [sys.executable, "-c", code, str(tmp_path / "a")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(TESTS), str(TESTS.parent)])}
    counts = []
    with subprocess.Popen(words, stdout=subprocess.PIPE, env=environment) as writer:
        assert writer.stdout.readline()
        while writer.poll() is None:
            counts.append(len(TuningDatabase(tmp_path / "a").all_records()))
    assert writer.returncode == 0 and counts == sorted(counts)
    assert len(TuningDatabase(tmp_path / "a").all_records()) == 52


def test_a_torn_line_longer_than_a_block(tmp_path):
    fill(tmp_path / "a", 3e-3)
    with open(tmp_path / "a" / RECORDS, "a") as file:
        file.write("[" * 200_000)
    TuningDatabase(tmp_path / "a").append(workload(8), record(workload(8), 1e-3))
    assert times(tmp_path / "a", workload(8)) == pytest.approx([1e-3, 3e-3])


def test_a_full_disk_leaves_whole_lines(tmp_path):
    """The limit on a file's size stands for the end of the disk: the write fails in the same place."""
    fill(tmp_path / "a", 3e-3)
    before = (tmp_path / "a" / RECORDS).read_bytes()
    code = """
import resource, sys
from pathlib import Path
import records.test_database as t
folder = Path(sys.argv[1])
size = (folder / t.RECORDS).stat().st_size
database = t.TuningDatabase(folder)
resource.setrlimit(resource.RLIMIT_FSIZE, (size + 50, resource.RLIM_INFINITY))
try:
    database.append(t.workload(8), t.record(t.workload(8), 1e-3))
except t.UserError as error:
    print(error)
"""
    printed = run_python(code, tmp_path / "a")
    assert "what was measured before is safe" in printed and printed.count("\n") == 1
    assert (tmp_path / "a" / RECORDS).read_bytes() == before
    assert times(tmp_path / "a", workload(8)) == pytest.approx([3e-3])


def test_only_the_best_are_written(tmp_path):
    records = [record(workload(8), value * 1e-3) for value in (5, 1, 4, 2)] + [record(workload(8), FAILED)]
    write_best(tmp_path / "best", [*records, record(workload(16), 7e-3)], keep=2)
    assert times(tmp_path / "best", workload(8)) == pytest.approx([1e-3, 2e-3])
    assert times(tmp_path / "best", workload(16)) == pytest.approx([7e-3])


def test_a_newer_measurement_replaces_a_lucky_older_one(tmp_path):
    write_best(tmp_path / "best", [record(workload(8), 1e-3), record(workload(16), 1e-3)])
    write_best(tmp_path / "best", [record(workload(8), 2e-3)])
    assert times(tmp_path / "best", workload(8)) == pytest.approx([2e-3])
    assert times(tmp_path / "best", workload(16)) == pytest.approx([1e-3])
    write_best(tmp_path / "best", [record(workload(8), 3e-3)], replace=False)
    assert times(tmp_path / "best", workload(8)) == pytest.approx([2e-3, 3e-3])


def test_workloads_keep_their_numbers(tmp_path):
    """Else a kill between the two files would give a workload another's schedules."""
    write_best(tmp_path / "best", [record(workload(8), 1e-3), record(workload(16), 1e-3)])
    before = lzma.decompress((tmp_path / "best" / PACKED).read_bytes()).splitlines()
    write_best(tmp_path / "best", [record(workload(4), 1e-3), record(workload(16), 2e-3)])
    after = lzma.decompress((tmp_path / "best" / PACKED).read_bytes()).splitlines()
    assert after[:2] == before and len(after) == 3
    assert {json.loads(line)[0] for line in (tmp_path / "best" / RECORDS).read_text().splitlines()} == {0, 1, 2}
