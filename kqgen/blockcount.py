"""Counts the blocks a network executes under unicorn, layer by layer.

The run function calls one function a step, or several times in a stream of steps: what is executed from one such call's return
to the next one's return is a layer, or a piece of one; the run function's last blocks belong to the last layer. Calls to memcpy
and memset, and to the functions that prepare the pieces of streams, are no steps.
"""

from __future__ import annotations

import importlib
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Protocol

from kqgen.blocks import BlockCount, LayerProfile
from kqgen.board import Region
from kqgen.errors import InternalError
from kqgen.image import ALLOWED_UNDEFINED, Image

START = (1 << 64) - 1
"""In an edge: the layer begins."""

NO_STEPS = ALLOWED_UNDEFINED | {"kq_rows_conv2d", "kq_rows_conv2d_kq", "kq_rows_pool", "kq_rows_move"}
"""Functions whose call is no step."""

END = (1 << 64) - 2
"""In an edge: the layer ends."""


@dataclass(frozen=True, slots=True)
class CountScope:
    """What is counted, and how layers are told apart.

    Attributes:
        run_ranges: (first, one past the last) addresses of the run function and of pieces the compiler split off it (`name.part.0`).
        helpers: entry addresses of functions whose call is no step.
        flash: where data reads are counted, None when they are not.
    """

    run_ranges: tuple[tuple[int, int], ...]
    helpers: frozenset[int]
    flash: Region | None


@dataclass(frozen=True, slots=True)
class Edge:
    """Times one block followed another within a layer. A block is its address * 2^16 + its size in bytes, or START or END."""

    layer: int
    previous: int
    block: int
    times: int


@dataclass(frozen=True, slots=True)
class RawCounts:
    """What hooks gather: edges, flash reads by layer, and whether the last layer made its call (else it is a tail)."""

    edges: tuple[Edge, ...]
    reads: tuple[int, ...]
    called: bool


class Hooks(Protocol):
    """Hooks on an engine, set while entered as a context."""

    def __enter__(self) -> Hooks: ...

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None: ...

    def counts(self) -> RawCounts:
        """What was gathered, after the context was left."""
        ...


def count_scope(image: Image, *, flash_reads: bool) -> CountScope:
    """The scope of an image's network."""
    name = image.api.run_function
    functions = [symbol for symbol in image.elf.symbols if symbol.kind == "function"]
    pieces = [symbol for symbol in functions if symbol.name == name or symbol.name.startswith(name + ".")]
    return CountScope(
        run_ranges=tuple((piece.address, piece.address + piece.size_bytes) for piece in pieces),
        helpers=frozenset(symbol.address for symbol in functions if symbol.name in NO_STEPS),
        flash=image.board.flash if flash_reads else None,
    )


class PythonHooks:
    """The hooks in Python: needs nothing, one call of about a microsecond for each block executed."""

    def __init__(self, uc: Any, scope: CountScope) -> None:
        self._uc, self._scope = uc, scope
        self._hooks: list[int] = []
        self._edges: list[defaultdict[tuple[int, int], int]] = [defaultdict(int)]
        self._reads = [0]
        self._previous = START
        self._inside = True
        self._called = False

    def __enter__(self) -> PythonHooks:
        unicorn = importlib.import_module("unicorn")
        # Code translated earlier has no hooks in it, code translated now keeps them: both are thrown away.
        self._uc.ctl_flush_tb()
        self._hooks.append(self._uc.hook_add(unicorn.UC_HOOK_BLOCK, self._on_block))
        if self._scope.flash is not None:
            first, last = self._scope.flash.origin, self._scope.flash.end - 1
            self._hooks.append(self._uc.hook_add(unicorn.UC_HOOK_MEM_READ, self._on_read, begin=first, end=last))
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for hook in self._hooks:
            self._uc.hook_del(hook)
        self._uc.ctl_flush_tb()

    def _on_block(self, _uc: Any, address: int, size: int, _: object) -> None:
        block = address << 16 | size
        inside = any(low <= address < high for low, high in self._scope.run_ranges)
        if inside and not self._inside and self._called:
            self._called = False
            self._edges[-1][(self._previous, END)] += 1
            self._previous = START
            self._edges.append(defaultdict(int))
            self._reads.append(0)
        elif not inside and self._inside and address not in self._scope.helpers:
            self._called = True
        self._inside = inside
        self._edges[-1][(self._previous, block)] += 1
        self._previous = block

    def _on_read(self, _uc: Any, _access: int, _address: int, _size: int, _value: int, _: object) -> None:
        self._reads[-1] += 1

    def counts(self) -> RawCounts:
        """What was gathered, after the context was left."""
        edges = [Edge(layer, *edge, times) for layer, part in enumerate(self._edges) for edge, times in part.items()]
        edges.append(Edge(len(self._edges) - 1, self._previous, END, 1))
        return RawCounts(tuple(edges), tuple(self._reads), self._called)


def count_instructions(code: bytes) -> int:
    """Thumb instructions in `code`: one whose first halfword begins with 0b11101, 0b11110 or 0b11111 takes two halfwords."""
    at = count = 0
    while at < len(code):
        at += 4 if code[at + 1] >> 3 >= 29 else 2
        count += 1
    return count


def layer_profiles(counts: RawCounts, scope: CountScope, image: Image) -> tuple[LayerProfile, ...]:
    """The profile of each layer, in order."""
    last = len(counts.reads) - 1
    tail = last if last > 0 and not counts.called else None
    reads = list(counts.reads)
    if tail is not None:
        reads[tail - 1] += reads.pop()
    executions: list[defaultdict[int, int]] = [defaultdict(int) for _ in reads]
    taken: list[defaultdict[int, int]] = [defaultdict(int) for _ in reads]
    for edge in counts.edges:
        layer = edge.layer - 1 if edge.layer == tail else edge.layer
        if edge.block != END:
            executions[layer][edge.block] += edge.times
        if edge.previous != START and (edge.block == END or edge.block >> 16 != (edge.previous >> 16) + (edge.previous & 0xFFFF)):
            taken[layer][edge.previous] += edge.times
    profiles: list[LayerProfile] = []
    for layer, flash_reads in enumerate(reads):
        blocks = tuple(BlockCount(key >> 16, key & 0xFFFF, times, taken[layer][key]) for key, times in sorted(executions[layer].items()))
        instructions = sum(block.executions * count_instructions(_code(image, block)) for block in blocks)
        profiles.append(LayerProfile(instructions, blocks, None if scope.flash is None else flash_reads))
    return tuple(profiles)


def step_profiles(calls: Sequence[LayerProfile], steps: Sequence[int]) -> tuple[LayerProfile, ...]:
    """The profiles of the steps in order, of those of calls; a step may take several calls.

    Args:
        calls: of each call, in order.
        steps: the number of the step that each call belongs to, from 0 without gaps.

    Raises: InternalError when another number of calls was counted.
    """
    if len(calls) != len(steps):
        raise InternalError(f"the emulator counted {len(calls)} calls where the plan has {len(steps)}")
    own = [[call for call, number in zip(calls, steps, strict=True) if number == step] for step in range(max(steps, default=-1) + 1)]
    return tuple(each[0] if len(each) == 1 else _summed(each) for each in own)


def _summed(calls: Sequence[LayerProfile]) -> LayerProfile:
    executions: defaultdict[tuple[int, int], int] = defaultdict(int)
    taken: defaultdict[tuple[int, int], int] = defaultdict(int)
    for block in (block for call in calls for block in call.blocks):
        executions[block.pc, block.size_bytes] += block.executions
        taken[block.pc, block.size_bytes] += block.taken
    reads = [call.flash_reads for call in calls if call.flash_reads is not None]
    return LayerProfile(
        sum(call.instructions for call in calls),
        tuple(BlockCount(*key, times, taken[key]) for key, times in sorted(executions.items())),
        sum(reads) if len(reads) == len(calls) else None,
    )


def _code(image: Image, block: BlockCount) -> bytes:
    for segment in image.elf.segments:
        start = block.pc - segment.address
        if 0 <= start < len(segment.data):
            return segment.data[start : start + block.size_bytes]
    return b""
