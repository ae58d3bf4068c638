"""Dead structure: channels that no output depends on, or that hold one code whatever the input, leave the integer graph (SPEC 10).

Which channels must stay is the least solution of what layers ask of the tensors they read and make: a convolution needs the channels
that its own remaining outputs read with a weight other than zero, unless they are constant and add the same to every position;
an elementwise layer has its operands' channels; inputs and outputs of the network keep all of theirs. What a removed channel added
goes into the bias. The results are the same in every bit.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace

import numpy as np
import numpy.typing as npt

from kqgen.errors import InternalError
from kqgen.intgraph import (
    Array,
    IntAdd,
    IntAssemble,
    IntAvgPool,
    IntClamp,
    IntConv2d,
    IntGraph,
    IntLookup,
    IntMaxPool,
    IntMeanWindow,
    IntMul,
    IntNode,
    IntRescaledAdd,
    IntSlicePad,
    KqWeights,
    UniformWeights,
    frozen,
)
from kqgen.prune_ranges import Mask, Span, Taps, code_spans, taps

ELEMENTWISE = (IntAdd, IntRescaledAdd, IntMul, IntAvgPool, IntMeanWindow, IntMaxPool, IntClamp, IntLookup)
"""Channel c of the output comes of channel c of each operand."""


@dataclass(frozen=True, slots=True, eq=False)
class Kept:
    """What stays of a tensor.

    Attributes:
        mask: (c,) bool, the channels that stay.
        codes: (c,) int8, what a constant channel holds; the zero point of a channel that is not constant.
    """

    mask: Mask
    codes: npt.NDArray[np.int8]


@dataclass(frozen=True, slots=True)
class Removed:
    """How much was removed: whole layers, channels of tensors that remain or not, weights."""

    layers: int
    channels: int
    weights: int


@dataclass(frozen=True, slots=True, eq=False)
class Pruned:
    """A network without its dead structure.

    Attributes:
        graph: what is left of it.
        kept: what stays of each tensor, by name.
        twins: layers that were the same as another one, and that one's name.
    """

    graph: IntGraph
    kept: Mapping[str, Kept]
    twins: Mapping[str, str]


def prune(graph: IntGraph) -> Pruned:
    """The graph without its dead structure.

    Args:
        graph: without additions inside convolutions (`fuse.split`).
    """
    distinct, twins = merged(graph)
    kept = survey(distinct)
    return Pruned(remove(distinct, kept), kept, twins)


def removed(before: IntGraph, after: IntGraph) -> Removed:
    """What `after` has less than `before`."""

    def count(graph: IntGraph) -> tuple[int, int, int]:
        weights = sum(node.weight_count for node in graph.nodes if isinstance(node, IntConv2d))
        return len(graph.nodes), sum(node.output.c for node in graph.nodes), weights

    return Removed(*(old - new for old, new in zip(count(before), count(after), strict=True)))


def merged(graph: IntGraph) -> tuple[IntGraph, Mapping[str, str]]:
    """The graph with every layer once: of two that compute the same from the same, and are not both outputs, one stays.

    Returns: the graph, and the name of the layer that stands for each that went.
    """
    made: dict[tuple[object, ...], IntNode] = {}
    names: dict[str, str] = {}
    nodes: list[IntNode] = []
    for node in graph.nodes:
        renamed = replace(node, inputs=tuple(names.get(name, name) for name in node.inputs))
        twin = made.get(key := _meaning(renamed))
        if twin is None or (twin.name in graph.outputs and node.name in graph.outputs):
            made[key] = renamed
            nodes.append(renamed)
        elif node.name not in graph.outputs:
            names[node.name] = twin.name
        else:  # an output keeps its name; it takes the place of the layer before
            nodes[nodes.index(twin)] = made[key] = renamed
            names = {**{old: node.name if new == twin.name else new for old, new in names.items()}, twin.name: node.name}
            nodes = [replace(each, inputs=tuple(names.get(name, name) for name in each.inputs)) for each in nodes]
            made = {_meaning(each): each for each in nodes}
    return replace(graph, nodes=tuple(nodes)), names


_LABELS = ("name", "path", "sources", "reason", "weight_scale")
"""Fields that say nothing of what a layer computes."""


def _meaning(value: object) -> tuple[object, ...]:
    """A key that is equal for layers that compute the same."""
    parts: list[object] = [type(value).__name__]
    for field in fields(value) if hasattr(value, "__dataclass_fields__") else ():  # type: ignore[arg-type]
        held = getattr(value, field.name)
        if field.name in _LABELS:
            continue
        if isinstance(held, np.ndarray):
            parts.append((field.name, held.dtype.str, held.shape, held.tobytes()))
        else:
            parts.append((field.name, _meaning(held) if hasattr(held, "__dataclass_fields__") else held))
    return tuple(parts)


def survey(graph: IntGraph, multiple: int = 1) -> dict[str, Kept]:
    """What stays of every tensor, by name.

    Args:
        multiple: where some channels of a tensor stay, so do dead ones until they are a multiple of this, or all.
    """
    spans = code_spans(graph)
    reads = {node.name: _read(graph, node, spans[node.inputs[0]]) for node in graph.nodes if isinstance(node, IntConv2d)}
    whole = {*(tensor.name for tensor in graph.inputs), *graph.outputs}
    masks = {name: np.full(len(span.lo), name in whole) for name, span in spans.items()}
    _settle(graph, masks, reads)
    while odd := [name for name, mask in masks.items() if mask.sum() % multiple and not mask.all()]:
        first = masks[odd[0]]
        first[np.flatnonzero(~first)[: -int(first.sum()) % multiple]] = True
        _settle(graph, masks, reads)
    zeros = {tensor.name: tensor.zero_point for tensor in (*graph.inputs, *(node.output for node in graph.nodes))}
    return {
        name: Kept(mask, np.where(spans[name].constant, spans[name].lo, zeros[name]).astype(np.int8)) for name, mask in masks.items()
    }


def _settle(graph: IntGraph, masks: dict[str, Mask], reads: Mapping[str, Mask]) -> None:
    """Adds to `masks` what the channels in them ask for, until nothing more is asked."""
    changed = True
    while changed:
        changed = False
        for node in reversed(graph.nodes):
            names = (*node.inputs, node.name)
            asked = _asked(graph, node, [masks[name] for name in names], reads)
            for name, mask in zip(names, asked, strict=True):
                if np.any(mask & ~masks[name]):
                    masks[name] = masks[name] | mask
                    changed = True


def _read(graph: IntGraph, node: IntConv2d, source: Span) -> Mask:
    """Which channels each output channel of a convolution must read, (c_out, c); of a depthwise one, its own."""
    c_out, c = node.output.c, len(source.lo)
    if node.depthwise:
        return np.asarray(np.arange(c_out)[:, None] * c // c_out == np.arange(c)[None])
    form = taps(graph, node)
    ever = form.inside.any(axis=0)
    live = (form.weights[:, ever] != 0).any(axis=1) & ~source.constant
    first = _added(form, 0, source)
    for kind in range(1, len(form.inside)):
        live |= _added(form, kind, source) != first
    return np.asarray(live)


def _added(form: Taps, kind: int, source: Span) -> npt.NDArray[np.float64]:
    """(c_out, c) what each channel adds to a sum at positions of one kind, were it to hold `source.lo`."""
    return np.asarray(np.einsum("otc,tc->oc", form.weights, form.read(kind, source.lo)))


def _asked(graph: IntGraph, node: IntNode, masks: list[Mask], reads: Mapping[str, Mask]) -> list[Mask]:
    """The channels that must stay of each input of a layer and of its output, given those that stay already."""
    out = masks[-1]
    if not out.any():  # nobody needs the layer
        return masks
    match node:
        case IntConv2d():
            return _asked_of_conv(graph, node, masks[0], out, reads[node.name])
        case _ if isinstance(node, ELEMENTWISE):
            every: Mask = np.asarray(np.stack(masks).any(axis=0))
            return [every] * len(masks)
        case IntSlicePad():
            return _asked_of_slice(node, masks[0], out)
        case IntAssemble() if all(part.channel_step == 1 for part in node.parts):
            return _asked_of_parts(node, masks)
        case _:
            return [np.ones(len(mask), np.bool_) for mask in masks]


def _asked_of_conv(graph: IntGraph, node: IntConv2d, source: Mask, out: Mask, needs: Mask) -> list[Mask]:
    if node.depthwise:
        held = source | out.reshape(len(source), -1).any(axis=1)
        return [held, np.repeat(held, len(out) // len(source))]
    asked: Mask = source | np.asarray(needs[out].any(axis=0))
    if not asked.any():
        asked[0] = True
    if node.in_shape[2] != len(source):  # a kernel goes when all channels it reads go
        kernels = np.tile(_kernels(node, asked), node.kernel[0] * node.kernel[1])
        asked = np.asarray(kernels.reshape(-1, len(source)).any(axis=0))
    return [asked, out]


def _kernels(node: IntConv2d, mask: Mask) -> Mask:
    """(kernels,) which kernels of a convolution read one of the channels of `mask` (c,)."""
    count = node.kernel[0] * node.kernel[1] * node.in_shape[2]
    return np.asarray(mask[np.arange(count) % len(mask)].reshape(-1, node.in_shape[2]).any(axis=0))


def _asked_of_slice(node: IntSlicePad, source: Mask, out: Mask) -> list[Mask]:
    shared_in, shared_out = _overlap(node, len(source), len(out))
    both: Mask = np.asarray(source[shared_in] | out[shared_out])
    source, out = source.copy(), out.copy()
    source[shared_in], out[shared_out] = both, both
    if not source.any():
        source[0] = True
    return [source, out]


def _overlap(node: IntSlicePad, c_in: int, c_out: int) -> tuple[slice, slice]:
    """The input channels that reach the output, and where."""
    first, last = max(0, -node.c_before), min(c_in, c_in + node.c_after)
    count = max(0, min(last - first, c_out - max(0, node.c_before)))
    return slice(first, first + count), slice(max(0, node.c_before), max(0, node.c_before) + count)


def _asked_of_parts(node: IntAssemble, masks: list[Mask]) -> list[Mask]:
    sources, out = [mask.copy() for mask in masks[:-1]], masks[-1].copy()
    for part in node.parts:
        source = sources[part.source]
        covered = slice(part.start[2], part.start[2] + len(source))
        source |= out[covered]
        out[covered] |= source
    if not any(source.any() for source in sources):
        sources[0][0] = True
    return [*sources, out]


def remove(graph: IntGraph, kept: Mapping[str, Kept]) -> IntGraph:
    """The graph with the channels of `kept` alone; layers without any vanish."""
    nodes = tuple(_narrowed(graph, node, kept) for node in graph.nodes if kept[node.name].mask.any())
    books = {node.weights.codebook for node in nodes if isinstance(node, IntConv2d) and isinstance(node.weights, KqWeights)}
    return replace(graph, nodes=nodes, codebooks=tuple(book for book in graph.codebooks if book.name in books))


def _narrowed(graph: IntGraph, node: IntNode, kept: Mapping[str, Kept]) -> IntNode:
    masks = [kept[name].mask for name in (*node.inputs, node.name)]
    if all(mask.all() for mask in masks):
        return node
    output = replace(node.output, c=int(masks[-1].sum()))
    match node:
        case IntConv2d():
            return replace(_narrowed_conv(graph, node, kept[node.inputs[0]], masks[-1]), output=output)
        case IntLookup():
            table = node.table if len(node.table) == 1 else frozen(node.table[masks[-1]], np.int8)
            return replace(node, output=output, table=table)
        case IntSlicePad():
            shared_in, shared_out = _overlap(node, len(masks[0]), len(masks[1]))
            before = int(masks[1][: shared_out.start].sum()) - int(masks[0][: shared_in.start].sum())
            after = int(masks[1][shared_out.stop :].sum()) - int(masks[0][shared_in.stop :].sum())
            return replace(node, output=output, c_before=before, c_after=after)
        case IntAssemble():
            return replace(_narrowed_parts(node, masks), output=output)
        case _ if isinstance(node, ELEMENTWISE):
            return replace(node, output=output)
        case _:
            raise InternalError(f"channels of {type(node).__name__} at {node.name} cannot be removed")


def _narrowed_conv(graph: IntGraph, node: IntConv2d, source: Kept, rows: Mask) -> IntConv2d:
    kernels = source.mask if node.depthwise or node.in_shape[2] == len(source.mask) else _kernels(node, source.mask)
    columns = np.ones(1, np.bool_) if node.depthwise else kernels
    stored = node.weights
    if isinstance(stored, UniformWeights):
        weights: UniformWeights | KqWeights = replace(stored, values=frozen(stored.values[rows][..., columns], np.int8))
    else:
        codes, negative = (each[rows][:, columns] for each in (stored.codes, stored.negative))
        weights = replace(stored, codes=frozen(codes, np.int16), negative=frozen(negative, np.bool_))
    bias = node.requant.bias.astype(np.int64)
    if not node.depthwise:
        held = Span(source.codes, source.codes)
        bias = bias + _added(taps(graph, node), 0, held)[:, ~source.mask].sum(axis=1).astype(np.int64)
    requant = replace(
        node.requant, bias=frozen(bias[rows], np.int32), multiplier=_part(node.requant.multiplier, rows),
        shift=_part(node.requant.shift, rows),
    )  # fmt: skip
    return replace(
        node, in_shape=(*node.in_shape[:2], int(kernels.sum())), pad_values=_part(node.pad_values, kernels), weights=weights,
        requant=requant, weight_scale=_part(node.weight_scale, rows),
    )  # fmt: skip


def _part(values: Array, mask: Mask) -> Array:
    return frozen(values[mask], values.dtype)


def _narrowed_parts(node: IntAssemble, masks: list[Mask]) -> IntAssemble:
    out = masks[-1]
    live = [number for number, mask in enumerate(masks[:-1]) if mask.any()]
    parts = tuple(
        replace(part, source=live.index(part.source), start=(*part.start[:2], int(out[: part.start[2]].sum())))
        for part in node.parts if part.source in live
    )  # fmt: skip
    return replace(node, inputs=tuple(node.inputs[number] for number in live), parts=parts)
