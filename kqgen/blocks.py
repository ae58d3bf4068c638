"""Counts of executed basic blocks: what an emulator hands to the cycle model."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, order=True)
class BlockCount:
    """How often one straight run of instructions was executed.

    Attributes:
        pc: address of the first instruction, Thumb bit clear.
        size_bytes: length of the run. The emulator ends a block at a branch, at a page border or where its translation
            buffer is full, so a block need not end in a branch.
        executions: times it was entered at `pc` and run to its end.
        taken: times execution went on elsewhere than at `pc + size_bytes`; at most `executions`.
    """

    pc: int
    size_bytes: int
    executions: int
    taken: int


@dataclass(frozen=True, slots=True)
class LayerProfile:
    """What one step of the network executed.

    Attributes:
        instructions: exact count; an instruction that an IT block skips counts as one.
        blocks: in address order.
        flash_reads: data reads from flash (literal pools and tables), None when they were not counted.
    """

    instructions: int
    blocks: tuple[BlockCount, ...]
    flash_reads: int | None
