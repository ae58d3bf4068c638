"""The integer meaning of the layers that TFLite's reference kernels round in their own way (SPEC 5.14, 5.15)."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from kqgen import fixed_tflite
from kqgen.intgraph import Int8, IntMeanWindow, IntNode, IntRescaledAdd

ADD_LEFT_SHIFT = 20
"""What both operands of a sum are shifted up by before they are brought to one scale."""


def run(node: IntNode, inputs: list[Int8]) -> Int8 | None:
    """A layer's result for a batch, (N, h, w, c) int8; None for a kind of layer that has no place here."""
    match node:
        case IntRescaledAdd():
            return _add(node, *inputs)
        case IntMeanWindow():
            return _mean(node, inputs[0])
        case _:
            return None


def _add(node: IntRescaledAdd, a: Int8, b: Int8) -> Int8:
    """SPEC 5.14: b is (N, 1, 1, c) where it serves every position."""
    twice = fixed_tflite.TWICE
    scaled_a = fixed_tflite.scale((a.astype(np.int64) - node.zero_point_a) << ADD_LEFT_SHIFT, node.multiplier_a, node.shift_a, twice)
    scaled_b = fixed_tflite.scale((b.astype(np.int64) - node.zero_point_b) << ADD_LEFT_SHIFT, node.multiplier_b, node.shift_b, twice)
    total = scaled_a - scaled_b if node.minus else scaled_a + scaled_b
    codes = fixed_tflite.scale(total, node.multiplier, node.shift, twice) + node.output.zero_point
    return np.asarray(np.clip(codes, node.lo, node.hi), np.int8)


def _mean(node: IntMeanWindow, x: Int8) -> Int8:
    """SPEC 5.15."""
    total = _window_sums(node, x.astype(np.int64))
    count = _window_sums(node, np.ones((1, *x.shape[1:3], 1), np.int64))
    size = (np.abs(total) + count // 2) // count
    return np.asarray(np.clip(np.where(total < 0, -size, size), node.lo, node.hi), np.int8)


def _window_sums(node: IntMeanWindow, x: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Sums over the windows of (N, h, w, c), padded positions 0."""
    top, bottom, left, right = node.padding
    padded = np.pad(x, ((0, 0), (top, bottom), (left, right), (0, 0)))
    total = np.zeros((len(x), node.output.h, node.output.w, x.shape[3]), x.dtype)
    for row, column in np.ndindex(node.kernel):
        rows = slice(row, row + (node.output.h - 1) * node.stride[0] + 1, node.stride[0])
        columns = slice(column, column + (node.output.w - 1) * node.stride[1] + 1, node.stride[1])
        total += padded[:, rows, columns]
    return total
