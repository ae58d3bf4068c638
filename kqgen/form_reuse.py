"""Partial sums looked up: each codeword's dot product is computed once for a tile of pixels, output channels gather and add (SPEC 6.3)."""

from __future__ import annotations

from collections.abc import Iterator

from kqgen.conv_shape import Candidate, ConvShape, round4

# Modelled cycles of the plain C on a Cortex-M0+, for two output pixels and one input channel, fitted to runs of 16 to 64 channels.
TAP_CYCLES = 10.0
CODEWORD_CYCLES = 8.0
GATHER_CYCLES = 48.0
PATCH_CYCLES = 33.0


def candidates(shape: ConvShape, core: str) -> tuple[Candidate, ...]:
    """`reuse` for layers with a plain codebook."""
    del core
    return tuple(_candidates(shape)) if shape.kind == "indexed" else ()


def _candidates(shape: ConvShape) -> Iterator[Candidate]:
    n = shape.n
    for pixels in (8, 16, 32):
        tile = min(pixels, shape.pixels + shape.pixels % 2)
        scratch = (
            4 * tile * shape.c_out
            + 4 * shape.codewords * (tile // 2)
            + 4 * n * tile
            + 4 * (n + 1) * (tile // 2)
            + round4(shape.codewords * n)
            + round4(2 * shape.codewords)
        )
        pair = shape.used_codewords * (n * TAP_CYCLES + CODEWORD_CYCLES) + shape.c_out * GATHER_CYCLES + n * PATCH_CYCLES
        yield Candidate("reuse", "kq_conv2d_reuse_s8", tile, 0, scratch, pair * shape.c_in * shape.pixels / 2)
