"""What the integer graph's nodes are made of: int8 maps, stored weights, requantisation. `intgraph` says what they mean together."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from kqgen.options import index_bits

Array = npt.NDArray[Any]
Int8 = npt.NDArray[np.int8]
Pair = tuple[int, int]
Padding = tuple[int, int, int, int]
Rounding = Literal["half_up", "tflite"]
"""Names of requantisation rules (SPEC 3): our own, and that of networks taken over from TFLite as they are."""


def frozen(values: npt.ArrayLike, dtype: npt.DTypeLike) -> Array:
    """A C-ordered copy of `values` in `dtype` that cannot be written to."""
    out = np.array(values, dtype=dtype, order="C", copy=True)
    out.setflags(write=False)
    return out


@dataclass(frozen=True, slots=True)
class QTensor:
    """An int8 map: real = scale * (q - zero_point).

    Attributes:
        name: of the node that makes it.
        h, w, c: its size.
        scale: > 0.
        zero_point: -128..127.
    """

    name: str
    h: int
    w: int
    c: int
    scale: float
    zero_point: int

    @property
    def size_bytes(self) -> int:
        """Bytes of the map, one a value."""
        return self.h * self.w * self.c


@dataclass(frozen=True, slots=True, eq=False)
class IntCodebook:
    """A kernel codebook with 6-bit values (SPEC 4.3).

    Attributes:
        name: C identifier.
        values: (stages * codewords, k_h, k_w) int8, each -31..31; the first stage's codewords come first. The sum of absolutes over a
            kernel is at most 255: over every codeword, or, when additive, over the sum of each pair that a layer uses.
        sign: indices carry a sign bit: the kernel also serves as its negative.
        additive: a kernel is the sum of two codewords, one of each of two stages.
    """

    name: str
    values: Int8
    sign: bool
    additive: bool = False

    @property
    def stages(self) -> int:
        """How many codewords add up to a kernel: 2 when additive, else 1."""
        return 2 if self.additive else 1

    @property
    def codewords(self) -> int:
        """How many codewords are stored in each stage."""
        return int(self.values.shape[0]) // self.stages

    @property
    def index_bits(self) -> int:
        """Bits of one index that can name all codewords, sign included."""
        return index_bits(self.codewords, self.sign, self.additive)

    def stage_bits(self, width: int) -> int:
        """Bits that an index of `width` bits has for the codeword of one stage; 0 leaves the first codeword alone."""
        return (width - int(self.sign)) // self.stages

    def index_text(self, width: int) -> str:
        """The parts of an index of `width` bits as people write them: `7`, `9+sign`, `2x6+sign`."""
        stages = "2x" if self.additive else ""
        return f"{stages}{self.stage_bits(width)}{'+sign' if self.sign else ''}"

    def named(self, width: int) -> int:
        """How many codewords of each stage, from the first on, indices of `width` bits can name."""
        return min(self.codewords, 1 << self.stage_bits(width))

    @property
    def packed_bytes(self) -> int:
        """Bytes of the packed table: 6 bits a value, rounded up to a whole byte."""
        return -(-self.values.size * 6 // 8)


@dataclass(frozen=True, slots=True, eq=False)
class UniformWeights:
    """Weights stored one by one.

    Attributes:
        bits: 8, 6 or 4.
        values: (c_out, k_h, k_w, c_in) int8 within -(2**(bits-1)-1)..2**(bits-1)-1, at 8 bits of a TFLite network from -128; depthwise
            layers have one input channel here.
    """

    bits: int
    values: Int8

    @property
    def packed_bytes(self) -> int:
        """Bytes of the packed table (SPEC 4.4)."""
        return -(-self.values.size * self.bits // 8)


@dataclass(frozen=True, slots=True, eq=False)
class KqWeights:
    """Kernels stored as indices.

    Attributes:
        codebook: name of the `IntCodebook`.
        index_bits: bits of one stored entry: the codebook's own, or fewer when the layer uses its first codewords alone.
        codes: (c_out, c_in) int16, (c_out, 1) in depthwise layers, the codeword of each kernel; with an additive codebook
            first + second * 2**stage_bits, each the codeword's number within its stage, stage_bits = (index_bits - sign) / 2.
        negative: (c_out, c_in) bool, the kernel is minus that codeword, or minus the sum.
    """

    codebook: str
    index_bits: int
    codes: npt.NDArray[np.int16]
    negative: npt.NDArray[np.bool_]

    @property
    def packed_bytes(self) -> int:
        """Bytes of the packed index table (SPEC 4.2)."""
        return -(-self.codes.size * self.index_bits // 8)


def codeword_rows(weights: KqWeights, codebook: IntCodebook) -> npt.NDArray[np.int64]:
    """Which of `codebook.values` add up to each kernel: (stages, c_out, c_in)."""
    codes = weights.codes.astype(np.int64)
    if not codebook.additive:
        return codes[None]
    bits = codebook.stage_bits(weights.index_bits)
    return np.stack([codes & ((1 << bits) - 1), codebook.codewords + (codes >> bits)])


def effective_kernels(weights: KqWeights, codebook: IntCodebook) -> Int8:
    """The kernels that indices stand for, (c_out, k_h, k_w, c_in) int8 within -62..62, codewords summed, sign applied."""
    kernels = codebook.values[codeword_rows(weights, codebook)].sum(axis=0, dtype=np.int8)
    signed = np.where(weights.negative[:, :, None, None], -kernels, kernels)
    return np.ascontiguousarray(signed.transpose(0, 2, 3, 1)).astype(np.int8)


@dataclass(frozen=True, slots=True, eq=False)
class Requant:
    """From an int32 accumulator to int8, one entry an output channel (SPEC 3.2).

    Attributes:
        bias: (c,) int32, added to the accumulator first; input zero points are folded in.
        multiplier: (c,) int16, 0..32767; by rule `tflite` int32, 0..2**31-1 (SPEC 3.5).
        shift: (c,) uint8, 1..22; by rule `tflite` 1..62.
        acc_shift: 0..15, the accumulator's left shift, the same for all channels; by rule `tflite` its mark, `fixed_tflite.TWICE`, or
            `ONCE` in fully connected layers.
    """

    bias: npt.NDArray[np.int32]
    multiplier: npt.NDArray[np.int16] | npt.NDArray[np.int32]
    shift: npt.NDArray[np.uint8]
    acc_shift: int = 0
