"""Equal tables are stored once: in the C, and in every count of bytes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import nets
import numpy as np
from conftest import require_tool

from kqgen import sizes
from kqgen.board import load_board
from kqgen.emit import Meta, emit
from kqgen.hostlib import build_library
from kqgen.intgraph import IntConv2d, IntGraph
from kqgen.plan import Plan
from kqgen.report import build
from kqgen.shared_tables import shared_tables

BOARD = load_board("nucleo-g0b1re")


def twins() -> IntGraph:
    """Two layers with the same weights and shifts and other biases, and one of its own."""
    net = nets.Builder("twins", seed=2)
    net.input("x", 6, 6, 4)
    net.conv("a", 4, (3, 3), padding=(1, 1, 1, 1))
    net.conv("b", 4, (3, 3), padding=(1, 1, 1, 1))
    net.conv("c", 3, (1, 1))
    graph = net.graph()
    first, second, last = graph.nodes
    assert isinstance(first, IntConv2d)
    assert isinstance(second, IntConv2d)
    second = replace(second, weights=first.weights, requant=replace(second.requant, shift=first.requant.shift))
    return replace(graph, nodes=(first, second, last))


def c_of(plan: Plan) -> str:
    tree = emit(plan, BOARD, nets.make_golden(plan.graph, nets.random_inputs(plan.graph, 1)), Meta("kqgen", ""))
    return tree.files["twins_tables.c"] + tree.files["twins.c"]


def test_equal_tables_are_stored_once() -> None:
    graph = twins()
    found = shared_tables(graph)
    assert [(each.layer, each.field, each.owner, each.size_bytes) for each in found] == [("b", "weights", "a", 144), ("b", "shift", "a", 4)]
    whole = sum(sizes.layer_sizes(node).total for node in graph.nodes)
    assert sizes.tables_bytes(graph) == whole - 148
    assert sizes.layer_bytes(graph)["b"] == sizes.layer_sizes(graph.nodes[1]).total - 148
    assert sizes.int8_tables_bytes(graph) == sizes.tables_bytes(graph)
    report = build(nets.make_plan(graph), BOARD, None)
    assert sum(layer.flash_bytes for layer in report.layers) == report.flash_bytes.tables == whole - 148


def test_the_c_names_the_table_that_is_there() -> None:
    text = c_of(nets.make_plan(twins()))
    assert text.count("twins_b_weights") == text.count("twins_b_shift") == 1, "in the comment that says where it is"
    assert "twins_b_bias[]" in text
    assert text.count("twins_a_weights") >= 4


def test_the_c_computes_the_same_with_them(tmp_path: Path) -> None:
    require_tool("cc")
    graph = twins()
    inputs = nets.random_inputs(graph, 5)
    tree = emit(nets.make_plan(graph), load_board("host"), nets.make_golden(graph, inputs), Meta("kqgen", ""))
    found = build_library(nets.write(tree, tmp_path), graph).run(inputs)
    assert np.array_equal(found[0], nets.run_reference(graph, inputs)["c"])
