"""Which layers run as streams, and in strips of how many rows: the smallest arena at a price in cycles.

Every job decodes its layer's weights again, so few tall strips are fast and many low ones small. For an arena of a given size the
fastest schedule is a shortest way through the steps, each run by itself or as part of one of the streams that fit; the smallest arena
whose schedule is fast enough is found by halving.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache

from kqgen import forms, memory, stream_jobs
from kqgen.board import Core
from kqgen.conv_shape import Candidate, ConvShape, conv_shape
from kqgen.intgraph import IntConv2d, IntGraph
from kqgen.lifetimes import arena_blocks, chains
from kqgen.plan import ARENA_ALIGN_BYTES, Form, Plan, Step
from kqgen.schedule import Choice, step
from kqgen.stream_jobs import Pattern

STRIPS = (1, 2, 3, 4, 6, 8, 12, 16)
"""Rows of a stream's last step that are tried."""

LONGEST = 12
"""Steps of a stream, at most."""

MOST_JOBS = 1000
"""Of a stream: 12 bytes of flash each."""

MOST_STREAMS = 2
"""Of a network: places that suit several at once are hard to find."""

COLLISIONS = 4
"""Arenas tried, each a little larger, where places for everything take more than the fullest moment holds."""

REPAIRS = 4
"""Plans tried for one schedule, each with less scratch where the room is in pieces."""


@dataclass(frozen=True, slots=True)
class Way:
    """Some steps, and one manner of running them.

    Attributes:
        first, last: numbers of the steps.
        pattern: as a stream; None for a single step that runs by itself.
        held_bytes: what the arena holds beside their scratch.
        choices: their forms, one each.
    """

    first: int
    last: int
    pattern: Pattern | None
    held_bytes: int
    choices: tuple[Choice, ...]

    def steps(self, arena_bytes: int) -> tuple[Step, ...] | None:
        """The fastest steps that an arena of that size has room for; None when there are none."""
        made = tuple(step(choice, arena_bytes - self.held_bytes) for choice in self.choices)
        return made if self.held_bytes + max(each.scratch_bytes for each in made) <= arena_bytes else None


@dataclass(frozen=True, slots=True)
class Schedule:
    """A whole network: its ways in order, and the cycles expected of them."""

    ways: tuple[Way, ...]
    cycles: float


def smallest(graph: IntGraph, core: Core, asked: Mapping[str, Form], choices: Sequence[Choice], most_cycles: float) -> Plan:
    """The plan with the smallest arena whose expected cycles are `most_cycles` at most.

    Args:
        core: where it will run.
        asked: forms given instead of chosen, by layer.
        choices: of all steps, when each runs by itself.
        most_cycles: no fewer than the fastest forms take with any amount of scratch.
    """
    ways = tuple(_ways(graph, core, asked, choices))
    return min((_smallest(graph, ways, len(choices), streams, most_cycles) for streams in range(MOST_STREAMS + 1)), key=_arena_bytes)


def _arena_bytes(plan: Plan) -> int:
    return plan.arena_bytes


def _smallest(graph: IntGraph, ways: Sequence[Way], steps: int, streams: int, most_cycles: float) -> Plan:
    """The smallest of the plans with so many streams at most, for the smallest arena that is fast enough and for some above it."""
    low, high = 0, max(way.held_bytes + max(each.scratch_bytes for each in way.steps(2**31) or ()) for way in ways)
    while high - low > ARENA_ALIGN_BYTES:
        middle = (low + high) // 2
        found = _fastest(ways, steps, streams, middle)
        low, high = (low, middle) if found is not None and found.cycles <= most_cycles else (middle, high)
    plans: list[Plan] = []
    for attempt in range(COLLISIONS):
        room = high + attempt * high // 64
        schedule = _fastest(ways, steps, streams, room)
        plans += () if schedule is None else _plans(graph, schedule, room, most_cycles)
        if plans and min(map(_arena_bytes, plans)) <= room:
            break
    return min(plans, key=_arena_bytes)


def _plans(graph: IntGraph, schedule: Schedule, room: int, most_cycles: float) -> Iterator[Plan]:
    """Plans of a schedule; where the room left is in pieces, with less scratch for those who would pass the end."""
    patterns = tuple(way.pattern for way in schedule.ways if way.pattern is not None)
    rooms = [room] * len(schedule.ways)
    for _ in range(REPAIRS):
        found = [way.steps(limit) for way, limit in zip(schedule.ways, rooms, strict=True)]
        steps = tuple(
            each if way.pattern is None else replace(each, form_reason=f"{each.form_reason}; {_rows(way.pattern, number)} rows at a time")
            for way, part in zip(schedule.ways, found, strict=True)
            for number, each in enumerate(part or (), way.first)
        )
        if None in found or sum(each.cycles for each in steps) > most_cycles:
            return
        plan = memory.plan(graph, steps, patterns)
        yield plan
        ends = [offset + each.scratch_bytes for offset, each in zip(plan.scratch_offsets, steps, strict=True)]
        beyond = [max(0, max(ends[way.first : way.last + 1]) - room) for way in schedule.ways]
        if plan.arena_bytes <= room or not any(beyond):
            return
        rooms = [limit - over for limit, over in zip(rooms, beyond, strict=True)]


def _rows(pattern: Pattern, step: int) -> int:
    """The most rows that a step of a stream makes at a time."""
    return max(job.rows for job in pattern.jobs if job.step == step and not job.moves)


def _fastest(ways: Sequence[Way], steps: int, streams: int, arena_bytes: int) -> Schedule | None:
    """The fastest schedule of an arena with so many streams at most: the shortest way from the first step past the last one.

    Returns: None when none fits.
    """
    best: list[list[Schedule | None]] = [[Schedule((), 0.0), *[None] * steps] for _ in range(streams + 1)]
    for way in sorted(ways, key=lambda way: way.first):
        made = way.steps(arena_bytes)
        if made is None:
            continue
        more = int(way.pattern is not None)
        for used in range(streams + 1 - more):
            before, there = best[used][way.first], best[used + more][way.last + 1]
            cycles = 0.0 if before is None else before.cycles + sum(each.cycles for each in made)
            if before is not None and (there is None or cycles < there.cycles):
                best[used + more][way.last + 1] = Schedule((*before.ways, way), cycles)
    return min((found for each in best if (found := each[steps]) is not None), key=lambda found: found.cycles, default=None)


def _ways(graph: IntGraph, core: Core, asked: Mapping[str, Form], choices: Sequence[Choice]) -> Iterator[Way]:
    """Every step by itself, and every stream that holds less than its fullest step would."""
    alive = memory.alive_bytes(graph)
    for number, choice in enumerate(choices):
        yield Way(number, number, None, alive[number], (choice,))
    least = [alive[number] + min((each.scratch_bytes for each in choice.candidates), default=0) for number, choice in enumerate(choices)]
    floor = max((least[number] for number, node in enumerate(graph.nodes) if stream_jobs.window(graph, node) is None), default=0)
    prices = _Prices(graph, core, asked)
    tensors = chains(graph)
    for first in range(len(choices)):
        for last in range(first + 1, min(len(choices), first + LONGEST)):
            fullest = max(least[first : last + 1])
            if stream_jobs.window(graph, graph.nodes[last]) is None:
                break
            if fullest > floor:
                yield from _streams(graph, tensors, prices, first, last, fullest)


def _streams(graph: IntGraph, tensors: Mapping[str, str], prices: _Prices, first: int, last: int, fullest: int) -> Iterator[Way]:
    """The streams of steps `first` to `last`, in several strips."""
    heights = [graph.nodes[number].output.h for number in range(first, last + 1)]
    for rows in STRIPS:
        if rows >= heights[-1]:
            break
        pattern = stream_jobs.pattern(graph, tensors, first, [max(1, round(rows * height / heights[-1])) for height in heights])
        if pattern is None:
            break
        length = len(pattern.jobs)
        held = memory.packed_bytes(arena_blocks(graph, (pattern,)), first, first + length - 1)
        if held >= fullest:
            break
        if length <= MOST_JOBS:
            yield Way(first, last, pattern, held, prices.choices(pattern))


class _Prices:
    """Candidates of layers that run some rows at a time."""

    def __init__(self, graph: IntGraph, core: Core, asked: Mapping[str, Form]) -> None:
        self._graph, self._core, self._asked = graph, core, asked
        self._shape = cache(self._whole)
        self._candidates = cache(self._of_rows)

    def choices(self, pattern: Pattern) -> tuple[Choice, ...]:
        """What each step of a stream may run as: scratch of its largest job, cycles of all jobs together."""
        return tuple(self._choice(pattern, number) for number in range(pattern.first, pattern.last + 1))

    def _choice(self, pattern: Pattern, number: int) -> Choice:
        node = self._graph.nodes[number]
        if not isinstance(node, IntConv2d):
            return Choice(node, ())
        jobs = [(job.pad_top, job.h_in, job.rows) for job in pattern.jobs if job.step == number and not job.moves]
        tallest = max(jobs, key=lambda job: (job[2], job[1]))
        kept: list[Candidate] = []
        for each in sorted((self._sum(number, jobs, tallest, each) for each in self._candidates(number, tallest).values()), key=_cost):
            if not kept or each.cycles < kept[-1].cycles:
                kept.append(each)
        return Choice(node, tuple(kept))

    def _sum(self, number: int, jobs: Sequence[tuple[int, int, int]], tallest: tuple[int, int, int], candidate: Candidate) -> Candidate:
        """A candidate of the tallest job with the price of all jobs."""
        scratch, cycles = candidate.scratch_bytes, 0.0
        for job in set(jobs):
            same = self._candidates(number, job).get(_key(candidate))
            scratch = max(scratch, same.scratch_bytes if same else 0)
            cycles += jobs.count(job) * (same.cycles if same else candidate.cycles * job[2] / tallest[2])
        return replace(candidate, scratch_bytes=scratch, cycles=cycles)

    def _whole(self, number: int) -> ConvShape | None:
        node = self._graph.nodes[number]
        return conv_shape(self._graph, node, input_aligned=True) if isinstance(node, IntConv2d) else None

    def _of_rows(self, number: int, job: tuple[int, int, int]) -> Mapping[tuple[str, str, int, int], Candidate]:
        """Every candidate of a job (pad_top, h_in, rows), by what makes it."""
        shape = self._shape(number)
        if shape is None:
            return {}
        pad_top, h_in, rows = job
        bottom = max(0, (rows - 1) * shape.stride[0] + shape.kernel[0] - pad_top - h_in)
        aligned = shape.w_in * shape.c_in % ARENA_ALIGN_BYTES == 0
        part = replace(shape, h_in=h_in, h_out=rows, padding=(pad_top, bottom, *shape.padding[2:]), input_aligned=aligned)
        name, asked = forms.engine_core(self._core), self._asked.get(self._graph.nodes[number].name)
        return {_key(each): each for engine in forms.ENGINES for each in engine(part, name) if asked in (None, each.form)}


def _key(candidate: Candidate) -> tuple[str, str, int, int]:
    return candidate.form, candidate.function, candidate.tile, candidate.strip


def _cost(candidate: Candidate) -> tuple[int, float]:
    return candidate.scratch_bytes, candidate.cycles
