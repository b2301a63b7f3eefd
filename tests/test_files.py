# SPDX-License-Identifier: Apache-2.0
"""Files appear whole or not at all; what is no regular file stays what it is."""

from __future__ import annotations

import os
import shutil
import socket
import stat
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest

from tvm_involution import UserError
from tvm_involution.files import atomic_write, check_room, check_writable


def write(path: Path, text: str = "new") -> None:
    with atomic_write(path) as temporary:
        assert temporary.name == path.resolve().name or not path.is_file()
        temporary.write_text(text)


def refusal(path: Path) -> str:
    for use in (write, check_writable):
        with pytest.raises(UserError, match=f"^cannot write {path}: ") as caught:
            use(path)
    return str(caught.value)


def test_new_and_old_files(tmp_path: Path) -> None:
    path = tmp_path / "file.txt"
    for text in ("first", "second"):
        check_writable(path)
        write(path, text)
        assert path.read_text() == text and os.listdir(tmp_path) == ["file.txt"]
    write(tmp_path / ("n" * 250))
    assert (tmp_path / ("n" * 250)).read_text() == "new"


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, OSError])
def test_a_failure_leaves_the_old_file(tmp_path: Path, error: type[BaseException]) -> None:
    path = tmp_path / "file.txt"
    path.write_text("old")
    with pytest.raises(error), atomic_write(path) as temporary:
        temporary.write_text("half")
        raise error
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["file.txt"]


@pytest.mark.parametrize("exists", [True, False])
def test_links_are_followed(tmp_path: Path, exists: bool) -> None:
    (tmp_path / "far").mkdir()
    target, link = tmp_path / "far" / "file.txt", tmp_path / "link.txt"
    if exists:
        target.write_text("old")
    link.symlink_to("far/file.txt")
    check_writable(link)
    write(link)
    assert link.is_symlink() and target.read_text() == "new" and not target.is_symlink()
    assert sorted(os.listdir(tmp_path)) == ["far", "link.txt"] and os.listdir(tmp_path / "far") == ["file.txt"]


def test_links_that_lead_nowhere(tmp_path: Path) -> None:
    (tmp_path / "round").symlink_to("round")
    (tmp_path / "lost").symlink_to("no/such/file")
    assert "symbolic links" in refusal(tmp_path / "round")
    assert "No such file or directory" in refusal(tmp_path / "lost")
    assert sorted(os.listdir(tmp_path)) == ["lost", "round"]


def test_a_pipe_is_written_to(tmp_path: Path) -> None:
    pipe, read = tmp_path / "pipe", []
    os.mkfifo(pipe)
    reader = threading.Thread(target=lambda: read.append(pipe.read_bytes()), daemon=True)
    reader.start()
    write(pipe, "through")
    reader.join(10)
    assert read == [b"through"] and stat.S_ISFIFO(pipe.stat().st_mode) and os.listdir(tmp_path) == ["pipe"]


@pytest.mark.parametrize(("name", "minor"), [("null", 3), ("full", 7)])
def test_a_device_stays_one(tmp_path: Path, name: str, minor: int) -> None:
    node = tmp_path / name
    try:
        os.mknod(node, 0o666 | stat.S_IFCHR, os.makedev(1, minor))
        node.open("wb").close()
    except PermissionError:
        pytest.skip("only root makes devices")
    check_writable(node)
    if name == "null":
        write(node)
    else:
        with pytest.raises(UserError, match=f"cannot write {node}: No space left on device"):
            write(node)
    assert stat.S_ISCHR(node.stat().st_mode) and os.listdir(tmp_path) == [name]


def test_a_full_disk_names_the_file(tmp_path: Path) -> None:
    path = tmp_path / "file.txt"
    with (
        pytest.raises(UserError, match=f"cannot write {path}: No space left on device"),
        atomic_write(path),
        open("/dev/full", "w") as full,
    ):
        full.write("x" * 100_000)
    assert not os.listdir(tmp_path)


def test_what_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("a file")
    # `bind` takes 100 letters of a path
    with socket.socket(socket.AF_UNIX) as server:
        here = os.open(tmp_path, os.O_RDONLY)
        server.bind(f"/proc/self/fd/{here}/socket")
        os.close(here)
        assert "it is a socket; name a file" in refusal(tmp_path / "socket")
    assert "it is a folder; name a file" in refusal(tmp_path)
    assert "No such file or directory" in refusal(tmp_path / "missing" / "x")
    assert "Not a directory" in refusal(tmp_path / "file" / "x")
    assert "File name too long" in refusal(tmp_path / ("n" * 300))
    assert sorted(os.listdir(tmp_path)) == ["file", "socket"]


def test_a_disk_without_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    free = shutil.disk_usage(tmp_path).free
    check_room(tmp_path / "file", 1)
    with pytest.raises(UserError, match=f"cannot write {tmp_path}/file: it takes .* MiB in {tmp_path}, where"):
        check_room(tmp_path / "file", 2 * free)
    # the folder of temporary files has less
    monkeypatch.setattr("tempfile.tempdir", "/dev/shm")
    free_there = {"shm": 10}
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=free_there.get(folder.name, 10**9)))
    with pytest.raises(UserError, match="MiB in /dev/shm, where 0 are free"):
        check_room(tmp_path / "file", 10**6)
