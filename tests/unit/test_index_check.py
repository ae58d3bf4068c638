"""Codebooks and indices of the integer graph: which kernels they mean, and which are refused, by the field that is wrong."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import nets
import numpy as np
import pytest

from kqgen import graph_check
from kqgen.errors import InputError
from kqgen.index_check import codebook_misfit, index_misfit
from kqgen.intgraph import IntCodebook, IntConv2d, IntGraph, KqWeights, codeword_rows, effective_kernels


def book(*rows: list[int], sign: bool = True, additive: bool = False) -> IntCodebook:
    """A codebook of 1x3 kernels, or of 3x3 kernels where nine values are given."""
    shape = (len(rows), 3, 3) if len(rows[0]) == 9 else (len(rows), 1, 3)
    return IntCodebook("book", np.array(rows, np.int8).reshape(shape), sign, additive)


def weights(width: int, *codes: int, negative: tuple[bool, ...] | None = None) -> KqWeights:
    """One output channel."""
    signs = np.array([negative or (False,) * len(codes)])
    return KqWeights("book", width, np.array([codes], np.int16), signs)


PLAIN = book([1, 2, 3], [4, 5, 6], [7, 8, 9], [0, 0, 1], [0, 1, 0])
PAIRS = book([31, 1, 0], [0, 2, 0], [0, 0, 3], [31, 0, -20], [0, 30, 0], [0, 0, -31], additive=True)


def kernels(stored: KqWeights, codebook: IntCodebook) -> list[list[int]]:
    values = effective_kernels(stored, codebook)
    assert values.dtype == np.int8
    return [[int(value) for value in values[0, 0, :, channel]] for channel in range(values.shape[3])]


def test_an_additive_code_names_one_codeword_of_each_stage() -> None:
    assert (PAIRS.codewords, PAIRS.stages, PAIRS.index_bits, PAIRS.packed_bytes) == (3, 2, 5, -(-18 * 6 // 8))
    stored = weights(5, 0 | 0 << 2, 1 | 1 << 2, 2 | 2 << 2, 0 | 1 << 2, negative=(False, False, True, True))
    assert kernels(stored, PAIRS) == [[62, 1, -20], [0, 32, 0], [0, 0, 28], [-31, -31, 0]]
    assert codeword_rows(stored, PAIRS)[:, 0].tolist() == [[0, 1, 2, 0], [3, 4, 5, 4]]


def test_a_narrow_code_names_the_first_codewords_alone() -> None:
    assert kernels(weights(3, 1 | 0 << 1, 0 | 1 << 1), PAIRS) == [[31, 2, -20], [31, 31, 0]]
    assert kernels(weights(1, 0, 0, negative=(False, True)), PAIRS) == [[62, 1, -20], [-62, -1, 20]]
    assert [PAIRS.named(width) for width in (1, 3, 5)] == [1, 2, 3]
    assert kernels(weights(2, 1, 0), PLAIN) == [[4, 5, 6], [1, 2, 3]]
    assert [PLAIN.named(width) for width in (1, 2, 3, 4)] == [1, 2, 4, 5]


@pytest.mark.parametrize("codewords", [1, 2, 3, 4, 5, 64])
@pytest.mark.parametrize("sign", [False, True])
@pytest.mark.parametrize("additive", [False, True])
def test_widths_that_are_taken(codewords: int, sign: bool, additive: bool) -> None:
    """Every width that leaves whole bits to a stage, up to what names all codewords."""
    made = book(*[[1, 0, 0]] * (codewords * (2 if additive else 1)), sign=sign, additive=additive)
    stage = int(np.ceil(np.log2(codewords)))
    wanted = {max(1, bits * made.stages + sign) for bits in range(stage + 1)}
    taken = {width for width in range(-1, 15) if index_misfit(weights(width, 0), made) == ("", "")}
    assert taken == wanted
    assert max(taken) == made.index_bits


@pytest.mark.parametrize(
    ("stored", "codebook", "field", "found"),
    [
        (weights(4, 5), PLAIN, "codes", "codeword number 5"),
        (weights(4, 7), PLAIN, "codes", "5 codewords of book"),
        (weights(3, 4), PLAIN, "codes", "4 codewords of book"),
        (weights(4, 0, -1), PLAIN, "codes", "-1"),
        (weights(5, 0), PLAIN, "index_bits", "5 bits"),
        (weights(0, 0), PLAIN, "index_bits", "0 bits"),
        (weights(3, 0, negative=(True,)), replace(PLAIN, sign=False), "negative", "signs"),
        (weights(5, 3), PAIRS, "codes", "codeword number 3"),
        (weights(5, 3 << 2), PAIRS, "codes", "3 codewords of a stage"),
        (weights(5, 16), PAIRS, "codes", "codeword number 4"),
        (weights(3, 4), PAIRS, "codes", "codeword number 2, where 3 bits name 2"),
        (weights(5, -1), PAIRS, "codes", "-1"),
        (weights(4, 0), PAIRS, "index_bits", "an additive codebook with signs"),
        (weights(3, 0), replace(PAIRS, sign=False), "index_bits", "without signs"),
        (weights(7, 0), PAIRS, "index_bits", "7 bits"),
    ],
)
def test_indices_that_do_not_suit_are_refused_by_field(stored: KqWeights, codebook: IntCodebook, field: str, found: str) -> None:
    refused = index_misfit(stored, codebook)
    assert refused[0] == field
    assert found in refused[1]


def test_the_bound_holds_for_the_pairs_in_use() -> None:
    """All of 31 is 279 by itself; with -24 in one place it is 255, with -23 it is 256."""
    full, back, short = [31] * 9, [0] * 8 + [-24], [0] * 8 + [-23]
    made = book(full, back, back, short, additive=True)
    assert codebook_misfit(made) == ""
    assert index_misfit(weights(3, 0), made) == ("", "")
    assert index_misfit(weights(3, 0, 1 | 1 << 1), made) == ("", "")
    field, found = index_misfit(weights(3, 0, 0 | 1 << 1), made)
    assert field == "codes"
    assert "code 2" in found
    assert "256" in found


@pytest.mark.parametrize(
    ("codebook", "found"),
    [
        (book([31] * 9), "279"),
        (book([31] * 8 + [8]), "256"),
        (book([-32, 0, 0]), "32"),
        (book([0, 0, -128], [0, 0, 0], additive=True), "128"),
        (book([1, 0, 0], [1, 0, 0], [1, 0, 0], additive=True), "3 codewords for two stages"),
        (book(*[[1, 0, 0]] * 2049), "12"),
        (book(*[[1, 0, 0]] * 66, additive=True), "13 bits"),
        (replace(PLAIN, values=np.zeros((2, 3), np.int8)), "(2, 3)"),
        (replace(PLAIN, values=np.zeros((2, 1, 3), np.int16)), "int16"),
        (replace(PLAIN, values=np.zeros((0, 1, 3), np.int8)), "(0, 1, 3)"),
    ],
)
def test_codebooks_that_break_the_format(codebook: IntCodebook, found: str) -> None:
    assert found in codebook_misfit(codebook)


@pytest.mark.parametrize("codebook", [PLAIN, PAIRS, book([31] * 8 + [7]), book(*[[1, 0, 0]] * 2048), book(*[[1, 0, 0]] * 64, additive=True),
                                      book(*[[1, 0, 0]] * 128, sign=False, additive=True)])  # fmt: skip
def test_codebooks_that_keep_it(codebook: IntCodebook) -> None:
    assert codebook_misfit(codebook) == ""


def changed(layer: str, **fields: Any) -> IntGraph:
    """The network of sums with other indices in one layer."""
    graph = nets.summed()
    number = [node.name for node in graph.nodes].index(layer)
    node = graph.nodes[number]
    assert isinstance(node, IntConv2d)
    assert isinstance(node.weights, KqWeights)
    wrong = replace(node, weights=replace(node.weights, **fields))
    return replace(graph, nodes=(*graph.nodes[:number], wrong, *graph.nodes[number + 1 :]))


def all_books(additive: bool) -> IntGraph:
    """The network of sums with every codebook called additive, or none."""
    graph = nets.summed()
    return replace(graph, codebooks=tuple(replace(each, additive=additive) for each in graph.codebooks))


def test_the_sound_network_passes() -> None:
    graph_check.check(nets.summed())


@pytest.mark.parametrize(
    ("graph", "field"),
    [
        (changed("sum", index_bits=8), "layer sum: index_bits"),
        (changed("narrow", index_bits=2), "layer narrow: codes"),
        (changed("narrow_sum", index_bits=3), "layer narrow_sum: codes"),
        (changed("row", negative=np.ones((6, 5), np.bool_)), "layer row: negative"),
        (all_books(False), "layer sum: index_bits"),
        (all_books(True), "codebook plain: values"),
    ],
)
def test_a_graph_with_such_indices_is_refused_by_layer_and_field(graph: IntGraph, field: str) -> None:
    with pytest.raises(InputError, match=field):
        graph_check.check(graph)
