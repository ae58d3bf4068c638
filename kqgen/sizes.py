"""Flash bytes of the generated tables on a core with 32-bit pointers, known before any C is compiled.

Counts constants only: tables and parameter structs, not code, not the golden vectors of the self-test, not the few bytes a
linker may add between two tables to align them.
"""

from __future__ import annotations

from dataclasses import dataclass

from kqgen.errors import InternalError
from kqgen.intgraph import (
    IntAdd,
    IntArgMax,
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
    IntSoftmax,
    KqWeights,
)
from kqgen.plan import Plan
from kqgen.shared_tables import needs_pad_table, shared_tables

STRUCT_BYTES = {
    "kq_conv2d": 52,
    "kq_conv2d_kq": 60,
    "kq_add": 20,
    "kq_pool": 32,
    "kq_clamp": 8,
    "kq_slice_pad": 22,
    "kq_lookup": 12,
    "kq_mul": 20,
    "kq_rescaled_add": 32,
    "kq_place": 28,
    "kq_softmax": 12,
    "kq_argmax": 8,
    "kq_rows": 12,
}
"""Size of each runtime parameter struct where a pointer has 32 bits (SPEC 8); the generated C asserts them."""


@dataclass(frozen=True, slots=True)
class LayerSizes:
    """Flash bytes of one layer's constants, codebooks not counted.

    Attributes:
        weights: packed weights or packed indices.
        bias, multiplier, shift: the requantisation arrays, 4, 2 (by rule `tflite` 4) and 1 bytes an output channel.
        pad_values: one byte an input channel, 0 when one value serves all of them.
        struct: the runtime's parameter struct, that of an addition done on the way, or those of all parts of an assembly.
        results: of a lookup one byte a value and table, of a softmax four bytes an exponential.
    """

    weights: int
    bias: int
    multiplier: int
    shift: int
    pad_values: int
    struct: int
    results: int = 0

    @property
    def requant(self) -> int:
        """Bytes of biases, multipliers and shifts."""
        return self.bias + self.multiplier + self.shift

    @property
    def total(self) -> int:
        """All bytes of the layer."""
        return self.weights + self.requant + self.pad_values + self.struct + self.results


def struct_name(node: IntNode) -> str:
    """The runtime struct that holds the parameters of `node` (SPEC 8).

    Raises: InternalError for a node type the runtime does not know.
    """
    match node:
        case IntConv2d():
            return "kq_conv2d_kq" if isinstance(node.weights, KqWeights) else "kq_conv2d"
        case IntAdd():
            return "kq_add"
        case IntAvgPool() | IntMaxPool() | IntMeanWindow():
            return "kq_pool"
        case IntRescaledAdd():
            return "kq_rescaled_add"
        case IntClamp():
            return "kq_clamp"
        case IntSlicePad():
            return "kq_slice_pad"
        case IntLookup():
            return "kq_lookup"
        case IntMul():
            return "kq_mul"
        case IntAssemble():
            return "kq_place"
        case IntSoftmax():
            return "kq_softmax"
        case IntArgMax():
            return "kq_argmax"
        case _:
            raise InternalError(f"layer {node.name}: the runtime has no parameters for {type(node).__name__}")


def layer_sizes(node: IntNode) -> LayerSizes:
    """Flash bytes of the constants of `node`, those that it shares with other layers too."""
    struct = STRUCT_BYTES[struct_name(node)]
    if not isinstance(node, IntConv2d):
        parts = len(node.parts) if isinstance(node, IntAssemble) else 1
        results = node.table.nbytes if isinstance(node, IntLookup) else node.exponentials.nbytes if isinstance(node, IntSoftmax) else 0
        return LayerSizes(0, 0, 0, 0, 0, parts * struct, results)
    pad_bytes = node.in_shape[2] if needs_pad_table(node) else 0
    c_out = node.output.c
    struct += STRUCT_BYTES["kq_add"] if node.addend is not None else 0
    return LayerSizes(node.weights.packed_bytes, 4 * c_out, node.requant.multiplier.nbytes, c_out, pad_bytes, struct)


def jobs_bytes(plan: Plan) -> int:
    """Flash bytes of the jobs of all streams of `plan`."""
    return STRUCT_BYTES["kq_rows"] * sum(len(stream.jobs) for stream in plan.streams)


def layer_bytes(graph: IntGraph) -> dict[str, int]:
    """Flash bytes of each layer's constants, by name; a table that several layers share counts at the first of them."""
    found = {node.name: layer_sizes(node).total for node in graph.nodes}
    for shared in shared_tables(graph):
        found[shared.layer] -= shared.size_bytes
    return found


def tables_bytes(graph: IntGraph) -> int:
    """Flash bytes of all layers and codebooks of `graph`."""
    return sum(layer_bytes(graph).values()) + sum(codebook.packed_bytes for codebook in graph.codebooks)


def int8_tables_bytes(graph: IntGraph) -> int:
    """What `tables_bytes` would be with every weight in 8 bits."""
    convs = [node for node in graph.nodes if isinstance(node, IntConv2d)]
    alike = {shared.layer for shared in shared_tables(graph) if shared.field in ("weights", "indices")}
    wider = sum(node.weight_count - node.weights.packed_bytes for node in convs if node.name not in alike)
    indexed = sum(isinstance(node.weights, KqWeights) for node in convs)
    structs = indexed * (STRUCT_BYTES["kq_conv2d"] - STRUCT_BYTES["kq_conv2d_kq"])
    return tables_bytes(graph) + wider + structs - sum(book.packed_bytes for book in graph.codebooks)
