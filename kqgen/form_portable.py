"""The portable forms of a convolution: plain C for every core, and the reference of the faster ones (SPEC 6.1)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import MappingProxyType

from kqgen.conv_shape import Candidate, ConvShape, round4

TAP_CYCLES = 9.0
PIXEL_CHANNEL_CYCLES = 70.0
"""Modelled cycles of the plain C, times the core's factor."""

FACTORS: Mapping[str, float] = MappingProxyType({"m0": 1.2, "m0p": 1.2, "m3": 1.03, "m4": 0.92, "m33": 0.70, "m7": 0.476, "m55": 0.50})
"""As counted on a fully connected layer, which is where these forms are chosen; elsewhere cores have faster ones."""


def candidates(shape: ConvShape, core: str) -> tuple[Candidate, ...]:
    """`direct` for 8-bit weights, `unpack` for 6- and 4-bit ones; nothing for indices."""
    return tuple(_candidates(shape, FACTORS[core])) if shape.kind == "uniform" else ()


def _candidates(shape: ConvShape, factor: float) -> Iterator[Candidate]:
    cycles = factor * (shape.macs * TAP_CYCLES + shape.pixels * shape.c_out * PIXEL_CHANNEL_CYCLES)
    if shape.bits == 8:
        yield Candidate("direct", "kq_conv2d_s8", 0, 0, im2col_bytes(shape), cycles)
        return
    for weights_bytes in (2304, 9216):
        tile = tile_channels(shape, weights_bytes)
        scratch = round4(tile * shape.taps) + im2col_bytes(shape)
        yield Candidate("unpack", "kq_conv2d_s8", tile, 0, scratch, cycles * (1.0 + 0.02 * (-(-shape.c_out // tile) - 1)))


def tile_channels(shape: ConvShape, weights_bytes: int) -> int:
    """Output channels whose weights of one byte are expanded at a time: as many as fit, evenly spread, at least 1."""
    most = max(1, min(shape.c_out, weights_bytes // shape.taps))
    rounds = -(-shape.c_out // most)
    return -(-shape.c_out // rounds)


def im2col_bytes(shape: ConvShape) -> int:
    """Scratch of two windows; none when a 1x1 kernel reads its input in place (SPEC 6.4)."""
    if shape.kernel == (1, 1) and shape.padding == (0, 0, 0, 0):
        return 0
    return round4(2 * shape.taps)
