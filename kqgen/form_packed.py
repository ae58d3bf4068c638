"""Two output channels in one word: forms `direct`, `unpack` and `decode` for cores without SIMD (SPEC 6.2)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from kqgen.conv_shape import Candidate, ConvShape, round4

LANE_SUM = 255
CHANNELS = 8
TABLE_BYTES = 128
LARGEST_VALUE = 31
"""As in runtime_c/kq_lanes.h, kq_lane_layer.h and kq_conv2d_packed.c."""

UNEVEN = 1.15
"""The largest sum over a group of weights, to that over all taps shared out evenly: groups of 9 to 14 taps of trained first layers."""


@dataclass(frozen=True, slots=True)
class Costs:
    """Modelled cycles of the parts, by hand from the loops (docs/DESIGN.md), overheads fitted to counts of ResNet-8's layers.

    Attributes:
        nine, tap, group: a group of nine taps with its totals; of other groups each tap, and the rest.
        octet, pixel, position: around the groups of eight channels; around the octets of a pixel; around all that a pixel takes.
        single, channel, sum_channel: an octet not stored on the way; each of its channels; each when an addition is done on the way.
        three, three_row, three_pixel: windows by channel: three words on the map, a row, a pixel.
        word, word_tap, word_pixel: the same at borders or for kernels of other widths: a word, a tap, a pixel.
        along, along_row, along_pixel: windows in the order of the map: a word, a row, a pixel that lies on it.
        border_row, piece: a row at a border; a piece where groups cut rows.
        kernel, pack, pack_value: a kernel, packing it, each value of it.
        unpack, unpack_value, add_value: unpacking a codeword from 6 bits, each value; adding that of a second stage.
        codebook_value, weight, six_bits: a value when all are unpacked in one go; a uniform weight of 8 or 4 bits, of 6.
        table: the table of a channel.
    """

    nine: float
    tap: float
    group: float
    octet: float
    pixel: float
    position: float
    single: float
    channel: float
    sum_channel: float
    three: float
    three_row: float
    three_pixel: float
    word: float
    word_tap: float
    word_pixel: float
    along: float
    along_row: float
    along_pixel: float
    border_row: float
    piece: float
    kernel: float
    pack: float
    pack_value: float
    unpack: float
    unpack_value: float
    add_value: float
    codebook_value: float
    weight: float
    six_bits: float
    table: float


M0 = Costs(
    nine=161, tap=16, group=43, octet=296, pixel=108, position=52, single=109, channel=89, sum_channel=109,
    three=14, three_row=20, three_pixel=49, word=9.05, word_tap=45, word_pixel=105,
    along=4.25, along_row=31, along_pixel=104, border_row=190, piece=119,
    kernel=94, pack=10.5, pack_value=6.5, unpack=98, unpack_value=18, add_value=9, codebook_value=10.8, weight=27, six_bits=13, table=78,
)  # fmt: skip
M3 = Costs(
    nine=161, tap=16, group=44, octet=282, pixel=81, position=42, single=93, channel=66, sum_channel=81,
    three=12.5, three_row=20, three_pixel=40, word=8.06, word_tap=15, word_pixel=90,
    along=4, along_row=24, along_pixel=82, border_row=175, piece=82,
    kernel=80, pack=10, pack_value=5.5, unpack=85, unpack_value=12.7, add_value=6, codebook_value=7, weight=20, six_bits=9, table=45,
)  # fmt: skip
CORES = {"m0": M0, "m0p": M0, "m3": M3}
"""Cores the engine is written for; by lookup it serves the others too, as plain C."""

TWICE_CYCLES, SLOWLY_CYCLES = 13.0, 180.0
"""Of a result rounded twice (SPEC 3.5) as octets are stored, beyond one of SPEC 3.2; and of one that goes the general way."""

LARGEST_UNIFORM = 127
"""Absolute weight up to which groups of two taps hold."""

PLAIN_FACTORS = {"m4": 1.29, "m33": 1.09, "m7": 0.78, "m55": 1.2}
"""Cycles of the plain C, which other cores take, to those of the Thumb code on an M3; counted on 3x3 kernels; the M55's is a guess."""


@dataclass(frozen=True, slots=True)
class Layout:
    """How the taps of a window are cut (SPEC 6.2): `groups` of `taps` taps, laid out in `span` words each."""

    groups: int
    taps: int

    @property
    def span(self) -> int:
        """Words of a group's taps."""
        return self.taps if self.taps == 9 else self.taps + self.taps % 2

    @property
    def words(self) -> int:
        """Words of all taps."""
        return self.groups * self.span

    @property
    def stream_bytes(self) -> int:
        """The window of one pixel and the sums behind each group."""
        return 4 * (self.words + 4 * self.groups)

    @property
    def octet_bytes(self) -> int:
        """Packed weights of eight channels, and their table."""
        return 16 * self.words + TABLE_BYTES


def _cut(taps: int, largest: int) -> Layout:
    """Fewest groups, as even as can be, whose weights of at most `largest` cannot sum to more than 255; cut_taps() of the runtime."""
    groups = 1
    while -(-taps // groups) * largest > LANE_SUM:
        groups += 1
    return Layout(groups, -(-taps // groups))


def reserved_layout(shape: ConvShape) -> Layout:
    """The layout that any weights allow: the scratch holds it."""
    if shape.kind == "uniform":
        return _cut(shape.taps, 2 ** (shape.bits - 1) - 1)
    if shape.n == 1:
        return _cut(shape.c_in, LARGEST_VALUE * (2 if shape.kind == "additive" else 1))
    return Layout(shape.c_in, shape.n)


def expected_layout(shape: ConvShape) -> tuple[Layout, int]:
    """The layout that the runtime will find for uniform weights (cut_weights()), and how many it will have tried in vain.

    How weights spread over a channel's taps is not known here: sums of groups are taken as even but for UNEVEN.
    """
    reserved = reserved_layout(shape)
    if shape.kind != "uniform" or shape.bits == 8:
        return reserved, 0
    tried = 0
    for groups in range(1, reserved.groups):
        layout = Layout(groups, -(-shape.taps // groups))
        if layout.words <= reserved.words:
            if shape.largest_sum * (UNEVEN if groups > 1 else 1.0) / groups <= LANE_SUM:
                return layout, tried
            tried += 1
    return reserved, tried


def candidates(shape: ConvShape, core: str) -> tuple[Candidate, ...]:
    """Tiles of eight output channels up to all of them; with a plain codebook each also with all codewords unpacked once.

    Two weights of -128, which TFLite's files may have, would pass what a group's sum can hold.
    """
    if shape.kind == "uniform" and (core not in CORES or shape.largest_weight > LARGEST_UNIFORM):
        return ()
    return tuple(_candidates(shape, core))


def _candidates(shape: ConvShape, core: str) -> Iterator[Candidate]:
    reserved = reserved_layout(shape)
    function = {"uniform": "kq_conv2d_packed_s8", "indexed": "kq_conv2d_decode_s8", "additive": "kq_conv2d_decode_additive_s8"}[shape.kind]
    form: Literal["decode", "direct", "unpack"] = "decode" if shape.kind != "uniform" else "direct" if shape.bits == 8 else "unpack"
    factor = PLAIN_FACTORS.get(core, 1.0)
    octets = -(-shape.c_out // CHANNELS)
    for rounds in sorted({-(-octets // tile) for tile in range(1, octets + 1)}, reverse=True):
        tile = -(-octets // rounds)
        shared = reserved.stream_bytes + tile * reserved.octet_bytes + round4(shape.kernel[1] * shape.c_in)
        for strip in (0, 1) if shape.kind == "indexed" else (0,):
            room = 2 * shape.taps if shape.kind == "uniform" else (shape.codewords if strip else 3) * shape.n
            cycles = factor * sum(_parts(shape, CORES.get(core, M3), rounds, strip))
            yield Candidate(form, function, CHANNELS * tile, strip, shared + round4(room), cycles)


def _parts(shape: ConvShape, costs: Costs, rounds: int, strip: int) -> tuple[float, ...]:
    layout, tried = expected_layout(shape)
    windows = rounds * shape.pixels
    return (
        shape.pixels * _octets_cycles(shape, costs, layout) + windows * (costs.pixel + costs.position),
        rounds * _windows_cycles(shape, costs, layout),
        _weights_cycles(shape, costs, strip, tried) + shape.c_out * costs.table,
        1.5 * 4 * layout.words * -(-shape.c_out // CHANNELS),
    )


def _octets_cycles(shape: ConvShape, costs: Costs, layout: Layout) -> float:
    """All output channels of one pixel whose window is laid out."""
    group = costs.nine if layout.span == 9 else costs.group + costs.tap * layout.span
    whole = 0 if shape.sums else shape.c_out // CHANNELS
    channels = shape.c_out - CHANNELS * whole
    single = -(-channels // CHANNELS)
    rest = single * costs.single + channels * (costs.sum_channel if shape.sums else costs.channel)
    sums = (whole + single) * layout.groups * group
    if shape.rule == "slowly":
        return sums + (whole + single) * costs.single + shape.c_out * SLOWLY_CYCLES
    return sums + whole * (costs.octet + (CHANNELS * TWICE_CYCLES if shape.rule == "twice" else 0.0)) + rest


def _inside(shape: ConvShape) -> int:
    """Output pixels whose windows lie on the map."""
    top, _, left, _ = shape.padding
    rows = sum(0 <= y * shape.stride[0] - top <= shape.h_in - shape.kernel[0] for y in range(shape.h_out))
    return rows * sum(0 <= x * shape.stride[1] - left <= shape.w_in - shape.kernel[1] for x in range(shape.w_out))


def _windows_cycles(shape: ConvShape, costs: Costs, layout: Layout) -> float:
    """Laying out the windows of all pixels once."""
    inside, rows = _inside(shape), shape.kernel[0]
    border = shape.pixels - inside
    if shape.kind != "uniform" and shape.n > 1:
        slow = costs.word_pixel + shape.n * (costs.word_tap + shape.c_in * costs.word)
        if shape.kernel[1] != 3:
            return shape.pixels * slow
        return inside * (costs.three_pixel + rows * (costs.three_row + shape.c_in * costs.three)) + border * slow
    row = shape.kernel[1] * shape.c_in
    if layout.groups > 1 and layout.taps != row:
        return shape.pixels * (200 + max(layout.groups, rows) * costs.piece + shape.taps * costs.along)
    plain = costs.along_pixel + rows * (costs.along_row + row * costs.along)
    return inside * plain + border * (150 + rows * (costs.border_row + row * costs.along))


def _weights_cycles(shape: ConvShape, costs: Costs, strip: int, tried: int) -> float:
    """Expanding all weights once, and finding their groups."""
    kernels = shape.c_in * shape.c_out
    if shape.kind == "uniform":
        value = costs.six_bits if shape.bits == 6 else costs.weight
        channel = shape.taps * (value + 15)
        searched = (tried * shape.c_out / 4 + shape.c_out) * channel if tried else 0.0
        return kernels * shape.n * (value + costs.pack_value + 2) + searched
    unpacked = costs.unpack + shape.n * costs.unpack_value
    if shape.kind == "additive":
        unpacked = 2 * unpacked + shape.n * costs.add_value
    packed = costs.kernel + costs.pack + shape.n * costs.pack_value
    if strip:
        return kernels * packed + shape.codewords * shape.n * costs.codebook_value
    return kernels * (packed + unpacked)
