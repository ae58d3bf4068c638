"""Folding of per-channel scale and offset (batch norm, constants, input scaling) into convolutions.

All products are taken in float64 and rounded to float32 once.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from kqgen.ir import (
    Add,
    AvgPool,
    ChannelAffine,
    Concat,
    Conv2d,
    Float32,
    Graph,
    Input,
    Interleave,
    MaxPool,
    Node,
    Shuffle,
    SlicePad,
    Upsample,
    frozen_array,
)
from kqgen.simplify_rewrite import is_output, joined, only_reader, rewrite

_Float64 = npt.NDArray[np.float64]


def merge_affines(graph: Graph, node: Node) -> Graph | None:
    """Two affines in a row become one: scale2 * (scale1 * x + offset1) + offset2."""
    if not isinstance(node, ChannelAffine):
        return None
    first = graph.node(node.inputs[0])
    if not isinstance(first, ChannelAffine) or first.pinned is not None:
        return None
    scale = wide(node.scale) * wide(first.scale)
    offset = wide(node.scale) * wide(first.offset) + wide(node.offset)
    merged = replace(node, inputs=first.inputs, path=node.path or first.path, scale=frozen_array(scale), offset=frozen_array(offset))
    return rewrite(graph, swap={node.name: merged})


@dataclass(frozen=True, slots=True, eq=False)
class _Affine:
    """scale * x + offset, both (c,), of `node`; `value` as a node that takes it up has it (`ir.Node.value`)."""

    scale: _Float64
    offset: _Float64
    node: Node
    value: str

    def of(self, scale: _Float64, offset: _Float64) -> _Affine:
        """Another affine on the way back: no operator of the program makes what comes out of it."""
        return _Affine(scale, offset, self.node, "")


def fold_affine_back(graph: Graph, node: Node) -> Graph | None:
    """An affine goes into the convolutions before it, past averages, enlarging, slices, concatenations and additions.

    None of these may have another reader or, but where it can be scaled too, an activation.
    """
    if not isinstance(node, ChannelAffine):
        return None
    swap = _absorbed(graph, node.inputs[0], node, _Affine(wide(node.scale), wide(node.offset), node, node.value))
    if swap is None:
        return None
    source = node.inputs[0]
    return rewrite(graph, drop={node.name}, swap=swap, rename={node.name: source})


def absorbs(graph: Graph, node: Node) -> bool:
    """Whether an affine of one positive number for all channels, in place of `node`, would go into convolutions before it."""
    ones = np.ones(graph.node(node.inputs[0]).shape[0])
    return _absorbed(graph, node.inputs[0], node, _Affine(ones, ones, node, "")) is not None


def _absorbed(graph: Graph, name: str, reader: Node, affine: _Affine) -> dict[str, Node] | None:
    """The nodes that change, by name, so that tensor `name`, read by `reader`, comes out with the affine applied."""
    node = graph.node(name)
    if only_reader(graph, name) is not reader:
        return None
    if isinstance(node, Conv2d):
        conv = _scaled_rows(node, affine)
        return None if conv is None else {name: conv}
    parts = _before(graph, node, affine)
    if parts is None:
        return None
    found: dict[str, Node] = {name: replace(node, value=affine.value)}
    for source, part in zip(node.inputs, parts, strict=True):
        more = _absorbed(graph, source, node, part)
        if more is None:
            return None
        found |= more
    return found


def _before(graph: Graph, node: Node, affine: _Affine) -> list[_Affine] | None:
    """What would have to be applied to each operand instead of to the result; None where that is not the same."""
    scale, offset = affine.scale, affine.offset
    match node:
        case AvgPool() if not any(node.padding) and not _clamped(node):
            return [affine.of(scale, offset)]
        case MaxPool() if bool((scale > 0).all()):
            return [affine.of(scale, offset)]
        case Upsample() if not node.zeros or bool((offset == 0).all()):
            return [affine.of(scale, offset)]
        case Add() if not _clamped(node):
            return [affine.of(scale, offset), affine.of(scale, np.zeros_like(offset))]
        case Shuffle() if sorted(node.order) == list(range(graph.node(node.inputs[0]).shape[0])):
            back = np.argsort(node.order)
            return [affine.of(scale[back], offset[back])]
        case SlicePad() if adds_nothing(graph, node):
            ends = (-node.c_before, -node.c_after)
            return [affine.of(np.pad(scale, ends, constant_values=1.0), np.pad(offset, ends))]
        case Interleave():
            return [affine.of(scale, offset)] * len(node.inputs)
        case Concat() if node.axis != 0:
            return [affine.of(scale, offset)] * len(node.inputs)
        case Concat() if node.woven:
            count = len(node.inputs)
            return [affine.of(scale[number::count], offset[number::count]) for number in range(count)]
        case Concat():
            ends_of = np.cumsum([graph.node(name).shape[0] for name in node.inputs])[:-1]
            return [affine.of(*pair) for pair in zip(np.split(scale, ends_of), np.split(offset, ends_of), strict=True)]
        case _:
            return None


def adds_nothing(graph: Graph, node: SlicePad) -> bool:
    """Whether a slice only takes away: no zeros are put anywhere."""
    _, h, w = graph.node(node.inputs[0]).shape
    ends = [start + (count - 1) * step for start, count, step in zip(node.start, node.shape[1:], node.step, strict=True)]
    return min(*node.start, -node.c_before, -node.c_after) >= 0 and ends[0] < h and ends[1] < w


def _clamped(node: AvgPool | Add | Conv2d) -> bool:
    return (node.lo, node.hi) != (-math.inf, math.inf)


def _scaled_rows(conv: Conv2d, affine: _Affine) -> Conv2d | None:
    """The convolution with its output channels scaled and shifted; None where its activation does not allow that."""
    scale, offset = affine.scale, affine.offset
    lo, hi = conv.lo, conv.hi
    if _clamped(conv):
        scalar = bool((scale == scale[0]).all() and (offset == offset[0]).all())
        if scalar and scale[0] != 0:
            ends = sorted(float(scale[0] * end + offset[0]) for end in (lo, hi))
            lo, hi = ends[0], ends[1]
        elif not ((lo, hi) == (0.0, math.inf) and bool((scale > 0).all() and (offset == 0).all())):
            return None
    return replace(
        conv,
        weight=frozen_array(wide(conv.weight) * scale[:, None, None, None]),
        bias=frozen_array(wide(conv.bias) * scale + offset),
        lo=lo,
        hi=hi,
        sources=joined(conv, affine.node),
        value=affine.value,
    )


def fold_affine_forward(graph: Graph, node: Node) -> Graph | None:
    """An affine that only convolutions read: weights of each input channel, and the bias takes the sum over all taps.

    Where a convolution has padding the offset must be 0, for the padding stays 0.
    """
    if not isinstance(node, ChannelAffine) or is_output(graph, node.name) or node.pinned is not None:
        return None
    scale, offset = wide(node.scale), wide(node.offset)
    readers = graph.consumers(node.name)
    shifted = bool((offset != 0).any())
    convs = [
        reader
        for reader in readers
        if isinstance(reader, Conv2d) and reader.input_offset is None and reader.run == 1 and not (shifted and any(reader.padding))
    ]
    if not readers or len(convs) != len(readers):
        return None
    swap: dict[str, Node] = {
        conv.name: replace(
            conv,
            inputs=node.inputs,
            weight=_scaled(conv, scale),
            bias=frozen_array(wide(conv.bias) + np.einsum("oihw,oi->o", wide(conv.weight), _by_weight(conv, offset))),
            sources=joined(conv, node),
        )
        for conv in convs
    }
    return rewrite(graph, drop={node.name}, swap=swap)


def fold_input_scaling(graph: Graph, node: Node) -> Graph | None:
    """Scaling of a network input that only convolutions read, padded or not: w * (s * x + o) = (w * s) * (x - (-o / s)).

    A padded tap contributes 0 before and after. A channel of scale 0 folds only where its offset is 0 or nothing is padded.
    """
    if not isinstance(node, ChannelAffine) or is_output(graph, node.name) or node.pinned is not None:
        return None
    readers = graph.consumers(node.name)
    convs = [reader for reader in readers if isinstance(reader, Conv2d) and reader.input_offset is None and reader.groups == 1]
    if not isinstance(graph.node(node.inputs[0]), Input) or not readers or len(convs) != len(readers):
        return None
    scale, offset = wide(node.scale), wide(node.offset)
    if bool(((scale == 0) & (offset != 0)).any()):
        return None
    zero = -offset / np.where(scale == 0, 1.0, scale)
    raw_zero = frozen_array(zero) if bool((zero != 0).any()) else None
    swap: dict[str, Node] = {
        conv.name: replace(
            conv, inputs=node.inputs, weight=_scaled(conv, scale), input_offset=raw_zero, sources=joined(conv, node)
        )
        for conv in convs
    }
    return rewrite(graph, drop={node.name}, swap=swap)


def affine_to_depthwise(graph: Graph, node: Node) -> Graph | None:
    """An affine that went nowhere is a depthwise convolution of one tap."""
    if not isinstance(node, ChannelAffine):
        return None
    c = node.shape[0]
    conv = Conv2d(
        name=node.name, path=node.path, inputs=node.inputs, shape=node.shape, weight=frozen_array(node.scale.reshape(c, 1, 1, 1)),
        bias=node.offset, sources=joined(node), groups=c, value=node.value, pinned=node.pinned,
    )  # fmt: skip
    return rewrite(graph, swap={node.name: conv})


def _by_weight(conv: Conv2d, values: _Float64) -> _Float64:
    """(c_out, c_in / groups): the entry of `values` (c_in,) that each kernel reads."""
    c_out, per_group = conv.weight.shape[:2]
    group = np.arange(c_out) // (c_out // conv.groups)
    read: _Float64 = values[group[:, None] * per_group + np.arange(per_group)[None, :]]
    return read


def _scaled(conv: Conv2d, scale: _Float64) -> Float32:
    return frozen_array(wide(conv.weight) * _by_weight(conv, scale)[:, :, None, None])


def wide(values: Float32) -> _Float64:
    """The same numbers in float64."""
    return values.astype(np.float64)
