"""Random int8 operators: a model of one operator for TFLite's reference kernels, and the integer node that must give the same codes."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import OpResolverType
from tflitemodels import Array, Maker, reference

from kqgen import fixed_tflite, nodes_tflite, tables_tflite
from kqgen.intgraph import IntMaxPool, IntNode, QTensor
from kqgen.nodes_tflite import Place, Weights

ACTIVATIONS = {0: (-math.inf, math.inf), 1: (0.0, math.inf), 2: (-1.0, 1.0), 3: (0.0, 6.0)}
"""Limits of a fused activation by the schema's number."""


@dataclass(frozen=True, slots=True, eq=False)
class Case:
    """One operator: `node` reads `sources`, which hold `inputs`, (1, h, w, c) int8 each; `wanted` is what TFLite makes of them."""

    node: IntNode
    sources: tuple[QTensor, ...]
    inputs: tuple[Array, ...]
    wanted: Array


class _Operator:
    """An operator under construction: what is random, its tensors in the file and in the graph."""

    def __init__(self, kind: str, number: int) -> None:
        self.rng = np.random.default_rng([sum(kind.encode()), number])
        self.kind, self.name = kind, f"{kind.lower()}_{number}"
        self.maker = Maker()
        self.sources: list[QTensor] = []
        self._made: list[int] = []

    def zero_point(self) -> int:
        return int(self.rng.integers(-128, 128))

    def scale(self, low: float, high: float) -> float:
        """A float32 number, even on a logarithmic scale."""
        return float(np.float32(np.exp(self.rng.uniform(math.log(low), math.log(high)))))

    def source(self, shape: tuple[int, int, int], scale: float, flat: bool = False) -> QTensor:
        zero = self.zero_point()
        tensor = QTensor(f"{self.name}_x{len(self.sources)}", *shape, scale, zero)
        file_shape = (1, tensor.size_bytes) if flat else (1, *shape)
        self._made.append(self.maker.tensor(tensor.name, file_shape, scale, zero))
        self.sources.append(tensor)
        return tensor

    def output(self, shape: tuple[int, int, int], scale: float, zero_point: int | None = None) -> QTensor:
        return QTensor(self.name, *shape, scale, self.zero_point() if zero_point is None else zero_point)

    def place(self, output: QTensor, activation: int = 0) -> Place:
        lo, hi = fixed_tflite.activation_codes(output.scale, output.zero_point, *ACTIVATIONS[activation])
        return Place(self.name, self.name, tuple(each.name for each in self.sources), tuple(self.sources), output, lo, hi)

    def case(self, node: IntNode, options: object = None, constants: tuple[int, ...] = (), version: int = 1, flat: bool = False) -> Case:
        out = node.output
        shape = (1, out.size_bytes) if flat else (1, out.h, out.w, out.c)
        y = self.maker.tensor("y", shape, out.scale, out.zero_point)
        self.maker.operator(self.kind, [*self._made, *constants], [y], options, version)
        arrays = tuple(self.rng.integers(-128, 128, (1, each.h, each.w, each.c)).astype(np.int8) for each in self.sources)
        # The reference kernels lack ELU; all others compute it from the same table.
        kernels = OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES if self.kind == "ELU" else OpResolverType.BUILTIN_REF
        wanted = reference(self.maker.bytes(self._made, [y]), *arrays, kernels=kernels)[0]
        return Case(node, tuple(self.sources), arrays, wanted.reshape(1, out.h, out.w, out.c))


def window(size: int, kernel: int, stride: int, dilation: int, same: bool) -> tuple[int, int, int]:
    """(outputs, padding before, padding behind) on one axis, as TFLite places windows."""
    span = (kernel - 1) * dilation + 1
    if not same:
        return (size - span) // stride + 1, 0, 0
    count = -(-size // stride)
    missing = max((count - 1) * stride + span - size, 0)
    return count, missing // 2, missing - missing // 2


def _weights(op: _Operator, shape: tuple[int, ...], scales: int, source_scale: float, lowest: int) -> tuple[Weights, Array]:
    values = op.rng.integers(lowest, 128, shape).astype(np.int8)
    values.flat[0] = lowest
    scale = op.rng.uniform(0.0005, 0.02, scales).astype(np.float32)
    bias = op.rng.integers(-3000, 3000, shape[0]).astype(np.int32)
    return Weights(values, scale, 0, bias), np.float32(source_scale) * scale


def _output_scale(op: _Operator, weights: Weights, source_scale: float) -> float:
    """So that results use the int8 range from a little to far beyond it."""
    spread = 5000.0 * math.sqrt(weights.values[0].size) * source_scale * float(weights.scale.mean())
    return float(np.float32(spread / op.rng.choice([4.0, 60.0, 300.0])))


def convolution(number: int, depthwise: bool = False, dilated: bool = False) -> Case:
    """CONV_2D or DEPTHWISE_CONV_2D; every third has a weight of -128."""
    op = _Operator("DEPTHWISE_CONV_2D" if depthwise else "CONV_2D", number)
    h, w, c_in = (int(each) for each in op.rng.integers(3, 9, 3))
    c_out, k, stride = (int(op.rng.integers(1, high)) for high in (11, 4, 3))
    dilation, same = (2, True) if dilated else (1, bool(op.rng.integers(2)))
    stride = 1 if dilated else stride
    c_out = c_in * (1 + number % 2) if depthwise else c_out
    source = op.source((h, w, c_in), op.scale(0.001, 0.1))
    weights, bias_scale = _weights(op, (c_out, k, k, 1 if depthwise else c_in), c_out, source.scale, -128 if number % 3 == 0 else -127)
    (rows, top, bottom), (columns, left, right) = (window(size, k, stride, dilation, same) for size in (h, w))
    stored = weights.values[..., 0].transpose(1, 2, 0)[None] if depthwise else weights.values
    constants = (
        op.maker.tensor("w", stored.shape, weights.scale, 0, stored, axis=3 if depthwise else 0),
        op.maker.tensor("b", (c_out,), bias_scale, 0, weights.bias, "int32"),
    )
    options = schema.DepthwiseConv2DOptionsT() if depthwise else schema.Conv2DOptionsT()
    options.strideH = options.strideW = stride
    options.dilationHFactor = options.dilationWFactor = dilation
    options.padding = 0 if same else 1
    options.fusedActivationFunction = activation = int(op.rng.integers(4))
    if depthwise:
        options.depthMultiplier = c_out // c_in
    place = op.place(op.output((rows, columns, c_out), _output_scale(op, weights, source.scale)), activation)
    node = nodes_tflite.convolution(
        place, weights, (stride, stride), (top, bottom, left, right), dilation=(dilation, dilation), depthwise=depthwise
    )
    return op.case(node, options, constants, 3)


def fully_connected(number: int) -> Case:
    """FULLY_CONNECTED with one scale for all outputs, or one each."""
    op = _Operator("FULLY_CONNECTED", number)
    shape = (int(op.rng.integers(1, 5)), int(op.rng.integers(1, 5)), int(op.rng.integers(1, 20)))
    c_out = int(op.rng.integers(1, 11))
    source = op.source(shape, op.scale(0.001, 0.1), flat=True)
    scales = 1 if number % 2 else c_out
    weights, bias_scale = _weights(op, (c_out, 1, 1, source.size_bytes), scales, source.scale, -128 if number % 3 == 0 else -127)
    constants = (
        op.maker.tensor("w", (c_out, source.size_bytes), weights.scale, 0, weights.values),
        op.maker.tensor("b", (c_out,), bias_scale, 0, weights.bias, "int32"),
    )
    options = schema.FullyConnectedOptionsT()
    options.fusedActivationFunction = activation = int(op.rng.integers(4))
    place = op.place(op.output((1, 1, c_out), _output_scale(op, weights, source.scale)), activation)
    return op.case(nodes_tflite.fully_connected(place, weights), options, constants, 4, flat=True)


def of_two(kind: str, number: int) -> Case:
    """ADD, SUB or MUL; the second map of every fourth serves all positions."""
    op = _Operator(kind, number)
    h, w, c = (int(each) for each in op.rng.integers(1, 9, 3))
    a = op.source((h, w, c), op.scale(0.001, 1.0))
    b = op.source((1, 1, c) if number % 4 == 0 else (h, w, c), op.scale(a.scale / 10, a.scale * 10))
    most = a.scale * b.scale if kind == "MUL" else max(a.scale, b.scale)
    output = op.output((h, w, c), op.scale(most / 2, most * (200 if kind == "MUL" else 10)))
    options = {"ADD": schema.AddOptionsT, "SUB": schema.SubOptionsT, "MUL": schema.MulOptionsT}[kind]()
    options.fusedActivationFunction = activation = int(op.rng.integers(4))
    place = op.place(output, activation)
    return op.case(nodes_tflite.multiply(place) if kind == "MUL" else nodes_tflite.add(place, minus=kind == "SUB"), options, version=2)


def pool(kind: str, number: int) -> Case:
    """AVERAGE_POOL_2D or MAX_POOL_2D; every seventh has a window of more than 361 values."""
    op = _Operator(kind, number)
    large = number % 7 == 0
    h, w, c = (int(each) for each in op.rng.integers(21 if large else 4, 26 if large else 14, 3))
    k, stride = int(op.rng.integers(20, 22) if large else op.rng.integers(1, 5)), int(op.rng.integers(1, 4))
    same, c = bool(op.rng.integers(2)), c % 9 + 1
    source = op.source((h, w, c), op.scale(0.001, 0.1))
    (rows, top, bottom), (columns, left, right) = (window(size, k, stride, 1, same) for size in (h, w))
    options = schema.Pool2DOptionsT()
    options.filterHeight = options.filterWidth = k
    options.strideH = options.strideW = stride
    options.padding = 0 if same else 1
    options.fusedActivationFunction = activation = int(op.rng.integers(4))
    place = op.place(op.output((rows, columns, c), source.scale, source.zero_point), activation)
    padding = (top, bottom, left, right)
    if kind == "AVERAGE_POOL_2D":
        return op.case(nodes_tflite.average_pool(place, (k, k), (stride, stride), padding), options, version=2)
    node = IntMaxPool(
        place.name, place.path, (place.path,), place.inputs, place.output, place.lo, place.hi, (k, k), (stride, stride), padding
    )
    return op.case(node, options, version=2)


def mean(number: int) -> Case:
    """MEAN over rows and columns, or over one of the two."""
    op = _Operator("MEAN", number)
    h, w, c = (int(each) for each in op.rng.integers(1, 17, 3))
    axes = [(1, 2), (1,), (2,)][number % 3]
    kernel = (h if 1 in axes else 1, w if 2 in axes else 1)
    source = op.source((h, w, c), op.scale(0.001, 0.1))
    axis = op.maker.tensor("axes", (len(axes),), values=np.array(axes), dtype="int32")
    options = schema.ReducerOptionsT()
    options.keepDims = True
    place = op.place(op.output((h // kernel[0], w // kernel[1], c), op.scale(source.scale / 6, source.scale * 3)))
    return op.case(nodes_tflite.mean(place, kernel), options, (axis,), 2)


_Table = Callable[[QTensor, QTensor], Array]


def unary(kind: str, number: int) -> Case:
    """An operator on one value, on all 256 of them."""
    op = _Operator(kind, number)
    source = op.source((1, 4, 64), op.scale(0.001, 1.0))
    fixed = {"LOGISTIC": (1 / 256, -128), "TANH": (1 / 128, 0)}.get(kind)
    output = op.output((1, 4, 64), *(fixed or (op.scale(source.scale / 3, source.scale * 3), None)))
    slope = float(np.float32(op.rng.choice([0.1, 0.3, -0.2, 1.5, 0.0])))
    tables: Mapping[str, _Table] = {
        "QUANTIZE": tables_tflite.requantised, "LOGISTIC": tables_tflite.logistic, "TANH": tables_tflite.tanh, "ELU": tables_tflite.elu,
        "HARD_SWISH": tables_tflite.hard_swish,
        "RELU": lambda x, y: tables_tflite.clamped(x, y, 0.0, math.inf),
        "RELU6": lambda x, y: tables_tflite.clamped(x, y, 0.0, 6.0),
        "RELU_N1_TO_1": lambda x, y: tables_tflite.clamped(x, y, -1.0, 1.0),
        "LEAKY_RELU": lambda x, y: tables_tflite.leaky(x, y, slope),
    }  # fmt: skip
    options = schema.LeakyReluOptionsT() if kind == "LEAKY_RELU" else None
    if options is not None:
        options.alpha = slope
    version = {"RELU_N1_TO_1": 1, "HARD_SWISH": 1, "QUANTIZE": 1, "ELU": 1}.get(kind, 2)
    return op.case(nodes_tflite.lookup(op.place(output), tables[kind](source, output)), options, version=version)


def prelu(number: int) -> Case:
    """PRELU with a slope for every channel."""
    op = _Operator("PRELU", number)
    source = op.source((5, 6, 7), op.scale(0.001, 1.0))
    output = op.output((5, 6, 7), op.scale(source.scale / 3, source.scale * 3))
    slopes, scale, zero = op.rng.integers(-128, 128, 7).astype(np.int8), op.scale(0.001, 0.02), op.zero_point()
    constant = op.maker.tensor("slopes", (1, 1, 7), scale, zero, slopes)
    table = tables_tflite.prelu(source, output, slopes, scale, zero)
    return op.case(nodes_tflite.lookup(op.place(output), table), None, (constant,))


KINDS: Mapping[str, Callable[[int], Case]] = {
    "CONV_2D": convolution,
    "DEPTHWISE_CONV_2D": lambda number: convolution(number, depthwise=True),
    "FULLY_CONNECTED": fully_connected,
    **{kind: lambda number, kind=kind: of_two(kind, number) for kind in ("ADD", "SUB", "MUL")},  # type: ignore[misc]
    **{kind: lambda number, kind=kind: pool(kind, number) for kind in ("AVERAGE_POOL_2D", "MAX_POOL_2D")},  # type: ignore[misc]
    "MEAN": mean,
    **{
        kind: lambda number, kind=kind: unary(kind, number)  # type: ignore[misc]
        for kind in ("QUANTIZE", "RELU", "RELU6", "RELU_N1_TO_1", "LOGISTIC", "TANH", "ELU", "HARD_SWISH", "LEAKY_RELU")
    },
    "PRELU": prelu,
}
"""A case of each operator by its number."""
