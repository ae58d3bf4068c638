"""The order of layers that do not depend on one another: a shortcut runs as late as it can where less memory is then alive."""

from __future__ import annotations

from dataclasses import replace

from kqgen.intgraph import IntConv2d, IntGraph, IntNode
from kqgen.memory import alive_bytes


def reorder(graph: IntGraph) -> IntGraph:
    """The graph with every layer that only a later one reads moved to just before that one, wherever this needs less memory.

    Less is: fewer bytes alive where most are, or as many there and fewer while a multiplication is done: scratch makes layers of many
    multiplications fast.
    """
    best, price = graph, _price(graph)
    for node in graph.nodes:
        tried = replace(graph, nodes=_late(best.nodes, node))
        cost = _price(tried)
        if cost < price:
            best, price = tried, cost
    return best


def _price(graph: IntGraph) -> tuple[int, int]:
    alive = alive_bytes(graph)
    work = (node.macs if isinstance(node, IntConv2d) else 0 for node in graph.nodes)
    return max(alive), sum(held * macs for held, macs in zip(alive, work, strict=True))


def _late(nodes: tuple[IntNode, ...], node: IntNode) -> tuple[IntNode, ...]:
    """The nodes with `node` just before the first one that reads it; unchanged for an output nobody reads."""
    others = [each for each in nodes if each is not node]
    first = next((number for number, each in enumerate(others) if node.name in each.inputs), None)
    return nodes if first is None else (*others[:first], node, *others[first:])
