# SPDX-License-Identifier: Apache-2.0
"""Tuning records are found, applied, counted; damaged or foreign ones do no harm."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import tvm
from command_line import run_python
from conftest import tiny_rednet
from reference import relative_norm
from tvm import te, tirx
from tvm.s_tir import Schedule
from tvm.s_tir import meta_schedule as ms

import tvm_involution as ti
from tvm_involution.frontend.importer import export_module, import_exported_program
from tvm_involution.frontend.network import resolve_network
from tvm_involution.records.database import RECORDS, WORKLOADS, TuningDatabase
from tvm_involution.records.manifest import Manifest, TunedNetwork, writable_manifest
from tvm_involution.records.tuning_records import TuningRecords, as_workload
from tvm_involution.relax import pipeline
from tvm_involution.runtime.tvm_runtime import tvm_version
from tvm_involution.schedules import default_schedule
from tvm_involution.target import resolve_target, target_key
from tvm_involution.te import conv2d_packed
from tvm_involution.tuning.tasks import extract_tasks

SIZE = (32, 32)


def write_records(logs: Path, names: str, key: str | None = None) -> int:
    """Record a plain parallel schedule for each program of the tiny network whose name holds `names`."""
    target = resolve_target("llvm")
    folder = logs / (key or target_key(target))
    folder.mkdir(parents=True)
    Manifest(tvm_version(), json.loads(str(target)), "a test").write(folder)
    database = TuningDatabase(folder)
    mod = import_exported_program(export_module(tiny_rednet(), [torch.zeros(1, 3, *SIZE)]))
    lowered = pipeline.run(mod, target, until="lower operators")
    count = 0
    for name, func in lowered.functions_items():
        if isinstance(func, tirx.PrimFunc) and names in name.name_hint:
            workload = as_workload(func)
            schedule = Schedule(workload)
            for block in schedule.get_child_blocks(schedule.get_sblock("root")):
                schedule.parallel(schedule.get_loops(block)[1])
            record = ms.database.TuningRecord(
                schedule.trace,
                database.memory.commit_workload(workload),
                [1e-6],
                target,
                ms.arg_info.ArgInfo.from_prim_func(workload["main"]),
            )
            database.append(workload, record)
            count += 1
    return count


@pytest.mark.parametrize(
    ("cpu", "dtype", "rule"),
    [
        ("sapphirerapids", "bfloat16", "AmxGemm"),
        ("cooperlake", "bfloat16", "PackedGemm"),
        ("sapphirerapids", "int8", "AmxGemm"),
        ("haswell", "int8", "PackedGemm"),
    ],
)
def test_records_name_intrinsics(tmp_path, cpu, dtype, rule):
    """A process that has not made them reads the records all the same."""
    target = resolve_target(json.dumps({"kind": "llvm", "mcpu": cpu, "mtriple": "x86_64-linux-gnu"}))
    values = 2 if dtype == "bfloat16" else 4
    x = te.placeholder((1, 7, 7, 64), dtype if dtype == "bfloat16" else "uint8", "x")
    weight = te.placeholder((2, 1, 1, 64 // values, 32, values), dtype, "w")
    out_dtype = dtype if dtype == "bfloat16" else "int32"
    workload = as_workload(te.create_prim_func([x, weight, conv2d_packed(x, weight, 64, out_dtype=out_dtype)]))
    schedule, taker = default_schedule(workload["main"], target)
    assert taker == rule
    database = TuningDatabase(tmp_path)
    info = ms.arg_info.ArgInfo.from_prim_func(workload["main"])
    entry = database.memory.commit_workload(workload)
    database.append(workload, ms.database.TuningRecord(schedule.trace, entry, [1e-6], target, info))
    code = (
        "import sys, pathlib\nfrom tvm_involution.records.database import TuningDatabase\n"
        "(record,) = TuningDatabase(pathlib.Path(sys.argv[1])).all_records()\n"
        "from tvm.s_tir import Schedule\nschedule = Schedule(record.workload.mod)\n"
        "record.trace.apply_to_schedule(schedule, remove_postproc=False)\n"
        "print('call_' in str(schedule.mod))"
    )
    assert run_python(code, tmp_path).strip() == "True"


def test_records_are_applied_and_counted(tmp_path, rng):
    count = write_records(tmp_path / "logs", "involution2d")
    assert count > 0
    library = ti.compile(tiny_rednet(), image_size=SIZE, tuning_logs=tmp_path / "logs")
    assert library.metadata.kernels.record == count
    assert library.metadata.kernels.total == count + library.metadata.kernels.rule
    library.save(tmp_path / "net.so")
    x = rng.standard_normal((1, 3, *SIZE)).astype("float32")
    with torch.no_grad():
        expected = tiny_rednet().double()(torch.from_numpy(x).double()).numpy()
    assert relative_norm(ti.load(tmp_path / "net.so")(x), expected) < 1e-5


def record_last_variants(logs: Path, target: tvm.target.Target) -> set[str]:
    """Record the last variant of each rule's space for the tiny network at batch 1; return the programs' rules."""
    folder = logs / target_key(target)
    folder.mkdir(parents=True)
    manifest = Manifest(tvm_version(), json.loads(str(target)), "a test")
    manifest.add(TunedNetwork("rednet_tiny", 1, "float32", SIZE, 1, 1, 1, 0.1, 1.0, 1.0, "2026-01-01"))
    manifest.write(folder)
    database = TuningDatabase(folder)
    tasks = [task for task in extract_tasks(resolve_network(tiny_rednet(), image_size=SIZE), target) if task.spaces]
    for task in tasks:
        workload = database.memory.commit_workload(task.mod)
        database.append(
            task.mod, ms.database.TuningRecord(task.spaces[-1].trace, workload, [1e-6], target, task.args_info)
        )
    return {task.rule for task in tasks}


def test_another_batch_lends_its_decisions(tmp_path, rng):
    assert "Involution" in record_last_variants(tmp_path / "logs", resolve_target("llvm"))
    library = ti.compile(tiny_rednet(), batch=2, image_size=SIZE, tuning_logs=tmp_path / "logs")
    kernels = library.metadata.kernels
    assert kernels.record == kernels.borrowed > 0
    assert "at another batch or size" in kernels.borrowed_from
    assert any(f"of another batch or size from {tmp_path / 'logs'}" in note for note in library.notes)
    library.save(tmp_path / "net.so")
    x = rng.standard_normal((2, 3, *SIZE)).astype("float32")
    with torch.no_grad():
        expected = tiny_rednet().double()(torch.from_numpy(x).double()).numpy()
    assert relative_norm(ti.load(tmp_path / "net.so")(x), expected) < 1e-5


def test_index_maps_are_recorded(tmp_path):
    """TVM 0.27 writes no record of a layout that was changed."""
    x = tvm.te.placeholder((8, 16), "float32", "x")
    workload = as_workload(tvm.te.create_prim_func([x, tvm.te.compute((8, 16), lambda i, j: x[i, j] + 1, "out")]))
    sch = Schedule(workload)
    sch.cache_write(sch.get_sblock("out"), 0, "local")
    sch.transform_layout(sch.get_sblock("out"), ("write", 0), lambda i, j: (j, i))
    args = ms.arg_info.ArgInfo.from_prim_func(workload["main"])
    database = TuningDatabase(tmp_path)
    own = database.memory.commit_workload(workload)
    database.append(workload, ms.database.TuningRecord(sch.trace, own, [1.0], tvm.target.Target("llvm"), args))
    again = Schedule(workload)
    TuningDatabase(tmp_path).records(workload)[0].trace.apply_to_schedule(again, remove_postproc=False)
    tvm.ir.assert_structural_equal(again.mod, sch.mod)


@pytest.mark.parametrize("table", [RECORDS, WORKLOADS])
def test_torn_folders_are_named(tmp_path, caplog, table):
    write_records(tmp_path / "logs", "involution2d")
    (next((tmp_path / "logs").iterdir()) / table).unlink()
    TuningRecords(resolve_target("llvm"), tmp_path / "logs")
    assert f"lack {table}" in caplog.text


def test_folders_of_other_networks_are_named(tmp_path):
    write_records(tmp_path / "logs", "involution2d")
    records = TuningRecords(resolve_target("llvm"), tmp_path / "logs")
    x = tvm.te.placeholder((3,), "float32")
    assert records.find(tvm.te.create_prim_func([x, tvm.te.compute((3,), lambda i: x[i] * 3.0)])) is None
    (said,) = records.notes("unheard", (1,), "float32", SIZE)
    assert "holds no records of unheard" in said


def test_records_of_another_network_are_not_used(tmp_path):
    write_records(tmp_path / "logs", "involution2d")
    library = ti.compile(tiny_rednet(), image_size=(48, 40), tuning_logs=tmp_path / "logs")
    assert library.metadata.kernels.record == 0


@pytest.mark.parametrize(("version", "said"), [("0.1.0", "are of TVM 0.1.0"), (None, "lack manifest.json")])
def test_records_of_another_or_an_unknown_tvm_are_skipped(tmp_path, caplog, version, said):
    write_records(tmp_path / "logs", "involution2d")
    manifest = next((tmp_path / "logs").rglob("manifest.json"))
    if version is None:
        manifest.unlink()
    else:
        manifest.write_text(manifest.read_text().replace(tvm_version(), version))
    records = TuningRecords(resolve_target("llvm"), tmp_path / "logs")
    assert not records._databases
    assert said in caplog.text and "skipped; tune again" in caplog.text


@pytest.mark.parametrize(("version", "said"), [("0.1.0", "are of TVM 0.1.0"), (None, "lack manifest.json")])
def test_nothing_is_added_to_them(tmp_path, version, said):
    folder = tmp_path / "folder"
    folder.mkdir()
    if version is not None:
        Manifest(version, {"kind": "llvm"}, "a test").write(folder)
    with pytest.raises(ti.UserError, match=f"{said}.*; move them away"):
        writable_manifest(folder, holds_records=True)
    assert writable_manifest(tmp_path, holds_records=False) is None
    Manifest(tvm_version(), {"kind": "llvm"}, "a test").write(folder)
    assert writable_manifest(folder, holds_records=True).machine == "a test"


def test_missing_folder_is_named(tmp_path):
    with pytest.raises(ti.UserError, match="do not exist"):
        ti.compile(tiny_rednet(), image_size=SIZE, tuning_logs=tmp_path / "none")


def test_damaged_database_is_named(tmp_path):
    write_records(tmp_path / "logs", "involution2d")
    records = next((tmp_path / "logs").rglob(RECORDS))
    records.write_text("this is no record\n")
    with pytest.raises(ti.UserError, match="cannot be read"):
        ti.compile(tiny_rednet(), image_size=SIZE, tuning_logs=tmp_path / "logs")


def test_workload_ignores_the_network_around_it():
    func = tvm.te.create_prim_func([x := tvm.te.placeholder((4,), "float32"), tvm.te.compute((4,), lambda i: x[i] + 1)])
    tvm.ir.assert_structural_equal(as_workload(func), as_workload(func.with_attr("op_pattern", 2)))
    assert np.array_equal([str(k) for k in as_workload(func).get_global_vars()], ['I.GlobalVar("main")'])
