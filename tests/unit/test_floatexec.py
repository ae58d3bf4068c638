"""The float meaning of each kind of node, against values worked out by hand; the rest is compared with PyTorch elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch

from kqgen import ir
from kqgen.errors import InputError, InternalError
from kqgen.floatexec import conv_input, evaluate, run, steps

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


def test_a_slice_crops_pads_and_drops_channels() -> None:
    x = torch.arange(1.0, 19.0).reshape(1, 3, 2, 3)
    node = ir.SlicePad("s", "", ("x",), (1, 2, 3), start=(-1, 1), step=(2, 1), c_before=-1, c_after=-1)
    assert value(node, x) == [0, 0, 0, 11, 12, 0]
    added = ir.SlicePad("s", "", ("x",), (3, 1, 1), start=(1, 2), c_before=1, c_after=-1)
    assert value(added, x) == [0, 6, 12]


def test_difference_product_and_their_clamp() -> None:
    assert value(ir.Add("d", "", ("x", "y"), (1, 2, 3), minus=True, hi=1.0), X, 2 * X) == [-1, 1, -3, 1, -5, 1]
    assert value(ir.Mul("m", "", ("x", "y"), (1, 2, 3), lo=2.0), X, X) == [2, 4, 9, 16, 25, 36]
    assert value(ir.Mul("m", "", ("x", "y"), (1, 2, 3)), X, torch.full((1, 1, 1, 1), -2.0)) == [-2, 4, -6, 8, -10, 12]


FUNCTIONS: dict[str, tuple[Callable[[torch.Tensor], torch.Tensor], tuple[float, ...]]] = {
    "sigmoid": (torch.sigmoid, ()),
    "tanh": (torch.tanh, ()),
    "hardsigmoid": (lambda x: (x / 6 + 0.5).clamp(0, 1), ()),
    "hardswish": (lambda x: x * (x / 6 + 0.5).clamp(0, 1), ()),
    "silu": (lambda x: x * torch.sigmoid(x), ()),
    "gelu": (lambda x: x * torch.special.ndtr(x), ()),
    "gelu_tanh": (lambda x: 0.5 * x * (1 + torch.tanh(0.7978845608 * (x + 0.044715 * x**3))), ()),
    "leaky_relu": (lambda x: torch.where(x < 0, 0.2 * x, x), (0.2,)),
    "elu": (lambda x: torch.where(x < 0, 0.7 * (torch.exp(x) - 1), x), (0.7,)),
    "softplus": (lambda x: torch.log(1 + torch.exp(2 * x)) / 2, (2.0, 20.0)),
    "mish": (lambda x: x * torch.tanh(torch.log(1 + torch.exp(x))), ()),
    "abs": (torch.abs, ()),
    "square": (lambda x: x * x, ()),
    "exp": (torch.exp, ()),
}


@pytest.mark.parametrize("kind", sorted(set(ir.UNARY) - {"prelu"}))
def test_functions_of_one_value(kind: str) -> None:
    formula, arguments = FUNCTIONS[kind]
    found = value(ir.Unary("f", "", ("x",), (1, 2, 3), kind, arguments), X)
    assert found == pytest.approx(formula(X.double()).flatten().tolist(), rel=1e-4, abs=1e-6)


def test_prelu_has_one_slope_a_channel_and_functions_clamp() -> None:
    x = torch.tensor([[[[-1.0]], [[-2.0]], [[3.0]]]])
    node = ir.Unary("f", "", ("x",), (3, 1, 1), "prelu", slope=array(2, 0.5, 9), lo=-1.5)
    assert value(node, x) == [-1.5, -1, 3]
    with pytest.raises(InternalError, match="sine"):
        evaluate(ir.Unary("f", "", ("x",), (3, 1, 1), "sine"), [x])


def test_softmax_and_argmax_go_over_channels() -> None:
    x = torch.tensor([[[[0.0, 5.0]], [[0.0, 7.0]], [[-9.0, 7.0]]]])
    assert evaluate(ir.Softmax("s", "", ("x",), (3, 1, 2)), [x]).sum(1).flatten().tolist() == pytest.approx([1, 1])
    assert value(ir.ArgMax("a", "", ("x",), (1, 1, 2)), x) == [0, 1]


def test_assembling_and_reordering() -> None:
    y = torch.arange(1.0, 5.0).reshape(1, 2, 1, 2)
    assert value(ir.Concat("c", "", ("x", "y"), (2, 1, 4), 2), y, 10 * y) == [1, 2, 10, 20, 3, 4, 30, 40]
    assert value(ir.Upsample("u", "", ("x",), (2, 2, 2), (2, 1)), y) == [1, 2, 1, 2, 3, 4, 3, 4]
    assert value(ir.Upsample("u", "", ("x",), (2, 1, 4), (1, 2), zeros=True), y) == [1, 0, 2, 0, 3, 0, 4, 0]
    assert value(ir.Concat("c", "", ("x", "y"), (4, 1, 2), woven=True), y, 10 * y) == [1, 2, 10, 20, 3, 4, 30, 40]
    parts = [torch.full((1, 1, 1, 2), float(each)) for each in range(1, 5)]
    assert value(ir.Interleave("i", "", ("a", "b", "c", "d"), (1, 2, 4), (2, 2)), *parts) == [1, 2, 1, 2, 3, 4, 3, 4]
    assert value(ir.Shuffle("s", "", ("x",), (2, 1, 2), (1, 0)), y) == [3, 4, 1, 2]


def test_a_given_quantisation_limits_values_and_rounds_nothing() -> None:
    assert value(ir.Pin("p", "", ("x",), (1, 2, 3), 1 / 128, 0), X / 4) == [0.25, -0.5, 0.75, -1, 127 / 128, -1]
    assert value(ir.Clamp("r", "", ("x",), (1, 2, 3), -9, 9, pinned=(1 / 64, -128)), X) == [1, 0, 3, 0, 255 / 64, 0]


def test_grouped_and_dilated_convolutions() -> None:
    x = torch.arange(1.0, 9.0).reshape(1, 2, 1, 4)
    grouped = ir.Conv2d("c", "", ("x",), (2, 1, 4), array(10, 100, shape=(2, 1, 1, 1)), array(0, 1), groups=2)
    assert grouped.depthwise
    assert value(grouped, x) == [10, 20, 30, 40, 501, 601, 701, 801]
    dilated = ir.Conv2d("c", "", ("x",), (1, 1, 1), array(1, 10, 0, 0, shape=(1, 2, 1, 2)), array(0), dilation=(1, 3))
    assert value(dilated, x) == [41]


@pytest.mark.parametrize(("run_of", "stride"), [(2, (1, 1)), (3, (2, 2)), (6, (1, 2))])
def test_runs_of_channels_are_a_pointwise_convolution_with_its_weights_in_another_order(run_of: int, stride: ir.Pair) -> None:
    generator = torch.Generator().manual_seed(0)
    x, weight = torch.randn(2, 12, 5, 4, generator=generator), torch.randn(7, 12, generator=generator)
    runs = weight.reshape(7, run_of, 12 // run_of).transpose(1, 2)[:, :, None]
    shape = (7, -(-5 // stride[0]), -(-4 // stride[1]))
    node = ir.Conv2d("c", "", ("x",), shape, ir.frozen_array(runs.numpy()), ir.frozen_array(np.zeros(7)), stride, run=run_of)
    assert conv_input(node, x).shape == (2, 12 // run_of, 5, 4 * run_of)
    memory = conv_input(node, x).permute(0, 2, 3, 1).flatten(1)
    assert torch.equal(memory, x.permute(0, 2, 3, 1).flatten(1))
    wanted = torch.nn.functional.conv2d(x, weight[:, :, None, None], stride=stride)
    assert torch.allclose(evaluate(node, [x]), wanted, atol=1e-5)


def test_runs_of_a_dense_layer_go_over_the_map_as_it_lies_in_memory() -> None:
    x, weight = torch.randn(2, 3, 2, 2), torch.randn(5, 12)
    runs = weight.reshape(5, 4, 3).transpose(1, 2)[:, :, None]
    node = ir.Conv2d("c", "", ("x",), (5, 1, 1), ir.frozen_array(runs.numpy()), ir.frozen_array(np.zeros(5)), dense=True, run=4)
    wanted = x.permute(0, 2, 3, 1).flatten(1) @ weight.T
    assert torch.allclose(evaluate(node, [x]).flatten(1), wanted, atol=1e-5)


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
