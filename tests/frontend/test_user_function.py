# SPDX-License-Identifier: Apache-2.0
"""`module:function`: found in the current folder, last; whatever it does, one line says so."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from library_fixture import affine_library

from tvm_involution import UserError
from tvm_involution.frontend.user_function import call_user_function


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(sys, "modules", {**sys.modules})
    return tmp_path


def test_the_current_folder_comes_last(here: Path) -> None:
    (here / "of_this_test.py").write_text("def build():\n    return 7\n")
    (here / "zipapp.py").write_text("raise AssertionError\n")  # like a module of Python's own
    assert call_user_function("of_this_test:build") == 7
    assert sys.path[-1] == str(here)
    import zipapp

    assert Path(zipapp.__file__).parent != here


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (
            "def build(size):\n    return size\n",
            "without arguments (missing a required argument: 'size'",
        ),
        ("def build():\n    return 1 / 0\n", "of_this_test:build failed: ZeroDivisionError: division by zero"),
        ("def build():\n    raise SystemExit(3)\n", "of_this_test:build failed: SystemExit: 3"),
        ("raise SystemExit\n", "it ends the process"),
        ("def build(:\n", "cannot import of_this_test:build: SyntaxError"),
        ("1 / 0\n", "cannot import of_this_test:build: ZeroDivisionError"),
        ("import no_such_module_at_all\n", "No module named 'no_such_module_at_all'"),
        ("build = 3\n", "of_this_test:build is a int; expected a function"),
        ("\n", "has no attribute 'build'"),
    ],
)
def test_functions_that_fail(here: Path, source: str, message: str) -> None:
    (here / "of_this_test.py").write_text(source)
    with pytest.raises(UserError) as caught:
        call_user_function("of_this_test:build")
    assert message in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("reference", [":build", "of_this_test:", ".:x", "a b:c", "os:system", "os:no_such", "..x:y"])
def test_what_is_no_reference(reference: str) -> None:
    with pytest.raises(UserError, match="cannot"):
        call_user_function(reference)


def test_a_library_beside_the_source(here: Path) -> None:
    """After `compile net:build -o net.so`, `import net` finds the library; `net:build` is still the source's."""
    (here / "net_of_this_test.py").write_text("def build():\n    return 7\n")
    affine_library(here / "net_of_this_test.so")
    for _ in range(2):
        assert call_user_function("net_of_this_test:build") == 7
    (here / "other_of_this_test.py").write_text("def build():\n    return 7\n")
    (here / "other_of_this_test.so").write_bytes(b"no library of ours")
    with pytest.raises(UserError, match="cannot import other_of_this_test:build: ImportError"):
        call_user_function("other_of_this_test:build")
