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

# Modelled cycles on a Cortex-M55: the first three counted by hand in the loops of runtime_c/kq_mve_rows.h, the others fitted to counts.
STEP_CYCLES = 8.0  # four products and four loads: 16 values of two pixels by two channels
GROUP_CYCLES = 27.0  # 7 to begin, 14 to requantise and store, 6 to go on
SUM_CYCLES = 18.0  # what an addition adds to a group
PIXELS_CYCLES = 50.0  # before the first group of two pixels
ROW_CYCLES = 210.0  # an output row of one tile
COPY_CYCLES = 6.0  # 16 values of a column
PART_CYCLES = 9.0  # fewer
EIGHT_CYCLES = 226.0  # eight kernels of nine values
EIGHT_TAP_CYCLES = 12.0
BOOK_CYCLES = 1.5  # a codebook's value
CLEAR_CYCLES = 4.0  # 16 weights
WEIGHT_CYCLES = 9.0  # a uniform weight
EXPAND_CYCLES = 2.5  # one of 6 or 4 bits besides
LINE_CYCLES = 7.0  # 16 weights, where the kernel is one row or column
LINE_CHANNEL_CYCLES = 130.0  # and an output channel
POSITION_CYCLES = 45.0  # the uniform weights of one position of the kernel
LAYER_CYCLES = 800.0


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
    pairs_of_pixels = shape.h_out * -(-shape.w_out // 2)
    groups = pairs_of_pixels * -(-shape.c_out // 2)
    steps = -(-shape.taps // LANES_BYTES)
    group = steps * STEP_CYCLES + GROUP_CYCLES + (SUM_CYCLES if shape.sums else 0.0)
    columns = (shape.w_out - 1) * shape.stride[1] + shape.kernel[1]
    rows = min(shape.kernel[0], shape.stride[0]) * (shape.h_out - 1) + shape.kernel[0]
    part = PART_CYCLES if shape.c_in % LANES_BYTES else 0.0
    copies = rows * columns * (shape.c_in // LANES_BYTES * COPY_CYCLES + part)
    one_round = pairs_of_pixels * PIXELS_CYCLES + shape.h_out * ROW_CYCLES + copies
    full = _weights_cycles(shape, tile) * (rounds - 1)
    return LAYER_CYCLES + groups * group + rounds * one_round + full + _weights_cycles(shape, shape.c_out - (rounds - 1) * tile)


def _weights_cycles(shape: ConvShape, tile: int) -> float:
    """Of one tile's weights, with its share of the codebook's."""
    if shape.kind == "uniform":
        expanded = 0.0 if shape.bits == 8 else EXPAND_CYCLES * shape.taps
        vectors = -(-shape.taps // LANES_BYTES)
        if min(shape.kernel) == 1:
            return tile * (expanded + vectors * (LINE_CYCLES + CLEAR_CYCLES) + LINE_CHANNEL_CYCLES)
        return tile * (expanded + shape.n * (shape.c_in * WEIGHT_CYCLES + POSITION_CYCLES))
    stages = 2 if shape.kind == "additive" else 1
    eights = _round(tile, 8) // 8 * shape.c_in
    eight = EIGHT_CYCLES + (shape.n * stages - 9) * EIGHT_TAP_CYCLES
    book = stages * shape.codewords * shape.n * BOOK_CYCLES * tile / shape.c_out
    return eights * eight + _round(tile, 8) * -(-shape.taps // LANES_BYTES) * CLEAR_CYCLES + book
