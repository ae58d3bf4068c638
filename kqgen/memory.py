"""The memory plan: every tensor and every step's scratch gets a fixed place in one arena.

Inputs have a place in the arena too, which the caller may use: their bytes are free once the last layer has read them. Outputs lie
in the caller's buffers. An addition may write over an operand that nobody needs afterwards, a clamp over its input, and so may a
depthwise layer between maps of one shape; a convolution that adds must write over its second operand. Placement is first fit over
several orders, the smallest arena wins; the order is deterministic. `plan_check` verifies the result independently.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Mapping, Sequence

from kqgen.intgraph import IntGraph
from kqgen.lifetimes import Block, align, arena_blocks, last_uses, peak_bytes, scratch_block, tensor_blocks, timeline
from kqgen.plan import Job, Place, PlacedTensor, Plan, Step, Stream
from kqgen.stream_jobs import Pattern

RANDOM_ORDERS = 200
FEW_ORDERS = 12
"""Tried for a plan, and for a price."""

FRESH = 25
"""Every so many orders a new one is drawn; those between follow from the one before."""


def plan(graph: IntGraph, steps: Sequence[Step], patterns: Sequence[Pattern] = ()) -> Plan:
    """Places for every tensor and scratch of `steps`, of which those of `patterns` run as streams."""
    last_use = last_uses(graph)
    blocks = arena_blocks(graph, patterns)
    scratch = _scratch_blocks(steps, patterns)
    offsets = _place([*blocks, *dict.fromkeys(scratch.values())])
    by_tensor = {member: offsets[block] for block in blocks for member in block.members}
    tensors: list[PlacedTensor] = []
    for number, tensor in enumerate(graph.inputs):
        place = Place("input", index=number, offset=by_tensor[tensor.name])
        tensors.append(PlacedTensor(tensor.name, tensor.size_bytes, place, -1, last_use.get(tensor.name, -1)))
    lines = {name: (each, rows) for each in patterns for name, rows in each.lines.items()}
    for number, node in enumerate(graph.nodes):
        name = node.output.name
        place = Place("output", index=graph.outputs.index(name)) if name in graph.outputs else Place("arena", offset=by_tensor[name])
        last = len(steps) if name in graph.outputs else last_use.get(name, number)
        if name in lines:
            stream, rows = lines[name]
            tensors.append(PlacedTensor(name, rows * node.output.w * node.output.c, place, stream.first, stream.last))
        else:
            tensors.append(PlacedTensor(name, node.output.size_bytes, place, number, last))
    places = {tensor.name: tensor.place for tensor in tensors}
    return Plan(
        graph=graph,
        steps=tuple(steps),
        tensors=tuple(tensors),
        scratch_offsets=tuple(offsets[scratch[number]] if number in scratch else 0 for number in range(len(steps))),
        arena_bytes=align(max((offsets[block] + block.size_bytes for block in offsets), default=0)),
        streams=tuple(_stream(graph, each, places) for each in patterns),
    )


def alive_bytes(graph: IntGraph) -> tuple[int, ...]:
    """Bytes of arena tensors that each step needs beside its scratch: what it reads, writes, or must leave for later steps."""
    blocks = tensor_blocks(graph)
    return tuple(
        sum(align(block.size_bytes) for block in blocks if block.first <= number <= block.last) for number in range(len(graph.nodes))
    )


def _scratch_blocks(steps: Sequence[Step], patterns: Sequence[Pattern]) -> dict[int, Block]:
    """The block in which each step's scratch lies; the steps of a stream share one."""
    times = timeline(len(steps), patterns)
    found: dict[int, Block] = {}
    within = {number: (each.first, each.last) for each in patterns for number in range(each.first, each.last + 1)}
    for number, step in enumerate(steps):
        first, last = within.get(number, (number, number))
        if step.scratch_bytes:
            found[number] = scratch_block((first, last), max(each.scratch_bytes for each in steps[first : last + 1]), times)
    return found


def _stream(graph: IntGraph, pattern: Pattern, places: Mapping[str, Place]) -> Stream:
    """The pattern with bytes in place of slots."""
    jobs: list[Job] = []
    for job in pattern.jobs:
        node = graph.nodes[job.step]
        read = node.output if job.moves else graph.tensor(node.inputs[0])
        ends = [
            (places[tensor.name].offset if places[tensor.name].kind == "arena" else 0) + slot * tensor.w * tensor.c
            for tensor, slot in ((read, job.in_slot), (node.output, job.out_slot))
        ]
        jobs.append(Job(job.step, job.moves, job.row, job.rows, ends[0], ends[1], job.pad_top, job.h_in))
    return Stream(pattern.first, pattern.last, tuple(jobs))


def packed_bytes(blocks: Sequence[Block], first: int, last: int) -> int:
    """What the blocks that are kept at some of the moments `first` to `last` take when packed by themselves."""
    there = [block for block in blocks if block.first <= last and block.last >= first]
    return max((offset + align(block.size_bytes) for block, offset in _place(there, FEW_ORDERS).items()), default=0)


def _place(blocks: Sequence[Block], random_orders: int = RANDOM_ORDERS) -> dict[Block, int]:
    """Offsets by first fit in the best of several orders; stops at the lower bound."""
    bound = peak_bytes(blocks, -1, max((block.last for block in blocks), default=-1))
    numbers = range(len(blocks))
    orders = [
        sorted(numbers, key=lambda at: (-blocks[at].size_bytes, blocks[at].first, blocks[at].members)),
        sorted(numbers, key=lambda at: (blocks[at].first - blocks[at].last, -blocks[at].size_bytes, blocks[at].members)),
        sorted(numbers, key=lambda at: (blocks[at].first, -blocks[at].size_bytes, blocks[at].members)),
    ]
    meetings = _Meetings(blocks)
    shuffler = random.Random(0)  # noqa: S311 - orders to try, not secrets
    offsets: dict[int, int] = {}
    best: dict[int, int] = {}
    best_size = -1
    order = orders[0]
    for attempt in range(len(orders) + random_orders):
        if attempt < len(orders):
            order = orders[attempt]
        elif attempt % FRESH == 0:
            order = shuffler.sample(numbers, len(blocks))
        else:  # what lies beyond the bound is placed earlier
            late = shuffler.choice([at for at in order if offsets[at] + align(blocks[at].size_bytes) > bound])
            rest = [at for at in order if at != late]
            to = shuffler.randrange(order.index(late) + 1)
            order = [*rest[:to], late, *rest[to:]]
        offsets = meetings.first_fit(order)
        size = max((offset + blocks[at].size_bytes for at, offset in offsets.items()), default=0)
        if best_size < 0 or size < best_size:
            best, best_size = offsets, size
        if align(best_size) <= bound:
            break
    return {blocks[at]: offset for at, offset in best.items()}


class _Meetings:
    """Where blocks must not lie as seen from one another, found once for all orders."""

    def __init__(self, blocks: Sequence[Block]) -> None:
        self._barred: list[list[tuple[int, tuple[tuple[int, int], ...]]]] = [[] for _ in blocks]
        for (held, other), (at, block) in itertools.permutations(enumerate(blocks), 2):
            barred = _barred(other, block) if other.first <= block.last and block.first <= other.last else ()
            if barred:
                self._barred[at].append((held, barred))

    def first_fit(self, order: Sequence[int]) -> dict[int, int]:
        """The lowest offset of each block, in turn, at which none of its pieces meets one placed before while both must be kept."""
        offsets: dict[int, int] = {}
        for at in order:
            barred = [
                (offsets[held] + low, offsets[held] + high) for held, some in self._barred[at] if held in offsets for low, high in some
            ]
            offset = 0
            for low, high in sorted(barred):
                if offset <= low:
                    break
                offset = max(offset, align(high))
            offsets[at] = offset
        return offsets


def _barred(held: Block, block: Block) -> tuple[tuple[int, int], ...]:
    """The open intervals in which `block` must not begin, counted from where `held` does; none meets another."""
    barred: list[tuple[int, int]] = []
    for low, high in sorted(
        (other.start - piece.end, other.end - piece.start)
        for other in held.pieces for piece in block.pieces if other.first <= piece.last and piece.first <= other.last
    ):  # fmt: skip
        if barred and low < barred[-1][1]:
            barred[-1] = (barred[-1][0], max(high, barred[-1][1]))
        else:
            barred.append((low, high))
    return tuple(barred)
