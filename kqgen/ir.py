"""The float graph: what the front end reads out of PyTorch and every later stage but the integers works on.

A graph is a tuple of nodes in execution order. Each node makes exactly one tensor, which bears the node's name; `inputs`
names the tensors it reads. There is no batch axis: a shape is (c, h, w), channels first, as PyTorch has it. Weights are
float32 arrays that nobody may write to (`frozen_array`). A node knows the PyTorch module it came from (`path`).

Two levels share these types. The front end may emit any of them; after `simplify` only `Input`, `Conv2d`, `Add`, `Mul`, `Unary`,
`Softmax`, `ArgMax`, `Concat`, `Interleave`, `Upsample`, `MaxPool`, `AvgPool`, `SlicePad`, `Clamp` are left, and batch norms, padding,
flattening, dense layers, channel orders and input scaling have been folded into them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

Float32 = npt.NDArray[np.float32]
Shape = tuple[int, int, int]
Pair = tuple[int, int]
Padding = tuple[int, int, int, int]
"""Rows and columns added: (top, bottom, left, right)."""

NO_PADDING: Padding = (0, 0, 0, 0)

UNARY = (
    "sigmoid", "tanh", "hardsigmoid", "hardswish", "silu", "gelu", "gelu_tanh", "leaky_relu", "prelu", "elu", "softplus", "mish", "abs",
    "square", "exp",
)  # fmt: skip
"""Functions of one value that a table of 256 bytes computes."""


def frozen_array(values: npt.ArrayLike) -> Float32:
    """A float32 copy of `values` that cannot be written to."""
    out = np.array(values, dtype=np.float32, order="C", copy=True)
    out.setflags(write=False)
    return out


@dataclass(frozen=True, slots=True, eq=False)
class Node:
    """What all nodes share.

    Attributes:
        name: unique in the graph, a valid C identifier; also the name of the tensor this node makes.
        path: dotted path of the PyTorch module it came from, "" for the model's own forward().
        inputs: names of the tensors read, in operand order.
        shape: (c, h, w) of the tensor made; a vector of n features is (n, 1, 1).
        value: name, in the exported program, of the last operator folded into this node: where training simulates its rounding.
        pinned: (scale, zero point) that the model itself gives this tensor; None: calibration finds them.
    """

    name: str
    path: str
    inputs: tuple[str, ...]
    shape: Shape
    value: str = field(default="", kw_only=True)
    pinned: tuple[float, int] | None = field(default=None, kw_only=True)


@dataclass(frozen=True, slots=True, eq=False)
class Input(Node):
    """A tensor the caller gives; `uint8` tells that the model takes pixels 0..255 of that dtype."""

    uint8: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class Conv2d(Node):
    """A 2-D convolution with folded clamp.

    real output = clamp(sum over taps of weight * (input - input_offset) + bias, lo, hi); a padded tap contributes 0.

    Attributes:
        weight: (c_out, c_in / groups, k_h, k_w) float32; with `run` g > 1 (c_out, c_in / g, 1, g), see there.
        bias: (c_out,) float32.
        stride: (rows, columns).
        padding: zeros added around the input (real 0 before `input_offset` is considered: padding contributes nothing).
        input_offset: (c_in,) float32, the real input value that stands for zero; from input scaling written in the model.
        lo, hi: the folded activation, +-inf when there is none.
        dense: the node was a fully connected layer (its kernel then covers the whole input).
        sources: paths of every module folded into this node, for the comments in the C.
        parameter: dotted name of the parameter the weight was read from, "" where it was computed.
        groups: output channel o reads input channels (o // (c_out / groups)) * c_in / groups and on; after `simplify` 1, or c_in
            (depthwise).
        dilation: distance between taps, (rows, columns).
        run: g > 1: a 1x1 kernel whose "kernels" are runs of g input channels: weight[o, r, 0, j] belongs to input channel
            j * (c_in / g) + r. It is a (1, g) kernel of stride (stride_h, stride_w * g) on the bytes (h, w, c_in) read as
            (h, w * g, c_in / g).
    """

    weight: Float32
    bias: Float32
    stride: Pair = (1, 1)
    padding: Padding = NO_PADDING
    input_offset: Float32 | None = None
    lo: float = -math.inf
    hi: float = math.inf
    dense: bool = False
    sources: tuple[str, ...] = ()
    parameter: str = ""
    groups: int = 1
    dilation: Pair = (1, 1)
    run: int = 1

    @property
    def kernel(self) -> Pair:
        """(k_h, k_w) of the weight; (1, g) where there are runs of g channels."""
        return (int(self.weight.shape[2]), int(self.weight.shape[3]))

    @property
    def depthwise(self) -> bool:
        """Whether each output channel reads one input channel of several."""
        return self.groups > 1 and self.weight.shape[1] == 1


@dataclass(frozen=True, slots=True, eq=False)
class Linear(Node):
    """Fully connected layer on a flattened input: weight (out, in) in the order PyTorch flattens (c, h, w); see `Conv2d.parameter`."""

    weight: Float32
    bias: Float32
    parameter: str = ""


@dataclass(frozen=True, slots=True, eq=False)
class ChannelAffine(Node):
    """Per channel, output = scale * input + offset: an inference batch norm, or sub, div, mul by constants.

    Attributes:
        scale, offset: (c,) float32.
    """

    scale: Float32
    offset: Float32


@dataclass(frozen=True, slots=True, eq=False)
class Clamp(Node):
    """output = min(max(input, lo), hi): ReLU, ReLU6, hardtanh, clamp."""

    lo: float
    hi: float


@dataclass(frozen=True, slots=True, eq=False)
class Add(Node):
    """Sum, or with `minus` difference, of two tensors of one shape, with folded clamp."""

    lo: float = -math.inf
    hi: float = math.inf
    sources: tuple[str, ...] = ()
    minus: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class Mul(Node):
    """Product of two tensors, with folded clamp; the second has the first one's shape, or (c, 1, 1) and serves every position."""

    lo: float = -math.inf
    hi: float = math.inf
    sources: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, eq=False)
class Unary(Node):
    """A function of each value alone, one of `UNARY`, with folded clamp.

    Attributes:
        kind: which function.
        arguments: its numbers, in PyTorch's order (leaky_relu: slope; elu: alpha; ...).
        slope: (c,) float32, of a prelu; None elsewhere.
    """

    kind: str
    arguments: tuple[float, ...] = ()
    slope: Float32 | None = None
    lo: float = -math.inf
    hi: float = math.inf
    sources: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, eq=False)
class Softmax(Node):
    """exp(x) / sum of exp(x) over the channels of each position."""


@dataclass(frozen=True, slots=True, eq=False)
class ArgMax(Node):
    """The number of the largest channel of each position, the first of equals; shape (1, h, w), at most 256 channels."""


@dataclass(frozen=True, slots=True, eq=False)
class Concat(Node):
    """Tensors one behind the other along `axis`: 0 channels, 1 rows, 2 columns.

    Attributes:
        woven: g tensors of one shape give their channels in turn (axis 0): output channel k * g + j is channel k of tensor j.
    """

    axis: int = 0
    woven: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class Interleave(Node):
    """Tensors of one shape put between each other: output[c, y * rows + i, x * columns + j] = input i * columns + j at [c, y, x].

    Attributes:
        factor: (rows, columns); there are rows * columns inputs.
    """

    factor: Pair


@dataclass(frozen=True, slots=True, eq=False)
class Upsample(Node):
    """Each value `factor` times as often along rows and columns; with `zeros`, once, and zeros after it."""

    factor: Pair
    zeros: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class Shuffle(Node):
    """Channels in another order: output channel i is input channel order[i]. `simplify` folds it into weights or slices."""

    order: tuple[int, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Pin(Node):
    """The same values in a quantisation that the model gives (fake quantisation, QDQ): real = scale * (q - zero_point), q -128..127.

    `simplify` makes it the `pinned` of its input.
    """

    scale: float
    zero_point: int


@dataclass(frozen=True, slots=True, eq=False)
class Pad(Node):
    """Zeros around the map."""

    padding: Padding


@dataclass(frozen=True, slots=True, eq=False)
class MaxPool(Node):
    """Maximum over a window; padded positions never win."""

    kernel: Pair
    stride: Pair
    padding: Padding = NO_PADDING


@dataclass(frozen=True, slots=True, eq=False)
class AvgPool(Node):
    """Mean over a window with a constant divisor k_h * k_w (padding, if any, counts as zeros); clamp folded."""

    kernel: Pair
    stride: Pair
    padding: Padding = NO_PADDING
    lo: float = -math.inf
    hi: float = math.inf
    sources: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, eq=False)
class SlicePad(Node):
    """Part of a map, or a map with zeros around it: every `step`-th row and column from `start`, channels added or, below 0, dropped.

    output[c, y, x] = input[c - c_before, start_h + y * step_h, start_w + x * step_w], or 0 outside the input; `start`, c_before and
    c_after may be negative. The option-A shortcut of ResNet is one.
    """

    start: Pair = (0, 0)
    step: Pair = (1, 1)
    c_before: int = 0
    c_after: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class Flatten(Node):
    """(c, h, w) -> (c*h*w, 1, 1) in PyTorch's order."""


@dataclass(frozen=True, slots=True, eq=False)
class Graph:
    """A network as a list of nodes in execution order.

    Attributes:
        name: C identifier, prefix of everything generated.
        nodes: execution order; inputs first.
        outputs: names of the tensors the caller gets, in order.
        flattened: names of the outputs that PyTorch delivers as vectors (N, c*h*w) though they are maps here.
        channels_last: names of the outputs that PyTorch delivers with channels behind rows and columns, as they lie in the C's memory.
    """

    name: str
    nodes: tuple[Node, ...]
    outputs: tuple[str, ...]
    flattened: frozenset[str] = frozenset()
    channels_last: frozenset[str] = frozenset()

    def __iter__(self) -> Iterator[Node]:
        return iter(self.nodes)

    def node(self, name: str) -> Node:
        """The node that makes tensor `name`; KeyError if there is none."""
        for node in self.nodes:
            if node.name == name:
                return node
        raise KeyError(name)

    def consumers(self, name: str) -> tuple[Node, ...]:
        """The nodes that read tensor `name`."""
        return tuple(node for node in self.nodes if name in node.inputs)

    @property
    def inputs(self) -> tuple[Input, ...]:
        """The tensors the caller gives, in order."""
        return tuple(node for node in self.nodes if isinstance(node, Input))
