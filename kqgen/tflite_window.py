"""TensorFlow's padding of windows."""

from __future__ import annotations

from collections.abc import Sequence

from kqgen.ir import Padding, Pair
from kqgen.tflite_options import Options


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
