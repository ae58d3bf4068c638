"""Infinite and huge inputs saturate: they once were refused as if kqgen itself were broken."""

from __future__ import annotations

import numpy as np

from kqgen import oracle
from kqgen.intgraph import QTensor


def test_infinite_and_huge_values_take_the_last_code() -> None:
    tensor = QTensor("x", 1, 1, 4, 1e-6, 3)
    real = np.array([np.inf, 3e38, -3e38, -np.inf], np.float32)
    assert oracle.quantise(tensor, real).tolist() == [127, 127, -128, -128]
    for zero_point in (-128, 127):
        far = QTensor("x", 1, 1, 2, 1.0, zero_point)
        assert oracle.quantise(far, np.array([1e9, -1e9])).tolist() == [127, -128]
