"""Bytes that a choice of compression stores, known from the shapes of the layers alone.

Exact when every codeword finds a use and kernels are distinct; a network in which some find none stores less.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from kqgen.bits import CODEBOOK_BITS, packed_bytes
from kqgen.ir import Conv2d, Graph, Input, Node, frozen_array
from kqgen.kq_layers import Choice, choose, codebook_members, convolutions, with_runs
from kqgen.options import Codebook, Compression, index_bits

REQUANT_BYTES = 7
"""A bias, a multiplier and a shift: 4, 2 and 1 bytes for each output channel."""


@dataclass(frozen=True, slots=True)
class PlannedLayer:
    """What one Conv2d stores, its codebook not counted.

    Attributes:
        name: of the node.
        codebook: "" when the weights are uniform.
        bits: of one stored entry: an index, or a weight.
        codewords: that its indices can name; 0 when the weights are uniform.
        stored_bytes: packed indices or weights.
        weights: how many weights the layer has.
        dense: a fully connected layer.
    """

    name: str
    codebook: str
    bits: int
    codewords: int
    stored_bytes: int
    weights: int
    dense: bool


@dataclass(frozen=True, slots=True)
class PlannedCodebook:
    """A codebook: stored codewords (both tables of an additive one) and packed bytes."""

    name: str
    codewords: int
    stored_bytes: int


@dataclass(frozen=True, slots=True)
class Planned:
    """What a network will store.

    Attributes:
        layers: every Conv2d, in execution order.
        codebooks: in order of first use.
        requant_bytes: biases, multipliers and shifts, which no choice of weights changes.
    """

    layers: tuple[PlannedLayer, ...]
    codebooks: tuple[PlannedCodebook, ...]
    requant_bytes: int

    @property
    def table_bytes(self) -> int:
        """Indices, codebooks and uniform weights of all layers, padding to whole bytes included."""
        return sum(layer.stored_bytes for layer in self.layers) + sum(book.stored_bytes for book in self.codebooks)

    @property
    def conv_weights(self) -> int:
        """Weights of all convolutions; fully connected layers are none."""
        return sum(layer.weights for layer in self.layers if not layer.dense)

    @property
    def conv_bytes(self) -> int:
        """`table_bytes` without the fully connected layers."""
        return self.table_bytes - sum(layer.stored_bytes for layer in self.layers if layer.dense)

    @property
    def bits_per_weight(self) -> float:
        """Stored bits of a convolution's weight, codebooks and padding included; 0 for a network without convolutions."""
        return 8 * self.conv_bytes / self.conv_weights if self.conv_weights else 0.0


def planned_bytes(graph: Graph, compression: Compression) -> Planned:
    """What `compression` will store of a simplified graph, of which only the shapes of Conv2d nodes and the inputs' names count.

    Raises:
        InputError: `compression` names a layer that is not there.
    """
    graph = with_runs(graph, compression)
    choices = choose(graph, compression)
    nodes = convolutions(graph)
    widths = dict(compression.widths)
    asked = {node.name: codewords_at(_width(node, widths), compression.codebook) for node in nodes}
    stored = {
        name: stored_codewords([asked[node.name] for node in members], sum(kernels_of(node) for node in members))
        for name, members in codebook_members(graph, choices).items()
    }
    sizes = {choice.codebook: node.kernel for choice, node in zip(choices, nodes, strict=True) if choice.codebook}
    book = compression.codebook
    layers = tuple(_layer(node, choice, asked[node.name], stored, book) for node, choice in zip(nodes, choices, strict=True))
    tables = 2 if book.additive else 1
    codebooks = tuple(
        PlannedCodebook(name, tables * count, codebook_bytes(tables * count, sizes[name][0] * sizes[name][1]))
        for name, count in stored.items()
    )
    return Planned(layers, codebooks, sum(REQUANT_BYTES * len(node.weight) for node in nodes))


def codewords_at(width: int | None, codebook: Codebook) -> int:
    """The codewords that an index of `width` bits reaches, in each table of an additive codebook; None means all of them."""
    if width is None:
        return codebook.codewords
    free = max(0, width - int(codebook.sign)) // (2 if codebook.additive else 1)
    return int(min(codebook.codewords, 2**free))


def stored_codewords(asked: list[int], kernels: int) -> int:
    """Codewords of a codebook whose layers reach `asked` of them and have so many kernels together."""
    return max(1, min(max(asked, default=1), kernels))


def codebook_bytes(codewords: int, d: int) -> int:
    """Packed bytes of a codebook of `codewords` kernels of d values."""
    return packed_bytes(codewords * d, CODEBOOK_BITS)


def kernels_of(node: Conv2d) -> int:
    """Kernels of a layer: c_out * c_in, or its runs; c_out of a depthwise one."""
    return int(node.weight.shape[0] * node.weight.shape[1])


def _width(node: Conv2d, widths: Mapping[str, int]) -> int | None:
    return widths.get(node.name, widths.get(node.path) if node.path else None)


def _layer(node: Conv2d, choice: Choice, asked: int, stored: Mapping[str, int], codebook: Codebook) -> PlannedLayer:
    size = int(node.weight.size)
    if not choice.codebook:
        return PlannedLayer(node.name, "", choice.bits, 0, packed_bytes(size, choice.bits), size, node.dense)
    reach = min(asked, stored[choice.codebook])
    bits = index_bits(reach, codebook.sign, codebook.additive)
    return PlannedLayer(node.name, choice.codebook, bits, reach, packed_bytes(kernels_of(node), bits), size, node.dense)


def spelled(compression: Compression) -> str:
    """Every option that shapes the weights, as the command line takes them, in one line."""
    book = compression.codebook
    parts = [f"--weights {compression.weights}"]
    if compression.weights == "kq":
        parts += [f"--codebook {book.scope} --codewords {book.codewords} {'--sign' if book.sign else '--no-sign'}"]
        parts += ["--additive"] if book.additive else []
        parts += [f"--width {layer}={bits}" for layer, bits in compression.widths]
        parts += [f"--group {','.join(group)}" for group in compression.groups]
        parts += [f"--run {layer}={length}" for layer, length in compression.runs]
        parts += [f"--seed {compression.seed}"]
    parts += [f"--reconstruct {compression.reconstruct}"] if compression.reconstruct else []
    parts += [f"--keep {layer}={bits}" for layer, bits in compression.keep]
    return " ".join(parts)


def graph_of_weights(name: str, layers: Sequence[tuple[str, npt.NDArray[np.floating], bool]]) -> Graph:
    """A graph that holds weights and nothing between them, for `planned_bytes` and for allocation without samples.

    It cannot be run. The first layer reads the network's input, each other one the layer before it.

    Args:
        layers: (module path, weight (c_out, c_in, k_h, k_w) float32, fully connected) in execution order.
    """
    nodes: list[Node] = [Input("input", "", (), (layers[0][1].shape[1] if layers else 1, 1, 1))]
    for number, (path, weight, dense) in enumerate(layers):
        held = frozen_array(weight)
        shape = (len(held), 1, 1)
        nodes.append(Conv2d(f"layer_{number}", path, (nodes[-1].name,), shape, held, frozen_array(np.zeros(len(held))), dense=dense))
    return Graph(name, tuple(nodes), (nodes[-1].name,))
