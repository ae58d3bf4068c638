"""Folding of padding, slices, flattening and fully connected layers."""

from __future__ import annotations

from dataclasses import replace

from kqgen.errors import InternalError
from kqgen.ir import (
    Add,
    AvgPool,
    Clamp,
    Concat,
    Conv2d,
    Flatten,
    Graph,
    Input,
    Interleave,
    Linear,
    MaxPool,
    Mul,
    Node,
    Pad,
    Padding,
    Shuffle,
    SlicePad,
    Softmax,
    Unary,
    Upsample,
    frozen_array,
)
from kqgen.simplify_affine import adds_nothing
from kqgen.simplify_rewrite import is_output, joined, only_reader, rewrite

_NEVER_NEGATIVE = ("sigmoid", "hardsigmoid", "softplus", "abs", "square", "exp")


def sink_flatten(graph: Graph, node: Node) -> Graph | None:
    """An activation of a flattened map is the flattened activation of the map."""
    if not isinstance(node, Clamp) or node.pinned is not None:
        return None
    flat = graph.node(node.inputs[0])
    if not isinstance(flat, Flatten) or only_reader(graph, flat.name) is not node or is_output(graph, node.name):
        return None
    source = graph.node(flat.inputs[0])
    clamp = replace(node, inputs=flat.inputs, shape=source.shape)
    after = replace(flat, inputs=(node.name,))
    order = [clamp if each is flat else after if each is node else each for each in graph]
    moved = replace(graph, nodes=tuple(order))
    readers = {each.name: _reading(each, {node.name: flat.name}) for each in moved.consumers(node.name) if each.name != flat.name}
    return rewrite(moved, swap=readers)


def dense_to_conv(graph: Graph, node: Node) -> Graph | None:
    """A fully connected layer becomes a convolution whose kernel covers the whole map it reads."""
    if isinstance(node, Conv2d):
        return _dense_of_flattened(graph, node)
    if not isinstance(node, Linear):
        return None
    source = graph.node(node.inputs[0])
    folded: tuple[Node, ...] = (source,) if _movable(source) else ()
    source = graph.node(source.inputs[0]) if _movable(source) else source
    c, h, w = source.shape
    if node.weight.shape[1] != c * h * w:
        raise InternalError(f"{node.name} has {node.weight.shape[1]} input weights", found=f"input {source.shape}")
    conv = Conv2d(
        name=node.name,
        path=node.path,
        inputs=(source.name,),
        shape=node.shape,
        weight=frozen_array(node.weight.reshape(-1, c, h, w)),
        bias=node.bias,
        dense=True,
        sources=joined(node, *folded),
        parameter=node.parameter,
        value=node.value,
        pinned=node.pinned,
    )
    return rewrite(graph, swap={node.name: conv})


def _dense_of_flattened(graph: Graph, node: Conv2d) -> Graph | None:
    """A dense convolution of one tap on a flattened map is one over the map."""
    flat = graph.node(node.inputs[0])
    if not (node.dense and _movable(flat) and node.kernel == (1, 1) and node.run == 1 and node.input_offset is None):
        return None
    c, h, w = graph.node(flat.inputs[0]).shape
    whole = replace(node, inputs=flat.inputs, weight=frozen_array(node.weight.reshape(-1, c, h, w)), sources=joined(node, flat))
    return rewrite(graph, swap={node.name: whole})


def _movable(node: Node) -> bool:
    return isinstance(node, Flatten) and node.pinned is None


def fold_pad(graph: Graph, node: Node) -> Graph | None:
    """Zeros go into one reader: another Pad, a convolution, an average pooling, or a max pooling where they cannot win wrongly.

    An activation that leaves zero at zero moves before the padding.
    """
    if not isinstance(node, Pad) or is_output(graph, node.name) or node.pinned is not None:
        return None
    for reader in graph.consumers(node.name):
        if isinstance(reader, Pad):
            into: Node = replace(reader, inputs=node.inputs, padding=_plus(reader.padding, node.padding))
        elif (isinstance(reader, Conv2d) and reader.input_offset is None) or isinstance(reader, AvgPool):
            into = replace(
                reader, inputs=node.inputs, padding=_plus(reader.padding, node.padding), sources=joined(reader, node)
            )
        elif isinstance(reader, MaxPool) and _zeros_never_matter(graph, node, reader):
            into = replace(reader, inputs=node.inputs, padding=_plus(reader.padding, node.padding))
        elif isinstance(reader, Clamp) and reader.lo <= 0 <= reader.hi and only_reader(graph, node.name) is reader:
            if reader.pinned is not None:
                continue
            clamp = replace(reader, inputs=node.inputs, shape=graph.node(node.inputs[0]).shape)
            pad = replace(node, inputs=(reader.name,))
            order = [clamp if each is node else pad if each is reader else each for each in graph]
            moved = replace(graph, nodes=tuple(order))
            readers = {
                each.name: _reading(each, {clamp.name: pad.name}) for each in moved.consumers(clamp.name) if each.name != pad.name
            }
            outputs = tuple(pad.name if name == clamp.name else name for name in moved.outputs)
            return replace(rewrite(moved, swap=readers), outputs=outputs)
        else:
            continue
        return rewrite(graph, swap={reader.name: into})
    return None


def pad_to_slice(graph: Graph, node: Node) -> Graph | None:
    """Padding that went nowhere is a slice that begins before the map."""
    if not isinstance(node, Pad):
        return None
    top, _, left, _ = node.padding
    made = SlicePad(
        name=node.name, path=node.path, inputs=node.inputs, shape=node.shape, start=(-top, -left), value=node.value, pinned=node.pinned
    )
    return rewrite(graph, swap={node.name: made})


def merge_slices(graph: Graph, node: Node) -> Graph | None:
    """SlicePad of a SlicePad: starts and steps compose, channels add up, where zeros of either stay zeros."""
    if not isinstance(node, SlicePad):
        return None
    first = graph.node(node.inputs[0])
    if not isinstance(first, SlicePad) or first.pinned is not None:
        return None
    exposes = any(a < 0 < b for a, b in ((first.c_before, node.c_before), (first.c_after, node.c_after)))
    inside = adds_nothing(graph, replace(node, c_before=0, c_after=0))
    same = (first.start, first.step) == ((0, 0), (1, 1)) and first.shape[1:] == graph.node(first.inputs[0]).shape[1:]
    if exposes or not (inside or same):
        return None
    merged = replace(
        node,
        inputs=first.inputs,
        start=(first.start[0] + first.step[0] * node.start[0], first.start[1] + first.step[1] * node.start[1]),
        step=(first.step[0] * node.step[0], first.step[1] * node.step[1]),
        c_before=first.c_before + node.c_before,
        c_after=first.c_after + node.c_after,
    )
    return rewrite(graph, swap={node.name: merged})


def never_negative(graph: Graph, name: str) -> bool:
    """Whether tensor `name` is provably >= 0 whatever the inputs are."""
    node = graph.node(name)
    match node:
        case Input():
            return node.uint8
        case Clamp():
            return node.lo >= 0 or (node.hi >= 0 and never_negative(graph, node.inputs[0]))
        case Conv2d():
            return node.lo >= 0
        case Unary():
            return node.lo >= 0 or (node.hi >= 0 and node.kind in _NEVER_NEGATIVE)
        case Add() | AvgPool() | Mul():
            operands = not (isinstance(node, Add) and node.minus) and all(never_negative(graph, each) for each in node.inputs)
            return node.lo >= 0 or (node.hi >= 0 and operands)
        case Softmax():
            return True
        case MaxPool() | SlicePad() | Flatten() | Pad() | Concat() | Interleave() | Upsample() | Shuffle():
            return all(never_negative(graph, each) for each in node.inputs)
        case _:
            return False


def _zeros_never_matter(graph: Graph, pad: Pad, pool: MaxPool) -> bool:
    """Zeros lose or tie against values >= 0, provided that each window holds at least one of these."""
    _, h, w = graph.node(pad.inputs[0]).shape
    top, _, left, _ = _plus(pad.padding, pool.padding)

    def reaches(size: int, before: int, kernel: int, stride: int, windows: int) -> bool:
        starts = (index * stride - before for index in range(windows))
        return all(start < size and start + kernel > 0 for start in starts)

    rows = reaches(h, top, pool.kernel[0], pool.stride[0], pool.shape[1])
    columns = reaches(w, left, pool.kernel[1], pool.stride[1], pool.shape[2])
    return rows and columns and never_negative(graph, pad.inputs[0])


def _plus(a: Padding, b: Padding) -> Padding:
    return (a[0] + b[0], a[1] + b[1], a[2] + b[2], a[3] + b[3])


def _reading(node: Node, rename: dict[str, str]) -> Node:
    return replace(node, inputs=tuple(rename.get(name, name) for name in node.inputs))
