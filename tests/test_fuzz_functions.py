# SPDX-License-Identifier: Apache-2.0
"""Bad arguments of the functions, expressions and layers of `te` and `nn`, all that `fuzz_functions.py` knows."""

from __future__ import annotations

import pytest
from fuzz_functions import Case, check_good_calls, fuzz, judge

import tvm_involution as ti


def test_good_calls() -> None:
    check_good_calls()


@pytest.mark.parametrize("room", ["nn", "te"])
def test_bad_arguments(room: str) -> None:
    tried, findings = fuzz(room=room)
    assert tried > 1000 and not findings, "\n".join(findings)


def test_what_is_a_finding() -> None:
    def fails(x):
        raise ti.UserError(x) if x else KeyError("x")

    for function, value in ((fails, ""), (fails, "two\nlines of x"), (fails, "nothing"), (print, "")):
        key = "sep" if function is print else "x"
        assert judge(Case("room.f_", function, {key: value}, key, True)) is not None
    assert judge(Case("room.f_", fails, {"x": "x is wrong"}, "x", True)) is None
