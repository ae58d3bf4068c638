"""What lowering refuses, by layer name, and how it rounds clamps: shared by its modules."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from kqgen import fixed, ir
from kqgen.errors import InputError, UnsupportedError
from kqgen.intgraph import QTensor

INT8_LOW, INT8_HIGH = -128, 127
INT32_LIMIT = 2**31 - 1
INT16_LIMIT = 32767
UINT16_LIMIT = 65535
UINT8_LIMIT = 255


def label(node: ir.Node) -> str:
    """How a person knows the layer: its PyTorch module path, or its name."""
    return node.path or node.name


@contextmanager
def naming(node: ir.Node, do: str) -> Iterator[None]:
    """Adds the layer, and the way out of it, to what `fixed` refuses: it knows numbers alone."""
    try:
        yield
    except InputError as error:
        raise UnsupportedError(f"layer {label(node)}: {error.what}", found=error.found, wanted=error.wanted, do=do) from error


def clamp_codes(output: QTensor, lo: float, hi: float) -> tuple[int, int]:
    """SPEC 5.7: a clamp on real numbers as a clamp on int8 codes."""

    def code(real: float) -> int:
        steps = min(max(real / output.scale, -fixed.FAR_STEPS), fixed.FAR_STEPS)
        return int(np.clip(int(fixed.round_half_up(steps)) + output.zero_point, INT8_LOW, INT8_HIGH))

    return code(lo), code(hi)


def same_quantisation(a: QTensor, b: QTensor) -> bool:
    """Whether a code means the same in both."""
    return (a.scale, a.zero_point) == (b.scale, b.zero_point)


def check_size(node: ir.Node) -> None:
    """Refuses a tensor whose sides or bytes do not fit the runtime's fields."""
    c, h, w = node.shape
    if max(c, h, w) > UINT16_LIMIT or c * h * w > INT32_LIMIT:
        raise UnsupportedError(
            f"layer {label(node)} is too large",
            found=f"output of {c} channels, {h} x {w}",
            wanted=f"no side above {UINT16_LIMIT} and fewer than 2^31 values",
            do="split the layer or shrink the input",
        )


def check_window(node: ir.Node, kernel: ir.Pair, stride: ir.Pair, padding: ir.Padding) -> None:
    """Refuses a window whose sizes do not fit the runtime's fields."""
    if max(*kernel, *stride, *padding) > UINT8_LIMIT:
        raise UnsupportedError(
            f"layer {label(node)}: window too large",
            found=f"kernel {kernel}, stride {stride}, padding {padding}",
            wanted=f"each at most {UINT8_LIMIT}",
            do="for a mean over a large map pool twice",
        )


def check_slice(node: ir.SlicePad) -> None:
    """Refuses a slice whose numbers do not fit the runtime's fields."""
    if max(abs(start) for start in node.start) > INT16_LIMIT or max(node.step) > UINT8_LIMIT:
        raise UnsupportedError(
            f"layer {label(node)}: slice too far into the map",
            found=f"start {node.start}, step {node.step}",
            wanted=f"starts within {INT16_LIMIT}, steps at most {UINT8_LIMIT}",
            do="crop the image before the network, or give the stride to a layer before the slice",
        )
    if abs(node.c_before) > INT16_LIMIT:
        raise UnsupportedError(
            f"layer {label(node)}: too many channels added or dropped in front",
            found=str(node.c_before),
            wanted=f"at most {INT16_LIMIT}",
            do="split the map earlier in the network",
        )
