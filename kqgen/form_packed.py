"""Two output channels in one word: forms `direct`, `unpack` and `decode` for cores without SIMD (SPEC 6.2)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from kqgen.conv_shape import Candidate, ConvShape, round4

CORES = ("m0", "m0p", "m3")
"""Those the engine is written for; by lookup it serves the others too, as plain C."""

LANE_SUM = 255
CHANNELS = 8
TABLE_BYTES = 128
LARGEST_VALUE = 31
"""As in runtime_c/kq_lanes.h and kq_conv2d_packed.c."""


@dataclass(frozen=True, slots=True)
class Layout:
    """How the taps of a window are cut (SPEC 6.2).

    Attributes:
        groups: sums taken apart per window and pair of channels.
        span: words of a group's taps.
    """

    groups: int
    span: int

    @property
    def stream_bytes(self) -> int:
        """The window of one pixel and the sums behind each group."""
        return 4 * self.groups * (self.span + 4)

    @property
    def octet_bytes(self) -> int:
        """Packed weights of eight channels, and their table."""
        return 16 * self.groups * self.span + TABLE_BYTES


def _layout(groups: int, taps: int) -> Layout:
    return Layout(groups, taps if taps == 9 else taps + taps % 2)


def _cut(taps: int, largest: float) -> Layout:
    """Fewest even groups of `taps` taps whose sums stay within 255 when the taps of a group sum to `largest` a tap at most."""
    groups = 1
    while -(-taps // groups) * largest > LANE_SUM and groups < taps:
        groups += 1
    return _layout(groups, -(-taps // groups))


def reserved_layout(shape: ConvShape) -> Layout:
    """The layout that any weights allow; the scratch holds it."""
    if shape.kind == "uniform":
        return _cut(shape.taps, 2 ** (shape.bits - 1) - 1)
    if shape.n == 1:
        return _cut(shape.c_in, LARGEST_VALUE * (2 if shape.kind == "additive" else 1))
    return _layout(shape.c_in, shape.n)


def candidates(shape: ConvShape, core: str) -> tuple[Candidate, ...]:
    """Tiles of eight output channels up to all of them; by lookup each also with the codebook expanded once."""
    if shape.kind == "uniform" and core not in CORES:
        return ()
    return tuple(_candidates(shape))


def _candidates(shape: ConvShape) -> Iterator[Candidate]:
    layout = reserved_layout(shape)
    function = {"uniform": "kq_conv2d_packed_s8", "indexed": "kq_conv2d_decode_s8", "additive": "kq_conv2d_decode_additive_s8"}[shape.kind]
    form = "decode" if shape.kind != "uniform" else "direct" if shape.bits == 8 else "unpack"
    octets = -(-shape.c_out // CHANNELS)
    for rounds in sorted({-(-octets // tile) for tile in range(1, octets + 1)}, reverse=True):
        tile = -(-octets // rounds)
        scratch = layout.stream_bytes + tile * layout.octet_bytes + round4(shape.kernel[1] * shape.c_in)
        for strip in (0, 1) if shape.kind == "indexed" else (0,):
            codebook_bytes = round4(2 * shape.taps if shape.kind == "uniform" else (shape.codewords if strip else 3) * shape.n)
            cycles = shape.macs * 2.5 * (1 + 0.01 * rounds - 0.02 * strip)
            yield Candidate(form, function, CHANNELS * tile, strip, scratch + codebook_bytes, cycles)
