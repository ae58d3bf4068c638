"""Folds a float graph until only Input, Conv2d, Add, MaxPool, AvgPool, SlicePad and Clamp are left; the function stays the same.

The rules are applied until none fits any more, each rewriting one place and each exact over the reals:

    dropping     nodes that change nothing
    affine       batch norm into the convolution before it, or into unpadded convolutions after it; scaling of an input into its
                 convolutions, whose `input_offset` then says which raw value stands for zero
    pad          zeros into the convolution or pooling after them
    clamp        into the convolution, addition or average before it, past max pooling and option-A shortcuts
    slice        two SlicePads in a row into one
    dense        a fully connected layer becomes a convolution whose kernel is the whole map
    flatten      at an output becomes a word in `Graph.flattened`
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from kqgen.errors import InternalError, UnsupportedError
from kqgen.ir import Add, AvgPool, ChannelAffine, Clamp, Conv2d, Flatten, Graph, Input, MaxPool, Node, Pad, SlicePad
from kqgen.simplify_affine import fold_affine_back, fold_affine_forward, fold_input_scaling, merge_affines
from kqgen.simplify_rewrite import is_output, rewrite
from kqgen.simplify_spatial import dense_to_conv, fold_clamp, fold_pad, merge_slices, sink_flatten

_Rule = Callable[[Graph, Node], Graph | None]

_KEPT = (Input, Conv2d, Add, MaxPool, AvgPool, SlicePad, Clamp)


def simplify(graph: Graph) -> Graph:
    """The same function by fewer kinds of node: Input, Conv2d, Add, MaxPool, AvgPool, SlicePad, Clamp.

    Nodes that no output needs are dropped, inputs are kept. A node keeps its name when others are folded into it, and its `sources`
    name all their module paths.

    Raises:
        UnsupportedError: a batch norm, padding, flattening or input scaling stands where it cannot be folded.
    """
    graph = _drop_dead(_mark_flattened(graph))
    for _ in range(len(graph.nodes) + 2):
        before, graph = graph, _sweep(graph)
        if graph is before:
            break
    else:
        raise InternalError("simplify did not come to an end", found=f"{len(graph.nodes)} nodes left of {graph.name}")
    graph = _drop_dead(graph)
    for node in graph:
        if not isinstance(node, _KEPT):
            raise _left_over(graph, node)
    return graph


def _sweep(graph: Graph) -> Graph:
    """Each rule tried once on each node; the same object when none fitted."""
    for rule in _RULES:
        for name in [node.name for node in graph]:
            node = next((each for each in graph if each.name == name), None)
            changed = rule(graph, node) if node is not None else None
            # A node that lost its last reader must go at once: it would still count as a reader of its own input.
            graph = _drop_dead(changed) if changed is not None else graph
    return graph


def _drop_identity(graph: Graph, node: Node) -> Graph | None:
    match node:
        case Flatten() if node.shape == graph.node(node.inputs[0]).shape:
            nothing = not is_output(graph, node.name)
        case Pad():
            nothing = not any(node.padding)
        case Clamp():
            source = graph.node(node.inputs[0])
            lo, hi = getattr(source, "lo", float("-inf")), getattr(source, "hi", float("inf"))
            nothing = node.lo <= lo and hi <= node.hi
        case AvgPool():
            nothing = (node.kernel, node.stride, any(node.padding)) == ((1, 1), (1, 1), False) and not _clamped(node)
        case MaxPool():
            nothing = (node.kernel, node.stride, any(node.padding)) == ((1, 1), (1, 1), False)
        case SlicePad():
            same = node.shape == graph.node(node.inputs[0]).shape
            nothing = same and (node.start, node.step, node.c_before, node.c_after) == ((0, 0), (1, 1), 0, 0)
        case ChannelAffine():
            nothing = bool((node.scale == 1).all() and (node.offset == 0).all())
        case _:
            nothing = False
    if not nothing or (is_output(graph, node.name) and _is_end(graph, node.inputs[0])):
        return None
    return rewrite(graph, drop={node.name}, rename={node.name: node.inputs[0]})


def _is_end(graph: Graph, name: str) -> bool:
    """Whether the caller holds the tensor already, so that an output may not be merged with it."""
    return is_output(graph, name) or isinstance(graph.node(name), Input)


def _clamped(node: AvgPool) -> bool:
    return node.lo != float("-inf") or node.hi != float("inf")


def _mark_flattened(graph: Graph) -> Graph:
    """Takes each Flatten that makes an output away and notes the output as flattened."""
    for name in graph.outputs:
        node = graph.node(name)
        if isinstance(node, Flatten):
            source = node.inputs[0]
            if source in graph.outputs:
                raise UnsupportedError(
                    f"cannot compile output {name}: it is output {source} again, flattened",
                    do="return it once; flattening moves no number",
                )
            graph = rewrite(graph, drop={name}, rename={name: source})
            return _mark_flattened(replace(graph, flattened=graph.flattened | {source}))
    return graph


def _drop_dead(graph: Graph) -> Graph:
    needed = set(graph.outputs)
    for node in reversed(graph.nodes):
        if node.name in needed:
            needed.update(node.inputs)
    return replace(graph, nodes=tuple(node for node in graph if node.name in needed or isinstance(node, Input)))


def _left_over(graph: Graph, node: Node) -> UnsupportedError:
    where = f"layer {node.path}" if node.path else f"operation {node.name}"
    source = graph.node(node.inputs[0])
    readers = ", ".join(f"{reader.name} ({type(reader).__name__})" for reader in graph.consumers(node.name)) or "an output"
    found = f"input {source.name} ({type(source).__name__}) {source.shape}, read by {readers}"
    match node:
        case ChannelAffine() if isinstance(source, Input):
            wanted = "scaling of an input that only convolutions and fully connected layers read"
            do = "do the scaling before the network, or give the other readers the raw input"
            kind = "input scaling"
        case ChannelAffine():
            wanted = "a batch norm or constant right after a convolution or linear layer that nothing else reads, before any activation"
            do = "move it behind a convolution, or replace it by a 1x1 convolution and fine-tune"
            kind = "batch norm or constant arithmetic"
        case Pad():
            wanted = "zero padding right before a convolution or average pooling, or before max pooling of values that are never negative"
            do = "give the padding to the layer that reads it (padding=...), or move it there"
            kind = "padding"
        case Flatten():
            wanted = "flattening right before a fully connected layer or at an output"
            do = "flatten later: flattening moves no number"
            kind = "flattening"
        case _:
            raise InternalError(f"simplify left a node of kind {type(node).__name__}: {node.name}")
    return UnsupportedError(f"cannot compile {where}: {kind} that cannot be folded", found=found, wanted=wanted, do=do)


_RULES: tuple[_Rule, ...] = (
    _drop_identity,
    sink_flatten,
    dense_to_conv,
    merge_affines,
    fold_affine_back,
    fold_affine_forward,
    fold_pad,
    fold_input_scaling,
    fold_clamp,
    merge_slices,
)
