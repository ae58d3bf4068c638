"""Quantisations that the model gives (`Pin`) become those of the tensors they stand behind."""

from __future__ import annotations

from dataclasses import replace

from kqgen.ir import ArgMax, AvgPool, Clamp, Flatten, Graph, Interleave, MaxPool, Node, Pin, Shuffle, SlicePad, Softmax, Upsample
from kqgen.simplify_rewrite import is_output, only_reader, rewrite

_MOVING = (Flatten, Shuffle, MaxPool, SlicePad, Upsample, Clamp, Interleave)
_SOFTMAX = (1 / 256, -128)


def hoist_pin(graph: Graph, node: Node) -> Graph | None:
    """A quantisation behind flattening is one before it; two equal ones in a row are one."""
    if not isinstance(node, Pin):
        return None
    source = graph.node(node.inputs[0])
    both = is_output(graph, node.name) and is_output(graph, source.name)
    if isinstance(source, Pin) and _numbers(source) == _numbers(node) and not both:
        return rewrite(graph, drop={node.name}, rename={node.name: source.name})
    if not isinstance(source, (Flatten, Shuffle)) or only_reader(graph, source.name) is not node or is_output(graph, node.name):
        return None
    first = replace(node, inputs=source.inputs, shape=graph.node(source.inputs[0]).shape)
    after = replace(source, inputs=(node.name,))
    order = [first if each is source else after if each is node else each for each in graph]
    moved = replace(graph, nodes=tuple(order))
    readers = {
        each.name: replace(each, inputs=tuple(source.name if name == node.name else name for name in each.inputs))
        for each in moved.consumers(node.name)
        if each.name != source.name
    }
    return rewrite(moved, swap=readers)


def place_pin(graph: Graph, node: Node) -> Graph | None:
    """A quantisation becomes that of the tensor before it, if nothing reads that otherwise; else the tensor is requantised."""
    if not isinstance(node, Pin):
        return None
    source = graph.node(node.inputs[0])
    held, pin = _held(graph, source), _numbers(node)
    if held == pin and not (is_output(graph, node.name) and (is_output(graph, source.name))):
        return rewrite(graph, drop={node.name}, rename={node.name: source.name})
    fixed = isinstance(source, (*_MOVING, Softmax, ArgMax))
    alone = all(isinstance(each, Pin) and _numbers(each) == pin for each in graph.consumers(source.name))
    if held is None and alone and not fixed and not is_output(graph, source.name):
        pinned = replace(source, pinned=pin, value=node.value or source.value)
        return rewrite(graph, drop={node.name}, swap={source.name: pinned}, rename={node.name: source.name})
    requantised = AvgPool(node.name, node.path, node.inputs, node.shape, (1, 1), (1, 1), value=node.value, pinned=pin)
    return rewrite(graph, swap={node.name: requantised})


def _held(graph: Graph, node: Node) -> tuple[float, int] | None:
    """The quantisation that a tensor has already, by itself or because it shares its input's."""
    if node.pinned is not None:
        return node.pinned
    if isinstance(node, (MaxPool, SlicePad, Upsample, Clamp)):
        return _held(graph, graph.node(node.inputs[0]))
    return _SOFTMAX if isinstance(node, Softmax) else None


def _numbers(node: Pin) -> tuple[float, int]:
    return (node.scale, node.zero_point)
