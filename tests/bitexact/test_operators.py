"""Operators that look up, multiply, place, slice or compare values: C against SPEC.md, number by number, also in place."""

from __future__ import annotations

import mapcases
import numpy as np
import pytest
from kernellib import Kernels
from mapcases import MapCase

from kqgen import doubling, lower_maps


@pytest.mark.parametrize("case", list(mapcases.cases()), ids=lambda case: case.label)
def test_every_case(kernels: Kernels, case: MapCase) -> None:
    for offsets in ((3, 1, 2), (4, 4, 4), (1, 3, 4)):
        np.testing.assert_array_equal(mapcases.run(kernels, case, offsets=offsets), case.wanted)
    for number in case.over:
        np.testing.assert_array_equal(mapcases.run(kernels, case, over=number), case.wanted)


@pytest.mark.parametrize("size_bytes", [0, 1, 3, 4, 7, 8, 11, 64])
def test_fill(kernels: Kernels, size_bytes: int) -> None:
    for value, offset in ((-128, 1), (7, 4), (-1, 3)):
        with kernels.memory() as place:
            output = place(bytes(size_bytes + 1), "int8_t *", offset)
            kernels.lib.kq_fill_s8(output, size_bytes, value)
            found = np.frombuffer(kernels.ffi.buffer(output, size_bytes + 1), np.int8)
            assert found.tolist() == [value] * size_bytes + [0]


@pytest.mark.parametrize("scale", [2.0**-30, 1e-7, 1e-3, 0.0625, 0.17185351252555847, 1.0, 40.0])
def test_the_table_of_exponentials_is_that_of_the_specification(scale: float) -> None:
    table = lower_maps.exponentials(scale)
    if scale > 1e-7:
        np.testing.assert_array_equal(table, mapcases.exponentials(scale))
    np.testing.assert_allclose(table / 2**31, np.exp(-scale * np.arange(len(table))), atol=2e-7)


def test_products_by_halves_equal_those_of_64_bits(kernels: Kernels) -> None:
    """What the softmax multiplies with, at its ends."""
    ends = [-(2**31) + 1, -1010580540, -1, 0, 1, 2**16 - 1, 2**16, 2**29, 2**31 - 1]
    values = np.concatenate([ends, np.random.default_rng(0).integers(-(2**31) + 1, 2**31, 20000)]).astype(np.int64)
    a, b = values, np.roll(values, 3)
    with kernels.memory() as place:
        found = place(bytes(4 * len(a)), "int32_t *")
        kernels.lib.probe_product(
            len(a), place(a.astype(np.int32).tobytes(), "int32_t *"), place(b.astype(np.int32).tobytes(), "int32_t *"), found
        )
        np.testing.assert_array_equal(np.frombuffer(kernels.ffi.buffer(found, 4 * len(a)), np.int32), doubling.doubling_high(a, b))
    np.testing.assert_array_equal(doubling.doubling_high(a, b), [(int(x) * int(y) + 2**30) >> 31 for x, y in zip(a, b, strict=True)])
