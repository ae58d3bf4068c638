"""Whole networks of additive codebooks and narrow indices: generated C on this computer and on emulated cores, byte by byte."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Literal

import nets
import numpy as np
import pytest
from conftest import require_tool
from kernelcases import extreme_pairs

from kqgen import graph_check
from kqgen.board import load_board
from kqgen.emit import Meta, emit
from kqgen.emulate import run_unicorn
from kqgen.firmware import model_api
from kqgen.hostlib import build_library
from kqgen.image import build_image
from kqgen.intgraph import Int8, IntCodebook, IntConv2d, IntGraph, KqWeights, frozen
from kqgen.plan import Form
from kqgen.targets import join_inputs
from kqgen.toolchain import find_toolchain


def at_the_bound() -> IntGraph:
    """One layer whose every kernel sums to exactly 255, by codewords of 31 and -31 that alone may pass that; signs alternate."""
    net = nets.Builder("bound", seed=6)
    net.input("x", 5, 6, 24, zero_point=0)
    net.codebook("book", 4, (3, 3), True, additive=True)
    net.conv("layer", 4, (3, 3), padding=(1, 1, 1, 1), codebook="book")
    graph = net.graph()
    conv = graph.nodes[0]
    assert isinstance(conv, IntConv2d)
    extreme = extreme_pairs(conv.in_shape[2], False)
    negative = frozen(np.arange(extreme.codes.size).reshape(extreme.codes.shape) % 3 == 0, np.bool_)
    weights = KqWeights("book", extreme.index_bits, frozen(extreme.stored_codes, np.int16), negative)
    book = IntCodebook("book", frozen(extreme.codebook, np.int8), True, additive=True)
    return replace(graph, nodes=(replace(conv, weights=weights),), codebooks=(book,))


def widest() -> IntGraph:
    """Indices of 12 bits, six for each of two codewords, and of 1 bit, which is the sign of the only pair."""
    net = nets.Builder("widest", seed=7)
    net.input("x", 6, 7, 3)
    net.codebook("many", 64, (3, 3), False, additive=True)
    net.codebook("one", 1, (3, 3), True, additive=True)
    net.conv("twelve", 16, (3, 3), padding=(1, 1, 1, 1), codebook="many")
    net.conv("eight", 8, (3, 3), padding=(1, 1, 1, 1), codebook="many", index_bits=8)
    net.conv("single", 5, (3, 3), codebook="one")
    return net.graph()


GRAPHS = (nets.summed, at_the_bound, widest)


def name_of(value: object) -> str | None:
    """What pytest calls a network."""
    return getattr(value, "__name__", None)


def inputs_of(graph: IntGraph, count: int) -> tuple[Int8, ...]:
    """Random images; of the first three one is the lowest everywhere, one the highest, one of ends alone."""
    arrays = nets.random_inputs(graph, count)
    for array in arrays:
        array[0], array[1], array[2] = -128, 127, np.where(array[2] < 0, -128, 127)
    return arrays


def write(graph: IntGraph, folder: Path, form: Form, board: str) -> Path:
    """The generated sources, plain indices in the given form."""
    forms: dict[str, Form] = {
        node.name: form
        for node in graph.nodes
        if isinstance(node, IntConv2d) and isinstance(node.weights, KqWeights) and not graph.codebook(node.weights.codebook).additive
    }
    golden = nets.make_golden(graph, nets.random_inputs(graph, 1))
    return nets.write(emit(nets.make_plan(graph, forms), load_board(board), golden, Meta("kqgen", "")), folder)


@pytest.mark.parametrize("make", GRAPHS, ids=name_of)
def test_the_networks_are_sound_and_use_what_they_are_for(make: Callable[[], IntGraph]) -> None:
    graph = make()
    graph_check.check(graph)
    convs = [node for node in graph.nodes if isinstance(node, IntConv2d) and isinstance(node.weights, KqWeights)]
    weights = [graph.weights(node).astype(int) for node in convs]
    assert max(int(np.abs(each).sum((1, 2)).max()) for each in weights) <= 255
    if make is at_the_bound:
        assert {int(value) for value in np.abs(weights[0]).sum((1, 2)).ravel()} == {255}
        assert (weights[0].min(), weights[0].max()) == (-62, 62)
    else:
        assert max(int(np.abs(each).max()) for each in weights) > 31


@pytest.mark.parametrize(
    ("make", "form"), [(nets.summed, "decode"), (nets.summed, "reuse"), (at_the_bound, "decode"), (widest, "decode")], ids=name_of
)
def test_every_layer_on_this_computer_equals_the_reference(make: Callable[[], IntGraph], form: Form, tmp_path: Path) -> None:
    require_tool("cc")
    graph = make()
    inputs = inputs_of(graph, 60)
    expected = nets.run_reference(graph, inputs)
    outputs, layers = build_library(write(graph, tmp_path, form, "host"), graph, tap=True).run_tapped(inputs)
    for node, found in zip(graph.nodes, layers, strict=True):
        assert np.array_equal(found, expected[node.name]), node.name
        assert found.min() < found.max()
    assert np.array_equal(outputs[0], expected[graph.outputs[0]])


@pytest.mark.parametrize(
    ("make", "board", "compiler", "form"),
    [
        (nets.summed, "nucleo-g0b1re", "gcc", "decode"),
        (nets.summed, "nucleo-g0b1re", "zig", "reuse"),
        (at_the_bound, "nucleo-g0b1re", "gcc", "decode"),
        (at_the_bound, "nucleo-f446re", "gcc", "decode"),
        (widest, "nucleo-g0b1re", "gcc", "decode"),
    ],
    ids=name_of,
)
def test_every_layer_on_an_emulated_core_equals_the_reference(
    make: Callable[[], IntGraph], board: str, compiler: Literal["gcc", "zig"], form: Form, tmp_path: Path
) -> None:
    require_tool("unicorn", compiler)
    graph = make()
    inputs = inputs_of(graph, 4)
    expected = nets.run_reference(graph, inputs)
    sources = write(graph, tmp_path / "sources", form, board)
    image = build_image(sources, model_api(graph), load_board(board), find_toolchain(compiler), tmp_path / "image", tap=True)
    run = run_unicorn(image, join_inputs(inputs))
    for number, taps in enumerate(run.taps):
        for node, tap in zip(graph.nodes, taps, strict=True):
            assert tap.data == expected[node.name][number].tobytes(), f"{node.name} of input {number}"
    assert list(run.outputs) == [image_bytes.tobytes() for image_bytes in expected[graph.outputs[0]]]


def test_the_sum_is_linked_only_where_a_network_uses_it(tmp_path: Path) -> None:
    require_tool("gcc")
    board, found = load_board("nucleo-g0b1re"), {}
    for make in (nets.residual, widest):
        graph = make()
        sources = write(graph, tmp_path / graph.name, "decode", "nucleo-g0b1re")
        image = build_image(sources, model_api(graph), board, find_toolchain("gcc"), tmp_path / f"{graph.name}_image")
        names = {symbol.name for symbol in image.elf.symbols if symbol.kind == "function"}
        found[graph.name] = [name in names for name in ("kq_conv2d_decode_s8", "kq_conv2d_decode_additive_s8")]
    assert found == {"residual": [True, False], "widest": [False, True]}
