"""Lowering: the float graph, its ranges and its quantised weights become the integer graph of SPEC 5, with the proof of SPEC 1.4.

The only place where real numbers turn into integers. Every rounding here is `half_up`; every bound is checked with exact
integers, and what does not fit is refused by layer name.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import numpy.typing as npt

from kqgen import fixed, ir
from kqgen.calibrate import Ranges
from kqgen.errors import InputError, InternalError, UnsupportedError
from kqgen.intgraph import (
    IntAdd,
    IntAvgPool,
    IntClamp,
    IntConv2d,
    IntGraph,
    IntMaxPool,
    IntNode,
    IntSlicePad,
    KqWeights,
    QTensor,
    Requant,
    frozen,
)
from kqgen.post_training import Quantised

INT8_LOW, INT8_HIGH = -128, 127
INT32_LIMIT = 2**31 - 1
UINT16_LIMIT = 65535
UINT8_LIMIT = 255

Int64 = npt.NDArray[np.int64]


def lower(graph: ir.Graph, ranges: Ranges, quantised: Quantised, compression: str) -> IntGraph:
    """The integer graph of `graph`.

    Args:
        graph: simplified float graph.
        ranges: scale and zero point of every tensor.
        quantised: stored weights and codebooks.
        compression: "kq" or "int8", carried along for reports.

    Raises:
        UnsupportedError: a size or value does not fit the fields of SPEC 8 or the bounds of SPEC 1.4; names the layer.
    """
    tensors = {node.name: _tensor(node, ranges) for node in graph}
    nodes = tuple(_lower_node(node, tensors, quantised) for node in graph if not isinstance(node, ir.Input))
    used = {node.weights.codebook for node in nodes if isinstance(node, IntConv2d) and isinstance(node.weights, KqWeights)}
    return IntGraph(
        name=graph.name,
        inputs=tuple(tensors[node.name] for node in graph.inputs),
        nodes=nodes,
        outputs=graph.outputs,
        flattened=graph.flattened,
        codebooks=tuple(codebook for codebook in quantised.codebooks if codebook.name in used),
        compression=compression,
    )


def _tensor(node: ir.Node, ranges: Ranges) -> QTensor:
    c, h, w = node.shape
    if max(c, h, w) > UINT16_LIMIT or c * h * w > INT32_LIMIT:
        raise UnsupportedError(
            f"layer {_label(node)} is too large",
            found=f"output of {c} channels, {h} x {w}",
            wanted=f"no side above {UINT16_LIMIT} and fewer than 2^31 values",
            do="split the layer or shrink the input",
        )
    entry = ranges[node.name]
    return QTensor(node.name, h, w, c, entry.scale, entry.zero_point)


def _label(node: ir.Node) -> str:
    return node.path or node.name


def _clamp_codes(output: QTensor, lo: float, hi: float) -> tuple[int, int]:
    """SPEC 5.7: a clamp on real numbers as a clamp on int8 codes."""

    def code(real: float) -> int:
        steps = min(max(real / output.scale, -fixed.FAR_STEPS), fixed.FAR_STEPS)
        return int(np.clip(int(fixed.round_half_up(steps)) + output.zero_point, INT8_LOW, INT8_HIGH))

    return code(lo), code(hi)


def _lower_node(node: ir.Node, tensors: dict[str, QTensor], quantised: Quantised) -> IntNode:
    output = tensors[node.name]
    source = tensors[node.inputs[0]]
    match node:
        case ir.Conv2d():
            return _conv(node, source, output, quantised)
        case ir.Add():
            return _add(node, source, tensors[node.inputs[1]], output)
        case ir.AvgPool():
            return _avg_pool(node, source, output)
        case ir.MaxPool():
            _check_window(node, node.kernel, node.stride, node.padding)
            return IntMaxPool(
                node.name, node.path, (node.path,), node.inputs, output, INT8_LOW, INT8_HIGH, node.kernel, node.stride, node.padding
            )
        case ir.Clamp():
            lo, hi = _clamp_codes(output, node.lo, node.hi)
            return IntClamp(node.name, node.path, (node.path,), node.inputs, output, lo, hi)
        case ir.SlicePad():
            _check_slice(node)
            return IntSlicePad(
                node.name, node.path, (node.path,), node.inputs, output, INT8_LOW, INT8_HIGH,
                node.start, node.step, node.c_before, node.c_after, source.zero_point,
            )  # fmt: skip
        case _:
            raise InternalError(f"simplify left a {type(node).__name__} at {_label(node)}")


def _check_window(node: ir.Node, kernel: ir.Pair, stride: ir.Pair, padding: ir.Padding) -> None:
    if max(*kernel, *stride, *padding) > UINT8_LIMIT:
        raise UnsupportedError(
            f"layer {_label(node)}: window too large",
            found=f"kernel {kernel}, stride {stride}, padding {padding}",
            wanted=f"each at most {UINT8_LIMIT}",
            do="for a mean over a large map pool twice",
        )


def _check_slice(node: ir.SlicePad) -> None:
    if max(*node.start, *node.step) > UINT8_LIMIT:
        raise UnsupportedError(
            f"layer {_label(node)}: slice too far into the map",
            found=f"start {node.start}, step {node.step}",
            wanted=f"each at most {UINT8_LIMIT}",
            do="crop the image before the network, or give the stride to a layer before the slice",
        )


@contextmanager
def _naming(node: ir.Node, do: str) -> Iterator[None]:
    """Adds the layer, and the way out of it, to what `fixed` refuses: it knows numbers alone."""
    try:
        yield
    except InputError as error:
        raise UnsupportedError(f"layer {_label(node)}: {error.what}", found=error.found, wanted=error.wanted, do=do) from error


def _conv(node: ir.Conv2d, source: QTensor, output: QTensor, quantised: Quantised) -> IntConv2d:
    layer = quantised.layer(node.name)
    codebooks = {codebook.name: codebook for codebook in quantised.codebooks}
    c_in, k_h, k_w = (int(size) for size in node.weight.shape[1:])
    if not node.dense:
        _check_window(node, node.kernel, node.stride, node.padding)
    in_shape = (1, 1, c_in * k_h * k_w) if node.dense else (source.h, source.w, c_in)
    if in_shape[2] > UINT16_LIMIT:
        raise UnsupportedError(
            f"layer {_label(node)} has too many inputs",
            found=f"{in_shape[2]} features",
            wanted=f"at most {UINT16_LIMIT}",
            do="pool the map before the fully connected layer",
        )
    offset = node.input_offset if node.input_offset is not None else np.zeros(c_in, np.float32)
    zeros = source.zero_point + offset.astype(np.float64) / source.scale
    scale = layer.weight_scale.astype(np.float64)
    weights = layer.integers(codebooks).astype(np.int64)
    bias = _bias(node, weights, zeros, layer.bias.astype(np.float64) / (source.scale * scale))
    factors = source.scale * scale / output.scale
    with _naming(node, "look for huge weights whose output is nearly constant or clamped to a narrow range, and rescale them"):
        multiplier, shift, acc_shift = fixed.quantise_multiplier(factors)
    _prove(node, bias, weights, acc_shift)
    lo, hi = _clamp_codes(output, node.lo, node.hi)
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
        kernel=(1, 1) if node.dense else (k_h, k_w),
        stride=(1, 1) if node.dense else node.stride,
        padding=ir.NO_PADDING if node.dense else node.padding,
        pad_values=frozen(
            np.full(in_shape[2], source.zero_point)
            if node.dense
            else np.clip(fixed.round_half_up(zeros), INT8_LOW, INT8_HIGH),
            np.int8,
        ),
        weights=layer.dense_weights() if node.dense else layer.weights,
        requant=Requant(frozen(bias, np.int32), frozen(multiplier, np.int16), frozen(shift, np.uint8), acc_shift),
        weight_scale=frozen(layer.weight_scale, np.float32),
        reason=layer.reason,
    )


def _bias(node: ir.Conv2d, weights: Int64, zeros: npt.NDArray[np.float64], real_bias: npt.NDArray[np.float64]) -> Int64:
    """SPEC 5.1: bias minus the input's zero points; weights are (c_out, k_h, k_w, c_in)."""
    per_input = weights.sum(axis=(1, 2)).astype(np.float64)
    exact = real_bias - per_input @ zeros
    if not np.all(np.abs(exact) < INT32_LIMIT):
        channel = int(np.argmax(np.abs(exact)))
        raise UnsupportedError(
            f"layer {_label(node)}: the bias of output channel {channel} does not fit 32 bits",
            found=f"{exact[channel]:.4g} steps of input scale times weight scale",
            wanted=f"at most {INT32_LIMIT}",
            do="look for a dead channel (all weights near zero, large bias) and prune it",
        )
    return fixed.round_half_up(exact)


def _prove(node: ir.Conv2d, bias: Int64, weights: Int64, acc_shift: int) -> None:
    """SPEC 1.4 and 3.2: the accumulator, and its left shift, fit int32 for every int8 input."""
    positive = np.where(weights > 0, weights, 0).sum(axis=(1, 2, 3))
    negative = np.where(weights < 0, weights, 0).sum(axis=(1, 2, 3))
    high = (bias + INT8_HIGH * positive + INT8_LOW * negative) << acc_shift
    low = (bias + INT8_LOW * positive + INT8_HIGH * negative) << acc_shift
    worst = int(max(high.max(), -low.min()))
    if worst > INT32_LIMIT:
        raise UnsupportedError(
            f"layer {_label(node)}: the sum of one output can exceed 32 bits",
            found=f"up to {worst} with a left shift of {acc_shift}",
            wanted=f"at most {INT32_LIMIT}",
            do="split the layer's input channels over two layers and add",
        )


def _add(node: ir.Add, a: QTensor, b: QTensor, output: QTensor) -> IntAdd:
    with _naming(node, "check the calibration data: the sum's range is far smaller than its operands'"):
        m_a, m_b, bias, shift = fixed.add_parameters(a.scale, a.zero_point, b.scale, b.zero_point, output.scale, output.zero_point)
    lo, hi = _clamp_codes(output, node.lo, node.hi)
    return IntAdd(node.name, node.path, node.sources or (node.path,), node.inputs, output, lo, hi, m_a, m_b, bias, shift)


def _avg_pool(node: ir.AvgPool, source: QTensor, output: QTensor) -> IntAvgPool:
    _check_window(node, node.kernel, node.stride, node.padding)
    count = node.kernel[0] * node.kernel[1]
    with _naming(node, "check the calibration data: the means' range is far smaller than the values'"):
        multiplier, shift, acc_shift = fixed.quantise_multiplier(np.array([source.scale / (output.scale * count)]))
    bias = -count * source.zero_point
    if (count * 128 + abs(bias)) << acc_shift > INT32_LIMIT:
        raise UnsupportedError(
            f"layer {_label(node)}: the sum over a window can exceed 32 bits",
            found=f"{count} values with a left shift of {acc_shift}",
            do="pool in two stages",
        )
    lo, hi = _clamp_codes(output, node.lo, node.hi)
    return IntAvgPool(
        node.name, node.path, node.sources or (node.path,), node.inputs, output, lo, hi,
        node.kernel, node.stride, node.padding, source.zero_point, bias, int(multiplier[0]), int(shift[0]), acc_shift,
    )  # fmt: skip
