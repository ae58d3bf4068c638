"""TensorFlow's padding of windows and bounds of slices."""

from __future__ import annotations

from collections.abc import Sequence

from kqgen.ir import Padding, Pair
from kqgen.tflite_options import Options
from kqgen.tflite_read import Operator

Axes = tuple[int, ...]


def padding_of(sides: Sequence[int], kernel: Pair, options: Options) -> Padding:
    """(top, bottom, left, right) of a map with `sides` (rows, columns): with SAME what makes ceil(side / stride) windows.

    Where that is odd, the one more stands behind.
    """
    if not options.same:
        return (0, 0, 0, 0)
    pads = []
    for side, taps, stride, dilation in zip(sides, kernel, options.stride, options.dilation, strict=True):
        windows = -(-side // stride)
        total = max((windows - 1) * stride + (taps - 1) * dilation + 1 - side, 0)
        pads += [total // 2, total - total // 2]
    top, bottom, left, right = pads
    return (top, bottom, left, right)


def slice_bounds(shape: Axes, numbers: Sequence[Axes], operator: Operator) -> tuple[Axes, Axes, Axes] | None:
    """(begin, end, step) of every axis of SLICE (numbers: begin, size) or STRIDED_SLICE (begin, end, step), 0 <= begin < end <= size.

    None where bounds are missing, a step is not positive, an axis is added or taken, or nothing is left.
    """
    strides = numbers[2] if len(numbers) > 2 else (1,) * len(shape)
    if len(numbers) < 2 or not len(numbers[0]) == len(numbers[1]) == len(strides) == len(shape):
        return None
    masks = operator.options.masks
    if min(strides) < 1 or any(masks[2:]):
        return None
    starts, ends = [], []
    for axis, size in enumerate(shape):
        first, last = numbers[0][axis], numbers[1][axis]
        if operator.kind == "SLICE":
            last = size if last < 0 else first + last
        first = 0 if masks[0] >> axis & 1 else first
        last = size if masks[1] >> axis & 1 else last
        starts.append(min(max(first + size if first < 0 else first, 0), size))
        ends.append(min(max(last + size if last < 0 else last, 0), size))
    if any(first >= last for first, last in zip(starts, ends, strict=True)):
        return None
    return tuple(starts), tuple(ends), strides
