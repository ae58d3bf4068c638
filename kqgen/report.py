"""The report of a compiled network: bits per weight, flash, RAM and work, per layer and in all (report.json).

Field names and nesting are what scripts rely on; `document` turns a report into the JSON of schema 1.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

from kqgen import sizes
from kqgen.board import Board
from kqgen.errors import CapacityError, InternalError
from kqgen.intgraph import IntAdd, IntAvgPool, IntClamp, IntConv2d, IntGraph, IntMaxPool, IntNode, IntSlicePad, KqWeights
from kqgen.plan import Plan, Step
from kqgen.version import __version__

SCHEMA = 1
GENERATOR = f"kqgen {__version__}"

ALIGNMENT_SLACK_BYTES = 64
"""Most bytes a linker may add between tables; more means that the predicted sizes are wrong."""


@dataclass(frozen=True, slots=True)
class BitsPerWeight:
    """Stored bits a weight, codebooks and padding counted, scales and biases not: indexed layers, all convolutions, all layers."""

    kq: float | None
    conv: float | None
    all: float | None


@dataclass(frozen=True, slots=True)
class FlashBytes:
    """Constants, code of model and runtime (with alignment), and both; None when nothing was built."""

    tables: int
    code: int | None
    total: int | None


@dataclass(frozen=True, slots=True)
class RamBytes:
    """Arena (scratch inside), caller's buffers, worst stack, and all of them; None when nothing was built."""

    arena: int
    input: int
    output: int
    stack: int | None
    total: int | None


@dataclass(frozen=True, slots=True)
class CodebookReport:
    """One codebook: its stored codewords and packed size."""

    name: str
    codewords: int
    flash_bytes: int


@dataclass(frozen=True, slots=True)
class LayerReport:
    """One layer. `weight_bits` is the total stored, `flash_bytes` weights, scales, biases and parameters."""

    name: str
    path: str
    op: str
    shape: str
    output: str
    macs: int
    weight_bits: int
    bits_per_weight: float | None
    index_bits: int | None
    flash_bytes: int
    form: str
    reason: str


@dataclass(frozen=True, slots=True)
class Report:
    """Everything known about a compiled network."""

    model: str
    generator: str
    toolchain: str | None
    board: str
    weights: str
    bits_per_weight: BitsPerWeight
    flash_bytes: FlashBytes
    ram_bytes: RamBytes
    macs: int
    codebooks: tuple[CodebookReport, ...]
    layers: tuple[LayerReport, ...]


def document(report: Any) -> dict[str, Any]:
    """The JSON of a report dataclass: schema first, tuples as lists, non-finite numbers as null."""
    plain = {"schema": SCHEMA, **dataclasses.asdict(report)}
    cleaned = _finite(plain)
    assert isinstance(cleaned, dict)
    return cleaned


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


@dataclass(frozen=True, slots=True)
class Measured:
    """What only a build can tell.

    Attributes:
        toolchain: compiler and version.
        code_bytes: of model and runtime.
        tables_bytes: constants as linked, alignment included.
        stack_bytes: worst path over the call graph.
    """

    toolchain: str
    code_bytes: int
    tables_bytes: int
    stack_bytes: int


def build(plan: Plan, board: Board, measured: Measured | None) -> Report:
    """The report of a plan, with the figures of a build when there is one.

    Raises:
        InternalError: the build's tables are not as large as predicted.
    """
    graph = plan.graph
    tables = sizes.tables_bytes(graph)
    flash, stack = FlashBytes(tables, None, None), None
    if measured is not None:
        slack = measured.tables_bytes - tables
        if not 0 <= slack <= ALIGNMENT_SLACK_BYTES:
            raise InternalError(f"tables of {measured.tables_bytes} bytes were built where {tables} were planned")
        code = measured.code_bytes + slack
        flash, stack = FlashBytes(tables, code, tables + code), measured.stack_bytes
    inputs = sum(tensor.size_bytes for tensor in graph.inputs)
    outputs = sum(graph.tensor(name).size_bytes for name in graph.outputs)
    fixed_ram = plan.arena_bytes + inputs + outputs
    layers = tuple(_layer(node, step) for node, step in zip(graph.nodes, plan.steps, strict=True))
    return Report(
        model=graph.name,
        generator=GENERATOR,
        toolchain=measured.toolchain if measured else None,
        board=board.name,
        weights=graph.compression,
        bits_per_weight=bits_per_weight(graph),
        flash_bytes=flash,
        ram_bytes=RamBytes(plan.arena_bytes, inputs, outputs, stack, None if stack is None else fixed_ram + stack),
        macs=sum(layer.macs for layer in layers),
        codebooks=tuple(CodebookReport(book.name, book.codewords, book.packed_bytes) for book in graph.codebooks),
        layers=layers,
    )


def bits_per_weight(graph: IntGraph) -> BitsPerWeight:
    """Stored bits over weights; a network without such layers gives None."""
    books = 8 * sum(codebook.packed_bytes for codebook in graph.codebooks)
    convs = [node for node in graph.nodes if isinstance(node, IntConv2d)]

    def ratio(nodes: list[IntConv2d]) -> float | None:
        weights = sum(node.weight_count for node in nodes)
        return (8 * sum(node.weights.packed_bytes for node in nodes) + books) / weights if weights else None

    return BitsPerWeight(
        kq=ratio([node for node in convs if isinstance(node.weights, KqWeights)]),
        conv=ratio([node for node in convs if not node.dense]),
        all=ratio(convs),
    )


def op_title(node: IntNode) -> str:
    """The operator as a person writes it: `conv 3x3/2 16->32`."""
    match node:
        case IntConv2d():
            name = "dense" if node.dense else f"conv {node.kernel[0]}x{node.kernel[1]}"
            stride = "" if node.stride == (1, 1) else f"/{node.stride[0]}" if node.stride[0] == node.stride[1] else f"/{node.stride}"
            return f"{name}{stride} {node.in_shape[2]}->{node.output.c}"
        case IntAvgPool() | IntMaxPool():
            kind = "avg pool" if isinstance(node, IntAvgPool) else "max pool"
            return f"{kind} {node.kernel[0]}x{node.kernel[1]}"
        case IntAdd():
            return "add"
        case IntClamp():
            return "clamp"
        case IntSlicePad():
            return "slice, pad"
        case _:
            raise InternalError(f"no title for {type(node).__name__}")


def _layer(node: IntNode, step: Step) -> LayerReport:
    out = node.output
    weight_bits, per_weight, index_bits, macs, reason = 0, None, None, 0, step.form_reason
    if isinstance(node, IntConv2d):
        weight_bits = 8 * node.weights.packed_bytes
        per_weight = weight_bits / node.weight_count
        macs = node.macs
        reason = f"{node.reason}; {step.form_reason}"
        if isinstance(node.weights, KqWeights):
            index_bits = node.weights.index_bits
    return LayerReport(
        name=node.name,
        path=node.path,
        op="dense" if isinstance(node, IntConv2d) and node.dense else _op_name(node),
        shape=op_title(node),
        output=f"{out.h}x{out.w}x{out.c}",
        macs=macs,
        weight_bits=weight_bits,
        bits_per_weight=per_weight,
        index_bits=index_bits,
        flash_bytes=sizes.layer_sizes(node).total,
        form=step.form,
        reason=reason,
    )


def _op_name(node: IntNode) -> str:
    return {
        IntConv2d: "conv2d", IntAdd: "add", IntAvgPool: "avg_pool", IntMaxPool: "max_pool", IntClamp: "clamp", IntSlicePad: "slice_pad",
    }[type(node)]  # fmt: skip


def check_capacity(plan: Plan, board: Board, report: Report) -> None:
    """Refuses a network that the board cannot hold, with what takes the room.

    Counts what is known: before a build that is tables, arena and buffers; after it code and stack too.

    Raises:
        CapacityError: more flash or RAM is needed than the board has beside what it keeps for the user's code.
    """
    if board.core.is_host:
        return
    flash, ram = report.flash_bytes, report.ram_bytes
    needs = (
        ("flash", flash.total or flash.tables, board.flash.size_bytes, board.reserve_flash_bytes),
        ("RAM", ram.total or ram.arena + ram.input + ram.output, board.ram.size_bytes, board.reserve_ram_bytes),
    )
    short = [(kind, need, size, kept) for kind, need, size, kept in needs if need > size - kept]
    if not short:
        return
    lines = [
        f"{kind} {_bytes(need)} needed, {_bytes(size - kept)} usable of {_bytes(size)} ({_bytes(kept)} kept for your code, {board.where})"
        for kind, need, size, kept in short
    ]
    raise CapacityError(
        f"{report.model} does not fit {board.name}: {'; '.join(lines)}",
        found="\n" + room_table(plan, report),
        wanted=f"at most {_bytes(board.flash.size_bytes - board.reserve_flash_bytes)} of flash and "
        f"{_bytes(board.ram.size_bytes - board.reserve_ram_bytes)} of RAM",
        do="fewer codewords, a smaller input or network, or a larger board: `kqgen boards` lists them",
    )


def _bytes(size: int) -> str:
    return f"{size:,} bytes".replace(",", " ")


def room_table(plan: Plan, report: Report) -> str:
    """What takes the room: the arena at its fullest step, and the largest tables, a line each."""
    rows: list[tuple[str, int]] = []
    fullest = max(range(len(plan.steps)), key=lambda number: _live_bytes(plan, number))
    step = plan.steps[fullest]
    rows.append((f"RAM    arena, fullest at step {step.node}", plan.arena_bytes))
    rows += [
        (f"RAM      {tensor.name} ({'x'.join(str(side) for side in _sides(plan, tensor.name))})", tensor.size_bytes)
        for tensor in plan.tensors
        if tensor.place.kind == "arena" and tensor.first <= fullest <= tensor.last
    ]
    if step.scratch_bytes:
        rows.append((f"RAM      scratch of {step.node} ({step.form})", step.scratch_bytes))
    rows.append(("RAM    input and output", report.ram_bytes.input + report.ram_bytes.output))
    if report.ram_bytes.stack is not None:
        rows.append(("RAM    stack", report.ram_bytes.stack))
    rows.append(("flash  tables", report.flash_bytes.tables))
    largest = sorted(report.layers, key=lambda layer: -layer.flash_bytes)[:3]
    rows += [(f"flash    {layer.name} ({layer.shape})", layer.flash_bytes) for layer in largest]
    rows += [(f"flash    {codebook.name}", codebook.flash_bytes) for codebook in report.codebooks]
    if report.flash_bytes.code is not None:
        rows.append(("flash  code", report.flash_bytes.code))
    width = max(len(label) for label, _ in rows)
    return "\n".join(f"    {label:<{width}}  {size:>10,}".replace(",", " ") for label, size in rows)


def _live_bytes(plan: Plan, number: int) -> int:
    live = sum(t.size_bytes for t in plan.tensors if t.place.kind == "arena" and t.first <= number <= t.last)
    return live + plan.steps[number].scratch_bytes


def _sides(plan: Plan, name: str) -> tuple[int, int, int]:
    tensor = plan.graph.tensor(name)
    return tensor.h, tensor.w, tensor.c
