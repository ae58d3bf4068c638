"""Views: everything the templates print, decided here: every name, number, C literal and sentence.

`model_view` turns a plan into one frozen `ModelView`; templates only lay it out. Nothing in it depends on machine, date or path.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from kqgen.board import Board
from kqgen.errors import InternalError
from kqgen.intgraph import IntConv2d, IntGraph, IntNode, KqWeights, QTensor
from kqgen.plan import ARENA_ALIGN_BYTES, Plan
from kqgen.shared_tables import shared_tables
from kqgen.sizes import STRUCT_BYTES, jobs_bytes, layer_bytes, tables_bytes
from kqgen.views_params import ADDEND
from kqgen.views_project import ProjectView, project_view
from kqgen.views_selftest import Golden, SelftestView, selftest_view
from kqgen.views_steps import ARENA, StepView, bits_per_weight_text, modules_text, op_text, shape_text, step_views, weights_text
from kqgen.views_stream import UnitView, unit_views
from kqgen.views_tables import TableGroupView, codebook_table, layer_tables, without_shared
from kqgen.views_text import aligned_rows, check_model_name, decimal, distinct, flow, thousands

RUNTIME_VERSION = 1
"""Version of SPEC.md and of runtime_c that the generated C is written for."""

DIGEST_DIGITS = 12

FUNCTIONS = ("run", "selftest", "tap")
"""What follows the model's name in its functions."""

TABLE_SUFFIXES = ("", "_indices", "_weights", "_bias", "_multiplier", "_shift", "_pad_values", f"_{ADDEND}", "_table", "_exponentials")
"""What may follow a layer's C name: nothing for its struct, else its tables."""

LATER_FIELDS = ("depthwise", "dilation", "channels_last", "channel_step")
"""Fields of the graph that count in its digest only where they say something: they came later than the first digests."""


@dataclass(frozen=True, slots=True)
class Meta:
    """Where the C comes from, for its banner.

    Attributes:
        generator: kqgen and its version.
        options: every option that shaped the network, as one line of canonical text free of paths.
    """

    generator: str
    options: str


@dataclass(frozen=True, slots=True)
class BufferView:
    """An input or output of the generated function.

    Attributes:
        name: the tensor's name in the graph.
        param: its parameter in C.
        macro: prefix of its macros.
        size_bytes, h, w, c, scale, zero_point: values of the macros; `scale` is a decimal without suffix.
        layout: its axes, `int8[32][32][3]`.
        real: the formula of the real number.
        offset: where in the arena an input may lie; empty for an output.
    """

    name: str
    param: str
    macro: str
    size_bytes: int
    h: int
    w: int
    c: int
    scale: str
    zero_point: int
    layout: str
    real: str
    offset: str


@dataclass(frozen=True, slots=True)
class StructView:
    """A runtime struct the model uses, and its size where pointers have 32 bits."""

    c_type: str
    size_bytes: int


@dataclass(frozen=True, slots=True)
class ModelView:
    """The one variable of the templates.

    Attributes:
        name: the model's C name; `macro`: the same in capitals.
        generator, graph_digest, options_digest: for the banner.
        buffers: the caller's, inputs first, each in order.
        prototype, definition: lines of the run function's declaration, and of the head of its definition.
        null_checks: lines of the condition under which a pointer is NULL, `if` and brace included.
        arena_bytes, arena_align: of the caller's arena.
        layout: lines of the header's comment on buffers and memory.
        example: lines of the C that calls the network.
        layers: lines of the header's table of layers.
        tables_text: bytes of all tables as a person reads them.
        uses_arena: whether any step reads or writes the arena.
        structs: the runtime structs it uses.
        runtime_version: that the C is written for.
        steps: in execution order; units: the same as steps by themselves and streams of several.
        groups: tables, codebooks first.
        selftest: golden vectors.
        project: build files and read-me.
    """

    name: str
    macro: str
    generator: str
    graph_digest: str
    options_digest: str
    buffers: tuple[BufferView, ...]
    prototype: tuple[str, ...]
    definition: tuple[str, ...]
    null_checks: tuple[str, ...]
    arena_bytes: int
    arena_align: int
    layout: tuple[str, ...]
    example: tuple[str, ...]
    layers: tuple[str, ...]
    tables_text: str
    uses_arena: bool
    structs: tuple[StructView, ...]
    runtime_version: int
    steps: tuple[StepView, ...]
    units: tuple[UnitView, ...]
    groups: tuple[TableGroupView, ...]
    selftest: SelftestView
    project: ProjectView


def model_view(plan: Plan, board: Board, golden: Golden, meta: Meta, runtime_files: Sequence[str]) -> ModelView:
    """The view of a planned network.

    Args:
        plan: what is generated.
        board: for the toolchain file and the read-me; the C is the same for every board.
        golden: vectors of the self-test.
        meta: for the banner.
        runtime_files: paths of the runtime's files inside the output folder.

    Raises:
        InputError: the graph's name cannot be used in C.
        InternalError: a value does not fit its C field, or plan, graph and golden vectors do not belong together.
    """
    graph = plan.graph
    check_model_name(graph.name)
    macro = graph.name.upper()
    inputs, outputs = buffer_views(graph, [plan.place(tensor.name).offset for tensor in graph.inputs])
    idents, codebooks = _idents(graph)
    shared = _shared_names(graph, idents)
    made = step_views(plan, idents, codebooks, _places(plan, inputs, outputs))
    steps = tuple(dataclasses.replace(step, params=_renamed(step.params, shared)) for step in made)
    pointers = ["arena", *(buffer.param for buffer in (*inputs, *outputs))]
    pointer_types = ["const int8_t *"] * len(inputs) + ["int8_t *"] * len(outputs)
    parameters = ["void *arena", *(c_type + param for c_type, param in zip(pointer_types, pointers[1:], strict=True))]
    structs = {step.c_type for step in steps} | ({"kq_rows"} if plan.streams else set())
    used = sorted(structs, key=list(STRUCT_BYTES).index)
    return ModelView(
        name=graph.name,
        macro=macro,
        generator=meta.generator,
        graph_digest=graph_digest(graph),
        options_digest=hashlib.sha256(meta.options.encode()).hexdigest()[:DIGEST_DIGITS],
        buffers=inputs + outputs,
        prototype=flow(f"kq_status {graph.name}_run(", parameters, ", ", ");"),
        definition=flow(f"KQGEN_CODE kq_status {graph.name}_run(", parameters, ", ", ")"),
        null_checks=flow("if (", [f"{pointer} == NULL" for pointer in pointers], " || ", ") {", indent=4),
        arena_bytes=plan.arena_bytes,
        arena_align=ARENA_ALIGN_BYTES,
        layout=_layout_lines(plan, inputs, outputs),
        example=_example_lines(graph.name, inputs, outputs),
        layers=_layer_lines(plan),
        tables_text=thousands(tables_bytes(graph) + jobs_bytes(plan)),
        uses_arena=any(place.kind == "arena" for place in (tensor.place for tensor in plan.tensors))
        or any(step.scratch_bytes for step in plan.steps),
        structs=tuple(StructView(name, STRUCT_BYTES[name]) for name in used),
        runtime_version=RUNTIME_VERSION,
        steps=steps,
        units=unit_views(plan, steps, _bases(plan, inputs, outputs)),
        groups=_groups(graph, idents, codebooks),
        selftest=selftest_view(plan, golden),
        project=project_view(graph, board, runtime_files),
    )


def graph_digest(graph: IntGraph) -> str:
    """The first hexadecimal digits of the SHA-256 over every number and name of an integer graph."""
    digest = hashlib.sha256()
    _feed(digest, graph)
    return digest.hexdigest()[:DIGEST_DIGITS]


def _feed(digest: Any, value: object) -> None:
    """Feeds a value of the graph in a form that tells types, lengths and field names apart."""
    if isinstance(value, np.ndarray):
        digest.update(f"array {value.dtype.newbyteorder('<').str} {value.shape} ".encode())
        digest.update(np.ascontiguousarray(value, dtype=value.dtype.newbyteorder("<")).tobytes())
    elif dataclasses.is_dataclass(value):
        digest.update(f"{type(value).__name__} ".encode())
        for field in dataclasses.fields(value):
            if field.name in LATER_FIELDS and getattr(value, field.name) == field.default:
                continue
            digest.update(f"{field.name} ".encode())
            _feed(digest, getattr(value, field.name))
    elif isinstance(value, tuple | frozenset):
        items = sorted(value) if isinstance(value, frozenset) else value
        digest.update(f"{len(items)} items ".encode())
        for item in items:
            _feed(digest, item)
    elif isinstance(value, float):
        digest.update(f"{value.hex()} ".encode())
    else:
        digest.update(f"{value!r} ".encode())


def buffer_views(graph: IntGraph, offsets: Sequence[int] | None = None) -> tuple[tuple[BufferView, ...], tuple[BufferView, ...]]:
    """The caller's buffers of a network: (inputs, outputs); `offsets` are the inputs' places in the arena where these are known."""
    macro = graph.name.upper()
    outputs = tuple(graph.tensor(name) for name in graph.outputs)
    texts = [""] * len(graph.inputs) if offsets is None else [str(offset) for offset in offsets]
    return _buffers(macro, "input", graph.inputs, texts), _buffers(macro, "output", outputs, [""] * len(outputs))


def _buffers(macro: str, direction: str, tensors: Sequence[QTensor], offsets: Sequence[str]) -> tuple[BufferView, ...]:
    single = len(tensors) == 1
    names = distinct([tensor.name for tensor in tensors])
    return tuple(
        BufferView(
            name=tensor.name,
            param=direction if single else f"{direction}_{name}",
            macro=f"{macro}_{direction.upper()}" + ("" if single else f"_{name.upper()}"),
            size_bytes=tensor.size_bytes,
            h=tensor.h,
            w=tensor.w,
            c=tensor.c,
            scale=decimal(tensor.scale),
            zero_point=tensor.zero_point,
            layout=f"int8[{tensor.c}]" if tensor.h == tensor.w == 1 else f"int8[{tensor.h}][{tensor.w}][{tensor.c}]",
            real=f"real = {decimal(tensor.scale)} * {_offset_text(tensor.zero_point)}",
            offset=offset,
        )
        for tensor, name, offset in zip(tensors, names, offsets, strict=True)
    )


def _offset_text(zero_point: int) -> str:
    if zero_point == 0:
        return "q"
    return f"(q - {zero_point})" if zero_point > 0 else f"(q + {-zero_point})"


def _idents(graph: IntGraph) -> tuple[dict[str, str], dict[str, str]]:
    """C names of layers and of codebooks, apart from one another, from all tables and from the functions of the same prefix."""
    layers = [node.name for node in graph.nodes]
    books = [codebook.name for codebook in graph.codebooks]
    layer_names = distinct(layers, FUNCTIONS, TABLE_SUFFIXES)
    book_names = distinct(books, (*FUNCTIONS, *(name + suffix for name in layer_names for suffix in TABLE_SUFFIXES)))
    return (
        {layer: f"{graph.name}_{name}" for layer, name in zip(layers, layer_names, strict=True)},
        {book: f"{graph.name}_{name}" for book, name in zip(books, book_names, strict=True)},
    )


def _places(plan: Plan, inputs: Sequence[BufferView], outputs: Sequence[BufferView]) -> dict[str, str]:
    """C expression of the place of every tensor."""
    places: dict[str, str] = {}
    for tensor in plan.tensors:
        match tensor.place.kind:
            case "input":
                places[tensor.name] = inputs[tensor.place.index].param
            case "output":
                places[tensor.name] = outputs[tensor.place.index].param
            case "arena":
                places[tensor.name] = f"{ARENA} + {tensor.place.offset}"
    missing = [node.output.name for node in plan.graph.nodes if node.output.name not in places]
    missing += [buffer.name for buffer in (*inputs, *outputs) if buffer.param not in places.values()]
    if missing:
        raise InternalError(f"the plan of {plan.graph.name} has no place for {missing[0]}")
    return places


def _bases(plan: Plan, inputs: Sequence[BufferView], outputs: Sequence[BufferView]) -> dict[str, str]:
    """C expression of the start of the buffer in which each tensor lies."""
    buffers = {"input": inputs, "output": outputs}
    places = {tensor.name: tensor.place for tensor in plan.tensors}
    return {name: ARENA if place.kind == "arena" else buffers[place.kind][place.index].param for name, place in places.items()}


def _layout_lines(plan: Plan, inputs: Sequence[BufferView], outputs: Sequence[BufferView]) -> tuple[str, ...]:
    """The header's lines on inputs, outputs, arena, tables and work, in columns."""
    graph, arena_bytes = plan.graph, plan.arena_bytes
    buffers = aligned_rows([(buffer.layout, buffer.real) for buffer in (*inputs, *outputs)])
    rows = [(buffer.param, text) for buffer, text in zip((*inputs, *outputs), buffers, strict=True)]
    rows.append(("arena", f"{thousands(arena_bytes)} bytes, {ARENA_ALIGN_BYTES}-byte aligned, yours; its contents need not survive a call"))
    rows.append(("", "An input may lie in it at its _OFFSET, and is overwritten there, or anywhere outside it, and is kept."))
    rows.append(("tables", f"{thousands(tables_bytes(graph) + jobs_bytes(plan))} bytes of constants, where pointers have 32 bits"))
    macs = sum(node.macs for node in graph.nodes if isinstance(node, IntConv2d))
    rows.append(("work", f"{thousands(macs)} multiply-accumulates a call"))
    rows += [
        ("", f"PyTorch flattens {buffer.param} in the order channel, row, column; here it stays {buffer.layout}.")
        for buffer in outputs
        if buffer.name in graph.flattened - graph.channels_last and buffer.h * buffer.w > 1
    ]
    return aligned_rows(rows)


def _example_lines(name: str, inputs: Sequence[BufferView], outputs: Sequence[BufferView]) -> tuple[str, ...]:
    """C that declares the buffers and calls the network once."""
    macro = name.upper()
    arguments = ["arena", *(buffer.param for buffer in (*inputs, *outputs))]
    return (
        f"static _Alignas({macro}_ARENA_ALIGN) uint8_t arena[{macro}_ARENA_BYTES];",
        *(f"int8_t *const {buffer.param} = (int8_t *)arena + {buffer.macro}_OFFSET;" for buffer in inputs),
        *(f"static int8_t {buffer.param}[{buffer.macro}_BYTES];" for buffer in outputs),
        *flow(f"kq_status status = {name}_run(", arguments, ", ", ");", indent=7),
    )


def _layer_lines(plan: Plan) -> tuple[str, ...]:
    """The header's table of layers: one line a step, codebooks below, and the total."""
    head = ("step", "layer", "operation", "output", "weights", "bits/w", "form", "bytes")
    rows = [head]
    stored_bytes = layer_bytes(plan.graph)
    for number, node in enumerate(plan.graph.nodes):
        size = thousands(stored_bytes[node.name])
        stored = (weights_text(plan.graph, node), bits_per_weight_text(node))
        rows.append((str(number), node.name, op_text(node), shape_text(node.output), *stored, plan.form_text(number), size))
    for codebook in plan.graph.codebooks:
        stages = "2 x " if codebook.additive else ""
        text = f"codebook, {stages}{codebook.codewords} of {codebook.values.shape[1]}x{codebook.values.shape[2]}"
        rows.append(("", codebook.name, text, "", "6-bit", "", "", thousands(codebook.packed_bytes)))
    for stream in plan.streams:
        steps = f"steps {stream.first} to {stream.last}, {len(stream.jobs)} jobs"
        rows.append(("", "rows in turn", steps, "", "", "", "", thousands(STRUCT_BYTES["kq_rows"] * len(stream.jobs))))
    rows.append(("", "total", "", "", "", "", "", thousands(tables_bytes(plan.graph) + jobs_bytes(plan))))
    return aligned_rows(rows, right=(0, 5, 7))


def _groups(graph: IntGraph, idents: Mapping[str, str], codebooks: Mapping[str, str]) -> tuple[TableGroupView, ...]:
    """All tables: codebooks, then layers in order."""
    books = tuple(codebook_table(codebooks[book.name], book, _users(graph, book.name)) for book in graph.codebooks)
    layers = (layer_tables(graph, idents[node.name], node, modules_text(node)) for node in graph.nodes)
    shared = _shared_names(graph, idents)
    return books + tuple(without_shared(group, shared) for group in layers if group is not None)


def _shared_names(graph: IntGraph, idents: Mapping[str, str]) -> dict[str, str]:
    """C names of tables that are stored with another layer, and the names that they have there."""
    return {f"{idents[each.layer]}_{each.field}": f"{idents[each.owner]}_{each.field}" for each in shared_tables(graph)}


def _renamed(value: Any, names: Mapping[str, str]) -> Any:
    """The parameters of a layer with other names of tables."""
    if isinstance(value, str):
        return names.get(value, value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.replace(value, **{each.name: _renamed(getattr(value, each.name), names) for each in dataclasses.fields(value)})
    return tuple(_renamed(each, names) for each in value) if isinstance(value, tuple) else value


def _users(graph: IntGraph, codebook: str) -> str:
    def uses(node: IntNode) -> bool:
        return isinstance(node, IntConv2d) and isinstance(node.weights, KqWeights) and node.weights.codebook == codebook

    return ", ".join(node.name for node in graph.nodes if uses(node))
