"""Which int8 codes each channel of an integer graph can hold, whatever the inputs: interval analysis, channel by channel.

A layer's bounds follow from those of its inputs by the integer reference itself: every operator but a convolution and a table rises
or falls with each of its operands, so maps filled with the lowest and the highest codes give the lowest and the highest results.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from kqgen import oracle
from kqgen.errors import InternalError
from kqgen.intgraph import (
    Int8,
    IntAdd,
    IntAssemble,
    IntAvgPool,
    IntClamp,
    IntConv2d,
    IntGraph,
    IntLookup,
    IntMaxPool,
    IntMeanWindow,
    IntMul,
    IntNode,
    IntRescaledAdd,
    IntSlicePad,
    QTensor,
    UniformWeights,
    frozen,
)

Float64 = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]

MONOTONE = (IntAdd, IntRescaledAdd, IntMul, IntAvgPool, IntMeanWindow, IntMaxPool, IntClamp, IntSlicePad, IntAssemble)
"""Operators whose results rise or fall with each operand as long as the others stay: extremes lie at extremes."""

_FULL = (-128, 127)


@dataclass(frozen=True, slots=True, eq=False)
class Span:
    """The codes that each channel of a tensor can hold: `lo` to `hi`, (c,) int8; equal where the channel is constant."""

    lo: Int8
    hi: Int8

    @property
    def constant(self) -> Mask:
        """(c,) whether a channel holds `lo` everywhere and always."""
        return np.asarray(self.lo == self.hi)


@dataclass(frozen=True, slots=True, eq=False)
class Taps:
    """A convolution as sums over taps of channels of the tensor it reads, dense layers and runs of channels too.

    Attributes:
        weights: (c_out, taps, c) effective integers, (c_out, taps, 1) of a depthwise layer.
        inside: (kinds, taps) whether a tap reads the map, not the padding, for every kind of output position there is.
        pads: (c,) what a padded tap reads.
    """

    weights: Float64
    inside: Mask
    pads: Float64

    def read(self, kind: int, codes: npt.NDArray[Any]) -> Float64:
        """(taps, c) what the taps read at positions of one kind where the map holds `codes` (c,)."""
        return np.where(self.inside[kind][:, None], codes.astype(np.float64)[None], self.pads[None])


def taps(graph: IntGraph, node: IntConv2d) -> Taps:
    """The sums that a convolution makes.

    Raises: InternalError: the layer's kernels do not cover whole channels of the tensor it reads.
    """
    weights = graph.weights(node).astype(np.float64)
    source = graph.tensor(node.inputs[0])
    inside = _inside(node)
    if node.depthwise:
        return Taps(weights.reshape(len(weights), -1, 1), inside, node.pad_values.astype(np.float64))
    if node.in_shape[2] == source.c:
        return Taps(weights.reshape(len(weights), -1, source.c), inside, node.pad_values.astype(np.float64))
    flat = weights.reshape(len(weights), -1)
    if flat.shape[1] % source.c or not inside.all():
        raise InternalError(f"layer {node.name} reads parts of channels", found=f"{node.in_shape} of {source.c} channels")
    count = flat.shape[1] // source.c
    return Taps(flat.reshape(len(flat), count, source.c), np.ones((1, count), np.bool_), np.zeros(source.c))


def _inside(node: IntConv2d) -> Mask:
    """Every different row of taps inside the map that output positions have, (kinds, k_h * k_w)."""
    top, bottom, left, right = node.padding
    rows = _line(node.in_shape[0], node.kernel[0], node.stride[0], node.dilation[0], (top, bottom))
    columns = _line(node.in_shape[1], node.kernel[1], node.stride[1], node.dilation[1], (left, right))
    both = rows[:, None, :, None] & columns[None, :, None, :]
    return both.reshape(len(rows) * len(columns), -1)


def _line(size: int, kernel: int, stride: int, dilation: int, padding: tuple[int, int]) -> Mask:
    count = (sum(padding) + size - dilation * (kernel - 1) - 1) // stride + 1
    at = np.arange(count)[:, None] * stride - padding[0] + np.arange(kernel)[None] * dilation
    return np.unique((at >= 0) & (at < size), axis=0)


def code_spans(graph: IntGraph) -> dict[str, Span]:
    """The span of every tensor, by name; the inputs' are all of int8.

    Args:
        graph: without additions inside convolutions (`fuse.split`).
    """
    spans = {tensor.name: _everything(tensor.c) for tensor in graph.inputs}
    for node in graph.nodes:
        spans[node.name] = _span(graph, node, [spans[name] for name in node.inputs])
    return spans


def _everything(channels: int, lo: int = _FULL[0], hi: int = _FULL[1]) -> Span:
    return Span(np.full(channels, lo, np.int8), np.full(channels, hi, np.int8))


def _span(graph: IntGraph, node: IntNode, sources: list[Span]) -> Span:
    match node:
        case IntConv2d():
            return _conv(graph, node, sources[0])
        case IntLookup():
            return _lookup(node, sources[0])
        case _ if isinstance(node, MONOTONE):
            return _corners(graph, node, sources)
        case _:
            return _everything(node.output.c, node.lo, node.hi)


def _conv(graph: IntGraph, node: IntConv2d, source: Span) -> Span:
    form = taps(graph, node)
    rising, falling = np.maximum(form.weights, 0), np.minimum(form.weights, 0)
    lows, highs = [], []
    for kind in range(len(form.inside)):
        low, high = form.read(kind, source.lo), form.read(kind, source.hi)
        lows.append(_sums(node, rising, low) + _sums(node, falling, high))
        highs.append(_sums(node, rising, high) + _sums(node, falling, low))
    bias = node.requant.bias.astype(np.float64)
    return Span(_codes(graph, node, bias + np.min(lows, axis=0)), _codes(graph, node, bias + np.max(highs, axis=0)))


def _sums(node: IntConv2d, weights: Float64, values: Float64) -> Float64:
    """(c_out,) sums of weights (c_out, taps, c) times values (taps, c): integers below 2^53, exact."""
    if not node.depthwise:
        return weights.reshape(len(weights), -1) @ values.reshape(-1)
    each = values[:, np.arange(len(weights)) * values.shape[1] // len(weights)]
    return np.asarray((weights[:, :, 0] * each.T).sum(axis=1), np.float64)


def _codes(graph: IntGraph, node: IntConv2d, sums: Float64) -> Int8:
    """The codes (c_out,) of accumulators, by the integer reference: those of a layer that has them as biases and reads zeros."""
    count = len(sums)
    point = QTensor("point", 1, 1, 1, 1.0, 0)
    layer = replace(
        node, inputs=("point",), output=replace(node.output, h=1, w=1), dense=False, depthwise=False, in_shape=(1, 1, 1), kernel=(1, 1),
        stride=(1, 1), padding=(0, 0, 0, 0), dilation=(1, 1), pad_values=frozen([0], np.int8),
        weights=UniformWeights(8, frozen(np.zeros((count, 1, 1, 1)), np.int8)),
        requant=replace(node.requant, bias=frozen(sums, np.int32)),
    )  # fmt: skip
    return _alone(graph, layer, (point,), [np.zeros((1, 1, 1, 1), np.int8)]).reshape(count)


def _alone(graph: IntGraph, node: IntNode, tensors: tuple[QTensor, ...], maps: list[Int8]) -> Int8:
    """What one layer makes of `maps`, by the integer reference."""
    single = replace(graph, inputs=tensors, nodes=(node,), outputs=(node.name,), flattened=frozenset())
    return oracle.run(single, {tensor.name: values for tensor, values in zip(tensors, maps, strict=True)})[node.name]


def _lookup(node: IntLookup, source: Span) -> Span:
    rows = np.broadcast_to(node.table, (node.output.c, 256))
    held = [rows[channel, int(lo) + 128 : int(hi) + 129] for channel, (lo, hi) in enumerate(zip(source.lo, source.hi, strict=True))]
    return Span(np.array([each.min() for each in held], np.int8), np.array([each.max() for each in held], np.int8))


def _corners(graph: IntGraph, node: IntNode, sources: list[Span]) -> Span:
    """The extremes over maps filled with the ends of their spans, in every combination; an operand read twice counts as two."""
    tensors = tuple(replace(graph.tensor(name), name=f"operand_{number}") for number, name in enumerate(node.inputs))
    ends = [(span.lo, span.hi) for span in sources]
    # The parts of an assembly do not meet: all low and all high are enough.
    combinations = list(zip(*ends, strict=True)) if isinstance(node, IntAssemble) else list(itertools.product(*ends))
    maps = [
        np.stack([np.broadcast_to(chosen[number], (tensor.h, tensor.w, tensor.c)) for chosen in combinations])
        for number, tensor in enumerate(tensors)
    ]
    renamed = replace(node, inputs=tuple(tensor.name for tensor in tensors))
    results = _alone(graph, renamed, tensors, maps).reshape(-1, node.output.c)
    return Span(results.min(axis=0), results.max(axis=0))
