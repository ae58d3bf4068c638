"""An independent check of a memory plan: simulates the steps and watches every byte of the arena.

It shares no code with `memory`, `lifetimes` or `stream_jobs`: it knows nothing of blocks, lifetimes or lines, only which step or job
reads and writes what. Of every byte it knows the tensor it belongs to and its position in that tensor.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from kqgen.errors import InternalError
from kqgen.intgraph import (
    IntAdd,
    IntAvgPool,
    IntClamp,
    IntConv2d,
    IntLookup,
    IntMaxPool,
    IntMeanWindow,
    IntMul,
    IntNode,
    IntRescaledAdd,
    IntSoftmax,
)
from kqgen.plan import ARENA_ALIGN_BYTES, Job, Plan, Stream

NOBODY = -1


@dataclass(frozen=True, slots=True, eq=False)
class _Memory:
    """A buffer, byte by byte: the number of the tensor it belongs to, and the byte of that tensor it holds."""

    owner: npt.NDArray[np.int64]
    at: npt.NDArray[np.int64]

    def holds(self, where: slice, tensor: int, first: int) -> bool:
        """Whether `where` holds the bytes of a tensor from its byte `first` on."""
        return bool(np.all(self.owner[where] == tensor) and np.array_equal(self.at[where], first + np.arange(where.stop - where.start)))

    def put(self, where: slice, tensor: int, first: int = 0) -> None:
        """Writes the bytes of a tensor from its byte `first` on."""
        self.owner[where] = tensor
        self.at[where] = first + np.arange(where.stop - where.start)

    def move(self, source: slice, target: slice) -> None:
        """Copies bytes."""
        self.owner[target] = self.owner[source].copy()
        self.at[target] = self.at[source].copy()


def _memory(size_bytes: int) -> _Memory:
    return _Memory(np.full(size_bytes, NOBODY, np.int64), np.zeros(size_bytes, np.int64))


@dataclass(frozen=True, slots=True, eq=False)
class _Machine:
    """The arena and the caller's outputs while a plan runs."""

    plan: Plan
    arena: _Memory
    outputs: tuple[_Memory, ...]
    numbers: dict[str, int]

    def memory(self, tensor: str) -> _Memory:
        """Where a tensor lies."""
        place = self.plan.place(tensor)
        return self.outputs[place.index] if place.kind == "output" else self.arena

    def range(self, tensor: str) -> slice:
        """The bytes of a whole tensor in its memory."""
        place, size_bytes = self.plan.place(tensor), self.plan.graph.tensor(tensor).size_bytes
        if place.kind == "output":
            return slice(0, size_bytes)
        return _range(self.plan, place.offset, size_bytes, tensor)


def check(plan: Plan) -> None:
    """Raises InternalError when a step or job would read bytes that another tensor or scratch has overwritten, when an offset is
    unaligned or outside the arena, when what is written overlaps what it must not, or when a stream does not make every row once."""
    graph = plan.graph
    outputs = tuple(_memory(graph.tensor(name).size_bytes) for name in graph.outputs)
    numbers = {tensor.name: number for number, tensor in enumerate(plan.tensors)}
    _check_caller_buffers(plan)
    machine = _Machine(plan, _memory(plan.arena_bytes), outputs, numbers)
    for tensor in graph.inputs:
        given = machine.range(tensor.name)
        if np.any(machine.arena.owner[given] != NOBODY):
            raise InternalError(f"input {tensor.name} shares bytes of the arena with another input")
        machine.arena.put(given, numbers[tensor.name])
    for number, (node, step) in enumerate(zip(graph.nodes, plan.steps, strict=True)):
        if node.name != step.node:
            raise InternalError(f"step {number} runs {step.node}, the graph has {node.name} there")
        stream = plan.stream(number)
        if stream is None:
            _run_step(machine, number, node)
        elif number == stream.first:
            _run_stream(machine, stream)


def _run_step(machine: _Machine, number: int, node: IntNode) -> None:
    plan = machine.plan
    scratch = _take_scratch(machine, number, node)
    written, target = machine.range(node.output.name), machine.memory(node.output.name)
    for name in node.inputs:
        read, source = machine.range(name), machine.memory(name)
        if not source.holds(read, machine.numbers[name], 0):
            raise InternalError(f"step {number} ({node.name}) reads {name} after its bytes were reused")
        meets = source is target and _meet(read, written)
        if meets and not (name in _overwritten(node) and read == written):
            raise InternalError(f"step {number} ({node.name}) would overwrite its input {name} while reading it")
    if isinstance(node, IntConv2d) and node.addend is not None:
        addend = node.inputs[1]
        if plan.place(node.output.name).kind != "arena" or machine.range(addend) != written:
            raise InternalError(f"step {number} ({node.name}) adds to {addend}, which does not lie where its output does")
    if target is machine.arena and _meet(written, scratch):
        raise InternalError(f"step {number} ({node.name}) writes over its own scratch")
    target.put(written, machine.numbers[node.output.name])


def _run_stream(machine: _Machine, stream: Stream) -> None:
    nodes = machine.plan.graph.nodes
    made = dict.fromkeys(range(stream.first, stream.last + 1), 0)
    for job in stream.jobs:
        if job.step not in made:
            raise InternalError(f"a stream of steps {stream.first} to {stream.last} has a job of step {job.step}")
        node = nodes[job.step]
        if job.moves:
            _move_rows(machine, job, node)
            continue
        if job.row != made[job.step] or job.rows < 1:
            raise InternalError(f"a job of {node.name} makes rows from {job.row} on after {made[job.step]} rows were made")
        made[job.step] += job.rows
        _run_job(machine, job, node)
    for step, rows in made.items():
        if rows != nodes[step].output.h:
            raise InternalError(f"the jobs of {nodes[step].name} make {rows} rows of {nodes[step].output.h}")


def _run_job(machine: _Machine, job: Job, node: IntNode) -> None:
    plan = machine.plan
    scratch = _take_scratch(machine, job.step, node)
    first = _first_row(plan, job, node)
    name = node.inputs[0]
    source, target = machine.memory(name), machine.memory(node.output.name)
    row_bytes, made_bytes = _row_bytes(plan, name), _row_bytes(plan, node.output.name)
    given = plan.place(name).offset if plan.place(name).kind == "input" else 0
    read = _inside(machine, name, given + job.input, job.h_in * row_bytes, node)
    written = _inside(machine, node.output.name, job.output, job.rows * made_bytes, node)
    if not source.holds(read, machine.numbers[name], first * row_bytes):
        rows = f"rows {first} to {first + job.h_in} of {name}"
        raise InternalError(f"a job of {node.name} from row {job.row} on reads other bytes than {rows}")
    if source is target and _meet(read, written):
        raise InternalError(f"a job of {node.name} would overwrite its input {name} while reading it")
    if target is machine.arena and _meet(written, scratch):
        raise InternalError(f"a job of {node.name} writes over its own scratch")
    if len(node.inputs) > 1 and not target.holds(written, machine.numbers[node.inputs[1]], job.row * made_bytes):
        raise InternalError(f"a job of {node.name} from row {job.row} on does not find the rows of {node.inputs[1]} that it adds to")
    target.put(written, machine.numbers[node.output.name], job.row * made_bytes)


def _first_row(plan: Plan, job: Job, node: IntNode) -> int:
    """The row of the input at which a job's window begins, when every tap falls on the same row or padding as in the whole map."""
    if not isinstance(node, IntConv2d | IntAvgPool | IntMaxPool | IntMeanWindow):
        raise InternalError(f"step {job.step} ({node.name}) cannot run some rows at a time")
    height, stride, pad_top = plan.graph.tensor(node.inputs[0]).h, node.stride[0], node.padding[0]
    first = max(0, job.row * stride - pad_top)
    for row in range(job.row, job.row + job.rows):
        for tap in range(node.kernel[0]):
            whole = row * stride - pad_top + tap
            part = (row - job.row) * stride - job.pad_top + tap
            if (0 <= whole < height) != (0 <= part < job.h_in) or (0 <= whole < height and whole != first + part):
                raise InternalError(f"a job of {node.name} from row {job.row} on reads row {part} of its window for row {whole}")
    return first


def _move_rows(machine: _Machine, job: Job, node: IntNode) -> None:
    if machine.plan.place(node.output.name).kind != "arena" or not job.output < job.input:
        raise InternalError(f"rows of {node.name} are moved from {job.input} to {job.output}, not to a lower place in the arena")
    size_bytes = job.rows * _row_bytes(machine.plan, node.output.name)
    source, target = (_inside(machine, node.output.name, start, size_bytes, node) for start in (job.input, job.output))
    machine.arena.move(source, target)


def _take_scratch(machine: _Machine, number: int, node: IntNode) -> slice:
    plan = machine.plan
    scratch = _range(plan, plan.scratch_offsets[number], plan.steps[number].scratch_bytes, f"scratch of {node.name}")
    machine.arena.owner[scratch] = NOBODY
    return scratch


def _row_bytes(plan: Plan, tensor: str) -> int:
    found = plan.graph.tensor(tensor)
    return found.w * found.c


def _meet(a: slice, b: slice) -> bool:
    return bool(a.start < b.stop and b.start < a.stop)


def _inside(machine: _Machine, tensor: str, offset: int, size_bytes: int, node: IntNode) -> slice:
    """Bytes that must lie inside the buffer that the plan gives to a tensor, and that inside its memory."""
    placed = machine.plan.tensors[machine.numbers[tensor]]
    start, room = (0 if placed.place.kind == "output" else placed.place.offset), len(machine.memory(tensor).owner)
    if offset < start or offset + size_bytes > min(room, start + placed.size_bytes):
        reach = f"{offset}..{offset + size_bytes}"
        raise InternalError(f"a job of {node.name} reaches {reach}, outside {tensor} at {start}..{start + placed.size_bytes}")
    return slice(offset, offset + size_bytes)


def _overwritten(node: IntNode) -> tuple[str, ...]:
    if isinstance(node, IntConv2d):
        alike = node.in_shape == (node.output.h, node.output.w, node.output.c) and {*node.stride, *node.dilation} == {1}
        return node.inputs if node.depthwise and alike and node.addend is None else node.inputs[1:]
    if isinstance(node, IntMul | IntRescaledAdd) and node.broadcast:
        return node.inputs[:1]
    return node.inputs if isinstance(node, IntAdd | IntClamp | IntLookup | IntMul | IntRescaledAdd | IntSoftmax) else ()


def _range(plan: Plan, offset: int, size_bytes: int, what: str) -> slice:
    if offset % ARENA_ALIGN_BYTES or offset < 0 or offset + size_bytes > plan.arena_bytes:
        raise InternalError(f"{what} at {offset}..{offset + size_bytes} is unaligned or outside the arena of {plan.arena_bytes} bytes")
    return slice(offset, offset + size_bytes)


def _check_caller_buffers(plan: Plan) -> None:
    inputs = [plan.place(tensor.name) for tensor in plan.graph.inputs]
    outputs = [plan.place(name) for name in plan.graph.outputs]
    if [(place.kind, place.index) for place in inputs] != [("input", number) for number in range(len(inputs))]:
        raise InternalError("the plan numbers the inputs otherwise than the graph")
    if [(place.kind, place.index) for place in outputs] != [("output", number) for number in range(len(outputs))]:
        raise InternalError("the plan does not write an output to the caller's buffer")
