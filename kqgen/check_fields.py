"""How fields of a graph from a file are refused: the layer, the field, and what is there."""

from __future__ import annotations

import numpy as np

from kqgen import fixed, fixed_tflite
from kqgen.errors import InputError
from kqgen.intgraph import Array


def need(holds: bool, where: str, field: str, found: str) -> None:
    """Raises InputError naming `where` and `field` unless `holds`."""
    if not holds:
        raise InputError(
            f"{where}: {field} cannot be that of a compiled network",
            found=found,
            wanted="the graph as kqgen compile wrote it",
            do="compile the model again",
        )


def array(where: str, field: str, values: Array, dtype: type[np.generic], shape: tuple[int, ...]) -> None:
    """Needs an array of that dtype and shape."""
    need(values.dtype == dtype and values.shape == shape, where, field, f"{values.dtype} {values.shape}, not {np.dtype(dtype)} {shape}")


def requant(where: str, multiplier: Array, shift: Array, acc_shift: int) -> None:
    """Needs multipliers and shifts of SPEC 3.2, or of 3.5 where `acc_shift` names it."""
    if fixed_tflite.is_rule(acc_shift):
        need(fixed_tflite.fits(multiplier, shift), where, "requant", "beyond SPEC 3.5")
        return
    fits = 0 <= acc_shift <= fixed.ACC_SHIFT_MAX and np.all((shift >= fixed.SHIFT_MIN) & (shift <= fixed.SHIFT_MAX))
    need(bool(fits and np.all((multiplier >= 0) & (multiplier <= fixed.MULTIPLIER_MAX))), where, "requant", "beyond SPEC 3.2")
