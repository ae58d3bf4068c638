"""Additions done by the convolution before them, as it stores its results: one map less to keep, one pass less to make.

What is computed stays the same in every bit (SPEC 5.8); `split` gives back the graph before.
"""

from __future__ import annotations

from dataclasses import replace

from kqgen.intgraph import Addend, IntAdd, IntConv2d, IntGraph, IntNode


def fuse(graph: IntGraph) -> IntGraph:
    """The graph with every addition that can be part of a convolution made part of it.

    That takes a result that only the addition reads, and another operand that lies in the arena and that nobody reads afterwards,
    not even the convolution itself: its place becomes the output's. Of two such convolutions the one with more work takes the
    addition, and moves to where the addition stood.
    """
    nodes = list(graph.nodes)
    for node in graph.nodes:
        if isinstance(node, IntAdd) and node.name not in graph.outputs:
            host = _host(graph, nodes, node)
            if host is not None:
                nodes.remove(host)
                nodes[nodes.index(node)] = _joined(host, node)
    return replace(graph, nodes=tuple(nodes))


def _host(graph: IntGraph, nodes: list[IntNode], add: IntAdd) -> IntConv2d | None:
    """The convolution that can take the addition over; None where none can."""
    makers = {node.name: node for node in nodes}
    readers = [name for node in nodes for name in node.inputs]
    a, b = add.inputs
    found: list[IntConv2d] = []
    for name, other in ((a, b), (b, a)):
        conv = makers.get(name)
        fit = isinstance(conv, IntConv2d) and conv.addend is None and readers.count(name) == 1 and name not in graph.outputs
        # The other operand must be this addition's to overwrite, and no map that the convolution still reads.
        free = other in makers and other not in graph.outputs and isinstance(conv, IntConv2d) and other not in conv.inputs
        if fit and free and isinstance(conv, IntConv2d) and _last_reader(nodes, other) is add:
            found.append(conv)
    return max(found, key=lambda conv: conv.macs, default=None)


def _last_reader(nodes: list[IntNode], name: str) -> IntNode | None:
    return next((node for node in reversed(nodes) if name in node.inputs), None)


def _joined(conv: IntConv2d, add: IntAdd) -> IntConv2d:
    swapped = add.inputs[0] != conv.name
    a, b = (add.multiplier_b, add.multiplier_a) if swapped else (add.multiplier_a, add.multiplier_b)
    addend = Addend(conv.output, conv.lo, conv.hi, a, b, add.bias, add.shift, add.path, swapped)
    other = add.inputs[0] if swapped else add.inputs[1]
    return replace(
        conv, name=add.name, sources=(*conv.sources, *add.sources), inputs=(*conv.inputs, other), output=add.output, lo=add.lo,
        hi=add.hi, addend=addend,
    )  # fmt: skip


def split(graph: IntGraph) -> IntGraph:
    """The graph with every fused addition a layer of its own again."""
    nodes: list[IntNode] = []
    for node in graph.nodes:
        if isinstance(node, IntConv2d) and node.addend is not None:
            nodes.extend(_parted(node, node.addend))
        else:
            nodes.append(node)
    return replace(graph, nodes=tuple(nodes))


def _parted(node: IntConv2d, addend: Addend) -> tuple[IntConv2d, IntAdd]:
    made = addend.result
    conv = replace(
        node, name=made.name, inputs=node.inputs[:1], output=made, lo=addend.lo, hi=addend.hi, addend=None,
    )  # fmt: skip
    operands = (node.inputs[1], made.name) if addend.swapped else (made.name, node.inputs[1])
    a, b = (addend.multiplier_b, addend.multiplier_a) if addend.swapped else (addend.multiplier_a, addend.multiplier_b)
    return conv, IntAdd(node.name, addend.path, (addend.path,), operands, node.output, node.lo, node.hi, a, b, addend.bias, addend.shift)
