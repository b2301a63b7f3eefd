# SPDX-License-Identifier: Apache-2.0
"""What a CPU target may say: machines that libraries can be linked for, CPUs and features that LLVM knows.

LLVM itself prints, goes on with another CPU, or ends the process.
"""

from __future__ import annotations

import difflib
import re

import tvm
from tvm.target import codegen

from .errors import UserError
from .quiet import quiet_stderr

_LINUX = re.compile(r"(x86_64|aarch64|riscv64)(-\w+)?-linux(-gnu)?")
_MOST_CORES = 4096
# what `riscv64-linux-gnu` means to Linux distributions, RV64GC; LLVM's own default has no floating point
_RISCV = ["+m", "+a", "+f", "+d", "+c"]


def with_defaults(spec: dict[str, object]) -> dict[str, object]:
    """Return a target's JSON with the features that its architecture has in all of Linux."""
    riscv = str(spec.get("mtriple")).startswith("riscv64-")
    return {**spec, "mattr": _RISCV} if riscv and not spec.get("mcpu") and not spec.get("mattr") else spec


def check_cpu(target: tvm.target.Target) -> None:
    """Check that code can be made, and linked, for the CPU `target`.

    Raises:
        UserError: another operating system or architecture, a CPU or feature that LLVM does not know, bad numbers.
    """
    triple = str(target.attrs.get("mtriple") or codegen.llvm_get_system_triple())
    if not _LINUX.fullmatch(triple):
        raise UserError(
            f"libraries cannot be linked for {triple!r}; expected x86_64-linux-gnu, aarch64-linux-gnu or "
            "riscv64-linux-gnu"
        )
    for name, least, most in (("num-cores", 1, _MOST_CORES), ("opt-level", 0, 3), ("vector-width", 1, 65536)):
        value = target.attrs.get(name)
        if value is not None and not least <= int(value) <= most:
            raise UserError(f"the target's {name} is {value}; expected {least} to {most}")
    cpu = str(target.attrs.get("mcpu") or "generic")
    with quiet_stderr():
        known = sorted(codegen.llvm_get_cpu_archlist(tvm.target.Target({"kind": "llvm", "mtriple": triple})))
        if cpu != "generic" and not codegen.llvm_is_valid_cpu(cpu, triple):
            near = difflib.get_close_matches(cpu, known, n=3, cutoff=0.5)
            hint = f"did you mean {' or '.join(near)}?" if near else f"expected one of {', '.join(known)}"
            raise UserError(f"LLVM knows no CPU {cpu!r} of {triple}; {hint}")
        try:
            features = codegen.llvm_get_cpu_features(target)
        except Exception as error:  # TVM raises several kinds
            raise UserError(f"target {target} is not taken: {str(error).strip().splitlines()[-1]}") from error
        for word in target.attrs.get("mattr") or ():
            _check_feature(str(word), triple)
    if cpu != "generic" and "64bit" not in features and not triple.startswith("aarch64"):
        raise UserError(f"{cpu} is no CPU of 64 bits; leave out mcpu, or name another")
    if triple.startswith("riscv64") and "d" not in features:
        raise UserError(f'{triple} needs floating point in hardware; add "mattr": {_RISCV}'.replace("'", '"'))


def _check_feature(word: str, triple: str) -> None:
    name = word[1:]
    if word[:1] in ("+", "-"):
        target = tvm.target.Target({"kind": "llvm", "mtriple": triple, "mattr": [f"+{name}"]})
        if name in codegen.llvm_get_cpu_features(target):
            return
    raise UserError(f"LLVM knows no feature {word!r} of {triple}; expected such as +avx2 or -avx512f")
