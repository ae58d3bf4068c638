"""Predicted flash bytes against hand sums and against the tables that are emitted."""

from __future__ import annotations

from dataclasses import replace

import nets
import numpy as np
import pytest

from kqgen import sizes
from kqgen.board import load_board
from kqgen.emit import Meta
from kqgen.errors import InternalError
from kqgen.intgraph import IntConv2d, IntGraph, IntNode, frozen
from kqgen.shared_tables import needs_pad_table
from kqgen.views import model_view


def node(graph: IntGraph, name: str) -> IntNode:
    return next(node for node in graph.nodes if node.name == name)


def test_layer_sizes_by_hand() -> None:
    graph = nets.residual()
    # 8 x 3 x 3 x 3 weights of 8 bits; 8 channels; 3 input channels that pad differently.
    assert sizes.layer_sizes(node(graph, "stem")) == sizes.LayerSizes(216, 32, 16, 8, 3, 52)
    # 17 x 8 kernels of 6 bits = 816 bits; one pad value for all.
    assert sizes.layer_sizes(node(graph, "b2_conv")) == sizes.LayerSizes(102, 68, 34, 17, 0, 60)
    # 9 x 7 weights of 4 bits = 31.5 bytes.
    assert sizes.layer_sizes(node(graph, "four")).weights == 32
    assert sizes.layer_sizes(node(graph, "b1_add")) == sizes.LayerSizes(0, 0, 0, 0, 0, 20)
    assert sizes.layer_sizes(node(graph, "fc")).total == 360 + 10 * 7 + 52


@pytest.mark.parametrize("graph", [nets.residual(), nets.two_ports(), nets.single()], ids=lambda graph: graph.name)
def test_prediction_is_the_sum_of_what_is_emitted(graph: IntGraph) -> None:
    plan = nets.make_plan(graph)
    golden = nets.make_golden(graph, nets.random_inputs(graph, 1))
    view = model_view(plan, load_board("host"), golden, Meta("kqgen", ""), ())
    tables = sum(table.size_bytes for group in view.groups for table in group.tables)
    structs = sum(sizes.STRUCT_BYTES[step.c_type] for step in view.steps)
    assert sizes.tables_bytes(graph) == tables + structs
    assert max(table.size_bytes for group in view.groups for table in group.tables) > 0


def test_pad_table_only_where_padding_reads_different_values() -> None:
    conv = node(nets.residual(), "stem")
    assert isinstance(conv, IntConv2d)
    assert needs_pad_table(conv)
    assert not needs_pad_table(replace(conv, padding=(0, 0, 0, 0)))
    assert not needs_pad_table(replace(conv, pad_values=frozen(np.full(3, 7), np.int8)))


def test_unknown_node_is_refused() -> None:
    known = node(nets.residual(), "stem")
    stranger = IntNode("odd", "", (), (), known.output, 0, 0)
    with pytest.raises(InternalError, match="odd"):
        sizes.layer_sizes(stranger)
