"""Additions done by the convolution before them: which ones, and that no bit changes."""

from __future__ import annotations

from dataclasses import replace

import nets
import numpy as np
import pytest

from kqgen import memory, oracle, plan_check
from kqgen.errors import InternalError
from kqgen.fuse import fuse, split
from kqgen.intgraph import Int8, IntAdd, IntConv2d, IntGraph
from kqgen.plan import Place, Plan


def block(swapped: bool = False) -> nets.Builder:
    """An input layer, a path of two convolutions and a shortcut, added up; then one more layer."""
    net = nets.Builder("block", seed=4)
    net.input("x", 9, 8, 3)
    net.conv("stem", 6, (3, 3), padding=(1, 1, 1, 1))
    net.conv("first", 6, (3, 3), padding=(1, 1, 1, 1), lo=-20)
    net.conv("second", 6, (3, 3), padding=(1, 1, 1, 1), lo=-90)
    net.conv("shortcut", 6, (1, 1), source="stem")
    net.add("total", *(("shortcut", "second") if swapped else ("second", "shortcut")), lo=-30)
    net.conv("last", 4, (3, 3))
    return net


def outputs(graph: IntGraph) -> dict[str, Int8]:
    inputs = nets.random_inputs(graph, 3)
    return oracle.run(graph, {tensor.name: array for tensor, array in zip(graph.inputs, inputs, strict=True)})


@pytest.mark.parametrize("swapped", [False, True])
def test_the_heavier_convolution_takes_the_addition_and_no_bit_changes(swapped: bool) -> None:
    graph = block(swapped).graph()
    fused = fuse(graph)
    assert [node.name for node in fused.nodes] == ["stem", "first", "shortcut", "total", "last"]
    total = fused.nodes[3]
    assert isinstance(total, IntConv2d)
    assert total.inputs == ("first", "shortcut")
    before, after = outputs(graph), outputs(fused)
    for name in after:
        np.testing.assert_array_equal(before[name], after[name], err_msg=name)


@pytest.mark.parametrize("swapped", [False, True])
def test_splitting_gives_the_layers_back(swapped: bool) -> None:
    graph = block(swapped).graph()
    parted = split(fuse(graph))
    assert sorted(node.name for node in parted.nodes) == sorted(node.name for node in graph.nodes)
    before, after = outputs(graph), outputs(parted)
    for name in before:
        np.testing.assert_array_equal(before[name], after[name], err_msg=name)
    add = next(node for node in graph.nodes if isinstance(node, IntAdd))
    assert next(node for node in parted.nodes if isinstance(node, IntAdd)).inputs == add.inputs


def test_fusing_twice_is_fusing_once() -> None:
    fused = fuse(block().graph())
    assert [node.name for node in fuse(fused).nodes] == [node.name for node in fused.nodes]


def kept(net: nets.Builder, outputs: list[str] | None = None) -> bool:
    return any(isinstance(node, IntAdd) for node in fuse(net.graph(outputs)).nodes)


def test_additions_that_cannot_be_fused_stay() -> None:
    net = block()
    net.nodes = net.nodes[:5]
    assert kept(net, ["total"]), "its result is the caller's"
    assert kept(block(), ["last", "second", "shortcut"]), "both operands are outputs"
    net = nets.Builder("own", seed=4)
    net.input("x", 6, 6, 4)
    net.conv("stem", 4, (3, 3), padding=(1, 1, 1, 1))
    net.conv("second", 4, (3, 3), padding=(1, 1, 1, 1))
    net.add("total", "second", "stem")
    net.conv("last", 2, (1, 1))
    assert kept(net), "the convolution would overwrite what it reads"
    net = nets.Builder("given", seed=4)
    net.input("x", 6, 6, 4)
    net.conv("second", 4, (3, 3), padding=(1, 1, 1, 1))
    net.add("total", "second", "x")
    net.conv("last", 2, (1, 1))
    assert kept(net), "the other operand is the caller's"
    net = block()
    net.conv("again", 4, (1, 1), source="shortcut")
    net.conv("more", 4, (1, 1), source="second")
    assert kept(net, ["last", "again", "more"]), "both operands are read again"


def test_the_fused_output_lies_over_the_operand_and_the_check_sees_it_elsewhere() -> None:
    plan = nets.make_plan(fuse(block().graph()))
    assert plan.place("total") == plan.place("shortcut")
    moved = tuple(
        replace(tensor, place=Place("arena", offset=plan.arena_bytes)) if tensor.name == "total" else tensor for tensor in plan.tensors
    )
    wrong = Plan(plan.graph, plan.steps, moved, plan.scratch_offsets, plan.arena_bytes + 1024)
    with pytest.raises(InternalError, match="does not lie where its output does"):
        plan_check.check(wrong)


def most_maps(graph: IntGraph) -> int:
    """The largest number of maps, counted by their places, that a step has in the arena."""
    plan = nets.make_plan(graph)
    held = (
        {tensor.place.offset for tensor in plan.tensors if tensor.first <= step <= tensor.last and tensor.place.kind == "arena"}
        for step in range(len(plan.steps))
    )
    return max(map(len, held))


def test_a_map_less_is_kept_where_the_shortcut_has_no_layer() -> None:
    net = nets.Builder("identity", seed=4)
    net.input("x", 9, 8, 3)
    net.conv("stem", 6, (3, 3), padding=(1, 1, 1, 1))
    net.conv("first", 6, (3, 3), padding=(1, 1, 1, 1))
    net.conv("second", 6, (3, 3), padding=(1, 1, 1, 1))
    net.add("total", "second", "stem")
    net.conv("last", 4, (3, 3))
    assert (most_maps(net.graph()), most_maps(fuse(net.graph()))) == (3, 2)


def test_with_a_layer_in_the_shortcut_the_heavier_convolution_runs_beside_a_map_less() -> None:
    """While either path is computed the block's input, or the other path's result, must be kept: three maps in all."""
    graph = block().graph()
    plain, fused = nets.make_plan(graph), nets.make_plan(fuse(graph))
    assert (most_maps(graph), most_maps(fused.graph)) == (3, 3)
    alive = {plan: dict(zip((step.node for step in plan.steps), memory.alive_bytes(plan.graph), strict=True)) for plan in (plain, fused)}
    assert alive[fused]["total"] + graph.tensor("stem").size_bytes == alive[plain]["second"]
