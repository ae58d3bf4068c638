"""A picture of learned codebooks as SVG: every codeword as a tile, sorted by use, and how often each layer uses which.

Colours are those of ColorBrewer's RdBu scale, which the colour-blind tell apart: blue below 0, red above, light grey at 0. The same
network gives the same bytes.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from xml.sax.saxutils import escape

import numpy as np
import numpy.typing as npt

from kqgen.bits import CODEBOOK_VALUE_MAX
from kqgen.compare import layer_labels
from kqgen.errors import InputError
from kqgen.intgraph import Int8, IntCodebook, IntConv2d, IntGraph, KqWeights, codeword_rows
from kqgen.picture_layout import LEFT, ROW_HEIGHT, WIDTH, Bars, Grid, bars, grid, ticks
from kqgen.render import render
from kqgen.report import bits_per_weight, grouped

_ANCHORS = ("#2166ac", "#4393c3", "#92c5de", "#d1e5f0", "#f7f7f7", "#fddbc7", "#f4a582", "#d6604d", "#b2182b")
"""Of -31 to 31, even steps of `_CURVE`."""
_CURVE = 0.6
"""Exponent that sets small values apart, which most are."""
_INK, _GREY, _FAINT = "#1f2933", "#66707c", "#e1e4e8"
_RIGHT = WIDTH - LEFT
_LEGEND_CELL = 4
_STAGES = ("first codeword of a pair", "second codeword of a pair")

Int64 = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class TextView:
    """A line of text; `anchor` is SVG's text-anchor."""

    x: int
    y: int
    text: str
    size: int
    fill: str = _INK
    weight: str = "normal"
    anchor: str = "start"


@dataclass(frozen=True, slots=True)
class BoxView:
    """A filled rectangle."""

    x: int
    y: int
    width: int
    height: int
    fill: str


@dataclass(frozen=True, slots=True)
class PathView:
    """A path in one colour."""

    fill: str
    path: str


@dataclass(frozen=True, slots=True)
class TileView:
    """One codeword: its place, its cells by colour, the width of its bar, and what a pointer over it is told."""

    x: int
    y: int
    cells: tuple[PathView, ...]
    bar: int
    note: str


@dataclass(frozen=True, slots=True)
class PanelView:
    """The tiles of one codebook, or of one stage of it."""

    name: str
    tiles: tuple[TileView, ...]
    frame_width: int
    frame_height: int
    bar_top: int
    bar_height: int


@dataclass(frozen=True, slots=True)
class RowView:
    """How often one layer uses each codeword: bars and the lines behind them."""

    note: str
    path: str
    lines: tuple[PathView, ...]


@dataclass(frozen=True, slots=True)
class PictureView:
    """What templates/codebook.svg.j2 prints."""

    width: int
    height: int
    title: str
    description: str
    legend: tuple[BoxView, ...]
    panels: tuple[PanelView, ...]
    rows: tuple[RowView, ...]
    texts: tuple[TextView, ...]


@dataclass(frozen=True, slots=True, eq=False)
class _Use:
    """How one layer uses its codebook.

    Attributes:
        label: of the layer.
        counts: (stored codewords,) kernels that use each.
        symbols: (kernels,) what each index says, sign included, as one number.
        negative: (stored codewords,) kernels that use its negative.
        index_bits: of one index.
    """

    label: str
    counts: Int64
    negative: Int64
    symbols: Int64
    index_bits: int


@dataclass(frozen=True, slots=True)
class _Section:
    """The drawing of one codebook, and where it ends."""

    panels: tuple[PanelView, ...]
    rows: tuple[RowView, ...]
    texts: tuple[TextView, ...]
    bottom: int


def picture(graph: IntGraph) -> str:
    """The codebooks of a network as the text of an SVG file, 900 pixels wide.

    Raises:
        InputError: the network has no codebook.
    """
    books = [(book, uses) for book in graph.codebooks if (uses := _uses(graph, book))]
    if not books:
        raise InputError(
            f"{graph.name} has no codebook to draw", found=f"weights of {graph.compression}, every layer stored uniformly",
            wanted="a network with indexed layers", do="compile it with --weights kq",
        )  # fmt: skip
    title = f"{graph.name}: {'codebook' if len(books) == 1 else f'{len(books)} codebooks'} of kernels"
    widths = bits_per_weight(graph)
    told = f"{widths.kq:.2f} bits a weight in indexed layers, {widths.conv:.2f} over all convolutions"
    texts = [TextView(LEFT, 44, _text(title), 20, weight="bold"), TextView(LEFT, 66, _text(told), 12, _GREY), *_legend_texts()]
    panels: list[PanelView] = []
    rows: list[RowView] = []
    bottom = 84
    for book, uses in books:
        section = _section(book, uses, bottom, len(books))
        panels += section.panels
        rows += section.rows
        texts += section.texts
        bottom = section.bottom
    view = PictureView(
        WIDTH, bottom + 16, _text(title), _text(f"{told}. Each tile is a codeword, blue below 0 and red above, most used first."),
        tuple(_legend()), tuple(panels), tuple(rows), tuple(texts),
    )  # fmt: skip
    return render("codebook.svg.j2", view)


def _text(raw: str) -> str:
    """Text that XML can hold."""
    return escape(re.sub(r"[^\x20-\x7e\xa0-\ud7ff]", "?", raw), {'"': "&quot;"})


def colour(value: float) -> str:
    """Of a codeword's value -31..31, as #rrggbb."""
    strength = math.copysign((abs(value) / CODEBOOK_VALUE_MAX) ** _CURVE, value)
    place = (strength + 1) / 2 * (len(_ANCHORS) - 1)
    low = min(int(place), len(_ANCHORS) - 2)
    ends = [[int(_ANCHORS[number][start : start + 2], 16) for start in (1, 3, 5)] for number in (low, low + 1)]
    return "#" + "".join(f"{round(a + (b - a) * (place - low)):02x}" for a, b in zip(*ends, strict=True))


def _legend() -> Iterator[BoxView]:
    left = _RIGHT - _LEGEND_CELL * (2 * CODEBOOK_VALUE_MAX // 2 + 1)
    for number, value in enumerate(range(-CODEBOOK_VALUE_MAX, CODEBOOK_VALUE_MAX + 1, 2)):
        yield BoxView(left + number * _LEGEND_CELL, 34, _LEGEND_CELL, 10, colour(value))


def _legend_texts() -> Iterator[TextView]:
    width = _LEGEND_CELL * (2 * CODEBOOK_VALUE_MAX // 2 + 1)
    for x, text, anchor in ((_RIGHT - width, f"-{CODEBOOK_VALUE_MAX}", "start"), (_RIGHT - width // 2, "0", "middle"),
                            (_RIGHT, f"+{CODEBOOK_VALUE_MAX}", "end")):  # fmt: skip
        yield TextView(x, 58, text, 10, _GREY, anchor=anchor)


def _uses(graph: IntGraph, book: IntCodebook) -> tuple[_Use, ...]:
    """Of each layer that reads `book`, in execution order."""
    out = []
    for node, label in zip(graph.nodes, layer_labels(graph), strict=True):
        if not (isinstance(node, IntConv2d) and isinstance(node.weights, KqWeights) and node.weights.codebook == book.name):
            continue
        rows = codeword_rows(node.weights, book).reshape(book.stages, -1)
        minus = node.weights.negative.reshape(-1)
        symbols = minus.astype(np.int64)
        for stage in rows:
            symbols = symbols * len(book.values) + stage
        counts = np.bincount(rows.reshape(-1), minlength=len(book.values))
        negative = np.bincount(rows[:, minus].reshape(-1), minlength=len(book.values))
        out.append(_Use(label, counts, negative, symbols, node.weights.index_bits))
    return tuple(out)


def entropy_bits(symbols: Int64) -> float:
    """The entropy of symbols (n,) drawn as often as they occur: what an ideal code would take for each, bits."""
    _, counts = np.unique(symbols, return_counts=True)
    shares = counts / counts.sum()
    return float(-(shares * np.log2(shares)).sum()) + 0.0


def _section(book: IntCodebook, uses: tuple[_Use, ...], top: int, books: int) -> _Section:
    counts = np.sum([use.counts for use in uses], axis=0)
    negative = np.sum([use.negative for use in uses], axis=0)
    symbols = np.concatenate([use.symbols for use in uses])
    width_bits = sum(use.index_bits * len(use.symbols) for use in uses) / len(symbols)
    k_h, k_w = book.values.shape[1:]
    entropy = entropy_bits(symbols)
    kinds = f"{grouped(book.codewords)}{' + ' + grouped(book.codewords) if book.additive else ''} codewords of {k_h}x{k_w}"
    made = (", summed in pairs" if book.additive else "") + (", each also as its negative" if book.sign else "")
    facts = (
        f"{kinds}{made}; {grouped(len(symbols))} kernels, "
        f"indices of {width_bits:.3g} bits, entropy {entropy:.2f} bits ({100 * entropy / width_bits:.0f} %)"
    )
    y = top + 30
    texts = [TextView(LEFT, y, _text(book.name), 15, weight="bold"), TextView(LEFT, y + 18, _text(facts), 12, _GREY)]
    y += 32
    panels, order = [], []
    for stage in range(book.stages):
        numbers = np.arange(stage * book.codewords, (stage + 1) * book.codewords)
        order.append(numbers[np.argsort(-counts[numbers], kind="stable")])
        plan = grid((k_h, k_w), book.codewords, books * book.stages)
        most = int(counts[numbers].max())
        caption = f"most used first; bar: kernels that use it, {grouped(most)} at most"
        caption = f"{_STAGES[stage]}, {caption}" if book.additive else caption
        texts.append(TextView(LEFT, y + 8, _text(caption), 11, _GREY))
        name = _text(re.sub(r"\W", "_", f"{book.name}_{stage + 1}" if book.additive else book.name))
        panels.append(_panel(name, book.values, order[-1], counts, negative, plan, y + 18))
        y += 18 + plan.height + 10
    y += 6
    apart = np.array([len(book.values)])
    shown = np.concatenate([order[0], *(np.concatenate([apart, numbers]) for numbers in order[1:])])
    highest = int(max(use.counts.max() for use in uses))
    axis = "logarithmic" if bars(uses[0].counts, highest, 0).logarithmic else f"0 to {grouped(highest)}"
    texts.append(TextView(LEFT, y + 8, f"use by layer: kernels for each codeword, in the order of the tiles; height {axis}", 11, _GREY))
    y += 18
    rows = []
    for use in uses:
        drawn = bars(np.append(use.counts, 0)[shown], highest, y)
        rows.append(_row(use, drawn, y))
        texts += _row_texts(use, highest, drawn, y)
        y += ROW_HEIGHT
    return _Section(tuple(panels), tuple(rows), tuple(texts), y)


def _panel(name: str, values: Int8, order: Int64, counts: Int64, negative: Int64, plan: Grid, top: int) -> PanelView:
    most = max(1, int(counts[order].max()))
    tiles = []
    for place, number in enumerate(order.tolist()):
        row, column = divmod(place, plan.columns)
        count = int(counts[number])
        bar = math.ceil(plan.tile_width * count / most)
        rows = " / ".join(" ".join(str(value) for value in line) for line in values[number].tolist())
        note = f"codeword {number}: {grouped(count)} kernels, {grouped(int(negative[number]))} of them its negative: {rows}"
        cells = tuple(_cells(values[number], plan.cell))
        tiles.append(TileView(LEFT + column * plan.pitch_x, top + row * plan.pitch_y, cells, bar, _text(note)))
    return PanelView(name, tuple(tiles), plan.tile_width + 2, plan.tile_height + 2, plan.tile_height + 2, plan.bar_height)


def _cells(kernel: Int8, cell: int) -> Iterator[PathView]:
    """The cells of one codeword, those of one value in one path."""
    for value in np.unique(kernel).tolist():
        places = np.argwhere(kernel == value).tolist()
        yield PathView(colour(value), "".join(f"M{x * cell} {y * cell}h{cell}v{cell}h-{cell}z" for y, x in places))


def _row(use: _Use, drawn: Bars, y: int) -> RowView:
    lines = tuple(PathView(_FAINT, f"M{drawn.left} {level}H{_RIGHT}") for level in drawn.levels)
    base = PathView("#9aa3ad", f"M{drawn.left} {y + drawn.height + 0.5}H{_RIGHT}")
    return RowView(_text(f"{use.label}: {grouped(len(use.symbols))} kernels"), drawn.path, (*lines, base))


def _row_texts(use: _Use, highest: int, drawn: Bars, y: int) -> Iterator[TextView]:
    used = f"{grouped(len(use.symbols))} kernels, {grouped(int(np.count_nonzero(use.counts)))} codewords"
    held = f"entropy {entropy_bits(use.symbols):.2f} of {use.index_bits} bits"
    yield TextView(LEFT, y + 12, _text(use.label), 12, weight="bold")
    yield TextView(LEFT, y + 25, _text(used), 10, _GREY)
    yield TextView(LEFT, y + 37, _text(held), 10, _GREY)
    for value, level in zip(ticks(highest), drawn.levels, strict=True):
        yield TextView(drawn.left - 4, round(level) + 3, grouped(value), 8, _GREY, anchor="end")
