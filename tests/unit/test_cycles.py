"""The cycle models against sums done by hand from each core's rules, and against the properties they must have."""

from __future__ import annotations

import pytest

from kqgen.blocks import BlockCount, LayerProfile
from kqgen.board import CORES, Region
from kqgen.cycles import CycleModel, wait_state_cycles
from kqgen.errors import InputError, InternalError
from kqgen.thumb import Program

V6M, V7EM, V81M = 12, 13, 21


def program(code: str, cpu_arch: int = V7EM, at: int = 0x100) -> Program:
    """Halfwords in hexadecimal, as a listing prints them, placed at `at`."""
    return Program(cpu_arch, ((at, b"".join(bytes.fromhex(half)[::-1] for half in code.split())),))


def cost(core: str, code: str, executions: int = 1, taken: int = 0, cpu_arch: int = V7EM, at: int = 0x100) -> int:
    """Cycles of a single block that is the whole of `code`."""
    made = program(code, cpu_arch, at)
    return CycleModel(core).cycles(made, [BlockCount(at, len(made.segments[0][1]), executions, taken)])


# ldrb r3, [r0]; adds r0, #1; adds r2, r2, r3; subs r1, #1; bne to the ldrb
NARROW_LOOP = "7803 3001 18d2 3901 d1fa"
# ldrsb.w lr, [r3, #1]!; ldrsb.w ip, [r1, #1]!; cmp r2, r3; smlabb r0, lr, ip, r0; bne to the first
DOT_LOOP = "f913 ef01 f911 cf01 429a fb1e 000c d1f7"


@pytest.mark.parametrize(("core", "cycles"), [
    ("m0", 10 * (2 + 1 + 1 + 1 + 1) + 9 * 2),
    ("m0p", 10 * (2 + 1 + 1 + 1 + 1) + 9 * 1),
    ("m3", 10 * (2 + 1 + 1 + 1 + 1) + 9 * 1),
    ("m4", 10 * (2 + 1 + 1 + 1 + 1) + 9 * 1),
    # The branch issues with subs and costs 2 when taken, its flags being fresh. The sum waits for no load: adds lies between.
    ("m33", 10 * 4 + 9 * 2),
])  # fmt: skip
def test_narrow_loop(core: str, cycles: int) -> None:
    assert cost(core, NARROW_LOOP, 10, 9, V6M) == cycles


@pytest.mark.parametrize(("core", "cycles"), [
    # Second load pipelined; the target is a wide instruction, on a word boundary: refill 1.
    ("m4", 10 * (2 + 1 + 1 + 1 + 1) + 9 * 1),
    ("m3", 10 * (2 + 1 + 1 + 2 + 1) + 9 * 1),
    # Five issues; ip is ready when smlabb wants it; the branch follows a wide instruction, so it does not fold.
    ("m33", 10 * 5 + 9 * 1),
    # Both loads in one cycle; cmp waits a cycle for the first's base; smlabb and bne in one cycle; one misprediction.
    ("m7", 10 * 4 + 7),
])  # fmt: skip
def test_dot_product_loop(core: str, cycles: int) -> None:
    assert cost(core, DOT_LOOP, 10, 9) == cycles


def test_refill_off_a_word_boundary() -> None:
    """A wide target at an odd halfword costs M3 and M4 one cycle more each time it is jumped to."""
    assert cost("m4", DOT_LOOP, 10, 9, at=0x102) == cost("m4", DOT_LOOP, 10, 9, at=0x100) + 9


@pytest.mark.parametrize(("core", "code", "taken", "cycles"), [
    ("m0", "b510", 0, 1 + 2), ("m0p", "b510", 0, 1 + 2), ("m4", "b510", 0, 1 + 2), ("m33", "b510", 0, 2),  # push {r4, lr}
    ("m7", "b570", 0, 2),  # push {r4-r6, lr}
    ("m0", "bd10", 1, 4 + 1), ("m0p", "bd10", 1, 3 + 1), ("m4", "bd10", 1, 1 + 2 + 2), ("m33", "bd10", 1, 2 + 2),  # pop {r4, pc}
    ("m0", "4770", 1, 3), ("m0p", "4770", 1, 2), ("m4", "4770", 1, 1 + 2), ("m33", "4770", 1, 1 + 2), ("m7", "4770", 1, 1 + 1),  # bx lr
    ("m0", "f000 f802", 1, 4), ("m0p", "f000 f802", 1, 3), ("m4", "f000 f802", 1, 1 + 1),  # bl forward, out of the code
    ("m0", "d1fe", 0, 1), ("m0p", "d1fe", 0, 1), ("m0", "d1fe", 1, 3), ("m0p", "d1fe", 1, 2),  # bne
    ("m0", "f3bf 8f5f", 0, 4), ("m0p", "f3bf 8f5f", 0, 3),  # dmb
    ("m0p", "4348", 0, 1), ("m4", "4348", 0, 1),  # muls
])  # fmt: skip
def test_single_instructions(core: str, code: str, taken: int, cycles: int) -> None:
    assert cost(core, code, 1, taken, V6M) == cycles


@pytest.mark.parametrize(("core", "code", "cycles"), [
    ("m4", "6808 6849", 2 + 1),  # ldr r0, [r1]; ldr r1, [r1, #4]: pipelined
    ("m4", "6809 6849", 2 + 2),  # ldr r1, [r1]; ldr r1, [r1, #4]: the second hangs on the first
    ("m4", "3104 6808", 1 + 2 + 1),  # adds r1, #4; ldr r0, [r1]: address from the instruction before
    ("m4", "6008", 1), ("m4", "5088", 2),  # str r0, [r1]; str r0, [r1, r2]
    ("m4", "6809 5088", 2 + 2), ("m4", "6808 5088", 2 + 1),  # a store behind a load hides its register offset unless it waits
    ("m3", "fb01 0402", 2), ("m4", "fb01 0402", 1),  # mla
    ("m3", "fb82 0103", 4), ("m4", "fb82 0103", 1),  # smull
    ("m3", "fbc4 0102", 6), ("m4", "fbc4 0102", 1),  # smlal
    ("m4", "fb91 f0f2", 7), ("m33", "fb91 f0f2", 6), ("m7", "fb91 f0f2", 7),  # sdiv
    ("m33", "6808 1840", 3),  # ldr r0, [r1]; adds r0, r0, r1: load-use
    ("m33", "6808 1892", 2),  # the same, the sum of other registers
    ("m33", "fb01 0402 fb01 4402", 2),  # mla r4, r1, r2, r0; mla r4, r1, r2, r4: accumulation forwards
    ("m33", "fb01 f402 fb04 f402", 3),  # mul r4; mul r4, r4, r2: no such path to a factor
    ("m33", "bf08 4408", 1),  # it eq; addeq r0, r1: it folds
    ("m7", "1840 1892", 1),  # two independent sums pair
    ("m7", "1840 1802", 2),  # the second needs the first
    ("m7", "6808 6010", 1), ("m7", "7808 7010", 2),  # ldr r0, [r1]; str r0, [r2] pair; a byte comes a cycle later
    ("m7", "b240 b249", 2),  # sxtb twice: one bit-field unit
    ("m7", "6808 688b", 2), ("m7", "6808 684b", 1),  # loads off one base: offsets 0 and 8 meet in a bank, 0 and 4 do not
    ("m7", "6008 600a", 2),  # two stores
    ("m7", "fb01 0402 fb01 4402", 2),  # two products
])  # fmt: skip
def test_pairs(core: str, code: str, cycles: int) -> None:
    assert cost(core, code) == cycles


def test_mispredictions_follow_the_rarer_way() -> None:
    block = "2a00 d1fd"  # cmp r2, #0; bne: to the halfword before the branch's own block
    assert cost("m7", block, 100, 3) - cost("m7", block, 100, 0) == 3 * 7
    assert cost("m7", block, 100, 97) - cost("m7", block, 100, 100) == 3 * 7


def test_low_overhead_loop_is_free() -> None:
    body = "f913 cf01 f911 2f01 fb1c 0002"  # ldrsb.w ip, [r3, #1]!; ldrsb.w r2, [r1, #1]!; smlabb r0, ip, r2, r0
    with_end = body + " f00f c009"  # le lr, to the first
    assert cost("m55", with_end, 10, 9, V81M) == 10 * cost("m55", body, cpu_arch=V81M)


def test_vector_instructions_overlap_when_their_class_differs() -> None:
    assert cost("m55", "ed93 7f00 ed93 7f00", cpu_arch=V81M) == 2 + 2  # two vector loads
    assert cost("m55", "ed93 7f00 eef1 0f06", cpu_arch=V81M) == 2 + 1  # a load and a reduction
    assert cost("m55", "ee23 0e05 ef22 0544 ee23 0f43", cpu_arch=V81M) == 2 + 1 + 2  # a product, a shift and a sum
    assert cost("m55", "ed93 7f00 1c40 eef1 0f06", cpu_arch=V81M) == 2 + 1 + 2  # scalar code between: nothing to overlap with


def test_loads_and_products_in_turn_take_a_cycle_each() -> None:
    step = "eef0 0f24 ecb3 7e10 eef0 2f26 ecb1 3e10"  # vmladava.s8 r0, q0, q2; vldrb q3, [r3], #16; into r2; vldrb q1, [r1], #16
    assert cost("m55", step + " f00f c00b", 10, 9, V81M) == 10 * 4  # le lr, to the first


def test_steady_state_applies_only_to_loops() -> None:
    """A loop's first instruction waits for what the last of the pass before loads; a pass that never comes back does not."""
    code = "1840 6810 d1fc"  # adds r0, r0, r1; ldr r0, [r2]; bne to the adds
    assert cost("m33", code, 1, 0) == 2
    assert cost("m33", code, 10, 9) == 10 * 3 + 9


@pytest.mark.parametrize("core", [c.name for c in CORES if not c.is_host])
def test_blocks_add_up(core: str) -> None:
    made = program(NARROW_LOOP + " " + DOT_LOOP + " 4770", V81M if core == "m55" else V7EM)
    blocks = [BlockCount(0x100, 10, 7, 6), BlockCount(0x10A, 16, 5, 4), BlockCount(0x11A, 2, 1, 1)]
    model = CycleModel(core)
    total = model.cycles(made, blocks)
    assert total == sum(model.cycles(made, [block]) for block in blocks) > 0
    doubled = [BlockCount(b.pc, b.size_bytes, 2 * b.executions, 2 * b.taken) for b in blocks]
    assert model.cycles(made, doubled) == 2 * total
    assert model.cycles(made, []) == 0


@pytest.mark.parametrize(("core", "price"), [("m0", 0), ("m0p", 0), ("m3", 1), ("m4", 1), ("m33", 1), ("m7", 3)])
def test_misaligned_accesses(core: str, price: int) -> None:
    made = program("4770")
    assert CycleModel(core).cycles(made, [], misaligned_accesses=10) == 10 * price


@pytest.mark.parametrize("core", ["m85", "host", ""])
def test_unknown_core_lists_the_known(core: str) -> None:
    with pytest.raises(InputError, match="m0, m0p, m3, m4, m33, m7, m55"):
        CycleModel(core)


def test_block_outside_the_program() -> None:
    with pytest.raises(InternalError, match="0x00000400"):
        CycleModel("m4").cycles(program("4770"), [BlockCount(0x400, 2, 1, 1)])


FLASH = Region("flash", 0x08000000, 0x1000)


def test_wait_states_count_jumps_in_flash_and_reads_of_flash() -> None:
    blocks = (BlockCount(0x08000000, 8, 100, 40), BlockCount(0x08000FFE, 2, 9, 5), BlockCount(0x08001000, 2, 70, 70),
              BlockCount(0x20000000, 8, 50, 50))
    profile = LayerProfile(0, blocks, flash_reads=1000)
    assert wait_state_cycles(profile, FLASH, 2) == 2 * (40 + 5 + 1000)
    assert wait_state_cycles(profile, FLASH, 0) == 0


def test_wait_states_need_counted_reads() -> None:
    with pytest.raises(InternalError, match="reads of flash"):
        wait_state_cycles(LayerProfile(0, (), None), FLASH, 2)
