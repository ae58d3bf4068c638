"""Where things stand in a picture of codebooks: the grid of tiles and the bars of a layer, in pixels."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from kqgen.intgraph import Pair

WIDTH = 900
LEFT = 40
"""Margin on both sides."""
ROW_HEIGHT = 52

_BARS_LEFT = 226
_BARS_HEIGHT = 38
_CELLS = range(14, 2, -1)
_SIMILAR = 3
"""Of so many sizes that fit, the largest first, the one whose last row is fullest is taken."""
_TALLEST = 470
_LEAST_TALL = 150
_LOGARITHMIC = 20
"""Use is drawn on a logarithmic scale where a codeword serves more kernels than this in one layer."""
_GAPS_FROM = 3.0


@dataclass(frozen=True, slots=True)
class Grid:
    """Tiles in rows.

    Attributes:
        cell: side of one weight.
        columns: tiles of a row.
        tile_width, tile_height: of one codeword.
        bar_height: of the bar under it.
        pitch_x, pitch_y: from tile to tile.
        height: of all rows.
    """

    cell: int
    columns: int
    tile_width: int
    tile_height: int
    bar_height: int
    pitch_x: int
    pitch_y: int
    height: int


@dataclass(frozen=True, slots=True)
class Bars:
    """One bar a codeword.

    Attributes:
        path: of all bars.
        levels: y of each of `ticks`.
        left, height: of the drawing.
        logarithmic: the scale.
    """

    path: str
    levels: tuple[float, ...]
    left: int
    height: int
    logarithmic: bool


def grid(kernel: Pair, codewords: int, panels: int) -> Grid:
    """The largest tiles with which all codewords stay within a height that `panels` of them leave to each."""
    k_h, k_w = kernel
    tallest = max(_LEAST_TALL, _TALLEST // panels)
    found = [_grid(k_h, k_w, codewords, cell) for cell in _CELLS]
    fitting = [plan for plan in found if plan.height <= tallest][:_SIMILAR] or found[-1:]
    return min(fitting, key=lambda plan: -codewords % plan.columns / plan.columns if codewords > plan.columns else 0)


def _grid(k_h: int, k_w: int, codewords: int, cell: int) -> Grid:
    gap, bar = max(4, round(0.8 * cell)), 3 if cell > 3 else 2
    pitch_x, pitch_y = k_w * cell + gap, k_h * cell + 2 + bar + gap
    columns = max(1, (WIDTH - 2 * LEFT + gap) // pitch_x)
    rows = -(-codewords // columns)
    return Grid(cell, columns, k_w * cell, k_h * cell, bar, pitch_x, pitch_y, rows * pitch_y - gap)


def ticks(highest: int) -> tuple[int, ...]:
    """The values that a scale up to `highest` is marked at."""
    if highest <= _LOGARITHMIC:
        return (highest,)
    return tuple(10**power for power in range(int(math.log10(highest)) + 1))


def bars(counts: npt.NDArray[np.int64], highest: int, top: int) -> Bars:
    """Bars for counts (codewords,), on a scale up to `highest`, below the line `top`."""
    logarithmic = highest > _LOGARITHMIC

    def level(value: int) -> float:
        share = math.log1p(value) / math.log1p(highest) if logarithmic else value / max(1, highest)
        return round(top + _BARS_HEIGHT * (1 - share), 1)

    pitch = (WIDTH - LEFT - _BARS_LEFT) / len(counts)
    width = 0.8 * pitch if pitch >= _GAPS_FROM else pitch
    base = top + _BARS_HEIGHT
    parts = [
        f"M{_BARS_LEFT + place * pitch:.2f} {base}V{level(count)}h{width:.2f}V{base}z"
        for place, count in enumerate(counts.tolist())
        if count
    ]
    return Bars("".join(parts), tuple(level(value) for value in ticks(highest)), _BARS_LEFT, _BARS_HEIGHT, logarithmic)
