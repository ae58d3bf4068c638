"""Fixed-point arithmetic against exact fractions: nothing here shares a formula with kqgen.fixed but SPEC.md itself."""

from __future__ import annotations

import zlib
from fractions import Fraction
from math import floor

import numpy as np
import pytest

from kqgen import fixed
from kqgen.errors import InputError, InternalError

INT32_MIN, INT32_MAX = -(2**31), 2**31 - 1


def scale_exactly(acc: int, multiplier: int, shift: int, acc_shift: int) -> int:
    """SPEC 3.2: the real product, rounded once, halves up."""
    return floor(Fraction(acc * multiplier * 2**acc_shift, 1 << (shift + 16)) + Fraction(1, 2))


def test_round_half_up_is_exact_where_adding_a_half_is_not() -> None:
    below = np.nextafter(0.5, 0.0)
    values = [0.5, -0.5, 1.5, -1.5, 2.5, below, -below, -np.nextafter(0.5, 1.0), 2.0**52 + 1, 2.0**53 - 1, 7.0, -7.0, 0.0]
    expected = [floor(Fraction(value) + Fraction(1, 2)) for value in values]
    assert fixed.round_half_up(values).tolist() == expected
    assert floor(below + 0.5) == 1, "the sum rounds up, the helper must not"


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e300])
def test_round_half_up_refuses(value: float) -> None:
    with pytest.raises(InternalError):
        fixed.round_half_up([0.0, value])


@pytest.mark.parametrize("acc_shift", [0, 1, 7, 15])
def test_scale_equals_the_rounded_real_product(acc_shift: int) -> None:
    rng = np.random.default_rng(acc_shift)
    limit = INT32_MAX >> acc_shift
    edges = [0, 1, -1, 255, -256, 2**15 - 1, -(2**15), 2**16, limit, -limit, INT32_MIN >> acc_shift]
    acc = np.array([*(edge for edge in edges if abs(edge) <= limit + 1), *rng.integers(-limit, limit + 1, 3000)], dtype=np.int64)
    acc = np.clip(acc, INT32_MIN >> acc_shift, limit)
    multiplier = rng.integers(0, 2**15, len(acc))
    multiplier[:40:4], multiplier[1:40:4], multiplier[2:40:4] = 0, 2**14, 2**15 - 1
    shift = rng.integers(1, 23, len(acc))
    expected = [scale_exactly(int(a), int(m), int(s), acc_shift) for a, m, s in zip(acc, multiplier, shift, strict=True)]
    assert fixed.scale(acc, multiplier, shift, acc_shift).tolist() == expected


def test_scale_rounds_halves_up_on_both_sides_of_zero() -> None:
    # 16384 / 2^(1 + 16) = 1/8: accumulators 4 mod 8 fall on halves.
    acc = np.array([4, 12, -4, -12, 3, -3, 5, -5])
    assert fixed.scale(acc, 16384, 1, 0).tolist() == [1, 2, 0, -1, 0, 0, 1, -1]


def test_requantise_adds_the_zero_point_then_clamps() -> None:
    acc = np.array([[-100_000, -8, 0, 8, 100_000]], dtype=np.int64)
    assert fixed.requantise(acc, 16384, 1, 0, 5, -100, 90).tolist() == [[-100, 4, 5, 6, 90]]
    assert fixed.requantise(acc, 16384, 1, 0, 5, -100, 90).dtype == np.int8


@pytest.mark.parametrize(
    ("acc", "multiplier", "shift", "acc_shift"),
    [
        (2**31, 1, 1, 0), (2**27, 1, 1, 4), (-(2**27) - 1, 1, 1, 4),
        (0, 2**15, 1, 0), (0, -1, 1, 0), (0, 1, 0, 0), (0, 1, 23, 0), (0, 1, 1, 16),
    ],
)
def test_scale_refuses_what_the_c_cannot_compute(acc: int, multiplier: int, shift: int, acc_shift: int) -> None:
    with pytest.raises(InternalError):
        fixed.scale(np.array([acc]), multiplier, shift, acc_shift)


def nearest_exactly(factor: float, acc_shift: int) -> tuple[int, int] | None:
    """SPEC 3.4 for one factor: the (multiplier, shift) of the largest multiplier below 2^15, None where no shift from 1 on serves."""
    for shift in range(22, 0, -1):
        multiplier = floor(Fraction(factor) * 2 ** (shift + 16) / 2**acc_shift + Fraction(1, 2))
        if multiplier < 2**15:
            return multiplier, shift
    return None


def test_quantise_multiplier_is_the_nearest_the_specification_allows() -> None:
    rng = np.random.default_rng(3)
    for _ in range(400):
        factors = np.exp2(rng.uniform(-26, rng.uniform(-24, 13), rng.integers(1, 9)))
        multiplier, shift, acc_shift = fixed.quantise_multiplier(factors)
        assert multiplier.dtype == np.int16
        assert shift.dtype == np.uint8
        expected = [nearest_exactly(float(factor), acc_shift) for factor in factors]
        assert list(zip(multiplier.tolist(), shift.tolist(), strict=True)) == expected
        if acc_shift > 0:
            assert None in [nearest_exactly(float(factor), acc_shift - 1) for factor in factors], "a smaller left shift would have served"


@pytest.mark.parametrize(
    ("factor", "expected"),
    [
        (0.25, (16384, 1, 1)),  # one too many for a left shift of 0
        (np.nextafter(0.25, 0.0), (16384, 1, 1)),  # rounds up to 32768, which is 16384 at the next shift
        (32767.5 / 2**17, (16384, 1, 1)),  # a half: up
        (np.nextafter(32767.5 / 2**17, 0.0), (32767, 1, 0)),
        (2.0**-24, (16384, 22, 0)),
        (2.0**-25, (8192, 22, 0)),  # the shift stays, the multiplier shrinks
        (2.0**-39, (1, 22, 0)),  # half of the smallest step: up
        (2.0**-40, (0, 22, 0)),
        (5e-324, (0, 22, 0)),
        (fixed.MAX_FACTOR, (32767, 1, 15)),
    ],
)
def test_quantise_multiplier_at_the_edges(factor: float, expected: tuple[int, int, int]) -> None:
    multiplier, shift, acc_shift = fixed.quantise_multiplier(np.array([factor]))
    assert (int(multiplier[0]), int(shift[0]), acc_shift) == expected


@pytest.mark.parametrize("factor", [0.0, -1.0, np.nan, np.inf, np.nextafter(fixed.MAX_FACTOR, np.inf), 1e30])
def test_quantise_multiplier_refuses(factor: float) -> None:
    with pytest.raises(InputError, match="cannot be requantised"):
        fixed.quantise_multiplier(np.array([0.01, factor]))


def fits(parameters: tuple[int, int, int, int]) -> bool:
    """Whether every product and sum of SPEC 5.2 fits int32, tried at all corners of the operands."""
    m_a, m_b, bias, _ = parameters
    values = [bias]
    for a in (-128, 127):
        for b in (-128, 127):
            values += [a * m_a, b * m_b, a * m_a + b * m_b, a * m_a + b * m_b + bias]
    return all(INT32_MIN <= value <= INT32_MAX for value in values)


def add_exactly(ratio_a: Fraction, ratio_b: Fraction, zero_points: tuple[int, int, int], shift: int) -> tuple[int, int, int, int]:
    zp_a, zp_b, zp_y = zero_points
    m_a, m_b = (max(1, floor(ratio * 2**shift + Fraction(1, 2))) for ratio in (ratio_a, ratio_b))
    return m_a, m_b, zp_y * 2**shift - zp_a * m_a - zp_b * m_b + 2 ** (shift - 1), shift


def test_add_parameters_take_the_largest_shift_that_fits() -> None:
    rng = np.random.default_rng(5)
    shifts = set()
    for _ in range(500):
        scales = np.exp2(rng.uniform(-9, 9, 3))
        zero_points = tuple(int(zp) for zp in rng.choice([-128, 127, *rng.integers(-128, 128, 4)], 3))
        a, b, y = (float(value) for value in scales)
        found = fixed.add_parameters(a, zero_points[0], b, zero_points[1], y, zero_points[2])
        shift = found[3]
        ratios = (Fraction(a / y), Fraction(b / y))
        assert found == add_exactly(*ratios, (zero_points[0], zero_points[1], zero_points[2]), shift)
        assert fits(found)
        if shift < 20:
            assert not fits(add_exactly(*ratios, (zero_points[0], zero_points[1], zero_points[2]), shift + 1))
        shifts.add(shift)
    assert shifts.issuperset({20, 15, 10}), "the scales were meant to need small and large shifts"


def test_add_is_within_a_rounding_of_the_real_sum() -> None:
    scale_a, scale_b, scale_y, zp_a, zp_b, zp_y = 0.031, 0.0173, 0.0402, -17, 40, 9
    m_a, m_b, bias, shift = fixed.add_parameters(scale_a, zp_a, scale_b, zp_b, scale_y, zp_y)
    a, b = np.meshgrid(np.arange(-128, 128), np.arange(-128, 128))
    found = (a * m_a + b * m_b + bias) >> shift
    real = (scale_a * (a - zp_a) + scale_b * (b - zp_b)) / scale_y + zp_y
    # One rounding of the result, and 2 * 255 times half a step of 2^-shift from the multipliers.
    assert float(np.abs(found - real).max()) <= 0.5 + 255 * 2.0**-shift


@pytest.mark.parametrize(
    "scales", [(0.0, 1.0, 1.0), (1.0, -1.0, 1.0), (1.0, 1.0, np.nan), (1.0, 1.0, np.inf), (1e9, 1.0, 1.0), (1e300, 1.0, 1e-300)]
)
def test_add_parameters_refuse(scales: tuple[float, float, float]) -> None:
    with pytest.raises(InputError, match="addition"):
        fixed.add_parameters(scales[0], 0, scales[1], 0, scales[2], 0)


def test_crc32_is_that_of_zlib() -> None:
    assert fixed.crc32(b"123456789") == 0xCBF43926
    data = np.random.default_rng(0).integers(-128, 128, (3, 5, 7)).astype(np.int8)
    assert fixed.crc32(data.transpose(2, 0, 1)) == zlib.crc32(data.transpose(2, 0, 1).tobytes())
