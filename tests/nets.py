"""Hand-made integer networks: every node type, form and width, with fixed seeds, planned by the real planner."""

from __future__ import annotations

import re
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from kqgen import oracle, planner
from kqgen.emit import Golden, GoldenVector, SourceTree
from kqgen.fuse import fuse
from kqgen.intgraph import (
    Int8,
    IntAdd,
    IntAvgPool,
    IntClamp,
    IntCodebook,
    IntConv2d,
    IntGraph,
    IntMaxPool,
    IntNode,
    IntSlicePad,
    KqWeights,
    Padding,
    Pair,
    QTensor,
    Requant,
    UniformWeights,
    effective_kernels,
    frozen,
)
from kqgen.plan import Form, Place, PlacedTensor, Plan, Planning, Step

NO_PADDING: Padding = (0, 0, 0, 0)


@dataclass
class Builder:
    """Adds nodes one after the other; the last one made is the default input of the next."""

    name: str
    seed: int = 0

    def __post_init__(self) -> None:
        self.rng = np.random.default_rng(self.seed)
        self.inputs: list[QTensor] = []
        self.nodes: list[IntNode] = []
        self.codebooks: list[IntCodebook] = []

    def input(self, name: str, h: int, w: int, c: int, scale: float = 0.0078125, zero_point: int = -3) -> str:
        """An input tensor."""
        self.inputs.append(QTensor(name, h, w, c, scale, zero_point))
        return name

    def tensor(self, name: str | None) -> QTensor:
        """The tensor of that name, else the newest."""
        made = [*self.inputs, *(node.output for node in self.nodes)]
        return made[-1] if name is None else next(tensor for tensor in made if tensor.name == name)

    def codebook(self, name: str, codewords: int, kernel: Pair, sign: bool, additive: bool = False) -> str:
        """A codebook of random codewords within the bounds of SPEC 4.3; `codewords` of each stage, if it is additive."""
        count, limit = (2 * codewords, 127) if additive else (codewords, 255)
        values = self.rng.integers(-31, 32, (count, *kernel))
        sums = np.abs(values).reshape(count, -1).sum(axis=1)
        values = np.where((sums > limit)[:, None, None], values * limit // np.maximum(sums, 1)[:, None, None], values)
        values = np.where((np.abs(values).reshape(count, -1).sum(axis=1) > limit)[:, None, None], values // 2, values)
        self.codebooks.append(IntCodebook(name, frozen(values, np.int8), sign, additive))
        return name

    def requant(self, weights: Int8, acc_shift: int = 0) -> Requant:
        """Biases and factors that use the int8 range well and now and then saturate."""
        c_out = len(weights)
        taps = weights.reshape(c_out, -1).astype(np.float64)
        spread = np.sqrt((taps**2).sum(axis=1)) * 74 + 1
        factor = 50 / spread * self.rng.uniform(0.6, 1.6, c_out) / 2**acc_shift
        shift = np.clip(np.floor(-np.log2(factor)).astype(np.int64) - 1, 1, 22)
        multiplier = np.clip(np.round(factor * 2.0 ** (shift + 16)), 1, 32767)
        return Requant(
            bias=frozen(self.rng.integers(-3, 4, c_out) * spread.astype(np.int64), np.int32),
            multiplier=frozen(multiplier, np.int16),
            shift=frozen(shift, np.uint8),
            acc_shift=acc_shift,
        )

    def conv(
        self, name: str, c_out: int, kernel: Pair, *, stride: Pair = (1, 1), padding: Padding = NO_PADDING, bits: int = 8,
        codebook: str | None = None, dense: bool = False, mixed_pads: bool = False, lo: int = -128, source: str | None = None,
        acc_shift: int = 0, sources: tuple[str, ...] | None = None, index_bits: int | None = None, depthwise: bool = False,
        dilation: Pair = (1, 1),
    ) -> str:  # fmt: skip
        """A convolution with uniform weights of `bits` bits, or with kernels from `codebook`, by indices of `index_bits` bits if given."""
        given = self.tensor(source)
        in_shape = (1, 1, given.size_bytes) if dense else (given.h, given.w, given.c)
        height = (in_shape[0] + padding[0] + padding[1] - (kernel[0] - 1) * dilation[0] - 1) // stride[0] + 1
        width = (in_shape[1] + padding[2] + padding[3] - (kernel[1] - 1) * dilation[1] - 1) // stride[1] + 1
        channels = 1 if depthwise else in_shape[2]
        stored: UniformWeights | KqWeights
        if codebook is None:
            limit = 2 ** (bits - 1) - 1
            stored = UniformWeights(bits, frozen(self.rng.integers(-limit, limit + 1, (c_out, *kernel, channels)), np.int8))
            weights: Int8 = stored.values
        else:
            book = next(entry for entry in self.codebooks if entry.name == codebook)
            shape = (c_out, channels)
            negative = self.rng.random(shape) < 0.5 if book.sign else np.zeros(shape, bool)
            entry_bits = book.index_bits if index_bits is None else index_bits
            codes = self.rng.integers(0, book.named(entry_bits), shape)
            if book.additive:
                codes += self.rng.integers(0, book.named(entry_bits), shape) << book.stage_bits(entry_bits)
            stored = KqWeights(codebook, entry_bits, frozen(codes, np.int16), frozen(negative, np.bool_))
            weights = effective_kernels(stored, book)
        pads = self.rng.integers(-128, 128, in_shape[2]) if mixed_pads else np.full(in_shape[2], given.zero_point)
        self.nodes.append(
            IntConv2d(
                name=name,
                path=name.replace("_", "."),
                sources=(name.replace("_", "."),) if sources is None else sources,
                inputs=(given.name,),
                output=QTensor(name, height, width, c_out, 0.05, int(self.rng.integers(-20, 20))),
                lo=lo,
                hi=127,
                dense=dense,
                in_shape=in_shape,
                kernel=kernel,
                stride=stride,
                padding=padding,
                pad_values=frozen(pads, np.int8),
                weights=stored,
                requant=self.requant(weights, acc_shift),
                weight_scale=frozen(np.full(c_out, 0.01), np.float32),
                reason="hand-made",
                depthwise=depthwise,
                dilation=dilation,
            )
        )
        return name

    def add(self, name: str, a: str, b: str, lo: int = -128) -> str:
        """Sum of two maps."""
        left = self.tensor(a)
        shift, m_a, m_b, zero_point = 14, 9000, 12345, -7
        bias = -m_a * left.zero_point - m_b * self.tensor(b).zero_point + (zero_point << shift) + (1 << (shift - 1))
        output = QTensor(name, left.h, left.w, left.c, 0.07, zero_point)
        self.nodes.append(IntAdd(name, "", ("", "relu"), (a, b), output, lo, 127, m_a, m_b, bias, shift))
        return name

    def avg_pool(self, name: str, kernel: Pair, stride: Pair | None = None, padding: Padding = NO_PADDING) -> str:
        """Mean over windows."""
        given, step = self.tensor(None), stride or kernel
        output = replace(self._pooled(name, given, kernel, step, padding), zero_point=given.zero_point)
        window = kernel[0] * kernel[1]
        multiplier = int(np.clip(round(2.0**19 / window), 1, 32767))
        self.nodes.append(
            IntAvgPool(name, name, (name,), (given.name,), output, -128, 127, kernel, step, padding, given.zero_point,
                       -window * given.zero_point, multiplier, 3, 0)
        )  # fmt: skip
        return name

    def max_pool(self, name: str, kernel: Pair, stride: Pair | None = None, padding: Padding = NO_PADDING) -> str:
        """Maximum over windows."""
        given, step = self.tensor(None), stride or kernel
        output = self._pooled(name, given, kernel, step, padding)
        self.nodes.append(IntMaxPool(name, name, (name,), (given.name,), output, -128, 127, kernel, step, padding))
        return name

    def clamp(self, name: str, lo: int, hi: int) -> str:
        """Clamp in place of an activation."""
        given = self.tensor(None)
        self.nodes.append(IntClamp(name, "", ("",), (given.name,), replace(given, name=name), lo, hi))
        return name

    def slice_pad(self, name: str, step: Pair, c_before: int, c_after: int, source: str | None = None) -> str:
        """Every step-th row and column, channels added."""
        given = self.tensor(source)
        height, width = -(-given.h // step[0]), -(-given.w // step[1])
        output = replace(given, name=name, h=height, w=width, c=given.c + c_before + c_after)
        self.nodes.append(
            IntSlicePad(name, "", ("",), (given.name,), output, -128, 127, (0, 0), step, c_before, c_after, given.zero_point)
        )
        return name

    @staticmethod
    def _pooled(name: str, given: QTensor, kernel: Pair, stride: Pair, padding: Padding) -> QTensor:
        height = (given.h + padding[0] + padding[1] - kernel[0]) // stride[0] + 1
        width = (given.w + padding[2] + padding[3] - kernel[1]) // stride[1] + 1
        return replace(given, name=name, h=height, w=width)

    def graph(self, outputs: Sequence[str] | None = None) -> IntGraph:
        """The network; its output is the last node unless said otherwise."""
        return IntGraph(
            name=self.name,
            inputs=tuple(self.inputs),
            nodes=tuple(self.nodes),
            outputs=tuple(outputs or [self.nodes[-1].name]),
            flattened=frozenset(),
            codebooks=tuple(self.codebooks),
        )


def make_plan(graph: IntGraph, forms: Mapping[str, Form] | None = None) -> Plan:
    """The plan of a graph as it stands, in forms given or chosen."""
    return planner.make_plan(graph, None, Planning(forms=tuple((forms or {}).items())))


def random_inputs(graph: IntGraph, count: int, seed: int = 1) -> tuple[Int8, ...]:
    """Uniform random int8 images, one array (count, h, w, c) an input."""
    rng = np.random.default_rng(seed)
    return tuple(rng.integers(-128, 128, (count, tensor.h, tensor.w, tensor.c)).astype(np.int8) for tensor in graph.inputs)


def run_reference(graph: IntGraph, inputs: Sequence[Int8]) -> dict[str, Int8]:
    """Every tensor by the integer reference."""
    return oracle.run(graph, {tensor.name: array for tensor, array in zip(graph.inputs, inputs, strict=True)})


def make_golden(graph: IntGraph, inputs: Sequence[Int8], count: int = 1) -> Golden:
    """Golden vectors of the first `count` images, from the integer reference and zlib's CRC."""
    tensors = run_reference(graph, inputs)
    return Golden(
        tuple(
            GoldenVector(
                inputs=tuple(array[image].tobytes() for array in inputs),
                outputs=tuple(np.ascontiguousarray(tensors[name][image]).tobytes() for name in graph.outputs),
                step_crcs=tuple(zlib.crc32(np.ascontiguousarray(tensors[node.name][image]).tobytes()) for node in graph.nodes),
            )
            for image in range(count)
        )
    )


def residual() -> IntGraph:
    """A small residual network with every node type, two codebooks, 8-, 6- and 4-bit layers and odd sizes."""
    net = Builder("residual")
    net.input("x", 11, 9, 3)
    net.codebook("book_3x3", 24, (3, 3), True)
    net.codebook("book_1x5", 5, (1, 5), False)
    net.conv("stem", 8, (3, 3), padding=(1, 1, 1, 1), mixed_pads=True, lo=-20, sources=("stem.0", "stem.1", "stem.2"))
    net.conv("b1_conv1", 8, (3, 3), padding=(1, 1, 1, 1), codebook="book_3x3")
    net.conv("b1_conv2", 8, (3, 3), padding=(1, 1, 1, 1), codebook="book_3x3", mixed_pads=True)
    net.add("b1_add", "stem", "b1_conv2", lo=-7)
    net.conv("b2_conv", 17, (3, 3), stride=(2, 2), padding=(1, 1, 1, 1), codebook="book_3x3")
    net.slice_pad("b2_skip", (2, 2), 4, 5, source="b1_add")
    net.add("b2_add", "b2_conv", "b2_skip")
    net.max_pool("pool", (2, 2), (1, 1), (1, 0, 0, 1))
    net.conv("wide", 6, (1, 5), padding=(0, 0, 2, 2), codebook="book_1x5")
    net.clamp("relu", -5, 90)
    net.conv("six", 7, (3, 2), padding=(0, 1, 1, 0), bits=6, acc_shift=2)
    net.avg_pool("mean", (3, 3), (2, 2), (1, 0, 1, 0))
    net.conv("four", 9, (1, 1), bits=4)
    net.conv("fc", 10, (1, 1), dense=True)
    return net.graph()


def two_ports() -> IntGraph:
    """Two inputs of different size, two outputs, one of which a later layer reads."""
    net = Builder("two_ports", seed=2)
    net.input("Left", 6, 6, 4, zero_point=0)
    net.input("right", 6, 6, 2, scale=0.1, zero_point=5)
    net.conv("a", 5, (3, 3), padding=(1, 1, 1, 1), source="Left")
    net.conv("run", 5, (1, 1), source="right")
    net.add("sum", "a", "run")
    net.conv("tail", 3, (3, 3), stride=(2, 2))
    return net.graph(["sum", "tail"])


def single() -> IntGraph:
    """One 1x1 layer: no arena needed, the input goes straight to the output."""
    net = Builder("single", seed=3)
    net.input("x", 2, 3, 4)
    net.conv("only", 2, (1, 1))
    return net.graph()


def summed() -> IntGraph:
    """Two additive codebooks, with and without signs, and a plain one, each by indices of its own width and by narrower ones."""
    net = Builder("summed", seed=4)
    net.input("x", 9, 8, 3)
    net.codebook("pairs", 13, (3, 3), True, additive=True)
    net.codebook("flat_pairs", 4, (1, 5), False, additive=True)
    net.codebook("plain", 21, (3, 3), True)
    net.conv("stem", 7, (3, 3), padding=(1, 1, 1, 1), codebook="plain", mixed_pads=True)
    net.conv("narrow", 20, (3, 3), padding=(1, 1, 1, 1), codebook="plain", index_bits=3, lo=-20)
    net.conv("sum", 9, (3, 3), stride=(2, 2), padding=(1, 1, 1, 1), codebook="pairs", mixed_pads=True)
    net.conv("narrow_sum", 11, (3, 3), padding=(1, 1, 1, 1), codebook="pairs", index_bits=5)
    net.conv("one_pair", 5, (3, 3), padding=(0, 1, 1, 1), codebook="pairs", index_bits=1)
    net.conv("row", 6, (1, 5), padding=(0, 0, 2, 2), codebook="flat_pairs")
    net.conv("narrow_row", 6, (1, 5), padding=(0, 0, 2, 2), codebook="flat_pairs", index_bits=2)
    net.conv("one_word", 4, (3, 3), codebook="plain", index_bits=1)
    net.conv("fc", 10, (1, 1), dense=True)
    return net.graph()


def fused() -> IntGraph:
    """Two residual blocks whose additions are done by convolutions: of indices over the block's input, of 8 bits over a shortcut."""
    net = Builder("fused", seed=8)
    net.input("x", 8, 7, 3)
    net.codebook("book", 24, (3, 3), True)
    net.conv("stem", 6, (3, 3), padding=(1, 1, 1, 1))
    net.conv("b1_conv1", 6, (3, 3), padding=(1, 1, 1, 1), codebook="book", lo=-20)
    net.conv("b1_conv2", 6, (3, 3), padding=(1, 1, 1, 1), codebook="book", lo=-110)
    net.add("b1_add", "stem", "b1_conv2", lo=-30)
    net.conv("b2_conv1", 9, (3, 3), stride=(2, 2), padding=(1, 1, 1, 1), codebook="book")
    net.conv("b2_conv2", 9, (3, 3), padding=(1, 1, 1, 1))
    net.conv("b2_skip", 9, (1, 1), stride=(2, 2), bits=4, source="b1_add")
    net.add("b2_add", "b2_conv2", "b2_skip")
    net.avg_pool("mean", (4, 4))
    net.conv("fc", 10, (1, 1), dense=True)
    return fuse(net.graph())


def separable() -> IntGraph:
    """Depthwise layers between pointwise ones: over their input, with stride, two results a channel, all ways of storing weights."""
    net = Builder("separable", seed=9)
    net.input("x", 13, 10, 3)
    net.codebook("book", 20, (3, 3), True)
    net.codebook("pairs", 6, (3, 3), True, additive=True)
    net.conv("stem", 12, (3, 3), stride=(2, 2), padding=(1, 1, 1, 1))
    net.conv("d1", 12, (3, 3), padding=(1, 1, 1, 1), depthwise=True, lo=-20)
    net.conv("p1", 8, (1, 1))
    net.conv("d2", 8, (3, 3), padding=(1, 1, 1, 1), depthwise=True, codebook="book", mixed_pads=True)
    net.conv("p2", 10, (1, 1), bits=6)
    net.conv("d3", 20, (3, 3), stride=(2, 2), padding=(0, 1, 0, 1), depthwise=True, codebook="pairs")
    net.conv("p3", 7, (1, 1), bits=4)
    net.conv("d4", 7, (3, 2), padding=(1, 1, 0, 1), depthwise=True, bits=4)
    net.avg_pool("mean", (3, 2))
    net.conv("fc", 10, (1, 1), dense=True)
    return net.graph()


def spread_plan(graph: IntGraph, forms: Mapping[str, Form]) -> Plan:
    """A plan by hand that no planner's taste can change: tensors one after the other, then scratch; every tile is 2.

    Only for tests of text: its scratch has not the size that the runtime wants.
    """
    tensors: list[PlacedTensor] = []
    offset = 0
    for number, tensor in enumerate(graph.inputs):
        tensors.append(PlacedTensor(tensor.name, tensor.size_bytes, Place("input", index=number, offset=offset), -1, len(graph.nodes)))
        offset += -(-tensor.size_bytes // 4) * 4
    for number, node in enumerate(graph.nodes):
        size = node.output.size_bytes
        if node.name in graph.outputs:
            place = Place("output", index=graph.outputs.index(node.name))
        elif isinstance(node, IntConv2d) and node.addend is not None:
            place = next(tensor.place for tensor in tensors if tensor.name == node.inputs[1])
        else:
            place = Place("arena", offset=offset)
            offset += -(-size // 4) * 4
        tensors.append(PlacedTensor(node.name, size, place, number, len(graph.nodes)))
    steps = tuple(_step(graph, node, forms.get(node.name)) for node in graph.nodes)
    return Plan(graph, steps, tuple(tensors), tuple(offset if step.scratch_bytes else 0 for step in steps), offset + 64)


def _step(graph: IntGraph, node: IntNode, asked: Form | None) -> Step:
    if not isinstance(node, IntConv2d):
        return Step(node.name, "plain", "", 0, 0, 0, 0.0, "no weights")
    if isinstance(node.weights, KqWeights):
        additive = graph.codebook(node.weights.codebook).additive
        form = asked or "decode"
        return Step(node.name, form, f"kq_conv2d_{form}{'_additive' if additive else ''}_s8", 2, 0, 64, 1.0, "by hand")
    if node.weights.bits == 8:
        return Step(node.name, "direct", "kq_conv2d_s8", 0, 0, 0 if node.kernel == (1, 1) else 64, 1.0, "by hand")
    return Step(node.name, "unpack", "kq_conv2d_s8", 2, 0, 64, 1.0, "by hand")


def write(tree: SourceTree, folder: Path) -> Path:
    """Writes a generated tree into `folder`."""
    for path, text in tree.files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text, encoding="utf-8", newline="\n")
    return folder


def flip_first_byte(text: str, table: str, mask: int) -> str:
    """The text of generated tables with the bits of `mask` changed in the first byte of `table`.

    A flipped index must still name a codeword: the runtime trusts its tables.
    """
    match = re.search(rf"{table}\[\] = {{\n\s*0x([0-9a-f]{{2}})", text)
    assert match is not None
    return f"{text[: match.start(1)]}{int(match.group(1), 16) ^ mask:02x}{text[match.end(1) :]}"
