"""The schedule: in which form each layer runs, with which tile and how much scratch (SPEC 6)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from kqgen.errors import InternalError
from kqgen.intgraph import IntConv2d, IntGraph, IntNode, KqWeights
from kqgen.plan import Form, Step


@dataclass(frozen=True, slots=True)
class Room:
    """Scratch that a lookup step may take: more saves cycles.

    Attributes:
        weights_bytes: for expanded weights.
        pixels: output pixels a reuse pass serves, so that one decoded index is used pixels / 2 times.
    """

    weights_bytes: int
    pixels: int


ROOMS = (Room(2304, 8), Room(4608, 16), Room(9216, 32), Room(18432, 32))
"""From what every step may have (16 output channels of 16 3x3 input channels) to where more saves nothing worth having."""

# Modelled cycles of the plain C on a Cortex-M0+, for two output pixels and one input channel, fitted to runs of 16 to 64 channels of
# 3x3 kernels and 4 to 256 codewords (docs/DESIGN.md, decision 22). Only their ratio matters.
DECODE_TAP_CYCLES = 7.0
DECODE_KERNEL_CYCLES = 9.0
DECODE_PATCH_CYCLES = 16.0
REUSE_TAP_CYCLES = 10.0
REUSE_CODEWORD_CYCLES = 8.0
REUSE_GATHER_CYCLES = 48.0
REUSE_PATCH_CYCLES = 33.0


def schedule(graph: IntGraph, forms: Mapping[str, Form] | None = None, rooms: Mapping[str, Room] | None = None) -> tuple[Step, ...]:
    """One step a node.

    Args:
        graph: integer graph.
        forms: layers for which the form is given instead of chosen (`decode` or `reuse`).
        rooms: scratch of the layers that may take more than ROOMS[0].

    Raises:
        InternalError: reuse was asked for a layer with an additive codebook.
    """
    asked, given = forms or {}, rooms or {}
    return tuple(_step(graph, node, asked.get(node.name), given.get(node.name, ROOMS[0])) for node in graph.nodes)


def _step(graph: IntGraph, node: IntNode, asked: Form | None, room: Room) -> Step:
    if not isinstance(node, IntConv2d):
        return Step(node.name, "plain", 0, 0, "no weights")
    stored, tile = node.weights, tile_channels(node, room.weights_bytes)
    if not isinstance(stored, KqWeights):
        if stored.bits == 8:
            return Step(node.name, "direct", 0, im2col_bytes(node), "8-bit weights are read where they lie")
        scratch = _round4(tile * _taps(node)) + im2col_bytes(node)
        return Step(node.name, "unpack", tile, scratch, f"{stored.bits}-bit weights, {tile} output channels expanded at a time")
    codebook = graph.codebook(stored.codebook)
    if codebook.additive:
        if asked == "reuse":
            raise InternalError(f"layer {node.name}: form reuse does not suit an additive codebook")
        return Step(node.name, "decode", tile, decode_scratch_bytes(node, tile), "sums of two codewords are decoded")
    decode, reuse = decode_cycles(node, tile), reuse_cycles(node, stored)
    form: Form = asked or ("reuse" if reuse < decode else "decode")
    why = f"about {decode:.0f} cycles a pixel pair and input channel decoded, {reuse:.0f} reused"
    if form == "reuse":
        pixels = tile_pixels(node, room.pixels)
        return Step(node.name, "reuse", pixels, reuse_scratch_bytes(node, codebook.named(stored.index_bits), pixels), why)
    return Step(node.name, "decode", tile, decode_scratch_bytes(node, tile), why)


def _round4(size_bytes: int) -> int:
    return -(-size_bytes // 4) * 4


def _taps(node: IntConv2d) -> int:
    return node.kernel[0] * node.kernel[1] * node.in_shape[2]


def tile_channels(node: IntConv2d, weights_bytes: int) -> int:
    """Output channels whose weights are expanded at a time: as many as `weights_bytes` hold, evenly spread, at least 1."""
    most = max(1, min(node.output.c, weights_bytes // _taps(node)))
    rounds = -(-node.output.c // most)
    return -(-node.output.c // rounds)


def tile_pixels(node: IntConv2d, most: int) -> int:
    """Output pixels of one reuse pass: an even number, `most` or as many as there are."""
    pixels = node.output.h * node.output.w
    return min(most, pixels + pixels % 2)


def im2col_bytes(node: IntConv2d) -> int:
    """Scratch of the uniform kernel's two windows; none when a 1x1 kernel reads its input in place (SPEC 6.4)."""
    if node.kernel == (1, 1) and node.padding == (0, 0, 0, 0):
        return 0
    return _round4(2 * _taps(node))


def decode_scratch_bytes(node: IntConv2d, tile: int) -> int:
    """SPEC 6.4, decode."""
    n = node.kernel[0] * node.kernel[1]
    return 8 * (n + 1) * node.in_shape[2] + _round4(tile * _taps(node))


def reuse_scratch_bytes(node: IntConv2d, codewords: int, tile: int) -> int:
    """SPEC 6.4, reuse; `codewords` are those that the layer's indices can name."""
    n = node.kernel[0] * node.kernel[1]
    return (
        4 * tile * node.output.c
        + 4 * codewords * (tile // 2)
        + 4 * n * tile
        + 4 * (n + 1) * (tile // 2)
        + _round4(codewords * n)
        + _round4(2 * codewords)
    )


def used_codewords(weights: KqWeights) -> float:
    """Mean number of different codewords that one input channel's kernels use."""
    return float(np.mean([len(np.unique(weights.codes[:, channel])) for channel in range(weights.codes.shape[1])]))


def decode_cycles(node: IntConv2d, tile: int) -> float:
    """Estimated cycles for two output pixels and one input channel by decode."""
    n = node.kernel[0] * node.kernel[1]
    rounds = -(-node.output.c // tile)
    return node.output.c * (n * DECODE_TAP_CYCLES + DECODE_KERNEL_CYCLES) + rounds * n * DECODE_PATCH_CYCLES


def reuse_cycles(node: IntConv2d, weights: KqWeights) -> float:
    """Estimated cycles for two output pixels and one input channel by reuse."""
    n = node.kernel[0] * node.kernel[1]
    building = used_codewords(weights) * (n * REUSE_TAP_CYCLES + REUSE_CODEWORD_CYCLES)
    return building + node.output.c * REUSE_GATHER_CYCLES + n * REUSE_PATCH_CYCLES
