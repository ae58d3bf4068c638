"""Counts the blocks a network executes under unicorn, layer by layer."""

from __future__ import annotations

import importlib
from collections import defaultdict
from types import TracebackType
from typing import Any

from kqgen.blocks import BlockCount, LayerProfile
from kqgen.board import Region
from kqgen.elf import Elf
from kqgen.image import ALLOWED_UNDEFINED, Image

_START = -1
_END = -2


def run_ranges(image: Image) -> tuple[tuple[int, int], ...]:
    """Address ranges of the network's run function, with the pieces a compiler may split off it (`name.part.0`)."""
    name = image.api.run_function
    pieces = [s for s in image.elf.symbols if s.kind == "function" and (s.name == name or s.name.startswith(name + "."))]
    return tuple((piece.address, piece.address + piece.size_bytes) for piece in pieces)


def count_instructions(code: bytes) -> int:
    """Thumb instructions in `code`: one whose first halfword begins with 0b11101, 0b11110 or 0b11111 takes two halfwords."""
    at = count = 0
    while at < len(code):
        at += 4 if code[at + 1] >> 3 >= 29 else 2
        count += 1
    return count


class BlockCounter:
    """Block hooks on a unicorn engine while it is entered as a context; then `layers()`.

    The run function calls one function a step: blocks from one such call's return to the next one's return are a layer, and
    the run function's last blocks belong to the last layer. Calls to memcpy and memset are no steps.
    """

    def __init__(self, uc: Any, ranges: tuple[tuple[int, int], ...], elf: Elf, flash: Region, *, flash_reads: bool) -> None:
        self._uc, self._ranges, self._flash = uc, ranges, flash
        self._helpers = frozenset(s.address for s in elf.symbols if s.kind == "function" and s.name in ALLOWED_UNDEFINED)
        self._count_reads = flash_reads
        self._hooks: list[int] = []
        self._edges: list[defaultdict[tuple[int, int], int]] = [defaultdict(int)]
        self._reads = [0]
        self._previous = _START
        self._inside = True
        self._called = False

    def __enter__(self) -> BlockCounter:
        unicorn = importlib.import_module("unicorn")
        # Code translated earlier has no hooks in it, code translated now keeps them: both are thrown away.
        self._uc.ctl_flush_tb()
        self._hooks.append(self._uc.hook_add(unicorn.UC_HOOK_BLOCK, self._on_block))
        if self._count_reads:
            first, last = self._flash.origin, self._flash.end - 1
            self._hooks.append(self._uc.hook_add(unicorn.UC_HOOK_MEM_READ, self._on_read, begin=first, end=last))
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for hook in self._hooks:
            self._uc.hook_del(hook)
        self._uc.ctl_flush_tb()
        self._edges[-1][(self._previous, _END)] += 1

    def _on_block(self, _uc: Any, address: int, size: int, _: object) -> None:
        block = address << 16 | size
        for low, high in self._ranges:
            if low <= address < high:
                if not self._inside:
                    self._inside = True
                    if self._called:
                        self._called = False
                        self._edges[-1][(self._previous, _END)] += 1
                        self._edges.append(defaultdict(int))
                        self._reads.append(0)
                        self._previous = _START
                break
        else:
            if self._inside:
                self._inside = False
                self._called = address not in self._helpers
        self._edges[-1][(self._previous, block)] += 1
        self._previous = block

    def _on_read(self, _uc: Any, _access: int, _address: int, _size: int, _value: int, _: object) -> None:
        self._reads[-1] += 1

    def layers(self) -> tuple[LayerProfile, ...]:
        """The profile of each layer, in order."""
        edges, reads = [dict(part) for part in self._edges], list(self._reads)
        if not self._called and len(edges) > 1:
            tail, tail_reads = edges.pop(), reads.pop()
            for edge, times in tail.items():
                edges[-1][edge] = edges[-1].get(edge, 0) + times
            reads[-1] += tail_reads
        return tuple(
            self._layer(part, flash_reads if self._count_reads else None) for part, flash_reads in zip(edges, reads, strict=True)
        )

    def _layer(self, edges: dict[tuple[int, int], int], flash_reads: int | None) -> LayerProfile:
        executions: defaultdict[int, int] = defaultdict(int)
        taken: defaultdict[int, int] = defaultdict(int)
        for (previous, block), times in edges.items():
            if block != _END:
                executions[block] += times
            if previous != _START and (block == _END or block >> 16 != (previous >> 16) + (previous & 0xFFFF)):
                taken[previous] += times
        blocks = tuple(BlockCount(block >> 16, block & 0xFFFF, executions[block], taken[block]) for block in sorted(executions))
        instructions = sum(
            block.executions * count_instructions(bytes(self._uc.mem_read(block.pc, block.size_bytes))) for block in blocks
        )
        return LayerProfile(instructions, blocks, flash_reads)
