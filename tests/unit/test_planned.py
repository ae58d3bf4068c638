"""Bytes known from shapes: equal to what is stored, for every form of codebook and uniform width."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from kqnets import calibrated, chain

from kqgen import ir
from kqgen.options import Codebook, Compression
from kqgen.planned import graph_of_weights, planned_bytes, spelled
from kqgen.post_training import Quantised, quantise

NET = chain((8, 3, 3), (16, 3, 3), (16, 1, 1), (24, 3, 3), (16, 5, 5), (12, 5, 5), side=8)


def stored(result: Quantised) -> tuple[dict[str, int], dict[str, int]]:
    """Bytes of each layer and of each codebook."""
    layers = {name: layer.weights.packed_bytes for name, layer in result.layers}
    return layers, {book.name: book.packed_bytes for book in result.codebooks}


@pytest.mark.parametrize(
    "compression",
    [
        Compression("int8"),
        Compression(codebook=Codebook("network", 11)),
        Compression(codebook=Codebook("network", 16, sign=False)),
        Compression(codebook=Codebook("layer", 13), keep=(("net.c0", 6), ("c2", 4), ("fc", 6))),
        Compression(codebook=Codebook("layer", 8, sign=False), keep=(("net.c3", 4),)),
        Compression(codebook=Codebook("network", 24), keep=(("c0", 8),), widths=(("net.c1", 4), ("c5", 3))),
        Compression(codebook=Codebook("layer", 20), keep=(("c0", 8),), widths=(("net.c3", 5),), groups=(("net.c4", "net.c5"),)),
        Compression(codebook=Codebook("network", 8, True, True), keep=(("c0", 8),), widths=(("net.c3", 5),)),
        Compression(codebook=Codebook("layer", 6, False, True), keep=(("c0", 8),)),
    ],
    ids=["int8", "network", "unsigned", "layer", "layer, unsigned", "widths", "groups", "additive", "layer, additive, unsigned"],
)
def test_planned_bytes_are_the_stored_ones(compression: Compression) -> None:
    samples, ranges = calibrated(NET)
    layers, books = stored(quantise(NET, compression, samples, ranges))
    planned = planned_bytes(NET, compression)
    assert {layer.name: layer.stored_bytes for layer in planned.layers} == layers
    assert {book.name: book.stored_bytes for book in planned.codebooks} == books
    assert planned.table_bytes == sum(layers.values()) + sum(books.values())
    assert planned.conv_bytes == planned.table_bytes - layers["fc"]
    assert planned.conv_weights == sum(node.weight.size for node in NET if isinstance(node, ir.Conv2d) and not node.dense)
    assert planned.bits_per_weight == 8 * planned.conv_bytes / planned.conv_weights
    assert planned.requant_bytes == 7 * (8 + 16 + 16 + 24 + 16 + 12 + 4)


def test_a_codebook_has_no_more_codewords_than_kernels() -> None:
    planned = planned_bytes(chain((8, 3, 3), (8, 5, 5)), Compression(codebook=Codebook("layer", 512), keep=(("c0", 8),)))
    assert [(book.codewords, book.stored_bytes) for book in planned.codebooks] == [(64, 1200)]
    planned = planned_bytes(chain((8, 3, 3), (8, 3, 3), (32, 3, 3)), Compression(codebook=Codebook("network", 2048), keep=(("c0", 8),)))
    assert [book.codewords for book in planned.codebooks] == [8 * 8 + 8 * 32]
    assert [layer.bits for layer in planned.layers] == [8, 10, 10, 8]


def test_narrow_layers_use_the_first_codewords() -> None:
    graph = chain((8, 3, 3), (32, 3, 3), (64, 3, 3))
    narrow = Compression(codebook=Codebook("network", 100), keep=(("c0", 8),), widths=(("net.c1", 5),))
    planned = planned_bytes(graph, narrow)
    assert [(layer.bits, layer.codewords, layer.stored_bytes) for layer in planned.layers[1:3]] == [(5, 16, 160), (8, 100, 2048)]
    assert [(book.codewords, book.stored_bytes) for book in planned.codebooks] == [(100, 675)]
    both = planned_bytes(graph, Compression(codebook=Codebook("network", 100), keep=(("c0", 8),), widths=(("c1", 5), ("c2", 6))))
    assert [book.codewords for book in both.codebooks] == [32]


def test_an_additive_codebook_stores_two_tables() -> None:
    graph = chain((8, 3, 3), (32, 3, 3), (64, 3, 3))
    planned = planned_bytes(graph, Compression(codebook=Codebook("network", 20, True, True), keep=(("c0", 8),), widths=(("c1", 7),)))
    assert [(layer.bits, layer.codewords) for layer in planned.layers[1:3]] == [(7, 8), (11, 20)]
    assert [(book.codewords, book.stored_bytes) for book in planned.codebooks] == [(40, 270)]


def test_shapes_alone_are_enough() -> None:
    rng = np.random.default_rng(0)
    convs: list[Any] = [(node.path, node.weight, node.dense) for node in NET if isinstance(node, ir.Conv2d)]
    bare = graph_of_weights("net", [(path, rng.normal(size=weight.shape), dense) for path, weight, dense in convs])
    compression = Compression(codebook=Codebook("layer", 13), keep=(("net.c0", 6),))
    planned, again = planned_bytes(NET, compression), planned_bytes(bare, compression)
    assert again.table_bytes == planned.table_bytes
    assert [layer.stored_bytes for layer in again.layers] == [layer.stored_bytes for layer in planned.layers]


def test_options_are_spelled_as_the_command_line_takes_them() -> None:
    compression = Compression(
        codebook=Codebook("layer", 32, sign=True, additive=True), keep=(("stem", 6),), widths=(("b", 7),), groups=(("a", "b"),), seed=3
    )
    assert spelled(compression) == (
        "--weights kq --codebook layer --codewords 32 --sign --additive --width b=7 --group a,b --seed 3 --keep stem=6"
    )
    assert spelled(Compression("int8")) == "--weights int8"
