"""Forms of codebooks in small networks: sums of two codewords, indices of a layer's own width, and groups of layers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from kqnets import calibrated, chain, indexed, integers, output_error, quantised

from kqgen.errors import InputError
from kqgen.intgraph import KqWeights, codeword_rows
from kqgen.kq_layers import choose
from kqgen.options import Codebook, Compression
from kqgen.post_training import Quantised, quantise

LAYERS = ((16, 3, 3), (24, 3, 3), (24, 3, 3), (24, 3, 3))


def compression(codewords: int, scope: Any = "network", sign: bool = True, additive: bool = False, **more: Any) -> Compression:
    return Compression(codebook=Codebook(scope, codewords, sign, additive), **more)


def rows_in_use(result: Quantised, book: str) -> np.ndarray:
    """Numbers of the stored codewords that some layer of codebook `book` uses."""
    codebook = next(each for each in result.codebooks if each.name == book)
    layers = [layer.weights for _, layer in result.layers if isinstance(layer.weights, KqWeights) and layer.weights.codebook == book]
    return np.unique(np.concatenate([codeword_rows(each, codebook).ravel() for each in layers]))


@pytest.mark.parametrize("scope", ["layer", "network"])
@pytest.mark.parametrize("sign", [False, True])
def test_sums_keep_every_bound(scope: str, sign: bool) -> None:
    graph = chain(*LAYERS)
    result = quantised(graph, compression(8, scope, sign, additive=True))
    for book in result.codebooks:
        assert book.additive
        assert book.codewords <= 8
        assert np.abs(book.values.astype(np.int64)).max() <= 31
        used = rows_in_use(result, book.name)
        assert max((used < book.codewords).sum(), (used >= book.codewords).sum()) == book.codewords
    for name in ("c1", "c2", "c3"):
        assert indexed(result.layer(name)).index_bits == 6 + sign
        assert np.abs(integers(result, name).astype(np.int64)).sum(axis=(1, 2)).max() <= 255
        assert not (indexed(result.layer(name)).negative.any() and not sign)


def test_sums_lose_less_than_one_codebook_of_as_many_bits() -> None:
    """On unseen images; 16 + 16 codewords with 9-bit indices take less than 80 codewords with 8-bit indices, for 1536 kernels."""
    graph = chain(*LAYERS)
    samples, ranges = calibrated(graph, 64)
    unseen, _ = calibrated(graph, 64, seed=2)
    sums, flat = (quantise(graph, each, samples, ranges) for each in (compression(16, additive=True), compression(80)))
    bits = [
        sum(8 * layer.weights.packed_bytes for _, layer in each.layers) + sum(8 * book.packed_bytes for book in each.codebooks)
        for each in (sums, flat)
    ]
    assert bits[0] < bits[1]
    assert output_error(graph, sums, unseen, ranges) < output_error(graph, flat, unseen, ranges)


@pytest.mark.parametrize("additive", [False, True])
def test_a_narrow_layer_uses_the_first_codewords(additive: bool) -> None:
    graph = chain(*LAYERS)
    wide, narrow = (9, 5) if additive else (7, 4)
    result = quantised(graph, compression(16 if additive else 64, additive=additive, widths=(("net.c2", narrow),)))
    book = result.codebooks[0]
    assert [indexed(result.layer(name)).index_bits for name in ("c1", "c2", "c3")] == [wide, narrow, wide]
    rows = codeword_rows(indexed(result.layer("c2")), book)
    assert (rows % book.codewords).max() < 2 ** book.stage_bits(narrow) < book.codewords
    assert (codeword_rows(indexed(result.layer("c3")), book) % book.codewords).max() >= 2 ** book.stage_bits(narrow)
    assert indexed(result.layer("c2")).codes.max() < 2 ** (narrow - 1)


def test_a_width_sets_the_size_of_a_layers_own_codebook() -> None:
    graph = chain(*LAYERS)
    result = quantised(graph, compression(64, "layer", widths=(("c1", 4), ("c3", 6))))
    sizes = {book.name: book.codewords for book in result.codebooks}
    assert sizes["c1_codebook"] <= 8 < sizes["c3_codebook"] <= 32 < sizes["c2_codebook"] <= 64


def test_a_shared_narrow_layer_is_served_better_than_by_codewords_in_any_order() -> None:
    """The first 8 of 64 nested codewords serve a narrow layer nearly as well as 8 codewords of its own."""
    graph = chain(*LAYERS)
    samples, ranges = calibrated(graph)
    nested = quantise(graph, compression(64, widths=(("c2", 4),)), samples, ranges)
    own = quantise(graph, compression(64, groups=(("c1", "c3"),), widths=(("c2", 4),)), samples, ranges)

    def error(result: Quantised) -> float:
        node = graph.node("c2")
        return float(np.square(result.real_weights("c2") - getattr(node, "weight")).sum())  # noqa: B009 - a Node has no weight

    assert error(nested) < 1.25 * error(own)


@pytest.mark.parametrize("scope", ["layer", "network"])
def test_groups_share_a_codebook_whatever_the_scope(scope: str) -> None:
    graph = chain(*LAYERS)
    result = quantised(graph, compression(16, scope, groups=(("c1", "net.c3"),)))
    assert indexed(result.layer("c1")).codebook == indexed(result.layer("c3")).codebook == "group_1_codebook"
    other = indexed(result.layer("c2")).codebook
    assert other == ("c2_codebook" if scope == "layer" else "codebook_3x3")
    assert {"group_1_codebook", other} <= {book.name for book in result.codebooks}


def test_a_width_speaks_for_indexing_a_small_layer() -> None:
    graph = chain((8, 3, 3), (24, 3, 3), (32, 1, 1), (24, 3, 3))
    assert choose(graph, compression(32))[0].codebook == ""
    first = choose(graph, compression(32, widths=(("c0", 4),)))[0]
    assert (first.codebook, first.index_bits) == ("codebook_3x3", 4)


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"widths": (("net.c9", 4),)}, ("net.c9", "net.c1", "--width")),
        ({"widths": (("net.c1", 4), ("c1", 5))}, ("net.c1", "two widths")),
        ({"widths": (("c1", 4),), "keep": (("c1", 8),)}, ("net.c1", "kept at 8 bits", "--width")),
        ({"widths": (("fc", 4),), "runs": (("net.fc", 0),)}, ("net.fc", "fully connected")),
        ({"widths": (("fc", 1),)}, ("net.fc", "fully connected", "too few")),
        ({"runs": (("net.c9", 4),)}, ("net.c9", "net.c1", "--run")),
        ({"runs": (("net.c1", 4),)}, ("net.c1", "3x3", "--run net.c1=0")),
        ({"runs": (("net.fc", 2), ("fc", 4))}, ("fc", "two lengths", "--run")),
        ({"groups": (("c1", "c7"),)}, ("c7", "net.c1")),
        ({"groups": (("c1", "c2"), ("net.c1", "c3"))}, ("net.c1", "two groups")),
        ({"groups": (("c1", "fc"),)}, ("c1", "fc", "3x3", "runs of 2")),
    ],
)  # fmt: skip
def test_what_cannot_hold_is_refused_by_layer(more: dict[str, Any], words: tuple[str, ...]) -> None:
    with pytest.raises(InputError) as refused:
        choose(chain(*LAYERS), compression(16, **more))
    for word in words:
        assert word in str(refused.value).replace("layer c1 is", "layer net.c1 is")


def test_equal_arguments_give_equal_bytes() -> None:
    graph = chain(*LAYERS)

    def everything(seed: int) -> bytes:
        result = quantised(graph, compression(8, additive=True, widths=(("c2", 5),), groups=(("c1", "c2"),), seed=seed))
        codes = [layer.weights.codes.tobytes() for _, layer in result.layers if isinstance(layer.weights, KqWeights)]
        return b"".join([*(book.values.tobytes() for book in result.codebooks), *codes])

    assert everything(1) == everything(1)
    assert everything(1) != everything(2)
