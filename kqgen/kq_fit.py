"""Choosing codes, scales and codewords for the error at the layer's output, over all input channels together.

For one layer the loss is tr((W - Q) H (W - Q)^T), H the damped covariance of the input patches. Output channels are independent
but for the codebook, so every step works on all of them at once:

    feed_back    input channel after input channel takes its cheapest codewords and hands its error on to the channels not yet
                 decided, through the Cholesky factor of inverse(H): the scheme of GPTQ (Frantar et al., 2023) and, with codewords,
                 of GPTVQ (van Baalen et al., 2024)
    sweep        each input channel's codes are chosen anew with all others held, until few change
    fit_scales   the best scale of each output channel, in closed form
    fit_words    the best codewords of all layers that share them, by conjugate gradients

In a depthwise layer each output channel has one kernel and an H of its own: its codeword is the nearest under that H, and nothing is
handed on.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch

from kqgen.cluster import Block, Codewords, cluster, round_codewords, spread
from kqgen.cluster_pairs import cluster_pairs, round_pairs

Float64 = npt.NDArray[np.float64]

_SWEEPS = 10
_FEW_CHANGES = 0.002
_ROUNDS = 6
_SETTLED = 2e-3
_GRADIENT_STEPS = 20
_CROSS_TERMS = 1 << 23
"""Values of second moments that one codebook's words are fitted to together; beyond, they stay as clustering has them."""
_CLUSTERED = 1 << 16
"""Kernels that a codebook is clustered from, at most (but one output channel of each layer): evenly spaced output channels."""


@dataclass(frozen=True, slots=True, eq=False)
class Problem:
    """One layer to be indexed. n = groups * d inputs, group after group; a group is an input channel.

    Attributes:
        target: (c_out, n) float64, the weights wanted.
        second: (n, n) float64, positive definite; of a depthwise layer (c_out, d, d), for each output channel, and groups is 1.
        importance: what one unit of this layer's loss counts beside other layers'.
        order: (groups,) the order in which groups are decided: strongest inputs first.
        diagonal: (groups, d, d), the blocks of `second` on its diagonal; of a depthwise layer `second` itself.
        roots: of `diagonal`'s shape, root @ root.T = diagonal block.
    """

    target: Float64
    second: Float64
    importance: float
    order: npt.NDArray[np.int64]
    diagonal: Float64
    roots: Float64

    @property
    def d(self) -> int:
        """Values of a kernel."""
        return int(self.diagonal.shape[1])

    @property
    def apart(self) -> bool:
        """Whether each output channel has inputs of its own: a depthwise layer."""
        return self.second.ndim == 3

    def seen(self, weights: Float64) -> Float64:
        """weights @ second, (c_out, n)."""
        return _seen(weights, self.second)

    def loss(self, weights: Float64) -> float:
        """tr((target - weights) second (target - weights)^T), times importance."""
        error = self.target - weights
        return self.importance * float(np.sum(self.seen(error) * error))


@dataclass(frozen=True, slots=True, eq=False)
class Solution:
    """Codes and scales of one layer.

    Attributes:
        codes: (c_out, groups) int64.
        negative: (c_out, groups) bool.
        scale: (c_out,) float64, >= 0, of the codewords as reals.
        loss: the problem's.
    """

    codes: npt.NDArray[np.int64]
    negative: npt.NDArray[np.bool_]
    scale: Float64
    loss: float


def pose(target: Float64, second: Float64, d: int) -> Problem:
    """The problem of one layer, its importance set so that losing all output power costs 1.

    Shapes: target (c_out, n), second (n, n) positive definite, or (c_out, d, d) of a depthwise layer; d divides n.
    """
    if second.ndim == 3:
        diagonal, order = second, np.zeros(1, np.int64)
    else:
        groups = len(second) // d
        blocks = second.reshape(groups, d, groups, d)
        diagonal = np.ascontiguousarray(blocks[np.arange(groups), :, np.arange(groups), :])
        order = np.argsort(-np.trace(diagonal, axis1=1, axis2=2), kind="stable").astype(np.int64)
    power = float(np.sum(_seen(target, second) * target))
    roots = np.asarray(np.linalg.cholesky(diagonal), np.float64)
    return Problem(target, second, 1 / power if power > 0 else 0.0, order, diagonal, roots)


def _seen(weights: Float64, second: Float64) -> Float64:
    out: Float64 = weights @ second if second.ndim == 2 else np.einsum("oi,oij->oj", weights, second)
    return out


def learn(
    problems: Sequence[Problem], count: int, sign: bool, rng: np.random.Generator, *, additive: bool = False, limits: Sequence[int] = ()
) -> tuple[Codewords, tuple[Solution, ...]]:
    """A codebook of at most `count` codewords a stage for the layers of `problems`, and their codes in it.

    Args:
        additive: kernels are sums of two codewords.
        limits: per layer, how many codewords of a stage, the first ones, it may use; 0 or nothing: all.
    """
    bounds = tuple(limits) or (0,) * len(problems)
    sizes = [_root_mean_square(problem) for problem in problems]
    every = -(-sum(len(problem.target) * len(problem.order) for problem in problems) // _CLUSTERED)
    blocks = [_block(problem, size, limit, every) for problem, size, limit in zip(problems, sizes, bounds, strict=True)]
    book = (cluster_pairs if additive else cluster)(blocks, count, sign, rng)
    solutions = [solve_in(problem, book, limit, sign, size) for problem, limit, size in zip(problems, bounds, sizes, strict=True)]
    if sum(problem.second.size for problem in problems) > _CROSS_TERMS:
        return book, tuple(solutions)
    for _ in range(_ROUNDS):
        fitted = torch.from_numpy(fit_words(problems, solutions, book.reals(), additive))
        trial = replace(book, values=round_pairs(fitted, book.step) if additive else round_codewords(fitted, book.step))
        swept = [_sweep_in(problem, trial, limit, sign, last) for problem, limit, last in zip(problems, bounds, solutions, strict=True)]
        before, after = (sum(solution.loss for solution in group) for group in (solutions, swept))
        if after < before:
            book, solutions = trial, swept
        if after > before * (1 - _SETTLED):
            break
    return book, tuple(solutions)


def solve_in(problem: Problem, book: Codewords, limit: int, sign: bool, scale: Float64) -> Solution:
    """Codes, as `Codewords.kernels` counts them, and scales of one layer that may use the first `limit` codewords of a stage (0: all)."""
    named = book.named(limit)
    solution = solve(problem, spread(book.reals(), book.additive)[named], sign, scale)
    return replace(solution, codes=named[solution.codes])


def _sweep_in(problem: Problem, book: Codewords, limit: int, sign: bool, start: Solution) -> Solution:
    named = book.named(limit)
    inside = replace(start, codes=np.searchsorted(named, start.codes))
    solution = sweep(problem, spread(book.reals(), book.additive)[named], sign, inside)
    return replace(solution, codes=named[solution.codes])


def solve(problem: Problem, words: Float64, sign: bool, scale: Float64) -> Solution:
    """Codes and scales of one layer in a given codebook, from scales to start with.

    Shapes: words (K, d) reals, scale (c_out,).
    """
    return sweep(problem, words, sign, sweep(problem, words, sign, feed_back(problem, words, sign, scale)))


def feed_back(problem: Problem, words: Float64, sign: bool, scale: Float64) -> Solution:
    """Codes chosen one input channel after the other, each error handed on to the channels still open."""
    if problem.apart:
        return _solution(problem, words, *_nearest_apart(problem, words, sign, scale), scale)
    d, order = problem.d, problem.order
    places = (order[:, None] * d + np.arange(d)).reshape(-1)
    inverse = np.linalg.inv(problem.second[np.ix_(places, places)])
    factor = np.ascontiguousarray(np.linalg.cholesky((inverse + inverse.T) / 2).T)
    left = problem.target[:, places].copy()
    codes = np.zeros((len(left), len(order)), dtype=np.int64)
    negative = np.zeros(codes.shape, dtype=np.bool_)
    for position, group in enumerate(order):
        here, later = slice(position * d, (position + 1) * d), slice((position + 1) * d, None)
        root = np.linalg.inv(factor[here, here])
        codes[:, group], negative[:, group] = _nearest(left[:, here] @ root, words @ root, sign, scale)
        error = left[:, here] - _kernels(words, codes[:, group], negative[:, group], scale)
        left[:, later] -= (error @ root) @ factor[here, later]
    return _solution(problem, words, codes, negative, scale)


def sweep(problem: Problem, words: Float64, sign: bool, start: Solution) -> Solution:
    """Codes changed one input channel at a time while that lowers the loss, then scales refitted."""
    if problem.apart:
        return _sweep_apart(problem, words, sign, start)
    d, scale = problem.d, start.scale
    codes, negative = start.codes.copy(), start.negative.copy()
    weights = _weights(words, codes, negative, scale)
    pull = (problem.target - weights) @ problem.second
    inverses = np.linalg.inv(problem.diagonal)
    for _ in range(_SWEEPS):
        changes = 0
        for group in problem.order:
            here, root = slice(group * d, (group + 1) * d), problem.roots[group]
            wanted = weights[:, here] + pull[:, here] @ inverses[group]
            code, minus = _nearest(wanted @ root, words @ root, sign, scale)
            moved = np.flatnonzero((code != codes[:, group]) | (minus != negative[:, group]))
            if moved.size == 0:
                continue
            changes += moved.size
            new = _kernels(words, code[moved], minus[moved], scale[moved])
            pull[moved] += (weights[moved, here] - new) @ problem.second[here]
            weights[moved, here] = new
            codes[moved, group], negative[moved, group] = code[moved], minus[moved]
        if changes <= _FEW_CHANGES * codes.size:
            break
    return _solution(problem, words, codes, negative, fit_scales(problem, words, codes, negative, scale))


def _sweep_apart(problem: Problem, words: Float64, sign: bool, start: Solution) -> Solution:
    """The same for a depthwise layer, where scales and codes alone wait for each other."""
    best = start
    for _ in range(_SWEEPS):
        codes, negative = _nearest_apart(problem, words, sign, best.scale)
        scale = fit_scales(problem, words, codes, negative, best.scale)
        changes = int(((codes != best.codes) | (negative != best.negative)).sum())
        best = _solution(problem, words, codes, negative, scale)
        if changes <= _FEW_CHANGES * codes.size:
            break
    return best


def _nearest_apart(
    problem: Problem, words: Float64, sign: bool, scale: Float64
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
    """Codes and signs (c_out, 1) of least error for given scales (c_out,), each kernel under its own second moments."""
    dots = problem.seen(problem.target) @ words.T
    products = (words[:, :, None] * words[:, None, :]).reshape(len(words), -1)
    norms = problem.second.reshape(len(problem.second), -1) @ products.T
    code = np.argmin(scale[:, None] * norms - 2 * (np.abs(dots) if sign else dots), axis=1)
    negative = dots[np.arange(len(code)), code] < 0 if sign else np.zeros(len(code), dtype=np.bool_)
    return code[:, None], negative[:, None]


def fit_scales(
    problem: Problem, words: Float64, codes: npt.NDArray[np.int64], negative: npt.NDArray[np.bool_], scale: Float64
) -> Float64:
    """The scales (c_out,) of least loss for given codes; one that would not be positive stays as it is in `scale`."""
    plain = _weights(words, codes, negative, np.ones(len(codes)))
    seen = problem.seen(plain)
    match, power = np.sum(seen * problem.target, axis=1), np.sum(seen * plain, axis=1)
    good = (match > 0) & (power > 0)
    return np.where(good, match / np.where(good, power, 1.0), scale)


def fit_words(problems: Sequence[Problem], solutions: Sequence[Solution], words: Float64, additive: bool = False) -> Float64:
    """The codewords (K, d), additive ones (2K, d), of least total loss for given codes and scales; unused ones stay as they are.

    The normal equations, K * d unknowns, are solved by conjugate gradients from `words`, preconditioned per codeword.
    """
    pairs = list(zip(problems, solutions, strict=True))
    kernels = spread(words, additive)

    def gather(gradient_of: Sequence[Float64]) -> Float64:
        total = np.zeros_like(kernels)
        for (problem, solution), gradient in zip(pairs, gradient_of, strict=True):
            signed = (problem.importance * solution.scale)[:, None] * np.where(solution.negative, -1.0, 1.0)
            rows = (gradient.reshape(*solution.codes.shape, problem.d) * signed[:, :, None]).reshape(-1, problem.d)
            for column in range(problem.d):
                total[:, column] += np.bincount(solution.codes.reshape(-1), rows[:, column], len(kernels))
        return _gathered(total, additive)

    def apply(change: Float64) -> Float64:
        table = spread(change, additive)
        return gather([p.seen(_weights(table, s.codes, s.negative, s.scale)) for p, s in pairs])

    mass = np.zeros(len(kernels))
    for problem, solution in pairs:
        strength = np.trace(problem.diagonal, axis1=1, axis2=2) / problem.d
        power = solution.scale**2
        each = problem.importance * (power * strength if problem.apart else np.outer(power, strength))
        mass += np.bincount(solution.codes.reshape(-1), each.reshape(-1), len(kernels))
    shares = _gathered(mass[:, None], additive)
    inverse_mass = np.where(shares > 0, 1 / np.where(shares > 0, shares, 1.0), 0.0)
    fitted = words.copy()
    residual = gather([problem.seen(problem.target) for problem, _ in pairs]) - apply(fitted)
    direction = residual * inverse_mass
    norm = float(np.sum(residual * direction))
    for _ in range(_GRADIENT_STEPS):
        if norm <= 0:
            break
        bent = apply(direction)
        length = norm / float(np.sum(direction * bent))
        fitted += length * direction
        residual = residual - length * bent
        scaled = residual * inverse_mass
        last, norm = norm, float(np.sum(residual * scaled))
        direction = scaled + norm / last * direction
    return fitted


def _gathered(totals: Float64, additive: bool) -> Float64:
    """Sums over codes (codes, n) as sums over codewords: (K, n), additive (2K, n)."""
    if not additive:
        return totals
    size = math.isqrt(len(totals))
    square = totals.reshape(size, size, -1)
    return np.concatenate([square.sum(axis=0), square.sum(axis=1)])


def _nearest(
    vectors: Float64, words: Float64, sign: bool, scale: Float64
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
    """For each vector (c_out, d) the word (K, d) that, times the channel's scale, lies nearest; ties to the lower number."""
    dots = vectors @ words.T
    norms = np.sum(words * words, axis=1)
    code = np.argmin(scale[:, None] * norms - 2 * (np.abs(dots) if sign else dots), axis=1)
    if not sign:
        return code, np.zeros(len(code), dtype=np.bool_)
    return code, dots[np.arange(len(code)), code] < 0


def _kernels(
    words: Float64, code: npt.NDArray[np.int64], negative: npt.NDArray[np.bool_], scale: Float64
) -> Float64:
    """(c_out, d) reals of one input channel."""
    kernels: Float64 = words[code] * (np.where(negative, -1.0, 1.0) * scale)[:, None]
    return kernels


def _weights(words: Float64, codes: npt.NDArray[np.int64], negative: npt.NDArray[np.bool_], scale: Float64) -> Float64:
    """(c_out, n) reals of a layer."""
    signed = np.where(negative, -1.0, 1.0) * scale[:, None]
    weights: Float64 = (words[codes] * signed[:, :, None]).reshape(len(codes), -1)
    return weights


def _solution(
    problem: Problem, words: Float64, codes: npt.NDArray[np.int64], negative: npt.NDArray[np.bool_], scale: Float64
) -> Solution:
    return Solution(codes, negative, scale, problem.loss(_weights(words, codes, negative, scale)))


def _root_mean_square(problem: Problem) -> Float64:
    """Of each output channel's target (c_out,); next to nothing, but not 0, for dead channels: they take the smallest codewords."""
    size: Float64 = np.sqrt(np.mean(problem.target**2, axis=1))
    largest = float(size.max())
    return np.maximum(size, 1e-9 * largest if largest > 0 else 1.0)


def _block(problem: Problem, size: Float64, limit: int, every: int) -> Block:
    """Every so many-th output channel of a layer, scaled to size 1, standing for those between."""
    size = size[::every]
    scaled = problem.target[::every] / size[:, None]
    if problem.apart:
        own = problem.importance * every * size**2
        return Block(torch.from_numpy(scaled[:, None]), torch.from_numpy(own[:, None]), torch.from_numpy(problem.roots[::every]), limit)
    vectors = np.ascontiguousarray(scaled.reshape(len(size), -1, problem.d).transpose(1, 0, 2))
    weights = np.tile(problem.importance * every * size**2, (len(vectors), 1))
    return Block(torch.from_numpy(vectors), torch.from_numpy(weights), torch.from_numpy(problem.roots), limit)
