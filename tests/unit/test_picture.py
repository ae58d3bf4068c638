"""The picture of codebooks: well-formed SVG, one tile a codeword, most used first, the same bytes every time."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import replace
from xml.etree import ElementTree

import nets
import numpy as np
import pytest

from kqgen.errors import InputError
from kqgen.intgraph import IntCodebook, IntConv2d, IntGraph, IntNode, KqWeights, codeword_rows, frozen
from kqgen.picture import colour, entropy_bits, picture
from kqgen.picture_layout import LEFT, WIDTH, grid

SVG = "{http://www.w3.org/2000/svg}"


def drawn(graph: IntGraph) -> ElementTree.Element:
    return ElementTree.fromstring(picture(graph))  # noqa: S314 - our own text


def panels(root: ElementTree.Element) -> dict[str, list[ElementTree.Element]]:
    """The tiles of each panel, in order of place."""
    return {
        group.attrib["id"]: [tile for tile in group if tile.attrib.get("class") == "tile"]
        for group in root.iter(f"{SVG}g")
        if group.attrib.get("class") == "panel"
    }


def words(root: ElementTree.Element) -> str:
    return "\n".join(text.text or "" for text in root.iter(f"{SVG}text"))


def additive() -> IntGraph:
    """The residual network with its 3x3 codewords made the two stages of an additive codebook."""
    graph = nets.residual()
    book = replace(graph.codebook("book_3x3"), values=frozen(graph.codebook("book_3x3").values // 2, np.int8), additive=True)
    assert isinstance(book, IntCodebook)
    rng = np.random.default_rng(4)
    nodes: list[IntNode] = []
    for node in graph.nodes:
        if isinstance(node, IntConv2d) and isinstance(node.weights, KqWeights) and node.weights.codebook == book.name:
            bits = book.stage_bits(book.index_bits)
            codes = rng.integers(0, book.codewords, node.weights.codes.shape) + (rng.integers(0, 3, node.weights.codes.shape) << bits)
            stored = replace(node.weights, index_bits=book.index_bits, codes=frozen(codes, np.int16))
            nodes.append(replace(node, weights=stored))
        else:
            nodes.append(node)
    return replace(graph, nodes=tuple(nodes), codebooks=(book, *graph.codebooks[1:]))


def uses(graph: IntGraph, name: str) -> Counter[int]:
    """Kernels that use each stored codeword, counted one by one."""
    found: Counter[int] = Counter()
    for node in graph.nodes:
        if isinstance(node, IntConv2d) and isinstance(node.weights, KqWeights) and node.weights.codebook == name:
            found.update(codeword_rows(node.weights, graph.codebook(name)).reshape(-1).tolist())
    return found


@pytest.mark.parametrize("graph", [nets.residual(), additive()], ids=["plain", "additive"])
def test_there_is_a_tile_for_every_codeword_most_used_first(graph: IntGraph) -> None:
    found = panels(drawn(graph))
    stages = [f"{book.name}_{stage}" if book.additive else book.name for book in graph.codebooks for stage in range(1, book.stages + 1)]
    assert list(found) == stages
    for book in graph.codebooks:
        counted = uses(graph, book.name)
        named = [name for name in stages if name.startswith(book.name)]
        assert [len(found[name]) for name in named] == [book.codewords] * book.stages
        numbers = []
        for name in named:
            notes = [tile.findtext(f"{SVG}title") or "" for tile in found[name]]
            read = [re.match(r"codeword (\d+): (\d+) kernels", note) for note in notes]
            pairs = [(int(match.group(1)), int(match.group(2))) for match in read if match]
            assert pairs == [(number, counted[number]) for number, _ in pairs]
            assert [count for _, count in pairs] == sorted((count for _, count in pairs), reverse=True)
            numbers += [number for number, _ in pairs]
        assert sorted(numbers) == list(range(len(book.values)))


def test_a_tile_has_the_colours_of_its_codeword() -> None:
    graph = nets.residual()
    book = graph.codebook("book_3x3")
    for tile in panels(drawn(graph))["book_3x3"]:
        match = re.match(r"codeword (\d+)", tile.findtext(f"{SVG}title") or "")
        assert match is not None
        (values,) = [book.values[int(match.group(1))]]
        painted = Counter({path.attrib["fill"]: path.attrib["d"].count("M") for path in tile.iter(f"{SVG}path")})
        assert sum(painted.values()) == values.size
        assert set(painted) == {colour(value) for value in values.reshape(-1).tolist()}


def test_nothing_stands_outside_the_picture() -> None:
    for graph in (nets.residual(), additive()):
        root = drawn(graph)
        width, height = int(root.attrib["width"]), int(root.attrib["height"])
        assert width == WIDTH == 900
        tops = []
        for tiles in panels(root).values():
            for tile in tiles:
                x, y = (int(number) for number in re.findall(r"\d+", tile.attrib["transform"]))
                frame = tile.find(f"{SVG}rect")
                assert frame is not None
                assert x >= LEFT
                assert x + int(frame.attrib["width"]) - 2 <= WIDTH - LEFT
                tops.append(y + int(frame.attrib["height"]))
        tops += [int(text.attrib["y"]) for text in root.iter(f"{SVG}text")]
        assert max(tops) < height


def test_the_same_network_gives_the_same_bytes() -> None:
    assert picture(nets.residual()) == picture(nets.residual())


def test_each_layer_is_told_with_its_entropy() -> None:
    graph = nets.residual()
    found = words(drawn(graph))
    for node in graph.nodes:
        if isinstance(node, IntConv2d) and isinstance(node.weights, KqWeights):
            symbols = node.weights.codes.reshape(-1).astype(np.int64) * 2 + node.weights.negative.reshape(-1)
            assert f"{node.path}\n{symbols.size} kernels, {len(np.unique(node.weights.codes))} codewords\n" in found
            assert f"entropy {entropy_bits(symbols):.2f} of {node.weights.index_bits} bits" in found
    assert "24 codewords of 3x3, each also as its negative; 264 kernels, indices of 6 bits, entropy" in found
    assert "24 + " not in found
    assert "12 + 12 codewords of 3x3, summed in pairs" in words(drawn(additive()))


def test_entropy() -> None:
    assert entropy_bits(np.zeros(9, np.int64)) == 0
    assert entropy_bits(np.arange(16)) == pytest.approx(4)
    assert entropy_bits(np.array([0, 0, 0, 1])) == pytest.approx(0.8113, abs=1e-4)


def test_colours_are_even_around_nothing() -> None:
    assert (colour(-31), colour(0), colour(31)) == ("#2166ac", "#f7f7f7", "#b2182b")
    assert len({colour(value) for value in range(-31, 32)}) == 63


def test_names_from_a_file_cannot_break_the_picture() -> None:
    graph = nets.residual()
    path = 'a"b<script>&\x01'
    nodes = tuple(replace(node, path="", name=path) if node.name == "wide" else node for node in graph.nodes)
    root = drawn(replace(graph, name="x<y", nodes=nodes))
    assert 'a"b<script>&?' in words(root)
    assert "x<y: 2 codebooks" in words(root)
    assert list(root.iter(f"{SVG}script")) == []


def test_a_network_without_codebooks_is_refused() -> None:
    with pytest.raises(InputError, match="single has no codebook to draw"):
        picture(nets.single())


@pytest.mark.parametrize("codewords", [1, 5, 32, 256, 750, 2048, 4096])
@pytest.mark.parametrize("kernel", [(3, 3), (1, 5), (7, 7)])
def test_tiles_fit_side_by_side(kernel: tuple[int, int], codewords: int) -> None:
    plan = grid(kernel, codewords, 1)
    assert plan.cell >= 3
    assert plan.pitch_x > plan.tile_width + 2
    assert plan.pitch_y > plan.tile_height + 2 + plan.bar_height
    assert (plan.columns - 1) * plan.pitch_x + plan.tile_width <= WIDTH - 2 * LEFT
    assert -(-codewords // plan.columns) * plan.pitch_y >= plan.height
