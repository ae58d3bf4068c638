"""Layers without weights as the integer nodes of SPEC 5.2 to 5.6 and 5.9 to 5.13."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from kqgen import doubling, fixed, ir, unary
from kqgen.errors import InternalError, UnsupportedError
from kqgen.intgraph import (
    Int8,
    IntAdd,
    IntArgMax,
    IntAssemble,
    IntAvgPool,
    IntClamp,
    IntLookup,
    IntMaxPool,
    IntMul,
    IntNode,
    IntSlicePad,
    IntSoftmax,
    Part,
    QTensor,
    frozen,
)
from kqgen.lower_checks import (
    INT8_HIGH,
    INT8_LOW,
    INT32_LIMIT,
    UINT16_LIMIT,
    check_slice,
    check_window,
    clamp_codes,
    label,
    naming,
    same_quantisation,
)

ARG_MAX_CHANNELS = 256
SOFTMAX_CHANNELS = 4095
"""Most channels whose exponentials, 2^19 each at most, sum within int32."""

MOST_PARTS = 256
"""Calls that one assembly may take."""

_CODES = np.arange(INT8_LOW, INT8_HIGH + 1)
_SOFTMAX_INTEGER_BITS = 5
_LEAST_EXPONENTIAL = 2**11
"""Smaller ones add nothing to the sum and are themselves no step of the output."""


def lowered(node: ir.Node, sources: list[QTensor], output: QTensor) -> tuple[IntNode, ...]:
    """The integer nodes of a layer, the last one bearing its name; none for a kind of layer that has no place here.

    Raises:
        UnsupportedError: a size or value does not fit the fields of SPEC 8 or 32 bits; names the layer.
    """
    source = sources[0]
    match node:
        case ir.Add():
            return (_add(node, source, sources[1], output),)
        case ir.Mul():
            return (_mul(node, source, sources[1], output),)
        case ir.Unary():
            return (_unary(node, source, output),)
        case ir.Softmax():
            return (_softmax(node, source, output),)
        case ir.ArgMax():
            return (_arg_max(node, source, output),)
        case ir.Concat():
            return (_concat(node, sources, output),)
        case ir.Interleave() | ir.Upsample():
            return (_enlarged(node, sources, output),)
        case ir.AvgPool():
            return (_avg_pool(node, source, output),)
        case ir.MaxPool():
            return _max_pool(node, source, output)
        case ir.Clamp():
            return (_clamp(node, source, output),)
        case ir.SlicePad():
            return _slice_pad(node, source, output)
        case _:
            return ()


def _add(node: ir.Add, a: QTensor, b: QTensor, output: QTensor) -> IntAdd:
    """SPEC 5.2."""
    with naming(node, "check the calibration data: the sum's range is far smaller than its operands'"):
        parameters = fixed.add_parameters(a.scale, a.zero_point, b.scale, b.zero_point, output.scale, output.zero_point, minus=node.minus)
    lo, hi = clamp_codes(output, node.lo, node.hi)
    return IntAdd(node.name, node.path, node.sources or (node.path,), node.inputs, output, lo, hi, *parameters)


def _mul(node: ir.Mul, a: QTensor, b: QTensor, output: QTensor) -> IntMul:
    """SPEC 5.10."""
    broadcast = (b.h, b.w) == (1, 1) != (a.h, a.w)
    if (a.h, a.w, a.c) != (output.h, output.w, output.c) or b.c != a.c or not (broadcast or (b.h, b.w) == (a.h, a.w)):
        raise InternalError(f"simplify left a product of {a.h, a.w, a.c} and {b.h, b.w, b.c} at {label(node)}")
    with naming(node, "check the calibration data: the product's range is far smaller than its operands'"):
        multiplier, shift, acc_shift = fixed.quantise_multiplier(np.array([a.scale * b.scale / output.scale]))
    lo, hi = clamp_codes(output, node.lo, node.hi)
    return IntMul(
        node.name, node.path, node.sources or (node.path,), node.inputs, output, lo, hi,
        a.zero_point, b.zero_point, int(multiplier[0]), int(shift[0]), acc_shift, broadcast,
    )  # fmt: skip


def _avg_pool(node: ir.AvgPool, source: QTensor, output: QTensor) -> IntNode:
    """SPEC 5.3; of single values, which is another quantisation of them, a table."""
    if (node.kernel, node.stride, node.padding) == ((1, 1), (1, 1), ir.NO_PADDING):
        table = _table(output, (_CODES - source.zero_point) * source.scale, *clamp_codes(output, node.lo, node.hi))
        return _lookup(node, node.inputs, output, table[None], node.sources)
    check_window(node, node.kernel, node.stride, node.padding)
    count = node.kernel[0] * node.kernel[1]
    with naming(node, "check the calibration data: the means' range is far smaller than the values'"):
        multiplier, shift, acc_shift = fixed.quantise_multiplier(np.array([source.scale / (output.scale * count)]))
    bias = -count * source.zero_point
    if (count * 128 + abs(bias)) << acc_shift > INT32_LIMIT:
        raise UnsupportedError(
            f"layer {label(node)}: the sum over a window can exceed 32 bits",
            found=f"{count} values with a left shift of {acc_shift}",
            do="pool in two stages",
        )
    lo, hi = clamp_codes(output, node.lo, node.hi)
    return IntAvgPool(
        node.name, node.path, node.sources or (node.path,), node.inputs, output, lo, hi,
        node.kernel, node.stride, node.padding, source.zero_point, bias, int(multiplier[0]), int(shift[0]), acc_shift,
    )  # fmt: skip


def _max_pool(node: ir.MaxPool, source: QTensor, output: QTensor) -> tuple[IntNode, ...]:
    """SPEC 5.4."""
    check_window(node, node.kernel, node.stride, node.padding)
    made, behind = _in_the_input_s_codes(node, source, output)
    return (
        IntMaxPool(
            made.name, node.path, (node.path,), node.inputs, made, INT8_LOW, INT8_HIGH, node.kernel, node.stride, node.padding
        ),
        *behind,
    )


def _slice_pad(node: ir.SlicePad, source: QTensor, output: QTensor) -> tuple[IntNode, ...]:
    """SPEC 5.6."""
    check_slice(node)
    made, behind = _in_the_input_s_codes(node, source, output)
    sliced = IntSlicePad(
        made.name, node.path, (node.path,), node.inputs, made, INT8_LOW, INT8_HIGH,
        node.start, node.step, node.c_before, node.c_after, source.zero_point,
    )  # fmt: skip
    return (sliced, *behind)


def _in_the_input_s_codes(node: ir.Node, source: QTensor, output: QTensor) -> tuple[QTensor, tuple[IntNode, ...]]:
    """The tensor that a layer makes which keeps its input's codes, and what brings it to those that the model wants, if others."""
    if same_quantisation(source, output):
        return output, ()
    made = QTensor(f"{node.name}_made", output.h, output.w, output.c, source.scale, source.zero_point)
    table = _table(output, (_CODES - source.zero_point) * source.scale, INT8_LOW, INT8_HIGH)
    return made, (_lookup(node, (made.name,), output, table[None]),)


def _clamp(node: ir.Clamp, source: QTensor, output: QTensor) -> IntNode:
    """SPEC 5.5, or a table where the result has another quantisation than the input."""
    lo, hi = clamp_codes(output, node.lo, node.hi)
    if same_quantisation(source, output):
        return IntClamp(node.name, node.path, (node.path,), node.inputs, output, lo, hi)
    return _lookup(node, node.inputs, output, _table(output, (_CODES - source.zero_point) * source.scale, lo, hi)[None])


def _unary(node: ir.Unary, source: QTensor, output: QTensor) -> IntLookup:
    """SPEC 5.9."""
    lo, hi = clamp_codes(output, node.lo, node.hi)
    reals = (_CODES - source.zero_point) * source.scale
    slopes = [node.arguments] if node.slope is None else [(float(slope),) for slope in np.unique(node.slope)]
    rows = np.stack([_table(output, unary.evaluate(node.kind, arguments, reals), lo, hi) for arguments in slopes])
    if node.slope is not None and len(slopes) > 1:
        rows = rows[np.searchsorted(np.unique(node.slope), node.slope)]
    return _lookup(node, node.inputs, output, rows, node.sources)


def _table(output: QTensor, reals: npt.NDArray[Any], lo: int, hi: int) -> Int8:
    steps = np.clip(reals / output.scale, -fixed.FAR_STEPS, fixed.FAR_STEPS)
    return np.clip(fixed.round_half_up(steps) + output.zero_point, lo, hi).astype(np.int8)


def _lookup(node: ir.Node, inputs: tuple[str, ...], output: QTensor, rows: Int8, sources: tuple[str, ...] = ()) -> IntLookup:
    return IntLookup(node.name, node.path, sources or (node.path,), inputs, output, INT8_LOW, INT8_HIGH, frozen(rows, np.int8))


def _concat(node: ir.Concat, sources: list[QTensor], output: QTensor) -> IntAssemble:
    """SPEC 5.11."""
    parts: list[Part] = []
    at = 0
    if node.woven:
        _check_woven(node, sources[0])
        turns = [_part(node, number, source, output, (0, 0, number), (1, 1)) for number, source in enumerate(sources)]
        return _assemble(node, output, [replace(part, channel_step=len(sources)) for part in turns])
    for number, source in enumerate(sources):
        start = (0, 0, at) if node.axis == 0 else (at, 0, 0) if node.axis == 1 else (0, at, 0)
        parts.append(_part(node, number, source, output, start, (1, 1)))
        at += (source.c, source.h, source.w)[node.axis]
    return _assemble(node, output, parts)


def _check_woven(node: ir.Concat, source: QTensor) -> None:
    if source.w * source.c > UINT16_LIMIT:
        raise UnsupportedError(
            f"layer {label(node)}: a row is too long to take its channels in turn",
            found=f"{source.w} columns of {source.c} channels",
            wanted=f"at most {UINT16_LIMIT} values",
            do="shrink the input",
        )


def _enlarged(node: ir.Interleave | ir.Upsample, sources: list[QTensor], output: QTensor) -> IntAssemble:
    """SPEC 5.11: a part for every place that a value takes, of one input or of an input each; or one part between zeros."""
    zeros = isinstance(node, ir.Upsample) and node.zeros
    rows, columns = (1, 1) if zeros else node.factor
    parts = []
    for number, place in enumerate((row, column) for row in range(rows) for column in range(columns)):
        given = number if isinstance(node, ir.Interleave) else 0
        parts.append(_part(node, given, sources[given], output, (*place, 0), node.factor))
    return _assemble(node, output, parts, output.zero_point if zeros else None)


def _part(node: ir.Node, number: int, source: QTensor, output: QTensor, start: tuple[int, int, int], step: ir.Pair) -> Part:
    with naming(node, "check the calibration data: the result's range is far smaller than that of a part"):
        parameters = fixed.rescale_parameters(source.scale, source.zero_point, output.scale, output.zero_point)
    return Part(number, start, step, *parameters)


def _assemble(node: ir.Node, output: QTensor, parts: list[Part], fill: int | None = None) -> IntAssemble:
    if len(parts) > MOST_PARTS:
        raise UnsupportedError(
            f"layer {label(node)} is made of too many parts",
            found=str(len(parts)),
            wanted=f"at most {MOST_PARTS}",
            do="concatenate in two stages, or enlarge by a smaller factor twice",
        )
    return IntAssemble(node.name, node.path, (node.path,), node.inputs, output, INT8_LOW, INT8_HIGH, tuple(parts), fill)


def _softmax(node: ir.Softmax, source: QTensor, output: QTensor) -> IntSoftmax:
    """SPEC 5.12."""
    _check_channels(node, source, SOFTMAX_CHANNELS, "its exponentials would not sum in 32 bits")
    table = exponentials(source.scale)
    return IntSoftmax(node.name, node.path, (node.path,), node.inputs, output, INT8_LOW, INT8_HIGH, frozen(table, np.int32))


def exponentials(scale: float) -> doubling.Int64:
    """exp(-d * scale) without integer bits for d = 0, 1, 2, ..., as far as it changes a result, (1..256,); source: SPEC 5.12."""
    factor = min(scale * 2.0 ** (31 - _SOFTMAX_INTEGER_BITS), 2.0**31 - 1.0)
    fraction, exponent = np.frexp(factor)
    multiplier = int(fixed.round_half_up(fraction * 2.0**31))
    if multiplier == 2**31:
        multiplier, exponent = multiplier // 2, exponent + 1
    if exponent < 0:
        # So fine a scale that TFLite has no numbers for it: the differences of int8 codes all mean nearly 0.
        return doubling.exp_of_negative(-fixed.round_half_up(np.arange(256) * factor))
    largest = ((1 << _SOFTMAX_INTEGER_BITS) - 1) * 2 ** (31 - _SOFTMAX_INTEGER_BITS) // 2 ** int(exponent)
    differences = np.arange(min(largest, 255) + 1)
    table = doubling.exp_of_negative(doubling.doubling_high(-differences * 2 ** int(exponent), multiplier))
    return table[: int(np.count_nonzero(table >= _LEAST_EXPONENTIAL))]


def _arg_max(node: ir.ArgMax, source: QTensor, output: QTensor) -> IntArgMax:
    """SPEC 5.13."""
    _check_channels(node, source, ARG_MAX_CHANNELS, "their numbers take one byte")
    return IntArgMax(node.name, node.path, (node.path,), node.inputs, output, INT8_LOW, INT8_HIGH)


def _check_channels(node: ir.Node, source: QTensor, most: int, why: str) -> None:
    if source.c > most:
        raise UnsupportedError(
            f"layer {label(node)} has too many channels",
            found=str(source.c),
            wanted=f"at most {most}: {why}",
            do="take the scores as the network's output and do this outside",
        )
