"""Convolutions and fully connected layers as the integer nodes of SPEC 5.1, with the proof of SPEC 1.4."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from kqgen import fixed, ir
from kqgen.errors import InternalError, UnsupportedError
from kqgen.intgraph import Array, IntCodebook, IntConv2d, KqWeights, QTensor, Requant, UniformWeights, frozen
from kqgen.kq_runs import cut
from kqgen.lower_checks import INT8_HIGH, INT8_LOW, INT32_LIMIT, UINT16_LIMIT, check_window, clamp_codes, label, naming
from kqgen.post_training import Quantised

Int64 = npt.NDArray[np.int64]
Float64 = npt.NDArray[np.float64]


def conv(node: ir.Conv2d, source: QTensor, output: QTensor, quantised: Quantised) -> IntConv2d:
    """The integer layer of `node`.

    Raises:
        UnsupportedError: a size or value does not fit the fields of SPEC 8 or the bounds of SPEC 1.4; names the layer.
        InternalError: groups that are neither one nor one a channel are left, or a run's layer has a window.
    """
    if node.groups != 1 and not node.depthwise:
        raise InternalError(f"simplify left {node.groups} groups at {label(node)}")
    layer = quantised.layer(node.name)
    books = {codebook.name: codebook for codebook in quantised.codebooks}
    node = _with_runs(node, layer.weights, books)
    in_shape, kernel, stride, padding, weights = _shape(node, source, layer.weights)
    if not node.dense:
        check_window(node, kernel, stride, padding)
        check_window(node, node.dilation, node.dilation, padding)
    if max(in_shape) > UINT16_LIMIT:
        raise UnsupportedError(
            f"layer {label(node)} has too many inputs",
            found=f"{in_shape[2]} features" if node.dense else f"{in_shape[1]} runs in a row",
            wanted=f"at most {UINT16_LIMIT}",
            do="pool the map before the fully connected layer",
        )
    integers = layer.integers(books).astype(np.int64)
    zeros = zero_codes(node, source)
    scale = layer.weight_scale.astype(np.float64)
    bias = _bias(node, integers, zeros, layer.bias.astype(np.float64) / (source.scale * scale))
    factors = source.scale * scale / output.scale
    with naming(node, "look for huge weights whose output is nearly constant or clamped to a narrow range, and rescale them"):
        multiplier, shift, acc_shift = fixed.quantise_multiplier(factors)
    _prove(node, bias, integers, acc_shift)
    lo, hi = clamp_codes(output, node.lo, node.hi)
    plain = node.dense or node.run > 1
    pads = np.full(in_shape[2], source.zero_point) if plain else np.clip(fixed.round_half_up(zeros), INT8_LOW, INT8_HIGH)
    return IntConv2d(
        name=node.name,
        path=node.path,
        sources=node.sources or (node.path,),
        inputs=node.inputs,
        output=output,
        lo=lo,
        hi=hi,
        dense=node.dense,
        in_shape=in_shape,
        kernel=kernel,
        stride=stride,
        padding=padding,
        pad_values=frozen(pads, np.int8),
        weights=weights,
        requant=Requant(frozen(bias, np.int32), frozen(multiplier, np.int16), frozen(shift, np.uint8), acc_shift),
        weight_scale=frozen(layer.weight_scale, np.float32),
        reason=layer.reason,
        depthwise=node.depthwise,
        dilation=(1, 1) if plain else node.dilation,
    )


def _with_runs(node: ir.Conv2d, weights: UniformWeights | KqWeights, books: Mapping[str, IntCodebook]) -> ir.Conv2d:
    """The layer cut into the runs that its indices name, if it is not yet."""
    if isinstance(weights, KqWeights) and node.run == 1 and (node.dense or node.kernel == (1, 1)):
        return cut(node, int(books[weights.codebook].values.shape[2]))
    return node


def _shape(
    node: ir.Conv2d, source: QTensor, weights: UniformWeights | KqWeights
) -> tuple[tuple[int, int, int], ir.Pair, ir.Pair, ir.Padding, UniformWeights | KqWeights]:
    """(in_shape, kernel, stride, padding, weights) as the integer layer has them.

    Runs of a layer whose weights are not indexed are taken as the one tap they are: the bytes are in the same order.
    """
    h, w, c = (1, 1, source.size_bytes) if node.dense else (source.h, source.w, source.c)
    stride = (1, 1) if node.dense else node.stride
    if node.run > 1:
        if node.padding != ir.NO_PADDING or node.depthwise or c % node.run or node.dilation != (1, 1):
            raise InternalError(f"runs of {node.run} in a layer with a window at {label(node)}")
        if isinstance(weights, KqWeights):
            return (h, w * node.run, c // node.run), (1, node.run), (stride[0], stride[1] * node.run), ir.NO_PADDING, weights
    elif not node.dense:
        return (h, w, c), node.kernel, stride, node.padding, weights
    if not isinstance(weights, UniformWeights):
        raise InternalError(f"kernels by index in the fully connected layer {label(node)}, which has no runs")
    values = weights.values.reshape(len(weights.values), 1, 1, -1)
    return (h, w, c), (1, 1), stride, ir.NO_PADDING, UniformWeights(weights.bits, frozen(values, np.int8))


def zero_codes(node: ir.Conv2d, source: QTensor) -> Float64:
    """The (possibly fractional) code of real 0 in each input channel of the weights; with runs (g, c_in / g)."""
    channels = int(node.weight.shape[1]) * (node.groups if node.depthwise else node.run)
    offset = np.zeros(channels) if node.input_offset is None else node.input_offset.astype(np.float64)
    zeros: Float64 = source.zero_point + offset / source.scale
    if node.run == 1:
        return zeros
    return np.tile(zeros, channels // len(zeros)).reshape(node.run, -1)


def _bias(node: ir.Conv2d, weights: Int64, zeros: Float64, real_bias: Float64) -> Int64:
    """SPEC 5.1: bias minus the input's zero points; weights are (c_out, k_h, k_w, c_in)."""
    exact = real_bias - at_zero(node, weights.astype(np.float64), zeros)
    if not np.all(np.abs(exact) < INT32_LIMIT):
        channel = int(np.argmax(np.abs(exact)))
        raise UnsupportedError(
            f"layer {label(node)}: the bias of output channel {channel} does not fit 32 bits",
            found=f"{exact[channel]:.4g} steps of input scale times weight scale",
            wanted=f"at most {INT32_LIMIT}",
            do="look for a dead channel (all weights near zero, large bias) and prune it",
        )
    return fixed.round_half_up(exact)


def at_zero(node: ir.Conv2d, weights: Float64, zeros: Float64) -> Array:
    """What the weights (c_out, k_h, k_w, c_in) make of an input that is real 0 throughout."""
    if node.run > 1:
        return np.asarray(np.einsum("ojr,jr->o", weights.reshape(len(weights), *zeros.shape), zeros))
    per_input = weights.sum(axis=(1, 2))
    if node.depthwise:
        return np.asarray(per_input[:, 0] * np.repeat(zeros, len(weights) // len(zeros)))
    return np.asarray(per_input @ zeros)


def _prove(node: ir.Conv2d, bias: Int64, weights: Int64, acc_shift: int) -> None:
    """SPEC 1.4 and 3.2: the accumulator, and its left shift, fit int32 for every int8 input."""
    positive = np.where(weights > 0, weights, 0).sum(axis=(1, 2, 3))
    negative = np.where(weights < 0, weights, 0).sum(axis=(1, 2, 3))
    high = (bias + INT8_HIGH * positive + INT8_LOW * negative) << acc_shift
    low = (bias + INT8_LOW * positive + INT8_HIGH * negative) << acc_shift
    worst = int(max(high.max(), -low.min()))
    if worst > INT32_LIMIT:
        raise UnsupportedError(
            f"layer {label(node)}: the sum of one output can exceed 32 bits",
            found=f"up to {worst} with a left shift of {acc_shift}",
            wanted=f"at most {INT32_LIMIT}",
            do="split the layer's input channels over two layers and add",
        )
