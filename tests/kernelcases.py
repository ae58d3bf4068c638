"""Layers for the kernel tests, and what SPEC.md says they compute: int64 numpy, written without a look at the runtime or at kqgen.fixed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Pair = tuple[int, int]
Padding = tuple[int, int, int, int]

KERNELS: tuple[Pair, ...] = ((1, 1), (3, 3), (5, 5), (7, 7), (10, 4), (2, 3))
STRIDES: tuple[Pair, ...] = ((1, 1), (2, 2), (3, 3), (2, 1))
CHANNELS = (1, 3, 5, 17)
NO_PADDING = (0, 0, 0, 0)


@dataclass(frozen=True, slots=True, eq=False)
class Uniform:
    """Weights stored one by one: bits 8, 6 or 4; values (c_out, k_h, k_w, c_in)."""

    bits: int
    values: Array


@dataclass(frozen=True, slots=True, eq=False)
class Indexed:
    """Kernels stored as indices: codebook (codewords of all stages, k_h, k_w); codes and negative (c_out, c_in).

    `second` (c_out, c_in) names the codeword of the second stage, if there is one; `width` is that of an index, 0 the smallest that can
    name all codewords.
    """

    codebook: Array
    codes: Array
    negative: Array
    sign: bool
    second: Array | None = None
    width: int = 0

    @property
    def codewords(self) -> int:
        """Stored codewords of one stage."""
        return len(self.codebook) // (1 if self.second is None else 2)

    @property
    def index_bits(self) -> int:
        """SPEC 4.2."""
        stage = int(np.ceil(np.log2(self.codewords)))
        return self.width or max(1, stage * (1 if self.second is None else 2) + int(self.sign))

    @property
    def stage_bits(self) -> int:
        """Bits of an index that name one codeword."""
        return (self.index_bits - int(self.sign)) // (1 if self.second is None else 2)

    @property
    def nameable(self) -> int:
        """Codewords of a stage that an index can name."""
        return min(self.codewords, 1 << self.stage_bits)

    @property
    def stored_codes(self) -> Array:
        """(c_out, c_in) integers as they stand in the table, the sign left out."""
        return self.codes if self.second is None else self.codes + self.second * 2**self.stage_bits

    @property
    def values(self) -> Array:
        """(c_out, k_h, k_w, c_in) integers."""
        kernels = self.codebook[self.codes].astype(np.int64)
        if self.second is not None:
            kernels += self.codebook[self.codewords + self.second]
        return (kernels * np.where(self.negative, -1, 1)[:, :, None, None]).transpose(0, 2, 3, 1)


@dataclass(frozen=True, slots=True, eq=False)
class Sum:
    """An addition done on the way (SPEC 5.8): `held`, (h, w, c_out) int8, is what the output holds before."""

    held: Array
    multiplier_a: int
    multiplier_b: int
    bias: int
    shift: int
    lo: int
    hi: int


@dataclass(frozen=True, slots=True, eq=False)
class ConvCase:
    """One convolution; `pad_values` None means that every channel's is `pad_value`."""

    label: str
    x: Array
    weights: Uniform | Indexed
    stride: Pair
    padding: Padding
    pad_values: Array | None
    pad_value: int
    bias: Array
    multiplier: Array
    shift: Array
    acc_shift: int
    zero_point: int
    lo: int
    hi: int
    addend: Sum | None = None
    depthwise: bool = False
    dilation: Pair = (1, 1)

    @property
    def kernel(self) -> Pair:
        """(k_h, k_w)."""
        return int(self.weights.values.shape[1]), int(self.weights.values.shape[2])

    @property
    def out_shape(self) -> tuple[int, int, int]:
        """(h, w, c) of the output."""
        span = tuple((size - 1) * step + 1 for size, step in zip(self.kernel, self.dilation, strict=True))
        h, w = out_size(self.x.shape[:2], (span[0], span[1]), self.stride, self.padding)
        return h, w, int(self.weights.values.shape[0])


def out_size(size: tuple[int, ...], kernel: Pair, stride: Pair, padding: Padding) -> Pair:
    """Rows and columns of a window operator's output."""
    top, bottom, left, right = padding
    return (size[0] + top + bottom - kernel[0]) // stride[0] + 1, (size[1] + left + right - kernel[1]) // stride[1] + 1


def windows(
    x: Array, kernel: Pair, stride: Pair, padding: Padding, pad_values: Array | int, dilation: Pair = (1, 1)
) -> Iterator[tuple[int, int, Array]]:
    """(r, c, (h_out, w_out, c_in) int64): what tap (r, c) of every window reads (SPEC 5)."""
    top, bottom, left, right = padding
    h, w, channels = x.shape
    padded = np.empty((h + top + bottom, w + left + right, channels), np.int64)
    padded[...] = pad_values
    padded[top : top + h, left : left + w] = x
    span = ((kernel[0] - 1) * dilation[0] + 1, (kernel[1] - 1) * dilation[1] + 1)
    rows, columns = out_size((h, w), span, stride, padding)
    for r, c in product(range(kernel[0]), range(kernel[1])):
        y, x0 = r * dilation[0], c * dilation[1]
        yield r, c, padded[y : y + (rows - 1) * stride[0] + 1 : stride[0], x0 : x0 + (columns - 1) * stride[1] + 1 : stride[1]]


def accumulators(case: ConvCase) -> Array:
    """SPEC 5.1 before requantisation: (h, w, c_out) int64."""
    acc = np.broadcast_to(case.bias.astype(np.int64), case.out_shape).copy()
    pads = case.pad_value if case.pad_values is None else case.pad_values
    for r, c, x in windows(case.x, case.kernel, case.stride, case.padding, pads, case.dilation):
        weights = case.weights.values[:, r, c, :].astype(np.int64)
        if case.depthwise:
            acc += np.repeat(x, case.out_shape[2] // x.shape[2], axis=2) * weights[:, 0]
        else:
            acc += np.tensordot(x, weights, axes=([2], [1]))
    return acc


def requantised(acc: Array, multiplier: Array, shift: Array, acc_shift: int, zero_point: int, lo: int, hi: int) -> Array:
    """SPEC 3.2."""
    shifts = shift.astype(np.int64)
    scaled = (acc * 2**acc_shift * multiplier.astype(np.int64) + 2 ** (shifts + 15)) // 2 ** (shifts + 16)
    result: Array = np.minimum(np.maximum(scaled + zero_point, lo), hi).astype(np.int8)
    return result


def expected(case: ConvCase) -> Array:
    """The layer's output, (h, w, c_out) int8."""
    acc = accumulators(case)
    result = requantised(acc, case.multiplier, case.shift, case.acc_shift, case.zero_point, case.lo, case.hi)
    add = case.addend
    if add is None:
        return result
    total = (result.astype(np.int64) * add.multiplier_a + add.held.astype(np.int64) * add.multiplier_b + add.bias) >> add.shift
    summed: Array = np.clip(total, add.lo, add.hi).astype(np.int8)
    return summed


def summing(case: ConvCase, seed: int = 0) -> ConvCase:
    """The case with an addition at its end that uses the int8 range well."""
    rng = np.random.default_rng(seed)
    held = rng.integers(-128, 128, case.out_shape).astype(np.int8)
    lo = int(rng.choice([-128, -100, 0]))
    return replace(case, addend=Sum(held, 20000, int(rng.integers(9000, 30000)), int(rng.integers(-(2**19), 2**19)), 15, lo, 127))


def inputs(rng: np.random.Generator, shape: tuple[int, int, int], kind: str) -> Array:
    """An int8 map: `any`, `low` (all -128), `high` (all 127) or `ends` (either)."""
    values: Array = {
        "any": rng.integers(-128, 128, shape),
        "low": np.full(shape, -128),
        "high": np.full(shape, 127),
        "ends": rng.choice([-128, 127], shape),
    }[kind]
    return values.astype(np.int8)


def codebook(rng: np.random.Generator, codewords: int, kernel: Pair, at_bound: bool = False) -> Array:
    """Codewords of 6-bit values whose absolute values sum to at most 255, or to exactly that (SPEC 4.3)."""
    values = np.zeros((codewords, kernel[0] * kernel[1]), np.int64)
    limit = min(255, 31 * values.shape[1])
    for word in values:
        room = limit if at_bound else int(rng.integers(0, limit + 1))
        while room > 0:
            place = int(rng.integers(len(word)))
            step = min(room, 31 - int(word[place]), int(rng.integers(1, 32)))
            word[place] += step
            room -= step
    signed: Array = (values * rng.choice([-1, 1], values.shape)).reshape(codewords, *kernel).astype(np.int8)
    return signed


def indexed(rng: np.random.Generator, c_out: int, c_in: int, book: Array, sign: bool, width: int = 0) -> Indexed:
    """Every codeword that the width can name is used where there are kernels enough, the last one always."""
    most = min(len(book), 2 ** (width - sign)) if width else len(book)
    codes = rng.integers(0, most, (c_out, c_in))
    codes.flat[-1] = most - 1
    negative = (rng.random((c_out, c_in)) < 0.5) & sign
    return Indexed(book, codes.astype(np.int16), negative, sign, width=width)


def additive(rng: np.random.Generator, c_out: int, c_in: int, kernel: Pair, codewords: int, sign: bool, width: int = 0) -> Indexed:
    """Two stages whose every pair keeps the bound of SPEC 4.3; the last codeword of each that the width can name is used.

    Values reach 31 alike in both stages, so that sums reach 62; where the kernel is large, each stage has half of the bound.
    """
    half = codebook(rng, 2 * codewords, kernel).reshape(2 * codewords, -1).astype(np.int64)
    while int(np.abs(half).sum(axis=1).max()) > 127:
        long = np.abs(half).sum(axis=1) > 127
        half[long] = np.where(rng.random((int(long.sum()), half.shape[1])) < 0.3, 0, half[long])
    most = min(codewords, 2 ** ((width - sign) // 2)) if width else codewords
    first, second = rng.integers(0, most, (2, c_out, c_in))
    first.flat[-1] = second.flat[-1] = most - 1
    negative = (rng.random((c_out, c_in)) < 0.5) & sign
    return Indexed(half.reshape(-1, *kernel).astype(np.int8), first.astype(np.int16), negative, sign, second.astype(np.int16), width)


def uniform(rng: np.random.Generator, c_out: int, c_in: int, kernel: Pair, bits: int) -> Uniform:
    """Weights over the whole range of their width."""
    most = 2 ** (bits - 1) - 1
    return Uniform(bits, rng.integers(-most, most + 1, (c_out, *kernel, c_in)).astype(np.int8))


def conv_case(
    rng: np.random.Generator, label: str, x: Array, weights: Uniform | Indexed, stride: Pair = (1, 1), padding: Padding = NO_PADDING,
    per_channel_pads: bool = True, acc_shift: int = 0, depthwise: bool = False, dilation: Pair = (1, 1),
) -> ConvCase:  # fmt: skip
    """A layer with requantisation that spreads its accumulators over the int8 range and past it."""
    c_out, c_in = weights.values.shape[0], x.shape[2]
    pads = rng.integers(-128, 128, (c_in,)).astype(np.int8)
    bias = rng.integers(-3000, 3000, (c_out,)).astype(np.int32)
    multiplier = rng.integers(2**14, 2**15, (c_out,)).astype(np.int16)
    lo, hi = (-128, 127) if rng.random() < 0.5 else (int(rng.integers(-128, 0)), int(rng.integers(0, 128)))
    case = ConvCase(
        label, x, weights, stride, padding, pads if per_channel_pads else None, int(pads[0]), bias, multiplier,
        np.ones(c_out, np.uint8), acc_shift, int(rng.integers(-128, 128)), lo, hi,
        depthwise=depthwise, dilation=dilation,
    )  # fmt: skip
    largest = np.abs(accumulators(case)).max(axis=(0, 1)) + 1
    assert int(largest.max()) * 2**acc_shift < 2**31, "the case would not be lowered"
    shift = np.ceil(np.log2(largest * 2.0**acc_shift * case.multiplier / 2**16 / rng.uniform(60, 250, c_out)))
    values = {name: getattr(case, name) for name in case.__slots__}
    return ConvCase(**{**values, "shift": np.clip(shift, 1, 22).astype(np.uint8)})


def paddings(kernel: Pair) -> tuple[Padding, ...]:
    """None, asymmetric, symmetric, and one that leaves whole windows in the padding."""
    return NO_PADDING, (0, 1, 1, 0), (1, 1, 1, 1), (kernel[0], 2, kernel[1] + 1, 1)


def geometries() -> Iterator[tuple[np.random.Generator, str, Pair, Pair, Padding, Array, int]]:
    """(generator, label, kernel, stride, padding, input, c_out) over kernels, strides, paddings, odd and even sizes and channels."""
    for number, (kernel, stride, which) in enumerate(product(KERNELS, STRIDES, range(4))):
        rng = np.random.default_rng(number)
        padding = paddings(kernel)[which]
        c_in, c_out = CHANNELS[number % 4], CHANNELS[(number // 4 + 1) % 4]
        h, w = kernel[0] + int(rng.integers(0, 6)), kernel[1] + int(rng.integers(0, 9))
        label = f"{kernel} stride {stride} padding {padding} {h}x{w}x{c_in}->{c_out}"
        yield rng, label, kernel, stride, padding, inputs(rng, (h, w, c_in), "ends" if number % 5 == 0 else "any"), c_out


def uniform_cases() -> list[ConvCase]:
    """Layers of uniform weights: the geometries at each width, then corners."""
    cases = []
    for number, (rng, label, kernel, stride, padding, x, c_out) in enumerate(geometries()):
        bits = (8, 6, 4)[number % 3]
        weights = uniform(rng, c_out, x.shape[2], kernel, bits)
        cases.append(conv_case(rng, f"{bits} bits {label}", x, weights, stride, padding, bool(number // 3 % 2)))
    rng = np.random.default_rng(99)
    for kind, bits in product(("low", "high", "ends"), (8, 6, 4)):
        extreme = np.where(rng.random((3, 3, 3, 64)) < 0.5, -1, 1) * (2 ** (bits - 1) - 1)
        weights = Uniform(bits, extreme)
        cases.append(conv_case(rng, f"saturating {kind}", inputs(rng, (4, 5, 64), kind), weights, padding=(1, 1, 1, 1)))
    for bits in (8, 6, 4):
        dense = uniform(rng, 10, 131, (1, 1), bits)
        cases.append(conv_case(rng, f"dense {bits} bits", inputs(rng, (1, 1, 131), "any"), dense))
        # Padded below and to the right alone: the first pixel's window lies in place, the last one's does not.
        one = uniform(rng, 3, 5, (1, 1), bits)
        cases.append(conv_case(rng, "1x1 padded below", inputs(rng, (3, 3, 5), "any"), one, (2, 1), (0, 2, 0, 1)))
    small = Uniform(4, rng.choice([-1, 0, 1], (5, 1, 1, 3)))
    cases.extend(conv_case(rng, f"acc_shift {a}", inputs(rng, (3, 4, 3), "any"), small, acc_shift=a) for a in (1, 3, 7, 15))
    return cases


def indexed_cases() -> list[ConvCase]:
    """Layers of indexed kernels: the geometries, every index width, then corners."""
    cases = []
    for number, (rng, label, kernel, stride, padding, x, c_out) in enumerate(geometries()):
        book = codebook(rng, 1 + number * 7 % 40, kernel, number % 6 == 0)
        weights = indexed(rng, c_out, x.shape[2], book, bool(number % 2))
        cases.append(conv_case(rng, f"{len(book)} words {label}", x, weights, stride, padding, bool(number // 3 % 2)))
    rng = np.random.default_rng(98)
    for bits, sign in product(range(1, 13), (False, True)):
        codewords = 2 ** (bits - sign) - int(rng.integers(0, max(1, 2 ** (bits - sign) // 2)))
        weights = indexed(rng, 5, 7, codebook(rng, codewords, (3, 3)), sign)
        assert weights.index_bits == bits
        label = f"index of {bits} bits, sign {sign}"
        cases.append(conv_case(rng, label, inputs(rng, (5, 5, 7), "any"), weights, padding=(1, 1, 1, 1)))
    for kernel, kind, sign in product(((3, 3), (5, 5), (1, 1)), ("low", "high", "ends"), (False, True)):
        weights = indexed(rng, 5, 64, codebook(rng, 9, kernel, at_bound=True), sign)
        cases.append(conv_case(rng, f"saturating {kind} {kernel}", inputs(rng, (5, 6, 64), kind), weights, padding=(1, 0, 1, 1)))
    for sign in (False, True):
        weights = indexed(rng, 4, 3, codebook(rng, 1, (3, 3)), sign)
        cases.append(conv_case(rng, f"codebook of 1, sign {sign}", inputs(rng, (6, 6, 3), "any"), weights, padding=(1, 1, 1, 1)))
    for h, w in ((3, 3), (3, 4), (3, 5), (4, 4), (5, 7), (3, 9), (6, 6), (4, 11)):
        weights = indexed(rng, 17, 4, codebook(rng, 30, (3, 3)), True)
        for padding in (NO_PADDING, (1, 1, 1, 1), (0, 1, 0, 1), (2, 2, 2, 2)):
            label, x = f"3x3 on {h}x{w} padding {padding}", inputs(rng, (h, w, 4), "any")
            cases.append(conv_case(rng, label, x, weights, padding=padding, per_channel_pads=h % 2 == 0))
    small = indexed(rng, 5, 3, np.ones((2, 1, 1), np.int8), True)
    cases.extend(conv_case(rng, f"acc_shift {a}", inputs(rng, (3, 4, 3), "any"), small, acc_shift=a) for a in (1, 3, 7, 15))
    return cases


def narrow_cases() -> list[ConvCase]:
    """Every width of an index into a codebook that has more codewords than the layer uses."""
    rng, cases = np.random.default_rng(97), []
    for own, sign in product((5, 9, 12), (False, True)):
        book = codebook(rng, 2 ** (own - sign) - 3, (3, 3))
        for width in range(1, own):
            weights = indexed(rng, 9, 6, book, sign, width)
            assert (weights.index_bits, weights.nameable) == (width, 2 ** (width - sign))
            label = f"{width} of {own} bits, sign {sign}"
            cases.append(conv_case(rng, label, inputs(rng, (5, 6, 6), "any"), weights, padding=(1, 1, 1, 1)))
    return cases


def additive_cases() -> list[ConvCase]:
    """Layers whose kernels are sums of two codewords: the geometries, every index width, full and narrow, then corners."""
    cases = []
    for number, (rng, label, kernel, stride, padding, x, c_out) in enumerate(geometries()):
        weights = additive(rng, c_out, x.shape[2], kernel, 1 + number * 5 % 30, bool(number % 2))
        name = f"2 x {weights.codewords} words {label}"
        cases.append(conv_case(rng, name, x, weights, stride, padding, bool(number // 3 % 2)))
    rng = np.random.default_rng(96)
    for stage, sign in product(range(7), (False, True)):
        if 2 * stage + sign <= 12:
            weights = additive(rng, 6, 7, (3, 3), 2**stage, sign)
            label = f"index of {weights.index_bits} bits, sign {sign}, two stages"
            cases.append(conv_case(rng, label, inputs(rng, (5, 5, 7), "any"), weights, padding=(1, 1, 1, 1)))
    for stage, sign in product(range(5), (False, True)):
        width = max(1, 2 * stage + sign)
        weights = additive(rng, 6, 7, (3, 3), 27, sign, width)
        assert weights.index_bits < 10 + sign
        cases.append(conv_case(rng, f"{width} of {10 + sign} bits, two stages", inputs(rng, (5, 5, 7), "any"), weights))
    for kind, negative in product(("low", "high", "ends"), (False, True)):
        weights = extreme_pairs(64, negative)
        cases.append(conv_case(rng, f"saturating sums {kind}", inputs(rng, (5, 6, 64), kind), weights, padding=(1, 0, 1, 1)))
    return cases


def extreme_pairs(c_in: int, negative: bool) -> Indexed:
    """Four output channels of 3x3 kernels whose absolute values sum to exactly 255, by codewords of 31 and -31 that alone may pass that:
    values of 62, of -62, of 31, and of 31 and -31 in turn. Pairs that are not in use are beyond the bound.
    """
    plus = np.full(9, 31)
    four = np.array([31, 31, 31, 31, 0, 0, 0, 0, 0])
    turn = plus * np.where(np.arange(9) % 2, -1, 1)
    back = np.array([0, 0, 0, 0, 0, 0, 0, 0, -24])
    first = np.stack([four, -four, plus, turn])
    second = np.stack([four + 7 * (np.arange(9) == 4), -four - 7 * (np.arange(9) == 4), back, back])
    codes = np.repeat(np.arange(4)[:, None], c_in, axis=1).astype(np.int16)
    book = np.concatenate([first, second]).reshape(8, 3, 3).astype(np.int8)
    return Indexed(book, codes, np.full(codes.shape, negative), True, codes)


def depthwise_cases() -> list[ConvCase]:
    """Depthwise layers: the geometries and one-dimensional windows in all three ways of storing weights, then corners."""
    cases = []
    shapes = [(kernel, stride, paddings(kernel)[which]) for kernel, stride, which in product(KERNELS, STRIDES, range(4))]
    shapes += [((1, 3), (1, 1), NO_PADDING), ((1, 5), (1, 1), (0, 0, 2, 2)), ((4, 1), (2, 2), NO_PADDING), ((3, 3), (1, 1), (1, 1, 1, 1))]
    for number, (kernel, stride, padding) in enumerate(shapes):
        rng = np.random.default_rng(2000 + number)
        c_in, each = (*CHANNELS, 8, 12)[number % 6], (1, 1, 2, 3)[number // 2 % 4]
        h, w = kernel[0] + int(rng.integers(0, 6)), kernel[1] + int(rng.integers(0, 9))
        x = inputs(rng, (h, w, c_in), "ends" if number % 5 == 0 else "any")
        stored = (
            uniform(rng, each * c_in, 1, kernel, (8, 6, 4)[number // 3 % 3]),
            indexed(rng, each * c_in, 1, codebook(rng, 1 + number * 7 % 40, kernel, number % 4 == 0), bool(number % 2)),
            additive(rng, each * c_in, 1, kernel, 1 + number * 5 % 30, bool(number % 2)),
        )
        for weights in stored[number % 3 :] if number % 2 else stored[: number % 3 + 1]:
            label = f"depthwise {type(weights).__name__} {kernel} stride {stride} padding {padding} {h}x{w}x{c_in} times {each}"
            pads = bool(number // 3 % 2)
            cases.append(conv_case(rng, label, x, weights, stride, padding, pads, acc_shift=number % 3, depthwise=True))
    rng = np.random.default_rng(95)
    for kind, bits in product(("low", "high", "ends"), (8, 6, 4)):
        weights = Uniform(bits, rng.choice([-1, 1], (9, 3, 3, 1)) * (2 ** (bits - 1) - 1))
        x = inputs(rng, (7, 6, 9), kind)
        cases.append(conv_case(rng, f"depthwise saturating {kind}", x, weights, padding=(1, 1, 1, 1), depthwise=True))
    for kind, sign in product(("low", "high", "ends"), (False, True)):
        weights = indexed(rng, 5, 1, codebook(rng, 9, (3, 3), at_bound=True), sign)
        x = inputs(rng, (5, 7, 5), kind)
        cases.append(conv_case(rng, f"depthwise saturating words {kind}", x, weights, padding=(1, 1, 1, 1), depthwise=True))
    return cases


def dilated_cases() -> list[ConvCase]:
    """Layers whose taps lie apart, depthwise or not, in all three ways of storing weights."""
    cases = []
    kernels, dilations, strides = ((3, 3), (1, 4), (2, 3)), ((2, 2), (1, 3), (4, 2)), ((1, 1), (2, 1))
    for number, (kernel, dilation, stride, each) in enumerate(product(kernels, dilations, strides, (0, 1, 2))):
        rng = np.random.default_rng(4000 + number)
        c_in = (3, 4, 5)[number % 3]
        span = [(size - 1) * step + 1 for size, step in zip(kernel, dilation, strict=True)]
        h, w = span[0] + int(rng.integers(0, 5)), span[1] + int(rng.integers(0, 5))
        padding = ((0, 0, 0, 0), (1, 2, 2, 1), (span[0], 1, 0, 3))[number % 3]
        c_out, channels = (each * c_in, 1) if each else (5, c_in)
        kinds = (
            uniform(rng, c_out, channels, kernel, (8, 6, 4)[number % 3]), indexed(rng, c_out, channels, codebook(rng, 9, kernel), True),
            additive(rng, c_out, channels, kernel, 6, bool(number % 2)),
        )  # fmt: skip
        for weights in kinds[number % 2 :]:
            label = f"dilated {dilation} {kernel} {h}x{w}x{c_in}->{c_out}, depthwise {each > 0}"
            x = inputs(rng, (h, w, c_in), "any")
            cases.append(conv_case(rng, label, x, weights, stride, padding, bool(number % 2), depthwise=each > 0, dilation=dilation))
    return cases
