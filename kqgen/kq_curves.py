"""Cheap estimates of what indexing or rounding costs a layer, as a share of its output power: curves over the codewords it can name.

k-means at a few codebook sizes on a sample of the kernels, with one metric a layer, straight lines in log error over log codewords
between and beyond them. Several layers may share the codebook. Rounding of codewords is left out: it costs all layers much the same.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from kqgen.ir import Conv2d
from kqgen.kq_uniform import uniform
from kqgen.sensitivity import Sensitivity

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]
_Codes = npt.NDArray[np.int64]

OWN_SAMPLE = 12288
"""Kernels that stand for a layer with its own codebook, at most."""
SHARED_SAMPLE = 24576
"""Kernels that stand for all layers of a shared codebook, at most (and 256 a layer)."""
_LEAST_SAMPLE = 256
_UNIFORM_SAMPLE = 1 << 17
_SIZES = (1, 4, 16, 64, 256, 1024)
_PAIR_SIZES = (1, 4, 16, 32)
_KERNELS_A_CODEWORD = 12
"""Below so many sampled kernels a codeword, a sample says more about itself than about the layer."""
_ITERATIONS = 8
_SCORES_AT_ONCE = 1 << 21
_FLOOR = 1e-4
"""What rounding codewords to 6 bits costs at least, as a share of the power."""


@dataclass(frozen=True, slots=True, eq=False)
class Curve:
    """Error of one layer, a share of its output power, over the codewords its indices name.

    Attributes:
        codewords: ascending sizes tried.
        errors: the shares found, never rising.
        kernels: codewords beyond these bring nothing.
    """

    codewords: tuple[int, ...]
    errors: tuple[float, ...]
    kernels: int

    def handed_on(self, gain: float, surcharge: float) -> Curve:
        """The same when errors are handed on, which leaves `gain` of them, and times `surcharge`.

        Kernels that have taken up others' errors are no longer those that the codewords were fitted to: what a codebook with few
        kernels a codeword gained by knowing them by heart is lost again.
        """
        handed = [gain * error / max(1 - size / self.kernels, gain) for size, error in zip(self.codewords, self.errors, strict=True)]
        return Curve(self.codewords, tuple(min(1.0, max(_FLOOR, surcharge * error)) for error in handed), self.kernels)

    def at(self, codewords: int) -> float:
        """The error with so many codewords: falls with them, > 0."""
        if codewords >= self.kernels:
            return _FLOOR
        if len(self.codewords) == 1:
            return self.errors[0]
        right = min(bisect.bisect_left(self.codewords, codewords, 1), len(self.codewords) - 1)
        along = math.log(codewords / self.codewords[right - 1]) / math.log(self.codewords[right] / self.codewords[right - 1])
        return max(_FLOOR, self.errors[right - 1] * math.exp(along * math.log(self.errors[right] / self.errors[right - 1])))


@dataclass(frozen=True, slots=True, eq=False)
class Kernels:
    """Sampled kernels of one layer, each divided by its output channel's root mean square.

    Attributes:
        vectors: (n, d) float32.
        mass: (n,) what one unit of squared error of a kernel counts.
        metric: (d, d) float64, positive definite.
        total: kernels of the layer, sampled or not.
    """

    vectors: Float32
    mass: Float64
    metric: Float64
    total: int

    def thinned(self, count: int) -> Kernels:
        """About `count` of the kernels, evenly spaced."""
        step = max(1, -(-len(self.vectors) // count)) if count > 0 else 1
        return Kernels(self.vectors[::step], self.mass[::step], self.metric, self.total)


def sample_kernels(node: Conv2d, known: Sensitivity) -> Kernels:
    """Evenly spaced kernels of a layer and what their errors cost on average over its input channels' metrics."""
    c_out, c_in = node.weight.shape[:2]
    flat = node.weight.reshape(c_out, -1).astype(np.float64)
    size = np.sqrt(np.mean(flat**2, axis=1))
    known = known.of(node)
    strength = np.trace(known.moments, axis1=1, axis2=2)
    metric = (known.moments / np.where(strength > 0, strength, 1.0)[:, None, None] * strength[:, None, None]).sum(0)
    metric = metric / np.trace(metric) * len(metric)
    # An odd distance meets every channel of layers whose sides are even.
    step = -(-c_out * c_in // OWN_SAMPLE)
    taken = np.arange(0, c_out * c_in, step if step == 1 else step | 1)
    vectors = (flat / np.where(size > 0, size, 1.0)[:, None]).reshape(c_out * c_in, -1)[taken]
    power = size**2
    mass = (power * strength if node.depthwise else np.outer(power, strength)).reshape(-1)[taken]
    return Kernels(vectors.astype(np.float32), mass if mass.any() else np.ones(len(taken)), metric, c_out * c_in)


def index_curves(layers: Sequence[Kernels], sign: bool, additive: bool, rng: np.random.Generator) -> tuple[Curve, ...]:
    """One curve a layer for a codebook that serves all of `layers`; an additive codebook's sizes are those of one of its tables."""
    limit = OWN_SAMPLE if len(layers) == 1 else max(_LEAST_SAMPLE, SHARED_SAMPLE // len(layers))
    sampled = [layer.thinned(limit) for layer in layers]
    count, total = sum(len(layer.vectors) for layer in sampled), sum(layer.total for layer in layers)
    sizes: list[int] = []
    errors: list[list[float]] = []
    for size in _PAIR_SIZES if additive else _SIZES:
        if size > 1 and (size >= count if count == total else size * _KERNELS_A_CODEWORD > count):
            break
        words = _cluster(sampled, size, sign, rng)
        # k-means fits its sample better than the kernels left out of it.
        bias = 1.0 if count == total else (1 - size / total) / (1 - size / count)
        sizes.append(size)
        errors.append([bias * share for share in (_pairs(sampled, words, sign, rng) if additive else _shares(sampled, words, sign))])
    falling = np.maximum(np.minimum.accumulate(np.array(errors), axis=0), _FLOOR)
    return tuple(Curve(tuple(sizes), tuple(map(float, column)), total) for column in falling.T)


def uniform_error(node: Conv2d, known: Sensitivity, bits: int) -> float:
    """The error of a layer stored uniformly in `bits` bits, a share of its output power."""
    c_out = node.weight.shape[0]
    every = slice(None, None, max(1, node.weight.size // _UNIFORM_SAMPLE))
    rows = node.weight.reshape(c_out, -1)[every].astype(np.float64)
    values, scale = uniform(rows, None, bits, np.zeros(len(rows)))
    wrong = rows - values * scale.astype(np.float64)[:, None]
    if node.depthwise:
        own = known.moments[every]
        power, lost = (float(np.einsum("oi,oij,oj->", each, own, each)) for each in (rows, wrong))
    else:
        shape = (len(rows), len(known.moments), -1)
        power, lost = _power(rows.reshape(shape), known.moments), _power(wrong.reshape(shape), known.moments)
    return lost / power if power > 0 else 0.0


def _power(kernels: Float64, moments: Float64) -> float:
    by_channel = kernels.transpose(1, 0, 2)
    return float(np.sum((by_channel @ moments) * by_channel))


def _assign(layer: Kernels, words: Float64, sign: bool) -> tuple[_Codes, Float64, Float64]:
    """Codes (n,), signs +-1.0 (n,) and squared errors (n,) in the layer's metric."""
    root = np.linalg.cholesky(layer.metric).astype(np.float32)
    seen, targets = layer.vectors @ root, (words.astype(np.float32) @ root).T
    norms = np.sum(targets * targets, axis=0)
    codes = np.empty(len(seen), np.int64)
    signs, errors = np.ones(len(seen)), np.empty(len(seen))
    at_once = max(1, _SCORES_AT_ONCE // targets.shape[1])
    for start in range(0, len(seen), at_once):
        part = slice(start, start + at_once)
        dots = seen[part] @ targets
        code = np.argmax((np.abs(dots) if sign else dots) - norms / 2, axis=1)
        best = dots[np.arange(len(code)), code]
        codes[part] = code
        if sign:
            signs[part] = np.where(best < 0, -1.0, 1.0)
        errors[part] = np.maximum(np.sum(seen[part] ** 2, axis=1) - 2 * (np.abs(best) if sign else best) + norms[code], 0)
    return codes, signs, errors


def _refit(layers: Sequence[Kernels], targets: Sequence[Float64], codes: Sequence[_Codes], words: Float64) -> Float64:
    """The words (K, d) of least error for given codes; a word without kernels stays. `targets` (n, d) carry the sign."""
    count, d = words.shape
    matrix, right = np.zeros((count, d, d)), np.zeros((count, d))
    used = np.zeros(count)
    weights = _layer_weights(layers)
    for layer, target, code, weight in zip(layers, targets, codes, weights, strict=True):
        mass = weight * layer.mass
        share = np.bincount(code, mass, count)
        used += share
        matrix += share[:, None, None] * layer.metric
        sums = np.stack([np.bincount(code, mass * target[:, column], count) for column in range(d)], axis=1)
        right += sums @ layer.metric
    alive = used > 0
    out = words.copy()
    out[alive] = np.linalg.solve(matrix[alive], right[alive][:, :, None])[:, :, 0]
    return out


def _layer_weights(layers: Sequence[Kernels]) -> list[float]:
    """One over each layer's power, for every layer to count the same, as it does when the codebook is learned."""
    powers = [float(np.sum(layer.mass * np.sum((layer.vectors @ layer.metric) * layer.vectors, axis=1))) for layer in layers]
    return [1 / power if power > 0 else 1.0 for power in powers]


def _cluster(layers: Sequence[Kernels], count: int, sign: bool, rng: np.random.Generator) -> Float64:
    """k-means from kernels drawn by their power: words (at most `count`, d)."""
    vectors = np.concatenate([layer.vectors for layer in layers]).astype(np.float64)
    weights = np.concatenate([weight * layer.mass for layer, weight in zip(layers, _layer_weights(layers), strict=True)])
    chance = weights * np.sum(vectors**2, axis=1)
    chance = chance + 1e-9 * max(float(chance.max()), 1e-30)
    drawn = rng.choice(len(vectors), min(count, len(vectors)), replace=False, p=chance / chance.sum())
    words = vectors[np.sort(drawn)]
    for _ in range(_ITERATIONS):
        assigned = [_assign(layer, words, sign) for layer in layers]
        targets = [layer.vectors * signs[:, None] for layer, (_, signs, _) in zip(layers, assigned, strict=True)]
        words = _refit(layers, targets, [codes for codes, _, _ in assigned], words)
    return words


def _shares(layers: Sequence[Kernels], words: Float64, sign: bool) -> list[float]:
    """Each layer's error over its power."""
    return [
        min(1.0, float(np.sum(layer.mass * _assign(layer, words, sign)[2])) * weight)
        for layer, weight in zip(layers, _layer_weights(layers), strict=True)
    ]


def _pairs(layers: Sequence[Kernels], first: Float64, sign: bool, rng: np.random.Generator) -> list[float]:
    """Each layer's error over its power with sums of two words, the second learned on what the first leave."""
    assigned = [_assign(layer, first, sign) for layer in layers]
    left = [
        Kernels((layer.vectors * signs[:, None] - first[codes]).astype(np.float32), layer.mass, layer.metric, layer.total)
        for layer, (codes, signs, _) in zip(layers, assigned, strict=True)
    ]
    second = _cluster(left, len(first), False, rng)
    for _ in range(_ITERATIONS // 2):
        sums = (first[:, None] + second[None]).reshape(-1, first.shape[1])
        assigned = [_assign(layer, sums, sign) for layer in layers]
        signed = [layer.vectors * signs[:, None] for layer, (_, signs, _) in zip(layers, assigned, strict=True)]
        upper = [codes // len(second) for codes, _, _ in assigned]
        lower = [codes % len(second) for codes, _, _ in assigned]
        first = _refit(layers, [target - second[code] for target, code in zip(signed, lower, strict=True)], upper, first)
        second = _refit(layers, [target - first[code] for target, code in zip(signed, upper, strict=True)], lower, second)
    return _shares(layers, (first[:, None] + second[None]).reshape(-1, first.shape[1]), sign)
