# SPDX-License-Identifier: Apache-2.0
"""A warp's walk through machine code, over short listings."""

from __future__ import annotations

from tvm_involution.bench.sass import parse, walk


def listing(*lines: str | tuple[str, int, int, int]) -> str:
    """Return lines as cuobjdump prints them; with a stall, the barrier that is set and those waited for."""
    printed = []
    for place, line in enumerate(lines):
        text, stall, sets, waits = (line, 1, 7, 0) if isinstance(line, str) else line
        control = (stall | sets << 5 | 7 << 8 | waits << 11) << 41
        printed += [f"        /*{16 * place:04x}*/    {text} ;    /* 0x0 */", f"      /* 0x{control:016x} */"]
    return "\n".join(printed)


def test_a_loop_is_counted_as_often_as_it_turns():
    found = walk(
        parse(
            listing(
                "IMAD.MOV.U32 R3, RZ, RZ, RZ",
                "HMMA.16816.F32 R4, R8, R10, R4",
                "VIADD R3, R3, 0x2",
                "ISETP.NE.AND P0, PT, R3, 0xe, PT",
                "@P0 BRA 0x10",
                "STG.E.128 desc[UR4][R2.64], R4",
                "EXIT",
                "BRA 0x70",
            )
        )
    )
    assert found.issued == {"IMAD": 1, "HMMA": 7, "VIADD": 7, "ISETP": 7, "BRA": 7, "STG": 1, "EXIT": 1}
    assert (found.multiply_adds, found.stored, found.open_loops) == (7 * 16 * 8 * 16, 16, 0)


def test_counters_of_whole_warps_and_predicates_that_are_passed_on():
    code = listing(
        "UMOV UR4, URZ",
        "FFMA R1, R1, R1, R1",
        "UIADD3 UR4, UR4, 0x480, URZ",
        "UISETP.NE.AND UP0, UPT, UR4, 0x900, UPT",
        "PLOP3.LUT P2, PT, PT, PT, UP0, 0x80, 0x0",
        "@P2 BRA 0x10",
        "EXIT",
    )
    assert walk(parse(code)).issued["FFMA"] == 2


def test_of_two_sides_the_one_that_loads():
    code = listing(
        "ISETP.GT.AND P0, PT, R9, 0x50, PT",
        "@!P0 BRA 0x40",
        "CS2R R4, SRZ",
        "BRA 0x50",
        "LDG.E.128.CONSTANT R4, desc[UR6][R4.64]",
        "EXIT",
    )
    found = walk(parse(code))
    assert (found.loaded, found.issued["CS2R"]) == (16, 0)


def test_a_loop_that_data_end_turns_once_and_is_told():
    found = walk(parse(listing("FADD R1, R1, R1", "ISETP.NE.AND P0, PT, R3, RZ, PT", "@P0 BRA 0x0", "EXIT")))
    assert (found.issued["FADD"], found.open_loops) == (1, 1)


def test_what_waits_for_a_load_waits_for_memory():
    load = ("LDG.E R4, desc[UR6][R4.64]", 1, 2, 0)
    apart, chained = (
        walk(parse(listing(load, load, ("FADD R4, R4, R4", 4, 7, 1 << 2), "EXIT"))),
        walk(parse(listing(load, ("LDG.E R4, desc[UR6][R4.64]", 1, 3, 1 << 2), ("FADD R4, R4, R4", 4, 7, 8), "EXIT"))),
    )
    assert all(500 > twice - once > 200 for once, twice in [(apart.cycles[0], chained.cycles[0])])
    assert chained.cycles[1] > chained.cycles[0]


def test_copies_of_a_group_are_waited_for_together():
    copies = ["LDGSTS.E.BYPASS.128 [R5], desc[UR8][R6.64]", "LDGDEPBAR"]
    waits = walk(parse(listing(*copies, *copies, "DEPBAR.LE SB0, 0x0", "EXIT")))
    behind = walk(parse(listing(*copies, *copies, "DEPBAR.LE SB0, 0x2", "EXIT")))
    assert waits.copied == 32
    assert waits.cycles[0] > 200 > behind.cycles[0]
