"""The report of a compiled network: bits per weight, flash, RAM and work, per layer and in all (report.json).

Field names and nesting are what scripts rely on; `document` turns a report into the JSON of schema 1.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from kqgen import sizes, views_maps
from kqgen.board import Board
from kqgen.compare import layer_labels
from kqgen.errors import InternalError
from kqgen.intgraph import (
    IntAdd,
    IntArgMax,
    IntAssemble,
    IntAvgPool,
    IntClamp,
    IntConv2d,
    IntGraph,
    IntLookup,
    IntMaxPool,
    IntMeanWindow,
    IntMul,
    IntNode,
    IntRescaledAdd,
    IntSlicePad,
    IntSoftmax,
    KqWeights,
    Pair,
)
from kqgen.plan import PlacedTensor, Plan, Step
from kqgen.version import __version__

if TYPE_CHECKING:  # it brings torch, which a report can do without
    from kqgen.prune_record import Dead

SCHEMA = 1
GENERATOR = f"kqgen {__version__}"

IN_TABLES = {"json": False}
"""Metadata of a field that people's tables show and no JSON holds: scripts rely on the keys there are."""

ALIGNMENT_SLACK_BYTES = 64
"""Most bytes a linker may add between the tables of a few layers; more means that the predicted sizes are wrong."""

LAYER_SLACK_BYTES = 18
"""And between those of many, a layer with weights: for the M55 arrays are aligned to 8 bytes, so up to 7 before its biases and before its
parameters, which follow bytes, and 4 before its multipliers, which follow words."""


def grouped(value: float | None) -> str:
    """A number as people read it, in groups of three: 16 688; a dash for None."""
    return "-" if value is None else f"{value:,.0f}".replace(",", " ")


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
    """Arena (scratch and inputs inside), the caller's outputs, worst stack, and all of them; None when nothing was built."""

    arena: int
    output: int
    stack: int | None
    total: int | None


@dataclass(frozen=True, slots=True)
class CodebookReport:
    """One codebook: its stored codewords (of all stages), its packed size, and how many stages it has: 2 when it is additive."""

    name: str
    codewords: int
    flash_bytes: int
    stages: int = dataclasses.field(default=1, metadata=IN_TABLES)


@dataclass(frozen=True, slots=True)
class LayerReport:
    """One layer.

    Attributes:
        name: what `compare.layer_labels` calls it.
        weight_bits: stored in all, codebooks not counted.
        flash_bytes: weights, scales, biases and parameters; tables that layers share count at the first.
        title, output, weights: the operator, the shape of its output and the kind of its weights as people read them.
    """

    name: str
    op: str
    macs: int
    weight_bits: int
    bits_per_weight: float | None
    index_bits: int | None
    flash_bytes: int
    form: str
    reason: str
    title: str = dataclasses.field(metadata=IN_TABLES)
    output: str = dataclasses.field(metadata=IN_TABLES)
    weights: str = dataclasses.field(metadata=IN_TABLES)


@dataclass(frozen=True, slots=True)
class DeadReport:
    """What was removed because no output depends on it, and what the network was before.

    Attributes:
        layers, channels, weights: removed.
        of_weights: weights before.
        int8_tables_bytes: what the tables of the network as it is would take with every weight in 8 bits.
        padded_int8_tables_bytes: the same of the network before.
    """

    layers: int
    channels: int
    weights: int
    of_weights: int
    int8_tables_bytes: int
    padded_int8_tables_bytes: int


@dataclass(frozen=True, slots=True)
class Report:
    """Everything known about a compiled network.

    Attributes:
        dead: what was removed; None when nothing was looked for.
        fullest: the layer at which the arena is fullest.
        int8_tables_bytes: what the tables would take with every weight in 8 bits.
    """

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
    dead: DeadReport | None
    fullest: str = dataclasses.field(metadata=IN_TABLES)
    int8_tables_bytes: int = dataclasses.field(metadata=IN_TABLES)


def document(report: Any) -> dict[str, Any]:
    """The JSON of a report dataclass: schema first, tuples as lists, non-finite numbers as null, fields for people left out."""
    return {"schema": SCHEMA, **_plain(report)}


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        shown = [field.name for field in dataclasses.fields(value) if field.metadata.get("json", True)]
        return {name: _plain(getattr(value, name)) for name in shown}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
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


def build(plan: Plan, board: Board, measured: Measured | None, dead: Dead | None = None) -> Report:
    """The report of a plan, with the figures of a build when there is one, and of what was removed when that is known.

    Raises:
        InternalError: the build's tables are not as large as predicted.
    """
    graph = plan.graph
    tables = sizes.tables_bytes(graph) + sizes.jobs_bytes(plan)
    flash, stack = FlashBytes(tables, None, None), None
    if measured is not None:
        slack = measured.tables_bytes - tables
        convs = sum(isinstance(node, IntConv2d) for node in graph.nodes)
        if not 0 <= slack <= max(ALIGNMENT_SLACK_BYTES, LAYER_SLACK_BYTES * convs):
            raise InternalError(f"tables of {measured.tables_bytes} bytes were built where {tables} were planned")
        code = measured.code_bytes + slack
        flash, stack = FlashBytes(tables, code, tables + code), measured.stack_bytes
    outputs = sum(graph.tensor(name).size_bytes for name in graph.outputs)
    fixed_ram = plan.arena_bytes + outputs
    labels, stored = layer_labels(graph), sizes.layer_bytes(graph)
    rows = zip(graph.nodes, labels, plan.steps, strict=True)
    layers = tuple(_layer(node, label, step, graph, stored[node.name]) for node, label, step in rows)
    return Report(
        model=graph.name,
        generator=GENERATOR,
        toolchain=measured.toolchain if measured else None,
        board=board.name,
        weights=graph.compression,
        bits_per_weight=bits_per_weight(graph),
        flash_bytes=flash,
        ram_bytes=RamBytes(plan.arena_bytes, outputs, stack, None if stack is None else fixed_ram + stack),
        macs=sum(layer.macs for layer in layers),
        codebooks=tuple(CodebookReport(book.name, len(book.values), book.packed_bytes, book.stages) for book in graph.codebooks),
        layers=layers,
        fullest=labels[fullest_step(plan)],
        int8_tables_bytes=sizes.int8_tables_bytes(graph),
        dead=None if dead is None else _dead(dead, graph),
    )


def _dead(dead: Dead, graph: IntGraph) -> DeadReport:
    gone = dead.removed
    return DeadReport(
        gone.layers, gone.channels, gone.weights, dead.padded_weights, sizes.int8_tables_bytes(graph), dead.padded_int8_tables_bytes
    )


def fullest_step(plan: Plan) -> int:
    """The number of the first step at which the arena holds most, its scratch counted."""
    return max(range(len(plan.steps)), key=lambda number: (live_bytes(plan, number), -number))


def live_tensors(plan: Plan, number: int) -> tuple[PlacedTensor, ...]:
    """The tensors in the arena while step `number` runs; of two at one place (a result over its operand) the one made first."""
    places: dict[int, PlacedTensor] = {}
    for tensor in plan.tensors:
        if tensor.place.kind != "output" and tensor.first <= number <= tensor.last:
            places.setdefault(tensor.place.offset, tensor)
    return tuple(places.values())


def live_bytes(plan: Plan, number: int) -> int:
    """Bytes of the arena in use at a step, or, in a stream, at some of its moments; where two maps take turns they count once."""
    ranges = [(tensor.place.offset, tensor.size_bytes) for tensor in live_tensors(plan, number)]
    ranges.append((plan.scratch_offsets[number], plan.steps[number].scratch_bytes))
    used, reached = 0, 0
    for start, size_bytes in sorted(ranges):
        used += max(0, start + size_bytes - max(start, reached))
        reached = max(reached, start + size_bytes)
    return used


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
            added = "" if node.addend is None else " + add"
            kernel, stride, c_in = node.plain
            if node.dense:
                return f"dense {c_in}->{node.output.c}{added}"
            name = f"{'depthwise' if node.depthwise else 'conv'} {kernel[0]}x{kernel[1]}"
            return f"{name}{_stride(stride, (1, 1))} {c_in}->{node.output.c}{added}"
        case IntAvgPool() | IntMeanWindow() | IntMaxPool():
            kind = "max pool" if isinstance(node, IntMaxPool) else "avg pool"
            return f"{kind} {node.kernel[0]}x{node.kernel[1]}{_stride(node.stride, node.kernel)}"
        case IntAdd():
            return "add" if node.multiplier_b > 0 else "subtract"
        case IntRescaledAdd():
            return "add"
        case IntClamp():
            return "clamp"
        case IntSlicePad():
            return "slice, pad"
        case _:
            title = views_maps.words(node)
            if not title:
                raise InternalError(f"no title for {type(node).__name__}")
            return title


def _stride(stride: Pair, usual: Pair) -> str:
    """`/2`, or `/2x1` where rows and columns differ; nothing where it is the usual one."""
    if stride == usual:
        return ""
    return f"/{stride[0]}" if stride[0] == stride[1] else f"/{stride[0]}x{stride[1]}"


def _layer(node: IntNode, label: str, step: Step, graph: IntGraph, flash_bytes: int) -> LayerReport:
    out = node.output
    weight_bits, per_weight, index_bits, macs, reason, weights = 0, None, None, 0, step.form_reason, ""
    if isinstance(node, IntConv2d):
        weight_bits = 8 * node.weights.packed_bytes
        per_weight = weight_bits / node.weight_count
        macs = node.macs
        reason = f"{node.reason}; {step.form_reason}"
        if isinstance(node.weights, KqWeights):
            index_bits = node.weights.index_bits
            weights = f"KQ {graph.codebook(node.weights.codebook).index_text(index_bits)}"
        else:
            weights = f"int{node.weights.bits}"
    return LayerReport(
        name=label,
        op=_op_name(node),
        macs=macs,
        weight_bits=weight_bits,
        bits_per_weight=per_weight,
        index_bits=index_bits,
        flash_bytes=flash_bytes,
        form=step.form,
        reason=reason,
        title=op_title(node),
        output=f"{out.h}x{out.w}x{out.c}",
        weights=weights,
    )


def _op_name(node: IntNode) -> str:
    if isinstance(node, IntConv2d) and (node.dense or node.depthwise):
        return "dense" if node.dense else "depthwise_conv2d"
    return {
        IntConv2d: "conv2d", IntAdd: "add", IntAvgPool: "avg_pool", IntMaxPool: "max_pool", IntClamp: "clamp", IntSlicePad: "slice_pad",
        IntLookup: "lookup", IntMul: "mul", IntAssemble: "assemble", IntSoftmax: "softmax", IntArgMax: "argmax",
        IntRescaledAdd: "add", IntMeanWindow: "avg_pool",
    }[type(node)]  # fmt: skip
