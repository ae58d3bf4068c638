"""The float graph: what the front end reads out of PyTorch and every later stage but the integers works on.

A graph is a tuple of nodes in execution order. Each node makes exactly one tensor, which bears the node's name; `inputs`
names the tensors it reads. There is no batch axis: a shape is (c, h, w), channels first, as PyTorch has it. Weights are
float32 arrays that nobody may write to (`frozen_array`). A node knows the PyTorch module it came from (`path`).

Two levels share these types. The front end may emit any of them; after `simplify` only `Input`, `Conv2d`, `Add`,
`MaxPool`, `AvgPool`, `SlicePad`, `Clamp` are left, and batch norms, padding, flattening, dense layers and input scaling
have been folded into them.
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
    """

    name: str
    path: str
    inputs: tuple[str, ...]
    shape: Shape
    value: str = field(default="", kw_only=True)


@dataclass(frozen=True, slots=True, eq=False)
class Input(Node):
    """A tensor the caller gives; `uint8` tells that the model takes pixels 0..255 of that dtype."""

    uint8: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class Conv2d(Node):
    """A 2-D convolution, dilation 1, groups 1, with folded clamp.

    real output = clamp(sum over taps of weight * (input - input_offset) + bias, lo, hi); a padded tap contributes 0.

    Attributes:
        weight: (c_out, c_in, k_h, k_w) float32.
        bias: (c_out,) float32.
        stride: (rows, columns).
        padding: zeros added around the input (real 0 before `input_offset` is considered: padding contributes nothing).
        input_offset: (c_in,) float32, the real input value that stands for zero; from input scaling written in the model.
        lo, hi: the folded activation, +-inf when there is none.
        dense: the node was a fully connected layer (its kernel then covers the whole input).
        sources: paths of every module folded into this node, for the comments in the C.
        parameter: dotted name of the parameter the weight was read from, "" where it was computed.
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

    @property
    def kernel(self) -> Pair:
        """(k_h, k_w)."""
        return (int(self.weight.shape[2]), int(self.weight.shape[3]))


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
    """Sum of two tensors of one shape, with folded clamp."""

    lo: float = -math.inf
    hi: float = math.inf
    sources: tuple[str, ...] = ()


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
    """The option-A shortcut of ResNet: take every `step`-th row and column from `start`, add zero channels.

    output[c, y, x] = input[c - c_before, start_h + y * step_h, start_w + x * step_w], or 0 outside the input's channels.
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
    """

    name: str
    nodes: tuple[Node, ...]
    outputs: tuple[str, ...]
    flattened: frozenset[str] = frozenset()

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
