"""Two int16 in a word: forms `direct`, `unpack` and `decode` for cores with the DSP extension (SPEC 6.5)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from kqgen.conv_shape import Candidate, ConvShape, round4
from kqgen.plan import Form

GROUP = 4
"""Output channels of a group, as in runtime_c/kq_conv2d_dsp.c."""


@dataclass(frozen=True, slots=True)
class Prices:
    """Modelled cycles of `dsp_groups` in runtime_c/kq_dsp_groups.h, counted by hand and checked against counts.

    Attributes:
        step: one step of the inner loop: two values by four channels by two pixels.
        eight, two: the ends of eight steps, and of two.
        group: biases, requantisation and stores of four channels of two pixels.
        call: of the function.
        rest: what the compiled C around it takes, as a share of the M4's cycles below.
    """

    step: float
    eight: float
    two: float
    group: float
    call: float
    rest: float


PRICES = {
    "m4": Prices(16, 4.9, 4.7, 61.8, 43, 1.0),
    "m33": Prices(14, 5.0, 5.0, 56.5, 40, 0.92),
    "m7": Prices(8, 3.2, 6.5, 41.0, 30, 0.63),
}

# Modelled cycles of the C on an M4: of a layer, of a value of its window's row, and of an output channel's requantisation.
LAYER_CYCLES = 1400.0
ROW_VALUE_CYCLES = 17.0
CHANNEL_CYCLES = 45.0
# Of a pixel, of an edge one besides, of a window's row and quad, and of a whole 3x3 window of three channels.
PIXEL_CYCLES = 85.0
EDGE_CYCLES = 350.0
ROW_CYCLES = 34.0
QUAD_CYCLES = 6.9
NINES_CYCLES = 60.0
# Of a window that fills no quads by whole channels: widened value by value.
COPIED_VALUE_CYCLES = 16.0
# Of a kernel and its taps whose codeword is at hand, of a codeword's value unpacked alone, and with all others.
KERNEL_CYCLES = 64.0
TAP_CYCLES = 6.0
SINGLE_VALUE_CYCLES = 48.0
BOOK_VALUE_CYCLES = 5.5
# Of a kernel's tap that is placed alone, where input channels fill no quads.
PLACED_TAP_CYCLES = 30.0
# Of a uniform weight: of 8 bits among four in a row, of fewer bits where four begin with a byte, and otherwise.
BYTE_CYCLES = 2.9
WEIGHT_CYCLES = 10.0
ODD_WEIGHT_CYCLES = 29.0
# Of four channels of two pixels that are rounded twice, and one by one (SPEC 3.5).
TWICE_CYCLES = 46.0
SLOWLY_CYCLES = 480.0
# Of a result that goes by way of a row in scratch.
SETTLED_CYCLES = 30.0


@dataclass(frozen=True, slots=True)
class Layout:
    """How the values of a window lie: of each row its whole quads, then what is left of all rows.

    Attributes:
        row_values: k_w * c_in.
        rests: values left of all rows.
        quads: of a window.
        rule_words: shifts of a group, where results are rounded twice.
    """

    row_values: int
    rests: int
    quads: int
    rule_words: int

    @property
    def group_bytes(self) -> int:
        """Biases, weights, multipliers and, by SPEC 3.5, shifts of four output channels."""
        return 4 * (8 + 8 * self.quads + self.rule_words)


def layout(shape: ConvShape) -> Layout:
    """SPEC 6.5."""
    row = shape.kernel[1] * shape.c_in
    rests = shape.kernel[0] * (row % 4)
    return Layout(row, rests, shape.kernel[0] * (row // 4) + -(-rests // 4), 4 if shape.rule == "twice" else 0)


def candidates(shape: ConvShape, core: str) -> tuple[Candidate, ...]:
    """Tiles of four output channels up to all of them; by lookup each also with the codebook unpacked once."""
    return tuple(_candidates(shape, core)) if core in PRICES else ()


def _candidates(shape: ConvShape, core: str) -> Iterator[Candidate]:
    prices = PRICES[core]
    indexed = shape.kind != "uniform"
    form: Form = "decode" if indexed else "direct" if shape.bits == 8 else "unpack"
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
    group = steps * prices.step + steps // 8 * prices.eight + steps % 8 / 2 * prices.two + prices.group
    group += {"half_up": 0.0, "twice": TWICE_CYCLES, "slowly": SLOWLY_CYCLES}[shape.rule]
    by_rows = shape.sums or shape.c_out % GROUP != 0
    rest = (
        LAYER_CYCLES
        + lay.row_values * ROW_VALUE_CYCLES
        + shape.c_out * CHANNEL_CYCLES
        + rounds * _windows_cycles(shape, lay)
        + _weights_cycles(shape, strip)
        + (shape.c_out * shape.pixels * SETTLED_CYCLES if by_rows else 0.0)
    )
    return pairs * (groups * group + rounds * prices.call) + prices.rest * rest


def _windows_cycles(shape: ConvShape, lay: Layout) -> float:
    """Widening all windows once."""
    rows, columns = _inside(shape, 0), _inside(shape, 1)
    edges = shape.pixels - rows * columns
    whole = shape.kernel[0] * ROW_CYCLES + lay.quads * QUAD_CYCLES
    if lay.rests:
        copied = whole + shape.taps * COPIED_VALUE_CYCLES
        if lay.row_values == 9 and shape.kernel[0] == 3:
            return shape.pixels * PIXEL_CYCLES + rows * columns * NINES_CYCLES + edges * copied
        return shape.pixels * (PIXEL_CYCLES + copied)
    return shape.pixels * (PIXEL_CYCLES + whole) + edges * EDGE_CYCLES


def _inside(shape: ConvShape, axis: int) -> int:
    """Output rows or columns whose windows lie on the map."""
    size, out = ((shape.h_in, shape.h_out), (shape.w_in, shape.w_out))[axis]
    before, stride, taps = shape.padding[2 * axis], shape.stride[axis], shape.kernel[axis]
    return sum(0 <= place * stride - before <= size - taps for place in range(out))


def _weights_cycles(shape: ConvShape, strip: int) -> float:
    weights = shape.taps * shape.c_out
    if shape.kind == "uniform":
        rest = shape.kernel[1] * shape.c_in % 4
        if shape.bits != 8:
            return weights * (ODD_WEIGHT_CYCLES if rest else WEIGHT_CYCLES)
        alone = shape.c_out * shape.kernel[0] * rest
        return (weights - alone) * BYTE_CYCLES + alone * ODD_WEIGHT_CYCLES
    stages = 2 if shape.kind == "additive" else 1
    book = stages * shape.codewords * shape.n * BOOK_VALUE_CYCLES if strip else stages * weights * SINGLE_VALUE_CYCLES
    sums = weights * 8.0 if stages == 2 else 0.0
    taps = TAP_CYCLES if shape.c_in % 4 == 0 else PLACED_TAP_CYCLES
    return shape.c_in * shape.c_out * KERNEL_CYCLES + weights * taps + book + sums
