"""Transposed convolutions without the zeros: each phase of the output is a convolution of its own over the small map."""

from __future__ import annotations

from dataclasses import dataclass, replace

from kqgen.ir import Conv2d, Graph, Interleave, Node, Padding, Upsample, frozen_array
from kqgen.simplify_rewrite import fresh, only_reader, rewrite


@dataclass(frozen=True, slots=True)
class _Phase:
    """One phase along one axis: every `factor`-th output.

    Attributes:
        first: the first tap that meets values and not zeros; the others follow `factor` apart.
        taps: how many these are.
        before, after: zeros that the phase's convolution adds around the small map.
    """

    first: int
    taps: int
    before: int
    after: int


def split_phases(graph: Graph, node: Node) -> Graph | None:
    """A convolution over values between zeros: one convolution a phase, their results put between each other.

    Of output y * f + a only the taps k with k = top - a modulo f meet values: those of the phase's kernel. Where the output is no
    multiple of the factor, or a phase would have no taps or crop the map, the zeros stay.
    """
    if not isinstance(node, Conv2d) or node.stride != (1, 1) or node.dilation != (1, 1) or node.input_offset is not None:
        return None
    zeros = graph.node(node.inputs[0])
    if not isinstance(zeros, Upsample) or not zeros.zeros or only_reader(graph, zeros.name) is not node:
        return None
    small = graph.node(zeros.inputs[0])
    (rows, columns), (_, h, w) = zeros.factor, small.shape
    top, _, left, _ = node.padding
    down = [_phase(h, node.shape[1], node.kernel[0], top, rows, phase) for phase in range(rows)]
    across = [_phase(w, node.shape[2], node.kernel[1], left, columns, phase) for phase in range(columns)]
    phases = [(y, x) for y in down for x in across if y is not None and x is not None]
    if len(phases) < rows * columns:
        return None
    shape = (node.shape[0], node.shape[1] // rows, node.shape[2] // columns)
    names = fresh(graph, *(f"{node.name}_phase{number}" for number in range(len(phases))))
    parts = [replace(_part(node, y, x, zeros), name=name, shape=shape) for name, (y, x) in zip(names, phases, strict=True)]
    woven = Interleave(node.name, node.path, names, node.shape, zeros.factor, value=node.value, pinned=node.pinned)
    return rewrite(graph, swap={node.name: (*parts, woven)})


def _phase(size: int, made: int, kernel: int, before: int, factor: int, phase: int) -> _Phase | None:
    first = (before - phase) % factor
    taps = -(-(kernel - first) // factor)
    if made % factor or taps < 1:
        return None
    ahead = (before - phase - first) // factor
    behind = made // factor + taps - 1 - size - ahead
    return None if min(ahead, behind) < 0 else _Phase(first, taps, ahead, behind)


def _part(node: Conv2d, y: _Phase, x: _Phase, zeros: Upsample) -> Conv2d:
    padding: Padding = (y.before, y.after, x.before, x.after)
    weight = frozen_array(node.weight[:, :, y.first :: zeros.factor[0], x.first :: zeros.factor[1]])
    return replace(node, inputs=zeros.inputs, weight=weight, padding=padding, parameter="", value="", pinned=None)
