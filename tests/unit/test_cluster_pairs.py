"""Sums of two codewords: known sums come back, bounds hold over all pairs, and at equal bits they beat one flat codebook."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
import torch

from kqgen.cluster import L1_LIMIT, VALUE_LIMIT, Block, Codewords, cluster, spread
from kqgen.cluster_pairs import cluster_pairs, round_pairs

Float64 = npt.NDArray[np.float64]


def block(vectors: Float64, limit: int = 0) -> Block:
    """(groups, members, d) kernels, all costing alike."""
    groups, members, d = vectors.shape
    roots = np.tile(np.eye(d), (groups, 1, 1))
    return Block(torch.from_numpy(vectors.copy()), torch.ones((groups, members), dtype=torch.float64), torch.from_numpy(roots), limit)


def nearest_costs(vectors: Float64, kernels: Float64, sign: bool) -> Float64:
    """Squared distance of each vector (n, d) to the nearest of `kernels`, by trying them all."""
    choices = np.concatenate([kernels, -kernels]) if sign else kernels
    return np.asarray(((vectors[:, None] - choices[None]) ** 2).sum(axis=2).min(axis=1))


def reals(book: Codewords) -> Float64:
    return book.kernels().astype(np.float64) * book.step


def test_codes_count_the_first_stage_faster() -> None:
    words = np.array([[1.0], [2.0], [10.0], [20.0]])
    assert spread(words, additive=True)[:, 0].tolist() == [11, 12, 21, 22]
    assert spread(words, additive=False) is words


def test_named_codes_use_the_first_codewords_of_each_stage() -> None:
    book = Codewords(np.zeros((8, 9), np.int8), 1.0, 0.0, 0.0, additive=True)
    assert book.named(2).tolist() == [0, 1, 4, 5]
    assert book.named(0).tolist() == list(range(16))
    assert Codewords(np.zeros((8, 9), np.int8), 1.0, 0.0, 0.0).named(3).tolist() == [0, 1, 2]


@pytest.mark.parametrize("sign", [False, True])
def test_the_loss_told_is_that_of_the_best_sums(sign: bool) -> None:
    vectors = np.random.default_rng(0).normal(size=(2, 60, 4))
    book = cluster_pairs([block(vectors)], 4, sign, np.random.default_rng(1))
    assert book.values.shape == (8, 4)
    assert book.loss == pytest.approx(nearest_costs(vectors.reshape(-1, 4), reals(book), sign).sum())


def test_sums_of_few_words_are_found() -> None:
    """Kernels that are sums of 4 large and 4 small words, with a sign: the error left is a small part of the noise-free power."""
    rng = np.random.default_rng(2)
    large, small = rng.normal(size=(4, 9)) * 4, rng.normal(size=(4, 9))
    vectors = (large[rng.integers(0, 4, 400)] + small[rng.integers(0, 4, 400)]) * rng.choice([-1.0, 1.0], 400)[:, None]
    book = cluster_pairs([block(vectors[None])], 4, True, rng)
    assert book.loss < 0.02 * float(np.square(vectors).sum())


def test_sums_beat_one_codebook_of_equal_bits() -> None:
    """8-bit indices: 16 + 16 codewords take 288 values, 32 flat ones as many with 5 bits, 256 flat ones eight times as many."""
    vectors = np.random.default_rng(3).normal(size=(1, 3000, 9))
    sums = cluster_pairs([block(vectors)], 16, False, np.random.default_rng(0))
    flat = cluster([block(vectors)], 32, False, np.random.default_rng(0))
    assert sums.values.size == flat.values.size
    assert sums.loss < 0.85 * flat.loss


@pytest.mark.parametrize("scale", [1.0, 40.0])
def test_any_two_codewords_of_different_stages_keep_the_bound(scale: float) -> None:
    words = torch.from_numpy(np.random.default_rng(4).normal(size=(20, 25)) * scale)
    values = round_pairs(words, 1.0).astype(np.int64)
    sums = np.abs(values).sum(axis=1)
    assert sums[:10].max() + sums[10:].max() <= L1_LIMIT
    assert np.abs(values).max() <= VALUE_LIMIT
    if scale == 1.0:
        assert np.array_equal(values, np.clip(np.rint(words.numpy()), -31, 31))


def test_narrow_layers_use_the_first_codewords() -> None:
    """A layer of 4 distinct kernels may use 4 codewords of 32, a layer of many kernels all: the narrow one is served exactly."""
    rng = np.random.default_rng(5)
    few = np.rint(rng.normal(size=(4, 9)) * 8)
    narrow, wide = block(np.tile(few, (1, 30, 1)), limit=4), block(rng.normal(size=(1, 400, 9)) * 8)
    book = cluster([narrow, wide], 32, False, rng)
    assert len(book.values) == 32
    left = nearest_costs(few, book.reals()[:4], False).sum()
    assert left < 0.35 * np.square(few).sum()
    free = cluster([block(np.tile(few, (1, 30, 1))), wide], 32, False, np.random.default_rng(5))
    assert left < nearest_costs(few, free.reals()[:4], False).sum()


def test_equal_seeds_give_equal_sums() -> None:
    data = [block(np.random.default_rng(6).normal(size=(3, 50, 9)))]
    first, again, other = (cluster_pairs(data, 8, True, np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert first.values.tobytes() == again.values.tobytes()
    assert first.step == again.step
    assert first.values.tobytes() != other.values.tobytes()


def test_fewer_distinct_kernels_than_sums_leave_nothing() -> None:
    five = np.rint(np.random.default_rng(7).normal(size=(5, 9)) * 6)
    book = cluster_pairs([block(np.tile(five, (2, 6, 1)))], 16, False, np.random.default_rng(0))
    assert book.loss < 1e-3 * float(np.square(five).sum() * 12)
    zero = cluster_pairs([block(np.zeros((1, 4, 9)))], 4, True, np.random.default_rng(0))
    assert not zero.values.any()
    assert zero.step > 0
