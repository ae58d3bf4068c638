"""The integer graph: what the generated C computes, number by number.

Maps are int8 in (h, w, c) order without a batch axis; a vector of n features is (1, 1, n). Every stored quantity has the
dtype SPEC.md gives it. Arrays may not be written to (`frozen`). `oracle` runs such a graph; `store` keeps it in a file;
`schedule`, `memory` and `views` turn it into C.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from kqgen.intweights import (
    Array,
    Int8,
    IntCodebook,
    KqWeights,
    Padding,
    Pair,
    QTensor,
    Requant,
    Rounding,
    UniformWeights,
    codeword_rows,
    effective_kernels,
    frozen,
)

__all__ = [
    "Addend", "Array", "Int8", "IntAdd", "IntArgMax", "IntAssemble", "IntAvgPool", "IntClamp", "IntCodebook",
    "IntConv2d", "IntGraph", "IntLookup", "IntMaxPool", "IntMeanWindow", "IntMul", "IntNode", "IntRescaledAdd",
    "IntSlicePad", "IntSoftmax", "KqWeights", "Padding", "Pair", "Part", "QTensor", "Requant", "Rounding",
    "UniformWeights", "codeword_rows", "effective_kernels", "frozen",
]  # fmt: skip


@dataclass(frozen=True, slots=True, eq=False)
class IntNode:
    """What all integer nodes share.

    Attributes:
        name: C identifier, also the output tensor's name.
        path: PyTorch module path; "" for the model's forward().
        sources: paths of all modules folded in.
        inputs: names of the tensors read.
        output: the tensor made.
        lo, hi: clamp of the result, -128 <= lo <= hi <= 127.
    """

    name: str
    path: str
    sources: tuple[str, ...]
    inputs: tuple[str, ...]
    output: QTensor
    lo: int
    hi: int


@dataclass(frozen=True, slots=True, eq=False)
class Addend:
    """An addition that a convolution does as it stores each result (SPEC 5.8): its result is operand a, what the output holds operand b.

    Attributes:
        result: what the convolution alone would make: its name and quantisation.
        lo, hi: clamp of that result.
        multiplier_a, multiplier_b, bias, shift: as in `IntAdd`.
        path: PyTorch module path of the addition.
        swapped: the graph before had the convolution's result as its second operand.
    """

    result: QTensor
    lo: int
    hi: int
    multiplier_a: int
    multiplier_b: int
    bias: int
    shift: int
    path: str
    swapped: bool


@dataclass(frozen=True, slots=True, eq=False)
class IntConv2d(IntNode):
    """Convolution or fully connected layer (SPEC 5.1).

    With an `addend` the node stands for the convolution and the addition after it: inputs are (the map convolved, the other operand),
    and name, output, lo and hi are those of the addition.

    Attributes:
        dense: a fully connected layer: the input counts as (1, 1, h*w*c), the kernel is 1x1.
        in_shape: (h, w, c) as the kernel reads it (for dense: (1, 1, n)).
        kernel, stride: (rows, columns).
        padding: (top, bottom, left, right).
        pad_values: (c_in,) int8, what a padded position reads.
        weights: how they are stored.
        requant: per output channel.
        weight_scale: (c_out,) float32, real weight = weight_scale * stored integer; for reports only.
        reason: why the weights are stored so, for reports.
        addend: the addition done on the way, if any.
        depthwise: output channel o reads input channel o // (c_out / c_in) alone.
        dilation: distance between taps, (rows, columns).

    Runs of g input channels (`ir.Conv2d.run`) need nothing of their own here: in_shape is (h, w * g, c_in / g), the kernel (1, g).
    """

    dense: bool
    in_shape: tuple[int, int, int]
    kernel: Pair
    stride: Pair
    padding: Padding
    pad_values: Int8
    weights: UniformWeights | KqWeights
    requant: Requant
    weight_scale: npt.NDArray[np.float32]
    reason: str
    addend: Addend | None = None
    depthwise: bool = False
    dilation: Pair = (1, 1)

    @property
    def run(self) -> int:
        """Channels of one pixel that the kernel reads as neighbouring columns (`ir.Conv2d.run`); 1 where its columns are the map's."""
        k_w, step = self.kernel[1], self.stride[1]
        if self.dense:
            return k_w
        cut = self.kernel[0] == 1 and not any(self.padding) and step % k_w == 0 and not self.depthwise
        return k_w if cut and self.output.w * step == self.in_shape[1] else 1

    @property
    def plain(self) -> tuple[Pair, Pair, int]:
        """Kernel, stride and input channels as the layer is written, however the kernel reads its map."""
        (k_h, k_w), (down, across), run = self.kernel, self.stride, self.run
        return (k_h, k_w // run), (down, 1 if self.dense else across // run), self.in_shape[2] * run

    @property
    def kernel_channels(self) -> int:
        """Input channels that one output channel reads."""
        return 1 if self.depthwise else self.in_shape[2]

    @property
    def result(self) -> tuple[QTensor, int, int]:
        """What the convolution alone makes, and its clamp: (tensor, lo, hi)."""
        return (self.output, self.lo, self.hi) if self.addend is None else (self.addend.result, self.addend.lo, self.addend.hi)

    @property
    def macs(self) -> int:
        """Multiply-accumulates of one run, padded taps counted."""
        return self.output.size_bytes * self.kernel[0] * self.kernel[1] * self.kernel_channels

    @property
    def weight_count(self) -> int:
        """Weights of the layer, before compression."""
        return self.output.c * self.kernel[0] * self.kernel[1] * self.kernel_channels


@dataclass(frozen=True, slots=True, eq=False)
class IntAdd(IntNode):
    """Sum of two maps (SPEC 5.2): clamp((a * multiplier_a + b * multiplier_b + bias) >> shift); multiplier_b < 0 for a difference."""

    multiplier_a: int
    multiplier_b: int
    bias: int
    shift: int


@dataclass(frozen=True, slots=True, eq=False)
class IntRescaledAdd(IntNode):
    """Sum or difference of two maps as TFLite's reference kernels round it (SPEC 5.14), in graphs of rule `tflite` alone.

    Each operand minus its zero point, times 2**20, and their sum, go through a requantisation of their own (SPEC 3.5).

    Attributes:
        zero_point_a, zero_point_b: the operands'.
        multiplier_a, multiplier_b, multiplier: of the operands and of their sum, 0..2**31-1.
        shift_a, shift_b, shift: theirs, 31..62.
        minus: b is subtracted.
        broadcast: b is (1, 1, c) and serves every position.
    """

    zero_point_a: int
    zero_point_b: int
    multiplier_a: int
    shift_a: int
    multiplier_b: int
    shift_b: int
    multiplier: int
    shift: int
    minus: bool
    broadcast: bool


@dataclass(frozen=True, slots=True, eq=False)
class IntMeanWindow(IntNode):
    """Mean of the codes of a window, padded positions left out, halves away from zero (SPEC 5.15); quantisation is the input's.

    TFLite's AVERAGE_POOL_2D. Its MEAN over rows and columns is an `IntAvgPool`.
    """

    kernel: Pair
    stride: Pair
    padding: Padding


@dataclass(frozen=True, slots=True, eq=False)
class IntAvgPool(IntNode):
    """Mean over a window (SPEC 5.3); `pad_value` is the input's zero point; one requantisation for all channels.

    By rule `tflite` multiplier and shift are those of SPEC 3.5 and `acc_shift` is `fixed_tflite.TWICE`.
    """

    kernel: Pair
    stride: Pair
    padding: Padding
    pad_value: int
    bias: int
    multiplier: int
    shift: int
    acc_shift: int


@dataclass(frozen=True, slots=True, eq=False)
class IntMaxPool(IntNode):
    """Maximum over a window (SPEC 5.4); padded positions never win; quantisation is the input's."""

    kernel: Pair
    stride: Pair
    padding: Padding


@dataclass(frozen=True, slots=True, eq=False)
class IntClamp(IntNode):
    """Clamp to lo..hi in the input's quantisation (SPEC 5.5)."""


@dataclass(frozen=True, slots=True, eq=False)
class IntSlicePad(IntNode):
    """Every step-th row and column from `start`, channels added or (below 0) dropped; `pad_value`, the zero point, outside (SPEC 5.6).

    Quantisation is the input's.
    """

    start: Pair
    step: Pair
    c_before: int
    c_after: int
    pad_value: int


@dataclass(frozen=True, slots=True, eq=False)
class IntLookup(IntNode):
    """A table of results (SPEC 5.9): out = table[q + 128], or table[channel][q + 128].

    Attributes:
        table: (1, 256) or (c, 256) int8.
    """

    table: Int8


@dataclass(frozen=True, slots=True, eq=False)
class IntMul(IntNode):
    """Product of two maps (SPEC 5.10): requantise((a - zero_point_a) * (b - zero_point_b)).

    Attributes:
        zero_point_a, zero_point_b: the operands'.
        multiplier, shift, acc_shift: as in `Requant`, for all channels.
        broadcast: b is (1, 1, c) and serves every position.
    """

    zero_point_a: int
    zero_point_b: int
    multiplier: int
    shift: int
    acc_shift: int
    broadcast: bool


@dataclass(frozen=True, slots=True)
class Part:
    """Where one input of an `IntAssemble` goes, and in which quantisation: out = clamp((q * multiplier + bias) >> shift) (SPEC 5.11).

    Attributes:
        source: number of the input.
        start: (row, column, channel) of its first value in the output.
        step: (rows, columns) between its values there.
        multiplier, bias, shift: to the output's quantisation; 1, 0, 0 copies.
        channel_step: between its channels there; above 1 the output has channel_step times its channels, and step is (1, 1).
    """

    source: int
    start: tuple[int, int, int]
    step: Pair
    multiplier: int
    bias: int
    shift: int
    channel_step: int = 1


@dataclass(frozen=True, slots=True, eq=False)
class IntAssemble(IntNode):
    """A map put together of others: concatenation, enlarging, interleaving (SPEC 5.11).

    Attributes:
        parts: in the order they are placed; an input may be placed several times.
        fill: what positions hold that no part covers; None: the parts cover all.
    """

    parts: tuple[Part, ...]
    fill: int | None = None


@dataclass(frozen=True, slots=True, eq=False)
class IntSoftmax(IntNode):
    """Softmax over the channels of each position (SPEC 5.12); the output has scale 1/256 and zero point -128.

    Attributes:
        exponentials: (n,) int32, n 1..256: exp(-difference * input scale) in Q0.31 by difference from the largest; 0 beyond.
    """

    exponentials: npt.NDArray[np.int32]


@dataclass(frozen=True, slots=True, eq=False)
class IntArgMax(IntNode):
    """The number of the largest channel, the first of equals, minus 128 (SPEC 5.13); the output has scale 1 and zero point -128."""


@dataclass(frozen=True, slots=True, eq=False)
class IntGraph:
    """A whole network in integers.

    Attributes:
        name: C identifier.
        inputs: tensors the caller gives, in order.
        nodes: execution order.
        outputs: names of the tensors the caller gets, in order; each is made by a node.
        flattened: outputs that PyTorch delivers as vectors in (c, h, w) order.
        codebooks: in order of first use.
        rounding: the one requantisation rule of this graph.
        compression: "kq" or "int8", as asked for.
        channels_last: outputs that PyTorch delivers as they lie in memory, channels behind rows and columns.
    """

    name: str
    inputs: tuple[QTensor, ...]
    nodes: tuple[IntNode, ...]
    outputs: tuple[str, ...]
    flattened: frozenset[str]
    codebooks: tuple[IntCodebook, ...]
    rounding: Rounding = "half_up"
    compression: str = "kq"
    channels_last: frozenset[str] = frozenset()

    def tensor(self, name: str) -> QTensor:
        """The tensor called `name`; KeyError if there is none."""
        for tensor in (*self.inputs, *(node.output for node in self.nodes)):
            if tensor.name == name:
                return tensor
        raise KeyError(name)

    def codebook(self, name: str) -> IntCodebook:
        """The codebook called `name`; KeyError if there is none."""
        for codebook in self.codebooks:
            if codebook.name == name:
                return codebook
        raise KeyError(name)

    def weights(self, conv: IntConv2d) -> Int8:
        """The effective integer weights of a layer, (c_out, k_h, k_w, c_in) int8, codebook looked up and sign applied."""
        stored = conv.weights
        if isinstance(stored, UniformWeights):
            return stored.values
        return effective_kernels(stored, self.codebook(stored.codebook))
