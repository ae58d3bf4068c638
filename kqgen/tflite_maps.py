"""Operators of int8 .tflite files without weights as integer nodes (SPEC 5.3 to 5.15)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType

import numpy as np

from kqgen import nodes_tflite, oracle_maps, oracle_tflite, tables_tflite
from kqgen.intgraph import Int8, IntAssemble, IntMaxPool, IntNode, IntSlicePad, IntSoftmax, Part, QTensor, frozen
from kqgen.lower_maps import exponentials
from kqgen.nodes_tflite import Place
from kqgen.tflite_site import Site
from kqgen.tflite_window import padding_of, slice_bounds

_STEEPEST = 1e6
"""Steps of a softmax's input, at most: one of 32 is certainty already."""


def _sum(site: Site) -> tuple[IntNode, ...]:
    return (_rescaled_sum(site, minus=False),)


def _difference(site: Site) -> tuple[IntNode, ...]:
    return (_rescaled_sum(site, minus=True),)


def _rescaled_sum(site: Site, *, minus: bool) -> IntNode:
    if site.is_constant(0) or site.is_constant(1):
        return _with_constant(site, lambda place: nodes_tflite.add(place, minus=minus))
    output = site.output()
    left, right, swapped = _broadcast(site, output)
    if swapped and minus:
        raise site.refuse("a vector minus a map", wanted="a map minus a vector")
    return nodes_tflite.add(site.place(output, left, right), minus=minus)


def _product(site: Site) -> tuple[IntNode, ...]:
    if site.is_constant(0) or site.is_constant(1):
        return (_with_constant(site, nodes_tflite.multiply),)
    output = site.output()
    left, right, _ = _broadcast(site, output)
    return (nodes_tflite.multiply(site.place(output, left, right)),)


def _broadcast(site: Site, output: QTensor) -> tuple[QTensor, QTensor, bool]:
    """The operands, the map first, and whether they were exchanged."""
    left, right = site.source(0), site.source(1)
    whole, row = _sides(output), (1, 1, output.c)
    shapes = [_sides(each) for each in (left, right)]
    if shapes[0] == whole and shapes[1] in (whole, row):
        return left, right, False
    if shapes[1] == whole and shapes[0] == row:
        return right, left, True
    raise site.refuse(f"operands {shapes[0]} and {shapes[1]}", wanted="two maps of one shape, or a map and a vector of its channels")


def _with_constant(site: Site, make: Callable[[Place], IntNode]) -> IntNode:
    """Arithmetic with a constant, as a table: for all 256 codes the operator is computed as the reference computes it."""
    place = 1 if site.is_constant(1) else 0
    source, output = site.source(1 - place), site.output()
    if _sides(source) != _sides(output):
        raise site.refuse(f"{_sides(source)} to {_sides(output)}", wanted="one shape")
    given = _row(site, place, output)
    scale, zero_point = _quantisation(site, place)
    codes = np.arange(-128, 128, dtype=np.int8).reshape(1, 1, 256, 1)
    table = np.broadcast_to(codes, (len(given), 1, 256, 1))
    pair = (
        QTensor("codes", 1, 256, 1, source.scale, source.zero_point), QTensor("constant", 1, 256, 1, scale, zero_point),
    )  # fmt: skip
    made = QTensor(output.name, 1, 256, 1, output.scale, output.zero_point)
    node = make(site.place(made, *(pair if place else pair[::-1])))
    both = (table, np.broadcast_to(given.reshape(-1, 1, 1, 1), table.shape))
    operands = list(both if place else both[::-1])
    results = oracle_tflite.run(node, operands)
    results = oracle_maps.run(node, operands) if results is None else results
    assert results is not None
    return nodes_tflite.lookup(Place(output.name, output.name, (source.name,), (source,), output), results.reshape(len(given), 256))


def _quantisation(site: Site, place: int) -> tuple[float, int]:
    """(scale, zero point) of an operand."""
    tensor = site.tensor(place)
    if tensor.dtype != "int8" or len(tensor.scale) != 1:
        raise site.refuse(f"operand {place} of {tensor.dtype}, {len(tensor.scale)} scales", wanted="int8 with one scale")
    return float(tensor.scale[0]), int(tensor.zero_point[0])


def _row(site: Site, place: int, output: QTensor) -> Int8:
    """A constant operand, (1,) or (c,)."""
    values = site.values(place)
    if values.size not in (1, output.c) or (values.size > 1 and values.shape[-1] != output.c):
        raise site.refuse(f"a constant {values.shape}", wanted="one number, or one a channel")
    return np.asarray(values.reshape(-1), np.int8)


def _average_pool(site: Site) -> tuple[IntNode, ...]:
    source, output, options = site.source(), site.output(), site.operator.options
    site.same_quantisation(source, output)
    padding = padding_of((source.h, source.w), options.window, options)
    return (nodes_tflite.average_pool(site.place(output, source), options.window, options.stride, padding),)


def _max_pool(site: Site) -> tuple[IntNode, ...]:
    source, output, options = site.source(), site.output(), site.operator.options
    site.same_quantisation(source, output)
    padding = padding_of((source.h, source.w), options.window, options)
    lo, hi = site.clamp(output)
    return (
        IntMaxPool(
            output.name, output.name, (output.name,), (source.name,), output, lo, hi, options.window, options.stride, padding
        ),
    )


def _mean(site: Site) -> tuple[IntNode, ...]:
    source, output = site.source(), site.output()
    rank = len(site.tensor(0).shape)
    axes = {axis % rank for axis in site.whole(1)}
    if not axes or not axes <= set(range(1, rank - 1)):
        raise site.refuse(f"over axes {sorted(axes)}", wanted="rows and columns")
    kernel = (source.h if rank == 4 and 1 in axes else 1, source.w if rank - 2 in axes else 1)
    made = (source.h // kernel[0], source.w // kernel[1], source.c)
    if made != _sides(output):
        raise site.refuse(f"{made} stated as {_sides(output)}", wanted="a mean over rows and columns, or that keeps its axes")
    return (nodes_tflite.mean(site.plain(output, source), kernel),)


def _softmax(site: Site) -> tuple[IntNode, ...]:
    source, output = site.source(), site.output()
    if (output.scale, output.zero_point) != (1 / 256, -128):
        raise site.refuse(f"scale {output.scale:g}, zero point {output.zero_point}", wanted="1/256 and -128, as TFLite itself wants")
    beta = site.operator.options.beta
    if not 0 < source.scale * beta < _STEEPEST:
        raise site.refuse(f"beta {beta:g}, scale {source.scale:g}", wanted=f"a product above 0 and below {_STEEPEST:g}")
    table = exponentials(source.scale * beta)
    return (IntSoftmax(output.name, output.name, (output.name,), (source.name,), output, -128, 127, frozen(table, np.int32)),)


def _pad(site: Site) -> tuple[IntNode, ...]:
    source, output = site.source(), site.output()
    site.same_quantisation(source, output)
    counts = site.whole(1)
    rank = len(site.tensor(0).shape)
    if len(counts) != 2 * rank or min(counts) < 0 or any(counts[:2]):
        raise site.refuse(f"counts {counts}", wanted="two for each axis, none for the batch")
    before, after = (tuple((0,) * (4 - rank) + tuple(counts[side::2]))[1:] for side in (0, 1))
    made = tuple(size + one + two for size, one, two in zip((source.h, source.w, source.c), before, after, strict=True))
    if made != _sides(output):
        raise site.refuse(f"{made} stated as {_sides(output)}", wanted="one shape")
    value = int(site.whole(2)[0]) if site.has(2) else output.zero_point
    return (_slice(source, output, (-before[0], -before[1]), (1, 1), before[2], after[2], value),)


def _slice(
    source: QTensor, output: QTensor, start: tuple[int, int], step: tuple[int, int], c_before: int, c_after: int, value: int
) -> IntNode:
    return IntSlicePad(
        output.name, output.name, (output.name,), (source.name,), output, -128, 127, start, step, c_before, c_after, value
    )


def _strided_slice(site: Site) -> tuple[IntNode, ...]:
    source, output = site.source(), site.output()
    site.same_quantisation(source, output)
    shape = site.tensor(0).shape
    bounds = slice_bounds(shape, tuple(site.whole(place) for place in range(1, len(site.operator.inputs))), site.operator)
    if bounds is None:
        raise site.refuse("bounds that are no part of the map", wanted="bounds for every axis, positive steps, no axis added or taken")
    (top, left, first), (bottom, right, last), (down, across, thin) = (
        ((neutral,) * (4 - len(shape)) + each)[-3:] for each, neutral in zip(bounds, (0, 1, 1), strict=True)
    )
    made = (-(-(bottom - top) // down), -(-(right - left) // across), last - first)
    if made != _sides(output) or thin != 1:
        raise site.refuse(f"{made} stated as {_sides(output)}", wanted="one shape, and channels by steps of 1")
    return (_slice(source, output, (top, left), (down, across), -first, last - source.c, source.zero_point),)


def _split(site: Site) -> tuple[IntNode, ...]:
    by_size = site.operator.kind == "SPLIT_V"
    source = site.source(0 if by_size else 1)
    rank = len(site.tensor(0 if by_size else 1).shape)
    axis = site.whole(2 if by_size else 0)[0] % rank + 3 - rank
    nodes, start = [], [0, 0, 0]
    for place in range(len(site.operator.outputs)):
        output = site.output(place)
        site.same_quantisation(source, output)
        sides = _sides(output)
        if axis < 0 or any(made != whole for number, (made, whole) in enumerate(zip(sides, _sides(source), strict=True)) if number != axis):
            raise site.refuse(f"parts {sides}", wanted="parts of a map along rows, columns or channels")
        after = start[2] + sides[2] - source.c
        nodes.append(_slice(source, output, (start[0], start[1]), (1, 1), -start[2], after, source.zero_point))
        start[axis] += sides[axis]
    if start[axis] != _sides(source)[axis]:
        raise site.refuse(f"{start[axis]} of {_sides(source)[axis]}", wanted="parts that are the whole")
    return tuple(nodes)


def _sides(tensor: QTensor) -> tuple[int, int, int]:
    return tensor.h, tensor.w, tensor.c


def _concat(site: Site) -> tuple[IntNode, ...]:
    output = site.output()
    given = [site.source(place) for place in range(len(site.operator.inputs))]
    rank = len(site.tensor(0).shape)
    axis = site.operator.options.axis % rank + 3 - rank
    if axis < 0 or site.operator.options.activation != "NONE":
        raise site.refuse(f"axis {site.operator.options.axis}", wanted="rows, columns or channels, without activation")
    start, parts = [0, 0, 0], []
    for number, source in enumerate(given):
        site.same_quantisation(source, output)
        parts.append(Part(number, (start[0], start[1], start[2]), (1, 1), 1, 0, 0))
        start[axis] += _sides(source)[axis]
    return (_assemble([each.name for each in given], output, parts),)


def _assemble(inputs: list[str], output: QTensor, parts: list[Part]) -> IntNode:
    names = tuple(dict.fromkeys(inputs))
    placed = tuple(Part(names.index(inputs[part.source]), part.start, part.step, 1, 0, 0) for part in parts)
    return IntAssemble(output.name, output.name, (output.name,), names, output, -128, 127, placed)


def _resize(site: Site) -> tuple[IntNode, ...]:
    source, output = site.source(), site.output()
    site.same_quantisation(source, output)
    rows, columns = output.h // source.h, output.w // source.w
    if (source.h * rows, source.w * columns, source.c) != _sides(output) or (site.operator.options.corners and rows * columns != 1):
        raise site.refuse(f"{_sides(source)} to {_sides(output)}", wanted="a multiple of rows and columns, corners not aligned")
    parts = [Part(0, (row, column, 0), (rows, columns), 1, 0, 0) for row in range(rows) for column in range(columns)]
    return (_assemble([source.name], output, parts),)


def _lookup(site: Site, source: QTensor, output: QTensor, table: Int8) -> IntNode:
    if _sides(source) != _sides(output):
        raise site.refuse(f"{_sides(source)} to {_sides(output)}", wanted="one shape")
    return nodes_tflite.lookup(site.plain(output, source), table)


def _by_table(make: Callable[[QTensor, QTensor], Int8]) -> Callable[[Site], tuple[IntNode, ...]]:
    def handler(site: Site) -> tuple[IntNode, ...]:
        source, output = site.source(), site.output()
        return (_lookup(site, source, output, make(source, output)),)

    return handler


def _limited(low: float, high: float) -> Callable[[Site], tuple[IntNode, ...]]:
    return _by_table(lambda source, output: tables_tflite.clamped(source, output, low, high))


def _leaky(site: Site) -> tuple[IntNode, ...]:
    source, output = site.source(), site.output()
    return (_lookup(site, source, output, tables_tflite.leaky(source, output, site.operator.options.alpha)),)


def _prelu(site: Site) -> tuple[IntNode, ...]:
    source, output = site.source(), site.output()
    return (_lookup(site, source, output, tables_tflite.prelu(source, output, _row(site, 1, output), *_quantisation(site, 1))),)


NODES: Mapping[str, Callable[[Site], tuple[IntNode, ...]]] = MappingProxyType({
    "ADD": _sum, "SUB": _difference, "MUL": _product, "AVERAGE_POOL_2D": _average_pool, "MAX_POOL_2D": _max_pool, "MEAN": _mean,
    "SOFTMAX": _softmax, "PAD": _pad, "PADV2": _pad, "SLICE": _strided_slice, "STRIDED_SLICE": _strided_slice, "SPLIT": _split,
    "SPLIT_V": _split, "CONCATENATION": _concat, "RESIZE_NEAREST_NEIGHBOR": _resize, "RELU": _limited(0.0, math.inf),
    "RELU6": _limited(0.0, 6.0), "RELU_N1_TO_1": _limited(-1.0, 1.0), "RELU_0_TO_1": _limited(0.0, 1.0), "LEAKY_RELU": _leaky,
    "PRELU": _prelu, "LOGISTIC": _by_table(tables_tflite.logistic), "TANH": _by_table(tables_tflite.tanh),
    "HARD_SWISH": _by_table(tables_tflite.hard_swish), "ELU": _by_table(tables_tflite.elu),
    "QUANTIZE": _by_table(tables_tflite.requantised),
})  # fmt: skip
"""Operators without weights that have an integer meaning."""
