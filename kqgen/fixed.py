"""Fixed-point arithmetic of SPEC 3, 5.2 and 7.4 on numpy integers: what kq_fixed.h computes, and how its parameters are chosen."""

from __future__ import annotations

import math
import zlib
from typing import Any

import numpy as np
import numpy.typing as npt

from kqgen import fixed_tflite
from kqgen.errors import InputError, InternalError

Int64 = npt.NDArray[np.int64]

INT32_MIN, INT32_MAX = -(2**31), 2**31 - 1
MULTIPLIER_MIN, MULTIPLIER_MAX = 2**14, 2**15 - 1
SHIFT_MIN, SHIFT_MAX = 1, 22
ACC_SHIFT_MAX = 15
ADD_SHIFT_MAX = 20
FAR_STEPS = 1024.0
"""Beyond every int8 code from every zero point: reals are limited to so many steps before they are rounded, for they may be infinite."""

MAX_FACTOR = MULTIPLIER_MAX / 2.0 ** (SHIFT_MIN + 16 - ACC_SHIFT_MAX)
"""Largest real factor a requantisation can apply, 8191.75."""


def round_half_up(values: npt.ArrayLike) -> Int64:
    """The nearest integers, halves towards plus infinity; exact for every finite float64 below 2^63.

    `floor(x + 0.5)` is not: the sum itself may round up to the next integer.

    Raises: InternalError when a value is not finite or does not fit int64.
    """
    x = np.asarray(values, dtype=np.float64)
    if not np.all(np.abs(x) < 2.0**62):
        raise InternalError("a value cannot be rounded to an integer", found="NaN, infinity or more than 2^62", wanted="finite values")
    whole = np.floor(x)
    return np.asarray(whole.astype(np.int64) + (x - whole >= 0.5))


def scale(acc: npt.NDArray[Any], multiplier: npt.ArrayLike, shift: npt.ArrayLike, acc_shift: int) -> Int64:
    """floor((acc * 2^acc_shift * multiplier + 2^(shift+15)) / 2^(shift+16)): one rounding, halves up (SPEC 3.2; kq_scale).

    Shapes: acc (..., c) integers, bias inside, acc * 2^acc_shift within int32; multiplier (c,) or () 0..32767; shift (c,) or () 1..22.
    An `acc_shift` that names rule `tflite` asks for SPEC 3.5 instead (`fixed_tflite.scale`).

    Raises: InternalError when an argument is outside these ranges.
    """
    if fixed_tflite.is_rule(acc_shift):
        return fixed_tflite.scale(acc, multiplier, shift, acc_shift)
    m, s = np.asarray(multiplier, dtype=np.int64), np.asarray(shift, dtype=np.int64)
    a = np.asarray(acc, dtype=np.int64)
    if not 0 <= acc_shift <= ACC_SHIFT_MAX or np.any((s < SHIFT_MIN) | (s > SHIFT_MAX)) or np.any((m < 0) | (m > MULTIPLIER_MAX)):
        raise InternalError("requantisation parameters are outside SPEC 3.2", found=f"acc_shift {acc_shift}, shifts {s}, multipliers {m}")
    if a.size and (int(a.min()) < INT32_MIN >> acc_shift or int(a.max()) > INT32_MAX >> acc_shift):
        raise InternalError(
            "an accumulator does not fit 32 bits", found=f"{int(a.min())}..{int(a.max())} with a left shift of {acc_shift}"
        )
    return ((a << acc_shift) * m + (np.int64(1) << (s + 15))) >> (s + 16)


def requantise(
    acc: npt.NDArray[Any], multiplier: npt.ArrayLike, shift: npt.ArrayLike, acc_shift: int, zero_point: int, lo: int, hi: int
) -> npt.NDArray[np.int8]:
    """int8 from accumulators: min(max(scale(acc) + zero_point, lo), hi) (SPEC 3.2; kq_requantise).

    Shapes: as for `scale`; -128 <= lo <= hi <= 127.
    Raises: as `scale`.
    """
    return np.clip(scale(acc, multiplier, shift, acc_shift) + zero_point, lo, hi).astype(np.int8)


def quantise_multiplier(factors: npt.ArrayLike) -> tuple[npt.NDArray[np.int16], npt.NDArray[np.uint8], int]:
    """(multiplier, shift, acc_shift) of a layer's real factors: the nearest that SPEC 3.4 allows, halves up.

    Shapes: factors (c,) or () real, > 0, at most MAX_FACTOR; multiplier and shift have their shape.
    Raises: InputError when a factor is not finite, not positive or above MAX_FACTOR.
    """
    real = np.asarray(factors, dtype=np.float64)
    if real.size == 0 or not np.all(np.isfinite(real) & (real > 0)) or float(real.max()) > MAX_FACTOR:
        worst = real[~((real > 0) & (real <= MAX_FACTOR))].ravel()[:4] if real.size else "no channel"
        raise InputError(
            "accumulators cannot be requantised",
            found=f"factor {worst} from its accumulators to its output",
            wanted=f"finite factors above 0 and at most {MAX_FACTOR}",
            do="check the layer's weights and calibration data for channels that are constant, huge or NaN",
        )
    fraction, exponent = np.frexp(real)  # real = fraction * 2^exponent, 0.5 <= fraction < 1
    multiplier = round_half_up(fraction * 2.0**15)
    carried = multiplier > MULTIPLIER_MAX
    multiplier, exponent = np.where(carried, MULTIPLIER_MIN, multiplier), exponent + carried
    # real = multiplier / 2^(15 - exponent) = multiplier * 2^acc_shift / 2^(shift + 16)
    acc_shift = max(0, int(np.max(exponent)) + 1 + SHIFT_MIN)
    shift = acc_shift - 1 - exponent
    small = shift > SHIFT_MAX
    if np.any(small):
        fixed_point = round_half_up(np.ldexp(real, SHIFT_MAX + 16 - acc_shift))
        multiplier, shift = np.where(small, fixed_point, multiplier), np.where(small, SHIFT_MAX, shift)
    return np.asarray(multiplier, dtype=np.int16), np.asarray(shift, dtype=np.uint8), acc_shift


def add_parameters(
    scale_a: float, zero_point_a: int, scale_b: float, zero_point_b: int, scale_y: float, zero_point_y: int, *, minus: bool = False
) -> tuple[int, int, int, int]:
    """(multiplier_a, multiplier_b, bias, shift) of SPEC 5.2 with the largest shift <= 20 that keeps every value in int32.

    A multiplier is the ratio of scales times 2^shift, rounded halves up, and at least 1; that of b is negative with `minus`.

    Units: scales are real per step, > 0; zero points -128..127.
    Raises: InputError when a scale is not finite and positive, or no shift serves.
    """
    scales = (scale_a, scale_b, scale_y)
    if all(math.isfinite(value) and value > 0 for value in scales):
        ratios = (scale_a / scale_y, scale_b / scale_y)
        for shift in range(ADD_SHIFT_MAX, 0, -1) if max(ratios) < 2.0**31 else ():
            m_a, m_b = (max(1, int(round_half_up(math.ldexp(ratio, shift)))) for ratio in ratios)
            m_b = -m_b if minus else m_b
            bias = (zero_point_y << shift) - zero_point_a * m_a - zero_point_b * m_b + (1 << (shift - 1))
            if add_fits(m_a, m_b, bias):
                return m_a, m_b, bias, shift
    raise InputError(
        "an addition cannot be computed in 32 bits",
        found=f"input scales {scale_a} and {scale_b}, output scale {scale_y}",
        wanted="finite scales above 0, the inputs' at most some 10^6 times the output's",
        do="check the calibration data: the sum's range is far smaller than its operands'",
    )


def add_fits(m_a: int, m_b: int, bias: int) -> bool:
    """Whether a * m_a, b * m_b, their sum and the sum with the bias fit int32 for all int8 a and b; all are extreme at the ends."""
    ends_a, ends_b = (sorted((-128 * each, 127 * each)) for each in (m_a, m_b))
    low, high = ends_a[0] + ends_b[0], ends_a[1] + ends_b[1]
    return all(INT32_MIN <= value <= INT32_MAX for value in (*ends_a, *ends_b, low, high, bias, low + bias, high + bias))


def rescale_parameters(scale_x: float, zero_point_x: int, scale_y: float, zero_point_y: int) -> tuple[int, int, int]:
    """(multiplier, bias, shift) of SPEC 5.11 from one quantisation to another: (1, 0, 0) where they are equal, else a shift of 1..20.

    Units and errors: as for `add_parameters`.
    """
    if (scale_x, zero_point_x) == (scale_y, zero_point_y):
        return 1, 0, 0
    if all(math.isfinite(value) and value > 0 for value in (scale_x, scale_y)) and scale_x / scale_y < 2.0**31:
        for shift in range(ADD_SHIFT_MAX, 0, -1):
            multiplier = max(1, int(round_half_up(math.ldexp(scale_x / scale_y, shift))))
            bias = (zero_point_y << shift) - zero_point_x * multiplier + (1 << (shift - 1))
            if rescale_fits(multiplier, bias):
                return multiplier, bias, shift
    raise InputError(
        "a map cannot be brought to another scale in 32 bits",
        found=f"scale {scale_x}, wanted scale {scale_y}",
        wanted="finite scales above 0, the first at most some 10^6 times the other",
        do="check the calibration data: the result's range is far smaller than that of its parts",
    )


def rescale_fits(multiplier: int, bias: int) -> bool:
    """Whether q * multiplier and its sum with the bias fit int32 for every int8 q."""
    ends = (-128 * multiplier, 127 * multiplier)
    return all(INT32_MIN <= value <= INT32_MAX for value in (*ends, bias, *(end + bias for end in ends)))


def crc32(data: bytes | npt.NDArray[np.int8]) -> int:
    """CRC-32 of a step's output bytes (SPEC 7.4; kq_crc32), 0..2^32-1."""
    return zlib.crc32(data if isinstance(data, bytes) else np.ascontiguousarray(data).tobytes())
