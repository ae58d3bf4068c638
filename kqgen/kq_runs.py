"""Runs: how a 1x1 or fully connected layer, which has no kernels, is cut into some that can be indexed.

A run is g of the values that one output reads at one place; in memory they lie c / g bytes apart, so that the layer is a (1, g) kernel on
the same bytes (`ir.Conv2d.run`). Everything that indexes kernels takes such a layer as it is.

How long: for weights without structure along their channels, and such they are, a codebook's error is a matter of the bits spent on a
weight, whatever the length: it falls to a quarter by each bit. So the longest run is taken whose index still has `_BITS_A_WEIGHT` bits
for a weight: without training less costs more than the points it saves are worth.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from kqgen.ir import Conv2d, frozen_array
from kqgen.options import RUNS

_BITS_A_WEIGHT = 2.0
_WIDEST_STEP, _WIDEST_MAP = 255, 65535
_MATTERING = 8
"""Runs matter when more than one weight in so many could be in one."""
_WAYS, _LARGE_WAY = ((2, 2), (4, 4), (4, 8), (8, 8)), (8, 16)
"""Run lengths of layers, and of the largest ones."""
_LARGE = 1 << 16
"""Weights of a layer from which runs of 16 have room for enough codewords."""


def inputs_of(node: Conv2d) -> int:
    """Values that one output of the layer reads: c_in * k_h * k_w."""
    return int(node.weight[0].size)


def why_no_runs(node: Conv2d) -> str:
    """Why this layer, 1x1 or fully connected, cannot be cut into runs, or ""."""
    if node.groups != 1:
        return "its kernels read one channel each"
    if any(node.padding):
        return "its input is padded"
    if node.dilation != (1, 1):
        return "it is dilated"
    return "" if lengths(node) else f"{inputs_of(node)} inputs make no runs of {', '.join(map(str, RUNS[:-1]))} or {RUNS[-1]}"


def lengths(node: Conv2d) -> tuple[int, ...]:
    """The run lengths that divide a layer's inputs, ascending; none where it has kernels or cannot be cut."""
    flat = node.dense or node.kernel == (1, 1)
    if not flat or node.run != 1 or node.groups != 1 or any(node.padding) or node.dilation != (1, 1):
        return ()
    step = 1 if node.dense else node.stride[1]
    columns = 1 if node.dense else node.shape[2] * step
    return tuple(g for g in RUNS if inputs_of(node) % g == 0 and step * g <= _WIDEST_STEP and columns * g <= _WIDEST_MAP)


def natural_length(node: Conv2d, index_bits: int) -> int:
    """The run length for indices of so many bits, 1 where no length leaves each weight bits enough."""
    return max((g for g in lengths(node) if index_bits >= _BITS_A_WEIGHT * g), default=1)


def has_kernels(node: Conv2d) -> bool:
    """Whether the layer as it is has something to index: kernels, or runs it was cut into."""
    return node.run > 1 or not (node.dense or node.kernel == (1, 1))


def plans(nodes: Sequence[Conv2d]) -> tuple[tuple[Conv2d, ...], ...]:
    """Ways to cut the layers of a network into runs, for an allocation to choose among: runs of 2, 4 or 8, or of 4 and in its largest
    layers of 8; in large networks of 8 and 16 too. Where runs could matter little, one of them.
    """
    open_layers = [node for node in nodes if lengths(node)]
    total, largest = sum(node.weight.size for node in nodes), max((node.weight.size for node in open_layers), default=0)
    if _MATTERING * sum(node.weight.size for node in open_layers) < total:
        return (tuple(_cut_to(node, 4) for node in nodes),)
    tried = [*_WAYS, *([_LARGE_WAY] if largest >= _LARGE else [])]
    found = [tuple(_cut_to(node, wide if 2 * node.weight.size > largest else run) for node in nodes) for run, wide in tried]
    seen: dict[tuple[int, ...], tuple[Conv2d, ...]] = {}
    for plan in found:
        seen.setdefault(tuple(node.run for node in plan), plan)
    return tuple(seen.values())


def _cut_to(node: Conv2d, run: int) -> Conv2d:
    return cut(node, max((g for g in lengths(node) if g <= run), default=1))


def cut(node: Conv2d, run: int) -> Conv2d:
    """The layer with runs of `run` inputs, 1 for the layer itself; one that has runs already is returned as it is."""
    if run == 1 or node.run != 1:
        return node
    return replace(node, weight=frozen_array(cut_weight(node.weight, run)), run=run)


def cut_weight(weight: npt.NDArray[np.floating], run: int) -> npt.NDArray[np.floating]:
    """A weight (c_out, c, h, w) as runs, (c_out, c * h * w / run, 1, run); inputs are counted as they lie in memory, channels fastest.

    Input j * (n / run) + r is value j of run r.
    """
    flat = weight.transpose(0, 2, 3, 1).reshape(len(weight), run, -1)
    return np.ascontiguousarray(flat.transpose(0, 2, 1))[:, :, None, :]


def joined_weight(weight: npt.NDArray[np.floating], shape: tuple[int, ...]) -> npt.NDArray[np.floating]:
    """The weight (c_out, c, h, w) = `shape` of runs (c_out, n / run, 1, run): the inverse of `cut_weight`."""
    c_out, c, h, w = shape
    flat = weight[:, :, 0, :].transpose(0, 2, 1).reshape(c_out, h, w, c)
    return np.ascontiguousarray(flat.transpose(0, 3, 1, 2))
