"""Partial sums looked up: each codeword's dot product is computed once for eight pixels, output channels gather and add (SPEC 6.3)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from kqgen.conv_shape import Candidate, ConvShape, round4

PIXELS = 8
STRIPS = (1, 2, 4, 6, 8)
"""Input channels whose tables are held at once."""

GROUP = 32
"""Output channels that have lists at a time."""

_FAST_BITS, _FAST_STRIPS = 6, (6, 8)
"""Indices of this width are placed sixteen at a time where a strip is full."""

_SUM_CYCLES = 14.0
"""Of adding to what the output holds: two multiplies, a load, clamping."""


@dataclass(frozen=True, slots=True)
class _Price:
    """Modelled cycles on a core, fitted to counts of 55 layers of 16 to 256 input and 16 to 512 output channels, 4 to 64 codewords.

    Attributes:
        window, slide: eight 3x3 windows side by side in one input channel, and their dot products with one codeword.
        tap: one tap of eight windows anywhere, in one input channel.
        nine, other: dot products of such windows with a codeword of nine taps, or with one tap of another codeword.
        fast, slow, bit: one entry of an output channel (eight pixels, one input channel), its index read and its four words added, by the
            fast reader, or by the slow one, which pays for the index's bits too.
        channel: one output channel's accumulators fetched and stored, once a strip.
        six: how much less that is where a strip of six is read fast, which has a loop of its own.
        output: one output requantised.
    """

    window: float
    slide: float
    tap: float
    nine: float
    other: float
    fast: float
    slow: float
    bit: float
    channel: float
    six: float
    output: float


_M0P = _Price(0.0, 0.0, 180.6, 328.6, 35.3, 32.1, 28.6, 2.7, 58.3, 0.0, 62.7)
_M3 = _Price(0.0, 0.0, 142.9, 237.0, 28.0, 16.5, 20.0, 2.8, 34.9, 6.0, 45.4)
_M4 = _Price(384.1, 82.7, 132.2, 204.4, 24.4, 16.1, 23.7, 1.8, 36.1, 6.0, 34.7)
_M7 = _Price(189.7, 74.3, 71.6, 140.8, 13.7, 7.9, 12.2, 2.0, 20.5, 1.5, 20.1)
_M33 = _Price(370.7, 92.4, 100.5, 189.0, 20.0, 15.5, 22.9, 1.8, 33.2, 4.2, 30.6)
_PRICES: Mapping[str, _Price] = MappingProxyType({"m0": _M0P, "m0p": _M0P, "m3": _M3, "m4": _M4, "m7": _M7, "m33": _M33, "m55": _M33})
_WITHOUT_DSP = frozenset({"m0", "m0p", "m3"})


def candidates(shape: ConvShape, core: str) -> tuple[Candidate, ...]:
    """`reuse` for layers with a plain codebook."""
    return tuple(_candidates(shape, core)) if shape.kind == "indexed" else ()


def scratch_bytes(shape: ConvShape, strip: int) -> int:
    """SPEC 6.4."""
    lists = max(4 * (GROUP * (strip + 1) + 2), 16 * (shape.n + 1))
    # A codeword of 3x3 values takes six words where windows slide, and one more ends them, on cores with DSP; elsewhere the room is kept.
    kernels = 24 * (shape.codewords + 1) if shape.kernel == (3, 3) else round4(shape.codewords * shape.n)
    return 4 * PIXELS * shape.c_out + 16 * _rows(shape) * strip + lists + 4 * PIXELS * shape.n + kernels


def _rows(shape: ConvShape) -> int:
    return shape.codewords + (1 << shape.bits - 1 if shape.sign else 0)


def _slides(shape: ConvShape, core: str) -> bool:
    left = shape.padding[2]
    side_by_side = shape.kernel == (3, 3) and shape.stride[1] == 1 and shape.w_out % PIXELS == 0
    return core not in _WITHOUT_DSP and side_by_side and left <= 1 and shape.w_out < shape.w_in + left


def _fast_entries(shape: ConvShape, strip: int) -> int:
    if shape.bits != _FAST_BITS or shape.c_out % 4:
        return 0
    strips = [strip] * (shape.c_in // strip) + [shape.c_in % strip]
    return sum(entries for entries in strips if entries in _FAST_STRIPS) * (shape.c_out - shape.c_out % GROUP)


def _tile_cycles(shape: ConvShape, price: _Price, slides: bool, strip: int) -> float:
    """Of eight pixels, requantisation apart."""
    if slides:
        tables = price.window + shape.codewords * price.slide
    else:
        tables = shape.n * price.tap + shape.codewords * (price.nine if shape.n == 9 else price.other * shape.n)
    fast = _fast_entries(shape, strip)
    slow = shape.c_in * shape.c_out - fast
    entries = fast * price.fast + slow * (price.slow + shape.bits * price.bit)
    sixes = fast // 6 if strip == 6 else 0
    return shape.c_in * tables + entries + -(-shape.c_in // strip) * shape.c_out * price.channel - sixes * price.six


def _candidates(shape: ConvShape, core: str) -> Iterator[Candidate]:
    price = _PRICES[core]
    slides = _slides(shape, core)
    finish = shape.pixels * shape.c_out * (price.output + _SUM_CYCLES * shape.sums)
    for strip in STRIPS:
        if strip == 1 or strip <= shape.c_in:
            cycles = -(-shape.pixels // PIXELS) * _tile_cycles(shape, price, slides, strip) + finish
            yield Candidate("reuse", "kq_conv2d_reuse_s8", PIXELS, strip, scratch_bytes(shape, strip), cycles)
