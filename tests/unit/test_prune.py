"""Dead structure: what is removed, and that every output stays as it was in every bit."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import prunenets
import pytest

from kqgen import oracle
from kqgen.graph_check import check
from kqgen.intgraph import Int8, IntConv2d, IntGraph, IntNode, UniformWeights
from kqgen.prune import Removed, merged, prune, removed
from kqgen.prune_ranges import code_spans

SEEDS = range(12)


def inputs(graph: IntGraph, count: int = 6) -> dict[str, Int8]:
    """Codes drawn alike, and maps of the lowest and the highest code."""
    rng = np.random.default_rng(3)
    made = {each.name: rng.integers(-128, 128, (count, each.h, each.w, each.c), dtype=np.int8) for each in graph.inputs}
    for values in made.values():
        values[0], values[1] = -128, 127
    return made


def assert_same(before: IntGraph, after: IntGraph) -> None:
    given = inputs(before)
    wanted, found = oracle.run(before, given), oracle.run(after, given)
    for name in before.outputs:
        assert np.array_equal(wanted[name], found[name]), name
        assert after.tensor(name) == before.tensor(name)


@pytest.mark.parametrize("make", [prunenets.chain, prunenets.branches], ids=["chain", "branches"])
@pytest.mark.parametrize("seed", SEEDS)
def test_outputs_stay_the_same_in_every_bit(make: object, seed: int) -> None:
    assert callable(make)
    graph = make(seed)
    found = prune(graph)
    after, kept = found.graph, found.kept
    check(graph)
    check(after)
    assert_same(graph, after)
    gone = removed(graph, after)
    assert gone.channels > 0
    assert gone.weights > 0
    assert gone.channels >= sum(int((~each.mask).sum()) for each in kept.values())
    assert removed(after, prune(after).graph) == Removed(0, 0, 0)


@pytest.mark.parametrize("make", [prunenets.chain, prunenets.branches], ids=["chain", "branches"])
@pytest.mark.parametrize("seed", SEEDS)
def test_no_code_leaves_its_span(make: object, seed: int) -> None:
    assert callable(make)
    graph = make(seed)
    spans = code_spans(graph)
    for name, codes in oracle.run(graph, inputs(graph)).items():
        assert np.all(codes >= spans[name].lo), name
        assert np.all(codes <= spans[name].hi), name
        constant = codes.reshape(-1, codes.shape[3])[:, spans[name].constant]
        assert np.all(constant == constant[:1]), name


def test_a_constant_channel_goes_into_the_next_bias() -> None:
    """Behind a ReLU that it never passes a channel is the zero point; without padding, so is every other constant."""
    net = prunenets.Drawn(0)
    net.conv("x", 8, dead=0.0)
    net.conv("n0", 4, (1, 1), dead=0.0)
    stem, last = net.nodes
    assert isinstance(stem, IntConv2d)
    bias = stem.requant.bias.copy()
    bias[2], bias[5] = 200000, -200000
    net.nodes[0] = replace(stem, requant=replace(stem.requant, bias=bias))
    graph = net.graph(last.name)
    found = prune(graph)
    after, kept = found.graph, found.kept
    assert np.flatnonzero(~kept["n0"].mask).tolist() == [2, 5]
    assert kept["n0"].codes[[2, 5]].tolist() == [127, stem.lo]
    assert removed(graph, after) == Removed(layers=0, channels=2, weights=2 * 9 * 5 + 2 * 4)
    assert_same(graph, after)


def test_a_constant_that_padding_tells_apart_stays() -> None:
    net = prunenets.Drawn(0)
    net.conv("x", 8, dead=0.0)
    net.conv("n0", 4, dead=0.0)
    stem, last = net.nodes
    assert isinstance(stem, IntConv2d)
    bias = stem.requant.bias.copy()
    bias[2] = 200000
    net.nodes[0] = replace(stem, lo=-128, requant=replace(stem.requant, bias=bias))
    assert prune(net.graph(last.name)).kept["n0"].mask.all()
    pads = np.array([127 if channel == 2 else 0 for channel in range(8)], np.int8)
    assert isinstance(last, IntConv2d)
    net.nodes[1] = replace(last, pad_values=pads)
    graph = net.graph(last.name)
    assert np.flatnonzero(~prune(graph).kept["n0"].mask).tolist() == [2]
    assert_same(graph, prune(graph).graph)


def test_outputs_keep_their_shape_however_dead() -> None:
    net = prunenets.Drawn(1)
    x = net.conv(net.conv("x", 8), 4)
    last = net.nodes[1]
    assert isinstance(last, IntConv2d)
    assert isinstance(last.weights, UniformWeights)
    net.nodes[1] = replace(last, weights=replace(last.weights, values=np.zeros_like(last.weights.values)))
    graph = net.graph(x)
    found = prune(graph)
    after, kept = found.graph, found.kept
    assert kept[x].mask.all()
    assert kept["n0"].mask.sum() == 1
    assert_same(graph, after)


def test_layers_that_nobody_reads_vanish() -> None:
    net = prunenets.Drawn(2)
    x = net.conv("x", 6, dead=0.0)
    net.lookup(net.add(net.conv(x, 6), x), 6)
    last = net.conv(x, 3, dead=0.0)
    found = prune(net.graph(last))
    after, kept = found.graph, found.kept
    assert [node.name for node in after.nodes] == [x, last]
    assert kept[x].mask.all()
    assert_same(net.graph(last), after)


def names(nodes: tuple[IntNode, ...]) -> list[str]:
    return [node.name for node in nodes]


def test_what_is_computed_twice_is_computed_once() -> None:
    net = prunenets.Drawn(3)
    first = net.conv("x", 6, dead=0.0)
    pooled = net.pool(first, "max")
    twin = net.twin(first, "x")
    again = net.twin(pooled, twin)
    total = net.add(pooled, again)
    left, twins = merged(net.graph(total))
    assert names(left.nodes) == [first, pooled, total]
    assert twins == {twin: first, again: pooled}
    assert_same(net.graph(total), left)
    for outputs in [(total, again), (again, total), (twin, total, again)]:  # an output keeps its name
        graph = net.graph(*outputs)
        left, twins = merged(graph)
        assert set(twins) | set(names(left.nodes)) == set(names(graph.nodes))
        assert set(outputs) <= set(names(left.nodes))
        assert len(left.nodes) == 3
        assert_same(graph, left)
    both = net.graph(pooled, again)
    assert names(merged(both)[0].nodes) == [first, pooled, again, total]
