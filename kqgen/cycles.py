"""Modelled cycles of an executed program: each block's cost on a core, times how often it ran, plus its jumps.

What is modelled: issue, operand latencies and jumps, on memory without wait states. What is not: caches, bus contention,
interrupts, overlap from one block into the next. Figures made here are modelled cycles, never measured ones. Against silicon
figures others published, M0 and M0+ are within about 2 %, M3 and M4 10 %, M33 15 %, M7 20 %; M55 is unchecked. Two programs on
one core compare better than that, since most of the error cancels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Protocol

from kqgen.blocks import BlockCount
from kqgen.cycles_m0 import CortexM0
from kqgen.cycles_m7 import CortexM7
from kqgen.cycles_m33 import CortexM33
from kqgen.cycles_m34 import CortexM34
from kqgen.errors import InternalError
from kqgen.thumb import Program, check_core, insn_size
from kqgen.thumb_insn import BlockExit, Insn


class CycleModel(Protocol):
    """A core's timing: the cost of a straight pass through a block, and of the jumps that leave it."""

    @property
    def cycles_per_misaligned(self) -> int:
        """Cycles a misaligned access costs more than an aligned one (0 where it faults)."""

    def pass_cycles(self, insns: Sequence[Insn]) -> int:
        """Cycles of one pass through the block, without those of a taken branch."""

    def exit_cycles(self, leaving: BlockExit, executions: int, taken: int) -> int:
        """Cycles added by `taken` jumps out of the block in `executions` passes."""


_MODELS: Mapping[str, CycleModel] = MappingProxyType({
    "m0": CortexM0(plus=False), "m0p": CortexM0(plus=True), "m3": CortexM34(dsp=False), "m4": CortexM34(dsp=True),
    "m33": CortexM33(), "m7": CortexM7(), "m55": CortexM33()})


def cycle_model(core: str) -> CycleModel:
    """The timing of a core.

    Raises InputError, listing the cores there are, for an unknown one.
    """
    return _MODELS[check_core(core)]


def _destination(program: Program, jump: Insn) -> Insn | None:
    return None if jump.target is None else program.at(jump.target)


def _block_cycles(program: Program, block: BlockCount, model: CycleModel) -> int:
    insns = program.block(block.pc, block.size_bytes)
    jump = insns[-1] if insns[-1].leaves_block else None
    leaving = BlockExit(jump, insns[-2] if len(insns) > 1 else None, None if jump is None else _destination(program, jump))
    one_pass = model.pass_cycles(insns)
    if block.taken > 0 and jump is not None and jump.target == block.pc:
        # A loop's pass begins while the one before still holds results: the second of two passes is the steady state.
        one_pass = model.pass_cycles((*insns, *insns)) - one_pass
    return block.executions * one_pass + model.exit_cycles(leaving, block.executions, block.taken)


def modelled_cycles(program: Program, blocks: Sequence[BlockCount], core: str, misaligned_accesses: int = 0) -> int:
    """Cycles `core` takes for the counted blocks, on memory without wait states.

    `core` need not be the one the program was built for, if it can run the code. `misaligned_accesses` are added at the core's price.
    Raises InputError for an unknown core, InternalError for a block outside the program.
    """
    model = cycle_model(core)
    return sum(_block_cycles(program, block, model) for block in blocks) + misaligned_accesses * model.cycles_per_misaligned


def wait_state_cycles(program: Program, blocks: Sequence[BlockCount], flash: range, *, flash_wait_states: int, flash_reads: int) -> int:
    """Cycles that flash wait states add when nothing but sequential prefetch hides them.

    Each jump into flash and each data read of it costs `flash_wait_states`; `flash` is its address range, `flash_reads` the counted
    data reads there (literal pools and tables). Pessimistic: no cache, no line or branch buffer. Not a bound: sequential fetches are
    free only while a line of the prefetcher lasts longer than the wait. A jump out of a register is taken for one into flash
    when the program has any code there.
    """
    if flash_wait_states < 0 or flash_reads < 0:
        found = f"{flash_wait_states} wait states, {flash_reads} reads"
        raise InternalError("wait states and flash reads are counts", found=found, wanted="0 or more")
    code_in_flash = any(start in flash for start, _ in program.segments)
    jumps = 0
    for block in blocks:
        last = program.block(block.pc, block.size_bytes)[-1]
        if code_in_flash if last.target is None else last.target in flash:
            jumps += block.taken
    return flash_wait_states * (jumps + flash_reads)


def instructions(program: Program, blocks: Sequence[BlockCount]) -> int:
    """Instructions executed in the counted blocks, exactly; one that an IT block skips counts as one.

    Only lengths are read, so it holds for instructions no decoder knows. Raises InternalError for a block outside the program or one
    that ends inside an instruction.
    """
    return sum(block.executions * _instructions_in(program, block) for block in blocks)


def _instructions_in(program: Program, block: BlockCount) -> int:
    code = program.read(block.pc, block.size_bytes)
    if code is None:
        raise InternalError(f"block at {block.pc:#010x} is outside the program's code", found=f"{block.size_bytes} bytes there")
    position = count = 0
    while position < len(code):
        position += insn_size(int.from_bytes(code[position:position + 2], "little"))
        count += 1
    if position != len(code):
        raise InternalError(f"block at {block.pc:#010x} ends inside an instruction", found=f"{block.size_bytes} bytes")
    return count
