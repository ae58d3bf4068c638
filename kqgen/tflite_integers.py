"""The integers of an int8 .tflite file as an integer graph: its own scales, zero points and weights, by rule `tflite` of SPEC 3.5.

What the C then computes equals TFLite's reference kernels to the bit; SPEC 3.6 names what does not.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

import numpy as np

from kqgen import fixed_tflite as rule
from kqgen import nodes_tflite
from kqgen import tflite_maps as maps
from kqgen.errors import UnsupportedError
from kqgen.graph_check import check
from kqgen.intgraph import IntGraph, IntNode, QTensor
from kqgen.tflite_ends import without_ends
from kqgen.tflite_names import tensor_names
from kqgen.tflite_read import Array, Model, refuse_unknown
from kqgen.tflite_site import Site, int8_map
from kqgen.tflite_window import padding_of

_CODES = 1 << 20
"""Far beyond every code, and small enough as an accumulator."""
_RESHAPES = frozenset(("RESHAPE", "SQUEEZE", "EXPAND_DIMS"))


def is_int8(model: Model) -> bool:
    """Whether the network inside computes with int8, or with the older uint8."""
    inner = without_ends(model, integers=True)
    return all(inner.tensors[number].dtype in ("int8", "uint8") for number in inner.inputs)


def integers_of(model: Model, name: str) -> IntGraph:
    """The int8 network `model` as an integer graph called `name`.

    Raises:
        UnsupportedError: operators without an integer meaning (all of them are listed), other types than int8, shapes that are no maps.
        InputError: parts that do not belong together.
    """
    inner = without_ends(model, integers=True)
    _refuse_uint8(inner)
    refuse_unknown(inner, _NODES.keys() | _RESHAPES, f"of {', '.join(sorted(_NODES.keys() | _RESHAPES))}")
    names = tensor_names(inner)
    known: dict[int, QTensor] = {number: int8_map(inner, number, names) for number in inner.inputs}
    nodes: list[IntNode] = []
    for operator in inner.operators:
        site = Site(inner, operator, names, known)
        if operator.kind in _RESHAPES:
            known = {**known, operator.outputs[0]: _reshaped(site)}
            continue
        made = _NODES[operator.kind](site)
        nodes.extend(made)
        known = {**known, **{number: node.output for number, node in zip(operator.outputs, made, strict=True)}}
    outputs = tuple(known[number].name for number in inner.outputs)
    if set(outputs) & {known[number].name for number in inner.inputs} or len({*outputs}) < len(outputs):
        raise UnsupportedError(f"{model.path.name}: an output is an input, or another output, itself", do="leave it out of the model")
    graph = IntGraph(
        name, tuple(known[number] for number in inner.inputs), tuple(nodes), outputs, frozenset(), (), rounding="tflite", compression="int8"
    )
    check(graph)
    return graph


def _refuse_uint8(model: Model) -> None:
    old = [number for number in model.inputs if model.tensors[number].dtype == "uint8"]
    if old:
        raise UnsupportedError(
            f"{model.path.name} is of the older uint8 kind, whose weights do not fit int8", found="uint8 inputs", wanted="int8",
            do="convert again to int8; without --weights int8 the network is dequantised and quantised anew, with --calibration",
        )  # fmt: skip


def _reshaped(site: Site) -> QTensor:
    known = site.known[site.operator.inputs[0]]
    if int(np.prod(site.model.tensors[site.operator.outputs[0]].shape)) != known.size_bytes:
        raise site.refuse(f"to {site.model.tensors[site.operator.outputs[0]].shape}", wanted=f"{known.size_bytes} numbers")
    return known


def _conv(site: Site) -> tuple[IntNode, ...]:
    return (_convolution(site, site.values(1), depthwise=False),)


def _depthwise(site: Site) -> tuple[IntNode, ...]:
    values = site.values(1)
    if values.ndim != 4 or values.shape[0] != 1:
        raise site.refuse(f"weights {values.shape}", wanted="(1, rows, columns, channels)")
    return (_convolution(site, values.transpose(3, 1, 2, 0), depthwise=True),)


def _convolution(site: Site, values: Array, *, depthwise: bool) -> IntNode:
    source, output, options = site.source(), site.output(), site.operator.options
    if values.ndim != 4:
        raise site.refuse(f"weights {values.shape}", wanted="(c_out, rows, columns, c_in)")
    c_out, k_h, k_w, c_in = values.shape
    if c_out != output.c or (c_out % source.c if depthwise else c_in != source.c):
        raise site.refuse(
            f"weights {values.shape} for {source.c} channels to {output.c}", wanted="channels that agree, in one group",
        )  # fmt: skip
    padding = padding_of((source.h, source.w), (k_h, k_w), options)
    weights = _still(_weights(site, values), source, output)
    return nodes_tflite.convolution(
        site.place(output, source), weights, options.stride, padding, dilation=options.dilation, depthwise=depthwise
    )


def _weights(site: Site, values: Array) -> nodes_tflite.Weights:
    """The weights at input 1, as `values` in the order of SPEC 4.4, with the bias at input 2."""
    given, c_out = site.tensor(1), len(values)
    zero = int(np.abs(given.zero_point).max(initial=0))
    if given.dtype != "int8" or len(given.scale) not in (1, c_out) or (zero and len(given.scale) != 1):
        found = f"weights of {given.dtype}, {len(given.scale)} scales, zero points to {zero}"
        raise site.refuse(found, wanted=f"int8 weights with 1 or {c_out} scales and zero point 0")
    bias = site.values(2).reshape(-1) if site.has(2) else None
    if bias is not None and (bias.dtype != np.int32 or bias.shape != (c_out,)):
        raise site.refuse(f"bias {bias.dtype} {bias.shape}", wanted=f"int32 ({c_out},)")
    return nodes_tflite.Weights(values, given.scale, int(given.zero_point[0]), bias)


def _still(weights: nodes_tflite.Weights, source: QTensor, output: QTensor) -> nodes_tflite.Weights:
    """The weights with other biases and scales where a channel's weights are all 0, which make the same code.

    The converter gives such channels, whose scale is next to nothing, biases at the end of int32.
    """
    still = ~weights.values.reshape(len(weights.values), -1).any(axis=1)
    if weights.bias is None or weights.zero_point or not still.any():
        return weights
    scale = np.array(np.broadcast_to(weights.scale, still.shape))
    multiplier, shift = rule.quantise_multiplier(source.scale * scale.astype(np.float64) / output.scale)
    bias = weights.bias.astype(np.int64)
    for channel in np.flatnonzero(still).tolist():
        code = _rounded(int(bias[channel]), int(multiplier[channel]), int(shift[channel]))
        bias[channel] = 2 * min(max(code, -_CODES), _CODES)
    scale[still] = np.float32(output.scale / (2 * source.scale))
    return nodes_tflite.Weights(weights.values, scale, 0, bias.astype(np.int32))


def _rounded(acc: int, multiplier: int, shift: int) -> int:
    """What `fixed_tflite.scale` makes of any int32, rounding twice."""
    right = max(shift - 31, 0)
    high = ((acc << max(31 - shift, 0)) * multiplier + (1 << 30)) >> 31
    return (high + ((1 << right) >> 1) - int(high < 0 < right)) >> right


def _dense(site: Site) -> tuple[IntNode, ...]:
    source, output = site.known[site.operator.inputs[0]], site.output()
    values = site.values(1)
    if values.ndim != 2 or not site.operator.options.plain_weights or values.shape[0] != output.c:
        raise site.refuse(f"weights {values.shape}, shuffled or sparse", wanted=f"a matrix ({output.c}, inputs)")
    out, features = values.shape
    flat = (output.h, output.w) == (1, 1) and features == source.size_bytes
    if not flat and (site.source().c != features or (source.h, source.w) != (output.h, output.w)):
        raise site.refuse(f"weights {values.shape}", wanted=f"{source.size_bytes} inputs, or {source.c}")
    weights = _weights(site, values.reshape(out, 1, 1, features))
    largest = 255 * 256 * features + int(np.abs(np.asarray(weights.bias if weights.bias is not None else 0, np.int64)).max())
    _, shift = rule.quantise_multiplier(source.scale * weights.scale.astype(np.float64) / output.scale)
    if largest << int(rule.left_shift(shift).max()) >= rule.ACC_LIMIT:
        raise site.refuse(f"sums up to {largest}, shifts from {int(shift.min())}", wanted=f"sums below {rule.ACC_LIMIT}")
    return (nodes_tflite.fully_connected(site.place(output, source), weights),)


_NODES: Mapping[str, Callable[[Site], tuple[IntNode, ...]]] = MappingProxyType(
    {"CONV_2D": _conv, "DEPTHWISE_CONV_2D": _depthwise, "FULLY_CONNECTED": _dense, **maps.NODES}
)
KINDS = frozenset((*_NODES, *_RESHAPES, "QUANTIZE", "DEQUANTIZE", "TRANSPOSE"))
"""Operators of int8 files that are taken over; the last three at the network's ends alone, QUANTIZE inside too."""
