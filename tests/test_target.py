# SPDX-License-Identifier: Apache-2.0
"""Targets: what can be built is, everything else is refused before LLVM sees it."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest
import torch

import tvm_involution as ti
from tvm_involution import UserError
from tvm_involution import cpu_features as features_module
from tvm_involution.cpu_features import cpu_features
from tvm_involution.runtime import machine
from tvm_involution.target import resolve_target, target_key, vector_bytes


def llvm(**fields: object) -> str:
    return json.dumps({"kind": "llvm", **{name.replace("_", "-"): value for name, value in fields.items()}})


@pytest.mark.parametrize(
    "text",
    [
        "llvm",
        "raspberry-pi/4b-aarch64",
        "nvidia/nvidia-h100",
        llvm(),
        llvm(mcpu="haswell", num_cores=2),
        llvm(mcpu="generic"),
        llvm(mcpu="znver4", mattr=["-avx512f", "+avx2"]),
        llvm(mtriple="aarch64-linux-gnu", mcpu="cortex-a76"),
        llvm(mtriple="x86_64-unknown-linux-gnu", mcpu="x86-64-v3"),
        llvm(mtriple="riscv64-linux-gnu", mcpu="sifive-u74"),
    ],
)
def test_targets_that_can_be_built(text: str) -> None:
    assert resolve_target(text).kind.name in ("llvm", "cuda")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        *(
            (llvm(mtriple=triple), f"cannot be linked for '{triple}'; expected x86_64-linux-gnu")
            for triple in (
                *("garbage", "x86_64", "armv7l-linux-gnueabihf", "i686-linux-gnu", "x86_64-linux-gnux32"),
                *("arm64-apple-macos", "x86_64-pc-windows-msvc", "aarch64-linux-android", "x86_64-linux-musl"),
            )
        ),
        (llvm(mcpu="znver9"), "LLVM knows no CPU 'znver9' of x86_64"),
        (llvm(mcpu="znver9"), "did you mean znver"),
        (llvm(mtriple="aarch64-linux-gnu", mcpu="znver4"), "LLVM knows no CPU 'znver4' of aarch64-linux-gnu"),
        (llvm(mcpu="i386"), "i386 is no CPU of 64 bits"),
        (llvm(mtriple="riscv64-linux-gnu", mcpu="generic-rv64"), 'needs floating point in hardware; add "mattr"'),
        (llvm(mcpu="znver4", mattr=["+bogus"]), "LLVM knows no feature '+bogus'"),
        (llvm(mattr=["avx2"]), "LLVM knows no feature 'avx2'"),
        (llvm(num_cores=-1), "num-cores is -1; expected 1 to 4096"),
        (llvm(num_cores=0), "num-cores is 0"),
        (llvm(num_cores="two"), "unknown target"),
        (llvm(opt_level=9), "opt-level is 9; expected 0 to 3"),
        (llvm(mfloat_abi="odd"), "invalid -mfloat-abi option odd"),
        (llvm(bogus=1), "Unknown config option 'bogus'"),
        ('{"kind": "cuda"}', "GPUs of sm_50 are not supported"),
        ('{"kind": "cuda", "arch": "sm_90", "host": {"kind": "llvm", "mtriple": "garbage"}}', "cannot be linked for"),
        ('{"kind": "cuda", "arch": "sm_90", "host": {"kind": "cuda", "arch": "sm_90"}}', "host is of kind 'cuda'"),
        ("hexagon", "target kind 'hexagon' is not supported"),
        ("[" * 3000, "unknown target"),
        ('{"a":' * 3000, "unknown target"),
    ],
)
def test_targets_that_cannot(capfd: pytest.CaptureFixture[str], text: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        resolve_target(text)
    assert message in str(caught.value) and "\n" not in str(caught.value) and len(str(caught.value)) < 1500
    assert capfd.readouterr() == ("", "")  # nor does LLVM say anything


def test_riscv(tmp_path: Path) -> None:
    """What Linux distributions mean by riscv64: floating-point numbers in registers."""
    pytest.importorskip("ziglang")
    module = torch.nn.Conv2d(3, 4, 1)
    ti.compile(module, target=llvm(mtriple="riscv64-linux-gnu"), image_size=(4, 4)).save(tmp_path / "riscv.so")
    header = (tmp_path / "riscv.so").read_bytes()[:64]
    assert header[:5] == b"\x7fELF\x02"
    kind, machine = struct.unpack_from("<HH", header, 16)
    (flags,) = struct.unpack_from("<I", header, 48)
    # a shared object for RISC-V, compressed instructions, double-precision ABI
    assert (kind, machine, flags) == (3, 243, 0x5)


@pytest.mark.parametrize(
    ("cpu", "needed"),
    [
        ("generic", set()),
        ("cortex-a72", set()),
        ("cortex-a76", {"atomics", "asimdrdm", "asimdhp", "asimddp", "lrcpc"}),
        ("neoverse-v1", {"atomics", "asimddp", "sve", "bf16", "i8mm"}),
    ],
)
def test_features_of_aarch64_are_asked_for(monkeypatch: pytest.MonkeyPatch, cpu: str, needed: set[str]) -> None:
    """A library for a core with dot products is refused by one without."""
    features = cpu_features(resolve_target(llvm(mtriple="aarch64-linux-gnu", mcpu=cpu)))
    assert needed <= set(features) and bool(needed) == bool(features)
    monkeypatch.setattr(machine.platform, "machine", lambda: "aarch64")
    files = {
        "a Cortex-A72": "processor : 0\nFeatures\t: fp asimd evtstrm aes pmull sha1 sha2 crc32 cpuid\n",
        "one that has them": f"processor : 0\nFeatures\t: fp asimd {' '.join(features)}\n",
        "of an emulator's host": "processor : 0\nflags\t: fpu avx2 avx512f\n",
    }
    for name, text in files.items():
        monkeypatch.setattr(machine.Path, "read_text", lambda _, text=text: text)
        assert set(machine.missing_features(features)) == (set(features) if "A72" in name else set())


def test_a_cpu_that_is_not_what_its_name_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """Virtual machines show another model than they run on, or hide what all CPUs of a name have."""
    spec = {"kind": "llvm", "mtriple": "x86_64-linux-gnu", "mcpu": "icelake-server"}
    named = cpu_features(resolve_target(llvm(**spec)))
    monkeypatch.setattr(machine.platform, "machine", lambda: "x86_64")
    for flags, mattr in (
        (named, []),
        ((*named, "avx512_bf16", "cldemote"), ["+avx512bf16"]),
        ([flag for flag in named if not flag.startswith("avx512")], None),
        ((), []),
    ):
        monkeypatch.setattr(features_module, "cpu_flags", lambda flags=flags: frozenset(flags))
        found = features_module.corrections(spec)
        target = resolve_target(llvm(**spec, mattr=found))
        if mattr is None:
            assert "-avx512f" in found and vector_bytes(target) == 32
        else:
            assert found == mattr
        assert not flags or set(cpu_features(target)) == set(flags) - {"cldemote"}
        assert target_key(target) == "".join(["icelake-server", *sorted(found)])


def test_features_that_change_nothing_make_no_other_folder() -> None:
    assert target_key(resolve_target(llvm(mcpu="znver4", mattr=["+avx2"]))) == "znver4"
    assert target_key(resolve_target(llvm(mcpu="znver4", mattr=["-avx2", "+avx"]))) == "znver4-avx2"
