# SPDX-License-Identifier: Apache-2.0
"""`run`, `evaluate` and Ray Data on a cluster of three nodes on this machine, of which one is killed in the middle."""

from __future__ import annotations

import contextlib
import io
import os
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cluster_work import Barrier, EndsWorkers
from command_line import TESTS, run_cli
from library_fixture import PIXELS, colour_library
from PIL import Image

from tvm_involution import UserError
from tvm_involution.ray.cluster import connected
from tvm_involution.ray.spread import spread

ray = pytest.importorskip("ray", reason="Ray is not installed: pip install 'tvm-involution[ray]'")
pytest.importorskip("pandas", reason="Ray Data is not installed: pip install 'tvm-involution[ray]'")


@pytest.fixture(scope="module")
def colour(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return colour_library(tmp_path_factory.mktemp("cluster") / "colour.so", batch_sizes=(1, 4))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A hundred pictures in a folder for each class, of which one cannot be read."""
    path = tmp_path_factory.mktemp("photos")
    for name, pixel in PIXELS.items():
        (path / name).mkdir()
        Image.new("RGB", (40, 30), pixel).save(path / name / "0.png")
    for i in range(97):
        name = list(PIXELS)[i % 3]
        os.link(path / name / "0.png", path / name / f"{i + 1}.png")
    return path


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("PYTHONPATH", os.pathsep.join([str(TESTS.parent), str(TESTS), os.environ.get("PYTHONPATH", "")]))
        with contextlib.redirect_stdout(io.StringIO()):
            made = Cluster()
            for _ in range(3):
                made.add_node(num_cpus=1, object_store_memory=80 << 20, include_dashboard=False)
        yield made
        made.shutdown()


def names(folder: Path) -> list[str]:
    return sorted(str(path) for path in folder.rglob("*.png"))


def test_run_and_evaluate(cluster: Any, folder: Path, colour: Path, tmp_path: Path) -> None:
    """The same answers as here; a run that was cut off goes on."""
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"no picture")
    here, there = tmp_path / "here.jsonl", tmp_path / "there.jsonl"
    words = ("run", colour, "--input", folder, "--input", bad, "--top-k", 2, "--output")
    assert run_cli(*words, here).status == 2
    there.write_bytes(here.read_bytes()[:1000])
    result = run_cli(*words, there, "--ray", cluster.address)
    assert result.status == 2 and "pictures could not be read" in result.err, result
    assert sorted(there.read_bytes().splitlines()) == sorted(here.read_bytes().splitlines())
    found = run_cli("evaluate", colour, "--data", f"imagenet:{folder}", "--ray", cluster.address)
    assert (found.status, found.err) == (0, "") and " 100.00 %" in found.out and "on 100 pictures" in found.out


def test_ray_data(cluster: Any, folder: Path, colour: Path) -> None:
    from tvm_involution.ray import Predictor

    with connected(cluster.address):
        ray.data.DataContext.get_current().enable_progress_bars = False
        settings = {"fn_constructor_args": (str(colour),), "fn_constructor_kwargs": {"top_k": 1}, "batch_size": 16}
        pictures = ray.data.read_binary_files([str(folder)], include_paths=True)
        rows = pictures.map_batches(Predictor, **settings, concurrency=2).take_all()
    assert sorted(row["path"] for row in rows) == names(folder)
    assert all(row["name_1"] == Path(row["path"]).parent.name and row["probability_1"] > 0.9 for row in rows)
    assert set(rows[0]) == {"path", "class_1", "name_1", "probability_1", "error"}


def test_what_nobody_can_run_or_survive(
    cluster: Any, folder: Path, colour: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A library for other processors; and a picture at which workers end: the others are answered before it."""
    foreign = colour_library(tmp_path / "foreign.so", triple="aarch64-linux-gnu")
    with connected(cluster.address):
        with pytest.raises(UserError, match=r"no machine of the cluster can run it: .* for aarch64-linux-gnu"):
            list(spread(foreign, names(folder), EndsWorkers(5), address=cluster.address))
        monkeypatch.setattr("tvm_involution.ray.spread._TRIES", 2)
        said: list[str] = []
        answered = []
        with pytest.raises(UserError, match=r"ended 2 times at the pictures from .*; do they fit"):
            work = EndsWorkers(5)
            for number, _ in spread(colour, names(folder)[:40], work, address=cluster.address, remark=said.append):
                answered.append(number)
    assert len(set(answered)) == len(answered) and not set(answered) & set(range(16))
    assert any("is lost; its pictures go to others" in text for text in said)


def test_a_node_that_is_killed(cluster: Any, folder: Path, colour: Path, tmp_path: Path) -> None:
    """It is killed while it has pictures; each is answered once, those by the two others."""
    said: list[str] = []
    killed = threading.Event()

    def kill() -> None:
        deadline = time.monotonic() + 60
        while len(begun := {path.name for path in tmp_path.iterdir()}) < 3 and time.monotonic() < deadline:
            time.sleep(0.01)
        victim = next(node for node in cluster.worker_nodes if node.node_id in begun)
        (tmp_path / "killed").write_text(victim.node_id)
        cluster.remove_node(victim, allow_graceful=False)
        (tmp_path / "go").touch()
        killed.set()

    thread = threading.Thread(target=kill)
    thread.start()
    answers = list(spread(colour, names(folder), Barrier(tmp_path), address=cluster.address, remark=said.append))
    thread.join()
    assert killed.is_set() and any("is lost; its pictures go to others" in text for text in said), said
    assert Counter(number for number, _ in answers) == Counter(range(100))
    assert all(name == Path(names(folder)[number]).parent.name for number, (name, _) in answers)
    nodes = {node for _, (_, node) in answers}
    assert len(nodes) == 2 and (tmp_path / "killed").read_text() not in nodes


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--ray", "nonsense"), "--ray 'nonsense' is no address; expected HOST:PORT"),
        (("--ray", "127.0.0.1:99999"), "is no address"),
        (("--ray", "a..b:1"), "no Ray cluster answers at a..b:1: "),
        (("--ray", "127.0.0.1:1"), "no Ray cluster answers at 127.0.0.1:1: Connection refused; start one with"),
        (("--ray", "127.0.0.1:1", "--device", "cpu"), "--device and --ray"),
    ],
)
def test_wrong_words(folder: Path, colour: Path, tmp_path: Path, words: tuple[str, ...], message: str) -> None:
    output = tmp_path / "out.jsonl"
    assert message in run_cli("run", colour, "--input", folder, "--output", output, *words).error_line()
    assert not output.exists() or not output.read_bytes()
    data = ("--data", f"imagenet:{folder}")
    assert message in run_cli("evaluate", colour, *data, *words).error_line()
