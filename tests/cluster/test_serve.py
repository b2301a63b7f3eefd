# SPDX-License-Identifier: Apache-2.0
"""The example of Ray Serve, asked by HTTP."""

from __future__ import annotations

import io
import json
import os
import socket
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from command_line import TESTS
from library_fixture import colour_library
from PIL import Image

serve = pytest.importorskip("ray.serve", reason="Ray Serve is not installed: pip install 'ray[serve]'")


def ask(port: int, content: bytes) -> tuple[int, dict]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/", content, timeout=30) as reply:
            return reply.status, json.load(reply)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def test_posted_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    colour_library(tmp_path / "colour.so", batch_sizes=(1, 4))
    examples = TESTS.parent / "examples"
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.setenv("LIBRARY", str(tmp_path / "colour.so"))
    monkeypatch.setenv(
        "PYTHONPATH", os.pathsep.join([str(TESTS.parent), str(examples), os.environ.get("PYTHONPATH", "")])
    )
    monkeypatch.syspath_prepend(examples)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    file = io.BytesIO()
    Image.new("RGB", (40, 30), (0, 250, 0)).save(file, "PNG")
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="error")
    try:
        import ray_serve

        serve.start(http_options={"host": "127.0.0.1", "port": port})
        serve.run(ray_serve.app)
        status, answer = ask(port, file.getvalue())
        assert status == 200 and answer["classes"][0]["name"] == "green"
        status, answer = ask(port, b"no picture")
        assert status == 400 and "is no picture that can be read" in answer["error"]
    finally:
        serve.shutdown()
        ray.shutdown()
