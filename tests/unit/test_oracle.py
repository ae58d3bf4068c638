"""The integer reference against sums written out plainly from SPEC 5, and its input checks."""

from __future__ import annotations

from dataclasses import replace

import nets
import numpy as np
import pytest

from kqgen import oracle
from kqgen.errors import InputError
from kqgen.intgraph import IntConv2d, QTensor, Requant, UniformWeights, frozen


def plain_conv(node: IntConv2d, weights: np.ndarray, x: np.ndarray, y: int, column: int, channel: int) -> int:
    """SPEC 5.1 and 3.2 for one output value, in Python integers."""
    acc = int(node.requant.bias[channel])
    for r in range(node.kernel[0]):
        for c in range(node.kernel[1]):
            row, at = y * node.stride[0] - node.padding[0] + r, column * node.stride[1] - node.padding[2] + c
            inside = 0 <= row < x.shape[0] and 0 <= at < x.shape[1]
            for i in range(x.shape[2]):
                value = int(x[row, at, i]) if inside else int(node.pad_values[i])
                acc += int(weights[channel, r, c, i]) * value
    s = int(node.requant.shift[channel])
    scaled = ((acc << node.requant.acc_shift) * int(node.requant.multiplier[channel]) + (1 << (s + 15))) >> (s + 16)
    return min(max(scaled + node.output.zero_point, node.lo), node.hi)


def test_convolutions_are_the_sums_of_the_specification() -> None:
    graph = nets.residual()
    inputs = nets.random_inputs(graph, 2, seed=5)
    tensors = nets.run_reference(graph, inputs)
    checked = 0
    for node in graph.nodes:
        if isinstance(node, IntConv2d):
            weights = graph.weights(node)
            x = tensors[node.inputs[0]][1].reshape(node.in_shape)
            found = tensors[node.name][1]
            expected = [plain_conv(node, weights, x, y, column, channel) for y, column, channel in np.ndindex(found.shape)]
            assert found.ravel().tolist() == expected, node.name
            checked += 1
    assert checked >= 5


def test_sums_beyond_float32_are_exact() -> None:
    """The sum is odd and above 2^24, where float32 has only even numbers; the bias takes all of it but 1."""
    net = nets.Builder("wide")
    net.input("x", 1, 1, 1100, zero_point=0)
    net.conv("sum", 1, (1, 1))
    graph = net.graph()
    node = graph.nodes[0]
    assert isinstance(node, IntConv2d)
    x = np.full((1, 1, 1, 1100), 127, np.int8)
    x[0, 0, 0, 0] = 126
    total = 127 * (1099 * 127 + 126)
    assert total > oracle.FLOAT32_EXACT
    assert total % 2 == 1
    requant = Requant(frozen([1 - total], np.int32), frozen([32767], np.int16), frozen([1], np.uint8), 3)
    weights = UniformWeights(8, frozen(np.full((1, 1, 1, 1100), 127), np.int8))
    exact = replace(node, weights=weights, requant=requant, output=replace(node.output, zero_point=0), lo=-128)
    assert oracle.run(replace(graph, nodes=(exact,)), {"x": x})["sum"].item() == 2


@pytest.mark.parametrize("bad", [np.zeros((1, 11, 9, 3), np.float32), np.zeros((1, 3, 11, 9), np.int8)], ids=["dtype", "shape"])
def test_wrong_inputs_are_refused(bad: np.ndarray) -> None:
    with pytest.raises(InputError, match=r"int8 \(N, 11, 9, 3\)"):
        oracle.run(nets.residual(), {"x": bad})


def test_a_missing_input_is_refused() -> None:
    with pytest.raises(InputError, match="input x is missing"):
        oracle.run(nets.residual(), {})


def test_quantising_rounds_halves_up_and_saturates() -> None:
    tensor = QTensor("t", 1, 1, 5, 0.5, 3)
    codes = oracle.quantise(tensor, frozen([-1000, -0.25, 0.0, 0.25, 1000], np.float64))
    assert codes.tolist() == [-128, 3, 3, 4, 127]
    assert oracle.dequantise(tensor, codes).tolist() == [-65.5, 0.0, 0.0, 0.5, 62.0]
