"""Whether an integer graph holds together: what a file brings in is data of unknown origin, and every later stage trusts it.

Lowering makes only graphs that pass; `store` asks for the check after reading one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from kqgen import fixed
from kqgen.errors import InputError
from kqgen.index_check import codebook_misfit, index_misfit
from kqgen.intgraph import Addend, Array, IntAdd, IntAvgPool, IntClamp, IntCodebook, IntConv2d, IntGraph, IntNode, KqWeights, QTensor

_SIDE_LIMIT = 65535
_MAP_LIMIT = 2**31 - 1


def check(graph: IntGraph) -> None:
    """Raises InputError naming the layer and field that no compiled network could have: names, shapes, dtypes, ranges of SPEC 3 to 5."""
    books = {codebook.name: codebook for codebook in graph.codebooks}
    for codebook in graph.codebooks:
        misfit = codebook_misfit(codebook)
        _need(not misfit, f"codebook {codebook.name}", "values", misfit)
    known: dict[str, QTensor] = {}
    inside: dict[str, QTensor] = {}
    for tensor in graph.inputs:
        _tensor(f"input {tensor.name}", tensor, known)
    for number, node in enumerate(graph.nodes):
        where = f"layer {node.name}"
        for name in node.inputs:
            _need(name in known, where, "inputs", name)
        sums = isinstance(node, IntAdd) or (isinstance(node, IntConv2d) and node.addend is not None)
        _need(len(node.inputs) == (2 if sums else 1), where, "inputs", f"{len(node.inputs)} of them")
        _need(-128 <= node.lo <= node.hi <= 127, where, "clamp", f"{node.lo}..{node.hi}")
        _need(node.output.name == node.name, where, "output", node.output.name)
        _node(where, node, [known[name] for name in node.inputs], books)
        if isinstance(node, IntConv2d) and node.addend is not None:
            _may_overwrite(graph, number, node.inputs[1])
            _tensor(where, node.addend.result, inside)
        _tensor(where, node.output, known)
    _need(not known.keys() & inside.keys(), "the network", "name", ", ".join(sorted(known.keys() & inside.keys())))
    made = {node.name for node in graph.nodes}
    _need(bool(graph.outputs) and set(graph.outputs) <= made and len(set(graph.outputs)) == len(graph.outputs), "the network", "outputs",
          ", ".join(graph.outputs))  # fmt: skip


def _node(where: str, node: IntNode, sources: list[QTensor], books: Mapping[str, IntCodebook]) -> None:
    source, out = sources[0], node.output
    match node:
        case IntConv2d():
            _conv(where, node, source, books)
            if node.addend is not None:
                _addend(where, node, node.addend, sources[1])
        case IntAdd():
            _add(where, node)
            _need(all((each.h, each.w, each.c) == (out.h, out.w, out.c) for each in sources), where, "output", f"{out.h, out.w, out.c}")
        case IntClamp():
            _need((source.h, source.w, source.c) == (out.h, out.w, out.c), where, "output", f"{out.h, out.w, out.c}")
        case IntAvgPool():
            _requant(where, np.array([node.multiplier]), np.array([node.shift]), node.acc_shift)
        case _:
            pass


def _conv(where: str, node: IntConv2d, source: QTensor, books: Mapping[str, IntCodebook]) -> None:
    c_out, (h, w, c_in) = node.output.c, node.in_shape
    read = (1, 1, source.size_bytes) if node.dense else (source.h, source.w, source.c)
    _need((h, w, c_in) == read, where, "in_shape", str(node.in_shape))
    _need(min(*node.kernel, *node.stride) > 0 and min(node.padding) >= 0, where, "window", f"{node.kernel}, {node.stride}, {node.padding}")
    top, bottom, left, right = node.padding
    sides = ((h + top + bottom - node.kernel[0]) // node.stride[0] + 1, (w + left + right - node.kernel[1]) // node.stride[1] + 1)
    _need(sides == (node.output.h, node.output.w), where, "output", f"{node.output.h, node.output.w} where the window gives {sides}")
    _array(where, "pad_values", node.pad_values, np.int8, (c_in,))
    _array(where, "bias", node.requant.bias, np.int32, (c_out,))
    _array(where, "multiplier", node.requant.multiplier, np.int16, (c_out,))
    _array(where, "shift", node.requant.shift, np.uint8, (c_out,))
    _requant(where, node.requant.multiplier, node.requant.shift, node.requant.acc_shift)
    stored = node.weights
    if not isinstance(stored, KqWeights):
        _need(stored.bits in (8, 6, 4), where, "bits", str(stored.bits))
        _array(where, "weights", stored.values, np.int8, (c_out, *node.kernel, c_in))
        least = -(1 << (stored.bits - 1))
        _need(bool(np.all((stored.values > least) & (stored.values < -least))), where, "weights", f"beyond {stored.bits} bits")
        return
    _need(stored.codebook in books, where, "codebook", stored.codebook)
    book = books[stored.codebook]
    _need(book.values.shape[1:] == node.kernel, where, "codebook", f"{book.values.shape[1:]} for kernels {node.kernel}")
    _array(where, "codes", stored.codes, np.int16, (c_out, c_in))
    _array(where, "negative", stored.negative, np.bool_, (c_out, c_in))
    field, found = index_misfit(stored, book)
    _need(not field, where, field, found)


def _add(where: str, add: IntAdd | Addend) -> None:
    fits = 1 <= add.shift <= fixed.ADD_SHIFT_MAX and fixed.add_fits(add.multiplier_a, add.multiplier_b, add.bias)
    _need(fits and min(add.multiplier_a, add.multiplier_b) > 0, where, "multipliers", "beyond the bounds of SPEC 5.2")


def _addend(where: str, node: IntConv2d, addend: Addend, other: QTensor) -> None:
    _add(where, addend)
    _need(-128 <= addend.lo <= addend.hi <= 127, where, "clamp", f"{addend.lo}..{addend.hi}")
    sides = (node.output.h, node.output.w, node.output.c)
    for each in (addend.result, other):
        _need((each.h, each.w, each.c) == sides, where, "addend", f"{each.h, each.w, each.c}")


def _may_overwrite(graph: IntGraph, number: int, other: str) -> None:
    """The output of a layer that adds takes the place of its second operand, which nobody else may need."""
    node = graph.nodes[number]
    kept = {*(tensor.name for tensor in graph.inputs), *graph.outputs, node.inputs[0]}
    kept.update(name for later in graph.nodes[number + 1 :] for name in later.inputs)
    _need(other not in kept, f"layer {node.name}", "addend", f"{other}, which is not its own to overwrite")
    _need(node.name not in graph.outputs, f"layer {node.name}", "addend", "in a layer that makes an output")


def _requant(where: str, multiplier: Array, shift: Array, acc_shift: int) -> None:
    fits = 0 <= acc_shift <= fixed.ACC_SHIFT_MAX and np.all((shift >= fixed.SHIFT_MIN) & (shift <= fixed.SHIFT_MAX))
    _need(bool(fits and np.all((multiplier >= 0) & (multiplier <= fixed.MULTIPLIER_MAX))), where, "requant", "beyond SPEC 3.2")


def _tensor(where: str, tensor: QTensor, known: dict[str, QTensor]) -> None:
    _need(tensor.name not in known, where, "name", f"{tensor.name} twice")
    sides = (tensor.h, tensor.w, tensor.c)
    _need(min(sides) > 0 and max(sides) <= _SIDE_LIMIT and tensor.size_bytes <= _MAP_LIMIT, where, "output", str(sides))
    _need(tensor.scale > 0 and math.isfinite(tensor.scale), where, "scale", str(tensor.scale))
    _need(-128 <= tensor.zero_point <= 127, where, "zero_point", str(tensor.zero_point))
    known[tensor.name] = tensor


def _array(where: str, field: str, values: Array, dtype: type[np.generic], shape: tuple[int, ...]) -> None:
    _need(values.dtype == dtype and values.shape == shape, where, field, f"{values.dtype} {values.shape}, not {np.dtype(dtype)} {shape}")


def _need(holds: bool, where: str, field: str, found: str) -> None:
    if not holds:
        raise InputError(
            f"{where}: {field} cannot be that of a compiled network",
            found=found,
            wanted="the graph as kqgen compile wrote it",
            do="compile the model again",
        )
