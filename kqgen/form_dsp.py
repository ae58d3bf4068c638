"""Two int16 in a word: forms `direct`, `unpack` and `decode` for cores with the DSP extension (SPEC 6.5)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from kqgen.conv_shape import Candidate, ConvShape, round4

GROUP = 4
"""Output channels of a group, as in runtime_c/kq_conv2d_dsp.c."""


@dataclass(frozen=True, slots=True)
class Prices:
    """Modelled cycles of a core, counted by hand in the loops of runtime_c/kq_conv2d_dsp.c and checked against counts.

    Attributes:
        step: one step of the inner loop, two values by four channels by two pixels.
        eight, two: end of eight steps, of two steps.
        group: biases, requantisation and stores of four channels of two pixels.
        summed: as `group` where a value is added to what the output holds.
        pair: the rest of two pixels.
        row, quad: widening of a window's row, and of a quad of it.
        kernel, tap: widening of a kernel's weights, and of each of its taps.
        weight: widening of a uniform weight.
        codeword_tap: unpacking of a tap of a codeword.
    """

    step: float
    eight: float
    two: float
    group: float
    summed: float
    pair: float
    row: float
    quad: float
    kernel: float
    tap: float
    weight: float
    codeword_tap: float


PRICES = {
    "m4": Prices(16, 5, 5, 63, 300, 150, 20, 7, 25, 4, 6, 6),
    "m33": Prices(14, 5, 5, 63, 300, 150, 20, 7, 25, 4, 6, 6),
    "m7": Prices(11, 3, 5, 50, 200, 100, 15, 5, 18, 3, 5, 5),
}


@dataclass(frozen=True, slots=True)
class Layout:
    """How the values of a window lie: of each row its whole quads, then what is left of all rows.

    Attributes:
        row_values: k_w * c_in.
        rests: values left of all rows.
        quads: of a window.
    """

    row_values: int
    rests: int
    quads: int

    @property
    def group_bytes(self) -> int:
        """Biases, weights and multipliers of four output channels."""
        return 4 * (8 + 8 * self.quads)


def layout(shape: ConvShape) -> Layout:
    """SPEC 6.5."""
    row = shape.kernel[1] * shape.c_in
    rests = shape.kernel[0] * (row % 4)
    return Layout(row, rests, shape.kernel[0] * (row // 4) + -(-rests // 4))


def candidates(shape: ConvShape, core: str) -> tuple[Candidate, ...]:
    """Tiles of four output channels up to all of them; by lookup each also with the codebook unpacked once."""
    return tuple(_candidates(shape, core)) if core in PRICES else ()


def _candidates(shape: ConvShape, core: str) -> Iterator[Candidate]:
    prices = PRICES[core]
    indexed = shape.kind != "uniform"
    form = "decode" if indexed else "direct" if shape.bits == 8 else "unpack"
    function = f"kq_conv2d_{'decode_' if indexed else ''}{'dual' if core == 'm7' else 'dsp'}_s8"
    groups = -(-shape.c_out // GROUP)
    for rounds in sorted({-(-groups // tile) for tile in range(1, groups + 1)}, reverse=True):
        tile = GROUP * -(-groups // rounds)
        for strip in (0, 1) if indexed else (0,):
            yield Candidate(form, function, tile, strip, scratch_bytes(shape, tile, strip), _cycles(shape, prices, tile, strip))


def scratch_bytes(shape: ConvShape, tile: int, strip: int) -> int:
    """SPEC 6.4."""
    lay = layout(shape)
    size = 2 * round4(lay.row_values) + 2 * round4(tile) + round4(lay.rests) + 16 * lay.quads + -(-tile // GROUP) * lay.group_bytes
    if shape.kind == "uniform":
        return size
    stages = 2 if shape.kind == "additive" else 1
    return size + 3 * round4(shape.n) + (stages * round4(shape.codewords * shape.n) if strip else 0)


def _cycles(shape: ConvShape, prices: Prices, tile: int, strip: int) -> float:
    lay = layout(shape)
    groups, rounds = -(-shape.c_out // GROUP), -(-shape.c_out // tile)
    pairs = -(-shape.pixels // 2)
    steps = 2 * lay.quads
    ends = steps // 8 * prices.eight + steps % 8 / 2 * prices.two
    group = steps * prices.step + ends + (prices.summed if shape.sums else prices.group)
    windows = 2 * (shape.kernel[0] * prices.row + lay.quads * prices.quad)
    return pairs * (groups * group + rounds * (prices.pair + windows)) + _weights_cycles(shape, prices, strip)


def _weights_cycles(shape: ConvShape, prices: Prices, strip: int) -> float:
    if shape.kind == "uniform":
        return prices.weight * shape.taps * shape.c_out
    stages = 2 if shape.kind == "additive" else 1
    unpacked = prices.codeword_tap * stages * shape.codewords * shape.n if strip else 12 * stages * shape.taps * shape.c_out
    return shape.c_in * shape.c_out * (prices.kernel + shape.n * prices.tap) + unpacked
