# SPDX-License-Identifier: Apache-2.0
"""What is imported when: running a library brings neither torch nor the compiler, and needs neither."""

from __future__ import annotations

import importlib.metadata
import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
from command_line import run_python
from library_fixture import affine_library

import tvm_involution as ti

_RUN = """
import sys
import numpy as np
import tvm_involution as ti
net = ti.load(sys.argv[1])
assert net(np.ones((3, 4), np.float32)).tolist() == [[3.0] * 4] * 3
"""
_NOTHING_HEAVY = """
ours = {f"tvm_involution.{room}" for room in ("compiler", "frontend", "relax", "nn")}
heavy = ({"torch", "tvm", "safetensors"} | ours) & set(sys.modules)
assert not heavy, heavy
maps = open("/proc/self/maps").read()
assert "libtvm_compiler" not in maps and "libtorch" not in maps
"""


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return affine_library(tmp_path_factory.mktemp("import") / "affine.so")


def test_running_loads_neither_torch_nor_the_compiler(library: Path) -> None:
    run_python(_RUN + _NOTHING_HEAVY + 'assert "libtvm_runtime.so" in maps', library)


def test_importing_the_package_loads_next_to_nothing() -> None:
    run_python("import sys, tvm_involution" + _NOTHING_HEAVY + 'assert "numpy" not in sys.modules')


def test_command_line_without_torch_and_compiler(library: Path) -> None:
    code = """
import sys
from tvm_involution.cli import main
for words in (["--help"], ["models", "--json"], ["inspect", sys.argv[1]]):
    try:
        main(words)
    except SystemExit as end:
        assert not end.code, end.code
"""
    run_python(code + _NOTHING_HEAVY, library)


@pytest.mark.parametrize("first", ["tvm", "library"])
def test_the_python_package_of_tvm_beside_it(library: Path, first: str) -> None:
    """Either order: each runtime library is mapped once, and both work."""
    use_tvm = """
import tvm
array = tvm.runtime.tensor([1.0, 2.0])
assert array.numpy().tolist() == [1.0, 2.0]
"""
    once = """
import os, re
mapped = set(re.findall(r"/\\S*libtvm_(?:runtime|ffi)[^/]*[.]so", open("/proc/self/maps").read()))
names = [os.path.basename(path) for path in mapped]
assert len(names) == len(set(names)), mapped
assert net(np.ones((8, 4), np.float32)).tolist() == [[3.0] * 4] * 8
"""
    parts = [use_tvm, _RUN] if first == "tvm" else [_RUN, use_tvm]
    run_python("\n".join([*parts, once]), library)


def test_torch_after_loading(library: Path) -> None:
    """A process may import torch once a library is loaded, and pass its tensors."""
    code = """
import torch
y = net(torch.ones(5, 4))
assert isinstance(y, torch.Tensor) and y.tolist() == [[3.0] * 4] * 5
"""
    run_python(_RUN + code, library)


def test_compiling_after_loading(library: Path, tmp_path: Path) -> None:
    code = """
import torch
module = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU())
ti.compile(module, image_size=(8, 8)).save(sys.argv[2])
x = torch.randn(1, 3, 8, 8)
torch.testing.assert_close(ti.load(sys.argv[2])(x), module(x).detach(), rtol=1e-5, atol=1e-5)
"""
    run_python(_RUN + code, library, tmp_path / "compiled.so")


def test_environment_without_torch(library: Path, tmp_path: Path) -> None:
    """Only what the package requires is installed: everything about a library works, compiling says what is missing."""
    site = tmp_path / "site"
    site.mkdir()
    required = ["apache-tvm", "apache-tvm-ffi", "ml-dtypes", "typing-extensions", "numpy", "pillow", "click", "rich"]
    required += ["pygments", "markdown-it-py", "mdurl", "tomli"]
    installed = {dist.name.lower().replace("_", "-"): dist for dist in importlib.metadata.distributions()}
    for name in filter(installed.get, required):
        for file in installed[name].files or ():
            top = file.parts[0]
            if top != ".." and not (site / top).is_symlink():
                (site / top).symlink_to(Path(sysconfig.get_path("purelib")) / top)
    (site / "tvm_involution").symlink_to(Path(ti.__file__).parent)
    code = """
for name in ("torch", "safetensors", "xgboost"):
    try:
        __import__(name)
    except ModuleNotFoundError:
        continue
    raise AssertionError(name)
for use in (lambda: ti.compile("rednet26"), lambda: ti.nn):
    try:
        use()
    except ti.UserError as error:
        assert str(error).endswith('needs torch: pip install "tvm-involution[compile]"'), error
    else:
        raise AssertionError("no torch, no error")
import subprocess
line = [sys.executable, "-S", "-m", "tvm_involution"]
for words in (
    ["compile", "rednet26", "-o", sys.argv[1] + ".new"],
    ["tune", "rednet26", "--trials", "1"],
    ["tune", "rednet26", "--dry-run"],
    ["logs", "coverage", "rednet26"],
):
    done = subprocess.run([*line, *words], capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.count("\\n") == 1 and "[compile" in done.stderr, done
for words in (["inspect", sys.argv[1]], ["models"], ["targets"]):
    done = subprocess.run([*line, *words], capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout and not done.stderr, done
"""
    environment = {**os.environ, "PYTHONPATH": str(site), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        [sys.executable, "-S", "-c", _RUN + code, str(library)],
        capture_output=True,
        text=True,
        timeout=120,
        env=environment,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr


def test_unknown_attribute() -> None:
    with pytest.raises(AttributeError, match="no attribute 'colour'"):
        _ = ti.colour
    assert set(dir(ti)) >= {"UserError", "compile", "load", "nn", "te"}
