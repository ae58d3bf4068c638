"""Hand-checked Thumb encodings give the fields the cycle models and the stack bound read."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from kqgen.errors import InternalError
from kqgen.thumb import Program, disassemble, insn_size
from kqgen.thumb_insn import LR, PC, SP, Insn, Kind

V6M, V7M, V7EM, V8M, V81M = 12, 10, 13, 17, 21
AT = 0x1000


def r(*registers: int) -> frozenset[int]:
    return frozenset(registers)


# (architecture, halfwords in hexadecimal as manuals print them, base, kind, other fields). Encodings: Armv7-M ARM, A7.7.
CASES: tuple[tuple[int, str, str, Kind, dict[str, Any]], ...] = (
    # arithmetic
    (V6M, "1e43", "sub", Kind.ALU, {"reads": r(0), "writes": r(3), "sets_flags": True, "immediate": 1}),  # subs r3, r0, #1
    (V6M, "3901", "sub", Kind.ALU, {"reads": r(1), "writes": r(1), "sets_flags": True, "immediate": 1}),  # subs r1, #1
    (V6M, "441a", "add", Kind.ALU, {"reads": r(2, 3), "writes": r(2)}),  # add r2, r3
    (V6M, "2000", "mov", Kind.ALU, {"writes": r(0), "sets_flags": True, "immediate": 0}),  # movs r0, #0
    (V6M, "0003", "mov", Kind.ALU, {"reads": r(0), "writes": r(3), "sets_flags": True}),  # movs r3, r0
    (V6M, "468e", "mov", Kind.ALU, {"reads": r(1), "writes": r(LR)}),  # mov lr, r1
    (V6M, "009b", "lsl", Kind.ALU, {"reads": r(3), "writes": r(3), "sets_flags": True, "immediate": 2}),  # lsls r3, r3, #2
    (V6M, "4091", "lsl", Kind.ALU, {"reads": r(1, 2), "writes": r(1), "sets_flags": True}),  # lsls r1, r2
    (V6M, "4151", "adc", Kind.ALU, {"reads": r(1, 2), "writes": r(1), "sets_flags": True, "conditional": True}),  # adcs r1, r2
    (V6M, "4248", "rsb", Kind.ALU, {"reads": r(1), "writes": r(0), "sets_flags": True, "immediate": 0}),  # rsbs r0, r1, #0
    (V6M, "429a", "cmp", Kind.ALU, {"reads": r(2, 3), "sets_flags": True}),  # cmp r2, r3
    (V6M, "b2c9", "uxtb", Kind.ALU, {"reads": r(1), "writes": r(1)}),  # uxtb r1, r1
    (V6M, "b084", "sub", Kind.ALU, {"reads": r(SP), "writes": r(SP), "immediate": 16}),  # sub sp, #16
    (V6M, "a202", "add", Kind.ALU, {"writes": r(2), "immediate": 8}),  # adr r2, #8
    (V6M, "46c0", "nop", Kind.SYSTEM, {}),  # mov r8, r8
    (V7M, "bf00", "nop", Kind.SYSTEM, {}),
    (V7M, "eb01 0282", "add", Kind.ALU, {"reads": r(1, 2), "writes": r(2), "shifted_operand": True}),  # add.w r2, r1, r2, lsl #2
    (V7M, "ea4f 0e9e", "mov", Kind.ALU, {"reads": r(LR), "writes": r(LR), "immediate": 2, "shifted_operand": True}),  # lsr lr, lr, #2
    (V7M, "fa02 f301", "lsl", Kind.ALU, {"reads": r(1, 2), "writes": r(3)}),  # lsl.w r3, r2, r1
    (V7M, "eb46 0606", "adc", Kind.ALU, {"reads": r(6), "writes": r(6), "conditional": True}),  # adc.w r6, r6, r6
    (V7M, "f44f 5080", "mov", Kind.ALU, {"writes": r(0), "immediate": 4096, "wide_constant": True}),  # mov.w r0, #4096
    (V7M, "f04f 00ff", "mov", Kind.ALU, {"writes": r(0), "immediate": 255}),  # mov.w r0, #255
    (V7M, "f640 30b8", "movw", Kind.ALU, {"writes": r(0), "immediate": 3000}),  # movw r0, #3000
    (V7M, "f2c2 0001", "movt", Kind.ALU, {"reads": r(0), "writes": r(0), "immediate": 0x2001}),  # movt r0, #0x2001
    (V7M, "f102 32ff", "add", Kind.ALU, {"reads": r(2), "writes": r(2), "immediate": 0xFFFFFFFF, "wide_constant": True}),
    (V7M, "f3c1 1247", "ubfx", Kind.ALU, {"reads": r(1), "writes": r(2), "immediate": 5}),  # ubfx r2, r1, #5, #8
    (V7M, "f361 120c", "bfi", Kind.ALU, {"reads": r(1, 2), "writes": r(2), "immediate": 4}),  # bfi r2, r1, #4, #9
    (V7EM, "fa42 f381", "sxtab", Kind.ALU, {"reads": r(1), "writes": r(3), "accumulator": 2}),  # sxtab r3, r2, r1
    (V7EM, "fa2f f281", "sxtb16", Kind.ALU, {"reads": r(1), "writes": r(2)}),  # sxtb16 r2, r1
    (V7EM, "eac0 1001", "pkhbt", Kind.ALU, {"reads": r(0, 1), "writes": r(0), "shifted_operand": True}),  # pkhbt r0, r0, r1, lsl #4
    # products
    (V6M, "4348", "mul", Kind.MAC, {"reads": r(0, 1), "writes": r(0), "sets_flags": True}),  # muls r0, r1, r0
    (V7M, "fb01 f202", "mul", Kind.MAC, {"reads": r(1, 2), "writes": r(2)}),  # mul r2, r1, r2
    (V7M, "fb01 0402", "mla", Kind.MAC, {"reads": r(1, 2), "writes": r(4), "accumulator": 0}),  # mla r4, r1, r2, r0
    (V7EM, "fb1e 000c", "smlabb", Kind.MAC, {"reads": r(LR, 12), "writes": r(0), "accumulator": 0}),
    (V7EM, "fb21 3302", "smlad", Kind.MAC, {"reads": r(1, 2), "writes": r(3), "accumulator": 3}),  # smlad r3, r1, r2, r3
    (V7M, "fb82 0103", "smull", Kind.MAC, {"reads": r(2, 3), "writes": r(0, 1)}),  # smull r0, r1, r2, r3
    (V7M, "fbc4 0102", "smlal", Kind.MAC, {"reads": r(2, 4), "writes": r(0, 1), "accumulator": 0}),  # smlal r0, r1, r4, r2
    (V7M, "fb91 f0f2", "sdiv", Kind.DIVIDE, {"reads": r(1, 2), "writes": r(0)}),  # sdiv r0, r1, r2
    # loads
    (V6M, "684a", "ldr", Kind.LOAD, {"reads": r(1), "writes": r(2), "memory_base": 1, "memory_offset": 4}),  # ldr r2, [r1, #4]
    (V6M, "4a19", "ldr", Kind.LOAD, {"reads": r(PC), "writes": r(2), "memory_base": PC, "memory_offset": 100}),  # ldr r2, [pc, #100]
    (V6M, "58d3", "ldr", Kind.LOAD, {"reads": r(2, 3), "writes": r(3), "memory_base": 2, "register_offset": True}),  # ldr r3, [r2, r3]
    (V6M, "7803", "ldrb", Kind.LOAD, {"reads": r(0), "writes": r(3), "memory_base": 0, "memory_offset": 0, "narrow_access": True}),
    (V6M, "5642", "ldrsb", Kind.LOAD, {"reads": r(0, 1), "writes": r(2), "memory_base": 0, "register_offset": True, "narrow_access": True}),
    (V7M, "f913 ef01", "ldrsb", Kind.LOAD, {"reads": r(3), "writes": r(3, LR), "memory_base": 3, "memory_offset": 1, "immediate": 1,
                                            "narrow_access": True}),  # ldrsb.w lr, [r3, #1]!
    (V7M, "f852 3b04", "ldr", Kind.LOAD, {"reads": r(2), "writes": r(2, 3), "memory_base": 2, "memory_offset": 0, "immediate": 4}),
    (V7M, "f853 0020", "ldr", Kind.LOAD, {"reads": r(0, 3), "writes": r(0), "memory_base": 3, "register_offset": True}),  # [r3, r0, lsl #2]
    (V7M, "f85d fb04", "ldrpc", Kind.LOAD, {"reads": r(SP), "writes": r(SP, PC), "memory_base": SP, "memory_offset": 0, "immediate": 4}),
    (V7M, "e9d3 4502", "ldrd", Kind.LOAD, {"reads": r(3), "writes": r(4, 5), "memory_base": 3, "memory_offset": 8, "count": 2}),
    (V6M, "c906", "ldm", Kind.LOAD, {"reads": r(1), "writes": r(1, 2), "memory_base": 1, "count": 2}),  # ldm r1, {r1, r2}
    (V6M, "bd10", "poppc", Kind.LOAD, {"reads": r(SP), "writes": r(SP, 4, PC), "memory_base": SP, "count": 2, "immediate": 8}),
    (V7M, "e8bd 87f0", "poppc", Kind.LOAD, {"reads": r(SP), "writes": r(SP, 4, 5, 6, 7, 8, 9, 10, PC), "memory_base": SP, "count": 8,
                                            "immediate": 32}),  # pop.w {r4-r10, pc}
    # stores
    (V6M, "6008", "str", Kind.STORE, {"reads": r(0, 1), "memory_base": 1, "memory_offset": 0, "store_data": r(0)}),  # str r0, [r1]
    (V6M, "5488", "strb", Kind.STORE, {"reads": r(0, 1, 2), "memory_base": 1, "register_offset": True, "narrow_access": True,
                                       "store_data": r(0)}),  # strb r0, [r1, r2]
    (V7M, "f84d ed04", "str", Kind.STORE, {"reads": r(SP, LR), "writes": r(SP), "memory_base": SP, "memory_offset": -4, "immediate": -4,
                                           "store_data": r(LR)}),  # str lr, [sp, #-4]!
    (V7M, "e9e3 4502", "strd", Kind.STORE, {"reads": r(3, 4, 5), "writes": r(3), "memory_base": 3, "memory_offset": 8, "immediate": 8,
                                            "store_data": r(4, 5), "count": 2}),  # strd r4, r5, [r3, #8]!
    (V6M, "b510", "stm", Kind.STORE, {"reads": r(SP, 4, LR), "writes": r(SP), "memory_base": SP, "count": 2, "immediate": -8,
                                      "store_data": r(4, LR)}),  # push {r4, lr}
    (V6M, "c106", "stm", Kind.STORE, {"reads": r(1, 2), "writes": r(1), "memory_base": 1, "count": 2, "immediate": 8,
                                      "store_data": r(1, 2)}),  # stm r1!, {r1, r2}
    (V7M, "e92d 47f0", "stm", Kind.STORE, {"reads": r(SP, 4, 5, 6, 7, 8, 9, 10, LR), "writes": r(SP), "memory_base": SP, "count": 8,
                                           "immediate": -32, "store_data": r(4, 5, 6, 7, 8, 9, 10, LR)}),  # push.w {r4-r10, lr}
    # branches
    (V6M, "d1f7", "b", Kind.BRANCH, {"conditional": True, "target": AT + 4 - 18}),  # bne.n
    (V6M, "e7f9", "b", Kind.BRANCH, {"target": AT + 4 - 14}),  # b.n
    (V7M, "f43f affe", "b", Kind.BRANCH, {"conditional": True, "target": AT}),  # beq.w to itself
    (V6M, "f7ff fffe", "bl", Kind.BRANCH, {"target": AT}),  # bl to itself
    (V6M, "4770", "bx", Kind.BRANCH, {"reads": r(LR)}),
    (V6M, "4798", "blx", Kind.BRANCH, {"reads": r(3)}),
    (V7M, "b112", "cbz", Kind.BRANCH, {"reads": r(2), "target": AT + 8}),
    (V7M, "e8df f001", "tbb", Kind.BRANCH, {"reads": r(PC, 1)}),  # tbb [pc, r1]
    # floating point: only the core registers and the words moved are read
    (V7EM, "ed2d 8b04", "vpush", Kind.FP_STORE, {"reads": r(SP), "writes": r(SP), "memory_base": SP, "count": 4, "immediate": -16}),
    (V7EM, "edd0 7a01", "vldr", Kind.FP_LOAD, {"reads": r(0), "memory_base": 0, "count": 1}),  # vldr s15, [r0, #4]
    (V7EM, "ee17 3a90", "vmov", Kind.FP, {"writes": r(3)}),  # vmov r3, s15
    # system
    (V6M, "f3bf 8f5f", "dmb", Kind.SYSTEM, {}),
    (V6M, "f3ef 8008", "mrs", Kind.SYSTEM, {"writes": r(0)}),  # mrs r0, msp
    # Armv8.1-M
    (V81M, "f042 e001", "dls", Kind.BRANCH, {"reads": r(2), "writes": r(LR)}),  # dls lr, r2
    (V81M, "f00f c009", "le", Kind.BRANCH, {"reads": r(LR), "writes": r(LR), "target": AT + 4 - 16}),
    (V81M, "ea50 9010", "csinc", Kind.ALU, {"reads": r(0), "writes": r(0), "conditional": True}),  # cinc r0, r0, eq
    (V81M, "ea56 07cf", "lsll", Kind.ALU, {"reads": r(6, 7), "writes": r(6, 7)}),  # lsll r6, r7, #3
    (V81M, "ed93 7f00", "vldr", Kind.VECTOR_LOAD, {"reads": r(3)}),  # vldrw.u32 q3, [r3]
    (V81M, "eca2 7e10", "vstr", Kind.VECTOR_STORE, {"reads": r(2), "writes": r(2)}),  # vstrb.8 q3, [r2], #16
    (V81M, "eef1 0f06", "vmladav", Kind.VECTOR_MAC, {"reads": r(0), "writes": r(0)}),  # vaddv.s8 r0, q3
    (V81M, "eef2 0f24", "vmladav", Kind.VECTOR_MAC, {"reads": r(0), "writes": r(0)}),  # vmladava.s8 r0, q1, q2
    (V81M, "ee82 0e24", "vmladav", Kind.VECTOR_MAC, {"reads": r(0, 1), "writes": r(0, 1)}),  # vmlaldava.s16 r0, r1, q1, q2
    (V81M, "fc91 0e86", "vldr", Kind.VECTOR_LOAD, {"reads": r(1)}),  # vldrb.u16 q0, [r1, q3]
    (V81M, "fd92 1e02", "vldr", Kind.VECTOR_LOAD, {}),  # vldrw.u32 q0, [q1, #8]
    (V81M, "ec8a 0f06", "vstr", Kind.VECTOR_STORE, {"reads": r(10)}),  # vstrb.32 q0, [r10, q3]
    (V81M, "ec14 0f00", "vmov", Kind.VECTOR_ALU, {"reads": r(0, 4)}),  # vmov q0[2], q0[0], r0, r4
    (V81M, "ec02 0f00", "vmov", Kind.VECTOR_ALU, {"writes": r(0, 2)}),  # vmov r0, r2, q0[2], q0[0]
    (V81M, "ee20 3b10", "vmov", Kind.VECTOR_ALU, {"reads": r(3)}),  # vmov.32 q0[1], r3
    (V81M, "ee30 3b10", "vmov", Kind.VECTOR_ALU, {"writes": r(3)}),  # vmov.32 r3, q0[1]
    (V81M, "eea0 3b10", "vdup", Kind.VECTOR_ALU, {"reads": r(3)}),  # vdup.32 q0, r3
    (V81M, "ee15 0f6f", "vidup", Kind.VECTOR_ALU, {"reads": r(4), "writes": r(4)}),  # vidup.u16 q0, r4, #2
    (V81M, "ee15 0f65", "vidup", Kind.VECTOR_ALU, {"reads": r(4, 5), "writes": r(4)}),  # viwdup.u16 q0, r4, r5, #2
    (V81M, "ee23 0e05", "v.inst", Kind.VECTOR_MAC, {}),  # vmulh.s32 q0, q1, q2
    (V81M, "ee13 0e04", "v.inst", Kind.VECTOR_MAC, {}),  # vmullb.s16 q0, q1, q2
    (V81M, "ef20 0952", "v.inst", Kind.VECTOR_MAC, {}),  # vmul.i32 q0, q0, q1
    (V81M, "fe32 0f62", "v.inst", Kind.VECTOR_MAC, {"reads": r(2)}),  # vqdmullb.s32 q0, q1, r2
    (V81M, "ee23 0e43", "v.inst", Kind.VECTOR_MAC, {"reads": r(3)}),  # vmla.s32 q0, q1, r3
    (V81M, "ee23 0f43", "v.inst", Kind.VECTOR_ALU, {"reads": r(3)}),  # vadd.i32 q0, q1, r3
    (V81M, "ee39 1e63", "v.inst", Kind.VECTOR_ALU, {"reads": r(3)}),  # vshl.s32 q0, r3
    (V81M, "ef22 0540", "v.inst", Kind.VECTOR_ALU, {}),  # vrshl.s32 q0, q0, q1
    (V81M, "fe33 0f05", "v.inst", Kind.VECTOR_ALU, {}),  # vpsel q0, q1, q2
    (V81M, "ee37 0e03", "v.inst", Kind.VECTOR_ALU, {}),  # vqmovnb.s32 q0, q1
    (V81M, "fe71 0f4d", "v.inst", Kind.VECTOR_ALU, {}),  # vpst
    (V81M, "f021 e801", "vctp", Kind.VECTOR_ALU, {"reads": r(1)}),  # vctp.32 r1
    (V81M, "eeed 3a10", "vmsr", Kind.SYSTEM, {"reads": r(3)}),  # vmsr p0, r3
    (V81M, "eefd 3a10", "vmrs", Kind.SYSTEM, {"writes": r(3)}),  # vmrs r3, p0
    (V81M, "ed2d 8b08", "vpush", Kind.FP_STORE, {"reads": r(SP), "writes": r(SP), "memory_base": SP, "count": 8, "immediate": -32}),
    (V81M, "ecbd 8b08", "vpop", Kind.FP_LOAD, {"reads": r(SP), "writes": r(SP), "memory_base": SP, "count": 8, "immediate": 32}),
)


@pytest.mark.parametrize(("cpu_arch", "code", "base", "kind", "fields"), CASES, ids=[f"{c[2]}-{c[1].replace(' ', '')}" for c in CASES])
def test_decode(cpu_arch: int, code: str, base: str, kind: Kind, fields: dict[str, Any]) -> None:
    data = b"".join(bytes.fromhex(half)[::-1] for half in code.split())
    (insn,) = disassemble(data, AT, cpu_arch)
    assert replace(insn, mnemonic="") == Insn(AT, len(data), "", base, kind, **fields)


def test_it_block_makes_instructions_conditional() -> None:
    # ite eq; addeq r0, r1, r2; movne r0, #1; adds r0, r1, r2
    insns = disassemble(bytes.fromhex("0cbf881801208818"), 0, V7M)
    assert [(i.base, i.conditional, i.sets_flags) for i in insns] == [
        ("it", True, False), ("add", True, False), ("mov", True, False), ("add", False, True)]


def test_conditional_return_in_it_block() -> None:
    insns = disassemble(bytes.fromhex("08bf10bd"), 0, V7M)  # it eq; popeq {r4, pc}
    assert (insns[1].base, insns[1].conditional, insns[1].leaves_block) == ("poppc", True, True)


def test_unknown_instruction_keeps_its_place() -> None:
    insns = disassemble(bytes.fromhex("01de" "f0ffffff" "7047"), 0, V7M)  # udf #1; an unallocated wide encoding; bx lr
    assert [(i.address, i.size, i.base) for i in insns] == [(0, 2, insns[0].base), (2, 4, ""), (6, 2, "bx")]
    assert insns[1].kind is Kind.UNKNOWN


def test_loop_end_needs_its_architecture() -> None:
    data = bytes.fromhex("0ff009c0")
    assert disassemble(data, 0, V81M)[0].base == "le"
    assert "le" not in {insn.base for insn in disassemble(data, 0, V7EM)}


@pytest.mark.parametrize(("halfword", "size"), [(0xE7FF, 2), (0xE800, 4), (0xF000, 4), (0xFFFF, 4), (0x0000, 2)])
def test_insn_size(halfword: int, size: int) -> None:
    assert insn_size(halfword) == size


def test_program_reads_on_demand() -> None:
    program = Program(V6M, ((0x100, bytes.fromhex("01387047")), (0x20000000, bytes.fromhex("7047"))))
    assert [i.base for i in program.block(0x100, 4)] == ["sub", "bx"]
    first, far = program.at(0x102), program.at(0x20000000)
    assert first is not None
    assert first.base == "bx"
    assert far is not None
    assert far.address == 0x20000000
    assert program.at(0x104) is None
    assert program.read(0x102, 4) is None


@pytest.mark.parametrize(("address", "size"), [(0x200, 2), (0x100, 8), (0x100, 3), (0x100, 0)])
def test_block_outside_the_code_is_refused(address: int, size: int) -> None:
    program = Program(V6M, ((0x100, bytes.fromhex("01387047")),))
    with pytest.raises(InternalError, match=f"{address:#010x}"):
        program.block(address, size)


def test_block_that_cuts_an_instruction_is_refused() -> None:
    program = Program(V6M, ((0, bytes.fromhex("fff7feff")),))
    with pytest.raises(InternalError, match="cannot decode 2 bytes"):
        program.block(0, 2)
