"""Clustering of kernels into sums of two codewords, one of each stage: residual k-means, then alternating least squares.

Both stages have one step size. The index's sign turns the whole sum. Costs, groups and limits are those of `cluster`; a block's
limit counts the codewords of each stage that its kernels may use.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import torch

from kqgen.cluster import L1_LIMIT, VALUE_LIMIT, Assignment, Block, Codewords, assign, cluster_reals, refit, round_codewords, spread
from kqgen.intgraph import Int8, frozen

_ROUNDS = 12
_SETTLED = 5e-4
_STEPS = np.geomspace(0.5, 1.05, 16)


def cluster_pairs(blocks: Sequence[Block], count: int, sign: bool, rng: np.random.Generator) -> Codewords:
    """Two stages of at most `count` codewords of 6-bit integers for the kernels of `blocks`; both have the same number."""
    first = cluster_reals(blocks, count, sign, rng)
    chosen = [assign(block, first, sign) for block in blocks]
    rest = [_left(block, found, first[found.codes]) for block, found in zip(blocks, chosen, strict=True)]
    second = cluster_reals(rest, count, False, rng)
    size = max(len(first), len(second))
    words = torch.cat([_filled(first, size), _filled(second, size)])
    chosen = _assign(blocks, words, sign)
    loss = _loss(chosen)
    for _ in range(_ROUNDS):
        trial = _refit(blocks, chosen, words)
        found = _assign(blocks, trial, sign)
        now = _loss(found)
        if now >= loss:
            break
        settled = now > loss * (1 - _SETTLED)
        words, chosen, loss = trial, found, now
        if settled:
            break
    return _settle_integers(blocks, words, sign, loss)


def round_pairs(words: torch.Tensor, step: float) -> Int8:
    """The integers nearest to words / step, -31..31, of which any two of different stages keep to absolute sums of 255 together.

    Where they would not, the stages share the bound in proportion to their own largest sums.

    Shapes: words (2K, d) float64; result (2K, d) int8.
    """
    first, second = words.chunk(2)
    free = [round_codewords(stage, step) for stage in (first, second)]
    sums = [int(np.abs(stage.astype(np.int64)).sum(axis=1).max(initial=0)) for stage in free]
    if sum(sums) > L1_LIMIT:
        share = L1_LIMIT * sums[0] // sum(sums)
        free = [round_codewords(first, step, share), round_codewords(second, step, L1_LIMIT - share)]
    return frozen(np.concatenate(free), np.int8)


def _assign(blocks: Sequence[Block], words: torch.Tensor, sign: bool) -> list[Assignment]:
    """Codes first + second * K of the cheapest sums."""
    size = len(words) // 2
    found: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
    out = []
    for block in blocks:
        limit = min(block.limit or size, size)
        if limit not in found:
            first, second = words[:limit], words[size : size + limit]
            pairs = torch.from_numpy(spread(torch.cat([first, second]).numpy(), additive=True))
            codes = torch.arange(limit)[None] + torch.arange(limit)[:, None] * size
            found[limit] = (pairs, codes.reshape(-1))
        pairs, codes = found[limit]
        best = assign(replace(block, limit=0), pairs, sign)
        out.append(replace(best, codes=codes[best.codes]))
    return out


def _refit(blocks: Sequence[Block], chosen: Sequence[Assignment], words: torch.Tensor) -> torch.Tensor:
    """The codewords of least loss for given codes, the second stage's first, each with the other held."""
    first, second = words.chunk(2)
    size = len(first)
    parts = [(block, found, found.codes % size, found.codes // size) for block, found in zip(blocks, chosen, strict=True)]
    plain = [torch.zeros_like(found.negative) for found in chosen]
    second = refit(
        [_left(block, found, first[low]) for block, found, low, _ in parts],
        [replace(found, codes=high, negative=none) for (_, found, _, high), none in zip(parts, plain, strict=True)],
        second,
    )
    first = refit(
        [_left(block, found, second[high]) for block, found, _, high in parts],
        [replace(found, codes=low, negative=none) for (_, found, low, _), none in zip(parts, plain, strict=True)],
        first,
    )
    return torch.cat([first, second])


def _left(block: Block, chosen: Assignment, part: torch.Tensor) -> Block:
    """What a part (groups, members, d) of the sum leaves of each kernel, the kernels turned to their codes' sign."""
    turned = torch.where(chosen.negative[:, :, None], -block.vectors, block.vectors)
    return replace(block, vectors=turned - part)


def _settle_integers(blocks: Sequence[Block], words: torch.Tensor, sign: bool, loss: float) -> Codewords:
    """6-bit codewords near float ones: the best of several steps, then least squares and rounding in turn while the loss falls."""
    largest = float(words.abs().max()) / VALUE_LIMIT
    if largest <= 0:
        return Codewords(round_pairs(words, 1.0), 1.0, loss, loss, additive=True)
    trials: list[tuple[float, float]] = []
    for step in (float(each) * largest for each in _STEPS):
        trials.append((_rounding_error(words, step), step))
    step = min(trials)[1]
    best = Codewords(round_pairs(words, step), step, float("inf"), loss, additive=True)
    values = best.values
    for _ in range(4):
        reals = torch.from_numpy(values.astype(np.float64)) * step
        found = _assign(blocks, reals, sign)
        now = _loss(found)
        if now >= best.loss * (1 - _SETTLED):
            break
        best = Codewords(values, step, now, loss, additive=True)
        values = round_pairs(_refit(blocks, found, reals), step)
    return best


def _rounding_error(words: torch.Tensor, step: float) -> float:
    error: npt.NDArray[np.float64] = round_pairs(words, step) * step - words.numpy()
    return float(np.square(error).sum())


def _loss(chosen: Sequence[Assignment]) -> float:
    return sum(float(found.costs.sum()) for found in chosen)


def _filled(words: torch.Tensor, size: int) -> torch.Tensor:
    """`size` codewords: zeros stand for those there are no kernels for."""
    return torch.cat([words, torch.zeros((size - len(words), words.shape[1]), dtype=words.dtype)])
