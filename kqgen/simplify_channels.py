"""Channels in another order, groups of channels, and maps put together: folded into weights, or made of slices and concatenations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from kqgen.ir import Clamp, Concat, Conv2d, Flatten, Graph, Node, Shuffle, SlicePad, Unary, frozen_array
from kqgen.simplify_rewrite import fresh, joined, only_reader, rewrite

_MOST_RUNS = 64


def fold_shuffle(graph: Graph, node: Node) -> Graph | None:
    """An order of channels goes into another order, the convolution before it, or the convolutions after it."""
    if not isinstance(node, Shuffle):
        return None
    source = graph.node(node.inputs[0])
    order = list(node.order)
    alone = only_reader(graph, source.name) is node
    if isinstance(source, Shuffle) and source.pinned is None:
        merged = replace(node, inputs=source.inputs, order=tuple(source.order[each] for each in order))
        return rewrite(graph, swap={node.name: merged})
    if alone and isinstance(source, Conv2d) and source.groups == 1 and len(order) <= source.shape[0]:
        rows = replace(
            source, shape=node.shape, weight=frozen_array(source.weight[order]), bias=frozen_array(source.bias[order]),
            sources=joined(source, node), parameter="", value=node.value or source.value,
        )  # fmt: skip
        return rewrite(graph, drop={node.name}, swap={source.name: rows}, rename={node.name: source.name})
    if alone and isinstance(source, (Unary, Clamp)):
        return _before(graph, node, source)
    return _woven(graph, node, source) or _into_readers(graph, node)


def _before(graph: Graph, node: Shuffle, source: Unary | Clamp) -> Graph:
    """The order first, the function after it."""
    first = replace(node, name=fresh(graph, node.name)[0], inputs=source.inputs)
    if isinstance(source, Unary) and source.slope is not None:
        source = replace(source, slope=frozen_array(source.slope[list(node.order)]))
    after: Node = replace(source, inputs=(first.name,), shape=node.shape)
    return rewrite(graph, drop={node.name}, swap={source.name: (first, after)}, rename={node.name: source.name})


def _woven(graph: Graph, node: Shuffle, source: Node) -> Graph | None:
    """Channels of the operands of a concatenation taken in turn."""
    if not isinstance(source, Concat) or source.axis != 0 or source.woven or source.pinned is not None:
        return None
    shapes = {graph.node(name).shape for name in source.inputs}
    if len(shapes) > 1 or node.order != turns(len(source.inputs), source.shape[0]):
        return None
    made = replace(source, name=node.name, path=node.path, woven=True, value=node.value or source.value, pinned=node.pinned)
    return rewrite(graph, swap={node.name: made})


def turns(groups: int, channels: int) -> tuple[int, ...]:
    """The channels of `groups` equal groups taken in turn."""
    return tuple(int(each) for each in np.arange(channels).reshape(groups, -1).T.ravel())


def _into_readers(graph: Graph, node: Shuffle) -> Graph | None:
    c = graph.node(node.inputs[0]).shape[0]
    readers = graph.consumers(node.name)
    convs = [each for each in readers if isinstance(each, Conv2d) and each.groups == 1 and each.run == 1 and each.input_offset is None]
    if not readers or len(convs) < len(readers) or node.name in graph.outputs or sorted(node.order) != list(range(c)):
        return None
    back = np.argsort(node.order)
    swap = {
        conv.name: replace(
            conv, inputs=node.inputs, weight=frozen_array(conv.weight[:, back]), sources=joined(conv, node), parameter=""
        )
        for conv in convs
    }
    return rewrite(graph, swap=swap)


def place_shuffle(graph: Graph, node: Node) -> Graph | None:
    """An order that went nowhere: slices, one behind the other or with channels in turn, else a convolution that picks."""
    if not isinstance(node, Shuffle):
        return None
    c = graph.node(node.inputs[0]).shape[0]
    runs = _runs(node.order)
    for groups in range(2, min(len(node.order) // 2, _MOST_RUNS) + 1):
        size, rest = divmod(len(node.order), groups)
        taken = tuple(first + number for number in range(size) for first in node.order[:groups])
        if rest == 0 and len(runs) > groups and node.order == taken:
            return _of_slices(graph, node, [(first, size) for first in node.order[:groups]], woven=True)
    if len(runs) <= _MOST_RUNS and c > 1:
        return _of_slices(graph, node, runs, woven=False)
    picks = np.zeros((len(node.order), c, 1, 1), dtype=np.float32)
    picks[np.arange(len(node.order)), list(node.order)] = 1.0
    conv = Conv2d(
        name=node.name, path=node.path, inputs=node.inputs, shape=node.shape, weight=frozen_array(picks),
        bias=frozen_array(np.zeros(len(node.order))), sources=joined(node), value=node.value, pinned=node.pinned,
    )  # fmt: skip
    return rewrite(graph, swap={node.name: conv})


def _runs(order: Sequence[int]) -> list[tuple[int, int]]:
    """Runs of neighbouring channels: (first, count)."""
    runs: list[tuple[int, int]] = []
    for each in order:
        if runs and each == sum(runs[-1]):
            runs[-1] = (runs[-1][0], runs[-1][1] + 1)
        else:
            runs.append((each, 1))
    return runs


def _of_slices(graph: Graph, node: Shuffle, runs: Sequence[tuple[int, int]], *, woven: bool) -> Graph:
    source = graph.node(node.inputs[0])
    names = fresh(graph, *(f"{node.name}_{number}" for number in range(len(runs))))
    slices = [channels(source, name, node.path, first, count) for name, (first, count) in zip(names, runs, strict=True)]
    if len(slices) == 1:
        return rewrite(graph, swap={node.name: replace(slices[0], name=node.name, value=node.value, pinned=node.pinned)})
    joint = Concat(node.name, node.path, names, node.shape, 0, woven, value=node.value or source.value, pinned=node.pinned)
    return rewrite(graph, swap={node.name: (*slices, joint)})


def channels(source: Node, name: str, path: str, first: int, count: int) -> SlicePad:
    """A slice called `name` of `count` channels of `source` from `first` on."""
    c, h, w = source.shape
    return SlicePad(name, path, (source.name,), (count, h, w), c_before=-first, c_after=first + count - c)


def split_groups(graph: Graph, node: Node) -> Graph | None:
    """A grouped convolution that is not depthwise: one convolution a group, on slices of the channels."""
    if not isinstance(node, Conv2d) or node.groups == 1 or node.depthwise:
        return None
    source = graph.node(node.inputs[0])
    size, rows = node.weight.shape[1], node.shape[0] // node.groups
    numbers = range(node.groups)
    parts = fresh(graph, *(f"{node.name}_in{number}" for number in numbers), *(f"{node.name}_{number}" for number in numbers))
    made: list[Node] = []
    for number in numbers:
        made.append(channels(source, parts[number], node.path, number * size, size))
        mine = slice(number * rows, (number + 1) * rows)
        offset = None if node.input_offset is None else frozen_array(node.input_offset[number * size : (number + 1) * size])
        made.append(
            replace(
                node, name=parts[node.groups + number], inputs=(parts[number],), shape=(rows, *node.shape[1:]), groups=1,
                weight=frozen_array(node.weight[mine]), bias=frozen_array(node.bias[mine]), input_offset=offset, parameter="",
                value="", pinned=None,
            )
        )  # fmt: skip
    joint = Concat(node.name, node.path, parts[node.groups :], node.shape, value=node.value, pinned=node.pinned)
    return rewrite(graph, swap={node.name: (*made, joint)})


def merge_concats(graph: Graph, node: Node) -> Graph | None:
    """A concatenation within another along the same axis is part of that."""
    if not isinstance(node, Concat) or node.woven:
        return None
    for name in node.inputs:
        inner = graph.node(name)
        if isinstance(inner, Concat) and inner.axis == node.axis and not inner.woven and only_reader(graph, name) is node:
            at = node.inputs.index(name)
            return rewrite(graph, swap={node.name: replace(node, inputs=(*node.inputs[:at], *inner.inputs, *node.inputs[at + 1 :]))})
    return None


def slice_concat(graph: Graph, node: Node) -> Graph | None:
    """Channels cut out of a concatenation come from its operands: one of them, a part of one, or some whole ones."""
    if not isinstance(node, SlicePad):
        return None
    source = graph.node(node.inputs[0])
    whole_map = (node.start, node.step) == ((0, 0), (1, 1)) and node.shape[1:] == source.shape[1:]
    if not isinstance(source, Concat) or source.axis != 0 or source.woven or not whole_map or max(node.c_before, node.c_after) > 0:
        return None
    if source.pinned is not None:
        return None
    first, last = -node.c_before, source.shape[0] + node.c_after
    start = 0
    spans = []
    for name in source.inputs:
        size = graph.node(name).shape[0]
        if start < last and start + size > first:
            spans.append((name, start, size))
        start += size
    name, start, size = spans[0]
    if len(spans) == 1:
        part = channels(graph.node(name), node.name, node.path, first - start, last - first)
        return rewrite(graph, swap={node.name: replace(part, value=node.value)})
    if first == start and last == spans[-1][1] + spans[-1][2]:
        joint = Concat(node.name, node.path, tuple(name for name, _, _ in spans), node.shape, value=node.value or source.value)
        return rewrite(graph, swap={node.name: joint})
    return None


def place_flatten(graph: Graph, node: Node) -> Graph | None:
    """Flattening that went nowhere, of few positions: each position's channels one behind the other, then in PyTorch's order."""
    if not isinstance(node, Flatten):
        return None
    source = graph.node(node.inputs[0])
    c, h, w = source.shape
    if h * w > _MOST_RUNS:
        return None
    names = fresh(graph, *(f"{node.name}_{number}" for number in range(h * w)), f"{node.name}_map")
    slices = [
        SlicePad(name, node.path, (source.name,), (c, 1, 1), start=divmod(number, w)) for number, name in enumerate(names[:-1])
    ]
    joint = Concat(names[-1], node.path, names[:-1], node.shape)
    order = tuple(int(each) for each in np.arange(c * h * w).reshape(h * w, c).T.ravel())
    shuffle = Shuffle(node.name, node.path, (joint.name,), node.shape, order, value=node.value, pinned=node.pinned)
    return rewrite(graph, swap={node.name: (*slices, joint, shuffle)})
