"""Whether an integer graph holds together: what a file brings in is data of unknown origin, and every later stage trusts it.

Lowering makes only graphs that pass; `store` asks for the check after reading one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from kqgen import check_maps, fixed_tflite
from kqgen.check_fields import array, need, requant
from kqgen.index_check import codebook_misfit, index_misfit
from kqgen.intgraph import (
    Addend,
    IntAdd,
    IntCodebook,
    IntConv2d,
    IntGraph,
    IntMeanWindow,
    IntNode,
    IntRescaledAdd,
    KqWeights,
    QTensor,
)

_SIDE_LIMIT = 65535
_MAP_LIMIT = 2**31 - 1


def check(graph: IntGraph) -> None:
    """Raises InputError naming the layer and field that no compiled network could have: names, shapes, dtypes, ranges of SPEC 3 to 5."""
    books = {codebook.name: codebook for codebook in graph.codebooks}
    for codebook in graph.codebooks:
        misfit = codebook_misfit(codebook)
        need(not misfit, f"codebook {codebook.name}", "values", misfit)
    known: dict[str, QTensor] = {}
    inside: dict[str, QTensor] = {}
    for tensor in graph.inputs:
        _tensor(f"input {tensor.name}", tensor, known)
    for number, node in enumerate(graph.nodes):
        where = f"layer {node.name}"
        for name in node.inputs:
            need(name in known, where, "inputs", name)
        few, many = (1 + int(node.addend is not None),) * 2 if isinstance(node, IntConv2d) else check_maps.operands(node)
        need(few <= len(node.inputs) <= many, where, "inputs", f"{len(node.inputs)} of them")
        need(-128 <= node.lo <= node.hi <= 127, where, "clamp", f"{node.lo}..{node.hi}")
        need(node.output.name == node.name, where, "output", node.output.name)
        sources = [known[name] for name in node.inputs]
        _tensor(where, node.output, known)
        _rule(where, node, graph.rounding)
        _node(where, node, sources, books)
        if isinstance(node, IntConv2d) and node.addend is not None:
            _may_overwrite(graph, number, node.inputs[1])
            _tensor(where, node.addend.result, inside)
    need(not known.keys() & inside.keys(), "the network", "name", ", ".join(sorted(known.keys() & inside.keys())))
    made = {node.name for node in graph.nodes}
    need(bool(graph.outputs) and set(graph.outputs) <= made and len(set(graph.outputs)) == len(graph.outputs), "the network", "outputs",
          ", ".join(graph.outputs))  # fmt: skip


def _node(where: str, node: IntNode, sources: list[QTensor], books: Mapping[str, IntCodebook]) -> None:
    source = sources[0]
    match node:
        case IntConv2d():
            _conv(where, node, source, books)
            if node.addend is not None:
                _addend(where, node, node.addend, sources[1])
        case _:
            check_maps.check(where, node, sources)


def _conv(where: str, node: IntConv2d, source: QTensor, books: Mapping[str, IntCodebook]) -> None:
    c_out, (h, w, c_in) = node.output.c, node.in_shape
    read = (1, 1, source.size_bytes) if node.dense else (source.h, source.w, source.c)
    runs = node.kernel[0] == 1 and node.stride[1] % max(1, node.kernel[1]) == 0 and not any(node.padding)
    need((h, w, c_in) == read or (runs and h * w * c_in == source.size_bytes), where, "in_shape", str(node.in_shape))
    need(not node.depthwise or c_out % c_in == 0, where, "depthwise", f"{c_in} -> {c_out}")
    steps = (*node.kernel, *node.stride, *node.dilation)
    need(min(steps) > 0 and min(node.padding) >= 0, where, "window", f"{steps}, {node.padding}")
    top, bottom, left, right = node.padding
    span_h, span_w = ((size - 1) * step + 1 for size, step in zip(node.kernel, node.dilation, strict=True))
    sides = ((h + top + bottom - span_h) // node.stride[0] + 1, (w + left + right - span_w) // node.stride[1] + 1)
    need(sides == (node.output.h, node.output.w), where, "output", f"{node.output.h, node.output.w} where the window gives {sides}")
    array(where, "pad_values", node.pad_values, np.int8, (c_in,))
    array(where, "bias", node.requant.bias, np.int32, (c_out,))
    twice = fixed_tflite.is_rule(node.requant.acc_shift)
    array(where, "multiplier", node.requant.multiplier, np.int32 if twice else np.int16, (c_out,))
    array(where, "shift", node.requant.shift, np.uint8, (c_out,))
    requant(where, node.requant.multiplier, node.requant.shift, node.requant.acc_shift)
    stored = node.weights
    if not isinstance(stored, KqWeights):
        need(stored.bits in (8, 6, 4), where, "bits", str(stored.bits))
        array(where, "weights", stored.values, np.int8, (c_out, *node.kernel, node.kernel_channels))
        least = -(1 << (stored.bits - 1))
        lowest = least if twice and stored.bits == 8 else least + 1
        need(bool(np.all((stored.values >= lowest) & (stored.values < -least))), where, "weights", f"beyond {stored.bits} bits")
        need(not twice or _bounded(node, stored.values.astype(np.int64)), where, "bias", "with which sums pass SPEC 3.5")
        return
    need(not twice, where, "weights", "indices in a network of rule tflite")
    need(stored.codebook in books, where, "codebook", stored.codebook)
    book = books[stored.codebook]
    need(book.values.shape[1:] == node.kernel, where, "codebook", f"{book.values.shape[1:]} for kernels {node.kernel}")
    array(where, "codes", stored.codes, np.int16, (c_out, node.kernel_channels))
    array(where, "negative", stored.negative, np.bool_, (c_out, node.kernel_channels))
    field, found = index_misfit(stored, book)
    need(not field, where, field, found)


def _bounded(node: IntConv2d, weights: npt.NDArray[np.int64]) -> bool:
    """Whether no sum, over all int8 inputs, passes the bound of SPEC 3.5."""
    low, high = fixed_tflite.sums(weights, node.requant.bias)
    return fixed_tflite.bounded(low, high, node.requant.shift)


def _rule(where: str, node: IntNode, rounding: str) -> None:
    marks = node.requant.acc_shift if isinstance(node, IntConv2d) else getattr(node, "acc_shift", None)
    marked = isinstance(node, IntRescaledAdd | IntMeanWindow) or (marks is not None and fixed_tflite.is_rule(marks))
    plain = (marks is not None and not marked) or isinstance(node, IntAdd) or (isinstance(node, IntConv2d) and node.addend is not None)
    need(not (plain if rounding == "tflite" else marked), where, "rounding", f"in a network of rule {rounding}")


def _addend(where: str, node: IntConv2d, addend: Addend, other: QTensor) -> None:
    check_maps.add(where, addend)
    need(-128 <= addend.lo <= addend.hi <= 127, where, "clamp", f"{addend.lo}..{addend.hi}")
    sides = (node.output.h, node.output.w, node.output.c)
    for each in (addend.result, other):
        need((each.h, each.w, each.c) == sides, where, "addend", f"{each.h, each.w, each.c}")


def _may_overwrite(graph: IntGraph, number: int, other: str) -> None:
    """The output of a layer that adds takes the place of its second operand, which nobody else may need."""
    node = graph.nodes[number]
    kept = {*(tensor.name for tensor in graph.inputs), *graph.outputs, node.inputs[0]}
    kept.update(name for later in graph.nodes[number + 1 :] for name in later.inputs)
    need(other not in kept, f"layer {node.name}", "addend", f"{other}, which is not its own to overwrite")
    need(node.name not in graph.outputs, f"layer {node.name}", "addend", "in a layer that makes an output")


def _tensor(where: str, tensor: QTensor, known: dict[str, QTensor]) -> None:
    need(tensor.name not in known, where, "name", f"{tensor.name} twice")
    sides = (tensor.h, tensor.w, tensor.c)
    need(min(sides) > 0 and max(sides) <= _SIDE_LIMIT and tensor.size_bytes <= _MAP_LIMIT, where, "output", str(sides))
    need(tensor.scale > 0 and math.isfinite(tensor.scale), where, "scale", str(tensor.scale))
    need(-128 <= tensor.zero_point <= 127, where, "zero_point", str(tensor.zero_point))
    known[tensor.name] = tensor
