"""What the forms of a convolution are chosen by: the layer's sizes and statistics, and one way to run it with its price."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from kqgen import fixed_tflite
from kqgen.errors import InternalError
from kqgen.index_check import index_misfit
from kqgen.intgraph import IntConv2d, IntGraph, KqWeights, Pair, Requant, effective_kernels
from kqgen.plan import Form

WeightsKind = Literal["uniform", "indexed", "additive"]


@dataclass(frozen=True, slots=True)
class ConvShape:
    """Everything a form needs to know of a layer.

    Attributes:
        h_in, w_in, c_in, h_out, w_out, c_out: sizes of the maps as the kernel reads and writes them.
        kernel, stride: (rows, columns).
        padding: (top, bottom, left, right).
        kind: how the weights are stored.
        bits: of one stored weight (uniform) or index.
        sign: indices carry a sign bit.
        codewords: that indices can name, of one stage; 0 for uniform weights.
        sums: the layer adds its result to what the output holds (SPEC 5.8).
        largest_weight: largest absolute value of a stored weight, or of a kernel's value.
        largest_sum: largest sum of absolute weights over one output channel.
        depthwise: output channel o reads input channel o // (c_out / c_in) alone.
        dilation: distance between taps, (rows, columns).
        rule: how results are rounded: SPEC 3.2, or 3.5, `twice` where every shift is 32 or more, `slowly` otherwise.
    """

    h_in: int
    w_in: int
    c_in: int
    h_out: int
    w_out: int
    c_out: int
    kernel: Pair
    stride: Pair
    padding: tuple[int, int, int, int]
    kind: WeightsKind
    bits: int
    sign: bool
    codewords: int
    sums: bool
    largest_weight: int
    largest_sum: int
    depthwise: bool = False
    dilation: Pair = (1, 1)
    rule: Literal["half_up", "twice", "slowly"] = "half_up"

    @property
    def n(self) -> int:
        """Taps of one kernel."""
        return self.kernel[0] * self.kernel[1]

    @property
    def taps(self) -> int:
        """Values of the window of one output channel: taps of all input channels it reads."""
        return self.n * (1 if self.depthwise else self.c_in)

    @property
    def pixels(self) -> int:
        """Output pixels."""
        return self.h_out * self.w_out

    @property
    def macs(self) -> int:
        """Multiply-accumulates, padded taps counted."""
        return self.pixels * self.c_out * self.taps


@dataclass(frozen=True, slots=True)
class Candidate:
    """One way to run a layer.

    Attributes:
        form: see `plan.Form`.
        function: the runtime's function.
        tile, strip: as the parameter struct holds them; 0 where the form has none.
        scratch_bytes: as SPEC 6.4 says.
        cycles: predicted modelled cycles of the whole layer.
    """

    form: Form
    function: str
    tile: int
    strip: int
    scratch_bytes: int
    cycles: float


def round4(size_bytes: int) -> int:
    """The next multiple of 4: every part of a scratch begins at one."""
    return -(-size_bytes // 4) * 4


@dataclass(frozen=True, slots=True)
class Geometry:
    """The windows of a layer as the kernel sees them; fields as in `ConvShape`."""

    in_shape: tuple[int, int, int]
    out_size: Pair
    kernel: Pair
    stride: Pair
    padding: tuple[int, int, int, int]
    dilation: Pair


def geometry(node: IntConv2d) -> Geometry:
    """The windows of `node`; those of a dilated layer along one line are put as windows of neighbours where the line allows that.

    A line of L positions, its output's length and its padding all multiples of the dilation d, stride 1, is the map (L / d, d) of the same
    bytes, on which the taps are neighbours in a column.
    """
    (h, w, c), out, (step_h, step_w) = node.in_shape, node.output, node.dilation
    line = 1 if h == out.h == node.kernel[0] == 1 else 0 if w == out.w == node.kernel[1] == 1 else None
    if line is not None and node.stride == (1, 1) and max(step_h, step_w) > 1:
        d, before, behind = (step_h, step_w)[line], node.padding[2 * line], node.padding[2 * line + 1]
        length, made = h * w, out.h * out.w
        if not any(node.padding[2 - 2 * line : 4 - 2 * line]) and not any(size % d for size in (before, behind, length, made)):
            padding = (before // d, behind // d, 0, 0)
            return Geometry((length // d, d, c), (made // d, d), (node.kernel[line], 1), (1, 1), padding, (1, 1))
    return Geometry(node.in_shape, (out.h, out.w), node.kernel, node.stride, node.padding, node.dilation)


def conv_shape(graph: IntGraph, node: IntConv2d) -> ConvShape:
    """The shape of one layer of `graph`.

    Raises: InternalError when indices and codebook do not belong together.
    """
    stored, seen = node.weights, geometry(node)
    if isinstance(stored, KqWeights):
        codebook = graph.codebook(stored.codebook)
        field, found = index_misfit(stored, codebook)
        if field:
            raise InternalError(f"layer {node.name}: {field} do not suit codebook {codebook.name}", found=found)
        weights = effective_kernels(stored, codebook)
        kind: WeightsKind = "additive" if codebook.additive else "indexed"
        bits, sign, codewords = stored.index_bits, codebook.sign, codebook.named(stored.index_bits)
    else:
        weights, kind, bits, sign, codewords = stored.values, "uniform", stored.bits, False, 0
    sums = np.abs(weights.astype(np.int64)).reshape(len(weights), -1).sum(axis=1)
    return ConvShape(
        *seen.in_shape, *seen.out_size, node.output.c, seen.kernel, seen.stride, seen.padding,
        kind=kind, bits=bits, sign=sign, codewords=codewords,
        sums=node.addend is not None, largest_weight=int(np.abs(weights.astype(np.int64)).max()), largest_sum=int(sums.max()),
        depthwise=node.depthwise, dilation=seen.dilation, rule=_rule(node.requant),
    )  # fmt: skip


def _rule(requant: Requant) -> Literal["half_up", "twice", "slowly"]:
    if not fixed_tflite.is_rule(requant.acc_shift):
        return "half_up"
    fast = requant.acc_shift == fixed_tflite.TWICE and int(requant.shift.min()) >= fixed_tflite.FAST_SHIFT
    return "twice" if fast else "slowly"
