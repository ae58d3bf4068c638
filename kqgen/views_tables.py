"""Views of the constant tables: what each array holds, how it is packed, and its initialisers as text."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from kqgen.bits import pack_codebook, pack_indices, pack_uniform
from kqgen.errors import InternalError
from kqgen.intgraph import Array, IntCodebook, IntConv2d, IntGraph, IntLookup, IntNode, IntSoftmax, UniformWeights
from kqgen.views_maps import table_name
from kqgen.views_params import conv_tables
from kqgen.views_text import array_rows, comment_lines, hex_rows, int32_literal, thousands


@dataclass(frozen=True, slots=True)
class TableView:
    """One constant array.

    Attributes:
        ident: its C name.
        c_type: type of an element.
        size_bytes: all of it.
        comment: lines of the comment above it.
        rows: initialisers, each row ending in a comma.
    """

    ident: str
    c_type: str
    size_bytes: int
    comment: tuple[str, ...]
    rows: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class TableGroupView:
    """The arrays of one layer, or one codebook: `heading` is the comment lines that open them."""

    heading: tuple[str, ...]
    tables: tuple[TableView, ...]


def layer_tables(graph: IntGraph, prefix: str, node: IntNode, modules: str) -> TableGroupView | None:
    """The tables of one layer, of a convolution weights first; None where it has none. `modules` names the PyTorch modules it came from."""
    match node:
        case IntConv2d():
            tables = _conv_tables(graph, prefix, node)
        case IntLookup():
            each = f" in each of {len(node.table)} channels" if len(node.table) > 1 else ""
            what = f"the results of -128 to 127{each}: SPEC 5.9"
            tables = [_numbers(table_name(node, prefix), "int8_t", 1, node.table, what)]
        case IntSoftmax():
            what = "exponentials by the difference from the largest value, in units of 2^-31: SPEC 5.12"
            tables = [_numbers(table_name(node, prefix), "int32_t", 4, node.exponentials, what)]
        case _:
            return None
    return TableGroupView(comment_lines(f"---- {node.name}, from {modules}"), tuple(tables))


def _conv_tables(graph: IntGraph, prefix: str, node: IntConv2d) -> list[TableView]:
    names = conv_tables(prefix, node)
    c_out, wide = node.output.c, node.requant.multiplier.itemsize == 4
    tables = [
        _weights_table(graph, names.weights, node),
        _numbers(names.bias, "int32_t", 4, node.requant.bias, f"biases of {c_out} output channels, on the accumulator: SPEC 5.1"),
        _numbers(
            names.multiplier, "int32_t" if wide else "int16_t", 4 if wide else 2, node.requant.multiplier,
            f"multipliers of {c_out} output channels: SPEC {'3.5' if wide else '3.2'}",
        ),
        _numbers(names.shift, "uint8_t", 1, node.requant.shift, f"shifts of {c_out} output channels: SPEC {'3.5' if wide else '3.2'}"),
    ]
    if names.pad_values != "NULL":
        what = f"what padded positions read in each of {node.in_shape[2]} input channels: SPEC 5.1"
        tables.append(_numbers(names.pad_values, "int8_t", 1, node.pad_values, what))
    return tables


def without_shared(group: TableGroupView, shared: Mapping[str, str]) -> TableGroupView:
    """The group without the tables that `shared` names elsewhere, by C name; its heading says where they are."""
    told = [f"{table.ident}: the same as {shared[table.ident]}" for table in group.tables if table.ident in shared]
    tables = tuple(table for table in group.tables if table.ident not in shared)
    return TableGroupView((*group.heading, *(line for text in told for line in comment_lines(text))), tables)


def codebook_table(ident: str, codebook: IntCodebook, users: str) -> TableGroupView:
    """The table of one codebook; `users` lists the layers that index it."""
    count, k_h, k_w = codebook.values.shape
    meant = f", a kernel is the sum of one of the first {codebook.codewords} and one of the others" if codebook.additive else ""
    negative = ", also negated" if codebook.additive else ", each also its negative"
    what = (
        f"{_counted(count, 'codeword')} x {_counted(k_h * k_w, 'value')} x 6 bits, two's complement, row by row"
        f"{meant}{negative if codebook.sign else ''}: SPEC 4.3"
    )
    heading = comment_lines(f"---- {codebook.name}, the codebook of {users}")
    return TableGroupView(heading, (_packed(ident, pack_codebook(codebook.values, codebook.additive), codebook.packed_bytes, what),))


def _counted(count: int, word: str) -> str:
    return f"{thousands(count)} {word}" + ("" if count == 1 else "s")


def _weights_table(graph: IntGraph, ident: str, node: IntConv2d) -> TableView:
    c_out, c_in = node.output.c, node.kernel_channels
    k_h, k_w = node.kernel
    stored = node.weights
    if isinstance(stored, UniformWeights):
        order = f"[{c_out} out][{k_h}][{k_w}][{c_in} in]"
        what = f"{_counted(stored.values.size, 'weight')} x {stored.bits} bits, two's complement, {order}: SPEC 4.4"
        packed = pack_uniform(stored.values, stored.bits, lowest=node.requant.multiplier.itemsize == 4)
        return _packed(ident, packed, stored.packed_bytes, what)
    codebook = graph.codebook(stored.codebook)
    one = codebook.stage_bits(stored.index_bits)
    parts = [f"{one} + {one} index" if codebook.additive else f"{one} index", *(["1 sign"] if codebook.sign else [])]
    split = f" ({', '.join(parts)})" if codebook.additive or codebook.sign else ""
    what = f"{_counted(stored.codes.size, 'kernel')} x {_counted(stored.index_bits, 'bit')}{split}, [{c_in} in][{c_out} out]: SPEC 4.2"
    return _packed(ident, pack_indices(stored.codes, stored.negative, stored.index_bits), stored.packed_bytes, what)


def _packed(ident: str, packed: bytes, expected_bytes: int, what: str) -> TableView:
    if len(packed) != expected_bytes:
        raise InternalError(f"table {ident} packs into {len(packed)} bytes, its size was given as {expected_bytes}")
    comment = comment_lines(f"{what}; {_counted(len(packed), 'byte')}")
    return TableView(ident, "uint8_t", len(packed), comment, hex_rows(packed))


def _numbers(ident: str, c_type: str, width_bytes: int, values: Array, what: str) -> TableView:
    literals = [int32_literal(int(value)) for value in np.asarray(values).reshape(-1)]
    size_bytes = width_bytes * len(literals)
    comment = comment_lines(f"{what}; {_counted(size_bytes, 'byte')}")
    return TableView(ident, c_type, size_bytes, comment, array_rows(literals))
