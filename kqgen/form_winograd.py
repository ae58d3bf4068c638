"""Winograd's F(2x2,3x3) and F(4x4,3x3) on integers, for indexed 3x3 layers of stride 1 on every core (SPEC 6.5)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from kqgen.conv_shape import Candidate, ConvShape, round4
from kqgen.plan import Form

MOST_SCRATCH_BYTES = 96 << 10
"""Beyond this no candidate is offered: its parts would be copied more often than they are read again."""

LEAST_GAIN = 0.03
"""A candidate that takes more scratch than another is offered when it is faster by this share."""


@dataclass(frozen=True, slots=True)
class Prices:
    """Modelled cycles of the parts on a core, of one form; counted on layers of 16, 32 and 64 channels.

    Attributes:
        word: the products of one word of 4 streams with 2 (16 multiplies; the M0+ takes two blocks of 2 with 2).
        position: what one position of such a block costs beside its words.
        patch: one patch, one word of two channels. border: what it costs more when it reaches over the edge.
        kernel: one kernel of two channels, transformed.
        row: a run of indices of one input channel. index: one of them.
        unpack: one codeword. read: a kernel from a packed codebook, beside its codewords.
        store: the transform of one tile's sums for one output channel. pixel: one pixel of it. summed: one that is added to another, more.
    """

    word: float
    position: float
    patch: float
    border: float
    kernel: float
    row: float
    index: float
    unpack: float
    read: float
    store: float
    pixel: float
    summed: float


PRICES: Mapping[tuple[str, Form], Prices] = MappingProxyType({
    ("m0p", "winograd2"): Prices(67.0, 54.0, 525.0, 85.0, 525.0, 50.0, 25.0, 92.0, 57.0, 452.0, 40.0, 20.0),
    ("m0p", "winograd4"): Prices(67.0, 54.0, 1367.0, 145.0, 738.0, 70.0, 30.0, 92.0, 57.0, 718.0, 33.5, 30.0),
    ("m3", "winograd2"): Prices(53.0, 28.0, 308.0, 66.0, 309.0, 40.0, 20.0, 54.0, 49.0, 312.0, 20.0, 16.0),
    ("m3", "winograd4"): Prices(53.0, 28.0, 690.0, 125.0, 434.0, 40.0, 20.0, 54.0, 49.0, 528.0, 12.0, 14.0),
    ("m4", "winograd2"): Prices(17.25, 30.0, 286.0, 68.0, 285.0, 40.0, 18.0, 54.0, 49.0, 296.0, 18.0, 15.0),
    ("m4", "winograd4"): Prices(17.25, 30.0, 633.0, 125.0, 421.0, 40.0, 18.0, 54.0, 49.0, 467.0, 9.0, 12.5),
    ("m33", "winograd2"): Prices(15.0, 28.0, 265.0, 56.0, 248.0, 36.0, 17.0, 52.0, 41.0, 253.0, 17.0, 14.0),
    ("m33", "winograd4"): Prices(15.0, 28.0, 590.0, 100.0, 352.0, 36.0, 17.0, 52.0, 41.0, 409.0, 9.0, 11.5),
    ("m7", "winograd2"): Prices(10.5, 31.0, 159.5, 45.0, 172.0, 30.0, 14.0, 41.0, 28.0, 171.0, 12.0, 10.0),
    ("m7", "winograd4"): Prices(10.5, 31.0, 386.0, 70.0, 250.0, 30.0, 14.0, 41.0, 28.0, 272.0, 6.0, 13.5),
})  # fmt: skip
"""By core and form; no other core has either: the M0 runs the M0+'s code, the M55's vectors take fewer cycles without a transform."""


def candidates(shape: ConvShape, core: str) -> tuple[Candidate, ...]:
    """`winograd2` and `winograd4` for 3x3 kernels of stride 1 whose sums, times what the transforms multiply by, fit int32."""
    if core == "m55" or shape.kind == "uniform" or shape.kernel != (3, 3) or shape.stride != (1, 1):
        return ()
    priced = "m0p" if core == "m0" else core
    forms: tuple[tuple[Form, int], ...] = (("winograd2", 2), ("winograd4", 4))
    return tuple(each for form, side in forms if _fits(shape, side) for each in _worthwhile(shape, form, side, PRICES[priced, form]))


def _fits(shape: ConvShape, side: int) -> bool:
    """Whether a sum without its bias fits int32 when it is 4 (24 * 24) times as large; kernels and patches fit int16 for any weights."""
    return shape.largest_sum * 128 * (4 if side == 2 else 576) < 2**31


def _worthwhile(shape: ConvShape, form: Form, side: int, prices: Prices) -> Iterator[Candidate]:
    """From least scratch to fastest."""
    best = float("inf")
    for each in sorted(_all(shape, form, side, prices), key=lambda each: (each.scratch_bytes, each.cycles)):
        if each.cycles < best * (1.0 - LEAST_GAIN) and (best == float("inf") or each.scratch_bytes <= MOST_SCRATCH_BYTES):
            best = each.cycles
            yield each


def _all(shape: ConvShape, form: Form, side: int, prices: Prices) -> Iterator[Candidate]:
    tiles = map_tiles(shape, side)
    for tile in (2, *_steps(shape.c_out, 4)):
        for strip in _steps(tiles, 4 if tile == 2 else 2):
            for expanded in (0, 1):
                scratch = scratch_bytes(shape, side, tile, strip + expanded)
                cycles = predicted_cycles(shape, side, tile, strip + expanded, prices)
                yield Candidate(form, f"kq_conv2d_{form}_s8", tile, strip + expanded, scratch, cycles)


def _steps(most: int, unit: int) -> Iterator[int]:
    """Powers of two times `unit`, and the first multiple of it that covers `most`."""
    size = unit
    while size < most and size < 2**14:
        yield size
        size *= 2
    yield min(-(-most // unit) * unit, 2**15)


def map_tiles(shape: ConvShape, side: int) -> int:
    """Tiles of side * side output pixels, the partial ones at the edges counted."""
    return -(-shape.h_out // side) * -(-shape.w_out // side)


def scratch_bytes(shape: ConvShape, side: int, tile: int, strip: int) -> int:
    """SPEC 6.4; an odd `strip` has the codebook expanded."""
    positions, words = (side + 2) ** 2, 2 * -(-shape.c_in // 4)
    book = round4(shape.n * _codewords(shape)) if strip % 2 else 0
    return 4 * positions * words * (tile + strip - strip % 2) + 4 * 8 * positions + book


def _codewords(shape: ConvShape) -> int:
    return shape.codewords * (2 if shape.kind == "additive" else 1)


def rounds(shape: ConvShape, side: int, tile: int, strip: int) -> tuple[int, int]:
    """How often (kernels, patches) are transformed: as kq_winograd_run orders its loops."""
    tiles = map_tiles(shape, side)
    strips, groups = -(-tiles // strip), -(-shape.c_out // tile)
    outside = shape.c_out * tile * max(tiles - strip, 0) <= tiles * strip * max(shape.c_out - tile, 0)
    if outside:
        return (1 if groups == 1 else strips), 1
    return 1, (1 if strips == 1 else groups)


def predicted_cycles(shape: ConvShape, side: int, tile: int, strip: int, prices: Prices) -> float:
    """Modelled cycles of the whole layer."""
    expanded, strip = strip % 2, strip - strip % 2
    positions, words, tiles = (side + 2) ** 2, 2 * -(-shape.c_in // 4), map_tiles(shape, side)
    kernel_rounds, patch_rounds = rounds(shape, side, tile, strip)
    kernel_group, patch_group = (2, 4) if tile == 2 else (4, 2)
    blocks = -(-shape.c_out // kernel_group) * -(-tiles // patch_group)
    products = blocks * positions * (words * prices.word + prices.position)
    borders = tiles - max(shape.h_out // side - 2, 0) * max(shape.w_out // side - 2, 0)
    patches = patch_rounds * words * (tiles * prices.patch + borders * prices.border)
    stages = 2 if shape.kind == "additive" else 1
    index = prices.index + prices.row / kernel_group + (0.0 if expanded else stages * prices.unpack + prices.read)
    kernels = kernel_rounds * shape.c_out * words * (prices.kernel + 2.0 * index)
    book = expanded * _codewords(shape) * prices.unpack
    pixel = prices.pixel + (prices.summed if shape.sums else 0.0)
    stores = shape.c_out * (tiles * prices.store + shape.pixels * pixel)
    return products + patches + kernels + book + stores
