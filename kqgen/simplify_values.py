"""Rules on single values: activations folded into what makes the values, and known functions that a model writes out."""

from __future__ import annotations

import math
from dataclasses import replace

from kqgen.ir import (
    Add,
    AvgPool,
    ChannelAffine,
    Clamp,
    Concat,
    Conv2d,
    Graph,
    Interleave,
    MaxPool,
    Mul,
    Node,
    Shuffle,
    SlicePad,
    Unary,
    Upsample,
    frozen_array,
)
from kqgen.simplify_affine import absorbs, adds_nothing
from kqgen.simplify_rewrite import fresh, joined, only_reader, rewrite

_CLAMPING = (Conv2d, Add, Mul, Unary, AvgPool, Clamp)


def fold_clamp(graph: Graph, node: Node) -> Graph | None:
    """An activation goes into the Conv2d, Add, Mul, Unary, AvgPool or Clamp before it when nothing else reads that.

    On the way back it passes max pooling (the maximum is monotone and every window holds a real element), channel orders, enlarging
    and slices, where these put zeros only if it leaves zero at zero.
    """
    if not isinstance(node, Clamp) or node.pinned is not None:
        return None
    reader: Node = node
    while True:
        source = graph.node(reader.inputs[0])
        if only_reader(graph, source.name) is not reader:
            return None
        if isinstance(source, _CLAMPING):
            break
        if not _passes(graph, source, node):
            return None
        reader = source
    lo, hi = min(max(source.lo, node.lo), node.hi), min(max(source.hi, node.lo), node.hi)
    if isinstance(source, Clamp):
        into: Node = replace(source, lo=lo, hi=hi, value=node.value)
    else:
        into = replace(source, lo=lo, hi=hi, sources=joined(source, node), value=node.value)
    return rewrite(graph, drop={node.name}, swap={source.name: into}, rename={node.name: node.inputs[0]})


def _passes(graph: Graph, source: Node, clamp: Clamp) -> bool:
    zero_stays = clamp.lo <= 0 <= clamp.hi
    match source:
        case MaxPool() | Shuffle():
            return True
        case Upsample():
            return zero_stays or not source.zeros
        case SlicePad():
            return zero_stays or adds_nothing(graph, source)
        case _:
            return False


def spread_clamp(graph: Graph, node: Node) -> Graph | None:
    """An activation of maps put together is that of each, where all of them can take it up."""
    if not isinstance(node, Clamp) or node.pinned is not None:
        return None
    source = graph.node(node.inputs[0])
    if not isinstance(source, (Concat, Interleave)) or only_reader(graph, source.name) is not node:
        return None
    makers = [graph.node(name) for name in source.inputs]
    if not all(isinstance(maker, _CLAMPING) and only_reader(graph, maker.name) is source for maker in makers):
        return None
    names = fresh(graph, *(f"{maker.name}_{node.name}" for maker in makers))
    clamps = [
        replace(node, name=name, inputs=(maker.name,), shape=maker.shape, value=maker.value)
        for name, maker in zip(names, makers, strict=True)
    ]
    joint = replace(source, inputs=names, value=node.value)
    return rewrite(graph, drop={node.name}, swap={source.name: (*clamps, joint)}, rename={node.name: source.name})


def known_functions(graph: Graph, node: Node) -> Graph | None:
    """hardsigmoid, hardswish, silu, mish and squares that are written out; hardsigmoid of a convolution becomes its clamp."""
    match node:
        case ChannelAffine() | Clamp():
            return _hardsigmoid(graph, node) or _scaled_hardswish(graph, node)
        case Unary(kind="hardsigmoid") if absorbs(graph, node):
            scaled, limited = fresh(graph, f"{node.name}_scale", f"{node.name}_clamp")
            c = node.shape[0]
            affine = ChannelAffine(
                scaled, node.path, node.inputs, node.shape, frozen_array([1 / 6] * c), frozen_array([0.5] * c), value=node.value
            )
            lo, hi = min(max(node.lo, 0.0), 1.0), max(min(node.hi, 1.0), 0.0)
            clamp = Clamp(limited, node.path, (scaled,), node.shape, lo, hi, value=node.value)
            return rewrite(graph, drop=(), swap={node.name: (affine, clamp)}, rename={node.name: limited})
        case Mul():
            return _gated(graph, node)
        case _:
            return None


def _straight(graph: Graph, name: str) -> tuple[str, float, float, float, float] | None:
    """Tensor `name` as s * min(max(x, lo), hi) + o by way of scalar affines and one clamp: (x, s, o, lo, hi), o before s and clamp.

    The form is s * min(max(a * x + b, lo), hi) + o with everything drawn inside: (x, a * s, b * s + o, s * lo + o, s * hi + o), s > 0.
    """
    scale, offset, lo, hi = 1.0, 0.0, -math.inf, math.inf
    clamped = False
    while True:
        node = graph.node(name)
        if isinstance(node, Clamp) and not clamped and scale > 0 and node.pinned is None:
            lo, hi, clamped = scale * node.lo + offset, scale * node.hi + offset, True
        elif isinstance(node, ChannelAffine) and node.pinned is None:
            a, b = float(node.scale[0]), float(node.offset[0])
            if bool((node.scale != node.scale[0]).any() or (node.offset != node.offset[0]).any()) or a <= 0:
                break
            offset, scale = scale * b + offset, scale * a
        else:
            break
        name = node.inputs[0]
    return (name, scale, offset, lo, hi) if clamped else None


def _is(found: tuple[float, ...], wanted: tuple[float, ...]) -> bool:
    return all(math.isclose(a, b, rel_tol=1e-6, abs_tol=1e-6) for a, b in zip(found, wanted, strict=True))


def _hardsigmoid(graph: Graph, node: Node) -> Graph | None:
    found = _straight(graph, node.name)
    if found is None or not _is(found[1:], (1 / 6, 0.5, 0.0, 1.0)):
        return None
    if len(graph.consumers(found[0])) == 1 and isinstance(graph.node(found[0]), Conv2d):
        return None
    made = Unary(
        node.name, node.path, (found[0],), node.shape, "hardsigmoid", sources=joined(node), value=node.value, pinned=node.pinned
    )
    return rewrite(graph, swap={node.name: made})


def _scaled_hardswish(graph: Graph, node: Node) -> Graph | None:
    """x * min(max(x + 3, 0), 6) / 6 with the division last."""
    source = graph.node(node.inputs[0])
    if not isinstance(node, ChannelAffine) or not isinstance(source, Mul) or only_reader(graph, source.name) is not node:
        return None
    if not bool((node.scale == node.scale[0]).all() and (node.offset == 0).all()) or not math.isclose(node.scale[0], 1 / 6, rel_tol=1e-6):
        return None
    if (source.lo, source.hi) != (-math.inf, math.inf):
        return None
    for name, gate in (source.inputs, source.inputs[::-1]):
        found = _straight(graph, gate)
        if found is not None and found[0] == name and _is(found[1:], (1.0, 3.0, 0.0, 6.0)):
            made = Unary(
                node.name, node.path, (name,), node.shape, "hardswish", sources=joined(node, source), value=node.value, pinned=node.pinned
            )
            return rewrite(graph, swap={node.name: made})
    return None


def _gated(graph: Graph, node: Mul) -> Graph | None:
    """x * hardsigmoid(x), x * sigmoid(x), x * tanh(softplus(x)), x * x."""
    for name, gate in (node.inputs, node.inputs[::-1]):
        kind = "square" if name == gate else _gate(graph, name, graph.node(gate))
        if kind is not None:
            made = Unary(
                node.name, node.path, (name,), node.shape, kind, lo=node.lo, hi=node.hi, sources=node.sources, value=node.value,
                pinned=node.pinned,
            )  # fmt: skip
            return rewrite(graph, swap={node.name: made})
    return None


def _gate(graph: Graph, name: str, gate: Node) -> str | None:
    if not isinstance(gate, Unary) or (gate.lo, gate.hi) != (-math.inf, math.inf) or gate.pinned is not None:
        return None
    if gate.inputs == (name,):
        return {"sigmoid": "silu", "hardsigmoid": "hardswish"}.get(gate.kind)
    inner = graph.node(gate.inputs[0])
    soft = isinstance(inner, Unary) and inner.kind == "softplus" and inner.inputs == (name,) and inner.pinned is None
    plain = soft and isinstance(inner, Unary) and inner.arguments in ((), (1.0, 20.0)) and inner.lo == -math.inf and inner.hi == math.inf
    return "mish" if plain and gate.kind == "tanh" else None
