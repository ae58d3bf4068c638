"""Clustering of kernels under a quadratic loss: k-means++ seeds, restarts, sign-symmetric codes and 6-bit codewords.

A kernel is a vector of d = k_h * k_w numbers. What it costs to put codeword c in the place of kernel v is
weight * |(v - c) @ root|^2: the error at the layer's output when root @ root.T is the second moment of the input patches that
meet the kernel. Kernels that share a root form a group. All arithmetic is float64 in a fixed order, ties go to the lower
index, and random numbers come from the generator given, so equal inputs give equal codebooks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import torch

from kqgen.intgraph import Int8, frozen

VALUE_LIMIT = 31
"""Largest absolute value of a stored codeword (SPEC 4.3)."""
L1_LIMIT = 255
"""Largest sum of absolute values of a stored codeword (SPEC 4.3)."""

Number = TypeVar("Number", np.int8, np.float64)

_SEED_VECTORS = 16384
_SCORES_AT_ONCE = 1 << 22
_SETTLED = 1e-4
_STEPS_TRIED = 48
_INTEGER_ROUNDS = 8


@dataclass(frozen=True, slots=True, eq=False)
class Block:
    """The kernels of one layer.

    Attributes:
        vectors: (groups, members, d) float64.
        weights: (groups, members) float64, >= 0.
        roots: (groups, d, d) float64, of full rank.
        limit: only so many codewords, the first ones, may serve these kernels; 0: all.
    """

    vectors: torch.Tensor
    weights: torch.Tensor
    roots: torch.Tensor
    limit: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class Assignment:
    """Which codeword serves each kernel of a block.

    Attributes:
        codes: (groups, members) int64.
        negative: (groups, members) bool, the kernel is minus that codeword.
        costs: (groups, members) float64, >= 0.
    """

    codes: torch.Tensor
    negative: torch.Tensor
    costs: torch.Tensor


@dataclass(frozen=True, slots=True, eq=False)
class Codewords:
    """A clustered codebook: codeword = step * values.

    Attributes:
        values: (codewords, d) int8, within -31..31, absolute sums at most 255; when additive (2 * codewords, d), two stages one after
            the other, and the absolute sums of any two codewords, one of each stage, are at most 255 together.
        step: > 0.
        loss: of all kernels with these codewords.
        loss_before_rounding: the same with the float codewords that `values` stand for.
    """

    values: Int8
    step: float
    loss: float
    loss_before_rounding: float
    additive: bool = False

    @property
    def count(self) -> int:
        """Codewords of a stage."""
        return len(self.values) // (2 if self.additive else 1)

    def reals(self) -> npt.NDArray[np.float64]:
        """As `values`, in the kernels' own unit."""
        return self.values.astype(np.float64) * self.step

    def kernels(self) -> Int8:
        """What a code stands for, (codes, d): a codeword, or for code first + second * count the sum of two."""
        return frozen(spread(self.values, self.additive), np.int8)

    def named(self, limit: int) -> npt.NDArray[np.int64]:
        """The codes that only name the first `limit` codewords of each stage (0: all), ascending."""
        codes = np.arange(self.count**2 if self.additive else self.count)
        return codes if not limit else codes[(codes % self.count < limit) & (codes // self.count < limit)]


def spread(words: npt.NDArray[Number], additive: bool) -> npt.NDArray[Number]:
    """What the codes stand for: `words` (K, d) themselves, or of two stages (2K, d) all sums (K * K, d), the first stage running faster."""
    if not additive:
        return words
    first, second = np.split(words, 2)
    return (second[:, None] + first[None]).reshape(-1, words.shape[1])


def assign(block: Block, codewords: torch.Tensor, sign: bool) -> Assignment:
    """The cheapest codeword for every kernel.

    Shapes: codewords (K, d) float64.
    """
    groups, members, _ = block.vectors.shape
    codewords = codewords[: block.limit or None]
    count = codewords.shape[0]
    codes = torch.empty((groups, members), dtype=torch.int64)
    negative = torch.zeros((groups, members), dtype=torch.bool)
    costs = torch.empty((groups, members), dtype=torch.float64)
    at_once = max(1, _SCORES_AT_ONCE // (members * count))
    for start in range(0, groups, at_once):
        part = slice(start, start + at_once)
        vectors, words = block.vectors[part] @ block.roots[part], codewords @ block.roots[part]
        dots = vectors @ words.transpose(1, 2)
        norms = (words * words).sum(2)[:, None, :]
        scores, codes[part] = (norms - 2 * (dots.abs() if sign else dots)).min(2)
        if sign:
            negative[part] = dots.gather(2, codes[part][:, :, None])[:, :, 0] < 0
        costs[part] = (scores + (vectors * vectors).sum(2)).clamp_min(0) * block.weights[part]
    return Assignment(codes, negative, costs)


def refit(blocks: Sequence[Block], assignments: Sequence[Assignment], codewords: torch.Tensor) -> torch.Tensor:
    """The codewords of least loss for given codes, by one d x d system each; a codeword without kernels stays as it is.

    Shapes: codewords and result (K, d) float64.
    """
    count, d = codewords.shape
    matrix, target, _ = _normal_equations(blocks, assignments, count, d)
    ridge = matrix.diagonal(dim1=1, dim2=2).mean(1) * 1e-9
    idle = ridge <= 0
    system = matrix + torch.eye(d, dtype=torch.float64) * torch.where(idle, torch.ones(()), ridge)[:, None, None]
    solved = torch.linalg.solve(system, target[:, :, None])[:, :, 0]
    return torch.where(idle[:, None], codewords, solved)


def _normal_equations(
    blocks: Sequence[Block], assignments: Sequence[Assignment], count: int, d: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Per codeword: sum of weight * metric (K, d, d), of weight * metric @ signed kernel (K, d), and of weight (K,)."""
    matrix = torch.zeros((count, d * d), dtype=torch.float64)
    target = torch.zeros((count, d), dtype=torch.float64)
    mass = torch.zeros(count, dtype=torch.float64)
    for block, chosen in zip(blocks, assignments, strict=True):
        metric = block.roots @ block.roots.transpose(1, 2)
        groups = metric.shape[0]
        shares = torch.zeros((groups, count), dtype=torch.float64).scatter_add_(1, chosen.codes, block.weights)
        signed = torch.where(chosen.negative, -block.weights, block.weights)[:, :, None] * (block.vectors @ metric)
        matrix += shares.T @ metric.reshape(groups, d * d)
        target.index_add_(0, chosen.codes.reshape(-1), signed.reshape(-1, d))
        mass += shares.sum(0)
    return matrix.reshape(count, d, d), target, mass


def cluster(blocks: Sequence[Block], count: int, sign: bool, rng: np.random.Generator, *, restarts: int = 4) -> Codewords:
    """At most `count` codewords of 6-bit integers for the kernels of `blocks`, by k-means from the best of `restarts` k-means++ seeds.

    Fewer come back when fewer distinct kernels (up to the sign, if `sign`) exist.
    """
    codewords, loss = _best_reals(blocks, count, sign, rng, restarts)
    return settle_integers(blocks, codewords, sign, loss)


def cluster_reals(blocks: Sequence[Block], count: int, sign: bool, rng: np.random.Generator, *, restarts: int = 4) -> torch.Tensor:
    """As `cluster`, before any rounding: at most `count` codewords, (K, d) float64."""
    return _best_reals(blocks, count, sign, rng, restarts)[0]


def _best_reals(
    blocks: Sequence[Block], count: int, sign: bool, rng: np.random.Generator, restarts: int
) -> tuple[torch.Tensor, float]:
    seeded = [_lloyd(blocks, _seed(blocks, count, sign, rng), sign, iterations=6) for _ in range(restarts)]
    best = min(range(restarts), key=lambda index: seeded[index][1])
    return _lloyd(blocks, seeded[best][0], sign, iterations=40)


def settle_integers(blocks: Sequence[Block], codewords: torch.Tensor, sign: bool, loss: float) -> Codewords:
    """6-bit codewords near float ones: the best step, then kernels and integers in turn while the loss falls.

    Shapes: codewords (K, d) float64, `loss` theirs.
    """
    assignments = [assign(block, codewords, sign) for block in blocks]
    step = _best_step(blocks, assignments, codewords)
    values = round_codewords(codewords, step)
    best = Codewords(values, step, float("inf"), loss)
    for _ in range(_INTEGER_ROUNDS):
        words = torch.from_numpy(values.astype(np.float64)) * step
        assignments = [assign(block, words, sign) for block in blocks]
        now = sum(float(chosen.costs.sum()) for chosen in assignments)
        if now >= best.loss * (1 - _SETTLED):
            break
        best = Codewords(values, step, now, loss)
        values = round_codewords(refit(blocks, assignments, words), step)
    return best


def round_codewords(codewords: torch.Tensor, step: float, limit: int = L1_LIMIT) -> Int8:
    """The integers nearest to codewords / step within SPEC 4.3: values in -31..31, absolute sums at most `limit`.

    A codeword over the bound is first shrunk to the nearest point inside it (all magnitudes less one common threshold). Of the
    magnitudes that gain by rounding up, those with the largest fractions are, as far as the bound allows.

    Shapes: codewords (K, d) float64; result (K, d) int8.
    """
    scaled = (codewords / step).numpy()
    magnitude = np.minimum(np.abs(scaled), float(VALUE_LIMIT))
    low, high = np.zeros(len(magnitude)), magnitude.max(axis=1, initial=0.0)
    inside = magnitude.sum(axis=1) <= limit
    for _ in range(60):
        middle = (low + high) / 2
        fits = np.maximum(magnitude - middle[:, None], 0).sum(axis=1) <= limit
        low, high = np.where(fits, low, middle), np.where(fits, middle, high)
    threshold = np.where(inside, 0.0, high)
    shrunk = np.maximum(magnitude - threshold[:, None], 0)
    whole = np.floor(shrunk)
    fraction = shrunk - whole
    rank = np.argsort(np.argsort(-fraction, axis=1, kind="stable"), axis=1, kind="stable")
    up = (magnitude - whole >= 0.5) & (rank < (limit - whole.sum(axis=1))[:, None])
    return frozen(np.sign(scaled) * (whole + up), np.int8)


def _best_step(blocks: Sequence[Block], assignments: Sequence[Assignment], codewords: torch.Tensor) -> float:
    """The step whose rounding of fitted codewords costs least, searched from fine with clipping to coarse without."""
    matrix, _, _ = _normal_equations(blocks, assignments, *codewords.shape)
    largest = float(codewords.abs().max()) / VALUE_LIMIT
    coarsest = max(largest, float(codewords.abs().sum(1).max()) / L1_LIMIT)
    if coarsest <= 0:
        return 1.0
    costs: list[tuple[float, float]] = []
    for step in np.geomspace(0.35 * largest, 1.05 * coarsest, _STEPS_TRIED):
        error = torch.from_numpy(round_codewords(codewords, float(step)).astype(np.float64)) * float(step) - codewords
        costs.append((float(torch.einsum("ki,kij,kj->", error, matrix, error)), float(step)))
    return min(costs)[1]


def _lloyd(blocks: Sequence[Block], codewords: torch.Tensor, sign: bool, iterations: int) -> tuple[torch.Tensor, float]:
    """k-means until the loss settles: codewords (K, d) and their loss."""
    last = float("inf")
    for _ in range(iterations):
        assignments = [assign(block, codewords, sign) for block in blocks]
        loss = sum(float(chosen.costs.sum()) for chosen in assignments)
        if loss >= last * (1 - _SETTLED):
            return codewords, loss
        last = loss
        codewords = _revive(blocks, assignments, refit(blocks, assignments, codewords))
    return codewords, sum(float(assign(block, codewords, sign).costs.sum()) for block in blocks)


def _revive(blocks: Sequence[Block], assignments: Sequence[Assignment], codewords: torch.Tensor) -> torch.Tensor:
    """Codewords that serve no kernel become the kernels that are served worst."""
    used = torch.zeros(len(codewords), dtype=torch.int64)
    for chosen in assignments:
        used += torch.bincount(chosen.codes.reshape(-1), minlength=len(codewords))
    dead = (used == 0).nonzero()[:, 0]
    if len(dead) == 0:
        return codewords
    # A codeword that only some layers may use is of no use to the others.
    costs = torch.cat(
        [
            (-chosen.costs if 0 < block.limit <= int(dead[-1]) else chosen.costs).reshape(-1)
            for block, chosen in zip(blocks, assignments, strict=True)
        ]
    )
    worst = costs.argsort(descending=True, stable=True)[: len(dead)]
    vectors = torch.cat([block.vectors.reshape(-1, block.vectors.shape[2]) for block in blocks])
    return codewords.index_copy(0, dead[: len(worst)], vectors[worst])


def _seed(blocks: Sequence[Block], count: int, sign: bool, rng: np.random.Generator) -> torch.Tensor:
    """k-means++: each further codeword is a kernel drawn in proportion to its cost so far; at most `count`, (K, d).

    Kernels beyond whose limit a codeword lies are not drawn for it, so that the first codewords serve all.
    """
    vectors = torch.cat([block.vectors.reshape(-1, block.vectors.shape[2]) for block in blocks])
    weights = torch.cat([block.weights.reshape(-1) for block in blocks])
    roots = torch.cat([block.roots for block in blocks])
    sizes = [block.vectors.shape[1] for block in blocks for _ in range(block.vectors.shape[0])]
    group = torch.repeat_interleave(torch.arange(len(roots)), torch.tensor(sizes))
    limits = torch.tensor([block.limit or count for block in blocks for _ in range(block.vectors.shape[0])])
    if len(vectors) > max(_SEED_VECTORS, 8 * count):
        taken = torch.from_numpy(np.sort(rng.choice(len(vectors), max(_SEED_VECTORS, 8 * count), replace=False)))
        vectors, weights, group = vectors[taken], weights[taken], group[taken]
    seen = torch.einsum("nd,nde->ne", vectors, roots[group])
    costs = (seen * seen).sum(1) * weights
    nothing = 1e-24 * float(costs.sum())
    chosen: list[int] = []
    narrowest = int(limits.min())
    for position in range(count):
        total = (costs if position < narrowest else torch.where(limits[group] > position, costs, 0.0)).cumsum(0)
        if position == 0:
            pick = int(rng.integers(len(vectors)))
        elif float(total[-1]) > nothing:
            pick = int(torch.searchsorted(total, float(rng.random()) * float(total[-1]), right=True).clamp_max(len(vectors) - 1))
        else:
            break
        word = (vectors[pick] @ roots)[group]
        distance = ((seen - word) ** 2).sum(1)
        if sign:
            distance = torch.minimum(distance, ((seen + word) ** 2).sum(1))
        costs = distance * weights if position == 0 else torch.minimum(costs, distance * weights)
        chosen.append(pick)
    return vectors[torch.tensor(chosen)].clone()
