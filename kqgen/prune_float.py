"""Dead structure of the float graph: what its int8 lowering shows to be dead is removed before kernels are clustered.

Kernels of dead channels would take codewords and bits from the others. The judge is the network with every weight rounded to the
nearest of 8 bits; what remains is compressed, and judged once more as integers (`prune`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from kqgen.calibrate import Ranges
from kqgen.errors import InternalError
from kqgen.intgraph import IntGraph, UniformWeights, frozen
from kqgen.ir import Concat, Conv2d, Float32, Graph, Input, Node, SlicePad, Unary, frozen_array
from kqgen.kq_layers import LayerWeights, Quantised
from kqgen.kq_uniform import scale_floor, uniform
from kqgen.lower import lower
from kqgen.prune import Kept
from kqgen.prune_ranges import Mask


@dataclass(frozen=True, slots=True, eq=False)
class Rest:
    """What stays of a tensor of the float graph.

    Attributes:
        mask: (c,) bool, the channels that stay.
        values: (c,) float32, the real number that a removed channel stands for.
    """

    mask: Mask
    values: Float32


def rounded(graph: Graph, ranges: Ranges) -> IntGraph:
    """The integer graph of a simplified float graph with every weight rounded to the nearest of 8 bits."""
    layers = tuple((node.name, _nearest(node, ranges)) for node in graph if isinstance(node, Conv2d))
    return lower(graph, ranges, Quantised(layers, ()), "int8")


def _nearest(node: Conv2d, ranges: Ranges) -> LayerWeights:
    flat = node.weight.reshape(len(node.weight), -1).astype(np.float64)
    values, scale = uniform(flat, None, 8, scale_floor(node.bias, ranges[node.inputs[0]].scale))
    stored = UniformWeights(8, frozen(values.reshape(node.weight.shape).transpose(0, 2, 3, 1), np.int8))
    return LayerWeights(stored, scale, node.bias, "rounded")


def rests(integers: IntGraph, kept: Mapping[str, Kept]) -> dict[str, Rest]:
    """What stays of the float tensors of a network whose integers are `integers`, by name; tensors that stay whole left out."""
    found: dict[str, Rest] = {}
    for name, each in kept.items():
        if not each.mask.all():
            tensor = integers.tensor(name)
            found[name] = Rest(each.mask, frozen_array((each.codes.astype(np.float64) - tensor.zero_point) * tensor.scale))
    return found


def narrowed(graph: Graph, rest: Mapping[str, Rest], twins: Mapping[str, str] | None = None) -> Graph:
    """The graph without the channels that `rest` leaves out, what they added in the next biases; layers without channels vanish.

    Args:
        twins: layers to leave out too, and those that stand for them.
    """
    if not rest and not twins:
        return graph
    graph = _single(graph, twins or {})
    whole = {node.name: Rest(np.ones(node.shape[0], np.bool_), np.zeros(node.shape[0], np.float32)) for node in graph}
    every = {**whole, **rest}
    nodes = tuple(_narrowed(node, every) for node in graph if isinstance(node, Input) or every[node.name].mask.any())
    return replace(graph, nodes=nodes)


def _single(graph: Graph, twins: Mapping[str, str]) -> Graph:
    """The graph without twins; the layer that stands for one runs as early as that did."""
    order = dict.fromkeys(twins.get(node.name, node.name) for node in graph)
    nodes = (graph.node(name) for name in order)
    return replace(graph, nodes=tuple(replace(node, inputs=tuple(twins.get(name, name) for name in node.inputs)) for node in nodes))


def _narrowed(node: Node, rest: Mapping[str, Rest]) -> Node:
    masks = [rest[name].mask for name in (*node.inputs, node.name)]
    if all(mask.all() for mask in masks):
        return node
    out = masks[-1]
    shape = (int(out.sum()), *node.shape[1:])
    match node:
        case Conv2d():
            return replace(_narrowed_conv(node, rest[node.inputs[0]], out), shape=shape)
        case Unary() if node.slope is not None:
            return replace(node, shape=shape, slope=frozen_array(node.slope[out]))
        case SlicePad():
            before, after = _edges(node.c_before, masks), _edges(node.c_after, [mask[::-1] for mask in masks])
            return replace(node, shape=shape, c_before=before, c_after=after)
        case Concat():
            return replace(node, shape=shape, inputs=tuple(name for name in node.inputs if rest[name].mask.any()))
        case _:
            return replace(node, shape=shape)


def _edges(edge: int, masks: list[Mask]) -> int:
    """The channels added, or below 0 dropped, at the start of a map when only those of the masks (input, output) stay."""
    source, out = masks
    return int(out[:edge].sum()) if edge > 0 else -int(source[: -edge].sum())


def _narrowed_conv(node: Conv2d, source: Rest, rows: Mask) -> Conv2d:
    if node.run > 1:
        raise InternalError(f"layer {node.path or node.name}: channels are removed before they are cut into runs")
    if node.depthwise:
        return replace(node, weight=frozen_array(node.weight[rows]), bias=frozen_array(node.bias[rows]), groups=int(source.mask.sum()))
    offset = np.zeros(len(source.mask)) if node.input_offset is None else node.input_offset.astype(np.float64)
    lost = ~source.mask
    added = node.weight.astype(np.float64).sum(axis=(2, 3))[:, lost] @ (source.values - offset)[lost]
    return replace(
        node, weight=frozen_array(node.weight[rows][:, source.mask]), bias=frozen_array((node.bias + added)[rows]),
        input_offset=None if node.input_offset is None else frozen_array(node.input_offset[source.mask]),
    )  # fmt: skip
