# SPDX-License-Identifier: Apache-2.0
"""Set up an AArch64 machine in a folder: qemu, Debian's Python for arm64, and the wheels that running a library takes.

`make test-aarch64` calls it: `python tests/boards/aarch64_machine.py FOLDER`. Everything comes from the package
registries that apt and pip are set up for, and nothing is installed. Where they do not have it, it says so and ends
with status 0, the folder without its file `ready`.
"""

from __future__ import annotations

import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

WHEELS = ("apache-tvm", "apache-tvm-ffi", "numpy", "ml-dtypes", "typing-extensions")
# Debian's Python, and what it and the wheels are linked to
PYTHON = ("python3-minimal", "libpython3-stdlib", "libstdc++6")
_LIBRARY = re.compile(r"(lib(?!perl|krb5|gssapi|k5crypto|db5|python3-stdlib).*|zlib1g|python3\.\d+-minimal):arm64")


class Missing(Exception):
    """A registry does not have something, or a tool is not there."""


def run(*command: str | Path, **options: object) -> str:
    """Return what a command prints; `Missing` where it fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True, **options)  # type: ignore[call-overload]
    except (OSError, subprocess.SubprocessError) as error:
        lines = (getattr(error, "stderr", None) or str(error)).strip().splitlines()
        raise Missing(f"{Path(command[0]).name}: {lines[-1] if lines else 'failed'}") from error
    return str(done.stdout)


def qemu(folder: Path) -> Path:
    """Return the emulator."""
    return folder / "root" / "usr" / "bin" / "qemu-aarch64-static"


def download_debian(folder: Path) -> None:
    """Unpack qemu, for this machine, and Python, for arm64, into `folder`."""
    lists, packages = folder / "apt" / "lists", folder / "apt" / "packages"
    for each in (lists / "partial", folder / "apt" / "cache" / "archives" / "partial", packages):
        each.mkdir(parents=True, exist_ok=True)
    native = run("dpkg", "--print-architecture").strip()
    configuration = folder / "apt" / "apt.conf"
    configuration.write_text(
        f'APT::Architecture "{native}";\nAPT::Architectures {{ "{native}"; "arm64"; }};\nDir::State::Lists "{lists}";\n'
        f'Dir::Cache "{folder / "apt" / "cache"}";\nAcquire::Languages "none";\nAPT::Sandbox::User "root";\n'
    )
    environment = {**os.environ, "APT_CONFIG": str(configuration)}
    run("apt-get", "update", env=environment)
    relations = ("recommends", "suggests", "conflicts", "breaks", "replaces", "enhances")
    names = [f"{name}:arm64" for name in PYTHON]
    found = run("apt-cache", "depends", "--recurse", *(f"--no-{each}" for each in relations), *names, env=environment)
    wanted = sorted(line for line in found.splitlines() if _LIBRARY.fullmatch(line))
    run("apt-get", "download", "qemu-user-static", *wanted, cwd=packages, env=environment)
    for package in packages.iterdir():
        run("dpkg-deb", "-x", package, folder / "root")
    for other in set((folder / "root" / "usr" / "bin").glob("qemu-*")) - {qemu(folder)}:
        other.unlink()
    shutil.rmtree(folder / "apt")


def download_wheels(folder: Path) -> None:
    """Unpack the wheels for that Python into `folder`; of TVM without the compiler, which is most of it."""
    (python,) = (path.name for path in (folder / "root" / "usr" / "bin").glob("python3.*"))
    wheels = folder / "wheels"
    platforms = [f"--platform=manylinux_2_{minor}_aarch64" for minor in (17, 24, 27, 28)]
    pinned = [f"{name}=={importlib.metadata.version(name)}" for name in WHEELS]
    version = f"--python-version={python.removeprefix('python')}"
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
    run(*command, version, *platforms, "--dest", wheels, *pinned)
    for wheel in wheels.glob("*.whl"):
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(
                folder / "site", [name for name in archive.namelist() if not name.endswith("libtvm_compiler.so")]
            )
    shutil.rmtree(wheels)


def main(folder: Path) -> None:
    """Set up the machine in `folder`, unless it is there."""
    if (folder / "ready").is_file():
        return
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        download_debian(folder)
        download_wheels(folder)
    except Missing as error:
        print(f"test-aarch64: not run: the packages for AArch64 are not to be had here ({error})")
        return
    (folder / "ready").touch()


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve())
