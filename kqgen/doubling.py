"""Fixed-point products of 32-bit numbers on numpy integers (SPEC 3.5, 5.12).

A number with n integer bits has 31 - n bits behind the point. The functions are those of gemmlowp's fixedpoint.h, which TFLite's
integer kernels are made of.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Int64 = npt.NDArray[np.int64]

INT32_MIN, INT32_MAX = -(2**31), 2**31 - 1


def doubling_high(a: npt.ArrayLike, b: npt.ArrayLike) -> Int64:
    """a * b / 2^31 to the nearest, halves up; a and b within int32, INT32_MIN * INT32_MIN gives INT32_MAX."""
    product = np.asarray(a, np.int64) * np.asarray(b, np.int64)
    return np.asarray(np.minimum((product + (1 << 30)) >> 31, INT32_MAX), np.int64)


def rounding_shift(x: npt.ArrayLike, exponent: npt.ArrayLike) -> Int64:
    """x / 2^exponent to the nearest, halves away from zero; x within int32, exponent 0..62."""
    value, by = np.asarray(x, np.int64), np.asarray(exponent, np.int64)
    mask = (np.int64(1) << by) - 1
    threshold = (mask >> 1) + (value < 0)
    return np.asarray((value >> by) + ((value & mask) > threshold), np.int64)


def saturating_left(x: npt.ArrayLike, exponent: int) -> Int64:
    """x * 2^exponent, limited to int32; exponent 0..31."""
    return np.asarray(np.clip(np.asarray(x, np.int64) << exponent, INT32_MIN, INT32_MAX), np.int64)


def reciprocal(x: npt.ArrayLike) -> Int64:
    """1 / (1 + x), for x in 0..1 without integer bits, in the same format: half the denominator inverted by three Newton-Raphson steps."""
    half = (np.asarray(x, np.int64) + INT32_MAX + 1) >> 1
    guess = _48_17 + doubling_high(half, _NEGATIVE_32_17)
    for _ in range(3):
        rest = (1 << 29) - doubling_high(half, guess)
        guess = guess + saturating_left(doubling_high(guess, rest), 2)
    return saturating_left(guess, 1)


_48_17 = 1515870810
"""48 / 17 with two integer bits, where Newton-Raphson starts from; below it -32 / 17."""

_NEGATIVE_32_17 = -1010580540


def exp_of_negative(a: npt.ArrayLike) -> Int64:
    """exp(a) without integer bits, for a <= 0 with 5 integer bits: a Taylor polynomial within a quarter, a product for every higher bit."""
    value = np.asarray(a, np.int64)
    quarter = np.int64(1) << 24
    rest = (value & (quarter - 1)) - quarter
    result = _exp_of_a_quarter(saturating_left(rest, 5))
    remainder = rest - value
    for exponent, factor in enumerate(_EXP_FACTORS):
        bit = (remainder & (np.int64(1) << (24 + exponent))) != 0
        result = np.where(bit, doubling_high(result, factor), result)
    return np.asarray(np.where(value == 0, INT32_MAX, result), np.int64)


_EXP_FACTORS = (1672461947, 1302514674, 790015084, 290630308, 39332535, 720401, 242)
"""exp(-1/4), exp(-1/2), exp(-1), ... exp(-16) without integer bits."""

_EXP_OF_MINUS_EIGHTH = 1895147668
_THIRD = 715827883


def _exp_of_a_quarter(a: Any) -> Int64:
    """exp(a) for a in -1/4..0, both without integer bits: the Taylor polynomial of degree four around -1/8."""
    x = np.asarray(a, np.int64) + (1 << 28)
    x2 = doubling_high(x, x)
    x3, x4 = doubling_high(x2, x), doubling_high(x2, x2)
    quartic = rounding_shift(x4, 2)
    higher = rounding_shift(doubling_high(quartic + x3, _THIRD) + x2, 1)
    return np.asarray(_EXP_OF_MINUS_EIGHTH + doubling_high(_EXP_OF_MINUS_EIGHTH, x + higher), np.int64)
