"""An independent check of a memory plan: simulates the steps and watches every byte of the arena.

It shares no code with `memory`: it knows nothing of blocks or lifetimes, only which step reads and writes what.
"""

from __future__ import annotations

import numpy as np

from kqgen.errors import InternalError
from kqgen.intgraph import IntAdd, IntClamp, IntConv2d, IntNode
from kqgen.plan import ARENA_ALIGN_BYTES, Plan


def check(plan: Plan) -> None:
    """Raises InternalError when a step would read bytes that another tensor or scratch has overwritten, when an offset is
    unaligned or outside the arena, or when a step's output overlaps what it must not."""
    owner = np.full(plan.arena_bytes, -1, np.int64)
    number_of = {tensor.name: number for number, tensor in enumerate(plan.tensors)}
    scratch_owner = len(plan.tensors)
    for tensor in plan.graph.inputs:
        given = _tensor_range(plan, tensor.name)
        if given is not None and np.any(owner[given] >= 0):
            raise InternalError(f"input {tensor.name} shares bytes of the arena with another input")
        owner[given] = number_of[tensor.name]
    for number, (node, step) in enumerate(zip(plan.graph.nodes, plan.steps, strict=True)):
        if node.name != step.node:
            raise InternalError(f"step {number} runs {step.node}, the graph has {node.name} there")
        scratch = _range(plan, plan.scratch_offsets[number], step.scratch_bytes, f"scratch of {node.name}")
        owner[scratch] = scratch_owner
        written = _tensor_range(plan, node.output.name)
        for name in node.inputs:
            read = _tensor_range(plan, name)
            if read is not None and not np.all(owner[read] == number_of[name]):
                raise InternalError(f"step {number} ({node.name}) reads {name} after its bytes were reused")
            meets = read is not None and written is not None and read.start < written.stop and written.start < read.stop
            if meets and not (name in _overwritten(node) and read == written):
                raise InternalError(f"step {number} ({node.name}) would overwrite its input {name} while reading it")
        if isinstance(node, IntConv2d) and node.addend is not None and (written is None or written != _tensor_range(plan, node.inputs[1])):
            raise InternalError(f"step {number} ({node.name}) adds to {node.inputs[1]}, which does not lie where its output does")
        if written is not None:
            if written.start < scratch.stop and scratch.start < written.stop:
                raise InternalError(f"step {number} ({node.name}) writes over its own scratch")
            owner[written] = number_of[node.output.name]
    _check_caller_buffers(plan)


def _overwritten(node: IntNode) -> tuple[str, ...]:
    if isinstance(node, IntConv2d):
        return node.inputs[1:]
    return node.inputs if isinstance(node, IntAdd | IntClamp) else ()


def _range(plan: Plan, offset: int, size_bytes: int, what: str) -> slice:
    if offset % ARENA_ALIGN_BYTES or offset < 0 or offset + size_bytes > plan.arena_bytes:
        raise InternalError(f"{what} at {offset}..{offset + size_bytes} is unaligned or outside the arena of {plan.arena_bytes} bytes")
    return slice(offset, offset + size_bytes)


def _tensor_range(plan: Plan, name: str) -> slice | None:
    """The arena bytes of a tensor, None when it lies in a caller's buffer only."""
    place = plan.place(name)
    if place.kind == "output":
        return None
    return _range(plan, place.offset, plan.graph.tensor(name).size_bytes, name)


def _check_caller_buffers(plan: Plan) -> None:
    inputs = [plan.place(tensor.name) for tensor in plan.graph.inputs]
    outputs = [plan.place(name) for name in plan.graph.outputs]
    if [(place.kind, place.index) for place in inputs] != [("input", number) for number in range(len(inputs))]:
        raise InternalError("the plan numbers the inputs otherwise than the graph")
    if [(place.kind, place.index) for place in outputs] != [("output", number) for number in range(len(outputs))]:
        raise InternalError("the plan does not write an output to the caller's buffer")
