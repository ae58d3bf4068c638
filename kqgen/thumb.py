"""Thumb machine code as decoded instructions: what the cycle models and the stack bound read.

Code is decoded on demand, at an address known to be an instruction: literal pools lie between functions, so a linear sweep
would read data as code. The blocks an emulator executed, or control flow followed from an entry point, give the true starts.
The disassembler is capstone; Armv8.1-M's loops and vectors, which it lacks, are read in `thumb_v81`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

import capstone
from capstone import arm_const

from kqgen.elf import Elf
from kqgen.errors import InternalError
from kqgen.thumb_insn import LR, PC, SP, Insn, Kind, names
from kqgen.thumb_v81 import decode_v81

__all__ = ["LR", "PC", "SP", "Insn", "Kind", "Program", "disassemble", "insn_size"]

_ARMV8_M = frozenset({16, 17, 21})
_ARMV8_1_M = 21  # Tag_CPU_arch, Arm "ELF for the Arm Architecture" addenda, build attributes

_NONE: frozenset[int] = frozenset()
_REGISTERS = {arm_const.ARM_REG_R0 + n: n for n in range(13)} | {
    arm_const.ARM_REG_SP: SP, arm_const.ARM_REG_LR: LR, arm_const.ARM_REG_PC: PC}

# Two-operand forms that do not read their destination.
_UNARY = names("mov mvn movw movs adr rrx uxtb uxth sxtb sxth uxtb16 sxtb16 rev rev16 revsh rbit clz")
_PARTIAL_WRITES = frozenset({"bfi", "bfc", "movt"})
_COMPARES = frozenset({"cmp", "cmn", "tst", "teq"})
_SHIFTS = names("lsl lsr asr ror")
_SHIFTS_BY_CONSTANT = _SHIFTS | {"rrx"}
_RENAMED = {"movs": "mov", "hint": "nop"}
_NOP_V6M = b"\xc0\x46"  # mov r8, r8: what assemblers pad Armv6-M code with
EXTEND_ADDS = frozenset({"sxtab", "sxtah", "uxtab", "uxtah", "sxtab16", "uxtab16"})
_CARRY_READERS = frozenset({"adc", "sbc"})
_MULTIPLIES = names("mul smulbb smulbt smultb smultt smuad smuadx smusd smusdx smmul smmulr smulwb smulwt usad8")
ACCUMULATES = names("mla mls smlad smladx smlsd smlsdx smlabb smlabt smlatb smlatt smlawb smlawt smmla smmlar smmls smmlsr usada8")
LONG_MULTIPLIES = frozenset({"smull", "umull"})
LONG_ACCUMULATES = names("smlal umlal smlald smlaldx smlsld smlsldx umaal smlalbb smlalbt smlaltb smlaltt")
_PRODUCTS = _MULTIPLIES | ACCUMULATES | LONG_MULTIPLIES | LONG_ACCUMULATES
_BRANCHES = frozenset({"b", "bl", "bx", "blx", "bxns", "blxns", "cbz", "cbnz", "tbb", "tbh"})
_SYSTEM = names("nop bkpt svc dsb isb dmb cps msr mrs udf wfi wfe sev yield hint csdb dbg sg tt clrex trap")
_BLOCK_LOADS = frozenset({"pop", "ldm", "ldmdb", "ldmia"})
_BLOCK_STORES = frozenset({"push", "stm", "stmdb", "stmia"})
_CONSTANT_OPERATIONS = names("add sub and orr eor bic rsb mov mvn")


@lru_cache(maxsize=2)
def _disassembler(armv8: bool) -> Any:
    mode = capstone.CS_MODE_THUMB | capstone.CS_MODE_MCLASS | (capstone.CS_MODE_V8 if armv8 else 0)
    engine = capstone.Cs(capstone.CS_ARCH_ARM, mode)
    engine.detail = True
    return engine


def insn_size(first_halfword: int) -> int:
    """Bytes of the instruction that begins with this halfword: 4 when its top five bits are 0b11101 or above (Armv7-M ARM A5.1)."""
    return 4 if first_halfword >> 11 >= 0b11101 else 2


def _registers(operands: Any) -> list[int]:
    return [_REGISTERS[o.reg] for o in operands if o.type == arm_const.ARM_OP_REG and o.reg in _REGISTERS]


def _immediate(operands: Any) -> int | None:
    for operand in operands:
        if operand.type == arm_const.ARM_OP_IMM:
            return int(operand.imm) & 0xFFFFFFFF
    return None


def _words(operands: Any) -> int:
    """Words a floating-point transfer moves: one a single register, two a double."""
    singles = sum(o.type == arm_const.ARM_OP_REG and arm_const.ARM_REG_S0 <= o.reg <= arm_const.ARM_REG_S31 for o in operands)
    doubles = sum(o.type == arm_const.ARM_OP_REG and arm_const.ARM_REG_D0 <= o.reg <= arm_const.ARM_REG_D31 for o in operands)
    return int(singles + 2 * doubles)


def _memory(operands: Any) -> Any | None:
    return next((o.mem for o in operands if o.type == arm_const.ARM_OP_MEM), None)


def _base_name(raw: Any) -> str:
    """Mnemonic without condition, flag and width suffixes; a shift by a constant in a wide encoding is `mov` with a shifted operand."""
    text = str(raw.mnemonic).split(".")[0]
    if text.startswith("v"):
        return text
    if text.startswith("movw"):
        return "movw"
    code = bytes(raw.bytes)
    if code == _NOP_V6M:
        return "nop"
    name = str(raw.insn_name())
    if name == "adr":
        return "add" if len(code) == 2 else "addw"
    if name in _SHIFTS_BY_CONSTANT and len(code) == 4 and code[1] == 0xEA:
        return "mov"
    return _RENAMED.get(name, name)


def _floating(raw: Any, plain: Insn) -> Insn:
    base, core_registers, memory = plain.base, _registers(raw.operands), _memory(raw.operands)
    load, store = base.startswith(("vldr", "vldm", "vpop")), base.startswith(("vstr", "vstm", "vpush"))
    if load or store:
        stack = base in ("vpush", "vpop")
        pointer = frozenset({SP} if stack else {_REGISTERS[memory.base]} if memory is not None else core_registers[:1])
        count = _words(raw.operands)
        step = (4 if load else -4) * count if stack else None
        return replace(plain, kind=Kind.FP_LOAD if load else Kind.FP_STORE, count=count, reads=pointer, memory_base=min(pointer),
                       writes=pointer if stack or raw.writeback else _NONE, immediate=step)
    destination = raw.operands[0] if base in ("vmov", "vmrs") and raw.operands else None
    to_core = destination is not None and destination.type == arm_const.ARM_OP_REG and destination.reg in _REGISTERS
    registers = frozenset(core_registers)
    return replace(plain, kind=Kind.FP, reads=_NONE if to_core else registers, writes=registers if to_core else _NONE,
                   count=2 if base == "vmov" and len(raw.operands) > 2 else 1)


def _block_transfer(raw: Any, plain: Insn) -> Insn:
    registers = _registers(raw.operands)
    stack, load = plain.base in ("push", "pop"), plain.base in _BLOCK_LOADS
    pointer, moved = (SP, registers) if stack else (registers[0], registers[1:])
    updated = frozenset({pointer} if stack or raw.writeback else ())
    step = -4 * len(moved) if plain.base in ("push", "stmdb", "ldmdb") else 4 * len(moved)
    plain = replace(plain, count=len(moved), memory_base=pointer, immediate=step if updated else None)
    if load:
        base = "poppc" if PC in moved else "ldm"
        return replace(plain, base=base, kind=Kind.LOAD, reads=frozenset({pointer}), writes=updated | set(moved))
    return replace(plain, base="stm", kind=Kind.STORE, reads=frozenset({pointer, *moved}), writes=updated, store_data=frozenset(moved))


def _transfer(raw: Any, plain: Insn) -> Insn:
    base, memory, data = plain.base, _memory(raw.operands), frozenset(_registers(raw.operands))
    load = base.startswith("ld")
    pointer, index = (PC, None) if memory is None else (_REGISTERS[memory.base], _REGISTERS.get(memory.index))
    offset = None if memory is None or index is not None else int(memory.disp)
    updated = frozenset({pointer} if raw.writeback else ())
    addresses = frozenset({pointer} if index is None else {pointer, index})
    step = raw.operands[-1].imm if raw.post_index else offset
    plain = replace(plain, count=2 if base in ("ldrd", "strd") else 1, register_offset=index is not None, memory_base=pointer,
                    memory_offset=offset, narrow_access=base.endswith(("b", "h")), immediate=step if updated else None)
    if load:
        return replace(plain, base="ldrpc" if PC in data else base, kind=Kind.LOAD, reads=addresses, writes=updated | data)
    return replace(plain, kind=Kind.STORE, reads=addresses | data, writes=updated, store_data=data)


def _multiply(raw: Any, plain: Insn) -> Insn:
    registers = _registers(raw.operands)
    plain = replace(plain, kind=Kind.MAC)
    if plain.base in _MULTIPLIES:
        return replace(plain, writes=frozenset(registers[:1]), reads=frozenset(registers[1:] if len(registers) > 2 else registers))
    if plain.base in ACCUMULATES:
        return replace(plain, writes=frozenset(registers[:1]), reads=frozenset(registers[1:3]), accumulator=registers[3])
    return replace(plain, writes=frozenset(registers[:2]), reads=frozenset(registers[2:4]),
                   accumulator=registers[0] if plain.base in LONG_ACCUMULATES else None)


def _branch(raw: Any, plain: Insn) -> Insn:
    memory, reads = _memory(raw.operands), set(_registers(raw.operands))
    if memory is not None:
        reads |= {_REGISTERS[r] for r in (memory.base, memory.index) if r in _REGISTERS}
    return replace(plain, kind=Kind.BRANCH, reads=frozenset(reads), target=_immediate(raw.operands))


def _alu(raw: Any, plain: Insn) -> Insn:
    base, operands = plain.base, raw.operands
    registers, constant = _registers(operands), _immediate(operands)
    by_operand = base not in _SHIFTS and any(o.type == arm_const.ARM_OP_REG and o.shift.type for o in operands)
    shifted = by_operand or (base == "mov" and raw.mnemonic.startswith(tuple(_SHIFTS_BY_CONSTANT)))
    reads_carry = base in _CARRY_READERS or raw.mnemonic.startswith("rrx")
    plain = replace(plain, immediate=constant, shifted_operand=shifted, conditional=plain.conditional or reads_carry)
    if base in _COMPARES:
        return replace(plain, reads=frozenset(registers), sets_flags=True)
    if base in EXTEND_ADDS:
        return replace(plain, reads=frozenset({registers[2]}), writes=frozenset({registers[0]}), accumulator=registers[1])
    two_operands = len(operands) == 2 and base not in _UNARY and not raw.mnemonic.startswith("adr")
    reads_destination = two_operands or base in _PARTIAL_WRITES
    limit = 4095 if base in ("add", "sub") else 255
    wide = plain.size == 4 and not shifted and base in _CONSTANT_OPERATIONS and constant is not None and constant > limit
    return replace(plain, reads=frozenset(registers if reads_destination else registers[1:]), writes=frozenset(registers[:1]),
                   wide_constant=wide)


def _decode(raw: Any) -> Insn:
    base, registers = _base_name(raw), _registers(raw.operands)
    conditional = base == "it" or raw.cc not in (arm_const.ARM_CC_AL, arm_const.ARM_CC_INVALID)
    plain = Insn(raw.address, raw.size, f"{raw.mnemonic} {raw.op_str}".rstrip(), base, Kind.ALU,
                 sets_flags=raw.mnemonic.startswith(("movs", f"{raw.insn_name()}s")), conditional=conditional)
    if base.startswith("v"):
        return _floating(raw, plain)
    if base in _BRANCHES:
        return _branch(raw, plain)
    if base in _BLOCK_LOADS or base in _BLOCK_STORES:
        return _block_transfer(raw, plain)
    if base.startswith(("ldr", "str", "lda", "stl")):
        return _transfer(raw, plain)
    if base in _PRODUCTS:
        return _multiply(raw, plain)
    if base in ("sdiv", "udiv"):
        return replace(plain, kind=Kind.DIVIDE, writes=frozenset(registers[:1]), reads=frozenset(registers[1:]))
    if base == "it":
        return replace(plain, kind=Kind.IT)
    if base in _SYSTEM or not registers:
        return replace(plain, kind=Kind.SYSTEM, writes=frozenset(registers if base == "mrs" else ()),
                       reads=frozenset(registers if base == "msr" else ()))
    return _alu(raw, plain)


def _armv81(cpu_arch: int, address: int, code: bytes) -> Insn | None:
    if cpu_arch != _ARMV8_1_M or len(code) != 4:
        return None
    return decode_v81(address, int.from_bytes(code[:2], "little"), int.from_bytes(code[2:], "little"))


def _sweep(data: bytes, address: int, cpu_arch: int) -> Iterator[Insn]:
    """Instructions of straight-line code; what no decoder knows comes out as Kind.UNKNOWN, of the size its first halfword tells."""
    engine = _disassembler(cpu_arch in _ARMV8_M)
    position = 0
    while position + 2 <= len(data):
        for raw in engine.disasm(data[position:], address + position):
            first = int.from_bytes(raw.bytes[:2], "little")
            if raw.size != insn_size(first):
                break
            yield _armv81(cpu_arch, raw.address, bytes(raw.bytes)) or _decode(raw)
            position += raw.size
        if position + 2 > len(data):
            return
        first = int.from_bytes(data[position:position + 2], "little")
        size = insn_size(first)
        if position + size > len(data):
            return
        known = _armv81(cpu_arch, address + position, data[position:position + size])
        yield known or Insn(address + position, size, f".inst {first:#06x}", "", Kind.UNKNOWN)
        position += size


def disassemble(code: bytes, address: int, cpu_arch: int) -> tuple[Insn, ...]:
    """The instructions of straight-line `code` placed at `address`, for a Tag_CPU_arch; an incomplete last one is left out.

    The caller vouches that `code` holds no literal pool.
    """
    return tuple(_sweep(code, address, cpu_arch))


@dataclass(frozen=True, slots=True)
class Program:
    """Executable code of a linked image, decoded on demand.

    Attributes:
        cpu_arch: the architecture it is built for, as Tag_CPU_arch has it (board.Core.elf_cpu_arch).
        segments: (address, bytes) of each executable stretch, literal pools included.
    """

    cpu_arch: int
    segments: tuple[tuple[int, bytes], ...]
    _blocks: dict[tuple[int, int], tuple[Insn, ...]] = field(default_factory=dict, init=False, repr=False, compare=False)

    @classmethod
    def of_elf(cls, elf: Elf) -> Program:
        """The executable segments of a linked image, at the addresses they run at.

        Raises InternalError for a file without the build attribute that tells its architecture.
        """
        if elf.cpu_arch is None:
            raise InternalError(f"{elf.path.name} does not say which architecture it is for", wanted="Tag_CPU_arch")
        return cls(elf.cpu_arch, tuple((part.address, part.data) for part in elf.segments if part.executable))

    def read(self, address: int, size_bytes: int) -> bytes | None:
        """The bytes at `address`, None when they do not all lie in one segment."""
        for start, data in self.segments:
            if start <= address and address + size_bytes <= start + len(data):
                return data[address - start:address - start + size_bytes]
        return None

    def at(self, address: int) -> Insn | None:
        """The instruction that begins at `address`, None outside the code.

        It is decoded by itself, so an instruction of an IT block seems unconditional; `block` sees the whole IT block.
        """
        head = self.read(address, 2)
        if head is None:
            return None
        size = insn_size(int.from_bytes(head, "little"))
        return None if self.read(address, size) is None else self.block(address, size)[0]

    def block(self, address: int, size_bytes: int) -> tuple[Insn, ...]:
        """The instructions of `size_bytes` of straight-line code at `address`.

        Raises InternalError when the bytes lie outside the code, or end inside an instruction.
        """
        known = self._blocks.get((address, size_bytes))
        if known is not None:
            return known
        data = self.read(address, size_bytes)
        insns = disassemble(data, address, self.cpu_arch) if data else ()
        if not insns or insns[-1].end != address + size_bytes:
            raise InternalError(f"cannot decode {size_bytes} bytes at {address:#010x}", wanted="whole instructions inside the code",
                                found="no code there" if data is None else f"instructions of {sum(i.size for i in insns)} bytes")
        return self._blocks.setdefault((address, size_bytes), insns)
