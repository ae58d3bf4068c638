"""Views of the runtime's parameters of layers that look up, multiply, place or compare values (SPEC 5.9 to 5.13, 8).

As in `views_params`: one dataclass a struct, every value checked against its C field, `template` names the template that writes it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from kqgen import fixed_tflite
from kqgen.intgraph import (
    IntArgMax,
    IntAssemble,
    IntGraph,
    IntLookup,
    IntMeanWindow,
    IntMul,
    IntNode,
    IntRescaledAdd,
    IntSoftmax,
    Part,
    QTensor,
)
from kqgen.views_text import flow, int32_literal, within

INT8, UINT8, UINT16, UINT32 = (-128, 127), (0, 255), (1, 65535), (0, 2**32 - 1)
COUNT = (1, 2**31 - 1)

FILL_FUNCTION = "kq_fill_s8"
"""The runtime's function that fills a map before parts are placed in it."""


@dataclass(frozen=True, slots=True)
class LookupParams:
    """`kq_lookup`; `table` is a C name."""

    template: str
    table: str
    count: int
    channels: int


@dataclass(frozen=True, slots=True)
class MulParams:
    """`kq_mul`."""

    template: str
    count: int
    count_b: int
    multiplier: int
    shift: int
    acc_shift: int
    zero_point_a: int
    zero_point_b: int
    zero_point: int
    lo: int
    hi: int


@dataclass(frozen=True, slots=True)
class PlaceRow:
    """One `kq_place`; `bias` is a C literal."""

    start: int
    row_step: int
    column_step: int
    multiplier: int
    bias: str
    h: int
    w: int
    c: int
    shift: int


@dataclass(frozen=True, slots=True)
class PlaceParams:
    """The `kq_place` of every part of an assembly, in an array."""

    template: str
    rows: tuple[PlaceRow, ...]


@dataclass(frozen=True, slots=True)
class SoftmaxParams:
    """`kq_softmax`; `exponentials` is a C name."""

    template: str
    exponentials: str
    positions: int
    channels: int
    count: int


@dataclass(frozen=True, slots=True)
class ArgMaxParams:
    """`kq_argmax`."""

    template: str
    positions: int
    channels: int


@dataclass(frozen=True, slots=True)
class RescaledAddParams:
    """`kq_rescaled_add`."""

    template: str
    count: int
    count_b: int
    multiplier_a: int
    multiplier_b: int
    multiplier: int
    shift_a: int
    shift_b: int
    shift: int
    minus: int
    zero_point_a: int
    zero_point_b: int
    zero_point: int
    lo: int
    hi: int


MapParams = LookupParams | MulParams | RescaledAddParams | PlaceParams | SoftmaxParams | ArgMaxParams


def table_name(node: IntNode, prefix: str) -> str:
    """The C name of a layer's table, whose own C name is `prefix`; empty for a layer without one."""
    match node:
        case IntLookup():
            return f"{prefix}_table"
        case IntSoftmax():
            return f"{prefix}_exponentials"
        case _:
            return ""


def map_params(graph: IntGraph, node: IntNode, prefix: str) -> MapParams | None:
    """The parameters of one layer whose C name is `prefix`; None for a kind of layer that has no place here.

    Raises: InternalError naming layer and field when a value does not fit the C field.
    """
    source = graph.tensor(node.inputs[0])
    match node:
        case IntLookup():
            channels = _fits(node, len(node.table), UINT16, "channels")
            return LookupParams("params/lookup.j2", table_name(node, prefix), _count(node, node.output), channels)
        case IntMul():
            return _mul(node, graph.tensor(node.inputs[1]))
        case IntRescaledAdd():
            return _rescaled_add(node, graph.tensor(node.inputs[1]))
        case IntAssemble():
            return PlaceParams("params/place.j2", tuple(_place(node, part, graph.tensor(node.inputs[part.source])) for part in node.parts))
        case IntSoftmax():
            channels = _fits(node, node.output.c, (1, 4095), "channels")
            count = _fits(node, node.exponentials.size, (1, 256), "exponentials")
            return SoftmaxParams("params/softmax.j2", table_name(node, prefix), node.output.h * node.output.w, channels, count)
        case IntArgMax():
            return ArgMaxParams("params/argmax.j2", node.output.h * node.output.w, _fits(node, source.c, (1, 256), "channels"))
        case _:
            return None


def function(node: IntNode) -> str:
    """The runtime's function of such a layer; empty for other kinds."""
    return _FUNCTIONS.get(type(node), "")


_FUNCTIONS: Mapping[type[IntNode], str] = {
    IntLookup: "kq_lookup_s8", IntMul: "kq_mul_s8", IntAssemble: "kq_place_s8", IntSoftmax: "kq_softmax_s8", IntArgMax: "kq_argmax_s8",
    IntRescaledAdd: "kq_rescaled_add_s8", IntMeanWindow: "kq_mean_window_s8",
}  # fmt: skip


def words(node: IntNode) -> str:
    """What such a layer does, in a few words; empty for other kinds."""
    match node:
        case IntLookup():
            return "lookup" if len(node.table) == 1 else "lookup by channel"
        case IntMul():
            return "multiply by channel" if node.broadcast else "multiply"
        case IntRescaledAdd():
            return ("subtract" if node.minus else "add") + (" by channel" if node.broadcast else "")
        case IntAssemble() if len(node.inputs) > 1:
            return f"join {len(node.inputs)} maps"
        case IntAssemble():
            rows, columns = node.parts[0].step
            how = "requantise" if len(node.parts) == 1 else "enlarge"
            return how if (rows, columns) == (1, 1) else f"{'spread' if node.fill is not None else 'enlarge'} {rows}x{columns}"
        case IntSoftmax():
            return "softmax"
        case IntArgMax():
            return "argmax"
        case _:
            return ""


def part_calls(node: IntAssemble, ident: str, sources: Sequence[str], target: str) -> tuple[str, ...]:
    """The lines that put a map together: it is filled where parts leave gaps, then a call a part.

    Args:
        ident: C name of the array of parameters.
        sources, target: C expressions of the inputs' places and of the output's.
    """
    lines: list[str] = []
    if node.fill is not None:
        lines += flow(f"{FILL_FUNCTION}(", [target, f"{node.output.size_bytes}u", str(node.fill)], ", ", ");", indent=4)
    for number, part in enumerate(node.parts):
        arguments = [f"&{ident}[{number}]", sources[part.source], target]
        lines += flow(f"{_FUNCTIONS[IntAssemble]}(", arguments, ", ", ");", indent=4)
    return tuple(lines)


def _mul(node: IntMul, b: QTensor) -> MulParams:
    twice = fixed_tflite.is_rule(node.acc_shift)
    return MulParams(
        template="params/mul.j2",
        count=_count(node, node.output),
        count_b=_count(node, b),
        multiplier=_fits(node, node.multiplier, (0, 2**31 - 1 if twice else 32767), "multiplier"),
        shift=_fits(node, node.shift, (1, 62 if twice else 22), "shift"),
        acc_shift=node.acc_shift if twice else _fits(node, node.acc_shift, (0, 15), "acc_shift"),
        zero_point_a=_fits(node, node.zero_point_a, INT8, "zero_point"),
        zero_point_b=_fits(node, node.zero_point_b, INT8, "zero_point"),
        zero_point=node.output.zero_point,
        lo=node.lo,
        hi=node.hi,
    )


def _rescaled_add(node: IntRescaledAdd, b: QTensor) -> RescaledAddParams:
    m_a, m_b, m = (_fits(node, each, (0, 2**31 - 1), "multiplier") for each in (node.multiplier_a, node.multiplier_b, node.multiplier))
    s_a, s_b, s = (_fits(node, each, (31, 62), "shift") for each in (node.shift_a, node.shift_b, node.shift))
    z_a, z_b = (_fits(node, each, INT8, "zero_point") for each in (node.zero_point_a, node.zero_point_b))
    count, count_b = _count(node, node.output), _count(node, b)
    return RescaledAddParams(
        "params/rescaled_add.j2", count, count_b, m_a, m_b, m, s_a, s_b, s, int(node.minus), z_a, z_b, node.output.zero_point,
        node.lo, node.hi,
    )  # fmt: skip


def _place(node: IntAssemble, part: Part, source: QTensor) -> PlaceRow:
    out = node.output
    row, column, channel = part.start
    # Channels apart by a step: every value is a column of one channel.
    w, c = (source.w, source.c) if part.channel_step == 1 else (source.w * source.c, 1)
    return PlaceRow(
        start=_fits(node, (row * out.w + column) * out.c + channel, UINT32, "start"),
        row_step=_fits(node, part.step[0] * out.w * out.c, UINT32, "step"),
        column_step=_fits(node, part.step[1] * out.c if part.channel_step == 1 else part.channel_step, UINT32, "step"),
        multiplier=_fits(node, part.multiplier, COUNT, "multiplier"),
        bias=int32_literal(part.bias),
        h=_fits(node, source.h, UINT16, "shape"),
        w=_fits(node, w, UINT16, "shape"),
        c=_fits(node, c, UINT16, "shape"),
        shift=_fits(node, part.shift, (0, 20), "shift"),
    )


def _count(node: IntNode, tensor: QTensor) -> int:
    return _fits(node, tensor.size_bytes, COUNT, "size of the map")


def _fits(node: IntNode, value: int, limits: tuple[int, int], field: str) -> int:
    return within(value, *limits, f"layer {node.name}: {field}")
