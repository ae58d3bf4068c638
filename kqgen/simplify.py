"""Folds a float graph until only the kinds of node are left that have a meaning in integers (`ir`); the function stays the same.

The rules are applied until none fits any more, each rewriting one place and each exact over the reals:

    dropping     nodes that change nothing; tensors computed twice
    affine       batch norm into the convolutions before it, or into those after it; scaling of an input into its convolutions, whose
                 `input_offset` then says which raw value stands for zero
    pad          zeros into the convolution or pooling after them
    clamp        into the convolution, addition, product, function or average before it, past what only moves values
    functions    hardswish and the like where they are written out
    slices       two in a row into one; of a concatenation into its operands
    orders       of channels into the weights before or after them, or into a concatenation
    dense        a fully connected layer becomes a convolution whose kernel is the whole map
    flatten      at an output becomes a word in `Graph.flattened`
    pins         quantisations that the model gives become those of the tensors before them

What is left then has a plain form: an affine is a depthwise convolution of one tap, padding is a slice that begins before the map,
groups are slices and convolutions, a convolution between zeros is one for each phase of its output, an order of channels is slices put
together.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from kqgen.errors import InternalError, UnsupportedError
from kqgen.ir import (
    Add,
    ArgMax,
    AvgPool,
    ChannelAffine,
    Clamp,
    Concat,
    Conv2d,
    Flatten,
    Graph,
    Input,
    Interleave,
    MaxPool,
    Mul,
    Node,
    Pad,
    Shuffle,
    SlicePad,
    Softmax,
    Unary,
    Upsample,
)
from kqgen.simplify_affine import affine_to_depthwise, fold_affine_back, fold_affine_forward, fold_input_scaling, merge_affines
from kqgen.simplify_channels import fold_shuffle, merge_concats, place_flatten, place_shuffle, slice_concat, split_groups
from kqgen.simplify_phases import split_phases
from kqgen.simplify_pins import hoist_pin, place_pin
from kqgen.simplify_rewrite import is_output, rewrite
from kqgen.simplify_spatial import dense_to_conv, fold_pad, merge_slices, never_negative, pad_to_slice, sink_flatten
from kqgen.simplify_twins import merge_twins
from kqgen.simplify_values import fold_clamp, known_functions, spread_clamp

_Rule = Callable[[Graph, Node], Graph | None]

KEPT = (
    Input, Conv2d, Add, Mul, Unary, Softmax, ArgMax, Concat, Interleave, Upsample, MaxPool, AvgPool, SlicePad, Clamp,
)  # fmt: skip
"""The kinds of node that are left."""


def simplify(graph: Graph) -> Graph:
    """The same function by fewer kinds of node, `KEPT`.

    Nodes that no output needs are dropped, inputs are kept. A node keeps its name when others are folded into it, and its `sources`
    name all their module paths.

    Raises:
        UnsupportedError: a large map is flattened where that is neither before a fully connected layer nor at an output.
    """
    graph = _folded(_drop_dead(_mark_flattened(graph)))
    for rule in _PLACING:
        graph = _folded(_sweep(graph, (rule,)))
    for node in graph:
        if not isinstance(node, KEPT):
            raise _left_over(graph, node)
    return graph


def _folded(graph: Graph) -> Graph:
    """`graph` with the rules applied until none fits."""
    for _ in range(len(graph.nodes) + 2):
        before = graph
        graph = _sweep(_drop_dead(merge_twins(graph)), _RULES)
        if graph is before:
            return graph
    raise InternalError("simplify did not come to an end", found=f"{len(graph.nodes)} nodes left of {graph.name}")


def _sweep(graph: Graph, rules: Sequence[_Rule]) -> Graph:
    """Each rule tried once on each node; the same object when none fitted."""
    for rule in rules:
        for name in [node.name for node in graph]:
            node = next((each for each in graph if each.name == name), None)
            changed = rule(graph, node) if node is not None and (node.pinned is None or rule in _FOR_PINNED) else None
            # A node that lost its last reader must go at once: it would still count as a reader of its own input.
            graph = _drop_dead(changed) if changed is not None else graph
    return graph


def _drop_identity(graph: Graph, node: Node) -> Graph | None:
    match node:
        case Flatten() if node.shape == graph.node(node.inputs[0]).shape:
            nothing = not is_output(graph, node.name)
        case Upsample():
            nothing = node.factor == (1, 1)
        case Shuffle():
            nothing = node.order == tuple(range(graph.node(node.inputs[0]).shape[0]))
        case Concat() | Interleave():
            nothing = len(node.inputs) == 1
        case Pad():
            nothing = not any(node.padding)
        case Clamp():
            source = graph.node(node.inputs[0])
            lo, hi = getattr(source, "lo", float("-inf")), getattr(source, "hi", float("inf"))
            lo = max(lo, 0.0) if never_negative(graph, source.name) else lo
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
    nodes = tuple(node for node in graph if node.name in needed or isinstance(node, Input))
    return graph if len(nodes) == len(graph.nodes) else replace(graph, nodes=nodes)


def _left_over(graph: Graph, node: Node) -> UnsupportedError:
    where = f"layer {node.path}" if node.path else f"operation {node.name}"
    source = graph.node(node.inputs[0])
    readers = ", ".join(f"{reader.name} ({type(reader).__name__})" for reader in graph.consumers(node.name)) or "an output"
    if not isinstance(node, Flatten):
        raise InternalError(f"simplify left a node of kind {type(node).__name__}: {node.name}")
    return UnsupportedError(
        f"cannot compile {where}: flattening that cannot be folded",
        found=f"input {source.name} ({type(source).__name__}) {source.shape}, read by {readers}",
        wanted="flattening right before a fully connected layer or at an output, or of a small map",
        do="flatten later: flattening moves no number",
    )


_RULES: tuple[_Rule, ...] = (
    _drop_identity,
    hoist_pin,
    sink_flatten,
    dense_to_conv,
    known_functions,
    merge_affines,
    fold_affine_back,
    fold_affine_forward,
    fold_pad,
    fold_input_scaling,
    fold_clamp,
    spread_clamp,
    merge_slices,
    merge_concats,
    slice_concat,
    fold_shuffle,
)
_PLACING: tuple[_Rule, ...] = (place_pin, affine_to_depthwise, pad_to_slice, place_flatten, place_shuffle, split_phases, split_groups)
"""Applied once nothing can be folded any more."""
_FOR_PINNED: tuple[_Rule, ...] = (
    dense_to_conv, merge_concats, affine_to_depthwise, pad_to_slice, place_flatten, place_shuffle, split_phases, split_groups,
)  # fmt: skip
"""Those that keep the quantisation of the node they replace."""
