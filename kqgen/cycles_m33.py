"""Cycles of Cortex-M33: single issue, results of loads, products and shifts a cycle late.

Source: measurements published for an RP2350 (jnk0le/random, pipeline notes); Arm gives no table.
"""

from __future__ import annotations

from collections.abc import Sequence

from kqgen.thumb import EXTEND_ADDS
from kqgen.thumb_insn import BlockExit, Insn, Kind, names

_LOOP_ENDS = frozenset({"le", "letp"})
_BLOCK_LOADS = frozenset({"ldm", "poppc"})
_TRANSFERS = frozenset({Kind.LOAD, Kind.STORE, Kind.VECTOR_LOAD, Kind.VECTOR_STORE})
_FUSED = ("vfma", "vmla", "vfms", "vmls")
_FP_DIVIDES = ("vdiv", "vsqrt")
# Operations whose result comes a cycle late.
_LATE = EXTEND_ADDS | names(
    "uxtb16 sxtb16 rev16 revsh rbit ssat usat bfc pkhbt pkhtb qadd qsub sadd16 ssub16 uadd8 usub8 sadd8 ssub8 sel uadd16 usub16 shadd16 "
    "uhadd8 qadd16 qsub16 qadd8 qsub8")


def _occupancy(insn: Insn) -> int:
    """Cycles the instruction holds the pipeline."""
    if insn.kind in (Kind.LOAD, Kind.STORE, Kind.FP_LOAD, Kind.FP_STORE):
        return insn.count
    if insn.kind is Kind.MAC:
        return 2 if insn.base == "mul" and insn.sets_flags else 1
    if insn.kind is Kind.DIVIDE:
        return 6
    if insn.kind is Kind.FP:
        return 3 if insn.base.startswith(_FUSED) else 14 if insn.base.startswith(_FP_DIVIDES) else 1
    return 1


def _latency(insn: Insn) -> int:
    """Cycles a result comes after the instruction has left: 0 for plain arithmetic, else 1."""
    return 1 if insn.kind is not Kind.ALU or insn.shifted_operand or insn.wide_constant or insn.base in _LATE else 0


def _result(insn: Insn) -> str:
    """Which early path the result has: "load" and "accumulate" reach stored data and accumulators a cycle sooner."""
    if insn.kind is Kind.LOAD:
        return "load"
    if insn.kind is Kind.MAC or insn.base in EXTEND_ADDS or (insn.kind is Kind.VECTOR_MAC and insn.writes):
        return "accumulate"
    return ""


def _start(insn: Insn, now: int, ready: dict[int, int], results: dict[int, str]) -> int:
    start = now
    for register in insn.reads & ready.keys():
        early = register in insn.store_data and results[register] != ""
        start = max(start, ready[register] - early)
    if insn.accumulator in ready:
        start = max(start, ready[insn.accumulator] - (results[insn.accumulator] != ""))
    return start


def _folds(insn: Insn, before: Insn | None) -> bool:
    """Whether it costs nothing: `it`, a loop's end, and a narrow conditional branch not taken, which issues with a narrow neighbour."""
    if insn.kind is Kind.IT or insn.base in _LOOP_ENDS:
        return True
    return insn.base == "b" and insn.conditional and insn.size == 2 and before is not None and before.size == 2


class CortexM33:
    """The M33."""

    cycles_per_misaligned = 1

    def issue_cycles(self, insn: Insn, before: Insn | None) -> int:
        """Cycles the instruction holds the pipeline, after `before`, the last one that did not fold."""
        del before
        return _occupancy(insn)

    def pass_cycles(self, insns: Sequence[Insn]) -> int:
        """Cycles of one pass through the block, without those of a taken branch."""
        now, before, issued = 0, None, None
        ready: dict[int, int] = {}
        results: dict[int, str] = {}
        for insn in insns:
            if _folds(insn, before):
                before = insn
                continue
            now = _start(insn, now, ready, results) + self.issue_cycles(insn, issued)
            for register in insn.writes:
                pointer = insn.kind in _TRANSFERS and register in insn.reads - insn.store_data
                ready[register] = now + (0 if pointer and insn.base not in _BLOCK_LOADS else _latency(insn))
                results[register] = "" if pointer else _result(insn)
            before = issued = insn
        return now

    def exit_cycles(self, leaving: BlockExit, executions: int, taken: int) -> int:
        """Cycles added by `taken` jumps out of the block in `executions` passes."""
        jump, before = leaving.jump, leaving.before
        if jump is None or jump.base in _LOOP_ENDS:
            return 0
        if jump.base == "b" and jump.size == 2 and before is not None and before.size == 2:
            return taken * (2 if before.sets_flags else 1)
        if jump.base in ("bx", "poppc", "blx", "ldrpc"):
            return taken * 2
        return taken * (4 if jump.base in ("tbb", "tbh") else 1)
