"""SPEC 3.5 and 3.6 on exact integers and fractions."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest

from kqgen import fixed_tflite as rule
from kqgen.errors import InputError, InternalError


def rounded(value: Fraction, away: bool) -> int:
    """The nearest integer; halves away from zero, or up."""
    if away and value < 0:
        return -rounded(-value, away=False)
    return (value + Fraction(1, 2)).__floor__()


def exact(acc: int, multiplier: int, shift: int, mark: int) -> int:
    """SPEC 3.5 in words."""
    if mark == rule.ONCE:
        return rounded(Fraction(acc * multiplier, 2**shift), away=False)
    product = rounded(Fraction(acc * 2 ** max(0, 31 - shift) * multiplier, 2**31), away=False)
    return rounded(Fraction(product, 2 ** max(0, shift - 31)), away=True)


@pytest.mark.parametrize("mark", [rule.TWICE, rule.ONCE])
def test_scale_is_the_specification(mark: int) -> None:
    rng = np.random.default_rng(mark)
    for _ in range(3000):
        shift = int(rng.integers(20, 63))
        most = min(2**29, 2 ** (29 - max(0, 31 - shift)))
        acc = int(rng.integers(1 - most, most)) >> int(rng.integers(0, 20))
        multiplier = int(rng.choice([0, 2**30, 2**31 - 1, int(rng.integers(2**29, 2**31))]))
        assert int(rule.scale(acc, multiplier, shift, mark)) == exact(acc, multiplier, shift, mark), (acc, multiplier, shift)


def test_halves_go_where_they_should() -> None:
    """Factor 1/4: twice takes -2.5 to -3, once to -2."""
    acc = np.array([-10, -6, 6, 10])
    assert rule.scale(acc, 2**30, 32, rule.TWICE).tolist() == [-3, -2, 2, 3]
    assert rule.scale(acc, 2**30, 32, rule.ONCE).tolist() == [-2, -1, 2, 3]


@pytest.mark.parametrize(
    ("acc", "multiplier", "shift"), [(2**29, 2**30, 40), (2**19, 2**30, 20), (1, 2**31, 40), (1, -1, 40), (1, 5, 0), (1, 5, 63)]
)
def test_scale_refuses_what_the_c_cannot_take(acc: int, multiplier: int, shift: int) -> None:
    with pytest.raises(InternalError):
        rule.scale(acc, multiplier, shift, rule.TWICE)


def test_multipliers_are_tflites() -> None:
    factors = np.array([0.5, 1.0, 0.75 * 2.0**-9, 1.0 - 2.0**-40, 2.0**-33, 0.0, 3.0])
    multiplier, shift = rule.quantise_multiplier(factors)
    assert multiplier.tolist() == [2**30, 2**30, 3 * 2**29, 2**30, 0, 0, 3 * 2**29]
    assert shift.tolist() == [31, 30, 40, 30, 31, 31, 29]
    assert (multiplier.dtype.name, shift.dtype.name) == ("int32", "uint8")
    for bad in (-1.0, float("nan"), float("inf"), 2.0**30):
        with pytest.raises(InputError):
            rule.quantise_multiplier(bad)


def test_once_gives_the_codes_of_float64() -> None:
    """Every accumulator of small layers, and random ones of large layers."""
    rng = np.random.default_rng(3)
    for number in range(60):
        factor = float(np.float32(10.0 ** rng.uniform(-5, -1)) * np.float64(np.float32(rng.uniform(0.5, 1.0))))
        most = 3000 if number % 2 else 2**27
        first, last = -100 - number, 127
        multiplier, shift = rule.multiplier_once(factor, -most, most, first, last)
        acc = np.arange(-most, most + 1) if number % 2 else rng.integers(-most, most + 1, 20000) >> rng.integers(0, 16, 20000)
        found = np.clip(rule.scale(acc, multiplier, shift, rule.ONCE), first, last)
        assert np.array_equal(found, np.clip(rule.float_codes(acc, factor), first, last))


def test_a_factor_no_multiplier_serves_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Factor 3/2 - a little makes float64 round halves another way than any product near it for so wide a range."""
    monkeypatch.setattr(rule, "SEARCH_STEPS", 1)
    factor = next(
        value for value in np.random.default_rng(0).uniform(2.0**-22, 2.0**-21, 400)
        if not np.array_equal(_near(value), np.clip(rule.float_codes(_places(value), value), -128, 127))
    )  # fmt: skip
    with pytest.raises(InputError, match="no multiplier"):
        rule.multiplier_once(float(factor), 1 - 2**29, 2**29 - 1, -128, 127)


def _places(factor: float) -> np.ndarray:
    return np.unique(np.floor((np.arange(-128, 129) - 0.5) / factor).astype(np.int64)[:, None] + np.arange(-3, 4))


def _near(factor: float) -> np.ndarray:
    multiplier, shift = rule.quantise_multiplier(factor)
    return np.clip(rule.scale(_places(factor), multiplier, shift, rule.ONCE), -128, 127)


def test_activation_limits() -> None:
    infinite = float("inf")
    assert rule.activation_codes(0.1, -10, -infinite, infinite) == (-128, 127)
    assert rule.activation_codes(0.1, -10, 0.0, infinite) == (-10, 127)
    assert rule.activation_codes(0.1, -10, 0.0, 6.0) == (-10, 50)
    assert rule.activation_codes(0.001, 0, -1.0, 1.0) == (-128, 127)
