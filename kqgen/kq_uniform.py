"""Uniform weights of 8, 6 or 4 bits: one scale an output channel, no zero point (SPEC 4.4)."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Float64 = npt.NDArray[np.float64]

BIAS_LIMIT = 2**27
"""|bias / (input scale * weight scale)| stays below this, so that the int32 bias of SPEC 5.1 has room for zero points too."""
_LEAST_SHARE = 2.0**-16
_CLIPS = {8: np.linspace(1.0, 0.8, 21), 6: np.linspace(1.0, 0.5, 51), 4: np.linspace(1.0, 0.25, 76)}


def scale_floor(bias: npt.ArrayLike, input_scale: float) -> Float64:
    """The smallest weight scale (c_out,) that keeps the integer bias within BIAS_LIMIT.

    Args:
        bias: (c_out,) real.
    """
    return np.abs(np.asarray(bias, np.float64)) / (input_scale * BIAS_LIMIT)


def usable_scale(scale: Float64, floor: Float64) -> npt.NDArray[np.float32]:
    """`scale` (c_out,) as float32, lifted to `floor` and, for channels next to nothing, to a small part of the layer's median.

    Every result is > 0. Lifting a scale under 2**-16 of the median moves real weights by less than int8 outputs can show.
    """
    alive = scale[scale > 0]
    median = float(np.median(alive)) if alive.size else 1.0
    lifted = np.maximum(scale, np.maximum(floor, median * _LEAST_SHARE))
    out = lifted.astype(np.float32)
    return np.where(out < lifted, np.nextafter(out, np.float32(np.inf)), out)


def uniform(
    weight: Float64, second: Float64 | None, bits: int, floor: Float64
) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.float32]]:
    """Integers and scales of a layer: the clipping point of least squared error, then rounding with the error fed back.

    Args:
        weight: (c_out, n) real.
        second: (n, n), positive definite, the damped covariance of the inputs, or (c_out, n, n), one for each output channel; None: all
            inputs count the same and alone.
        floor: (c_out,) smallest scales allowed.

    Shapes: returns (c_out, n) int8 within -(2**(bits-1)-1)..2**(bits-1)-1 and (c_out,) float32.
    """
    limit = 2 ** (bits - 1) - 1
    importance = np.ones(weight.shape[1]) if second is None else np.diagonal(second, axis1=-2, axis2=-1)
    stored = usable_scale(best_scale(weight, importance, bits), floor)
    divided = weight / stored.astype(np.float64)[:, None]
    if second is None:
        return np.clip(np.rint(divided), -limit, limit).astype(np.int8), stored
    if second.ndim == 3:
        rows = [_round_with_feedback(row[None], own, limit) for row, own in zip(divided, second, strict=True)]
        return np.concatenate(rows), stored
    return _round_with_feedback(divided, second, limit), stored


def best_scale(weight: Float64, importance: Float64, bits: int) -> Float64:
    """The scale (c_out,) of least squared rounding error, each input counting with its importance (n,) or (c_out, n)."""
    limit = 2 ** (bits - 1) - 1
    largest = np.abs(weight).max(axis=1)
    cost = np.full(len(weight), np.inf)
    scale = np.zeros(len(weight))
    for clip in _CLIPS[bits]:
        trial = np.where(largest > 0, clip * largest / limit, 1.0)
        whole = np.clip(np.rint(weight / trial[:, None]), -limit, limit)
        now = (importance * (weight - trial[:, None] * whole) ** 2).sum(axis=1)
        better = (now < cost) & (largest > 0)
        cost, scale = np.where(better, now, cost), np.where(better, trial, scale)
    return scale


def _round_with_feedback(divided: Float64, second: Float64, limit: int) -> npt.NDArray[np.int8]:
    """Rounds one input after the other, strongest first, each error handed on to the inputs still open (GPTQ, Frantar et al., 2023)."""
    order = np.argsort(-np.diagonal(second), kind="stable")
    inverse = np.linalg.inv(second[np.ix_(order, order)])
    factor = np.ascontiguousarray(np.linalg.cholesky((inverse + inverse.T) / 2).T)
    left = divided[:, order].copy()
    whole = np.zeros(divided.shape, dtype=np.int8)
    for position, column in enumerate(order):
        rounded = np.clip(np.rint(left[:, position]), -limit, limit)
        whole[:, column] = rounded
        error = (left[:, position] - rounded) / factor[position, position]
        left[:, position + 1 :] -= np.outer(error, factor[position, position + 1 :])
    return whole
