"""Partial sums looked up: each codeword's dot product is computed once for eight pixels, output channels gather and add (SPEC 6.3)."""

from __future__ import annotations

from collections.abc import Iterator

from kqgen.conv_shape import Candidate, ConvShape, round4

PIXELS = 8
STRIPS = (1, 2, 4, 6, 8)
"""Input channels whose tables are held at once."""

GROUP = 32
"""Output channels that have lists at a time."""


def candidates(shape: ConvShape, core: str) -> tuple[Candidate, ...]:
    """`reuse` for layers with a plain codebook."""
    del core
    return tuple(_candidates(shape)) if shape.kind == "indexed" else ()


def scratch_bytes(shape: ConvShape, strip: int) -> int:
    """SPEC 6.4."""
    lists = max(4 * (GROUP * (strip + 1) + 2), 16 * (shape.n + 1))
    # A codeword of 3x3 values takes five words where windows slide, on cores with DSP instructions; elsewhere the room is kept.
    kernels = 20 * shape.codewords if shape.kernel == (3, 3) else round4(shape.codewords * shape.n)
    return 4 * PIXELS * shape.c_out + 16 * _rows(shape) * strip + lists + 4 * PIXELS * shape.n + kernels


def _rows(shape: ConvShape) -> int:
    return shape.codewords + (1 << shape.bits - 1 if shape.sign else 0)


def _candidates(shape: ConvShape) -> Iterator[Candidate]:
    tiles = -(-shape.pixels // PIXELS)
    for strip in STRIPS:
        if strip == 1 or strip <= shape.c_in:
            cycles = tiles * shape.c_in * (shape.c_out * (32 + 23 / strip) + shape.codewords * 100)
            yield Candidate("reuse", "kq_conv2d_reuse_s8", PIXELS, strip, scratch_bytes(shape, strip), float(cycles))
