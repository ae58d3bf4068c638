"""One small .tflite model an operator, float or int8, with settings that are easy to get wrong: odd sizes, strides, uneven padding."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import OpResolverType
from tflitemodels import Array, Maker

Settings = dict[str, Any]


class Sketch:
    """A model of a few operators on random constants, float32 or int8 with scales of an ordinary size."""

    def __init__(self, int8: bool, seed: int = 0) -> None:
        self.int8, self.maker, self.rng = int8, Maker(), np.random.default_rng(seed)
        self.inputs: list[int] = []
        self.count = 0

    def _name(self, word: str) -> str:
        self.count += 1
        return f"{word}_{self.count}"

    def map(self, *shape: int, scale: float = 0.047, zero_point: int = 3, name: str = "map") -> int:
        """A computed tensor."""
        if not self.int8:
            return self.maker.tensor(self._name(name), shape, dtype="float32")
        return self.maker.tensor(self._name(name), shape, scale, zero_point)

    def input(self, *shape: int, scale: float = 0.05, zero_point: int = -7) -> int:
        """A tensor that the caller gives."""
        made = self.map(*shape, scale=scale, zero_point=zero_point, name="input")
        self.inputs.append(made)
        return made

    def numbers(self, *values: int) -> int:
        """A constant of whole numbers."""
        return self.maker.tensor(self._name("numbers"), (len(values),), values=np.array(values), dtype="int32")

    def weights(self, *shape: int, axis: int = 0, channels: bool = True) -> tuple[int, Array]:
        """Weights, and the scale of each channel."""
        if not self.int8:
            real = self.rng.normal(0, 0.3, shape)
            return self.maker.tensor(self._name("weights"), shape, values=real, dtype="float32"), np.ones(shape[axis])
        count = shape[axis] if channels else 1
        scale = self.rng.uniform(0.002, 0.02, count).astype(np.float32)
        values = self.rng.integers(-127, 128, shape)
        return self.maker.tensor(self._name("weights"), shape, scale, np.zeros(count, np.int64), values, axis=axis), scale

    def bias(self, count: int, scale: Array) -> int:
        """A bias that goes with an input of scale 0.05."""
        if not self.int8:
            return self.maker.tensor(self._name("bias"), (count,), values=self.rng.normal(0, 0.5, count), dtype="float32")
        values = self.rng.integers(-2000, 2000, count)
        scales = (0.05 * scale).astype(np.float32)
        return self.maker.tensor(self._name("bias"), (count,), scales, np.zeros(len(scales), np.int64), values, "int32")

    def constant(self, *shape: int) -> int:
        """An operand."""
        if not self.int8:
            return self.maker.tensor(self._name("constant"), shape, values=self.rng.normal(0, 1, shape), dtype="float32")
        return self.maker.tensor(self._name("constant"), shape, 0.03, 0, self.rng.integers(-127, 128, shape))

    def add(self, code: str, inputs: list[int], outputs: list[int], **settings: Any) -> None:
        """An operator; `settings` are fields of its table."""
        made = None
        table = _TABLES.get(code)
        if table is not None:
            made = getattr(schema, f"{table}T")()
            for name, value in settings.items():
                assert hasattr(made, name), name
                setattr(made, name, value)
        self.maker.operator(code, inputs, outputs, made, version=_VERSIONS.get(code, 1) if self.int8 else 1)

    def bytes(self, *outputs: int) -> bytes:
        """The file."""
        return self.maker.bytes(self.inputs, outputs)


_TABLES = {
    "CONV_2D": "Conv2DOptions", "DEPTHWISE_CONV_2D": "DepthwiseConv2DOptions", "FULLY_CONNECTED": "FullyConnectedOptions",
    "AVERAGE_POOL_2D": "Pool2DOptions", "MAX_POOL_2D": "Pool2DOptions", "ADD": "AddOptions", "SUB": "SubOptions", "MUL": "MulOptions",
    "DIV": "DivOptions", "SOFTMAX": "SoftmaxOptions", "MEAN": "ReducerOptions", "CONCATENATION": "ConcatenationOptions",
    "STRIDED_SLICE": "StridedSliceOptions", "LEAKY_RELU": "LeakyReluOptions", "SPLIT": "SplitOptions", "PAD": "PadOptions",
    "RESIZE_NEAREST_NEIGHBOR": "ResizeNearestNeighborOptions", "SLICE": "SliceOptions", "GELU": "GeluOptions",
    "RESHAPE": "ReshapeOptions", "SQUEEZE": "SqueezeOptions", "TRANSPOSE": "TransposeOptions", "EXPAND_DIMS": "ExpandDimsOptions",
    "ABS": "AbsOptions", "EXP": "ExpOptions", "SQUARE": "SquareOptions", "NEG": "NegOptions", "MAXIMUM": "MaximumMinimumOptions",
    "MINIMUM": "MaximumMinimumOptions",
}  # fmt: skip
_VERSIONS = {
    "CONV_2D": 3, "DEPTHWISE_CONV_2D": 3, "FULLY_CONNECTED": 4, "AVERAGE_POOL_2D": 2, "MAX_POOL_2D": 2, "ADD": 2, "SUB": 2, "MUL": 2,
    "SOFTMAX": 2, "MEAN": 2, "CONCATENATION": 2, "STRIDED_SLICE": 2, "LEAKY_RELU": 2, "SPLIT": 2, "PAD": 2, "LOGISTIC": 2, "TANH": 2,
    "RESIZE_NEAREST_NEIGHBOR": 2, "SLICE": 2, "QUANTIZE": 2, "RELU": 2, "RELU6": 2, "RELU_N1_TO_1": 2, "TRANSPOSE": 2,
}  # fmt: skip
SAME, VALID = 0, 1
RELU, RELU_N1_TO_1, RELU6 = 1, 2, 3


@dataclass(frozen=True, slots=True)
class Case:
    """A model of one operator.

    Attributes:
        name: of the test.
        make: puts the operator on a sketch and returns the numbers of the outputs.
        float_too: it is made in float32 as well.
        int8_too: it is made in int8 as well.
        kernels: TFLite's, to compare with.
    """

    name: str
    make: Callable[[Sketch], tuple[int, ...]]
    float_too: bool = True
    int8_too: bool = True
    kernels: OpResolverType = OpResolverType.BUILTIN_REF

    def bytes(self, int8: bool) -> bytes:
        """The file."""
        sketch = Sketch(int8)
        outputs = self.make(sketch)
        return sketch.bytes(*outputs)


def _conv(
    s: Sketch, sides: tuple[int, int, int], c_out: int, kernel: tuple[int, int], out: tuple[int, int], **settings: Any
) -> tuple[int, ...]:
    x = s.input(1, *sides)
    w, scale = s.weights(c_out, *kernel, sides[2])
    y = s.map(1, *out, c_out)
    s.add("CONV_2D", [x, w, s.bias(c_out, scale)], [y], **settings)
    return (y,)


def _depthwise(
    s: Sketch, sides: tuple[int, int, int], multiplier: int, kernel: tuple[int, int], out: tuple[int, int], **settings: Any
) -> tuple[int, ...]:
    x = s.input(1, *sides)
    w, scale = s.weights(1, *kernel, sides[2] * multiplier, axis=3)
    y = s.map(1, *out, sides[2] * multiplier)
    s.add("DEPTHWISE_CONV_2D", [x, w, s.bias(sides[2] * multiplier, scale)], [y], depthMultiplier=multiplier, **settings)
    return (y,)


def _pool(s: Sketch, code: str, out: tuple[int, int], **settings: Any) -> tuple[int, ...]:
    x = s.input(1, 7, 6, 5)
    y = s.map(1, *out, 5, scale=0.05, zero_point=-7)
    s.add(code, [x], [y], **settings)
    return (y,)


def _dense(s: Sketch, shape: tuple[int, ...], out: int, *, bias: bool = True, channels: bool = False, **settings: Any) -> tuple[int, ...]:
    x = s.input(*shape)
    w, scale = s.weights(out, int(np.prod(shape)), channels=channels)
    y = s.map(1, out, scale=0.3)
    s.add("FULLY_CONNECTED", [x, w, s.bias(out, scale) if bias else -1], [y], **settings)
    return (y,)


def _binary(s: Sketch, code: str, shapes: tuple[tuple[int, ...], tuple[int, ...]], **settings: Any) -> tuple[int, ...]:
    a, b = s.input(*shapes[0]), s.input(*shapes[1], scale=0.021, zero_point=12)
    y = s.map(*np.broadcast_shapes(*shapes), scale=0.06)
    s.add(code, [a, b], [y], **settings)
    return (y,)


def _with_constant(s: Sketch, code: str, shape: tuple[int, ...], left: bool = False, **settings: Any) -> tuple[int, ...]:
    x, k = s.input(1, 4, 5, 6), s.constant(*shape)
    y = s.map(1, 4, 5, 6, scale=0.06)
    s.add(code, [k, x] if left else [x, k], [y], **settings)
    return (y,)


def _unary(s: Sketch, code: str, scale: float = 0.05, zero_point: int = -7, source: float = 0.05, **settings: Any) -> tuple[int, ...]:
    x = s.input(1, 9, 9, 4, scale=source)
    y = s.map(1, 9, 9, 4, scale=scale, zero_point=zero_point)
    s.add(code, [x], [y], **settings)
    return (y,)


def _mean(s: Sketch, axes: tuple[int, ...], shape: tuple[int, ...], keep: bool) -> tuple[int, ...]:
    x = s.input(1, 5, 7, 6)
    y = s.map(*shape, scale=0.031, zero_point=4)
    s.add("MEAN", [x, s.numbers(*axes)], [y], keepDims=keep)
    return (y,)


def _softmax(s: Sketch, shape: tuple[int, ...], scale: float, beta: float = 1.0) -> tuple[int, ...]:
    x = s.input(*shape, scale=scale)
    y = s.map(*shape, scale=1 / 256, zero_point=-128)
    s.add("SOFTMAX", [x], [y], beta=beta)
    return (y,)


def _moves(
    s: Sketch, code: str, sources: list[tuple[int, ...]], constants: list[list[int]], out: tuple[int, ...], **settings: Any
) -> tuple[int, ...]:
    x = [s.input(*shape) for shape in sources]
    y = s.map(*out, scale=0.05, zero_point=-7)
    s.add(code, x + [s.numbers(*values) for values in constants], [y], **settings)
    return (y,)


def _pad(s: Sketch, counts: list[tuple[int, int]], out: tuple[int, ...]) -> tuple[int, ...]:
    x = s.input(1, 4, 5, 6)
    values = np.array(counts)
    k = s.maker.tensor("counts", values.shape, values=values, dtype="int32")
    y = s.map(*out, scale=0.05, zero_point=-7)
    s.add("PAD", [x, k], [y])
    return (y,)


def _split(s: Sketch) -> tuple[int, ...]:
    x = s.input(1, 4, 5, 6)
    axis = s.maker.tensor("axis", (), values=np.array(3), dtype="int32")
    parts = [s.map(1, 4, 5, 2, scale=0.05, zero_point=-7) for _ in range(3)]
    s.add("SPLIT", [axis, x], parts, numSplits=3)
    return tuple(parts)


def _prelu(s: Sketch) -> tuple[int, ...]:
    x, k = s.input(1, 9, 9, 4), s.constant(1, 1, 4)
    y = s.map(1, 9, 9, 4, scale=0.06)
    s.add("PRELU", [x, k], [y])
    return (y,)


def _flattened(s: Sketch) -> tuple[int, ...]:
    """A map, flattened, through a fully connected layer: the weights' order is TFLite's."""
    x = s.input(1, 3, 4, 5)
    flat = s.map(1, 60, scale=0.05, zero_point=-7)
    s.add("RESHAPE", [x, s.numbers(1, 60)], [flat], newShape=[1, 60])
    w, scale = s.weights(7, 60, channels=False)
    y = s.map(1, 7, scale=0.3)
    s.add("FULLY_CONNECTED", [flat, w, s.bias(7, scale)], [y])
    return (y,)


def _conv_settings(padding: int, stride: int = 1, activation: int = 0, dilation: int = 1) -> Settings:
    return {
        "padding": padding, "strideH": stride, "strideW": stride, "fusedActivationFunction": activation, "dilationHFactor": dilation,
        "dilationWFactor": dilation,
    }  # fmt: skip


def _pool_settings(padding: int, window: int, stride: int, activation: int = 0) -> Settings:
    return {
        "padding": padding, "strideH": stride, "strideW": stride, "filterHeight": window, "filterWidth": window,
        "fusedActivationFunction": activation,
    }  # fmt: skip


CASES = (
    Case("conv_same_stride_2_even", lambda s: _conv(s, (8, 6, 3), 5, (3, 3), (4, 3), **_conv_settings(SAME, 2, RELU))),
    Case("conv_same_stride_2_odd", lambda s: _conv(s, (9, 7, 3), 5, (3, 3), (5, 4), **_conv_settings(SAME, 2, RELU6))),
    Case("conv_valid", lambda s: _conv(s, (8, 6, 4), 6, (2, 5), (7, 2), **_conv_settings(VALID))),
    Case("conv_same_even_kernel", lambda s: _conv(s, (9, 6, 1), 4, (10, 4), (5, 3), **_conv_settings(SAME, 2, RELU_N1_TO_1))),
    Case("conv_dilated", lambda s: _conv(s, (9, 8, 3), 4, (3, 3), (9, 8), **_conv_settings(SAME, 1, RELU, 2))),
    Case("conv_pointwise_stride_2", lambda s: _conv(s, (5, 5, 4), 6, (1, 1), (3, 3), **_conv_settings(SAME, 2))),
    Case("depthwise_same", lambda s: _depthwise(s, (7, 6, 5), 1, (3, 3), (7, 6), **_conv_settings(SAME, 1, RELU))),
    Case("depthwise_stride_2", lambda s: _depthwise(s, (8, 6, 5), 1, (3, 3), (4, 3), **_conv_settings(SAME, 2, RELU6))),
    Case("depthwise_multiplier", lambda s: _depthwise(s, (7, 6, 3), 4, (3, 2), (7, 6), **_conv_settings(SAME))),
    Case("dense", lambda s: _dense(s, (1, 40), 9, fusedActivationFunction=RELU)),
    Case("dense_without_bias", lambda s: _dense(s, (1, 40), 9, bias=False)),
    Case("dense_by_channels", lambda s: _dense(s, (1, 40), 9, channels=True), float_too=False),
    Case("dense_on_a_map", lambda s: _dense(s, (1, 3, 4, 5), 9)),
    Case("dense_on_a_flattened_map", _flattened),
    Case("average_pool", lambda s: _pool(s, "AVERAGE_POOL_2D", (3, 3), **_pool_settings(VALID, 2, 2))),
    Case("average_pool_same", lambda s: _pool(s, "AVERAGE_POOL_2D", (7, 6), **_pool_settings(SAME, 3, 1))),
    Case("average_pool_uneven", lambda s: _pool(s, "AVERAGE_POOL_2D", (4, 3), **_pool_settings(SAME, 3, 2)), float_too=False),
    Case("max_pool", lambda s: _pool(s, "MAX_POOL_2D", (3, 3), **_pool_settings(VALID, 2, 2, RELU))),
    Case("max_pool_same", lambda s: _pool(s, "MAX_POOL_2D", (4, 3), **_pool_settings(SAME, 3, 2))),
    Case("add", lambda s: _binary(s, "ADD", ((1, 4, 5, 6), (1, 4, 5, 6)), fusedActivationFunction=RELU)),
    Case("add_vector", lambda s: _binary(s, "ADD", ((1, 4, 5, 6), (1, 1, 1, 6)))),
    Case("sub", lambda s: _binary(s, "SUB", ((1, 4, 5, 6), (1, 4, 5, 6)))),
    Case("mul", lambda s: _binary(s, "MUL", ((1, 4, 5, 6), (1, 4, 5, 6)), fusedActivationFunction=RELU6)),
    Case("mul_vector", lambda s: _binary(s, "MUL", ((1, 1, 1, 6), (1, 4, 5, 6)))),
    Case("div", lambda s: _with_constant(s, "DIV", (6,)), int8_too=False),
    Case("add_constant", lambda s: _with_constant(s, "ADD", (6,))),
    Case("add_constants", lambda s: _with_constant(s, "ADD", (1, 1, 1, 6), fusedActivationFunction=RELU)),
    Case("sub_from_constant", lambda s: _with_constant(s, "SUB", (1,), left=True)),
    Case("mul_constant", lambda s: _with_constant(s, "MUL", (6,))),
    Case("mean", lambda s: _mean(s, (1, 2), (1, 6), False)),
    Case("mean_kept", lambda s: _mean(s, (1, 2), (1, 1, 1, 6), True)),
    Case("mean_of_rows", lambda s: _mean(s, (1,), (1, 1, 7, 6), True)),
    Case("softmax", lambda s: _softmax(s, (1, 12), 0.11)),
    Case("softmax_sharp", lambda s: _softmax(s, (1, 12), 1.7)),
    Case("softmax_beta", lambda s: _softmax(s, (1, 12), 0.11, 0.5)),
    Case("softmax_of_a_map", lambda s: _softmax(s, (1, 4, 5, 6), 0.05)),
    Case("concat", lambda s: _moves(s, "CONCATENATION", [(1, 4, 5, 2), (1, 4, 5, 3)], [], (1, 4, 5, 5), axis=-1)),
    Case("concat_rows", lambda s: _moves(s, "CONCATENATION", [(1, 4, 5, 2), (1, 3, 5, 2)], [], (1, 7, 5, 2), axis=1)),
    Case("resize", lambda s: _moves(s, "RESIZE_NEAREST_NEIGHBOR", [(1, 3, 4, 5)], [[6, 12]], (1, 6, 12, 5), halfPixelCenters=True)),
    Case("slice", lambda s: _moves(s, "SLICE", [(1, 6, 5, 4)], [[0, 1, 2, 1], [1, 4, -1, 2]], (1, 4, 3, 2))),
    Case(
        "strided_slice",
        lambda s: _moves(
            s, "STRIDED_SLICE", [(1, 7, 6, 4)], [[0, 1, -5, 0], [0, 7, 6, 0], [1, 2, 2, 1]], (1, 3, 3, 4), beginMask=9, endMask=9
        ),
    ),
    Case("pad", lambda s: _pad(s, [(0, 0), (1, 2), (0, 3), (0, 0)], (1, 7, 8, 6))),
    Case("pad_channels", lambda s: _pad(s, [(0, 0), (0, 0), (0, 0), (2, 1)], (1, 4, 5, 9))),
    Case("split", _split),
    Case("relu", lambda s: _unary(s, "RELU", 0.04, -128)),
    Case("relu6", lambda s: _unary(s, "RELU6", 6 / 255, -128)),
    Case("leaky_relu", lambda s: _unary(s, "LEAKY_RELU", 0.06, 20, alpha=0.1)),
    Case("prelu", _prelu),
    Case("logistic", lambda s: _unary(s, "LOGISTIC", 1 / 256, -128)),
    Case("tanh", lambda s: _unary(s, "TANH", 1 / 128, 0)),
    Case("hard_swish", lambda s: _unary(s, "HARD_SWISH", 0.04, -60)),
    Case("elu", lambda s: _unary(s, "ELU", 0.05, -50), kernels=OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES),
    Case("quantize", lambda s: _unary(s, "QUANTIZE", 0.08, 11), float_too=False),
    *(
        Case(code.lower(), lambda s, code=code: _unary(s, code), int8_too=False)  # type: ignore[misc]
        for code in ("ABS", "EXP", "SQUARE", "NEG", "RELU_N1_TO_1")
    ),
    Case("maximum", lambda s: _with_constant(s, "MAXIMUM", (1,)), int8_too=False),
    Case("minimum", lambda s: _with_constant(s, "MINIMUM", (1,)), int8_too=False),
    Case("gelu", lambda s: _unary(s, "GELU"), int8_too=False),
)
"""Every operator, each with what distinguishes it."""
