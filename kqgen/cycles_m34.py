"""Cycles of Cortex-M3 and M4: one instruction at a time, loads and stores pipelined, jumps paid by the refill.

Source: instruction set summaries of the Cortex-M3 and M4 technical reference manuals (DDI0337H 3.3, DDI0439B 3.3) and their
notes on load and store timings. The refill of a taken branch is 1, or 2 when the target is a 32-bit instruction off a word
boundary or comes out of a register: the one free parameter of the model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from kqgen.thumb import ACCUMULATES, LONG_ACCUMULATES, LONG_MULTIPLIES
from kqgen.thumb_insn import LOADS_AND_STORES, BlockExit, Insn, Kind

_LOADS = frozenset({Kind.LOAD, Kind.FP_LOAD})
_STORES = frozenset({Kind.STORE, Kind.FP_STORE})
_FUSED = ("vfma", "vfms", "vmla", "vmls", "vfnm", "vnml")
_FP_DIVIDES = ("vdiv", "vsqrt")


@dataclass(frozen=True, slots=True)
class CortexM34:
    """The M3 (`dsp` false) or M4 (`dsp` true): they differ in multiply-accumulate, 1 cycle on the M4, 2 to 6 on the M3."""

    dsp: bool
    cycles_per_misaligned = 1

    def _multiply_cycles(self, insn: Insn) -> int:
        if self.dsp:
            return 1
        if insn.base in LONG_ACCUMULATES:
            return 6
        if insn.base in LONG_MULTIPLIES:
            return 4
        return 2 if insn.base in ACCUMULATES else 1

    def _other_cycles(self, insn: Insn) -> int:
        if insn.kind is Kind.MAC:
            return self._multiply_cycles(insn)
        if insn.kind is Kind.DIVIDE:
            return 7
        if insn.kind is Kind.FP:
            return 3 if insn.base.startswith(_FUSED) else 14 if insn.base.startswith(_FP_DIVIDES) else insn.count
        return 2 if insn.base in ("mrs", "msr") else 1

    def pass_cycles(self, insns: Sequence[Insn]) -> int:
        """Cycles of one pass through the block, without those of a taken branch.

        A load takes 2; the load or store right after one takes 1 unless its address hangs on it. A store takes 1, with a register
        offset 2. Several registers take 1 each and 1 more. An address made by the instruction before costs 1 more.
        """
        cycles, before, pipelined = 0, None, False
        for insn in insns:
            if insn.kind not in LOADS_AND_STORES:
                pipelined = False
                cycles += self._other_cycles(insn)
                before = insn
                continue
            waits = before is not None and bool(before.writes & insn.address_registers)
            hidden = pipelined and not waits
            pipelined = False
            if insn.base in ("ldm", "stm", "poppc") or insn.count > 1:
                cycles += 1 + insn.count
            elif insn.kind in _STORES:
                cycles += 2 if insn.register_offset and not hidden else 1
            else:
                cycles += 1 if hidden else 2
                pipelined = True
            if waits and before is not None and before.kind in (Kind.ALU, Kind.MAC):
                cycles += 1
            before = insn
        return cycles

    def exit_cycles(self, leaving: BlockExit, executions: int, taken: int) -> int:
        """Cycles added by `taken` jumps out of the block in `executions` passes."""
        jump, target = leaving.jump, leaving.destination
        if jump is None:
            return 0
        refill = 2 if target is not None and target.size == 4 and target.address & 2 else 1
        if jump.base in ("bx", "blx", "poppc", "ldrpc"):
            refill = 2
        return taken * (refill + (3 if jump.base in ("tbb", "tbh") else 0))
