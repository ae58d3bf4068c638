"""Fitting to the output error: every step lowers the loss, and the closed forms agree with dense least squares."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
import torch

from kqgen import ir, kq_fit
from kqgen.cluster import spread
from kqgen.kq_fit import Problem, Solution, feed_back, fit_scales, fit_words, learn, pose, sweep
from kqgen.kq_moments import best_weights, codes_of, collect, damped
from kqgen.kq_uniform import scale_floor, uniform, usable_scale

Float64 = npt.NDArray[np.float64]


def correlated(rng: np.random.Generator, n: int) -> Float64:
    """A covariance (n, n) whose inputs share a few strong common causes."""
    causes = rng.normal(size=(n, max(2, n // 6)))
    return causes @ causes.T + 0.05 * np.eye(n)


def problem(seed: int, c_out: int = 12, groups: int = 6, d: int = 9) -> Problem:
    rng = np.random.default_rng(seed)
    return pose(rng.normal(size=(c_out, groups * d)), correlated(rng, groups * d), d)


def reals(words: Float64, solution: Solution) -> Float64:
    signed = np.where(solution.negative, -1.0, 1.0) * solution.scale[:, None]
    return np.asarray((words[solution.codes] * signed[:, :, None]).reshape(len(signed), -1))


def nearest(posed: Problem, words: Float64, scale: Float64) -> Solution:
    """Each kernel's nearest signed codeword by plain distance."""
    kernels = posed.target.reshape(len(scale), -1, posed.d) / scale[:, None, None]
    dots = kernels @ words.T
    codes = np.argmin((words**2).sum(axis=1) - 2 * np.abs(dots), axis=2)
    negative = np.take_along_axis(dots, codes[:, :, None], axis=2)[:, :, 0] < 0
    plain = Solution(codes, negative, scale, 0.0)
    return Solution(codes, negative, scale, posed.loss(reals(words, plain)))


def test_the_loss_of_losing_everything_is_one() -> None:
    posed = problem(0)
    assert posed.loss(np.zeros_like(posed.target)) == pytest.approx(1.0)
    assert posed.loss(posed.target) == 0.0


@pytest.mark.parametrize("sign", [False, True])
def test_each_step_lowers_the_loss(sign: bool) -> None:
    rng, posed = np.random.default_rng(1), problem(1)
    words, scale = rng.normal(size=(16, 9)), np.ones(12)
    start = nearest(posed, words, scale)
    fed = feed_back(posed, words, sign, scale)
    swept = sweep(posed, words, sign, fed)
    again = sweep(posed, words, sign, swept)
    assert swept.loss < fed.loss < start.loss
    assert again.loss <= swept.loss
    assert swept.loss == pytest.approx(posed.loss(reals(words, swept)))
    assert not (swept.negative.any() and not sign)


def test_a_sweep_ends_where_no_single_code_can_be_changed_for_the_better() -> None:
    """After enough sweeps every one of 6 x 12 codes is the best of all 8 signed ones with the others held, scales as they were."""
    rng, posed = np.random.default_rng(2), problem(2)
    words = rng.normal(size=(4, 9))
    solution = feed_back(posed, words, True, np.ones(12))
    for _ in range(20):
        last, solution = solution, sweep(posed, words, True, solution)
    assert np.array_equal(last.codes, solution.codes)
    best = posed.loss(reals(words, solution))
    for channel in range(12):
        for group in range(6):
            for code in range(4):
                for minus in (False, True):
                    codes, negative = solution.codes.copy(), solution.negative.copy()
                    codes[channel, group], negative[channel, group] = code, minus
                    assert posed.loss(reals(words, Solution(codes, negative, solution.scale, 0.0))) >= best * (1 - 1e-9)


def test_scales_are_the_least_squares_solution() -> None:
    rng, posed = np.random.default_rng(3), problem(3)
    words = rng.normal(size=(8, 9))
    solution = feed_back(posed, words, True, np.ones(12))
    fitted = fit_scales(posed, words, solution.codes, solution.negative, solution.scale)
    root = np.linalg.cholesky(posed.second)
    plain = reals(words, Solution(solution.codes, solution.negative, np.ones(12), 0.0))
    for channel in range(12):
        wanted = np.linalg.lstsq((plain[channel] @ root)[:, None], posed.target[channel] @ root, rcond=None)[0][0]
        assert fitted[channel] == pytest.approx(wanted if wanted > 0 else 1.0)


def test_codewords_are_the_least_squares_solution_over_all_layers() -> None:
    """Two layers, 3 codewords of 4 values: conjugate gradients against the dense normal equations; an unused codeword stays."""
    rng = np.random.default_rng(4)
    posed = [problem(5, 10, 4, 4), problem(6, 8, 3, 4)]
    words = rng.normal(size=(4, 4))
    words[3] = 1e6
    solutions = [feed_back(each, words, True, np.ones(len(each.target))) for each in posed]
    fitted = fit_words(posed, solutions, words)
    rows, wanted = [], []
    for each, solution in zip(posed, solutions, strict=True):
        root = np.linalg.cholesky(each.second)
        for channel in range(len(each.target)):
            design = np.zeros((each.target.shape[1], 12))
            for group, code in enumerate(solution.codes[channel]):
                factor = -1.0 if solution.negative[channel, group] else 1.0
                design[group * 4 : group * 4 + 4, code * 4 : code * 4 + 4] = factor * np.eye(4)
            rows.append(each.importance**0.5 * root.T @ design)
            wanted.append(each.importance**0.5 * each.target[channel] @ root)
    solved = np.linalg.lstsq(np.concatenate(rows), np.concatenate(wanted), rcond=None)[0].reshape(3, 4)
    assert np.allclose(fitted[:3], solved, rtol=1e-4, atol=1e-4)  # 20 steps of conjugate gradients for 12 unknowns
    assert np.array_equal(fitted[3], words[3])


def test_learning_beats_clustering_alone() -> None:
    posed = [problem(7, 16, 8), problem(8, 16, 16)]
    book, solutions = learn(posed, 16, True, np.random.default_rng(0))
    words = book.reals()
    for each, solution in zip(posed, solutions, strict=True):
        assert solution.loss == pytest.approx(each.loss(reals(words, solution)))
        assert solution.loss < 0.6 * nearest(each, words, solution.scale).loss


def layer(stride: ir.Pair, padding: ir.Padding, kernel: ir.Pair) -> ir.Conv2d:
    rng = np.random.default_rng(9)
    weight = rng.normal(size=(5, 3, *kernel))
    return ir.Conv2d("c", "c", ("x",), (5, 1, 1), ir.frozen_array(weight), ir.frozen_array(rng.normal(size=5)), stride, padding)


@pytest.mark.parametrize(
    ("stride", "padding", "kernel"), [((1, 1), (1, 1, 1, 1), (3, 3)), ((2, 1), (0, 1, 2, 0), (3, 2)), ((2, 2), ir.NO_PADDING, (1, 1))]
)
def test_moments_are_those_of_the_patches(stride: ir.Pair, padding: ir.Padding, kernel: ir.Pair) -> None:
    """Against patches cut out one by one; the best weights bring back the layer's own outputs."""
    node, scale = layer(stride, padding, kernel), 0.25
    x = torch.from_numpy(np.random.default_rng(10).integers(-40, 200, (6, 3, 7, 8)).astype(np.float32)) * scale
    codes = codes_of(node, x, scale)
    assert torch.equal(codes, x / scale)
    top, bottom, left, right = padding
    padded = np.pad(codes.numpy(), ((0, 0), (0, 0), (top, bottom), (left, right)))
    rows = range(0, padded.shape[2] - kernel[0] + 1, stride[0])
    columns = range(0, padded.shape[3] - kernel[1] + 1, stride[1])
    patches = np.stack([padded[i, :, r : r + kernel[0], c : c + kernel[1]].reshape(-1) for i in range(6) for r in rows for c in columns])
    outputs = patches.astype(np.float64) @ node.weight.reshape(5, -1).T * scale + node.bias
    wanted = torch.from_numpy(outputs.reshape(6, len(rows), len(columns), 5).transpose(0, 3, 1, 2).astype(np.float32))
    moments = collect(node, codes, wanted, scale)
    assert moments.count == len(patches)
    assert np.allclose(moments.second, np.cov(patches.T, bias=True), rtol=1e-9)
    assert np.allclose(best_weights(node, moments), node.weight.reshape(5, -1), atol=1e-4)
    assert np.linalg.eigvalsh(damped(moments)).min() > 0.009 * np.trace(moments.second) / len(moments.second)


def test_best_weights_make_up_for_an_input_that_was_changed() -> None:
    """The third channel arrives halved: its weights double (but for the ridge)."""
    node = layer((1, 1), ir.NO_PADDING, (1, 1))
    codes = torch.from_numpy(np.random.default_rng(11).integers(-100, 100, (200, 3, 4, 4)).astype(np.float32))
    wanted = torch.nn.functional.conv2d(codes, torch.from_numpy(node.weight.copy()))
    codes[:, 2] = torch.round(codes[:, 2] / 2)
    found = best_weights(node, collect(node, codes, wanted, 1.0)).reshape(5, 3)
    assert np.allclose(found[:, 2], 2 * node.weight[:, 2, 0, 0], rtol=0.06, atol=0.02)
    assert np.allclose(found[:, :2], node.weight[:, :2, 0, 0], atol=0.05)


@pytest.mark.parametrize("bits", [8, 6, 4])
def test_uniform_weights_fed_back_lose_less_than_rounded_ones(bits: int) -> None:
    rng = np.random.default_rng(12)
    weight, second = rng.normal(size=(10, 36)), correlated(rng, 36)
    posed = pose(weight, second, 36)
    limit = 2 ** (bits - 1) - 1
    values, scale = uniform(weight, second, bits, np.zeros(10))
    plain, plain_scale = uniform(weight, None, bits, np.zeros(10))
    assert values.dtype == plain.dtype == np.int8
    assert int(np.abs(values.astype(np.int64)).max()) <= limit
    assert posed.loss(values * scale.astype(np.float64)[:, None]) < 0.8 * posed.loss(plain * plain_scale.astype(np.float64)[:, None])
    largest = np.abs(weight).max(axis=1)[:, None] / limit
    naive = np.rint(weight / largest) * largest
    assert np.square(plain * plain_scale[:, None] - weight).sum() <= 1.0001 * np.square(naive - weight).sum()


def test_scales_are_lifted_to_what_the_bias_needs() -> None:
    floor = scale_floor(np.array([0.0, 4.0, -8.0, 0.0]), 2.0**-7)
    assert floor.tolist() == [0.0, 2.0**-18, 2.0**-17, 0.0]
    scale = usable_scale(np.array([0.5, 1e-9, 0.0, 0.0]), floor)
    assert scale.dtype == np.float32
    assert scale[0] == 0.5
    assert np.all(scale.astype(np.float64) >= floor)
    assert np.all(scale > 0)
    assert np.all(usable_scale(np.zeros(3), np.zeros(3)) > 0)


def test_a_codebook_from_part_of_the_kernels_serves_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """A quarter of 1536 kernels clustered: the layer loses little more than with all of them, and every channel has codes."""
    posed = problem(13, 64, 24)
    losses = []
    for most in (1 << 16, 384):
        monkeypatch.setattr(kq_fit, "_CLUSTERED", most)
        book, (solution,) = learn([posed], 16, True, np.random.default_rng(0))
        assert solution.codes.shape == (64, 24)
        assert solution.loss == pytest.approx(posed.loss(reals(book.reals(), solution)))
        losses.append(solution.loss)
    assert losses[0] != losses[1]
    assert losses[1] < 1.1 * losses[0]


def test_words_of_two_stages_are_the_least_squares_solution() -> None:
    """3 + 3 codewords of 4 values: conjugate gradients reach the loss of dense least squares over both stages."""
    rng, posed = np.random.default_rng(14), problem(15, 12, 4, 4)
    words = rng.normal(size=(6, 4))
    solution = feed_back(posed, spread(words, additive=True), True, np.ones(12))
    fitted = fit_words([posed], [solution], words, additive=True)
    root = np.linalg.cholesky(posed.second)
    rows, wanted = [], []
    for channel in range(12):
        design = np.zeros((16, 24))
        for group, code in enumerate(solution.codes[channel]):
            factor = -1.0 if solution.negative[channel, group] else 1.0
            for word in (code % 3, 3 + code // 3):
                design[group * 4 : group * 4 + 4, word * 4 : word * 4 + 4] += factor * np.eye(4)
        rows.append(root.T @ design)
        wanted.append(posed.target[channel] @ root)
    solved = np.linalg.lstsq(np.concatenate(rows), np.concatenate(wanted), rcond=None)[0].reshape(6, 4)
    best, found = (posed.loss(reals(spread(each, additive=True), solution)) for each in (solved, fitted))
    assert best <= found < best * 1.01
    assert found < 0.9 * solution.loss
