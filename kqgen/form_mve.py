"""Helium: the forms for cores with integer vectors, 16 multiply-accumulates an instruction (SPEC 6.7)."""

from __future__ import annotations

from collections.abc import Iterator

from kqgen.conv_shape import Candidate, ConvShape, round4
from kqgen.plan import Form

LANES_BYTES = 16
"""Of a vector."""

SLACK_BYTES = 32
"""Read behind the columns at most."""

CONSTANT_WORDS, PAIR_WORDS = 44, 10
"""Of a tile's constants, and of the parameters of two output channels."""

# Modelled cycles on a Cortex-M55, counted by hand in the loops of runtime_c/kq_mve.h and checked against counts.
STEP_CYCLES = 8.0
GROUP_CYCLES = 16.0
PUT_CYCLES = 15.0
PIXELS_CYCLES = 150.0
KERNEL_CYCLES = 12.0


def candidates(shape: ConvShape, core: str) -> tuple[Candidate, ...]:
    """Every layer's `direct`, `unpack` or `decode` on the M55; nothing on other cores."""
    return tuple(_candidates(shape)) if core == "m55" else ()


def _candidates(shape: ConvShape) -> Iterator[Candidate]:
    indexed = shape.kind != "uniform"
    form: Form = "decode" if indexed else "direct" if shape.bits == 8 else "unpack"
    function = "kq_conv2d_decode_mve_s8" if indexed else "kq_conv2d_mve_s8"
    tile = 4
    while tile // 2 < shape.c_out:
        channels = min(tile, shape.c_out)
        yield Candidate(form, function, channels, 0, scratch_bytes(shape, channels), _cycles(shape, channels))
        tile *= 2


def _round(value: int, unit: int) -> int:
    return -(-value // unit) * unit


def scratch_bytes(shape: ConvShape, tile: int) -> int:
    """SPEC 6.7."""
    (k_h, k_w), (stride_h, stride_w) = shape.kernel, shape.stride
    words = CONSTANT_WORDS + PAIR_WORDS * (_round(tile, 2) // 2)
    weights = _round(tile, 2 if shape.kind == "uniform" else 8) * _round(shape.taps, LANES_BYTES)
    columns = ((shape.w_out - 1) * stride_w + k_w) * k_h * shape.c_in
    slides = (shape.h_out - 1) * stride_h * shape.c_in if stride_h < k_h else 0
    stages = {"uniform": 0, "indexed": 1, "additive": 2}[shape.kind]
    book = stages * shape.codewords * shape.n
    return 4 * words + round4(shape.c_in) + weights + round4(columns + slides + SLACK_BYTES) + round4(book)


def _cycles(shape: ConvShape, tile: int) -> float:
    rounds = -(-shape.c_out // tile)
    steps = -(-shape.taps // LANES_BYTES)
    pairs_of_pixels = shape.h_out * -(-shape.w_out // 2)
    groups = pairs_of_pixels * -(-shape.c_out // 2)
    return groups * (steps * STEP_CYCLES + GROUP_CYCLES + PUT_CYCLES) + rounds * pairs_of_pixels * PIXELS_CYCLES
