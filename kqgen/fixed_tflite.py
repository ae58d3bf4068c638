"""Rule `tflite` of SPEC 3.5 on numpy integers: how TFLite's reference kernels bring accumulators to int8, and its parameters.

A multiplier of 31 fractional bits and a shift: real factor = multiplier / 2^shift. Two roundings in most kernels (`TWICE`), one in
those of fully connected layers (`ONCE`), which compute in floating point: there the multiplier is searched for that gives the same codes.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from kqgen.errors import InputError, InternalError

Int64 = npt.NDArray[np.int64]

TWICE = 0x80
"""In the place of a left shift (`acc_shift`): rule `tflite` with two roundings, the second halves away from zero."""

ONCE = 0x81
"""In its place: one rounding, halves up."""

SHIFT_LOW, SHIFT_HIGH = 1, 62
MULTIPLIER_LOW, MULTIPLIER_HIGH = 2**30, 2**31 - 1
"""Of the multiplier of a factor; a mean's may be smaller, and 0 stands for factors that are too small."""

FAST_SHIFT = 32
"""From here on a product is shifted down at least once more, as the fast ways of the runtime need it: factors below 1/2."""

ACC_LIMIT = 2**29
"""Accumulators, after the left shift of factors above 1, stay below this in absolute value, so that no rounding passes 32 bits."""

SEARCH_STEPS = 200
"""How far from the nearest multiplier one is searched that gives every code of a layer that rounds once."""


def is_rule(acc_shift: int) -> bool:
    """Whether `acc_shift` names this rule."""
    return acc_shift in (TWICE, ONCE)


def left_shift(shift: npt.ArrayLike) -> Int64:
    """What accumulators are shifted up by before the product: factors from 1 up have shifts below 31. Shape of `shift`."""
    return np.maximum(31 - np.asarray(shift, np.int64), 0)


def fits(multiplier: npt.ArrayLike, shift: npt.ArrayLike) -> bool:
    """Whether all multipliers are 0..2^31-1 and all shifts 1..62."""
    m, s = np.asarray(multiplier, np.int64), np.asarray(shift, np.int64)
    return bool(np.all((m >= 0) & (m <= MULTIPLIER_HIGH)) and np.all((s >= SHIFT_LOW) & (s <= SHIFT_HIGH)))


def sums(weights: npt.NDArray[Any], bias: npt.NDArray[Any]) -> tuple[Int64, Int64]:
    """(smallest, largest) sum of each output channel over all int8 inputs, (c_out,) each.

    Shapes: weights (c_out, k_h, k_w, c_in) integers; bias (c_out,).
    """
    wide, start = weights.astype(np.int64), np.asarray(bias, np.int64)
    positive, negative = (np.where(keep, wide, 0).sum(axis=(1, 2, 3)) for keep in (wide > 0, wide < 0))
    return start - 128 * positive + 127 * negative, start + 127 * positive - 128 * negative


def bounded(low: Int64, high: Int64, shift: npt.ArrayLike) -> bool:
    """Whether sums of low..high, in each channel, stay below the bound of SPEC 3.5."""
    return int((np.maximum(high, -low) << left_shift(shift)).max()) < ACC_LIMIT


def scale(acc: npt.ArrayLike, multiplier: npt.ArrayLike, shift: npt.ArrayLike, acc_shift: int) -> Int64:
    """The accumulator times the real factor, rounded as `acc_shift` names it (SPEC 3.5; kq_scale_tflite).

    Shapes: acc (..., c) integers; multiplier (c,) or () 0..2^31-1; shift (c,) or () 1..62.
    Raises: InternalError when an argument is outside these ranges, or an accumulator beyond the bound.
    """
    m, s = np.asarray(multiplier, np.int64), np.asarray(shift, np.int64)
    if not fits(m, s) or not is_rule(acc_shift):
        raise InternalError("requantisation parameters are outside SPEC 3.5", found=f"shifts {s}, multipliers {m}, mark {acc_shift}")
    shifted = np.asarray(acc, np.int64) << left_shift(s)
    if shifted.size and int(np.abs(shifted).max()) >= ACC_LIMIT:
        raise InternalError("an accumulator passes SPEC 3.5", found=str(int(np.abs(shifted).max())), wanted=f"below {ACC_LIMIT}")
    right = np.maximum(s - 31, 0)
    product = shifted * m
    if acc_shift == ONCE:
        return np.asarray((product + (np.int64(1) << (30 + right))) >> (31 + right))
    high = (product + (1 << 30)) >> 31
    half = (np.int64(1) << right) >> 1
    return np.asarray((high + half - ((high < 0) & (right > 0))) >> right)


def quantise_multiplier(factors: npt.ArrayLike) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.uint8]]:
    """(multiplier, shift) of real factors as TFLite makes them: the nearest fraction, halves up; 0 for a factor below 2^-32.

    Shapes: factors (c,) or () real, >= 0, below 2^30; multiplier and shift have their shape.
    Raises: InputError when a factor is not finite, negative or too large.
    """
    real = np.asarray(factors, np.float64)
    if real.size == 0 or not np.all(np.isfinite(real) & (real >= 0) & (real < 2.0**30)):
        raise InputError(
            "accumulators cannot be requantised",
            found=f"factor {real[~((real >= 0) & (real < 2.0**30))].ravel()[:4]} from its accumulators to its output",
            wanted="finite factors from 0 up and below 2^30",
            do="check the scales of the model's tensors",
        )
    fraction, exponent = np.frexp(real)
    multiplier = np.floor(fraction * 2.0**31 + 0.5).astype(np.int64)
    carried = multiplier > MULTIPLIER_HIGH
    multiplier, exponent = np.where(carried, MULTIPLIER_LOW, multiplier), exponent + carried
    gone = (exponent < -31) | (real == 0)
    multiplier, shift = np.where(gone, 0, multiplier), np.where(gone, 31, 31 - exponent)
    return np.asarray(multiplier, np.int32), np.asarray(shift, np.uint8)


def float_codes(acc: npt.ArrayLike, factor: float) -> Int64:
    """The accumulator times `factor` in float64, halves away from zero: what TFLite's reference fully connected layers compute."""
    product = np.asarray(acc, np.float64) * factor
    return np.asarray(np.copysign(np.floor(np.abs(product) + 0.5), product), np.int64)


def multiplier_once(factor: float, low: int, high: int, first: int, last: int) -> tuple[int, int]:
    """(multiplier, shift) that gives, rounding once, what `float_codes` gives for every accumulator in low..high, within first..last.

    Only where the result passes from one code to the next can they differ: all of these places are compared.

    Args:
        factor: real, > 0.
        low, high: the smallest and the largest accumulator.
        first, last: the codes the clamp lets through, the output's zero point taken off.
    Raises: InputError when there is no such multiplier near the factor.
    """
    nearest, shift = (int(value) for value in quantise_multiplier(factor))
    accumulators, wanted = _borders(factor, low, high, first, last)
    for distance in range(SEARCH_STEPS):
        for multiplier in dict.fromkeys((nearest + distance, nearest - distance)):
            if not MULTIPLIER_LOW <= multiplier <= MULTIPLIER_HIGH:
                continue
            if not accumulators.size or np.array_equal(np.clip(scale(accumulators, multiplier, shift, ONCE), first, last), wanted):
                return multiplier, shift
    if nearest == 0:
        return 0, shift
    raise InputError(
        "no multiplier of 31 bits gives the codes of TFLite's floating-point kernel",
        found=f"factor {factor} for accumulators in {low}..{high}",
        wanted="a factor whose codes a fixed-point product can give",
        do="quantise the model's weights again with another scale, or let kqgen requantise it (--weights int8 on the float model)",
    )


def _borders(factor: float, low: int, high: int, first: int, last: int) -> tuple[Int64, Int64]:
    """Accumulators beside every place where the code changes, and both ends, with their codes within first..last."""
    steps = np.arange(first, last + 2, dtype=np.float64) - 0.5
    places = np.clip(np.floor(steps / factor), low - 4.0, high + 4.0).astype(np.int64)
    around = (places[:, None] + np.arange(-3, 4)).ravel()
    kept = np.unique(np.concatenate([around[(around >= low) & (around <= high)], np.array([low, high])]))
    return kept, np.clip(float_codes(kept, factor), first, last)


def mean_multiplier(factor: float, count: int) -> tuple[int, int]:
    """(multiplier, shift) of a mean over `count` values: the multiplier of `factor`, input over output scale, by count, cut off.

    Raises: as `quantise_multiplier`.
    """
    multiplier, shift = (int(value) for value in quantise_multiplier(factor))
    up = min(count.bit_length() - 1, 32, 62 - shift)
    return (multiplier << up) // count, shift + up


def activation_codes(scale_y: float, zero_point: int, real_low: float, real_high: float) -> tuple[int, int]:
    """(lo, hi): a fused activation's limits as codes, in float32 as TFLite computes them; infinite limits stay open."""

    def code(real: float) -> int:
        steps = np.float32(real) / np.float32(scale_y)
        return zero_point + int(math.copysign(math.floor(abs(float(steps)) + 0.5), float(steps)))

    lo = -128 if math.isinf(real_low) else max(-128, code(real_low))
    hi = 127 if math.isinf(real_high) else min(127, code(real_high))
    return lo, hi


def codes(
    acc: npt.NDArray[Any], multiplier: npt.ArrayLike, shift: npt.ArrayLike, zero_point: int, lo: int = -128, hi: int = 127
) -> Int64:
    """Codes lo..hi of accumulators, rounding twice; arguments as of `scale`."""
    return np.asarray(np.clip(scale(acc, multiplier, shift, TWICE) + zero_point, lo, hi), np.int64)
