"""The memory plan: every tensor and every step's scratch gets a fixed place in one arena.

Inputs have a place in the arena too, which the caller may use: their bytes are free once the last layer has read them. Outputs lie
in the caller's buffers. An addition may write over an operand that nobody needs afterwards, a clamp over its input; a convolution
that adds must write over its second operand. Placement is first fit over several orders, the smallest arena wins; the order is
deterministic. `plan_check` verifies the result independently.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

from kqgen.intgraph import IntAdd, IntClamp, IntConv2d, IntGraph
from kqgen.plan import ARENA_ALIGN_BYTES, Place, PlacedTensor, Plan, Step

RANDOM_ORDERS = 200


@dataclass(frozen=True, slots=True)
class _Block:
    """A piece of the arena: tensors that share one place (in-place chains), or one step's scratch."""

    members: tuple[str, ...]
    size_bytes: int
    first: int
    last: int


def plan(graph: IntGraph, steps: Sequence[Step]) -> Plan:
    """Places for every tensor and scratch of `steps`."""
    last_use = _last_uses(graph)
    blocks = _tensor_blocks(graph, last_use)
    scratch = [
        _Block((f"scratch {number}",), step.scratch_bytes, number, number) for number, step in enumerate(steps) if step.scratch_bytes
    ]
    offsets = _place([*blocks, *scratch])
    by_tensor = {member: offsets[block] for block in blocks for member in block.members}
    tensors: list[PlacedTensor] = []
    for number, tensor in enumerate(graph.inputs):
        place = Place("input", index=number, offset=by_tensor[tensor.name])
        tensors.append(PlacedTensor(tensor.name, tensor.size_bytes, place, -1, last_use.get(tensor.name, -1)))
    for number, node in enumerate(graph.nodes):
        name = node.output.name
        place = Place("output", index=graph.outputs.index(name)) if name in graph.outputs else Place("arena", offset=by_tensor[name])
        last = len(steps) if name in graph.outputs else last_use.get(name, number)
        tensors.append(PlacedTensor(name, node.output.size_bytes, place, number, last))
    scratch_offsets = {block.first: offsets[block] for block in scratch}
    return Plan(
        graph=graph,
        steps=tuple(steps),
        tensors=tuple(tensors),
        scratch_offsets=tuple(scratch_offsets.get(number, 0) for number in range(len(steps))),
        arena_bytes=_align(max((offsets[block] + block.size_bytes for block in offsets), default=0)),
    )


def alive_bytes(graph: IntGraph) -> tuple[int, ...]:
    """Bytes of arena tensors that each step needs beside its scratch: what it reads, writes, or must leave for later steps."""
    blocks = _tensor_blocks(graph, _last_uses(graph))
    return tuple(
        sum(_align(block.size_bytes) for block in blocks if block.first <= number <= block.last) for number in range(len(graph.nodes))
    )


def _align(size_bytes: int) -> int:
    return -(-size_bytes // ARENA_ALIGN_BYTES) * ARENA_ALIGN_BYTES


def _last_uses(graph: IntGraph) -> dict[str, int]:
    return {name: number for number, node in enumerate(graph.nodes) for name in node.inputs}


def _tensor_blocks(graph: IntGraph, last_use: dict[str, int]) -> list[_Block]:
    """Arena tensors, those of an in-place step merged with the operand they overwrite."""
    blocks = {each.name: _Block((each.name,), each.size_bytes, -1, last_use.get(each.name, -1)) for each in graph.inputs}
    given = {each.name for each in graph.inputs}
    for number, node in enumerate(graph.nodes):
        name = node.output.name
        if name in graph.outputs:
            continue
        last = last_use.get(name, number)
        host = next((operand for operand in _overwritable(node) if operand in blocks.keys() - given and last_use[operand] == number), None)
        if host is None:
            blocks[name] = _Block((name,), node.output.size_bytes, number, last)
        else:
            old = blocks.pop(host)
            blocks[name] = replace(old, members=(*old.members, name), last=last)
    return list(blocks.values())


def _overwritable(node: object) -> tuple[str, ...]:
    """Operands whose place the output of `node` may take (SPEC 8: which functions allow it)."""
    if isinstance(node, IntConv2d) and node.addend is not None:
        return node.inputs[1:]
    return node.inputs if isinstance(node, IntAdd | IntClamp) else ()


def _place(blocks: Sequence[_Block]) -> dict[_Block, int]:
    """Offsets by first fit in the best of several orders; stops at the lower bound."""
    steps = range(-1, max((block.last for block in blocks), default=-1) + 1)
    bound = max((sum(_align(block.size_bytes) for block in blocks if block.first <= step <= block.last) for step in steps), default=0)
    orders = [
        sorted(blocks, key=lambda block: (-block.size_bytes, block.first, block.members)),
        sorted(blocks, key=lambda block: (block.first - block.last, -block.size_bytes, block.members)),
        sorted(blocks, key=lambda block: (block.first, -block.size_bytes, block.members)),
    ]
    shuffler = random.Random(0)  # noqa: S311 - orders to try, not secrets
    best: dict[_Block, int] = {}
    best_size = -1
    for attempt in range(len(orders) + RANDOM_ORDERS):
        order = orders[attempt] if attempt < len(orders) else shuffler.sample(list(blocks), len(blocks))
        offsets = _first_fit(order)
        size = max((offset + block.size_bytes for block, offset in offsets.items()), default=0)
        if best_size < 0 or size < best_size:
            best, best_size = offsets, size
        if _align(best_size) <= bound:
            break
    return best


def _first_fit(order: Sequence[_Block]) -> dict[_Block, int]:
    offsets: dict[_Block, int] = {}
    for block in order:
        busy = sorted(
            (offset, offset + _align(other.size_bytes))
            for other, offset in offsets.items()
            if other.first <= block.last and block.first <= other.last
        )
        offset = 0
        for start, end in busy:
            if offset + block.size_bytes <= start:
                break
            offset = max(offset, end)
        offsets[block] = offset
    return offsets
