"""Integer networks drawn at random, of which much is dead: every kind of layer that channels are removed through."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from kqgen.intgraph import (
    Int8,
    IntAdd,
    IntArgMax,
    IntAssemble,
    IntAvgPool,
    IntClamp,
    IntCodebook,
    IntConv2d,
    IntGraph,
    IntLookup,
    IntMaxPool,
    IntMul,
    IntNode,
    IntSlicePad,
    IntSoftmax,
    KqWeights,
    Part,
    QTensor,
    Requant,
    UniformWeights,
    effective_kernels,
    frozen,
)

NONE = (0, 0, 0, 0)
BOOK = IntCodebook("book", frozen(np.random.default_rng(1).integers(-9, 10, (8, 3, 3)), np.int8), sign=True)


class Drawn:
    """A network drawn from a seed, layer by layer; every method returns the new tensor's name."""

    def __init__(self, seed: int, h: int = 9, w: int = 8, c: int = 5) -> None:
        self.rng = np.random.default_rng(seed)
        self.tensors = {"x": QTensor("x", h, w, c, 0.1, -3)}
        self.nodes: list[IntNode] = []

    def _put(self, node: IntNode) -> str:
        self.nodes.append(node)
        self.tensors[node.name] = node.output
        return node.name

    def _out(self, h: int, w: int, c: int) -> QTensor:
        return QTensor(f"n{len(self.nodes)}", h, w, c, 0.1, int(self.rng.integers(-20, 20)))

    def _head(self, out: QTensor, *sources: str) -> tuple[str, str, tuple[str, ...], tuple[str, ...], QTensor]:
        return out.name, out.name, (out.name,), sources, out

    def _requant(self, weights: Int8, dead: float) -> Requant:
        """Factors that use int8 well; a share of `dead` of the biases are far below or above every sum."""
        c_out = len(weights)
        spread = np.sqrt((weights.astype(np.float64) ** 2).reshape(c_out, -1).sum(axis=1)) * 74 + 200
        shift = np.clip(np.floor(-np.log2(50 / spread)).astype(np.int64) - 1, 1, 22)
        bias = self.rng.integers(-200, 200, c_out)
        far = np.abs(weights.astype(np.int64)).reshape(c_out, -1).sum(axis=1) * 300 + 50000
        bias = np.where(self.rng.random(c_out) < dead, far * self.rng.choice([-1, 1], c_out), bias)
        multiplier = np.clip(np.round(50 / spread * 2.0 ** (shift + 16)), 1, 32767)
        return Requant(frozen(bias, np.int32), frozen(multiplier, np.int16), frozen(shift, np.uint8))

    def conv(
        self, source: str, c_out: int, kernel: tuple[int, int] = (3, 3), *, stride: int = 1, same: bool = True, dead: float = 0.4,
        depthwise: bool = False, dense: bool = False, indexed: bool = False, run: int = 1, mixed: bool = False,
    ) -> str:  # fmt: skip
        """A convolution: some rows of its weights are zero, some columns, some biases far out."""
        rng, given = self.rng, self.tensors[source]
        in_shape, steps = (given.h, given.w, given.c), (stride, stride)
        if dense:
            in_shape, kernel, same = (1, 1, given.size_bytes), (1, 1), False
        elif run > 1:
            in_shape, kernel, steps, same = (given.h, given.w * run, given.c // run), (1, run), (stride, stride * run), False
        side = (kernel[0] // 2, kernel[1] // 2) if same else (0, 0)
        padding = (side[0], side[0], side[1], side[1])
        h = (in_shape[0] + 2 * side[0] - kernel[0]) // steps[0] + 1
        w = (in_shape[1] + 2 * side[1] - kernel[1]) // steps[1] + 1
        reads = 1 if depthwise else in_shape[2]
        stored: UniformWeights | KqWeights
        if indexed:
            codes = rng.integers(0, 8, (c_out, reads))
            stored = KqWeights("book", 4, frozen(codes, np.int16), frozen(rng.random(codes.shape) < 0.5, np.bool_))
            weights = effective_kernels(stored, BOOK)
        else:
            drawn = rng.integers(-40, 41, (c_out, *kernel, reads))
            drawn[rng.random(c_out) < dead / 2] = 0
            drawn[..., rng.random(reads) < dead] = 0
            weights = frozen(drawn, np.int8)
            stored = UniformWeights(8, weights)
        zero = given.zero_point
        pads = rng.integers(-128, 128, in_shape[2]) if mixed else np.full(in_shape[2], zero)
        out = self._out(h, w, c_out)
        lo = out.zero_point if rng.random() < 0.5 else -128
        return self._put(IntConv2d(
            *self._head(out, source), lo, 127, dense=dense, in_shape=in_shape, kernel=kernel, stride=steps, padding=padding,
            pad_values=frozen(pads, np.int8), weights=stored, requant=self._requant(weights, dead / 2),
            weight_scale=frozen(np.ones(c_out), np.float32), reason="drawn", depthwise=depthwise,
        ))  # fmt: skip

    def add(self, a: str, b: str) -> str:
        """a + b."""
        given = self.tensors[a]
        return self._put(IntAdd(*self._head(self._out(given.h, given.w, given.c), a, b), -128, 127, 9000, 5000, 77, 13))

    def mul(self, a: str, b: str, broadcast: bool = False) -> str:
        """a * b."""
        given = self.tensors[a]
        head = self._head(self._out(given.h, given.w, given.c), a, b)
        return self._put(IntMul(*head, -128, 127, 3, -5, 20000, 5, 0, broadcast))

    def lookup(self, source: str, rows: int) -> str:
        """A table of one row or one a channel, with few different values."""
        given = self.tensors[source]
        table = frozen(self.rng.integers(-3, 4, (rows, 256)) * self.rng.integers(0, 2, (rows, 1)) * 20, np.int8)
        return self._put(IntLookup(*self._head(self._out(given.h, given.w, given.c), source), -128, 127, table))

    def pool(self, source: str, kind: str) -> str:
        """3x3 windows of stride 2 with padding."""
        given = self.tensors[source]
        out = self._out((given.h + 2 - 3) // 2 + 1, (given.w + 2 - 3) // 2 + 1, given.c)
        if kind == "max":
            return self._put(IntMaxPool(*self._head(out, source), -128, 127, (3, 3), (2, 2), (1, 1, 1, 1)))
        pads = given.zero_point
        return self._put(IntAvgPool(*self._head(out, source), -128, 127, (3, 3), (2, 2), (1, 1, 1, 1), pads, -9 * pads, 29127, 1, 1))

    def clamp(self, source: str) -> str:
        """To a narrow range."""
        given = self.tensors[source]
        return self._put(IntClamp(*self._head(self._out(given.h, given.w, given.c), source), -20, 30))

    def slice_pad(self, source: str, before: int, after: int, step: int = 2) -> str:
        """Every `step`-th row and column, channels added or dropped."""
        given = self.tensors[source]
        out = self._out(-(-given.h // step), -(-given.w // step), given.c + before + after)
        return self._put(IntSlicePad(*self._head(out, source), -128, 127, (0, 0), (step, step), before, after, given.zero_point))

    def concat(self, *sources: str) -> str:
        """Along the channels, the second operand requantised."""
        given = [self.tensors[name] for name in sources]
        out = self._out(given[0].h, given[0].w, sum(each.c for each in given))
        starts = np.cumsum([0, *(each.c for each in given)])
        scaled = [(1, 0, 0) if number != 1 else (20000, 300, 15) for number in range(len(given))]
        parts = tuple(Part(number, (0, 0, int(starts[number])), (1, 1), *scaled[number]) for number in range(len(given)))
        return self._put(IntAssemble(*self._head(out, *sources), -128, 127, parts))

    def enlarge(self, source: str, zeros: bool) -> str:
        """Twice the size: each value four times, or once and zeros."""
        given = self.tensors[source]
        out = self._out(2 * given.h, 2 * given.w, given.c)
        corners = [(0, 0)] if zeros else [(0, 0), (0, 1), (1, 0), (1, 1)]
        parts = tuple(Part(0, (y, x, 0), (2, 2), 1, 0, 0) for y, x in corners)
        return self._put(IntAssemble(*self._head(out, source), -128, 127, parts, given.zero_point if zeros else None))

    def softmax(self, source: str) -> str:
        """Over the channels."""
        given = self.tensors[source]
        out = QTensor(f"n{len(self.nodes)}", given.h, given.w, given.c, 1 / 256, -128)
        exponentials = np.floor(np.exp(-0.1 * np.arange(200)) * (2**31 - 1))
        return self._put(IntSoftmax(*self._head(out, source), -128, 127, frozen(exponentials, np.int32)))

    def argmax(self, source: str) -> str:
        """Of the channels."""
        given = self.tensors[source]
        out = QTensor(f"n{len(self.nodes)}", given.h, given.w, 1, 1.0, -128)
        return self._put(IntArgMax(*self._head(out, source), -128, 127))

    def twin(self, of: str, source: str) -> str:
        """The layer `of` once more, reading another tensor."""
        node = next(each for each in self.nodes if each.name == of)
        name = f"n{len(self.nodes)}"
        return self._put(replace(node, name=name, inputs=(source,), output=replace(node.output, name=name)))

    def graph(self, *outputs: str) -> IntGraph:
        """The network."""
        books = (BOOK,) if any(isinstance(node, IntConv2d) and isinstance(node.weights, KqWeights) for node in self.nodes) else ()
        return IntGraph("drawn", (self.tensors["x"],), tuple(self.nodes), outputs, frozenset(), books)


def chain(seed: int) -> IntGraph:
    """A MobileNet in small: depthwise and pointwise layers, one of runs, indexed kernels, a pool and a dense layer."""
    net = Drawn(seed)
    x = net.conv("x", 12, stride=2)
    x = net.conv(x, 12, depthwise=True, mixed=seed % 2 == 0)
    x = net.conv(x, 16, (1, 1), dead=0.6)
    x = net.conv(x, 32, depthwise=True, stride=2)
    x = net.conv(x, 12, run=4)
    x = net.conv(x, 8, indexed=True)
    x = net.conv(x, 6, indexed=True, dead=0.8)
    x = net.pool(x, "mean" if seed % 3 else "max")
    return net.graph(net.conv(x, 4, dense=True, dead=0.1))


def branches(seed: int) -> IntGraph:
    """Residual blocks, a shortcut of padded channels, a joined map, a gate, tables."""
    net = Drawn(seed)
    stem = net.conv("x", 8, dead=0.3)
    inner = net.conv(net.conv(stem, 6, (1, 1), dead=0.5), 8)
    total = net.clamp(net.add(stem, inner))
    half = net.conv(total, 16, stride=2)
    total = net.add(net.slice_pad(total, 4, 4), half)
    gate = net.lookup(net.conv(total, 16, (5, 4), same=False, dead=0.2), 1)
    gated = net.mul(total, gate, broadcast=True)
    squared = net.mul(gated, gated)
    joined = net.concat(net.lookup(squared, 16), net.conv(total, 5, (1, 1)), gated)
    large = net.enlarge(net.conv(joined, 6, dead=0.5), zeros=seed % 2 == 0)
    cut = net.slice_pad(large, -2, -1)
    unread = net.add(large, large)
    net.softmax(unread)
    last = net.conv(cut, 3, dead=0.1)
    return net.graph(last, net.softmax(last), net.argmax(net.conv(gated, 5, dense=True)))
