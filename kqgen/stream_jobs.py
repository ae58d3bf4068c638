"""Streams: consecutive layers run some rows at a time, so that of the maps between them only a few rows lie in RAM (SPEC 6.8).

`pattern` gives the order of the pieces and the rows that each buffer must hold; where buffers lie is decided by `memory`.
A tensor that only the stream makes and reads lies in a *line*, a buffer of a few rows, at whose front the rows still needed
are moved when it is full; all others are whole maps.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from kqgen.intgraph import IntAvgPool, IntConv2d, IntGraph, IntMaxPool, IntMeanWindow, IntNode

LARGEST_ROWS = 255
"""Of a job, as its record holds them."""


@dataclass(frozen=True, slots=True)
class Window:
    """How the rows of a layer's output cover those of its input: row y reads `kernel` rows from y * stride - pad_top on."""

    kernel: int
    stride: int
    pad_top: int
    h_in: int
    h_out: int

    def first(self, row: int) -> int:
        """The first input row that output rows from `row` on read; h_in when there are none."""
        return self.h_in if row >= self.h_out else min(self.h_in, max(0, row * self.stride - self.pad_top))

    def end(self, row: int) -> int:
        """One past the last input row that output rows below `row` read."""
        return 0 if row <= 0 else max(0, min(self.h_in, (row - 1) * self.stride - self.pad_top + self.kernel))

    def ready(self, rows: int) -> int:
        """The output rows that can be made once `rows` rows of the input are there."""
        return self.h_out if rows >= self.h_in else min(self.h_out, max(0, (rows + self.pad_top - self.kernel) // self.stride + 1))

    def beyond(self, row: int) -> int:
        """The output rows to be made until no input row below `row` is read any more."""
        return min(self.h_out, max(0, -(-(row + self.pad_top) // self.stride)))


@dataclass(frozen=True, slots=True)
class RowJob:
    """A job before its buffers have places: `in_slot` and `out_slot` count rows from the start of a buffer. Else as `plan.Job`."""

    step: int
    moves: bool
    row: int
    rows: int
    in_slot: int
    out_slot: int
    pad_top: int
    h_in: int


@dataclass(frozen=True, slots=True)
class Pattern:
    """A stream before its buffers have places.

    Attributes:
        first, last: numbers of its steps.
        jobs: in order.
        lines: rows of the line in which a tensor lies, by the tensor's name; tensors of an in-place chain share one.
    """

    first: int
    last: int
    jobs: tuple[RowJob, ...]
    lines: Mapping[str, int]


def window(graph: IntGraph, node: IntNode) -> Window | None:
    """The rows that a layer reads; None when it cannot be cut into rows."""
    if not isinstance(node, IntConv2d | IntAvgPool | IntMaxPool | IntMeanWindow):
        return None
    if node.output.h < 2 or (isinstance(node, IntConv2d) and (node.dense or node.dilation != (1, 1))):
        return None
    return Window(node.kernel[0], node.stride[0], node.padding[0], graph.tensor(node.inputs[0]).h, node.output.h)


def pattern(graph: IntGraph, chains: Mapping[str, str], first: int, strips: Sequence[int]) -> Pattern | None:
    """The stream of the steps from `first` on that makes a strip of rows of each in turn.

    Args:
        chains: the first tensor of the chain that shares one place with a tensor, for every tensor made by a step.
        strips: rows made at a time at most, a number for each step; a step makes no more than those behind it need next.

    Returns: None when a step cannot be cut into rows, or a window lies in the padding alone.
    """
    windows = {first + number: window(graph, graph.nodes[first + number]) for number in range(len(strips))}
    known = {number: found for number, found in windows.items() if found is not None}
    if len(known) != len(strips):
        return None
    return _Maker(graph, chains, known, dict(zip(known, strips, strict=True))).pattern()


class _Maker:
    """Runs a stream on rows alone."""

    def __init__(self, graph: IntGraph, chains: Mapping[str, str], windows: Mapping[int, Window], strips: Mapping[int, int]) -> None:
        self._windows, self._strips = windows, strips
        self._first, self._last = min(windows), max(windows)
        self._makers = {graph.nodes[number].name: number for number in windows}
        self._names = {number: graph.nodes[number].name for number in windows}
        self._maps = {number: graph.nodes[number].inputs[0] for number in windows}
        self._addends = {number: graph.nodes[number].inputs[1] for number in windows if len(graph.nodes[number].inputs) > 1}
        self._chains = chains
        self._lines = self._line_tensors(graph)
        self._done = dict.fromkeys(windows, 0)

    def _line_tensors(self, graph: IntGraph) -> dict[str, str]:
        """The line, named by its chain's first tensor, of every tensor that lies in one."""
        outside = {name for number, node in enumerate(graph.nodes) if number not in self._windows for name in node.inputs}
        whole = {self._chains[name] for name in (*outside, *graph.outputs) if name in self._chains}
        whole |= {self._chains[name] for name in self._chains if name not in self._makers}
        return {name: self._chains[name] for name in self._makers if self._chains[name] not in whole}

    def pattern(self) -> Pattern | None:
        rows = self._rows()
        for step, row, end in rows:
            h_in = self._windows[step].end(end) - self._windows[step].first(row)
            if h_in <= 0 or max(h_in, end - row) > LARGEST_ROWS:
                return None
        capacity = dict.fromkeys(self._lines.values(), 0)
        self._done = dict.fromkeys(self._windows, 0)
        for step, row, end in rows:
            line = self._lines.get(self._names[step])
            if line == self._names[step]:
                capacity[line] = max(capacity[line], end - min(row, self._lowest(line)))
            self._done[step] = end
        jobs = self._jobs(rows, capacity)
        return Pattern(self._first, self._last, tuple(jobs), {name: capacity[line] for name, line in self._lines.items()})

    def _rows(self) -> tuple[tuple[int, int, int], ...]:
        """Which rows each step makes in turn: (step, first row, one past the last)."""
        self._done = dict.fromkeys(self._windows, 0)
        self._made: list[tuple[int, int, int]] = []
        for step in (self._last, *self._windows):
            self._pull(step, self._windows[step].h_out)
        return tuple(self._made)

    def _pull(self, step: int, rows: int) -> None:
        """Makes `rows` rows of a step, a strip at a time, and before each strip what it needs of the steps before."""
        own, strip = self._windows[step], self._strips[step]
        while self._done[step] < rows:
            end = min(rows, self._done[step] + strip)
            self._pull_tensor(self._maps[step], own.end(end))
            addend = self._addends.get(step)
            if addend is not None:
                self._pull_tensor(addend, end)
                for reader, name in self._maps.items():
                    if name == addend and reader != step:  # what is overwritten must have been read before
                        self._pull(reader, self._windows[reader].beyond(end))
            if self._done[step] < end:
                self._make(step, end)

    def _pull_tensor(self, tensor: str, rows: int) -> None:
        maker = self._makers.get(tensor)
        if maker is not None:
            self._pull(maker, rows)

    def _make(self, step: int, end: int) -> None:
        """Notes that a step makes its rows up to `end`, and then those of the steps behind it that write whole maps.

        Rows of a whole map have their place already; made early, they let those they are made from go.
        """
        self._made.append((step, self._done[step], end))
        self._done[step] = end
        whole = end == self._windows[step].h_out
        for reader, name in self._maps.items():
            if name == self._names[step] and reader not in self._addends and self._names[reader] not in self._lines:
                ready = self._windows[reader].ready(end)
                while ready - self._done[reader] >= (1 if whole else self._strips[reader]):
                    self._make(reader, min(ready, self._done[reader] + self._strips[reader]))
        if step == self._last:
            read = {*self._maps.values(), *self._addends.values()}
            for other, own in self._windows.items():
                if other != step and self._names[other] not in read:
                    self._pull(other, end * own.h_out // self._windows[step].h_out)

    def _lowest(self, line: str) -> int:
        """The lowest row of a line that is still to be read."""
        rows = [self._windows[step].first(self._done[step]) for step, name in self._maps.items() if self._lines.get(name) == line]
        rows += [self._done[step] for step, name in self._addends.items() if self._lines.get(name) == line]
        return min(rows)

    def _jobs(self, rows: Sequence[tuple[int, int, int]], capacity: Mapping[str, int]) -> list[RowJob]:
        """The jobs with lines of `capacity` rows."""
        jobs: list[RowJob] = []
        base = dict.fromkeys(self._lines.values(), 0)
        self._done = dict.fromkeys(self._windows, 0)
        for step, row, end in rows:
            name = self._names[step]
            line = self._lines.get(name)
            if line == name and end - base[line] > capacity[line]:
                kept = min(row, self._lowest(line))
                if kept < row:
                    jobs.append(RowJob(step, True, kept, row - kept, kept - base[line], 0, 0, 0))
                base[line] = kept
            own = self._windows[step]
            start = own.first(row)
            read = self._lines.get(self._maps[step])
            jobs.append(
                RowJob(
                    step, False, row, end - row, start - (base[read] if read else 0), row - (base[line] if line else 0),
                    max(0, own.pad_top - row * own.stride), own.end(end) - start,
                )
            )  # fmt: skip
            self._done[step] = end
        return jobs
