"""Cycles of Cortex-M7: in-order issue of up to two instructions a cycle, by the pairing rules that were measured.

Source: measurements published for an STM32H743 (jnk0le/random, pipeline notes); Arm gives no table. Memory is tightly coupled
or cached without a miss; the branch predictor misses once each time a loop is left. An instruction that needs the result of the
older one does not pair with it, a store of the word just loaded excepted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from kqgen.thumb import EXTEND_ADDS
from kqgen.thumb_insn import FLOATING, LOADS_AND_STORES, BlockExit, Insn, Kind, names

_MISPREDICTION_CYCLES = 7
# Bit-field and DSP operations: one of the two pipes only, and only as the older instruction of a pair.
_BITFIELD = EXTEND_ADDS | names(
    "uxtb uxth sxtb sxth uxtb16 sxtb16 rev rev16 revsh rbit clz ssat usat sbfx ubfx bfi bfc pkhbt pkhtb qadd qsub sadd16 ssub16 uadd8 "
    "usub8 sadd8 ssub8 sel uadd16 usub16 shadd16 uhadd8 qadd16 qsub16 qadd8 qsub8")
# Operations that need their operands a cycle sooner, in the shifter.
_NEEDS_EARLY = EXTEND_ADDS | frozenset({"ubfx", "sbfx", "rev", "rbit", "pkhbt", "pkhtb", "bfi"})
_SLOW = frozenset({Kind.DIVIDE, Kind.SYSTEM})
_BLOCK_TRANSFERS = frozenset({"ldm", "stm", "poppc"})
_FP_DIVIDES = ("vdiv", "vsqrt")


@dataclass(frozen=True, slots=True)
class _Result:
    """When a register may be read, and by which kind of operation it was made: "load", "narrow load", "mac", "bitfield" or "alu"."""

    cycle: int
    maker: str


def _maker(insn: Insn) -> str:
    if insn.kind is Kind.LOAD:
        return "narrow load" if insn.narrow_access else "load"
    return "mac" if insn.kind is Kind.MAC else "bitfield" if insn.base in _BITFIELD else "alu"


def _operand_cycle(insn: Insn, register: int, result: _Result) -> int:
    """First cycle at which `insn` may issue as far as this operand goes."""
    loaded = result.maker in ("load", "narrow load")
    if register in insn.store_data:
        return result.cycle - loaded
    if insn.kind in LOADS_AND_STORES:
        return result.cycle + (loaded or result.maker in ("bitfield", "mac"))
    if insn.kind is Kind.MAC:
        return result.cycle + loaded
    if insn.shifted_operand or insn.base in _NEEDS_EARLY:
        return result.cycle + 1
    return result.cycle


def _operands_cycle(insn: Insn, results: dict[int, _Result]) -> int:
    cycle = max((_operand_cycle(insn, r, results[r]) for r in insn.reads & results.keys()), default=0)
    if insn.accumulator in results:
        result = results[insn.accumulator]
        cycle = max(cycle, result.cycle - (result.maker in ("mac", "narrow load")))
    return cycle


def _same_bank(older: Insn, younger: Insn) -> bool:
    """Whether two loads off one base need the same half of the memory: their offsets agree in bit 2."""
    if older.memory_base != younger.memory_base or older.memory_offset is None or younger.memory_offset is None:
        return False
    return not (older.memory_offset ^ younger.memory_offset) & 4


def _conflicts(older: Insn, younger: Insn) -> bool:
    """Whether the two need the same unit."""
    kinds = (older.kind, younger.kind)
    if younger.base in _BITFIELD or older.writes & younger.writes:
        return True
    if (older.shifted_operand or older.wide_constant) and (younger.shifted_operand or younger.wide_constant):
        return True
    if kinds == (Kind.LOAD, Kind.LOAD):
        return _same_bank(older, younger)
    pairs = {(Kind.MAC, Kind.MAC), (Kind.MAC, Kind.STORE), (Kind.STORE, Kind.MAC), (Kind.STORE, Kind.STORE), (Kind.BRANCH, Kind.BRANCH)}
    return kinds in pairs or (older.kind in FLOATING and younger.kind in FLOATING)


def _issue_cycles(insn: Insn) -> int:
    if insn.kind is Kind.DIVIDE:
        return 7
    if insn.kind is Kind.FP and insn.base.startswith(_FP_DIVIDES):
        return 15
    return (insn.count + 1) // 2


class CortexM7:
    """The M7: two instructions a cycle when they need different units and the operands of both are there."""

    cycles_per_misaligned = 3

    def pass_cycles(self, insns: Sequence[Insn]) -> int:
        """Cycles of one pass through the block, without those of a mispredicted branch."""
        now = 0
        results: dict[int, _Result] = {}
        older: tuple[Insn, int] | None = None
        for insn in insns:
            if insn.kind is Kind.IT:
                continue
            alone = insn.base in _BLOCK_TRANSFERS or insn.kind in _SLOW or (insn.kind in (Kind.LOAD, Kind.STORE) and insn.count > 1)
            needed = _operands_cycle(insn, results)
            issue = max(now, needed)
            pairs = older is not None and not alone and needed <= older[1] and not _conflicts(older[0], insn)
            if older is not None and pairs:
                issue, older = older[1], None
            else:
                older = None if alone else (insn, issue)
            done = issue + _issue_cycles(insn)
            now = max(now, done)
            maker = _maker(insn)
            for register in insn.writes:
                results[register] = _Result(done + (maker in ("narrow load", "mac")), maker)
        return now

    def exit_cycles(self, leaving: BlockExit, executions: int, taken: int) -> int:
        """Cycles added by `taken` jumps out of the block in `executions` passes: the rarer way of a condition is mispredicted."""
        jump = leaving.jump
        if jump is None:
            return 0
        if jump.conditional or jump.base in ("cbz", "cbnz"):
            return _MISPREDICTION_CYCLES * min(taken, executions - taken)
        return taken * (6 if jump.base in ("tbb", "tbh") else 1)
