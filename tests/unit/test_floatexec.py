"""The float meaning of each kind of node, against values worked out by hand; the rest is compared with PyTorch elsewhere."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch

from kqgen import ir
from kqgen.errors import InputError, InternalError
from kqgen.floatexec import evaluate, run, steps

X = torch.tensor([[[[1.0, -2.0, 3.0], [-4.0, 5.0, -6.0]]]])


def value(node: ir.Node, *operands: torch.Tensor) -> list[float]:
    return [float(each) for each in evaluate(node, list(operands)).flatten()]


def array(*values: float, shape: Sequence[int] = (-1,)) -> ir.Float32:
    return ir.frozen_array(np.array(values, np.float32).reshape(shape))


def test_convolution_subtracts_the_offset_before_padding_and_clamps_last() -> None:
    node = ir.Conv2d(
        "c", "", ("x",), (1, 3, 3), array(1, 1, shape=(1, 1, 1, 2)), array(10), padding=(0, 1, 1, 0), input_offset=array(1), lo=5.0, hi=12.0
    )
    # Rows of x - 1: 0 -3 2 and -5 4 -7; a zero to the left, a row of zeros below; neighbours are added; 10 is added; 5..12.
    assert value(node, X) == [10, 7, 9, 5, 9, 7, 10, 10, 10]


def test_linear_reads_channels_first() -> None:
    node = ir.Linear("l", "", ("x",), (1, 1, 1), array(1, 10, 100, 1000, 1e4, 1e5, shape=(1, 6)), array(0.5))
    assert value(node, X) == [1 - 20 + 300 - 4000 + 50000 - 600000 + 0.5]


def test_affine_clamp_add_pad_and_flatten() -> None:
    assert value(ir.ChannelAffine("a", "", ("x",), (1, 2, 3), array(2), array(1)), X) == [3, -3, 7, -7, 11, -11]
    assert value(ir.Clamp("r", "", ("x",), (1, 2, 3), -1, 2), X) == [1, -1, 2, -1, 2, -1]
    assert value(ir.Add("s", "", ("x", "y"), (1, 2, 3), lo=0.0), X, X) == [2, 0, 6, 0, 10, 0]
    assert value(ir.Pad("p", "", ("x",), (1, 3, 4), (1, 0, 0, 1)), X) == [0, 0, 0, 0, 1, -2, 3, 0, -4, 5, -6, 0]
    assert evaluate(ir.Flatten("f", "", ("x",), (6, 1, 1)), [X]).shape == (1, 6, 1, 1)


def test_padding_never_wins_in_max_pooling_but_counts_in_averages() -> None:
    low = -X.abs()
    assert value(ir.MaxPool("m", "", ("x",), (1, 2, 2), (2, 2), (2, 2), (1, 1, 1, 0)), low) == [-1, -2, -4, -5]
    assert value(ir.AvgPool("a", "", ("x",), (1, 2, 2), (2, 2), (2, 2), (1, 1, 1, 0), hi=-0.5), low) == [-0.5, -1.25, -1, -2.75]


def test_the_shortcut_takes_every_step_and_adds_zero_channels() -> None:
    node = ir.SlicePad("s", "", ("x",), (3, 1, 2), start=(1, 0), step=(1, 2), c_before=1, c_after=1)
    assert value(node, X) == [0, 0, -4, -6, 0, 0]


def graph() -> ir.Graph:
    nodes = (
        ir.Input("x", "", (), (1, 2, 3)),
        ir.Clamp("r", "", ("x",), (1, 2, 3), 0, 6),
        ir.Add("s", "", ("r", "r"), (1, 2, 3)),
    )
    return ir.Graph("net", nodes, ("s",))


def test_run_keeps_every_tensor_and_steps_yield_them_in_order() -> None:
    assert list(run(graph(), {"x": X})) == ["x", "r", "s"]
    streamed = [(node.name, float(made.sum())) for node, made in steps(graph(), {"x": X})]
    assert streamed == [("x", -3.0), ("r", 9.0), ("s", 18.0)]


@pytest.mark.parametrize("inputs", [{}, {"x": X.double()}, {"x": X[:, :, :1]}], ids=["missing", "double", "another shape"])
def test_inputs_are_checked(inputs: dict[str, torch.Tensor]) -> None:
    with pytest.raises(InputError, match="input x"):
        run(graph(), inputs)


def test_a_shape_that_the_node_does_not_keep_is_our_bug() -> None:
    nodes = (ir.Input("x", "", (), (1, 2, 3)), ir.Clamp("r", "", ("x",), (1, 3, 2), 0, 6))
    with pytest.raises(InternalError, match="node r"):
        run(ir.Graph("net", nodes, ("r",)), {"x": X})
