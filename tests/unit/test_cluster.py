"""Clustering: known centres come back, signs halve a codebook, and every codeword is within SPEC 4.3."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
import torch

from kqgen.cluster import L1_LIMIT, VALUE_LIMIT, Block, assign, cluster, refit, round_codewords

Float64 = npt.NDArray[np.float64]


def block(vectors: Float64, weights: Float64 | None = None, roots: Float64 | None = None) -> Block:
    """(groups, members, d) kernels; plain Euclidean distances unless weights (groups, members) or roots (groups, d, d) are given."""
    groups, members, d = vectors.shape
    return Block(
        torch.from_numpy(vectors.copy()),
        torch.from_numpy(np.ones((groups, members)) if weights is None else weights.copy()),
        torch.from_numpy(np.tile(np.eye(d), (groups, 1, 1)) if roots is None else roots.copy()),
    )


def random_block(rng: np.random.Generator, groups: int = 3, members: int = 8, d: int = 9) -> Block:
    return block(rng.normal(size=(groups, members, d)), rng.uniform(0.2, 2, (groups, members)), rng.normal(size=(groups, d, d)))


def centred(rng: np.random.Generator, centres: Float64, copies: int, noise: float, mirrored: bool) -> tuple[Block, npt.NDArray[np.int64]]:
    """`copies` noisy copies of each centre in random order, half of them negated if `mirrored`; and the centre of each."""
    labels = rng.permutation(np.repeat(np.arange(len(centres)), copies))
    flips = np.where(rng.random(len(labels)) < 0.5, -1.0, 1.0) if mirrored else np.ones(len(labels))
    vectors = centres[labels] * flips[:, None] + noise * rng.normal(size=(len(labels), centres.shape[1]))
    return block(vectors[None]), labels


@pytest.mark.parametrize("mirrored", [False, True])
def test_known_centres_are_recovered(mirrored: bool) -> None:
    """12 centres of 9 values, 40 copies with noise 0.02: every centre lies within a step of its codeword, every copy finds it."""
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(12, 9))
    data, labels = centred(rng, centres, 40, 0.02, mirrored)
    book = cluster([data], 12, mirrored, rng)
    found = assign(data, torch.from_numpy(book.reals()), mirrored).codes[0].numpy()
    assert len(book.values) == 12
    for label, centre in enumerate(centres):
        codes = np.unique(found[labels == label])
        assert codes.size == 1
        word = book.reals()[codes[0]]
        error = min(np.abs(word - centre).max(), np.abs(word + centre).max() if mirrored else np.inf)
        assert error < book.step
    assert len(np.unique(found)) == 12


def test_mirrored_kernels_need_half_the_codewords_with_a_sign() -> None:
    """Six centres and their negatives: six signed codewords do what twelve plain ones do, and what six plain ones cannot."""
    rng = np.random.default_rng(1)
    data, _ = centred(rng, rng.normal(size=(6, 9)), 40, 0.02, mirrored=True)
    signed, plain, half = (
        cluster([data], count, sign, np.random.default_rng(2)).loss for count, sign in ((6, True), (12, False), (6, False))
    )
    assert signed < 1.1 * plain
    assert half > 20 * signed


@pytest.mark.parametrize("sign", [False, True])
def test_assign_is_the_cheapest_of_all_codewords(sign: bool) -> None:
    rng = np.random.default_rng(3)
    data, words = random_block(rng), rng.normal(size=(7, 9))
    found = assign(data, torch.from_numpy(words), sign)
    for group in range(3):
        for member in range(8):
            vector, root = data.vectors[group, member].numpy(), data.roots[group].numpy()
            costs = [
                (float(data.weights[group, member]) * float(np.square((vector - factor * word) @ root).sum()), number, factor < 0)
                for number, word in enumerate(words)
                for factor in ((1, -1) if sign else (1,))
            ]
            cost, number, negative = min(costs)
            assert int(found.codes[group, member]) == number
            assert bool(found.negative[group, member]) == negative
            assert float(found.costs[group, member]) == pytest.approx(cost, rel=1e-9)


def test_refit_is_the_least_squares_solution() -> None:
    """Checked against one dense least-squares problem over all kernels of a codeword; an unused codeword stays."""
    rng = np.random.default_rng(4)
    blocks = [random_block(rng), random_block(rng, groups=2, members=5)]
    words = torch.from_numpy(rng.normal(size=(4, 9)) * np.array([1, 1, 1, 1e6])[:, None])
    found = [assign(each, words, True) for each in blocks]
    fitted = refit(blocks, found, words).numpy()
    for number in range(3):
        rows, wanted = [], []
        for each, chosen in zip(blocks, found, strict=True):
            for group, member in (chosen.codes == number).nonzero().tolist():
                root = each.roots[group].numpy().T * float(each.weights[group, member]) ** 0.5
                sign = -1 if chosen.negative[group, member] else 1
                rows.append(sign * root)
                wanted.append(root @ each.vectors[group, member].numpy())
        solution = np.linalg.lstsq(np.concatenate(rows), np.concatenate(wanted), rcond=None)[0]
        assert np.allclose(fitted[number], solution, rtol=1e-5, atol=1e-6)  # the ridge of refit is 1e-9 of the diagonal
    assert np.array_equal(fitted[3], words[3].numpy())


@pytest.mark.parametrize("d", [4, 9, 25, 40, 49])
@pytest.mark.parametrize("step", [0.02, 0.06, 0.3])
def test_rounded_codewords_keep_the_bounds(d: int, step: float) -> None:
    words = np.random.default_rng(d).normal(size=(200, d)) * np.linspace(0.1, 3, 200)[:, None]
    values = round_codewords(torch.from_numpy(words), step).astype(np.int64)
    assert np.abs(values).max() <= VALUE_LIMIT
    assert np.abs(values).sum(axis=1).max() <= L1_LIMIT
    assert np.all(values * words >= 0)
    inside = (np.abs(words / step).max(axis=1) <= VALUE_LIMIT) & ((np.abs(words / step) + 0.5).sum(axis=1) <= L1_LIMIT)
    assert np.array_equal(values[inside], np.rint(words[inside] / step))


def test_a_codeword_over_the_bound_is_shrunk_better_than_by_scaling() -> None:
    words = np.random.default_rng(6).normal(size=(100, 49)) * 12
    assert np.abs(words).sum(axis=1).min() > L1_LIMIT
    values = round_codewords(torch.from_numpy(words), 1.0)
    scaled = np.trunc(words * (L1_LIMIT / np.abs(words).sum(axis=1))[:, None])
    assert np.all(np.abs(values.astype(np.int64)).sum(axis=1) >= L1_LIMIT - 3)
    assert np.all(np.square(values - words).sum(axis=1) < np.square(scaled - words).sum(axis=1))


def test_the_bound_meets_its_worst_case_exactly() -> None:
    """49 equal values: five each would make 245, and ten of them may be six."""
    values = round_codewords(torch.full((1, 49), 100.0, dtype=torch.float64), 1.0)
    assert int(np.abs(values.astype(np.int64)).sum()) == L1_LIMIT


def test_equal_seeds_give_equal_codebooks() -> None:
    data = [random_block(np.random.default_rng(7), 6, 30), random_block(np.random.default_rng(8), 4, 20)]
    first, again, other = (cluster(data, 16, True, np.random.default_rng(seed)) for seed in (5, 5, 6))
    assert first.values.tobytes() == again.values.tobytes()
    assert (first.step, first.loss) == (again.step, again.loss)
    assert first.values.tobytes() != other.values.tobytes()


def test_one_codeword_is_the_weighted_mean() -> None:
    rng = np.random.default_rng(9)
    vectors, weights = rng.normal(size=(2, 50, 9)) + 1, rng.uniform(0.1, 1, (2, 50))
    book = cluster([block(vectors, weights)], 1, False, rng)
    mean = (vectors * weights[:, :, None]).sum(axis=(0, 1)) / weights.sum()
    assert book.values.shape == (1, 9)
    assert np.abs(book.reals()[0] - mean).max() <= book.step / 2 + 1e-9


@pytest.mark.parametrize(("sign", "distinct"), [(False, 10), (True, 5)])
def test_no_more_codewords_than_distinct_kernels(sign: bool, distinct: int) -> None:
    rng = np.random.default_rng(10)
    five = rng.integers(-31, 32, (5, 4)).astype(np.float64)
    data = block(np.tile(np.concatenate([five, -five]), (3, 4, 1)))
    book = cluster([data], 64, sign, rng)
    assert len(book.values) == distinct
    assert book.loss < 1e-3 * float(data.vectors.square().sum())


def test_as_many_codewords_as_kernels_reach_every_kernel() -> None:
    rng = np.random.default_rng(11)
    data = block(rng.normal(size=(4, 5, 9)))
    book = cluster([data], 20, False, rng)
    assert len(np.unique(assign(data, torch.from_numpy(book.reals()), False).codes)) == 20


def test_kernels_that_are_all_zero_give_one_zero_codeword() -> None:
    book = cluster([block(np.zeros((2, 3, 9)))], 8, True, np.random.default_rng(0))
    assert book.values.shape == (1, 9)
    assert not book.values.any()
    assert book.step > 0
