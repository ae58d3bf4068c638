"""When the bytes of the arena hold something: blocks of tensors and scratch, cut into pieces with lives of their own.

Time counts in moments: a step takes one, a stream one for each of its jobs. A whole map that a stream reads or writes row by row
is many pieces, so that another map may take the place of rows that are not needed any more.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

from kqgen.intgraph import IntAdd, IntClamp, IntConv2d, IntGraph, IntLookup, IntMul, IntRescaledAdd, IntSoftmax
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
        return node.inputs if node.depthwise and same and node.dilation == (1, 1) and not streamed else ()
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


def arena_blocks(graph: IntGraph, patterns: Sequence[Pattern]) -> tuple[Block, ...]:
    """The blocks of all tensors in the arena, with the lives of their pieces."""
    times = timeline(len(graph.nodes), patterns)
    streamed = {number for each in patterns for number in range(each.first, each.last + 1)}
    return tuple(_living(graph, block, patterns, times) for block in tensor_blocks(graph, streamed))


def _living(graph: IntGraph, block: Block, patterns: Sequence[Pattern], times: Timeline) -> Block:
    tensor = graph.tensor(block.members[0])
    row_bytes = tensor.w * tensor.c
    line = next((each for each in patterns if block.members[0] in each.lines), None)
    if line is not None:
        touched = [moment for moment, *_ in _touches(graph, block, line, times)]
        size_bytes = line.lines[block.members[0]] * row_bytes
        return _whole(replace(block, size_bytes=size_bytes), min(touched), max(touched))
    firsts = [times.start(block.first)] * tensor.h
    lasts = [times.end(block.last)] * tensor.h
    for each in patterns:
        makes, ends = each.first <= block.first <= each.last, each.first <= block.last <= each.last
        if not (makes or ends):
            continue
        made: dict[int, int] = {}
        touched_last: dict[int, int] = {}
        for moment, row, end in _touches(graph, block, each, times):
            made |= {number: moment for number in range(row, end) if number not in made}
            touched_last |= dict.fromkeys(range(row, end), moment)
        for row in range(tensor.h):
            firsts[row] = made[row] if makes else firsts[row]
            lasts[row] = max(firsts[row], touched_last.get(row, times.start(each.first))) if ends else lasts[row]
    pieces: list[Piece] = []
    for row, (first, last) in enumerate(zip(firsts, lasts, strict=True)):
        if pieces and (pieces[-1].first, pieces[-1].last) == (first, last):
            pieces[-1] = replace(pieces[-1], end=(row + 1) * row_bytes)
        else:
            pieces.append(Piece(row * row_bytes, (row + 1) * row_bytes, first, last))
    return replace(block, first=min(firsts), last=max(lasts), pieces=tuple(pieces))


def _whole(block: Block, first: int, last: int) -> Block:
    return replace(block, first=first, last=last, pieces=(Piece(0, align(block.size_bytes), first, last),))


def scratch_block(steps: tuple[int, int], size_bytes: int, times: Timeline) -> Block:
    """The scratch of one step, or of a stream's first to last step."""
    first, last = steps
    return _whole(Block((f"scratch {first}",), size_bytes, first, last), times.start(first), times.end(last))


def _touches(graph: IntGraph, block: Block, stream: Pattern, times: Timeline) -> list[tuple[int, int, int]]:
    """When the jobs of a stream read or write rows of a block: (moment, first row, one past the last), slots as rows in whole maps."""
    found: list[tuple[int, int, int]] = []
    for moment, job in enumerate(stream.jobs, times.start(stream.first)):
        node = graph.nodes[job.step]
        if not job.moves and node.inputs[0] in block.members:
            found.append((moment, job.in_slot, job.in_slot + job.h_in))
        if node.output.name in block.members:
            found.append((moment, job.row, job.row + job.rows))
    return found


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
