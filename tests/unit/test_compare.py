"""Names of layers in reports, first differences, and the distance of integers from floats."""

from __future__ import annotations

import math
from dataclasses import replace

import nets
import numpy as np
import pytest

from kqgen.compare import FirstDifference, first_difference, float_agreement, layer_labels
from kqgen.intgraph import IntGraph


def named(*pairs: tuple[str, str]) -> IntGraph:
    """A chain of clamps with these names and module paths."""
    net = nets.Builder("net")
    net.input("x", 2, 2, 1)
    for name, _ in pairs:
        net.clamp(name, -100, 100)
    graph = net.graph()
    return replace(graph, nodes=tuple(replace(node, path=path) for node, (_, path) in zip(graph.nodes, pairs, strict=True)))


@pytest.mark.parametrize(
    ("pairs", "labels"),
    [
        ((("stem_0", "stem.0"), ("head", "head")), ("stem.0", "head")),
        ((("add", ""), ("mean", "")), ("add", "mean")),
        ((("block_1_add", "block.1"), ("block_1", "block.1")), ("block_1_add", "block.1")),
        ((("conv", "conv"), ("conv_1", "conv")), ("conv", "conv_1")),
        ((("conv2d_0", "0"), ("relu_1", "1")), ("0", "1")),
    ],
    ids=["modules", "no module", "operator inside a module", "module called twice", "numbered modules"],
)
def test_a_layer_goes_by_its_module_where_that_is_its_own(pairs: tuple[tuple[str, str], ...], labels: tuple[str, ...]) -> None:
    assert layer_labels(named(*pairs)) == labels


def test_labels_are_never_shared() -> None:
    labels = layer_labels(nets.residual())
    assert len(set(labels)) == len(labels)


def test_the_first_difference_is_the_first_in_row_major_order() -> None:
    expected = np.arange(24, dtype=np.int8).reshape(2, 4, 3)
    found = expected.copy()
    assert first_difference("a", 3, expected, found) is None
    found[1, 0, 0] = -1
    found[0, 3, 2] = 7
    assert first_difference("a", 3, expected, found) == FirstDifference(3, "a", (0, 3, 2), 11, 7)


def test_distance_from_floats() -> None:
    signal = np.array([[3.0, -4.0], [0.0, 5.0]], np.float32)
    noise = np.array([[0.3, 0.0], [0.0, -0.4]], np.float32)
    agreement = float_agreement([signal], [signal + noise])
    assert agreement.sqnr_db == pytest.approx(10 * math.log10(50 / 0.25), abs=1e-4)
    assert agreement.argmax_agreement == 1.0
    assert float_agreement([signal], [signal[:, ::-1]]).argmax_agreement == 0.0
    assert float_agreement([signal], [np.array([[3.0, -4.0], [6.0, 5.0]], np.float32)]).argmax_agreement == 0.5


def test_distance_that_is_not_defined() -> None:
    ones, zeros = np.ones((2, 3), np.float32), np.zeros((2, 3), np.float32)
    assert float_agreement([ones], [ones]).sqnr_db is None
    assert float_agreement([zeros], [ones]).sqnr_db is None
    assert float_agreement([ones[:, :1]], [ones[:, :1]]).argmax_agreement is None


def test_all_outputs_count_and_the_first_decides_the_largest() -> None:
    first, second = np.array([[1.0, 2.0]], np.float32), np.array([[10.0]], np.float32)
    agreement = float_agreement([first, second], [first, second + 1])
    assert agreement.sqnr_db == pytest.approx(10 * math.log10(105))
    assert agreement.argmax_agreement == 1.0
