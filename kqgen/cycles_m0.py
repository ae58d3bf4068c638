"""Cycles of Cortex-M0 and M0+: two- and three-stage pipelines without overlap, so costs add up instruction by instruction.

Source: instruction timing tables of the Cortex-M0 and Cortex-M0+ technical reference manuals (DDI0432C 3.3, DDI0484C 3.3),
with zero-wait-state memory and the single-cycle multiplier. A part built with the small multiplier needs 31 more a MULS.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from kqgen.thumb_insn import BlockExit, Insn, Kind

_BARRIERS = frozenset({"mrs", "msr", "dsb", "isb", "dmb"})


@dataclass(frozen=True, slots=True)
class CortexM0:
    """The M0 (`plus` false) or M0+ (`plus` true).

    A taken branch costs 3 (2) in all, BL 4 (3), POP with pc 4+N (3+N) for N other registers.
    """

    plus: bool
    cycles_per_misaligned = 0

    def _cycles(self, insn: Insn) -> int:
        if insn.base == "poppc":
            return (2 if self.plus else 3) + insn.count
        if insn.base in ("ldm", "stm"):
            return 1 + insn.count
        if insn.kind in (Kind.LOAD, Kind.STORE):
            return 2
        if insn.kind is Kind.BRANCH:
            return 1 if insn.conditional else 0
        if insn.base in _BARRIERS:
            return 3 if self.plus else 4
        return 1

    def pass_cycles(self, insns: Sequence[Insn]) -> int:
        """Cycles of one pass through the block, without those of a taken branch."""
        return sum(map(self._cycles, insns))

    def exit_cycles(self, leaving: BlockExit, executions: int, taken: int) -> int:
        """Cycles added by `taken` jumps out of the block in `executions` passes."""
        jump = leaving.jump
        if jump is None or jump.base == "poppc":
            return 0
        if jump.base == "bl":
            return taken * (3 if self.plus else 4)
        return taken * ((1 if self.plus else 2) if jump.conditional else (2 if self.plus else 3))
