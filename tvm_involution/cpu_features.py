# SPDX-License-Identifier: Apache-2.0
"""CPU features: what a target's code may use, what this CPU has beside its name, in LLVM's words and in Linux's."""

from __future__ import annotations

import platform

import tvm
from tvm.target import codegen

from .errors import UserError
from .runtime.machine import architecture, cpu_flags

# LLVM's name of each x86 feature that generated code may use -> its name in /proc/cpuinfo
_X86_FEATURES = {
    "ssse3": "ssse3",
    "sse4.1": "sse4_1",
    "sse4.2": "sse4_2",
    "popcnt": "popcnt",
    "lzcnt": "abm",
    "movbe": "movbe",
    "bmi": "bmi1",
    "bmi2": "bmi2",
    "avx": "avx",
    "fma": "fma",
    "avx2": "avx2",
    "f16c": "f16c",
    "gfni": "gfni",
    "avx512f": "avx512f",
    "avx512cd": "avx512cd",
    "avx512vbmi": "avx512vbmi",
    "avx512vbmi2": "avx512_vbmi2",
    "avx512bw": "avx512bw",
    "avx512dq": "avx512dq",
    "avx512vl": "avx512vl",
    "avx512ifma": "avx512ifma",
    "avx512bitalg": "avx512_bitalg",
    "avx512vpopcntdq": "avx512_vpopcntdq",
    "avx512vnni": "avx512_vnni",
    "avxvnni": "avx_vnni",
    "avx512bf16": "avx512_bf16",
    "avx512fp16": "avx512_fp16",
    "amx-tile": "amx_tile",
    "amx-bf16": "amx_bf16",
    "amx-int8": "amx_int8",
}
# the same of AArch64: what the compiler uses by itself, or a schedule asks for
_AARCH64_FEATURES = {
    "lse": "atomics",
    "rdm": "asimdrdm",
    "fullfp16": "asimdhp",
    "fp16fml": "asimdfhm",
    "dotprod": "asimddp",
    "complxnum": "fcma",
    "rcpc": "lrcpc",
    "rcpc-immo": "ilrcpc",
    "flagm": "flagm",
    "bf16": "bf16",
    "i8mm": "i8mm",
    "sve": "sve",
    "sve2": "sve2",
}
_FEATURES = {"x86_64": _X86_FEATURES, "aarch64": _AARCH64_FEATURES}


def has_feature(target: tvm.target.Target, feature: str) -> bool:
    """Return whether a CPU has what LLVM calls `feature`; a GPU has none."""
    if target.kind.name != "llvm":
        return False
    with target:
        return bool(codegen.target_has_features(feature))


def cpu_features(target: tvm.target.Target) -> tuple[str, ...]:
    """Return what the CPU must have to run code for `target`, in the words of /proc/cpuinfo.

    Raises:
        UserError: LLVM does not know the CPU's name.
    """
    known = _FEATURES.get(architecture(str(target.attrs.get("mtriple") or platform.machine())))
    if known is None:
        return ()
    cpu = str(target.attrs.get("mcpu") or "generic")
    if cpu not in {*codegen.llvm_get_cpu_archlist(target), "generic"}:
        raise UserError(f"unknown CPU {cpu!r}, whose features cannot be told; expected a name that LLVM knows")
    features = codegen.llvm_get_cpu_features(target)
    return tuple(linux for llvm, linux in known.items() if llvm in features)


def corrections(spec: dict[str, object]) -> list[str]:
    """Return the `mattr` that makes the CPU that `spec` names the CPU of this machine.

    A virtual machine may show another model than it runs on, from which LLVM takes the name, and hide features that
    all CPUs of that name have.
    """
    flags, known = cpu_flags(), _FEATURES.get(architecture())
    if not flags or known is None:
        return []
    named = codegen.llvm_get_cpu_features(tvm.target.Target(spec))
    differ = {llvm: linux in flags for llvm, linux in known.items() if (linux in flags) != (llvm in named)}
    return [f"{'+' if here else '-'}{llvm}" for llvm, here in differ.items()]


def beside_the_name(target: tvm.target.Target) -> list[str]:
    """Return the words of the target's `mattr` that change what the named CPU has, such as `+avx512bf16`, sorted."""
    words = sorted(str(word) for word in target.attrs.get("mattr") or ())
    if not words:
        return []
    without = tvm.target.Target({key: value for key, value in target.export().items() if key != "mattr"})
    named = codegen.llvm_get_cpu_features(without)
    return [word for word in words if word.startswith("+") != (word[1:] in named)]
