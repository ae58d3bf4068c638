"""Dead channels leave the float graph before it is compressed: the function stays, the weights that remain are the same."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from kqgen import floatexec, oracle
from kqgen.calibrate import Ranges, calibrate
from kqgen.ir import Add, AvgPool, Concat, Conv2d, Float32, Graph, Input, MaxPool, Mul, Node, SlicePad, Unary, Upsample, frozen_array
from kqgen.prune import prune, survey
from kqgen.prune_float import Rest, narrowed, rests, rounded
from kqgen.samples import Samples

RNG = np.random.default_rng(0)
SIDE = 6
SAME = (1, 1, 1, 1)


def weight(*shape: int) -> Float32:
    return frozen_array(RNG.normal(0, 1 / math.sqrt(np.prod(shape[1:])), shape))


def bias(count: int, dead_channels: tuple[int, ...] = ()) -> Float32:
    values = RNG.normal(0, 0.1, count)
    values[list(dead_channels)] = -50
    return frozen_array(values)


def network() -> Graph:
    """Channels 1 and 4 of the stem and the depthwise layer behind it are 0, and 2 of the side branch; 4 has a live one to be added to."""
    depthwise = Conv2d("wide", "", ("stem",), (6, SIDE, SIDE), weight(6, 1, 3, 3), bias(6, (1, 4)), padding=SAME, lo=0.0, groups=6)
    nodes: tuple[Node, ...] = (
        Input("x", "", (), (3, SIDE, SIDE)),
        Conv2d("stem", "", ("x",), (6, SIDE, SIDE), weight(6, 3, 3, 3), bias(6, (1, 4)), padding=SAME, lo=0.0),
        depthwise,
        Conv2d("side", "", ("wide",), (4, SIDE, SIDE), frozen_array(np.abs(weight(4, 6, 1, 1))), bias(4, (2,)), lo=0.0),
        Unary("gate", "", ("side",), (4, SIDE, SIDE), "prelu", slope=frozen_array([0.1, 0.2, 0.3, 0.4])),
        Mul("product", "", ("side", "gate"), (4, SIDE, SIDE)),
        Concat("joined", "", ("product", "wide"), (10, SIDE, SIDE)),
        SlicePad("cut", "", ("joined",), (10, SIDE, SIDE), c_before=2, c_after=-2),
        MaxPool("pooled", "", ("cut",), (10, 3, 3), (2, 2), (2, 2)),
        Upsample("large", "", ("pooled",), (10, SIDE, SIDE), (2, 2)),
        Conv2d("back", "", ("large",), (6, SIDE, SIDE), weight(6, 10, 3, 3), bias(6, (1,)), padding=SAME),
        Add("sum", "", ("back", "wide"), (6, SIDE, SIDE), lo=0.0),
        AvgPool("mean", "", ("sum",), (6, 2, 2), (3, 3), (3, 3)),
        Conv2d("last", "", ("mean",), (3, 1, 1), weight(3, 6, 2, 2), bias(3), dense=True),
    )
    return Graph("net", nodes, ("last",))


def dead(graph: Graph, ranges: Ranges) -> dict[str, Rest]:
    integers = rounded(graph, ranges)
    return rests(integers, survey(integers))


@pytest.fixture(scope="module")
def net() -> tuple[Graph, Samples, Ranges]:
    graph = network()
    samples = Samples(("x",), (frozen_array(RNG.normal(0, 1, (40, 3, SIDE, SIDE))),))
    return graph, samples, calibrate(graph, samples)


def outputs(graph: Graph, samples: Samples) -> torch.Tensor:
    return floatexec.run(graph, {"x": torch.tensor(samples.arrays[0])})["last"]


def test_the_function_stays(net: tuple[Graph, Samples, Ranges]) -> None:
    graph, samples, ranges = net
    rest = dead(graph, ranges)
    found = narrowed(graph, rest)
    assert np.flatnonzero(~rest["stem"].mask).tolist() == np.flatnonzero(~rest["wide"].mask).tolist() == [1]
    assert np.flatnonzero(~rest["side"].mask).tolist() == [2]
    shapes = {node.name: node.shape[0] for node in found}
    assert shapes == {"x": 3, "stem": 5, "wide": 5, "side": 3, "gate": 3, "product": 3, "joined": 8, "cut": 6, "pooled": 6, "large": 6,
                      "back": 5, "sum": 5, "mean": 5, "last": 3}  # fmt: skip
    torch.testing.assert_close(outputs(found, samples), outputs(graph, samples), atol=1e-5, rtol=1e-5)
    assert {node.name: node.shape for node in narrowed(graph, {})} == {node.name: node.shape for node in graph}


def test_a_constant_goes_into_the_next_bias(net: tuple[Graph, Samples, Ranges]) -> None:
    """A channel that its clamp holds at another number than zero adds to biases where no padding tells it apart."""
    _, samples, _ = net
    stem = Conv2d("stem", "", ("x",), (5, SIDE, SIDE), weight(5, 3, 1, 1), bias(5, (3,)), lo=-0.5, hi=2.0)
    last = Conv2d("last", "", ("stem",), (3, 4, 4), weight(3, 5, 3, 3), bias(3))
    graph = Graph("net", (Input("x", "", (), (3, SIDE, SIDE)), stem, last), ("last",))
    ranges = calibrate(graph, samples)
    rest = dead(graph, ranges)
    assert rest["stem"].values[3] == pytest.approx(-0.5, abs=ranges["stem"].scale)
    step = ranges["stem"].scale * float(np.abs(last.weight[:, 3]).sum(axis=(1, 2)).max())
    torch.testing.assert_close(outputs(narrowed(graph, rest), samples), outputs(graph, samples), atol=step, rtol=0)


def test_the_int8_network_agrees(net: tuple[Graph, Samples, Ranges]) -> None:
    """What is removed from the float graph is what leaves its integers, and these stay equal in every bit."""
    graph, samples, ranges = net
    integers = rounded(graph, ranges)
    pruned = prune(integers)
    after, kept = pruned.graph, pruned.kept
    assert rests(integers, survey(integers)).keys() == dead(graph, ranges).keys()
    assert {name for name, each in kept.items() if not each.mask.all()} == dead(graph, ranges).keys()
    codes = {"x": oracle.input_codes(integers.inputs[0], samples.arrays[0])}
    assert np.array_equal(oracle.run(integers, codes)["last"], oracle.run(after, codes)["last"])
    found = narrowed(graph, dead(graph, ranges))
    assert {node.name: node.output.c for node in after.nodes} == {node.name: node.shape[0] for node in found if node.name != "x"}
