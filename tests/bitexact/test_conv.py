"""Every convolution kernel and its plain twin gives exactly the bytes SPEC.md says."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from kernelcases import (
    KERNELS,
    ConvCase,
    Indexed,
    Uniform,
    accumulators,
    additive,
    additive_cases,
    codebook,
    conv_case,
    expected,
    extreme_pairs,
    indexed,
    indexed_cases,
    inputs,
    narrow_cases,
    summing,
    uniform,
    uniform_cases,
)
from kernellib import Kernels, ways

from kqgen.index_check import index_misfit
from kqgen.intgraph import IntCodebook, IntConv2d, KqWeights, QTensor, Requant, UniformWeights, effective_kernels

UNIFORM, INDEXED, NARROW, ADDITIVE = uniform_cases(), indexed_cases(), narrow_cases(), additive_cases()


def check(kernels: Kernels, cases: list[ConvCase]) -> None:
    """Every case in every way, and every second one with an addition at its end."""
    assert cases
    for case in [*cases, *(summing(case) for case in cases[::2])]:
        wanted = expected(case)
        for way in ways(case):
            np.testing.assert_array_equal(kernels.conv(case, way), wanted, err_msg=f"{way}: {case.label}, adds: {case.addend is not None}")


def test_cases_reach_the_ends_of_the_format() -> None:
    """The corners the kernels were written for are among the cases."""
    books = [case.weights for case in INDEXED if isinstance(case.weights, Indexed)]
    assert {weights.index_bits for weights in books} == set(range(1, 13))
    assert max(int(np.abs(weights.codebook.astype(int)).sum((1, 2)).max()) for weights in books) == 255
    assert any(len(weights.codebook) == 1 for weights in books)
    assert {case.weights.bits for case in UNIFORM if isinstance(case.weights, Uniform)} == {8, 6, 4}
    for cases in (UNIFORM, INDEXED):
        pixels = [case.out_shape[0] * case.out_shape[1] for case in cases]
        assert 1 in pixels
        assert {count % 4 for count in pixels} == {0, 1, 2, 3}
        assert {case.x.shape[2] for case in cases} >= {1, 3, 5, 17, 64}
        assert {case.kernel for case in cases} == set(KERNELS)
        assert {case.acc_shift for case in cases} >= {0, 15}
        tiles = [(case.out_shape[2], way.tile) for case in cases for way in ways(case) if "reuse" not in way.function]
        assert any(tile and channels % tile for channels, tile in tiles), "a last tile that is not full"
        outputs = np.concatenate([expected(case).ravel() for case in cases if (case.lo, case.hi) == (-128, 127)])
        assert len(np.unique(outputs)) == 256


@pytest.mark.parametrize("kernel", KERNELS, ids=str)
def test_uniform_weights(kernels: Kernels, kernel: tuple[int, int]) -> None:
    check(kernels, [case for case in UNIFORM if case.kernel == kernel])


@pytest.mark.parametrize("kernel", KERNELS, ids=str)
def test_indexed_kernels_in_both_forms(kernels: Kernels, kernel: tuple[int, int]) -> None:
    check(kernels, [case for case in INDEXED if case.kernel == kernel])


@pytest.mark.parametrize("kernel", KERNELS, ids=str)
def test_sums_of_two_codewords(kernels: Kernels, kernel: tuple[int, int]) -> None:
    check(kernels, [case for case in ADDITIVE if case.kernel == kernel])


def test_indices_narrower_than_their_codebook_in_both_forms(kernels: Kernels) -> None:
    check(kernels, NARROW)


def test_cases_of_two_codewords_and_of_narrow_indices_reach_the_ends() -> None:
    sums = [case.weights for case in ADDITIVE if isinstance(case.weights, Indexed)]
    assert {(weights.index_bits, weights.sign) for weights in sums} >= {
        *((max(1, 2 * stage), False) for stage in range(7)), *((2 * stage + 1, True) for stage in range(6)),
    }  # fmt: skip
    assert {weights.width for weights in sums} >= {0, 1, 2, 3, 4, 9}
    values = np.concatenate([weights.values.ravel() for weights in sums])
    assert (values.min(), values.max()) == (-62, 62)
    assert max(int(np.abs(weights.values).sum((1, 2)).max()) for weights in sums) == 255
    assert max(int(np.abs(weights.codebook.astype(int)).sum((1, 2)).max()) for weights in sums) == 279
    narrow = [case.weights for case in NARROW if isinstance(case.weights, Indexed)]
    assert {weights.index_bits for weights in narrow} == set(range(1, 12))
    assert all(int(weights.codes.max()) == weights.nameable - 1 < weights.codewords - 1 for weights in narrow)


def test_the_tile_does_not_matter(kernels: Kernels) -> None:
    """Every candidate of every core, not only those with the least and the most scratch."""
    rng = np.random.default_rng(3)
    x = inputs(rng, (11, 10, 6), "any")
    book = codebook(rng, 20, (3, 3))
    stored: tuple[Indexed | Uniform, ...] = (
        indexed(rng, 22, 6, book, True), additive(rng, 22, 6, (3, 3), 12, True), uniform(rng, 22, 6, (3, 3), 6),
    )  # fmt: skip
    for weights in stored:
        case = conv_case(rng, "tiles", x, weights, padding=(1, 1, 1, 1))
        wanted = expected(case)
        for way in ways(case, every=True):
            np.testing.assert_array_equal(kernels.conv(case, way), wanted, err_msg=str(way))


def test_sums_at_the_ends_of_their_lanes(kernels: Kernels) -> None:
    """Dot products of -32640 and 32640 side by side in one word, in all four places, with either sign of the code."""
    book = np.full((1, 3, 3), 31, np.int8)
    book[0, 2, 2] = 7
    x = np.empty((3, 12, 1), np.int8)
    for column in range(4):
        x[:, 3 * column : 3 * column + 3] = -128 if column % 2 else 127
    rng = np.random.default_rng(1)
    for negative in ([[False]], [[True]]):
        weights = Indexed(book, np.zeros((1, 1), np.int16), np.array(negative), sign=True)
        case = conv_case(rng, "lanes", x, weights, stride=(1, 3))
        case = replace(case, bias=np.zeros(1, np.int32))
        sums = accumulators(case)
        assert {int(value) for value in sums.ravel()} == ({-32385, 32640} if negative[0][0] else {32385, -32640})
        check(kernels, [case])


@pytest.mark.parametrize("negative", [False, True])
def test_sums_of_two_codewords_at_the_ends_of_their_lanes(kernels: Kernels, negative: bool) -> None:
    """As above, by kernels that reach the bound only when two codewords are added up."""
    x = np.empty((3, 12, 1), np.int8)
    for column in range(4):
        x[:, 3 * column : 3 * column + 3] = -128 if column % 2 else 127
    case = conv_case(np.random.default_rng(1), "lanes", x, extreme_pairs(1, negative), stride=(1, 3))
    case = replace(case, bias=np.zeros(4, np.int32))
    assert {int(value) for value in accumulators(case)[..., :3].ravel()} == {-32640, 32640, -32385, 32385}
    check(kernels, [case])


def check_seen(kernels: Kernels, case: ConvCase, changed: list[Indexed]) -> None:
    """No way of running the case gives the same bytes with another table."""
    wanted = expected(case)
    for way in ways(case):
        assert np.array_equal(kernels.conv(case, way), wanted), way
        for weights in changed:
            assert not np.array_equal(kernels.conv(replace(case, weights=weights), way), wanted), way


@pytest.mark.parametrize("sign", [False, True])
def test_a_flipped_bit_of_either_codeword_shows(kernels: Kernels, sign: bool) -> None:
    rng = np.random.default_rng(5)
    weights = additive(rng, 3, 4, (3, 3), 8, sign)
    case = replace(conv_case(rng, "flip", inputs(rng, (8, 8, 4), "any"), weights), lo=-128, hi=127, zero_point=0)
    second = weights.second
    assert second is not None
    changed = [replace(weights, codes=weights.codes ^ 1), replace(weights, second=second ^ 1)]
    for row in (int(weights.codes[1, 2]), 8 + int(second[1, 2])):
        book = weights.codebook.copy()
        book[row].flat[int(np.abs(book[row]).argmax())] = 0
        changed.append(replace(weights, codebook=book))
    check_seen(kernels, case, changed)


@pytest.mark.parametrize("index_bits", range(1, 13))
def test_a_flipped_bit_shows(kernels: Kernels, index_bits: int) -> None:
    """The twin of the tests above: a wrong table must not go unseen."""
    rng = np.random.default_rng(index_bits)
    weights = indexed(rng, 3, 4, codebook(rng, 2 ** max(0, index_bits - 1), (3, 3), at_bound=True), True)
    case = conv_case(rng, "flip", inputs(rng, (8, 8, 4), "any"), weights)
    case = replace(case, lo=-128, hi=127, zero_point=0)
    flipped = weights.negative.copy()
    flipped[1, 2] ^= True
    book = weights.codebook.copy()
    used = int(weights.codes[1, 2])
    book[used].flat[int(np.abs(book[used]).argmax())] = 0
    check_seen(kernels, case, [replace(weights, negative=flipped), replace(weights, codebook=book)])


def as_node(case: ConvCase) -> tuple[IntConv2d, IntCodebook | None]:
    """The case as a node of the integer graph, with its codebook."""
    book = None
    stored: UniformWeights | KqWeights
    if isinstance(case.weights, Indexed):
        book = IntCodebook("book", case.weights.codebook, case.weights.sign, case.weights.second is not None)
        codes = case.weights.stored_codes.astype(np.int16)
        stored = KqWeights("book", case.weights.index_bits, codes, case.weights.negative)
    else:
        stored = UniformWeights(case.weights.bits, case.weights.values)
    h, w, c_in = case.x.shape
    node = IntConv2d(
        name="conv", path="", sources=(), inputs=("x",), output=QTensor("conv", *case.out_shape, 1.0, 0), lo=case.lo, hi=case.hi,
        dense=False, in_shape=(h, w, c_in), kernel=case.kernel, stride=case.stride, padding=case.padding,
        pad_values=np.zeros(c_in, np.int8), weights=stored, requant=Requant(case.bias, case.multiplier, case.shift, case.acc_shift),
        weight_scale=np.ones(1, np.float32), reason="",
    )  # fmt: skip
    return node, book


def test_the_integer_graph_means_the_same_kernels() -> None:
    for case in [*INDEXED, *NARROW, *ADDITIVE]:
        node, book = as_node(case)
        assert book is not None
        assert isinstance(node.weights, KqWeights)
        assert index_misfit(node.weights, book) == ("", ""), case.label
        np.testing.assert_array_equal(effective_kernels(node.weights, book), case.weights.values, err_msg=case.label)
