"""Lowering: the float graph, its ranges and its quantised weights become the integer graph of SPEC 5, with the proof of SPEC 1.4.

The only place where real numbers turn into integers. Every rounding here is `half_up`; every bound is checked with exact
integers, and what does not fit is refused by layer name.
"""

from __future__ import annotations

from kqgen import ir, lower_conv, lower_maps
from kqgen.calibrate import Ranges
from kqgen.errors import InternalError
from kqgen.intgraph import IntConv2d, IntGraph, IntNode, KqWeights, QTensor
from kqgen.lower_checks import check_size, label
from kqgen.post_training import Quantised


def lower(graph: ir.Graph, ranges: Ranges, quantised: Quantised, compression: str) -> IntGraph:
    """The integer graph of `graph`.

    Args:
        graph: simplified float graph.
        ranges: scale and zero point of every tensor.
        quantised: stored weights and codebooks.
        compression: "kq" or "int8", carried along for reports.

    Raises:
        UnsupportedError: a size or value does not fit the fields of SPEC 8 or the bounds of SPEC 1.4; names the layer.
    """
    tensors = {node.name: _tensor(node, ranges) for node in graph}
    nodes = tuple(made for node in graph if not isinstance(node, ir.Input) for made in _lower_node(node, tensors, quantised))
    used = {node.weights.codebook for node in nodes if isinstance(node, IntConv2d) and isinstance(node.weights, KqWeights)}
    return IntGraph(
        name=graph.name,
        inputs=tuple(tensors[node.name] for node in graph.inputs),
        nodes=nodes,
        outputs=graph.outputs,
        flattened=graph.flattened,
        channels_last=graph.channels_last,
        codebooks=tuple(codebook for codebook in quantised.codebooks if codebook.name in used),
        compression=compression,
    )


def _tensor(node: ir.Node, ranges: Ranges) -> QTensor:
    """The int8 tensor of a node; softmax and argmax have the quantisation of SPEC 5.12 and 5.13 whatever was measured."""
    check_size(node)
    c, h, w = node.shape
    match node:
        case ir.Softmax():
            return QTensor(node.name, h, w, c, 1 / 256, -128)
        case ir.ArgMax():
            return QTensor(node.name, h, w, c, 1.0, -128)
        case _:
            entry = ranges[node.name]
            return QTensor(node.name, h, w, c, entry.scale, entry.zero_point)


def _lower_node(node: ir.Node, tensors: dict[str, QTensor], quantised: Quantised) -> tuple[IntNode, ...]:
    output = tensors[node.name]
    sources = [tensors[name] for name in node.inputs]
    if isinstance(node, ir.Conv2d):
        return (lower_conv.conv(node, sources[0], output, quantised),)
    made = lower_maps.lowered(node, sources, output)
    if not made:
        raise InternalError(f"simplify left a {type(node).__name__} at {label(node)}")
    return made
