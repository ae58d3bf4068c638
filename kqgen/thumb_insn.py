"""The decoded instruction: which registers it reads and writes, what it moves, where it jumps."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

SP, LR, PC = 13, 14, 15
_NONE: frozenset[int] = frozenset()


def names(text: str) -> frozenset[str]:
    """The words of `text` as a set."""
    return frozenset(text.split())


class Kind(StrEnum):
    """Class of an instruction, as reports count them and cycle models cost them."""

    ALU = "alu"
    MAC = "mac"
    DIVIDE = "divide"
    LOAD = "load"
    STORE = "store"
    BRANCH = "branch"
    IT = "it"
    SYSTEM = "system"
    FP = "fp"
    FP_LOAD = "fp_load"
    FP_STORE = "fp_store"
    VECTOR_LOAD = "vector_load"
    VECTOR_STORE = "vector_store"
    VECTOR_MAC = "vector_mac"
    VECTOR_ALU = "vector_alu"
    UNKNOWN = "unknown"


LOADS_AND_STORES = frozenset({Kind.LOAD, Kind.STORE, Kind.FP_LOAD, Kind.FP_STORE})
FLOATING = frozenset({Kind.FP, Kind.FP_LOAD, Kind.FP_STORE})
VECTOR = frozenset({Kind.VECTOR_LOAD, Kind.VECTOR_STORE, Kind.VECTOR_MAC, Kind.VECTOR_ALU})


@dataclass(frozen=True, slots=True)
class Insn:
    """One Thumb instruction. Registers are core registers by number (sp 13, lr 14, pc 15); flags and vector registers are left out.

    Attributes:
        address: of its first halfword.
        size: 2 or 4 bytes.
        mnemonic: the disassembler's text, for messages only.
        base: the operation without condition, flag and width suffixes. Block transfers are "ldm" and "stm", a load of pc is "poppc"
            (several registers) or "ldrpc" (one), a shift by a constant in a wide encoding is "mov" with a shifted operand.
        kind: its class.
        reads, writes: registers read (the accumulator apart) and written.
        accumulator: register added to a product or an extension, which some cores forward late; the low one of a pair.
        count: registers or words a load or store moves; 2 for a vmov of two core registers; else 1.
        sets_flags: writes the condition flags.
        conditional: its effect hangs on the condition flags (carry readers and `it` included).
        shifted_operand: a register operand passes the shifter first.
        wide_constant: a wide encoding with an immediate beyond the plain range (above 255; above 4095 for add and sub).
        register_offset: the address is a sum of two registers.
        narrow_access: loads or stores a byte or halfword.
        store_data: registers whose value is stored.
        memory_base, memory_offset: register and constant the address is made of; the offset is None when a register is added.
        immediate: constant operand, the step of the base register for an access with write-back; None without one.
        target: address a direct branch goes to.
    """

    address: int
    size: int
    mnemonic: str
    base: str
    kind: Kind
    reads: frozenset[int] = _NONE
    writes: frozenset[int] = _NONE
    accumulator: int | None = None
    count: int = 1
    sets_flags: bool = False
    conditional: bool = False
    shifted_operand: bool = False
    wide_constant: bool = False
    register_offset: bool = False
    narrow_access: bool = False
    store_data: frozenset[int] = _NONE
    memory_base: int | None = None
    memory_offset: int | None = None
    immediate: int | None = None
    target: int | None = None

    @property
    def end(self) -> int:
        """Address of the next instruction in memory."""
        return self.address + self.size

    @property
    def leaves_block(self) -> bool:
        """Whether it may jump: a branch, or a load of pc."""
        return self.kind is Kind.BRANCH or self.base in ("poppc", "ldrpc")

    @property
    def address_registers(self) -> frozenset[int]:
        """Registers that form the address of a load or store; none for other classes."""
        return self.reads - self.store_data if self.kind in LOADS_AND_STORES else _NONE


@dataclass(frozen=True, slots=True)
class BlockExit:
    """How a block ends: its jump (None when it falls through), the instruction before that, and the jump's known destination."""

    jump: Insn | None
    before: Insn | None
    destination: Insn | None
