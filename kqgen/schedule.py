"""The schedule: in which form each layer runs, with which tile and how much scratch (SPEC 6)."""

from __future__ import annotations

import numpy as np

from kqgen.intgraph import IntCodebook, IntConv2d, IntGraph, IntNode, KqWeights
from kqgen.plan import Form, Step

UNPACK_WEIGHTS_BYTES = 4608
"""Most scratch for expanded weights: 16 output channels of 32 3x3 input channels. More saves little and costs RAM."""

REUSE_PIXELS = 8
"""Output pixels a reuse pass serves: four packed pairs, so that one decoded index is used four times."""

# Instructions of the plain C on an ARMv6-M core, counted on its compiled inner loops; only their ratio matters.
TAP_COST = 6.0
PATCH_COST = 8.0
GATHER_COST = 8.0
INDEX_COST = 16.0


def schedule(graph: IntGraph, forms: dict[str, Form] | None = None) -> tuple[Step, ...]:
    """One step a node.

    Args:
        graph: integer graph.
        forms: layers for which the form is given instead of chosen (`decode` or `reuse`).
    """
    asked = forms or {}
    return tuple(_step(graph, node, asked.get(node.name)) for node in graph.nodes)


def _step(graph: IntGraph, node: IntNode, asked: Form | None) -> Step:
    if not isinstance(node, IntConv2d):
        return Step(node.name, "plain", 0, 0, "no weights")
    if not isinstance(node.weights, KqWeights):
        if node.weights.bits == 8:
            return Step(node.name, "direct", 0, im2col_bytes(node), "8-bit weights are read where they lie")
        tile = tile_channels(node)
        scratch = _round4(tile * _taps(node)) + im2col_bytes(node)
        return Step(node.name, "unpack", tile, scratch, f"{node.weights.bits}-bit weights, {tile} output channels expanded at a time")
    codebook = graph.codebook(node.weights.codebook)
    decode, reuse = decode_cost(node), reuse_cost(node)
    form: Form = asked or ("reuse" if reuse < decode else "decode")
    why = f"about {decode:.0f} instructions a pixel and input channel decoded, {reuse:.0f} reused"
    if form == "reuse":
        return Step(node.name, "reuse", REUSE_PIXELS, reuse_scratch_bytes(node, codebook, REUSE_PIXELS), why)
    tile = tile_channels(node)
    return Step(node.name, "decode", tile, decode_scratch_bytes(node, tile), why)


def _round4(size_bytes: int) -> int:
    return -(-size_bytes // 4) * 4


def _taps(node: IntConv2d) -> int:
    return node.kernel[0] * node.kernel[1] * node.in_shape[2]


def tile_channels(node: IntConv2d) -> int:
    """Output channels whose weights are expanded at a time: as many as UNPACK_WEIGHTS_BYTES hold, evenly spread, at least 1."""
    most = max(1, min(node.output.c, UNPACK_WEIGHTS_BYTES // _taps(node)))
    rounds = -(-node.output.c // most)
    return -(-node.output.c // rounds)


def im2col_bytes(node: IntConv2d) -> int:
    """Scratch of the uniform kernel's two windows; none when a 1x1 kernel reads its input in place (SPEC 6.4)."""
    if node.kernel == (1, 1) and node.padding == (0, 0, 0, 0):
        return 0
    return _round4(2 * _taps(node))


def decode_scratch_bytes(node: IntConv2d, tile: int) -> int:
    """SPEC 6.4, decode."""
    n = node.kernel[0] * node.kernel[1]
    return 8 * (n + 1) * node.in_shape[2] + _round4(tile * _taps(node))


def reuse_scratch_bytes(node: IntConv2d, codebook: IntCodebook, tile: int) -> int:
    """SPEC 6.4, reuse."""
    n = node.kernel[0] * node.kernel[1]
    return (
        4 * tile * node.output.c
        + 4 * codebook.codewords * (tile // 2)
        + 4 * n * tile
        + 4 * (n + 1) * (tile // 2)
        + _round4(codebook.codewords * n)
        + _round4(2 * codebook.codewords)
    )


def used_codewords(weights: KqWeights) -> float:
    """Mean number of different codewords that one input channel's kernels use."""
    return float(np.mean([len(np.unique(weights.codes[:, channel])) for channel in range(weights.codes.shape[1])]))


def decode_cost(node: IntConv2d) -> float:
    """Estimated instructions for two output pixels and one input channel by decode."""
    n = node.kernel[0] * node.kernel[1]
    rounds = -(-node.output.c // tile_channels(node))
    return node.output.c * (n * TAP_COST + GATHER_COST) + rounds * n * PATCH_COST


def reuse_cost(node: IntConv2d) -> float:
    """Estimated instructions for two output pixels and one input channel by reuse."""
    assert isinstance(node.weights, KqWeights)
    n = node.kernel[0] * node.kernel[1]
    return (
        used_codewords(node.weights) * (n * TAP_COST + GATHER_COST)
        + node.output.c * (GATHER_COST + INDEX_COST / (REUSE_PIXELS / 2))
        + n * PATCH_COST
    )
