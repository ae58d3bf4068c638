"""Modelled cycles of an executed program: each block's cost on a core, times how often it ran, plus its jumps.

What is modelled: issue, operand latencies and jumps, on memory without wait states. What is not: caches, bus contention,
interrupts, overlap from one block into the next. Figures made here are modelled cycles, never measured ones. Against silicon
figures others published, M0 and M0+ are within about 2 %, M3 and M4 10 %, M33 15 %, M7 20 %; M55 is unchecked. Two programs on
one core compare better than that, since most of the error cancels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Protocol

from kqgen.blocks import BlockCount, LayerProfile
from kqgen.board import Region
from kqgen.cycles_m0 import CortexM0
from kqgen.cycles_m7 import CortexM7
from kqgen.cycles_m33 import CortexM33
from kqgen.cycles_m34 import CortexM34
from kqgen.cycles_m55 import CortexM55
from kqgen.errors import InputError, InternalError
from kqgen.thumb import Program
from kqgen.thumb_insn import BlockExit, Insn


class CoreTiming(Protocol):
    """A core's timing: the cost of a straight pass through a block, and of the jumps that leave it."""

    @property
    def cycles_per_misaligned(self) -> int:
        """Cycles a misaligned access costs more than an aligned one (0 where it faults)."""

    def pass_cycles(self, insns: Sequence[Insn]) -> int:
        """Cycles of one pass through the block, without those of a taken branch."""

    def exit_cycles(self, leaving: BlockExit, executions: int, taken: int) -> int:
        """Cycles added by `taken` jumps out of the block in `executions` passes."""


_TIMINGS: Mapping[str, CoreTiming] = MappingProxyType({
    "m0": CortexM0(plus=False), "m0p": CortexM0(plus=True), "m3": CortexM34(dsp=False), "m4": CortexM34(dsp=True),
    "m33": CortexM33(), "m7": CortexM7(), "m55": CortexM55()})


def _block_cycles(program: Program, block: BlockCount, timing: CoreTiming) -> int:
    insns = program.block(block.pc, block.size_bytes)
    jump = insns[-1] if insns[-1].leaves_block else None
    destination = None if jump is None or jump.target is None else program.at(jump.target)
    one_pass = timing.pass_cycles(insns)
    if block.taken > 0 and jump is not None and jump.target == block.pc:
        # A loop's pass begins while the one before still holds results: the second of two passes is the steady state.
        one_pass = timing.pass_cycles((*insns, *insns)) - one_pass
    leaving = BlockExit(jump, insns[-2] if len(insns) > 1 else None, destination)
    return block.executions * one_pass + timing.exit_cycles(leaving, block.executions, block.taken)


@dataclass(frozen=True, slots=True)
class CycleModel:
    """The timing of one core, on memory without wait states.

    Attributes:
        core: kqgen's short name of a Cortex-M core (board.Core.name).

    Raises: InputError, listing the cores there are, for any other name.
    """

    core: str

    def __post_init__(self) -> None:
        if self.core not in _TIMINGS:
            raise InputError(
                f"no cycle model of core {self.core!r}", found=self.core, wanted="one of " + ", ".join(_TIMINGS), do="choose one of these")

    def cycles(self, program: Program, blocks: Sequence[BlockCount], misaligned_accesses: int = 0) -> int:
        """Cycles the core takes for the counted blocks, which need not have been counted on the same core.

        `misaligned_accesses` are added at the core's price. Raises InternalError for a block outside the program.
        """
        timing = _TIMINGS[self.core]
        return sum(_block_cycles(program, block, timing) for block in blocks) + misaligned_accesses * timing.cycles_per_misaligned


def wait_state_cycles(profile: LayerProfile, flash: Region, flash_wait_states: int) -> int:
    """Cycles that flash wait states add when nothing but sequential prefetch hides them.

    Each jump out of a block in flash and each data read of flash (literal pools and tables) costs `flash_wait_states`.
    Pessimistic: no cache, no line or branch buffer. Not a bound: sequential fetches are free only while a line of the
    prefetcher lasts longer than the wait. Calls between flash and RAM are counted once there and back.
    Raises InternalError for a profile without counted reads.
    """
    if profile.flash_reads is None:
        raise InternalError("the run did not count its reads of flash", wanted="a profile made with flash reads")
    jumps = sum(block.taken for block in profile.blocks if flash.origin <= block.pc < flash.end)
    return flash_wait_states * (jumps + profile.flash_reads)
