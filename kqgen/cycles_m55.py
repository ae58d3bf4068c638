"""Cycles of Cortex-M55: scalar code by the rules of the M33, vectors by Arm's description of its dual-beat pipeline.

A vector instruction takes two cycles, of which the second overlaps the first of a following vector instruction of another class
(load or store, multiply, other): a stream of loads and products in turn takes one cycle each. A low-overhead loop's end is free.
Gathers and scatters are costed as other loads and stores, which flatters them: each element is an access of its own on silicon. No figure
of the M55 has been checked against silicon.
"""

from __future__ import annotations

from kqgen.cycles_m33 import CortexM33
from kqgen.thumb_insn import VECTOR, Insn, Kind


def _vector_class(kind: Kind) -> str:
    return "multiply" if kind is Kind.VECTOR_MAC else "other" if kind is Kind.VECTOR_ALU else "transfer"


class CortexM55(CortexM33):
    """The M55: the M33 and its vector unit."""

    def issue_cycles(self, insn: Insn, before: Insn | None) -> int:
        """Cycles the instruction holds the pipeline, after `before`, the last one that did not fold."""
        if insn.kind not in VECTOR:
            return super().issue_cycles(insn, before)
        overlaps = before is not None and before.kind in VECTOR and _vector_class(before.kind) != _vector_class(insn.kind)
        return 1 if overlaps else 2
