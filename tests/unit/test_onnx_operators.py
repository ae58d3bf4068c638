"""Each ONNX operator, read as a module, computes what ONNX's reference implementation computes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from onnxmodels import expected, model, node, save, weights

from kqgen.errors import UnsupportedError
from kqgen.onnx_import import load_onnx

MAP = (2, 4, 8, 10)
LINE = (2, 4, 12)
VECTOR = (2, 6)


class Case:
    """A model, and the shapes of its inputs."""

    def __init__(
        self,
        nodes: onnx.NodeProto | Sequence[onnx.NodeProto],
        shape: Sequence[int] = MAP,
        constants: Mapping[str, Any] | None = None,
        opset: int = 18,
        second: Sequence[int] = (),
        outputs: Sequence[str] = ("y",),
    ) -> None:
        chosen = [nodes] if isinstance(nodes, onnx.NodeProto) else list(nodes)
        self.shapes = {"x": shape} | ({"z": second} if second else {})
        self.model = model(chosen, self.shapes, outputs, constants, opset)


def _conv(*weight: int, **attributes: Any) -> Case:
    shape = MAP if len(weight) == 4 else LINE
    return Case(node("Conv", "x w b", "y", **attributes), shape, {"w": weights(1, *weight), "b": weights(2, weight[0])})


def _transposed(*weight: int, **attributes: Any) -> Case:
    shape = MAP if len(weight) == 4 else LINE
    out = weight[1] * attributes.get("group", 1)
    return Case(node("ConvTranspose", "x w b", "y", **attributes), shape, {"w": weights(1, *weight), "b": weights(2, out)})


def _one(operator: str, shape: Sequence[int] = MAP, opset: int = 18, **attributes: Any) -> Case:
    return Case(node(operator, "x", "y", **attributes), shape, opset=opset)


def _with(operator: str, array: Any, shape: Sequence[int] = MAP, first: bool = False, opset: int = 18, **attributes: Any) -> Case:
    return Case(node(operator, "c x" if first else "x c", "y", **attributes), shape, {"c": np.asarray(array)}, opset)


def _ints(*numbers: int) -> np.ndarray:
    return np.array(numbers, np.int64)


def _floats(*numbers: float) -> np.ndarray:
    return np.array(numbers, np.float32)


def _norm(shape: Sequence[int], opset: int = 15) -> Case:
    c = shape[1]
    constants = {"s": weights(1, c), "b": weights(2, c), "m": weights(3, c), "v": np.abs(weights(4, c)) + 0.1}
    return Case(node("BatchNormalization", "x s b m v", "y", epsilon=1e-3), shape, constants, opset)


def _erf_gelu(order: int) -> Case:
    start = [node("Div", "x r", "d"), node("Erf", "d", "e"), node("Add", "e one", "a")]
    ends = (
        [node("Mul", "x a", "p"), node("Mul", "p half", "y")],
        [node("Mul", "x half", "p"), node("Mul", "p a", "y")],
        [node("Mul", "a half", "p"), node("Mul", "x p", "y")],
    )
    return Case([*start, *ends[order]], constants={"r": np.float32(2**0.5), "one": np.float32(1), "half": np.float32(0.5)}, opset=13)


_SIX = {"three": np.float32(3), "six": np.float32(6), "zero": np.float32(0)}

CASES: dict[str, Case] = {
    "conv": _conv(6, 4, 3, 3, pads=[1, 1, 1, 1]),
    "conv, stride": _conv(6, 4, 3, 2, strides=[2, 3]),
    "conv, unequal pads": _conv(6, 4, 3, 3, pads=[0, 1, 2, 0]),
    "conv, same upper": _conv(6, 4, 3, 4, strides=[2, 2], auto_pad="SAME_UPPER"),
    "conv, same lower": _conv(6, 4, 4, 3, strides=[2, 1], auto_pad="SAME_LOWER"),
    "conv, valid": _conv(6, 4, 3, 3, auto_pad="VALID"),
    "conv, dilation": _conv(6, 4, 3, 3, dilations=[2, 3], pads=[2, 3, 2, 3]),
    "conv, depthwise": _conv(8, 1, 3, 3, group=4, pads=[1, 1, 1, 1]),
    "conv, groups": _conv(6, 2, 3, 3, group=2, kernel_shape=[3, 3]),
    "conv 1-D": _conv(5, 4, 3, pads=[1, 1], strides=[2]),
    "conv 1-D, causal": _conv(4, 1, 3, group=4, dilations=[2], pads=[4, 0]),
    "conv without bias": Case(node("Conv", "x w", "y"), constants={"w": weights(1, 3, 4, 1, 1)}),
    "transposed conv": _transposed(4, 3, 2, 2, strides=[2, 2]),
    "transposed conv, pads": _transposed(4, 3, 3, 3, strides=[2, 2], pads=[1, 1, 1, 1], output_padding=[1, 1]),
    "transposed conv, unequal pads": _transposed(4, 3, 3, 3, strides=[2, 2], pads=[0, 1, 1, 0]),
    "transposed conv, dilation": _transposed(4, 3, 3, 3, dilations=[2, 1]),
    "transposed conv, same": _transposed(4, 3, 3, 3, strides=[2, 2], auto_pad="SAME_UPPER"),
    "transposed conv, same lower": _transposed(4, 3, 4, 3, strides=[1, 2], auto_pad="SAME_LOWER"),
    "transposed conv 1-D": _transposed(4, 3, 4, strides=[2], pads=[1, 1]),
    "gemm": Case(
        node("Gemm", "x w b", "y", transB=1, alpha=0.5, beta=2.0), VECTOR, {"w": weights(1, 3, 6), "b": weights(2, 3)}
    ),
    "gemm, one bias": Case(node("Gemm", "x w b", "y"), VECTOR, {"w": weights(1, 6, 3), "b": weights(2, 1, 1)}),
    "gemm without bias": Case(node("Gemm", "x w", "y"), VECTOR, {"w": weights(1, 6, 3)}),
    "matmul": Case([node("MatMul", "x w", "a"), node("Add", "a b", "y")], VECTOR, {"w": weights(1, 6, 3), "b": weights(2, 3)}),
    "batch norm": _norm(MAP),
    "batch norm of vectors": _norm(VECTOR),
    "batch norm of sequences": _norm(LINE),
    "relu": _one("Relu"),
    "leaky relu": _one("LeakyRelu", alpha=0.2),
    "prelu": _with("PRelu", weights(1, 4, 1, 1)),
    "prelu, one slope": _with("PRelu", weights(1, 1)),
    "prelu, batch axis": _with("PRelu", weights(1, 1, 4, 1, 1)),
    "clip, opset 6 form": _one("Clip", opset=10, min=-0.5, max=0.5),
    "clip": Case(node("Clip", "x lo hi", "y"), constants={"lo": np.float32(0), "hi": np.float32(6)}),
    "clip, upper alone": Case(node("Clip", "x _ hi", "y"), constants={"hi": np.float32(0.25)}),
    "min": _with("Min", np.float32(0.5)),
    "max": _with("Max", np.float32(-0.5), first=True),
    "sigmoid": _one("Sigmoid"),
    "tanh": _one("Tanh"),
    "hard sigmoid": _one("HardSigmoid"),
    "hard sigmoid, a sixth": _one("HardSigmoid", alpha=1 / 6),
    "hard swish": _one("HardSwish"),
    "hard swish by hard sigmoid": Case([node("HardSigmoid", "x", "g", alpha=1 / 6), node("Mul", "x g", "y")]),
    "hard swish by clip": Case(
        [node("Add", "x three", "a"), node("Clip", "a zero six", "g"), node("Mul", "x g", "p"), node("Div", "p six", "y")], constants=_SIX
    ),
    "hard swish by clip first": Case(
        [node("Add", "x three", "a"), node("Clip", "a zero six", "g"), node("Div", "g six", "p"), node("Mul", "p x", "y")], constants=_SIX
    ),
    "silu": Case([node("Sigmoid", "x", "g"), node("Mul", "g x", "y")]),
    "silu whose gate is read twice": Case([node("Sigmoid", "x", "g"), node("Mul", "g x", "p"), node("Add", "p g", "y")]),
    "mish": _one("Mish"),
    "mish by tanh": Case([node("Softplus", "x", "s"), node("Tanh", "s", "t"), node("Mul", "x t", "y")]),
    "elu": _one("Elu", alpha=0.7),
    "gelu": _one("Gelu", opset=20),
    "gelu, tanh": _one("Gelu", opset=20, approximate="tanh"),
    "gelu by erf 1": _erf_gelu(0),
    "gelu by erf 2": _erf_gelu(1),
    "gelu by erf 3": _erf_gelu(2),
    "softplus": _one("Softplus"),
    "abs": _one("Abs"),
    "exp": _one("Exp"),
    "neg": _one("Neg"),
    "square": _with("Pow", np.float32(2)),
    "softmax": _one("Softmax", VECTOR),
    "softmax of channels": _one("Softmax", axis=1),
    "softmax, opset 11": _one("Softmax", VECTOR, opset=11),
    "add": Case(node("Add", "x z", "y"), second=MAP),
    "subtract": Case(node("Sub", "x z", "y"), second=MAP),
    "multiply": Case(node("Mul", "x z", "y"), second=(2, 4, 1, 1)),
    "add a channel's constant": _with("Add", weights(1, 4, 1, 1)),
    "subtract from a constant": _with("Sub", weights(1, 1, 4, 1, 1), first=True),
    "multiply by a number": _with("Mul", np.float32(1.5)),
    "multiply by one number often": _with("Mul", np.full((1, 4, 1, 1), 0.5, np.float32)),
    "divide": _with("Div", weights(1, 4, 1, 1) + 2),
    "divide a vector": _with("Div", weights(1, 6) + 3, VECTOR),
    "sum": Case(node("Sum", "x z x", "y"), second=MAP),
    "max pool": _one("MaxPool", kernel_shape=[2, 2], strides=[2, 2]),
    "max pool, stride 1": _one("MaxPool", kernel_shape=[3, 2]),
    "max pool, pads": _one("MaxPool", kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1]),
    "max pool, same upper": _one("MaxPool", kernel_shape=[3, 3], strides=[2, 2], auto_pad="SAME_UPPER"),
    "max pool, unequal pads": _one("MaxPool", kernel_shape=[3, 3], strides=[1, 1], pads=[0, 1, 1, 0]),
    "max pool, ceil": _one("MaxPool", kernel_shape=[3, 3], strides=[2, 2], ceil_mode=1),
    "max pool, dilation": _one("MaxPool", kernel_shape=[2, 2], dilations=[2, 3]),
    "max pool 1-D": _one("MaxPool", LINE, kernel_shape=[3], strides=[3]),
    "average pool": _one("AveragePool", kernel_shape=[2, 2], strides=[2, 2]),
    "average pool, pads": _one("AveragePool", kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1]),
    "average pool, pads count": _one("AveragePool", kernel_shape=[3, 3], pads=[1, 1, 1, 1], count_include_pad=1),
    "average pool, unequal pads": _one("AveragePool", kernel_shape=[3, 3], pads=[0, 1, 1, 0], count_include_pad=1),
    "average pool, ceil": _one("AveragePool", opset=19, kernel_shape=[3, 3], strides=[2, 2], ceil_mode=1),
    "average pool 1-D": _one("AveragePool", LINE, kernel_shape=[4], strides=[2]),
    "global average": _one("GlobalAveragePool"),
    "global average 1-D": _one("GlobalAveragePool", LINE),
    "global maximum": _one("GlobalMaxPool"),
    "mean, opset 13": _one("ReduceMean", opset=13, axes=[2, 3], keepdims=0),
    "mean, opset 18": _with("ReduceMean", _ints(-1, -2), keepdims=1),
    "maximum": _one("ReduceMax", opset=13, axes=[2, 3], keepdims=0),
    "sum of a map": _with("ReduceSum", _ints(2, 3), keepdims=0),
    "flatten": _one("Flatten"),
    "reshape": _with("Reshape", _ints(0, -1)),
    "reshape to a fixed batch": _with("Reshape", _ints(2, 320)),
    "squeeze": _with("Squeeze", _ints(2, 3), (2, 5, 1, 1)),
    "squeeze, opset 11": _one("Squeeze", (2, 5, 1, 1), opset=11, axes=[-1, 2]),
    "unsqueeze": _with("Unsqueeze", _ints(-1, 2), VECTOR),
    "unsqueeze, opset 11": _one("Unsqueeze", VECTOR, opset=11, axes=[2, 3]),
    "transpose": _one("Transpose", perm=[0, 2, 3, 1]),
    "concat": Case(node("Concat", "x z x", "y", axis=1), second=(2, 3, 8, 10)),
    "concat of rows": Case(node("Concat", "x z", "y", axis=-2), second=(2, 4, 1, 10)),
    "split": Case([node("Split", "x s", "a b", axis=1), node("Concat", "b a", "y", axis=1)], constants={"s": _ints(1, 3)}),
    "split, opset 11": Case([node("Split", "x", "a b", axis=1), node("Sub", "b a", "y")], opset=11),
    "split, count": Case([node("Split", "x", "a b c", axis=3, num_outputs=3), node("Concat", "c a b", "y", axis=3)]),
    "slice": Case(
        node("Slice", "x s e a t", "y"), constants={"s": _ints(1, -8), "e": _ints(99, -1), "a": _ints(1, 3), "t": _ints(1, 2)}
    ),
    "slice, opset 9": _one("Slice", opset=9, starts=[0, 2], ends=[4, 6], axes=[1, 2]),
    "pad": _with("Pad", _ints(0, 1, 1, 2, 0, 0, 3, 0)),
    "pad, opset 2 form": _one("Pad", opset=10, pads=[0, 0, 1, 1, 0, 0, 1, 1], value=0.5),
    "pad, axes": Case(node("Pad", "x p _ a", "y"), constants={"p": _ints(1, 2, 0, 1), "a": _ints(-1, 2)}),
    "resize": Case(node("Resize", "x _ s", "y", mode="nearest"), constants={"s": _floats(1, 1, 2, 3)}),
    "resize, asymmetric": Case(
        node("Resize", "x _ s", "y", mode="nearest", coordinate_transformation_mode="asymmetric", nearest_mode="floor"),
        constants={"s": _floats(1, 1, 2, 2)},
    ),
    "resize, sizes": Case(node("Resize", "x _ _ s", "y", mode="nearest"), constants={"s": _ints(2, 4, 24, 20)}),
    "resize 1-D": Case(node("Resize", "x _ s", "y", mode="nearest"), LINE, {"s": _floats(1, 1, 4)}),
    "upsample": Case(node("Upsample", "x s", "y", mode="nearest"), constants={"s": _floats(1, 1, 2, 2)}, opset=9),
    "depth to space, DCR": _one("DepthToSpace", (2, 8, 3, 4), blocksize=2),
    "depth to space, CRD": _one("DepthToSpace", (2, 8, 3, 4), blocksize=2, mode="CRD"),
    "identity, dropout, cast": Case(
        [node("Identity", "x", "a"), node("Dropout", "a", "b"), node("Cast", "b", "c", to=1), node("Relu", "c", "y")]
    ),
    "constant": Case([node("Constant", "", "c", value_float=2.0), node("Mul", "x c", "y")]),
    "shape arithmetic": Case(
        [
            node("Shape", "x", "s"), node("Gather", "s zero", "n", axis=0), node("Unsqueeze", "n axes", "u"),
            node("Concat", "u rest", "t", axis=0), node("Reshape", "x t", "y"),
        ],
        constants={"zero": np.array(0, np.int64), "axes": _ints(0), "rest": _ints(-1)},
    ),
    "constant of a shape": Case(
        [
            node("Shape", "x", "s", start=1), node("ConstantOfShape", "s", "o"), node("ReduceSum", "o", "t", keepdims=0),
            node("Add", "x t", "y"),
        ]
    ),
    "fake quantisation": Case(
        [node("QuantizeLinear", "x s z", "q"), node("DequantizeLinear", "q s z", "y")],
        constants={"s": np.float32(0.02), "z": np.uint8(110)},
        opset=19,
    ),
    "quantised weights": Case(
        [node("DequantizeLinear", "q s z", "w", axis=0), node("Conv", "x w", "y")],
        constants={
            "q": np.random.default_rng(1).integers(-127, 128, (3, 4, 2, 2)).astype(np.int8), "s": _floats(0.01, 0.02, 0.005),
            "z": np.zeros(3, np.int8),
        },
        opset=19,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_an_operator_equals_the_reference(tmp_path: Path, name: str) -> None:
    case = CASES[name]
    module, examples = load_onnx(save(case.model, tmp_path / "net.onnx"))
    inputs = {key: weights(index + 7, *shape, scale=1.5) for index, (key, shape) in enumerate(case.shapes.items())}
    with torch.no_grad():
        made = module(*(torch.from_numpy(array) for array in inputs.values()))
    (wanted,) = expected(case.model, inputs)
    assert made.shape == wanted.shape
    np.testing.assert_allclose(made.numpy(), wanted, rtol=1e-5, atol=2e-6)
    batches = torch.export.export(module, examples).module()(*(torch.from_numpy(array) for array in inputs.values()))
    torch.testing.assert_close(batches, made)


_W = weights(1, 4, 2, 3, 3)
_torch = torch.from_numpy
_NORM = [weights(seed, 4) for seed in (1, 2, 3)]
OTHERS: dict[str, tuple[Case, Callable[[torch.Tensor], torch.Tensor]]] = {
    "transposed conv, output shape": (
        Case(node("ConvTranspose", "x w", "y", strides=[2, 2], output_shape=[16, 20]), constants={"w": _W}),
        lambda x: F.conv_transpose2d(x, torch.from_numpy(_W), stride=2)[:, :, 1:, 1:],
    ),
    "transposed conv, groups": (
        Case(node("ConvTranspose", "x w", "y", group=2), constants={"w": _W}),
        lambda x: F.conv_transpose2d(x, torch.from_numpy(_W), groups=2),
    ),
    "batch norm, opset 7": (
        Case(
            node("BatchNormalization", "x s b m v", "y"),
            constants=dict(zip("sbmv", (*_NORM, np.abs(_NORM[0])), strict=True)), opset=7,
        ),
        lambda x: F.batch_norm(x, _torch(_NORM[2]), _torch(np.abs(_NORM[0])), _torch(_NORM[0]), _torch(_NORM[1])),
    ),
    "max pool, same lower": (
        Case(node("MaxPool", "x", "y", kernel_shape=[3, 3], strides=[2, 2], auto_pad="SAME_LOWER")),
        lambda x: F.max_pool2d(F.pad(x, (1, 0, 1, 0), value=-1e9), 3, 2),
    ),
    "resize, opset 10": (
        Case(node("Resize", "x s", "y", mode="nearest"), constants={"s": _floats(1, 1, 2, 3)}, opset=10),
        lambda x: x.repeat_interleave(2, 2).repeat_interleave(3, 3),
    ),
    "upsample, opset 7": (
        _one("Upsample", opset=7, scales=[1.0, 1.0, 2.0, 2.0]), lambda x: x.repeat_interleave(2, 2).repeat_interleave(2, 3),
    ),
    "swish, opset 24's": (Case([node("Sigmoid", "x", "g"), node("Mul", "x g", "y")], opset=7), F.silu),
    "fake quantisation around a pool": (
        Case(
            [node("QuantizeLinear", "x s z", "q"), node("MaxPool", "q", "p", kernel_shape=[2, 2]), node("DequantizeLinear", "p s z", "y")],
            constants={"s": np.float32(0.02), "z": np.int8(-3)}, opset=13,
        ),
        lambda x: F.max_pool2d(torch.fake_quantize_per_tensor_affine(x, 0.02, -3, -128, 127), 2, 1),
    ),
    "quantised weights, opset 13": (
        Case(
            [node("DequantizeLinear", "q s z", "w"), node("Mul", "x w", "y")],
            constants={"q": np.array(100, np.uint8), "s": np.float32(0.5), "z": np.array(90, np.uint8)}, opset=13,
        ),
        lambda x: x * 5.0,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", OTHERS)
def test_an_operator_equals_pytorch(tmp_path: Path, name: str) -> None:
    """What the reference implementation cannot do, or does otherwise than the specification."""
    case, wanted = OTHERS[name]
    module, _ = load_onnx(save(case.model, tmp_path / "net.onnx"))
    x = torch.from_numpy(weights(7, *case.shapes["x"]))
    with torch.no_grad():
        torch.testing.assert_close(module(x), wanted(x))


def test_maximum_over_any_padding(tmp_path: Path) -> None:
    """Against a map padded by the least value, whatever the windows do at its ends."""
    rng = np.random.default_rng(5)
    x = torch.from_numpy(weights(7, 1, 2, 9, 10))
    for _ in range(60):
        kernel, stride, pads = rng.integers(2, 5, 2), rng.integers(1, 4, 2), rng.integers(0, 2, 4)
        attributes = {"kernel_shape": kernel.tolist(), "strides": stride.tolist(), "pads": pads.tolist()}
        module, _ = load_onnx(save(_one("MaxPool", x.shape, **attributes).model, tmp_path / "net.onnx"))
        top, left, bottom, right = pads.tolist()
        wanted = F.max_pool2d(F.pad(x, (left, right, top, bottom), value=-1e9), kernel.tolist(), stride.tolist())
        torch.testing.assert_close(module(x), wanted, msg=str(attributes))


def _fused(tmp_path: Path, case: Case) -> list[str]:
    module, _ = load_onnx(save(case.model, tmp_path / "net.onnx"))
    return [type(each).__name__ for each in module.children()]


def test_formulas_become_one_activation(tmp_path: Path) -> None:
    assert _fused(tmp_path, CASES["silu"]) == ["SiLU"]
    assert _fused(tmp_path, CASES["mish by tanh"]) == ["Mish"]
    assert _fused(tmp_path, CASES["hard swish by clip"]) == _fused(tmp_path, CASES["hard swish by clip first"]) == ["Hardswish"]
    assert all(_fused(tmp_path, CASES[f"gelu by erf {order}"]) == ["GELU"] for order in (1, 2, 3))
    assert _fused(tmp_path, CASES["silu whose gate is read twice"]) == ["Sigmoid", "Function", "Function"]


REFUSED: dict[str, tuple[Case, tuple[str, ...]]] = {
    "product of tensors": (Case(node("MatMul", "x z", "y"), (1, 6), second=(6, 6)), ("two computed tensors", "attention")),
    "linear resize": (Case(node("Resize", "x _ s", "y", mode="linear"), constants={"s": _floats(1, 1, 2, 2)}), ("mode linear", "nearest")),
    "resize by 1.5": (Case(node("Resize", "x _ s", "y", mode="nearest"), constants={"s": _floats(1, 1, 1.5, 2)}), ("whole factors",)),
    "uneven nearest": (
        Case(
            node("Resize", "x _ s", "y", mode="nearest", nearest_mode="floor"), constants={"s": _floats(1, 1, 2, 2)},
        ),
        ("half_pixel, floor", "asymmetric"),
    ),
    "reflected pads": (_with("Pad", _ints(0, 0, 1, 1, 0, 0, 1, 1), mode="reflect"), ("mode reflect",)),
    "average without its pads": (_one("AveragePool", kernel_shape=[3, 3], pads=[0, 1, 1, 0]), ("count_include_pad 1",)),
    "mean over the batch": (_one("ReduceMean", opset=13, axes=[0, 1]), ("the batch among them",)),
    "batch axis moved": (_one("Transpose", perm=[1, 0, 2, 3]), ("the batch axis (2) first",)),
    "batch axis reshaped": (_with("Reshape", _ints(-1, 4)), ("the batch axis (2) first", "Flatten")),
    "negative step": (Case(node("Slice", "x s e a t", "y"), constants={"s": _ints(-1), "e": _ints(-99), "a": _ints(3), "t": _ints(-1)}),
                      ("step -1",)),
    "cube": (_with("Pow", np.float32(3)), ("the power 3",)),
    "to integers": (_one("Cast", to=7), ("a float type",)),
    "indices of a pool": (
        Case([node("MaxPool", "x", "p i", kernel_shape=[2, 2]), node("Cast", "i", "y", to=1)]), ("its result i is read",),
    ),
    "training": (
        Case(node("BatchNormalization", "x s b m v", "y", training_mode=1), constants={key: weights(1, 4) for key in "sbmv"}),
        ("training mode", "model.eval()"),
    ),
    "quantisation a channel": (
        Case([node("QuantizeLinear", "x s z", "q"), node("DequantizeLinear", "q s z", "y")],
             constants={"s": np.ones(4, np.float32), "z": np.zeros(4, np.int8)}),
        ("4 scales of an activation",),
    ),
    "other scale": (
        Case([node("QuantizeLinear", "x s z", "q"), node("DequantizeLinear", "q t z", "y")],
             constants={"s": np.float32(0.5), "t": np.float32(0.25), "z": np.int8(3)}),
        ("scale 0.25", "0.5 and 3"),
    ),
    "arithmetic on codes": (
        Case([node("QuantizeLinear", "x s z", "q"), node("Add", "q q", "p"), node("DequantizeLinear", "p s z", "y")],
             constants={"s": np.float32(0.5), "z": np.int8(3)}),
        ("computes on quantised integers", "QuantFormat.QDQ"),
    ),
    "16 bits": (
        Case([node("QuantizeLinear", "x s z", "q"), node("DequantizeLinear", "q s z", "y")], opset=21,
             constants={"s": np.float32(0.5), "z": np.int16(0)}),
        ("codes of int16", "8 bits"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused_names_its_layer_and_the_way_out(tmp_path: Path, name: str) -> None:
    case, says = REFUSED[name]
    with pytest.raises(UnsupportedError, match=r"cannot compile layer \w+_\d \(") as caught:
        load_onnx(save(case.model, tmp_path / "net.onnx"))
    assert [text for text in says if text not in caught.value.render()] == []
    assert caught.value.do
