"""Lowering of tables, products, assemblies, slices, softmax, argmax, depthwise layers and runs: integers mean what the reals meant."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from opmodules import Gated, Joined, Ports
from torch import nn

from kqgen import graph_check, ir, lower_maps, oracle
from kqgen.calibrate import Ranges, TensorRange, calibrate
from kqgen.errors import InternalError, UnsupportedError
from kqgen.frontend import import_module
from kqgen.intgraph import (
    IntAdd,
    IntAssemble,
    IntClamp,
    IntConv2d,
    IntGraph,
    IntLookup,
    IntMaxPool,
    IntMul,
    IntSlicePad,
    IntSoftmax,
    KqWeights,
)
from kqgen.lower import lower
from kqgen.options import Codebook, Compression
from kqgen.post_training import Quantised, quantise
from kqgen.samples import read_samples
from kqgen.simplify import simplify

INT8, KQ = Compression("int8"), Compression("kq", Codebook("layer", 64, False))


def lowered(module: type[nn.Module], shapes: list[tuple[int, ...]], compression: Compression) -> tuple[IntGraph, list[float]]:
    """The integer graph, and the signal to noise of each output in dB."""
    torch.manual_seed(0)
    net, given = module().eval(), tuple(torch.randn(32, *shape) for shape in shapes)
    graph = simplify(import_module(net, tuple(each[:1] for each in given), "net"))
    samples = read_samples([given], graph)
    ranges = calibrate(graph, samples)
    integers = lower(graph, ranges, quantise(graph, compression, samples, ranges), compression.weights)
    graph_check.check(integers)
    codes = {tensor.name: oracle.input_codes(tensor, array) for tensor, array in zip(integers.inputs, samples.arrays, strict=True)}
    tensors = oracle.run(integers, codes)
    with torch.no_grad():
        made = net(*given)
    decibels = []
    for name, wanted in zip(integers.outputs, made if isinstance(made, tuple) else (made,), strict=True):
        found = oracle.dequantise(integers.tensor(name), tensors[name]).transpose(0, 3, 1, 2).reshape(wanted.shape)
        real = wanted.double().numpy()
        decibels.append(10 * math.log10(np.square(real).sum() / max(np.square(real - found).sum(), 1e-9)))
    return integers, decibels


# Each layer's 8-bit rounding leaves 35 to 40 dB, and each network has about a dozen; the probabilities have steps of 1/256.
CASES = [
    pytest.param(Gated, [(3, 16, 16)], INT8, 30.0, id="gated int8"),
    pytest.param(Gated, [(3, 16, 16)], KQ, 30.0, id="gated kq"),
    pytest.param(Joined, [(3, 16, 12)], INT8, 35.0, id="joined int8"),
    pytest.param(Joined, [(3, 16, 12)], KQ, 15.0, id="joined kq"),
    pytest.param(Ports, [(2, 64), (2, 64)], INT8, 30.0, id="ports int8"),
    pytest.param(Ports, [(2, 64), (2, 64)], KQ, 25.0, id="ports kq"),
]


@pytest.mark.parametrize(("module", "shapes", "compression", "least"), CASES)
def test_networks_of_all_operators_are_close_to_float(
    module: type[nn.Module], shapes: list[tuple[int, ...]], compression: Compression, least: float
) -> None:
    graph, decibels = lowered(module, shapes, compression)
    assert min(decibels) > least
    if module is Gated:
        kinds = {type(node) for node in graph.nodes}
        assert {IntLookup, IntMul, IntSoftmax, IntAdd} <= kinds
        assert any(isinstance(node, IntLookup) and len(node.table) == 24 for node in graph.nodes)
        assert any(isinstance(node, IntAdd) and node.multiplier_b < 0 for node in graph.nodes)
        assert {node.name for node in graph.nodes if isinstance(node, IntConv2d) and node.depthwise} >= {"dw", "other"}


def test_a_1x1_layer_by_runs_of_input_channels() -> None:
    """A (1, g) kernel of stride g; with a codeword for every run it gives what the layer gives in float."""
    torch.manual_seed(1)
    net = nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.ReLU(), nn.Conv2d(8, 6, 1, stride=2), nn.Flatten(), nn.Linear(6 * 4 * 3, 5)).eval()
    images = torch.randn(40, 3, 17, 13)
    graph = simplify(import_module(net, (images[:1],), "net"))
    samples = read_samples(images, graph)
    ranges = calibrate(graph, samples)
    runs = Compression("kq", Codebook("layer", 256, False), runs=(("2", 4), ("4", 8)))
    integers = lower(graph, ranges, quantise(graph, runs, samples, ranges), "kq")
    graph_check.check(integers)
    layers = {node.path: node for node in integers.nodes if isinstance(node, IntConv2d)}
    point, dense = layers["2"], layers["4"]
    assert isinstance(point.weights, KqWeights)
    assert isinstance(dense.weights, KqWeights)
    assert (point.in_shape, point.kernel, point.stride) == ((8, 24, 2), (1, 4), (2, 8))
    assert (dense.in_shape, dense.kernel, dense.stride) == ((1, 8, 9), (1, 8), (1, 8))
    codes = oracle.input_codes(integers.inputs[0], samples.arrays[0])
    name = integers.outputs[0]
    found = oracle.dequantise(integers.tensor(name), oracle.run(integers, {integers.inputs[0].name: codes})[name]).reshape(40, 5)
    with torch.no_grad():
        real = net(images).double().numpy()
    assert 10 * math.log10(np.square(real).sum() / np.square(real - found).sum()) > 18


def by_hand(*nodes: ir.Node, scales: dict[str, tuple[float, int]]) -> IntGraph:
    """Float nodes on the inputs a (2, 4, 3) and b, lowered in these quantisations."""
    graph = ir.Graph("net", nodes, (nodes[-1].name,))
    ranges = Ranges(tuple(TensorRange(node.name, *scales.get(node.name, (0.5, -3))) for node in nodes))
    integers = lower(graph, ranges, Quantised((), ()), "int8")
    graph_check.check(integers)
    return integers


A = ir.Input("a", "", (), (2, 4, 3))
CODES = np.arange(-128, 128)


def images(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(-128, 128, (40, 4, 3, 2)).astype(np.int8)


def test_layers_that_keep_codes_are_brought_to_those_a_model_wants() -> None:
    """Such a maximum, slice or clamp has another quantisation than its input: a table behind it, or in its place."""
    x = images()
    pool = by_hand(A, ir.MaxPool("p", "", ("a",), (2, 2, 1), (2, 2), (2, 2)), scales={"a": (0.5, -3), "p": (0.7, 9)})
    assert [type(node) for node in pool.nodes] == [IntMaxPool, IntLookup]
    largest = x[:, :, :2].reshape(40, 2, 2, 1, 2, 2).max(axis=(2, 4))
    wanted = np.clip(np.floor((largest + 3.0) * 0.5 / 0.7 + 0.5) + 9, -128, 127)
    np.testing.assert_array_equal(oracle.run(pool, {"a": x})["p"], wanted)
    cut = by_hand(A, ir.SlicePad("s", "", ("a",), (1, 4, 3), c_before=-1), scales={"s": (0.25, 0)})
    assert [type(node) for node in cut.nodes] == [IntSlicePad, IntLookup]
    np.testing.assert_array_equal(oracle.run(cut, {"a": x})["s"], np.clip((x[..., 1:] + 3.0) * 2, -128, 127))
    same = by_hand(A, ir.Clamp("c", "", ("a",), (2, 4, 3), -1.0, 5.0), scales={})
    other = by_hand(A, ir.Clamp("c", "", ("a",), (2, 4, 3), -1.0, 5.0), scales={"c": (0.25, 5)})
    assert [type(node) for node in (*same.nodes, *other.nodes)] == [IntClamp, IntLookup]
    np.testing.assert_array_equal(oracle.run(same, {"a": x})["c"], np.clip(x, -5, 7))
    np.testing.assert_array_equal(oracle.run(other, {"a": x})["c"], np.clip((x + 3.0) * 2 + 5, 1, 25))


def test_a_mean_of_single_values_is_a_table() -> None:
    graph = by_hand(A, ir.AvgPool("q", "", ("a",), (2, 4, 3), (1, 1), (1, 1), lo=-9.0, hi=20.0), scales={"q": (0.7, 9)})
    assert [type(node) for node in graph.nodes] == [IntLookup]
    wanted = np.clip(np.floor((images() + 3.0) * 0.5 / 0.7 + 0.5) + 9, 9 - 13, 9 + 29)
    np.testing.assert_array_equal(oracle.run(graph, {"a": images()})["q"], wanted)


def test_tables_hold_the_function_of_every_code_with_its_clamp() -> None:
    graph = by_hand(A, ir.Unary("u", "", ("a",), (2, 4, 3), "square", lo=1.0, hi=20.0), scales={"a": (0.1, 0), "u": (0.5, 100)})
    (node,) = graph.nodes
    assert isinstance(node, IntLookup)
    wanted = np.clip(np.floor(np.clip(np.square(0.1 * CODES), 1, 20) / 0.5 + 0.5) + 100, -128, 127)
    assert node.table[0].tolist() == wanted.tolist()
    one = by_hand(A, ir.Unary("u", "", ("a",), (2, 4, 3), "prelu", slope=ir.frozen_array([0.5, 0.5])), scales={})
    two = by_hand(A, ir.Unary("u", "", ("a",), (2, 4, 3), "prelu", slope=ir.frozen_array([0.5, -1.0])), scales={"a": (0.5, -3)})
    tables = [node.table for graph in (one, two) for node in graph.nodes if isinstance(node, IntLookup)]
    assert [len(table) for table in tables] == [1, 2]
    below = CODES < -3
    assert (tables[1][1][below] == np.clip(-3 - (CODES[below] + 3), -128, 127)).all()
    np.testing.assert_array_equal(tables[0][0], tables[1][0])


def test_infinite_values_are_the_last_code() -> None:
    graph = by_hand(A, ir.Unary("u", "", ("a",), (2, 4, 3), "exp"), scales={"a": (100.0, 0), "u": (0.5, 0)})
    (node,) = graph.nodes
    assert isinstance(node, IntLookup)
    assert [int(node.table[0][at]) for at in (0, 128, 129, 255)] == [0, 2, 127, 127]


def test_joined_maps_are_rescaled_only_where_they_must_be() -> None:
    b = ir.Input("b", "", (), (3, 4, 3))
    joined = ir.Concat("j", "", ("a", "b", "a"), (7, 4, 3))
    graph = by_hand(A, b, joined, scales={"a": (0.5, -3), "b": (0.125, 7), "j": (0.5, -3)})
    (node,) = graph.nodes
    assert isinstance(node, IntAssemble)
    assert [(part.source, part.start, part.shift == 0) for part in node.parts] == [
        (0, (0, 0, 0), True), (1, (0, 0, 2), False), (2, (0, 0, 5), True),
    ]  # fmt: skip
    x, y = images(), np.random.default_rng(9).integers(-128, 128, (40, 4, 3, 3)).astype(np.int8)
    found = oracle.run(graph, {"a": x, "b": y})["j"]
    np.testing.assert_array_equal(found[..., :2], x)
    np.testing.assert_array_equal(found[..., 2:5], np.clip((y.astype(int) - 7 + 2) // 4 - 3, -128, 127))


def test_zeros_between_values_are_the_zero_point() -> None:
    graph = by_hand(A, ir.Upsample("u", "", ("a",), (2, 8, 9), (2, 3), zeros=True), scales={"u": (0.5, 5)})
    found = oracle.run(graph, {"a": images()})["u"]
    assert (found[:, 1::2] == 5).all()
    assert (found[:, :, 1::3] == 5).all()
    np.testing.assert_array_equal(found[:, ::2, ::3], np.clip(images().astype(int) + 8, -128, 127))


@pytest.mark.parametrize(
    ("node", "channels", "message"),
    [
        (ir.Softmax("n", "head.soft", ("x",), (4096, 1, 1)), 4096, r"layer head\.soft has too many channels"),
        (ir.ArgMax("n", "", ("x",), (1, 1, 1)), 257, "layer n has too many channels"),
        (ir.Upsample("n", "", ("x",), (3, 17, 16), (17, 16)), 3, "layer n is made of too many parts"),
        (ir.SlicePad("n", "", ("x",), (3, 1, 1), start=(-40000, 0)), 3, "layer n: slice too far"),
        (ir.SlicePad("n", "", ("x",), (3, 1, 1), step=(1, 256)), 3, "layer n: slice too far"),
        (ir.SlicePad("n", "", ("x",), (40003, 1, 1), c_before=40000), 3, "layer n: too many channels added"),
    ],
)
def test_what_does_not_fit_is_refused_by_layer(node: ir.Node, channels: int, message: str) -> None:
    with pytest.raises(UnsupportedError, match=message):
        by_hand(ir.Input("x", "", (), (channels, 1, 1)), node, scales={})


def test_parts_far_finer_than_the_whole_are_refused() -> None:
    with pytest.raises(UnsupportedError, match=r"layer j: a map cannot be brought to another scale in 32 bits"):
        by_hand(A, ir.Concat("j", "", ("a", "a"), (4, 4, 3)), scales={"a": (1e9, 0), "j": (1e-3, 0)})


def test_products_of_other_shapes_and_unknown_nodes_are_bugs() -> None:
    b = ir.Input("b", "", (), (2, 4, 1))
    with pytest.raises(InternalError, match="product"):
        by_hand(A, b, ir.Mul("m", "", ("a", "b"), (2, 4, 3)), scales={})
    with pytest.raises(InternalError, match="Flatten"):
        by_hand(A, ir.Flatten("f", "", ("a",), (24, 1, 1)), scales={})


def test_exponentials_fall_from_one_and_end_where_tflite_stops() -> None:
    for scale, count in ((2.0**-30, 256), (0.01, 256), (0.1718, 81), (1.0, 14), (1000.0, 1)):
        table = lower_maps.exponentials(scale)
        assert (len(table), int(table[0])) == (count, 2**31 - 1)
        assert (np.diff(table) <= 0).all()
