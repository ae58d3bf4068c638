"""Uniform weights of 8, 6 or 4 bits: one scale an output channel, no zero point (SPEC 4.4)."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from kqgen.intgraph import Int8, frozen

Float64 = npt.NDArray[np.float64]

BIAS_LIMIT = 2**27
"""|bias / (input scale * weight scale)| stays below this, so that the int32 bias of SPEC 5.1 has room for zero points too."""
_DEAD_SHARE = 2.0**-16
"""Scale of a channel without weights, relative to the layer's median: it multiplies nothing that could matter."""
_CLIPS = {8: np.linspace(1.0, 0.8, 21), 6: np.linspace(1.0, 0.5, 51), 4: np.linspace(1.0, 0.25, 76)}


def scale_floor(bias: npt.ArrayLike, input_scale: float) -> Float64:
    """The smallest weight scale (c_out,) that keeps the integer bias within BIAS_LIMIT.

    Args:
        bias: (c_out,) real.
    """
    return np.abs(np.asarray(bias, np.float64)) / (input_scale * BIAS_LIMIT)


def usable_scale(scale: Float64, floor: Float64) -> npt.NDArray[np.float32]:
    """`scale` (c_out,) made > 0 and >= floor, as float32; channels whose scale is 0 get a small part of the layer's median."""
    alive = scale[scale > 0]
    dead = float(np.median(alive)) * _DEAD_SHARE if alive.size else 1.0
    lifted = np.maximum(np.where(scale > 0, scale, dead), np.maximum(floor, 2.0**-100))
    out = lifted.astype(np.float32)
    return np.where(out < lifted, np.nextafter(out, np.float32(np.inf)), out)


def uniform(weight: Float64, importance: Float64, bits: int, floor: Float64) -> tuple[Int8, npt.NDArray[np.float32]]:
    """Integers and scales of least weighted squared error over a search of clipping points, refitted in closed form.

    Args:
        weight: (c_out, n) real.
        importance: (n,) >= 0, the second moment of the input that meets each weight.
        floor: (c_out,) smallest scales allowed.

    Shapes: returns (c_out, n) int8 within -(2**(bits-1)-1)..2**(bits-1)-1 and (c_out,) float32.
    """
    limit = 2 ** (bits - 1) - 1
    largest = np.abs(weight).max(axis=1)
    cost = np.full(len(weight), np.inf)
    scale = np.zeros(len(weight))
    for clip in _CLIPS[bits]:
        trial = np.where(largest > 0, clip * largest / limit, 1.0)
        whole = np.clip(np.rint(weight / trial[:, None]), -limit, limit)
        correlation, power = (importance * weight * whole).sum(axis=1), (importance * whole * whole).sum(axis=1)
        fitted = np.where((power > 0) & (correlation > 0), correlation / np.where(power > 0, power, 1.0), trial)
        now = (importance * (weight - fitted[:, None] * whole) ** 2).sum(axis=1)
        better = (now < cost) & (largest > 0)
        cost, scale = np.where(better, now, cost), np.where(better, fitted, scale)
    stored = usable_scale(scale, floor)
    whole = np.clip(np.rint(weight / stored.astype(np.float64)[:, None]), -limit, limit)
    return frozen(whole, np.int8), stored
