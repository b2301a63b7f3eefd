# SPDX-License-Identifier: Apache-2.0
"""A sample of `python tests/fuzz_command_line.py`."""

from __future__ import annotations

from fuzz_command_line import Case, fuzz, judge


def test_a_sample_of_bad_input() -> None:
    findings, _ = fuzz(40, seed=1)
    assert not findings, "\n".join(map(str, findings))


def test_what_is_a_finding() -> None:
    line = "tvm-involution: wrong\n"
    assert judge(Case([], True), {"status": 2, "err": line}) is None
    assert judge(Case([], False), {"status": 0, "err": ""}) is None
    for status, err in ((0, ""), (1, line), (2, ""), (2, line * 2), (2, "Traceback\n"), (139, ""), (2, "wrong\n")):
        assert judge(Case([], True), {"status": status, "err": err}) is not None
    assert judge(Case([], False), {"status": 0, "err": "a warning\n"}) is not None
