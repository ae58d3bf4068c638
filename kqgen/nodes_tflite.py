"""Integer nodes of networks taken over from TFLite as they are: each is computed from a file's scales as its reference kernel does it.

Scales are those of the file, float32 numbers; factors are computed in the precision in which TFLite computes them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from kqgen import fixed_tflite as rule
from kqgen.errors import InputError, UnsupportedError
from kqgen.intgraph import (
    Int8,
    IntAvgPool,
    IntConv2d,
    IntLookup,
    IntMeanWindow,
    IntMul,
    IntRescaledAdd,
    Padding,
    Pair,
    QTensor,
    Requant,
    UniformWeights,
    frozen,
)

Float32 = npt.NDArray[np.float32]
Int64 = npt.NDArray[np.int64]

NO_PADDING: Padding = (0, 0, 0, 0)
REASON = "int8 of the TFLite file"


@dataclass(frozen=True, slots=True)
class Place:
    """What a node of the file is called and read from.

    Attributes:
        name: C identifier, also the output's.
        path: the name people know it by.
        inputs: names of the tensors read.
        sources: the tensors themselves, in that order.
        output: the tensor made.
        lo, hi: clamp of the result, codes.
    """

    name: str
    path: str
    inputs: tuple[str, ...]
    sources: tuple[QTensor, ...]
    output: QTensor
    lo: int = -128
    hi: int = 127


@dataclass(frozen=True, slots=True, eq=False)
class Weights:
    """Weights of a layer as the file has them.

    Attributes:
        values: (c_out, k_h, k_w, c_in) int8; one input channel in depthwise layers.
        scale: (c_out,) or (1,) float32.
        zero_point: of fully connected layers with one scale; else 0.
        bias: (c_out,) integers; None: none.
    """

    values: Int8
    scale: Float32
    zero_point: int = 0
    bias: npt.NDArray[np.int32] | None = None


def convolution(
    place: Place, weights: Weights, stride: Pair, padding: Padding, *, dilation: Pair = (1, 1), depthwise: bool = False
) -> IntConv2d:
    """CONV_2D or DEPTHWISE_CONV_2D.

    Raises: UnsupportedError when a sum may pass 32 bits.
    """
    source = place.sources[0]
    return _conv(place, weights, rule.TWICE, (source.h, source.w, source.c), stride, padding, dilation, depthwise)


def fully_connected(place: Place, weights: Weights) -> IntConv2d:
    """FULLY_CONNECTED: the whole map at once, or each position where the weights have as many inputs as the map has channels.

    Raises: UnsupportedError when a sum may pass 32 bits, or weights with a zero point do not fit int8 without it; InputError when no
        multiplier gives the codes of TFLite's floating-point kernel.
    """
    source = place.sources[0]
    dense = weights.values.shape[3] == source.size_bytes
    in_shape = (1, 1, source.size_bytes) if dense else (source.h, source.w, source.c)
    return _conv(place, _centred(place, weights), rule.ONCE, in_shape, (1, 1), NO_PADDING, (1, 1), False)


def _centred(place: Place, weights: Weights) -> Weights:
    if weights.zero_point == 0:
        return weights
    values = weights.values.astype(np.int64) - weights.zero_point
    if int(values.min()) < -128 or int(values.max()) > 127:
        raise UnsupportedError(
            f"layer {place.path or place.name}: weights with a zero point",
            found=f"{int(values.min())}..{int(values.max())} less the zero point {weights.zero_point}",
            wanted="-128..127",
            do="quantise the weights symmetrically",
        )
    return Weights(values.astype(np.int8), weights.scale, 0, weights.bias)


def _conv(
    place: Place, weights: Weights, mark: int, in_shape: tuple[int, int, int], stride: Pair, padding: Padding, dilation: Pair,
    depthwise: bool,
) -> IntConv2d:  # fmt: skip
    source, output = place.sources[0], place.output
    values = weights.values.astype(np.int64)
    c_out = len(values)
    given = np.zeros(c_out, np.int64) if weights.bias is None else weights.bias.astype(np.int64)
    bias = given - source.zero_point * values.sum(axis=(1, 2, 3))
    low, high = rule.sums(values, bias)
    scale = np.broadcast_to(weights.scale.astype(np.float32), (c_out,))
    factors = source.scale * scale.astype(np.float64) / output.scale
    multiplier, shift = rule.quantise_multiplier(factors) if mark == rule.TWICE else _once(place, factors, low, high)
    if not rule.bounded(low, high, shift):
        raise UnsupportedError(
            f"layer {place.path or place.name}: the sum of one output can pass the bound of TFLite's rule",
            found=f"{int(low.min())} to {int(high.max())}",
            wanted=f"below {rule.ACC_LIMIT}",
            do="look for a dead channel (all weights near zero, large bias) and prune it",
        )
    return IntConv2d(
        place.name, place.path, (place.path,), place.inputs, output, place.lo, place.hi,
        dense=mark == rule.ONCE and in_shape[:2] == (1, 1),
        in_shape=in_shape,
        kernel=(values.shape[1], values.shape[2]),
        stride=stride,
        padding=padding,
        pad_values=frozen(np.full(in_shape[2], source.zero_point), np.int8),
        weights=UniformWeights(8, frozen(weights.values, np.int8)),
        requant=Requant(frozen(bias, np.int32), frozen(multiplier, np.int32), frozen(shift, np.uint8), mark),
        weight_scale=frozen(scale, np.float32),
        reason=REASON,
        depthwise=depthwise,
        dilation=dilation,
    )  # fmt: skip


def _once(
    place: Place, factors: npt.NDArray[np.float64], low: Int64, high: Int64
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.uint8]]:
    if len(set(factors.tolist())) == 1:
        # One multiplier for all channels, as the file has one scale.
        low, high = np.full_like(low, low.min()), np.full_like(high, high.max())
    channels = list(zip(factors.tolist(), low.tolist(), high.tolist(), strict=True))
    first, last = place.lo - place.output.zero_point, place.hi - place.output.zero_point
    try:
        found = {channel: rule.multiplier_once(*channel, first, last) for channel in dict.fromkeys(channels)}
    except InputError as error:
        raise InputError(f"layer {place.path or place.name}: {error.what}", found=error.found, wanted=error.wanted, do=error.do) from error
    multipliers, shifts = zip(*(found[channel] for channel in channels), strict=True)
    return np.array(multipliers, np.int32), np.array(shifts, np.uint8)


def add(place: Place, *, minus: bool = False) -> IntRescaledAdd:
    """ADD or SUB of two maps, the second (1, 1, c) or like the first.

    Raises: UnsupportedError when the operands' scale is 2^19 times the output's or more.
    """
    a, b = place.sources
    twice = 2.0 * max(a.scale, b.scale)
    factor = twice / (2.0**20 * place.output.scale)
    if factor >= 1.0:
        raise UnsupportedError(
            f"layer {place.path or place.name}: the output's scale is far below the operands'",
            found=f"{a.scale} and {b.scale} to {place.output.scale}",
            wanted="less than 2^19 times the output's",
            do="quantise the model with wider ranges",
        )
    multipliers, shifts = rule.quantise_multiplier(np.array([a.scale / twice, b.scale / twice, factor]))
    (m_a, m_b, m), (s_a, s_b, s) = multipliers.tolist(), shifts.tolist()
    return IntRescaledAdd(
        place.name, place.path, (place.path,), place.inputs, place.output, place.lo, place.hi,
        a.zero_point, b.zero_point, m_a, s_a, m_b, s_b, m, s, minus, _serves_all(a, b),
    )  # fmt: skip


def multiply(place: Place) -> IntMul:
    """MUL of two maps, the second (1, 1, c) or like the first."""
    a, b = place.sources
    factor = float(np.float32(a.scale) * np.float32(b.scale) / np.float32(place.output.scale))
    multiplier, shift = (int(value) for value in rule.quantise_multiplier(factor))
    return IntMul(
        place.name, place.path, (place.path,), place.inputs, place.output, place.lo, place.hi,
        a.zero_point, b.zero_point, multiplier, shift, rule.TWICE, _serves_all(a, b),
    )  # fmt: skip


def _serves_all(a: QTensor, b: QTensor) -> bool:
    return (b.h, b.w) == (1, 1) and (a.h, a.w) != (1, 1)


def mean(place: Place, kernel: Pair) -> IntAvgPool:
    """MEAN over rows, columns or both: `kernel` is the map's size on these axes, 1 on the others."""
    source, count = place.sources[0], kernel[0] * kernel[1]
    multiplier, shift = rule.mean_multiplier(source.scale / place.output.scale, count)
    return IntAvgPool(
        place.name, place.path, (place.path,), place.inputs, place.output, place.lo, place.hi,
        kernel, kernel, NO_PADDING, source.zero_point, -count * source.zero_point, multiplier, shift, rule.TWICE,
    )  # fmt: skip


def average_pool(place: Place, kernel: Pair, stride: Pair, padding: Padding) -> IntMeanWindow:
    """AVERAGE_POOL_2D; input and output have one quantisation."""
    return IntMeanWindow(
        place.name, place.path, (place.path,), place.inputs, place.output, place.lo, place.hi, kernel, stride, padding
    )


def lookup(place: Place, table: Int8 | Sequence[Int8]) -> IntLookup:
    """A function of one value: a table (256,), or (c, 256), of `tables_tflite`."""
    rows = np.asarray(table, np.int8).reshape(-1, 256)
    return IntLookup(place.name, place.path, (place.path,), place.inputs, place.output, -128, 127, frozen(rows, np.int8))
