"""The integer meaning of layers without weights that move, look up, multiply or compare values (SPEC 5.6, 5.9 to 5.13)."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from kqgen import doubling, fixed
from kqgen.intgraph import Int8, IntArgMax, IntAssemble, IntLookup, IntMul, IntNode, IntSlicePad, IntSoftmax, Part

BLOCK_VALUES = 65536
"""At a time where values take 8 bytes, so that they stay in the cache."""


def clip(values: npt.NDArray[Any], node: IntNode) -> Int8:
    """Values within the layer's clamp, as int8. Any shape."""
    return np.asarray(np.clip(values, node.lo, node.hi), np.int8)


def run(node: IntNode, inputs: list[Int8]) -> Int8 | None:
    """A layer's result for a batch, (N, h, w, c) int8; None for a kind of layer that has no place here."""
    match node:
        case IntSlicePad():
            return _slice_pad(node, inputs[0])
        case IntLookup():
            return _lookup(node, inputs[0])
        case IntMul():
            return _mul(node, *inputs)
        case IntAssemble():
            return _assemble(node, inputs)
        case IntSoftmax():
            return _softmax(node, inputs[0])
        case IntArgMax():
            return _arg_max(node, inputs[0])
        case _:
            return None


def _slice_pad(node: IntSlicePad, x: Int8) -> Int8:
    """SPEC 5.6: (N, h, w, c) int8 to the output's."""
    out = np.full((len(x), node.output.h, node.output.w, node.output.c), node.pad_value, np.int8)
    starts, steps = (*node.start, -node.c_before), (*node.step, 1)
    read: list[slice] = []
    written: list[slice] = []
    for start, step, size_in, size_out in zip(starts, steps, x.shape[1:], out.shape[1:], strict=True):
        first = max(0, -(start // step))
        count = max(0, min(size_out, (size_in - 1 - start) // step + 1) - first)
        written.append(slice(first, first + count))
        read.append(slice(start + first * step, start + first * step + count * step, step))
    if all(part.stop > part.start for part in written):
        out[:, written[0], written[1], written[2]] = x[:, read[0], read[1], read[2]]
    return clip(out, node)


def _lookup(node: IntLookup, x: Int8) -> Int8:
    """SPEC 5.9: any (N, h, w, c) int8."""
    codes = x.astype(np.intp) + 128
    if len(node.table) == 1:
        return np.asarray(node.table[0][codes])
    return np.asarray(node.table[np.arange(len(node.table)), codes])


def _mul(node: IntMul, a: Int8, b: Int8) -> Int8:
    """SPEC 5.10: (N, h, w, c) and the same, or (N, 1, 1, c), int8."""
    out = np.empty_like(a)
    block = max(1, BLOCK_VALUES // node.output.size_bytes)
    for start in range(0, len(a), block):
        at = slice(start, start + block)
        acc = (a[at].astype(np.int64) - node.zero_point_a) * (b[at].astype(np.int64) - node.zero_point_b)
        out[at] = fixed.requantise(acc, node.multiplier, node.shift, node.acc_shift, node.output.zero_point, node.lo, node.hi)
    return out


def _assemble(node: IntAssemble, inputs: list[Int8]) -> Int8:
    """SPEC 5.11: the inputs (N, h, w, c) int8 to the output's."""
    out = np.full((len(inputs[0]), node.output.h, node.output.w, node.output.c), 0 if node.fill is None else node.fill, np.int8)
    for part in node.parts:
        given = inputs[part.source]
        _, h, w, c = given.shape
        (row, column, channel), (down, right) = part.start, part.step
        rows, columns = slice(row, row + (h - 1) * down + 1, down), slice(column, column + (w - 1) * right + 1, right)
        out[:, rows, columns, channel : channel + (c - 1) * part.channel_step + 1 : part.channel_step] = _placed(part, given)
    return out


def _placed(part: Part, x: Int8) -> Int8:
    if (part.multiplier, part.bias, part.shift) == (1, 0, 0):
        return x
    table = (np.arange(-128, 128, dtype=np.int64) * part.multiplier + part.bias) >> part.shift
    return np.asarray(np.clip(table, -128, 127).astype(np.int8)[x.astype(np.intp) + 128])


def _softmax(node: IntSoftmax, x: Int8) -> Int8:
    """SPEC 5.12: (N, h, w, c) int8."""
    table = np.zeros(256, np.int64)
    table[: len(node.exponentials)] = node.exponentials
    out = np.empty_like(x)
    block = max(1, BLOCK_VALUES // node.output.size_bytes)
    for start in range(0, len(x), block):
        part = x[start : start + block].astype(np.int64)
        powers = table[part.max(axis=-1, keepdims=True) - part]
        sums = doubling.rounding_shift(powers, 12).sum(axis=-1, keepdims=True)
        # Of the number's bits the highest is 1, which the denominator 1 + x has implied.
        headroom = 31 - np.floor(np.log2(sums)).astype(np.int64)
        scale = doubling.reciprocal((sums << headroom) - (1 << 31))
        result = doubling.rounding_shift(doubling.doubling_high(scale, powers), 12 - headroom + 23)
        out[start : start + block] = np.clip(result - 128, -128, 127)
    return out


def _arg_max(node: IntArgMax, x: Int8) -> Int8:
    """SPEC 5.13: (N, h, w, c) int8 to (N, h, w, 1)."""
    return clip(x.argmax(axis=-1).astype(np.int64)[..., None] - 128, node)
