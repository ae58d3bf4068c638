"""Depthwise convolution: one function a core, windows copied to scratch first (SPEC 6.9)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from kqgen.conv_shape import Candidate, ConvShape, round4
from kqgen.plan import Form

LANE_SUM = 255
"""Absolute weights of taps whose sum int16 holds, as in runtime_c/kq_depthwise.c and kq_depthwise_mve.c."""

BLOCK = 16
"""Channels of a vector."""

LIMITS_WORDS = 56
"""Of the parameters of a vector's channels."""

GATHERED_TAPS = 17
"""Of kernels whose weights of 8 bits are gathered, at most."""


@dataclass(frozen=True, slots=True)
class Packed:
    """Modelled cycles of runtime_c/kq_depthwise.c, fitted to counts.

    Attributes:
        layer, value, row: a layer; a plane's value, and row.
        tap, unpacked, indexed: of an output channel: a tap, a value unpacked, an index.
        pair, alone, pair_row: 3x3: a pair of results, more where taps are split alone, a row of pairs.
        any_pair, any_tap, any_row: of other kernels a pair of results, its taps, its rows.
    """

    layer: float
    value: float
    row: float
    tap: float
    unpacked: float
    indexed: float
    pair: float
    alone: float
    pair_row: float
    any_pair: float
    any_tap: float
    any_row: float


_M0 = Packed(830, 20.2, 17.7, 107.4, 33.3, 100, 134.5, 8.7, 114.8, 212, 14.4, 40.2)
PACKED = {"m0": _M0, "m0p": _M0, "m3": Packed(132, 15.0, 0, 79.0, 26.3, 86, 136.1, 8.8, 58.1, 124, 9.36, 19.7)}


@dataclass(frozen=True, slots=True)
class Dsp:
    """Modelled cycles of runtime_c/kq_depthwise_dsp.c, fitted to counts.

    Attributes:
        layer, block: a layer; the channels laid out at a time.
        word, row: laying out two columns of four channels, and a row of them.
        single_word, single_row: of one channel.
        channel, unpacked, indexed: an output channel, a value of its kernel unpacked, an index.
        pair, odd, out_row: 3x3: two results, one, a row of them.
        pixel, pixel_row, pixel_word, weight: of other kernels a result, its rows, its words; a word of weights.
    """

    layer: float
    block: float
    word: float
    row: float
    single_word: float
    single_row: float
    channel: float
    unpacked: float
    indexed: float
    pair: float
    odd: float
    out_row: float
    pixel: float
    pixel_row: float
    pixel_word: float
    weight: float


DSP = {
    "m4": Dsp(4424, 84.9, 14.5, 0, 18.4, 56.3, 266.5, 23.8, 98.1, 49.4, 39.3, 15.2, 69.4, 13.9, 7.02, 66.5),
    "m33": Dsp(4979, 71.5, 14.1, 0, 13.4, 53.1, 235.4, 21.3, 91.8, 41.7, 34.4, 6.7, 61.0, 10.6, 6.12, 52.2),
    "m7": Dsp(2551, 51.0, 15.9, 13.2, 10.3, 48.7, 142.7, 15.5, 88.2, 27.0, 18.1, 11.8, 41.4, 13.1, 3.62, 27.4),
}

# Modelled cycles of runtime_c/kq_depthwise_mve.c on a Cortex-M55, fitted to counts: a layer, 16 channels, a row of theirs and its columns.
MVE_LAYER, MVE_BLOCK, MVE_ROW, MVE_COLUMN = 2563.0, 608.0, 46.0, 4.72
# A tap not gathered, a value unpacked, an index; of 3x3 kernels 16 results, more where sums are widened every two taps, a row of results.
MVE_TAP, MVE_UNPACKED, MVE_INDEXED, MVE_PIXEL, MVE_TWOS, MVE_OUT_ROW = 5.51, 24.0, 86.6, 116.2, 55.3, 135.2
# Of other kernels 16 results, their rows, their taps, each result.
MVE_ANY, MVE_ANY_ROW, MVE_ANY_TAP, MVE_STORE = 204.0, 6.3, 24.9, 35.0

SUM_CYCLES = 30.0
"""Of a result that is added to another, on any core."""


def candidates(shape: ConvShape, core: str) -> tuple[Candidate, ...]:
    """`direct`, `unpack` or `decode` of a depthwise layer; nothing for others. With DSP one channel or four are laid out at a time."""
    return tuple(_candidates(shape, core)) if shape.depthwise and shape.dilation == (1, 1) else ()


def _candidates(shape: ConvShape, core: str) -> Iterator[Candidate]:
    indexed = shape.kind != "uniform"
    form: Form = "decode" if indexed else "direct" if shape.bits == 8 else "unpack"
    decode = "decode_" if indexed else ""
    sums = shape.pixels * shape.c_out * SUM_CYCLES if shape.sums else 0.0
    if core in DSP:
        for turns in (1, 4):
            cycles = sums + _dsp_cycles(shape, DSP[core], turns)
            yield Candidate(form, f"kq_depthwise_{decode}dsp_s8", turns, 0, _dsp_bytes(shape, turns), cycles)
    elif core in PACKED:
        yield Candidate(form, f"kq_depthwise_{decode}s8", 0, 0, _packed_bytes(shape), sums + _packed_cycles(shape, PACKED[core]))
    else:
        yield Candidate(form, f"kq_depthwise_{decode}mve_s8", 0, 0, _mve_bytes(shape), sums + _mve_cycles(shape))


def plane(shape: ConvShape) -> tuple[int, int]:
    """Rows and columns of an input channel that the windows cover, padding included."""
    (k_h, k_w), (stride_h, stride_w) = shape.kernel, shape.stride
    return (shape.h_out - 1) * stride_h + k_h, (shape.w_out - 1) * stride_w + k_w


def _unpacked(shape: ConvShape) -> int:
    """Values unpacked for one output channel's kernel."""
    return 0 if shape.kind == "uniform" and shape.bits == 8 else shape.n * (2 if shape.kind == "additive" else 1)


def _nines(shape: ConvShape) -> bool:
    """Whether the loops for 3x3 kernels serve."""
    return shape.kernel == (3, 3) and not shape.sums


def _packed_bytes(shape: ConvShape) -> int:
    """SPEC 6.4."""
    rows, columns = plane(shape)
    return round4(4 * (rows * columns + shape.n) + 2 * shape.n)


def _packed_cycles(shape: ConvShape, costs: Packed) -> float:
    rows, columns = plane(shape)
    upright, odd = -(-shape.h_out // 2), shape.w_out % 2
    if shape.h_out % 2 * shape.w_out <= odd * shape.h_out:
        pairs, pair_rows = upright * shape.w_out, upright
    else:
        pairs, pair_rows = -(-shape.w_out // 2) * shape.h_out, shape.h_out * (1 + odd)
    channel = shape.n * costs.tap + _unpacked(shape) * costs.unpacked + (costs.indexed if shape.kind != "uniform" else 0.0)
    if _nines(shape):
        alone = shape.kind == "uniform" and 3 * shape.largest_weight > LANE_SUM
        channel += pairs * (costs.pair + (costs.alone if alone else 0.0)) + pair_rows * costs.pair_row
    else:
        channel += pairs * (costs.any_pair + shape.n * costs.any_tap + shape.kernel[0] * costs.any_row)
    return costs.layer + shape.c_in * rows * (columns * costs.value + costs.row) + shape.c_out * channel


def _dsp_words(shape: ConvShape) -> tuple[int, int]:
    """Words of a row of weights, and of a row of a plane."""
    row_taps = shape.kernel[1] // 2 + 1
    return row_taps, (shape.w_out - 1) * shape.stride[1] // 2 + row_taps


def _dsp_bytes(shape: ConvShape, turns: int) -> int:
    """SPEC 6.4."""
    row_taps, row_words = _dsp_words(shape)
    return round4(4 * (turns * plane(shape)[0] * row_words + 2 * row_taps * shape.kernel[0]) + shape.w_out + 2 * shape.n)


def _dsp_cycles(shape: ConvShape, costs: Dsp, turns: int) -> float:
    row_taps, row_words = _dsp_words(shape)
    fours = shape.c_in // 4 if turns == 4 else 0
    singles, rows = shape.c_in - 4 * fours, min(shape.h_in, plane(shape)[0])
    lay = fours * (row_words * costs.word + costs.row) + singles * (row_words * costs.single_word + costs.single_row)
    channel = costs.channel + _unpacked(shape) * costs.unpacked + (costs.indexed if shape.kind != "uniform" else 0.0)
    if shape.kernel == (3, 3) and shape.stride[1] <= 2:
        pairs = shape.w_out // 2 if shape.stride[1] == 1 else 0
        channel += shape.h_out * (pairs * costs.pair + (shape.w_out - 2 * pairs) * costs.odd + costs.out_row)
    else:
        words = shape.kernel[0] * row_taps
        channel += shape.pixels * (costs.pixel + shape.kernel[0] * costs.pixel_row + words * costs.pixel_word) + words * costs.weight
    return costs.layer + rows * lay + (fours + singles) * costs.block + shape.c_out * channel


def _mve_bytes(shape: ConvShape) -> int:
    """SPEC 6.4."""
    k_h = shape.kernel[0]
    return round4(4 * (LIMITS_WORDS + k_h) + BLOCK * (1 + shape.n + k_h * plane(shape)[1]) + 2 * shape.n)


def _mve_cycles(shape: ConvShape) -> float:
    (k_h, k_w), each = shape.kernel, shape.c_out // shape.c_in
    blocks = -(-shape.c_in // BLOCK) * each
    gathers = shape.kind == "uniform" and shape.bits == 8 and each == 1 and shape.n <= GATHERED_TAPS
    filled = shape.c_in % BLOCK if gathers else shape.c_out
    rows = blocks * min(plane(shape)[0], (shape.h_out - 1) * min(shape.stride[0], k_h) + k_h)
    total = MVE_LAYER + blocks * MVE_BLOCK + rows * (MVE_ROW + min(plane(shape)[1], shape.w_in) * MVE_COLUMN)
    kernel = _unpacked(shape) * MVE_UNPACKED + (MVE_INDEXED if shape.kind != "uniform" else 0.0)
    total += filled * shape.n * MVE_TAP + shape.c_out * kernel
    if _nines(shape) and each == 1:
        twos = shape.kind == "uniform" and (2 ** (shape.bits - 1) - 1) * shape.n > LANE_SUM
        return total + blocks * (shape.pixels * (MVE_PIXEL + (MVE_TWOS if twos else 0.0)) + shape.h_out * MVE_OUT_ROW)
    return total + blocks * shape.pixels * (MVE_ANY + k_h * MVE_ANY_ROW + k_h * k_w * MVE_ANY_TAP) + shape.pixels * shape.c_out * MVE_STORE
