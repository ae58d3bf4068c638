"""Shortcuts run as late as they can where that needs less memory, and no bit changes."""

from __future__ import annotations

import nets
import numpy as np

from kqgen import memory, oracle
from kqgen.fuse import fuse
from kqgen.intgraph import IntGraph
from kqgen.reorder import reorder


def early_shortcut() -> IntGraph:
    """A block that narrows, its shortcut first."""
    net = nets.Builder("block", seed=4)
    net.input("x", 12, 12, 3)
    net.conv("stem", 8, (3, 3), padding=(1, 1, 1, 1))
    net.conv("shortcut", 8, (1, 1), source="stem")
    net.conv("first", 8, (3, 3), padding=(1, 1, 1, 1), source="stem")
    net.conv("second", 8, (3, 3), padding=(1, 1, 1, 1))
    net.add("total", "second", "shortcut")
    net.conv("last", 4, (3, 3))
    return net.graph()


def test_the_shortcut_moves_to_where_its_result_is_added() -> None:
    graph = fuse(early_shortcut())
    moved = reorder(graph)
    assert [node.name for node in graph.nodes] == ["stem", "shortcut", "first", "total", "last"]
    assert [node.name for node in moved.nodes] == ["stem", "first", "shortcut", "total", "last"]
    by_name = [dict(zip((node.name for node in each.nodes), memory.alive_bytes(each), strict=True)) for each in (graph, moved)]
    assert by_name[1]["first"] < by_name[0]["first"]
    assert max(memory.alive_bytes(moved)) <= max(memory.alive_bytes(graph))
    inputs = {"x": nets.random_inputs(graph, 2)[0]}
    before, after = oracle.run(graph, inputs), oracle.run(moved, inputs)
    for name in before:
        np.testing.assert_array_equal(before[name], after[name], err_msg=name)


def test_an_order_that_needs_least_stays() -> None:
    for graph in (nets.single(), nets.summed(), reorder(fuse(early_shortcut()))):
        assert reorder(graph) is graph or [node.name for node in reorder(graph).nodes] == [node.name for node in graph.nodes]
