"""Hand-made integer networks of lookups, products, assemblies, slices, softmax and argmax, as real networks have them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from nets import Builder

from kqgen import fixed, lower_maps
from kqgen.intgraph import (
    IntAdd,
    IntArgMax,
    IntAssemble,
    IntGraph,
    IntLookup,
    IntMul,
    IntSlicePad,
    IntSoftmax,
    Pair,
    Part,
    QTensor,
    frozen,
)


def lookup(net: Builder, name: str, by_channel: bool = False, source: str | None = None) -> str:
    """A random table, or one a channel."""
    given = net.tensor(source)
    table = net.rng.integers(-128, 128, (given.c if by_channel else 1, 256))
    output = replace(given, name=name, scale=0.03, zero_point=int(net.rng.integers(-9, 10)))
    net.nodes.append(IntLookup(name, "act", ("act",), (given.name,), output, -128, 127, frozen(table, np.int8)))
    return name


def mul(net: Builder, name: str, a: str, b: str, lo: int = -128) -> str:
    """Product of two maps, the second of which may be one value a channel."""
    left, right = net.tensor(a), net.tensor(b)
    output = replace(left, name=name, scale=left.scale * right.scale * 60, zero_point=int(net.rng.integers(-30, 30)))
    multiplier, shift, acc_shift = fixed.quantise_multiplier([1 / 60])
    broadcast = (right.h, right.w) == (1, 1) != (left.h, left.w)
    net.nodes.append(
        IntMul(name, "", ("",), (a, b), output, lo, 127, left.zero_point, right.zero_point, int(multiplier[0]), int(shift[0]), acc_shift,
               broadcast)
    )  # fmt: skip
    return name


def subtract(net: Builder, name: str, a: str, b: str) -> str:
    """Difference of two maps."""
    left, right = net.tensor(a), net.tensor(b)
    output = replace(left, name=name, scale=0.08, zero_point=11)
    parameters = fixed.add_parameters(left.scale, left.zero_point, right.scale, right.zero_point, 0.08, 11, minus=True)
    net.nodes.append(IntAdd(name, "", ("",), (a, b), output, -128, 127, *parameters))
    return name


def join(net: Builder, name: str, sources: Sequence[str], axis: int = 2) -> str:
    """Maps one behind the other along rows (0), columns (1) or channels (2), in the first one's quantisation."""
    given = [net.tensor(source) for source in sources]
    first, parts, at = given[0], list[Part](), 0
    for number, tensor in enumerate(given):
        start = tuple(at if number_of_axis == axis else 0 for number_of_axis in range(3))
        parts.append(part(number, (start[0], start[1], start[2]), (1, 1), tensor, first))
        at += (tensor.h, tensor.w, tensor.c)[axis]
    sides = {0: {"h": at}, 1: {"w": at}, 2: {"c": at}}[axis]
    net.nodes.append(IntAssemble(name, "", ("",), tuple(sources), replace(first, name=name, **sides), -128, 127, tuple(parts)))
    return name


def enlarge(net: Builder, name: str, factor: Pair, zeros: bool = False, scale: float | None = None) -> str:
    """Every value `factor` times, or once and zeros after it."""
    given = net.tensor(None)
    output = replace(given, name=name, h=given.h * factor[0], w=given.w * factor[1], scale=scale or given.scale)
    rows, columns = (1, 1) if zeros else factor
    parts = tuple(part(0, (row, column, 0), factor, given, output) for row in range(rows) for column in range(columns))
    fill = output.zero_point if zeros else None
    net.nodes.append(IntAssemble(name, "up", ("up",), (given.name,), output, -128, 127, parts, fill))
    return name


def part(number: int, start: tuple[int, int, int], step: Pair, source: QTensor, output: QTensor) -> Part:
    """A part in the output's quantisation."""
    return Part(number, start, step, *fixed.rescale_parameters(source.scale, source.zero_point, output.scale, output.zero_point))


def crop(net: Builder, name: str, start: tuple[int, int, int], size: tuple[int, int, int], source: str | None = None) -> str:
    """Rows, columns and channels from `start` (below 0: zeros before them), `size` of them."""
    given = net.tensor(source)
    output = replace(given, name=name, h=size[0], w=size[1], c=size[2])
    before = -start[2]
    net.nodes.append(
        IntSlicePad(name, "", ("",), (given.name,), output, -128, 127, start[:2], (1, 1), before, size[2] - before - given.c,
                    given.zero_point)
    )  # fmt: skip
    return name


def softmax(net: Builder, name: str) -> str:
    """Softmax over channels."""
    given = net.tensor(None)
    output = QTensor(name, given.h, given.w, given.c, 1 / 256, -128)
    table = frozen(lower_maps.exponentials(given.scale), np.int32)
    net.nodes.append(IntSoftmax(name, "", ("",), (given.name,), output, -128, 127, table))
    return name


def arg_max(net: Builder, name: str, source: str | None = None) -> str:
    """The largest channel's number."""
    given = net.tensor(source)
    output = QTensor(name, given.h, given.w, 1, 1.0, -128)
    net.nodes.append(IntArgMax(name, "", ("",), (given.name,), output, -128, 127))
    return name


def squeeze_excite() -> IntGraph:
    """A gate of one value a channel, a gate of a whole map, activations by tables, a difference; softmax behind it."""
    net = Builder("squeeze", seed=21)
    net.input("x", 9, 7, 3)
    net.conv("stem", 8, (3, 3), padding=(1, 1, 1, 1))
    lookup(net, "swish")
    net.avg_pool("pool", (9, 7))
    net.conv("down", 4, (1, 1))
    lookup(net, "prelu", by_channel=True)
    net.conv("up", 8, (1, 1))
    lookup(net, "sigmoid")
    mul(net, "gated", "swish", "sigmoid", lo=-90)
    net.conv("side", 8, (1, 1), source="gated")
    mul(net, "square", "side", "side")
    subtract(net, "less", "square", "gated")
    net.conv("head", 10, (9, 7))
    softmax(net, "probabilities")
    return net.graph()


def unet() -> IntGraph:
    """Enlarged and joined maps, zeros between values, padding and cropping everywhere; softmax and argmax of every pixel, two outputs."""
    net = Builder("unet", seed=22)
    net.input("x", 8, 6, 4)
    net.input("extra", 8, 6, 2, scale=0.02, zero_point=9)
    net.conv("enc", 6, (3, 3), padding=(1, 1, 1, 1), source="x")
    net.max_pool("pool", (2, 2))
    net.conv("mid", 8, (3, 3), padding=(1, 1, 1, 1))
    enlarge(net, "up", (2, 2), scale=0.06)
    join(net, "skip", ["up", "enc", "extra"])
    net.conv("dec", 5, (3, 3), padding=(1, 1, 1, 1))
    crop(net, "part", (1, 0, 1), (6, 6, 3))
    crop(net, "padded", (-1, -2, -2), (8, 9, 7))
    join(net, "tall", ["padded", "padded"], axis=0)
    join(net, "wide", ["tall", "tall"], axis=1)
    enlarge(net, "sparse", (1, 2), zeros=True)
    net.conv("score", 6, (1, 1))
    softmax(net, "likely")
    arg_max(net, "best", source="score")
    return net.graph(["likely", "best"])


def differences() -> IntGraph:
    """Convolutions that subtract as they store: from their own result, and their own result from another map."""
    net = Builder("differences", seed=23)
    net.input("x", 8, 9, 3)
    net.codebook("book", 24, (3, 3), True)
    last = net.conv("stem", 6, (3, 3), padding=(1, 1, 1, 1))
    for number, codebook in enumerate((None, "book")):
        for swapped in (False, True):
            name = f"b{number}{int(swapped)}"
            net.conv(f"{name}_in", 6, (3, 3), padding=(1, 1, 1, 1), codebook=codebook, source=last)
            net.conv(f"{name}_out", 6, (3, 3), padding=(1, 1, 1, 1), codebook=codebook)
            operands = (last, f"{name}_out") if swapped else (f"{name}_out", last)
            last = subtract(net, name, *operands)
    net.conv("head", 4, (1, 1))
    return net.graph()


def odd_sizes() -> IntGraph:
    """Products, sums, tables and means of sizes that no word and no vector divides, with clamps and without."""
    net = Builder("odd_sizes", seed=24)
    net.input("x", 3, 5, 7)
    net.input("gate", 1, 1, 7, scale=0.02, zero_point=100)
    net.max_pool("same", (1, 1))
    mul(net, "gated", "same", "gate")
    mul(net, "gated_low", "gated", "gate", lo=-3)
    net.add("sum", "gated", "gated_low")
    net.add("low_sum", "gated_low", "sum", lo=-10)
    mul(net, "square", "sum", "low_sum", lo=-100)
    subtract(net, "less", "square", "gated")
    mul(net, "whole", "less", "square")
    lookup(net, "table")
    arg_max(net, "best")
    return net.graph(["table", "best"])


def all_nets() -> tuple[IntGraph, ...]:
    """Every network here."""
    return squeeze_excite(), unet(), differences(), odd_sizes()
