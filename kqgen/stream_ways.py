"""The ways to run a network's steps: each by itself, or several as a stream in strips of so many rows, with their prices.

Every job decodes its layer's weights again, so few tall strips are fast and many low ones small.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache

from kqgen import forms, memory, stream_jobs
from kqgen.board import Core
from kqgen.conv_shape import Candidate, ConvShape, conv_shape
from kqgen.intgraph import IntConv2d, IntGraph
from kqgen.lifetimes import arena_blocks, chains
from kqgen.plan import Form, Step
from kqgen.schedule import Choice, step
from kqgen.stream_jobs import Pattern

STRIPS = (1, 2, 3, 4, 6, 8, 12, 16)
"""Rows of a stream's last step that are tried; the steps before it take as many more as their maps are higher."""

LONGEST = 12
"""Steps of a stream, at most."""

MOST_JOBS = 1000
"""Of a stream: 12 bytes of flash each."""


@dataclass(frozen=True, slots=True)
class Way:
    """Some steps, and one manner of running them.

    Attributes:
        first, last: numbers of the steps.
        strips: rows that each step of a stream makes at a time; empty for a single step that runs by itself.
        pattern: of a stream.
        held_bytes: what the arena holds beside their scratch.
        choices: their forms, one each.
        prices: of each step with weights, scratch rising and cycles falling: those of its candidates.
    """

    first: int
    last: int
    strips: tuple[int, ...]
    pattern: Pattern | None
    held_bytes: int
    choices: tuple[Choice, ...]
    prices: tuple[tuple[tuple[int, ...], tuple[float, ...]], ...]

    def cycles(self, arena_bytes: int) -> float | None:
        """The cycles of the fastest steps that an arena of that size has room for; None when there are none."""
        room, total = arena_bytes - self.held_bytes, 0.0
        if room < 0:
            return None
        for scratch, cycles in self.prices:
            at = bisect_right(scratch, room)
            if at == 0:
                return None
            total += cycles[at - 1]
        return total

    def steps(self, arena_bytes: int) -> tuple[Step, ...] | None:
        """The fastest steps that an arena of that size has room for; None when there are none."""
        made = tuple(step(choice, arena_bytes - self.held_bytes) for choice in self.choices)
        return made if self.held_bytes + max(each.scratch_bytes for each in made) <= arena_bytes else None


def _way(first: int, strips: tuple[int, ...], pattern: Pattern | None, held_bytes: int, choices: tuple[Choice, ...]) -> Way:
    priced = [choice.candidates for choice in choices if choice.candidates]
    prices = tuple((tuple(each.scratch_bytes for each in some), tuple(each.cycles for each in some)) for some in priced)
    return Way(first, first + len(choices) - 1, strips, pattern, held_bytes, choices, prices)


class Ways:
    """Finds the ways of one network on one core.

    Args:
        asked: forms given instead of chosen, by layer.
        choices: of all steps, when each runs by itself.
    """

    def __init__(self, graph: IntGraph, core: Core, asked: Mapping[str, Form], choices: Sequence[Choice]) -> None:
        self._graph, self._choices = graph, choices
        self._prices = _Prices(graph, core, asked)
        self._tensors = chains(graph)
        self._alive = memory.alive_bytes(graph)
        self._heights = [node.output.h for node in graph.nodes]
        self._whole = [self._whole_bytes(number) for number in range(len(graph.nodes))]
        self._stream = cache(self._made)

    def _whole_bytes(self, number: int) -> tuple[int, int]:
        """What a stream that begins, and one that ends, with a step holds at least: the map that it reads, or makes, as a whole."""
        node = self._graph.nodes[number]
        made = 0 if node.name in self._graph.outputs else node.output.size_bytes
        return self._graph.tensor(node.inputs[0]).size_bytes, made

    def single(self) -> Iterator[Way]:
        """Every step by itself."""
        for number, choice in enumerate(self._choices):
            yield _way(number, (), None, self._alive[number], (choice,))

    def streams(self, most_bytes: int | None = None) -> Iterator[Way]:
        """Every stream that holds less than `most_bytes`; if that is None, less than its fullest step by itself, where no step that cannot
        be part of a stream takes more."""
        rows = [stream_jobs.window(self._graph, node) is not None for node in self._graph.nodes]
        least = [held + min((each.scratch_bytes for each in choice.candidates), default=0)
                 for held, choice in zip(self._alive, self._choices, strict=True)]  # fmt: skip
        spans = [
            (first, last) for first in range(len(rows)) for last in range(first + 1, min(len(rows), first + LONGEST))
            if all(rows[first : last + 1])
        ]  # fmt: skip
        floor = self._floor(least, spans)
        for first, last in spans:
            fullest = max(least[first : last + 1]) if most_bytes is None else most_bytes
            if (most_bytes is not None or fullest > floor) and max(self._whole[first][0], self._whole[last][1]) < fullest:
                yield from self._strips(first, last, fullest)

    def _floor(self, least: Sequence[int], spans: Sequence[tuple[int, int]]) -> int:
        """Bytes that no arena goes below: each step takes its least by itself, or what a stream that it is part of holds at least."""
        found = list(least)
        for first, last in spans:
            held = max(self._whole[first][0], self._whole[last][1])
            found[first : last + 1] = [min(size, held) for size in found[first : last + 1]]
        return max(found, default=0)

    def _strips(self, first: int, last: int, fullest: int) -> Iterator[Way]:
        """The streams of steps `first` to `last`, in several strips."""
        heights = self._heights[first : last + 1]
        for rows in STRIPS:
            if rows >= heights[-1]:
                return
            strips = tuple(max(1, round(rows * height / heights[-1])) for height in heights)
            if sum(-(-height // strip) for height, strip in zip(heights, strips, strict=True)) > MOST_JOBS:
                continue
            way = self._stream(first, strips)
            if way is None or way.held_bytes >= fullest:
                return
            if way.pattern is not None and len(way.pattern.jobs) <= MOST_JOBS:
                yield way

    def near(self, way: Way) -> Iterator[Way]:
        """Streams of the same steps in which one of them has other strips."""
        for position, rows in enumerate(way.strips):
            for other in sorted({rows * 2, rows + 1, rows - 1, rows // 2} - {0}):
                strips = (*way.strips[:position], min(other, self._heights[way.first + position]), *way.strips[position + 1 :])
                found = self._stream(way.first, strips)
                if found is not None and found.pattern is not None and len(found.pattern.jobs) <= MOST_JOBS:
                    yield found

    def _made(self, first: int, strips: tuple[int, ...]) -> Way | None:
        """A stream; None where its steps cannot run so."""
        pattern = stream_jobs.pattern(self._graph, self._tensors, first, strips)
        if pattern is None:
            return None
        held = memory.packed_bytes(arena_blocks(self._graph, (pattern,), pattern), first, first + len(pattern.jobs) - 1)
        return _way(first, strips, pattern, held, self._prices.choices(pattern))


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
            offered = self._candidates(number, job)
            same = offered.get(_key(candidate))
            scratch = max(scratch, same.scratch_bytes if same else 0)
            # A low job's best candidates tell what it costs to begin at all: to decode and transform the layer's kernels.
            own = (each.cycles for each in offered.values() if each.function == candidate.function)
            least = max(candidate.cycles * job[2] / tallest[2], min(own, default=0.0))
            cycles += jobs.count(job) * (same.cycles if same else least)
        return replace(candidate, scratch_bytes=scratch, cycles=cycles)

    def _whole(self, number: int) -> ConvShape | None:
        node = self._graph.nodes[number]
        return conv_shape(self._graph, node) if isinstance(node, IntConv2d) else None

    def _of_rows(self, number: int, job: tuple[int, int, int]) -> Mapping[tuple[str, str, int, int], Candidate]:
        """Every candidate of a job (pad_top, h_in, rows), by what makes it."""
        shape = self._shape(number)
        if shape is None:
            return {}
        pad_top, h_in, rows = job
        bottom = max(0, (rows - 1) * shape.stride[0] + shape.kernel[0] - pad_top - h_in)
        part = replace(shape, h_in=h_in, h_out=rows, padding=(pad_top, bottom, *shape.padding[2:]))
        name, asked = forms.engine_core(self._core), self._asked.get(self._graph.nodes[number].name)
        return {_key(each): each for engine in forms.ENGINES for each in engine(part, name) if asked in (None, each.form)}


def _key(candidate: Candidate) -> tuple[str, str, int, int]:
    return candidate.form, candidate.function, candidate.tile, candidate.strip


def _cost(candidate: Candidate) -> tuple[int, float]:
    return candidate.scratch_bytes, candidate.cycles
