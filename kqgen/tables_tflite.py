"""Functions of one int8 as TFLite's reference kernels compute them, for all 256 inputs: tables of `IntLookup` (SPEC 5.9).

Every function takes scales as float32 numbers and gives (256,) int8, by the input's code plus 128. Factors are computed in the precision
in which TFLite computes them.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from kqgen import fixed_tflite as rule
from kqgen.intgraph import Int8, QTensor

Int64 = npt.NDArray[np.int64]

CODES = np.arange(-128, 128, dtype=np.int64)

_INT16_LOW, _INT16_HIGH = -(2**15), 2**15 - 1


def _single(value: float) -> np.float32:
    return np.float32(value)


def _scaled(values: Int64, factor: float) -> Int64:
    """Values times a real factor that may be below 0, rounded twice; its fixed-point multiplier is rounded halves away from zero."""
    multiplier, shift = rule.quantise_multiplier(abs(factor))
    # The first rounding takes halves up, so the sign belongs to the multiplier, not to the result.
    right, m = int(max(int(shift) - 31, 0)), int(multiplier) * (-1 if factor < 0 else 1)
    high = ((values << int(rule.left_shift(shift))) * m + (1 << 30)) >> 31
    half = (1 << right) >> 1
    return np.asarray((high + half - ((high < 0) & (right > 0))) >> right)


def _int8(values: npt.NDArray[np.generic]) -> Int8:
    return np.asarray(np.clip(values, -128, 127), np.int8)


def requantised(source: QTensor, output: QTensor) -> Int8:
    """QUANTIZE from int8 to int8."""
    return _int8(_scaled(CODES - source.zero_point, source.scale / output.scale) + output.zero_point)


def clamped(source: QTensor, output: QTensor, low: float, high: float) -> Int8:
    """RELU, RELU6 and their kin as operators of their own: low..high are real."""
    lo, hi = rule.activation_codes(output.scale, output.zero_point, low, high)
    factor = float(_single(source.scale) / _single(output.scale))
    return _int8(np.clip(_scaled(CODES - source.zero_point, factor) + output.zero_point, lo, hi))


def leaky(source: QTensor, output: QTensor, slope: float) -> Int8:
    """LEAKY_RELU."""
    values = CODES - source.zero_point
    below = float(_single(source.scale) * _single(slope) / _single(output.scale))
    above = float(_single(source.scale) / _single(output.scale))
    return _int8(np.where(values >= 0, _scaled(values, above), _scaled(values, below)) + output.zero_point)


def prelu(source: QTensor, output: QTensor, slopes: Int8, slope_scale: float, slope_zero_point: int) -> Int8:
    """PRELU, one row a slope: (c, 256) of slopes (c,)."""
    values = (CODES - source.zero_point)[None, :]
    above = float(_single(source.scale) / _single(output.scale))
    below = float(_single(source.scale) * _single(slope_scale) / _single(output.scale))
    steps = slopes.astype(np.int64).reshape(-1, 1) - slope_zero_point
    return _int8(np.where(values >= 0, _scaled(values, above), _scaled(values * steps, below)) + output.zero_point)


def logistic(source: QTensor, output: QTensor) -> Int8:
    """LOGISTIC; the output has scale 1/256 and zero point -128."""
    return _by_float(source, output, lambda x: 1.0 / (1.0 + math.exp(-x)) if x > -700.0 else 0.0)


def tanh(source: QTensor, output: QTensor) -> Int8:
    """TANH."""
    return _by_float(source, output, math.tanh)


def elu(source: QTensor, output: QTensor) -> Int8:
    """ELU."""
    return _by_float(source, output, lambda x: x if x >= 0.0 else math.expm1(x))


def _by_float(source: QTensor, output: QTensor, function: Callable[[float], float]) -> Int8:
    """float32 in, float32 out, by a function that is exact in between."""
    scale, inverse = _single(source.scale), _single(1.0) / _single(output.scale)
    real = [float(scale * _single(float(code - source.zero_point))) for code in CODES]
    steps = [float(_single(function(x)) * inverse) for x in real]
    return _int8(np.array([math.copysign(math.floor(abs(step) + 0.5), step) for step in steps]).astype(np.int64) + output.zero_point)


def hard_swish(source: QTensor, output: QTensor) -> Int8:
    """HARD_SWISH: x * relu6(x + 3) / 6 on 16-bit fixed-point numbers."""
    fine = _single(1.0 / 128.0) * _single(source.scale)
    to_output, output_shift = _narrow(float(fine / _single(output.scale)))
    to_gate, gate_shift = _narrow(float(fine / (_single(3.0) / _single(32768.0))))
    values = np.clip((CODES - source.zero_point) * 128, _INT16_LOW, _INT16_HIGH)
    on_output = _high16(values, to_output)
    gate = values
    if gate_shift > 0:
        gate = np.clip(gate << (gate_shift - 1), _INT16_LOW, _INT16_HIGH)
    gate = _high16(gate, to_gate)
    if gate_shift > 0:
        gate = np.clip(gate << 1, _INT16_LOW, _INT16_HIGH)
    elif gate_shift < 0:
        gate = _divided(gate, -gate_shift)
    gate = (gate + (1 << 15)) >> 1
    product = gate * on_output
    cut = np.where(product >= 0, product >> 15, -((-product) >> 15))
    return _int8(_divided(cut, -output_shift) + output.zero_point)


def _narrow(factor: float) -> tuple[int, int]:
    """(multiplier of 15 fractional bits, exponent) of a factor."""
    multiplier, shift = (int(value) for value in rule.quantise_multiplier(factor))
    narrow = _INT16_HIGH if multiplier >= 2**31 - 2**15 else (multiplier + (1 << 15)) >> 16
    return narrow, 31 - shift


def _high16(a: Int64, b: int) -> Int64:
    """a * b / 2^15, halves up; a within int16, b in 0..32767."""
    return np.asarray((a * b + (1 << 14)) >> 15)


def _divided(x: Int64, exponent: int) -> Int64:
    """x / 2^exponent, halves away from zero."""
    half = (1 << exponent) >> 1
    return np.asarray((x + half - ((x < 0) & (exponent > 0))) >> exponent)
