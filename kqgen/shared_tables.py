"""Constant tables that layers have in common: of equal ones the first is stored, and the others' layers name it."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from kqgen.intgraph import Array, IntConv2d, IntGraph, IntLookup, IntNode, IntSoftmax, KqWeights


@dataclass(frozen=True, slots=True)
class Shared:
    """A table that is stored with another layer.

    Attributes:
        layer, field: whose it is, and which: what follows the layer's C name in the table's.
        owner: the layer that it is stored with, under the same field.
        size_bytes: saved.
    """

    layer: str
    field: str
    owner: str
    size_bytes: int


def shared_tables(graph: IntGraph) -> tuple[Shared, ...]:
    """The tables that equal one of the same field of a layer before, in order."""
    owners: dict[tuple[str, bytes], str] = {}
    found: list[Shared] = []
    for node in graph.nodes:
        for field, size_bytes, content in _tables(node):
            owner = owners.setdefault((field, content), node.name)
            if owner != node.name:
                found.append(Shared(node.name, field, owner, size_bytes))
    return tuple(found)


def _tables(node: IntNode) -> list[tuple[str, int, bytes]]:
    """Field, size and a digest of what each table of a layer holds."""
    match node:
        case IntConv2d():
            stored, requant = node.weights, node.requant
            if isinstance(stored, KqWeights):
                entries = (stored.codes, stored.negative)
                weights = ("indices", stored.packed_bytes, _digest(f"{stored.index_bits} {stored.codes.shape}", *entries))
            else:
                weights = ("weights", stored.packed_bytes, _digest(f"{stored.bits}", stored.values))
            numbers: list[tuple[str, Array]] = [("bias", requant.bias), ("multiplier", requant.multiplier), ("shift", requant.shift)]
            numbers += [("pad_values", node.pad_values)] if needs_pad_table(node) else []
            return [weights, *((field, values.nbytes, _digest(values.dtype.str, values)) for field, values in numbers)]
        case IntLookup():
            return [("table", node.table.nbytes, _digest("", node.table))]
        case IntSoftmax():
            return [("exponentials", node.exponentials.nbytes, _digest("", node.exponentials))]
        case _:
            return []


def needs_pad_table(node: IntConv2d) -> bool:
    """Whether padded positions read different values in different input channels, so that a table must hold them."""
    return node.padding != (0, 0, 0, 0) and len(set(node.pad_values.tolist())) > 1


def _digest(form: str, *arrays: Array) -> bytes:
    digest = hashlib.sha256(form.encode())
    for array in arrays:
        digest.update(array.tobytes())
    return digest.digest()
