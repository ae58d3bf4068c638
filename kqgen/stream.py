"""Which layers run as streams, and in strips of how many rows: the smallest arena at a price in cycles, or the fewest cycles in an arena.

For an arena of a given size the fastest schedule is a shortest way through the steps, each run by itself or as part of one of the
streams that fit; the smallest arena whose schedule is fast enough is found by halving. Then other strips are tried in the streams
found, step by step, as long as that makes the arena smaller.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from kqgen import memory
from kqgen.board import Core
from kqgen.errors import InternalError
from kqgen.intgraph import IntGraph
from kqgen.plan import ARENA_ALIGN_BYTES, Form, Plan
from kqgen.schedule import Choice
from kqgen.stream_jobs import Pattern
from kqgen.stream_ways import Way, Ways

MOST_STREAMS = 4
"""Of a network: places that suit many at once are hard to find."""

ROUNDS = 5
"""In which other strips are tried."""

COLLISIONS = 4
"""Arenas tried, each a little larger, where places for everything take more than the fullest moment holds."""

REPAIRS = 4
"""Plans tried for one schedule, each with less scratch where the room is in pieces."""


@dataclass(frozen=True, slots=True)
class Schedule:
    """A whole network: its ways in order, and the cycles expected of them."""

    ways: tuple[Way, ...]
    cycles: float


@dataclass(frozen=True, slots=True, eq=False)
class Found:
    """A schedule, its plan, and how good that is: the smaller the better."""

    schedule: Schedule
    plan: Plan

    @property
    def rank(self) -> tuple[int, float, int]:
        """First the arena, then the cycles, then the jobs."""
        jobs = sum(len(stream.jobs) for stream in self.plan.streams)
        return self.plan.arena_bytes, sum(each.cycles for each in self.plan.steps), jobs


def smallest(graph: IntGraph, core: Core, asked: Mapping[str, Form], choices: Sequence[Choice], most_cycles: float) -> Plan:
    """The plan with the smallest arena whose expected cycles are `most_cycles` at most.

    Args:
        core: where it will run.
        asked: forms given instead of chosen, by layer.
        choices: of all steps, when each runs by itself.
        most_cycles: no fewer than the fastest forms take with any amount of scratch.
    """
    def found(ways: Sequence[Way]) -> list[Found]:
        return [_smallest(graph, ways, len(choices), streams, most_cycles) for streams in range(MOST_STREAMS + 1)]

    source = Ways(graph, core, asked, choices)
    best = _refined(source, (*source.single(), *source.streams()), found, lambda each: each.rank)
    if best is None:
        raise InternalError("no round of strips was tried")
    return best.plan


def fastest(graph: IntGraph, core: Core, asked: Mapping[str, Form], choices: Sequence[Choice], arena_bytes: int) -> Plan | None:
    """The plan with streams that is expected to take fewest cycles in an arena of `arena_bytes` at most; None where there is none.

    Args: see `smallest`.
    """
    def found(ways: Sequence[Way]) -> list[Found]:
        schedules = [_fastest(ways, len(choices), streams, arena_bytes) for streams in range(1, MOST_STREAMS + 1)]
        return [
            Found(schedule, plan) for schedule in schedules if schedule is not None
            for plan in _plans(graph, schedule, arena_bytes, math.inf) if plan.arena_bytes <= arena_bytes and plan.streams
        ]  # fmt: skip

    source = Ways(graph, core, asked, choices)
    best = _refined(source, (*source.single(), *source.streams(arena_bytes)), found, lambda each: each.rank[1:])
    return None if best is None else best.plan


def _refined(
    source: Ways, start: Sequence[Way], search: Callable[[Sequence[Way]], list[Found]], key: Callable[[Found], tuple[float, ...]]
) -> Found | None:
    """The best that `search` finds among the ways of `start`, then with other strips in the streams found, until none is better."""
    ways = {(way.first, way.last, way.strips): way for way in start}
    best: Found | None = None
    for _ in range(ROUNDS):
        found = search(tuple(ways.values()))
        before, best = best, min((*found, *([best] if best else [])), key=key, default=None)
        if best is None or (before is not None and best.rank == before.rank):
            break
        for way in (way for each in found for way in each.schedule.ways):
            ways |= {(other.first, other.last, other.strips): other for other in source.near(way)}
    return best


def _smallest(graph: IntGraph, ways: Sequence[Way], steps: int, streams: int, most_cycles: float) -> Found:
    """The smallest of the plans with so many streams at most, for the smallest arena that is fast enough and for some above it."""
    low, high = 0, max(way.held_bytes + max(each.scratch_bytes for each in way.steps(2**31) or ()) for way in ways)
    while high - low > ARENA_ALIGN_BYTES:
        middle = (low + high) // 2
        schedule = _fastest(ways, steps, streams, middle)
        low, high = (low, middle) if schedule is not None and schedule.cycles <= most_cycles else (middle, high)
    found: list[Found] = []
    for attempt in range(COLLISIONS):
        room = high + attempt * high // 64
        schedule = _fastest(ways, steps, streams, room)
        found += () if schedule is None else [Found(schedule, plan) for plan in _plans(graph, schedule, room, most_cycles)]
        if found and min(each.plan.arena_bytes for each in found) <= room:
            break
    return min(found, key=lambda each: each.rank)


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
        price = way.cycles(arena_bytes)
        if price is None:
            continue
        more = int(way.pattern is not None)
        for used in range(streams + 1 - more):
            before, there = best[used][way.first], best[used + more][way.last + 1]
            cycles = 0.0 if before is None else before.cycles + price
            if before is not None and (there is None or cycles < there.cycles):
                best[used + more][way.last + 1] = Schedule((*before.ways, way), cycles)
    return min((found for each in best if (found := each[steps]) is not None), key=lambda found: found.cycles, default=None)
