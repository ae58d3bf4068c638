"""When the bytes of the arena hold something: blocks of tensors and scratch, cut into pieces with lives of their own.

Time counts in moments: a step takes one, a stream one for each of its jobs. A whole map that a stream reads or writes row by row
is many pieces, so that another map may take the place of rows that are not needed any more.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from kqgen.intgraph import IntAdd, IntClamp, IntConv2d, IntGraph, IntLookup, IntMul, IntRescaledAdd, IntSoftmax, QTensor
from kqgen.plan import ARENA_ALIGN_BYTES
from kqgen.stream_jobs import Pattern


@dataclass(frozen=True, slots=True)
class Piece:
    """Bytes `start` to `end` of a block, and the first and last moment at which they must be kept."""

    start: int
    end: int
    first: int
    last: int


@dataclass(frozen=True, slots=True)
class Block:
    """A piece of the arena: tensors that share one place (in-place chains), or scratch.

    Attributes:
        members: names of the tensors, in the order they are made.
        size_bytes: its size.
        first, last: numbers of steps, then, with `pieces`, moments.
        pieces: without gaps, in order.
    """

    members: tuple[str, ...]
    size_bytes: int
    first: int
    last: int
    pieces: tuple[Piece, ...] = ()


def align(size_bytes: int) -> int:
    """The next multiple of the arena's alignment."""
    return -(-size_bytes // ARENA_ALIGN_BYTES) * ARENA_ALIGN_BYTES


def last_uses(graph: IntGraph) -> dict[str, int]:
    """The last step that reads a tensor, by name."""
    return {name: number for number, node in enumerate(graph.nodes) for name in node.inputs}


def tensor_blocks(graph: IntGraph, streamed: Collection[int] = ()) -> tuple[Block, ...]:
    """Arena tensors, those of an in-place step merged with the operand they overwrite; times are numbers of steps.

    `streamed` steps run some rows at a time: no window of theirs may be overwritten.
    """
    last_use = last_uses(graph)
    blocks = {each.name: Block((each.name,), each.size_bytes, -1, last_use.get(each.name, -1)) for each in graph.inputs}
    given = {each.name for each in graph.inputs}
    for number, node in enumerate(graph.nodes):
        name = node.output.name
        if name in graph.outputs:
            continue
        last = last_use.get(name, number)
        operands = (each for each in _overwritable(node, number in streamed) if each in blocks.keys() - given and last_use[each] == number)
        host = next(operands, None)
        if host is None:
            blocks[name] = Block((name,), node.output.size_bytes, number, last)
        else:
            old = blocks.pop(host)
            blocks[name] = replace(old, members=(*old.members, name), last=last)
    return tuple(blocks.values())


def chains(graph: IntGraph) -> dict[str, str]:
    """For every tensor made by a step the first one of the chain that shares its place when all steps run as streams."""
    made = {node.output.name: node.output.name for node in graph.nodes}
    blocks = tensor_blocks(graph, range(len(graph.nodes)))
    return made | {name: block.members[0] for block in blocks for name in block.members}


def _overwritable(node: object, streamed: bool) -> tuple[str, ...]:
    """Operands whose place the output of `node` may take (SPEC 8: which functions allow it)."""
    if isinstance(node, IntConv2d) and node.addend is not None:
        return node.inputs[1:]
    if isinstance(node, IntConv2d):
        same = node.in_shape == (node.output.h, node.output.w, node.output.c)
        plain = node.depthwise and node.stride == node.dilation == (1, 1)
        return node.inputs if plain and same and not streamed else ()
    if isinstance(node, IntMul | IntRescaledAdd) and node.broadcast:
        return node.inputs[:1]
    return node.inputs if isinstance(node, IntAdd | IntClamp | IntLookup | IntMul | IntRescaledAdd | IntSoftmax) else ()


@dataclass(frozen=True, slots=True)
class Timeline:
    """The first and the last moment of each step; steps of one stream have the same."""

    starts: tuple[int, ...]
    ends: tuple[int, ...]

    def start(self, step: int) -> int:
        """The first moment of a step, -1 before all of them, one past the last moment behind them."""
        return -1 if step < 0 else self.starts[step] if step < len(self.starts) else self.ends[-1] + 1

    def end(self, step: int) -> int:
        """The last moment of a step; as `start` outside."""
        return self.start(step) if not 0 <= step < len(self.ends) else self.ends[step]


def timeline(steps: int, patterns: Sequence[Pattern]) -> Timeline:
    """The moments of a schedule with these streams."""
    starts: list[int] = []
    ends: list[int] = []
    moment = 0
    within = {number: each for each in patterns for number in range(each.first, each.last + 1)}
    for number in range(steps):
        stream = within.get(number)
        length = 1 if stream is None else len(stream.jobs)
        starts.append(moment)
        ends.append(moment + length - 1)
        if stream is None or number == stream.last:
            moment += length
    return Timeline(tuple(starts), tuple(ends))


def arena_blocks(graph: IntGraph, patterns: Sequence[Pattern], near: Pattern | None = None) -> tuple[Block, ...]:
    """The blocks of all tensors in the arena, or of those kept during the stream `near`, with the lives of their pieces."""
    times = timeline(len(graph.nodes), patterns)
    streamed = {number for each in patterns for number in range(each.first, each.last + 1)}
    sizes = {tensor.name: tensor for tensor in (*graph.inputs, *(node.output for node in graph.nodes))}
    touches = [_touches(graph, each, times) for each in patterns]
    return tuple(
        _living(sizes[block.members[0]], block, patterns, touches, times)
        for block in tensor_blocks(graph, streamed)
        if near is None or (block.first <= near.last and block.last >= near.first)
    )


def _living(tensor: QTensor, block: Block, patterns: Sequence[Pattern], touches: Sequence[_Touches], times: Timeline) -> Block:
    row_bytes = tensor.w * tensor.c
    line = next((number for number, each in enumerate(patterns) if block.members[0] in each.lines), None)
    if line is not None:
        touched = [touch.moment for touch in _of_block(touches[line], block)]
        size_bytes = patterns[line].lines[block.members[0]] * row_bytes
        return _whole(replace(block, size_bytes=size_bytes), min(touched), max(touched))
    firsts = [times.start(block.first)] * tensor.h
    lasts = [times.end(block.last)] * tensor.h
    within = False
    for number, each in enumerate(patterns):
        makes, ends = each.first <= block.first <= each.last, each.first <= block.last <= each.last
        if not (makes or ends):
            continue
        within = True
        made: dict[int, int] = {}
        touched_last: dict[int, int] = {}
        for touch in _of_block(touches[number], block):
            for row in range(touch.row, touch.end):
                made.setdefault(row, touch.moment)
                touched_last[row] = touch.moment
        for row in range(tensor.h):
            firsts[row] = made[row] if makes else firsts[row]
            lasts[row] = max(firsts[row], touched_last.get(row, times.start(each.first))) if ends else lasts[row]
    lives = list(zip(firsts, lasts, strict=True))
    starts = [row for row in range(tensor.h) if row == 0 or lives[row] != lives[row - 1]] if within else [0]
    pieces = tuple(
        Piece(start * row_bytes, end * row_bytes, *lives[start]) for start, end in zip(starts, [*starts[1:], tensor.h], strict=True)
    )
    return replace(block, first=min(firsts), last=max(lasts), pieces=pieces)


def _whole(block: Block, first: int, last: int) -> Block:
    return replace(block, first=first, last=last, pieces=(Piece(0, align(block.size_bytes), first, last),))


def scratch_block(steps: tuple[int, int], size_bytes: int, times: Timeline) -> Block:
    """The scratch of one step, or of a stream's first to last step."""
    first, last = steps
    return _whole(Block((f"scratch {first}",), size_bytes, first, last), times.start(first), times.end(last))


class _Touch(NamedTuple):
    """A job that reads or writes rows of a tensor: its moment, whether it writes, the first row and one past the last."""

    moment: int
    writes: bool
    row: int
    end: int


_Touches = Mapping[str, Sequence[_Touch]]
"""By tensor, in order; slots are rows in whole maps."""


def _touches(graph: IntGraph, stream: Pattern, times: Timeline) -> _Touches:
    """When the jobs of a stream read or write the rows of each tensor."""
    found: dict[str, list[_Touch]] = {}
    for moment, job in enumerate(stream.jobs, times.start(stream.first)):
        node = graph.nodes[job.step]
        if not job.moves:
            found.setdefault(node.inputs[0], []).append(_Touch(moment, False, job.in_slot, job.in_slot + job.h_in))
        found.setdefault(node.output.name, []).append(_Touch(moment, True, job.row, job.row + job.rows))
    return found


def _of_block(touches: _Touches, block: Block) -> list[_Touch]:
    """The touches of all tensors of a block, in order."""
    return sorted(touch for name in block.members for touch in touches.get(name, ()))


def peak_bytes(blocks: Sequence[Block], first: int, last: int) -> int:
    """The most bytes that are kept at one of the moments `first` to `last`."""
    change = [0] * (last - first + 2)
    for piece in (piece for block in blocks for piece in block.pieces):
        if piece.first <= last and piece.last >= first:
            change[max(piece.first, first) - first] += piece.end - piece.start
            change[min(piece.last, last) - first + 1] -= piece.end - piece.start
    most = held = 0
    for each in change:
        held += each
        most = max(most, held)
    return most
