"""Folding of per-channel scale and offset (batch norm, constants, input scaling) into convolutions.

All products are taken in float64 and rounded to float32 once.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt

from kqgen.ir import ChannelAffine, Conv2d, Float32, Graph, Input, Node, frozen_array
from kqgen.simplify_rewrite import is_output, joined, only_reader, rewrite

_Float64 = npt.NDArray[np.float64]


def merge_affines(graph: Graph, node: Node) -> Graph | None:
    """Two affines in a row become one: scale2 * (scale1 * x + offset1) + offset2."""
    if not isinstance(node, ChannelAffine):
        return None
    first = graph.node(node.inputs[0])
    if not isinstance(first, ChannelAffine):
        return None
    scale = _wide(node.scale) * _wide(first.scale)
    offset = _wide(node.scale) * _wide(first.offset) + _wide(node.offset)
    merged = replace(node, inputs=first.inputs, path=node.path or first.path, scale=frozen_array(scale), offset=frozen_array(offset))
    return rewrite(graph, swap={node.name: merged})


def fold_affine_back(graph: Graph, node: Node) -> Graph | None:
    """An affine after a convolution that nothing else reads and that has no activation: weights and bias of each output channel."""
    if not isinstance(node, ChannelAffine):
        return None
    conv = graph.node(node.inputs[0])
    if not isinstance(conv, Conv2d) or only_reader(graph, conv.name) is not node or (conv.lo, conv.hi) != (-np.inf, np.inf):
        return None
    scale = _wide(node.scale)
    folded = replace(
        conv,
        weight=frozen_array(_wide(conv.weight) * scale[:, None, None, None]),
        bias=frozen_array(_wide(conv.bias) * scale + _wide(node.offset)),
        sources=joined(conv, node),
        value=node.value,
    )
    return rewrite(graph, drop={node.name}, swap={conv.name: folded}, rename={node.name: conv.name})


def fold_affine_forward(graph: Graph, node: Node) -> Graph | None:
    """An affine that only unpadded convolutions read: weights of each input channel, and the bias takes the sum over all taps."""
    if not isinstance(node, ChannelAffine) or is_output(graph, node.name):
        return None
    readers = graph.consumers(node.name)
    convs = [reader for reader in readers if isinstance(reader, Conv2d) and not any(reader.padding) and reader.input_offset is None]
    if not readers or len(convs) != len(readers):
        return None
    scale, offset = _wide(node.scale), _wide(node.offset)
    swap: dict[str, Node] = {
        conv.name: replace(
            conv,
            inputs=node.inputs,
            weight=_scaled(conv, scale),
            bias=frozen_array(_wide(conv.bias) + np.einsum("oihw,i->o", _wide(conv.weight), offset)),
            sources=joined(conv, node),
        )
        for conv in convs
    }
    return rewrite(graph, drop={node.name}, swap=swap)


def fold_input_scaling(graph: Graph, node: Node) -> Graph | None:
    """Scaling of a network input that only convolutions read, padded or not: w * (s * x + o) = (w * s) * (x - (-o / s)).

    A padded tap contributes 0 before and after. A channel of scale 0 folds only where its offset is 0 or nothing is padded.
    """
    if not isinstance(node, ChannelAffine) or is_output(graph, node.name):
        return None
    readers = graph.consumers(node.name)
    convs = [reader for reader in readers if isinstance(reader, Conv2d) and reader.input_offset is None]
    if not isinstance(graph.node(node.inputs[0]), Input) or not readers or len(convs) != len(readers):
        return None
    scale, offset = _wide(node.scale), _wide(node.offset)
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


def _scaled(conv: Conv2d, scale: _Float64) -> Float32:
    return frozen_array(_wide(conv.weight) * scale[None, :, None, None])


def _wide(values: Float32) -> _Float64:
    return values.astype(np.float64)
