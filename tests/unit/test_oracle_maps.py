"""The integer reference of layers without weights, and of depthwise and dilated ones, against what SPEC.md says, written out plainly."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import mapcases
import nets
import numpy as np
import pytest
from mapcases import MapCase

from kqgen import oracle
from kqgen.intgraph import (
    IntArgMax,
    IntAssemble,
    IntConv2d,
    IntGraph,
    IntLookup,
    IntMul,
    IntNode,
    IntSlicePad,
    IntSoftmax,
    Part,
    QTensor,
    UniformWeights,
    frozen,
)

CASES = [case for case in mapcases.cases() if len(case.inputs[0].shape) == 3]


def node_of(case: MapCase) -> IntNode:
    """The node whose parameters a case has."""
    fields: Mapping[str, int] = case.fields
    h, w, c = case.wanted.shape
    out = QTensor("y", h, w, c, 1.0, fields.get("zero_point", 0))
    names = tuple("ab"[: len(case.inputs)])
    lo, hi = fields.get("lo", -128), fields.get("hi", 127)
    match case.struct:
        case "kq_lookup":
            return IntLookup("y", "", (), names, out, lo, hi, frozen(case.tables["table"][1], np.int8))
        case "kq_mul":
            broadcast = fields["count_b"] != fields["count"]
            return IntMul(
                "y", "", (), names, out, lo, hi, fields["zero_point_a"], fields["zero_point_b"], fields["multiplier"], fields["shift"],
                fields["acc_shift"], broadcast,
            )  # fmt: skip
        case "kq_place":
            at, channel = divmod(fields["start"], c)
            step = (fields["row_step"] // (w * c), fields["column_step"] // c)
            part = Part(0, (at // w, at % w, channel), step, fields["multiplier"], fields["bias"], fields["shift"])
            return IntAssemble("y", "", (), names, out, lo, hi, (part,), 0)
        case "kq_slice_pad":
            start, step = (fields["start_h"], fields["start_w"]), (fields["step_h"], fields["step_w"])
            after = c - fields["c_before"] - case.inputs[0].shape[2]
            return IntSlicePad("y", "", (), names, out, lo, hi, start, step, fields["c_before"], after, fields["pad_value"])
        case "kq_softmax":
            return IntSoftmax("y", "", (), names, replace(out, scale=1 / 256, zero_point=-128), lo, hi, case.tables["exponentials"][1])
        case _:
            return IntArgMax("y", "", (), names, replace(out, zero_point=-128), lo, hi)


def run(node: IntNode, inputs: Mapping[str, np.ndarray]) -> np.ndarray:
    tensors = tuple(QTensor(name, int(each.shape[1]), int(each.shape[2]), int(each.shape[3]), 1.0, 0) for name, each in inputs.items())
    return oracle.run(IntGraph("net", tensors, (node,), ("y",), frozenset(), ()), inputs)["y"]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.label)
def test_the_specification_s_numbers_also_in_a_batch(case: MapCase) -> None:
    """Three images: that of the case, its values upside down, and the case again."""
    inputs = {name: np.stack([array, array[::-1], array]) for name, array in zip("ab", case.inputs, strict=False)}
    found = run(node_of(case), inputs)
    made = np.ones(case.wanted.shape, np.bool_) if case.held is None else case.wanted != case.held
    assert made.any()
    for image in (0, 2):
        np.testing.assert_array_equal(found[image][made], case.wanted[made])


def plain_sum(node: IntConv2d, weights: np.ndarray, x: np.ndarray, at: tuple[int, int, int]) -> int:
    """SPEC 5.1: the accumulator of one output value."""
    y, column, channel = at
    total = int(node.requant.bias[channel])
    each = node.output.c // x.shape[2]
    for r, c, i in np.ndindex(*weights.shape[1:]):
        row = y * node.stride[0] - node.padding[0] + r * node.dilation[0]
        over = column * node.stride[1] - node.padding[2] + c * node.dilation[1]
        source = channel // each if node.depthwise else i
        inside = 0 <= row < x.shape[0] and 0 <= over < x.shape[1]
        total += int(weights[channel, r, c, i]) * int(x[row, over, source] if inside else node.pad_values[source])
    return total


def test_depthwise_and_dilated_sums_are_those_of_the_specification() -> None:
    net = nets.Builder("apart", seed=5)
    net.input("x", 9, 8, 3)
    net.conv("dw", 3, (3, 3), padding=(1, 1, 1, 1), depthwise=True, mixed_pads=True, source="x")
    net.conv("wide", 6, (3, 2), stride=(2, 1), padding=(1, 0, 1, 0), depthwise=True, source="x")
    net.conv("dilated", 4, (3, 3), padding=(2, 2, 3, 3), dilation=(2, 3), mixed_pads=True, source="x")
    net.conv("both", 3, (3, 1), padding=(4, 4, 0, 0), dilation=(4, 1), depthwise=True, source="x")
    graph = net.graph(["dw", "wide", "dilated", "both"])
    (x,) = nets.random_inputs(graph, 3)
    tensors = nets.run_reference(graph, (x,))
    for node in graph.nodes:
        assert isinstance(node, IntConv2d)
        weights = graph.weights(node)
        found = tensors[node.name][2]
        for at in np.ndindex(found.shape):
            s = int(node.requant.shift[at[2]])
            acc = plain_sum(node, weights, x[2], at)
            scaled = ((acc << node.requant.acc_shift) * int(node.requant.multiplier[at[2]]) + (1 << (s + 15))) >> (s + 16)
            assert found[at] == min(max(scaled + node.output.zero_point, node.lo), node.hi), (node.name, at)


def test_runs_are_the_1x1_layer_on_the_same_bytes() -> None:
    """Kernels (1, g) of stride g on rows of w * g positions read what a 1x1 layer reads."""
    net = nets.Builder("runs", seed=6)
    net.input("x", 4, 5, 12)
    net.codebook("book", 9, (1, 4), True)
    given = net.inputs[0]
    net.inputs[0] = replace(given, w=20, c=3)
    net.conv("cut", 7, (1, 4), stride=(1, 4), codebook="book")
    net.inputs[0] = given
    graph = net.graph()
    node = graph.nodes[0]
    assert isinstance(node, IntConv2d)
    assert node.in_shape == (4, 20, 3)
    whole = replace(node, in_shape=(4, 5, 12), kernel=(1, 1), stride=(1, 1), pad_values=frozen(np.zeros(12), np.int8),
                    weights=UniformWeights(8, frozen(graph.weights(node).reshape(7, 1, 1, 12), np.int8)))  # fmt: skip
    (x,) = nets.random_inputs(graph, 2)
    other = oracle.run(replace(graph, nodes=(whole,)), {"x": x})["cut"]
    np.testing.assert_array_equal(oracle.run(graph, {"x": x})["cut"], other)
