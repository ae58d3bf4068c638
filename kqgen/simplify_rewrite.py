"""The one way in which simplify changes a graph: a new graph with nodes dropped, replaced and renamed."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

from kqgen.frontend_names import unique
from kqgen.ir import Graph, Node


def rewrite(
    graph: Graph,
    *,
    drop: Collection[str] = (),
    swap: Mapping[str, Node | Sequence[Node]] | None = None,
    rename: Mapping[str, str] | None = None,
) -> Graph:
    """`graph` without the nodes `drop`, with the nodes `swap` in place of those of that name, reading `rename` for the old names.

    Renaming applies to what nodes read (in swapped nodes too) and to the outputs.
    """
    swap, rename = swap or {}, rename or {}

    def new(name: str) -> str:
        return rename.get(name, name)

    nodes = []
    for old in graph:
        if old.name in drop:
            continue
        made = swap.get(old.name, old)
        for node in (made,) if isinstance(made, Node) else made:
            inputs = tuple(new(name) for name in node.inputs)
            nodes.append(node if inputs == node.inputs else replace(node, inputs=inputs))
    return replace(
        graph,
        nodes=tuple(nodes),
        outputs=tuple(new(name) for name in graph.outputs),
        flattened=frozenset(new(name) for name in graph.flattened),
        channels_last=frozenset(new(name) for name in graph.channels_last),
    )


def fresh(graph: Graph, *wanted: str) -> tuple[str, ...]:
    """Names close to `wanted` that no node has, each once."""
    taken = {node.name for node in graph}
    made = []
    for name in wanted:
        made.append(unique(name, taken))
        taken.add(made[-1])
    return tuple(made)


def is_output(graph: Graph, name: str) -> bool:
    """Whether the caller gets tensor `name`."""
    return name in graph.outputs


def only_reader(graph: Graph, name: str) -> Node | None:
    """The node that reads `name`, if it is read once, by one node, is no output, and has no quantisation of the model's own."""
    readers = graph.consumers(name)
    if len(readers) != 1 or is_output(graph, name) or readers[0].inputs.count(name) != 1 or graph.node(name).pinned is not None:
        return None
    return readers[0]


def joined(node: Node, *others: Node) -> tuple[str, ...]:
    """The module paths of `node` and of those folded into it, each once, in order, without the empty path."""
    paths: list[str] = []
    for each in (node, *others):
        paths += getattr(each, "sources", ()) or (each.path,)
    return tuple(dict.fromkeys(path for path in paths if path))
