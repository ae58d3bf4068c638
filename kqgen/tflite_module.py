"""A .tflite network as a PyTorch module, float or dequantised, for the one path that every model takes from there.

An int8 network keeps the quantisation that the file gives its tensors: each is followed by a fake quantisation, which the front end
reads as given. Its maker calibrated on real data that nobody here has, and whoever feeds the network keeps the codes they know.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

import torch
import torch.nn.functional as F
from torch import fx

from kqgen import tflite_layers as layers
from kqgen.tflite_build import Net, Step
from kqgen.tflite_ends import without_ends
from kqgen.tflite_names import tensor_names
from kqgen.tflite_read import Model, Operator, Tensor, read_tflite, refuse_unknown

Handler = Callable[[Step], None]

HANDLERS: Mapping[str, Handler] = MappingProxyType({
    "CONV_2D": layers.conv, "DEPTHWISE_CONV_2D": layers.depthwise, "FULLY_CONNECTED": layers.dense,
    "ADD": layers.sum_of, "SUB": layers.difference, "MUL": layers.product, "DIV": layers.quotient,
    "AVERAGE_POOL_2D": layers.average_pool, "MAX_POOL_2D": layers.max_pool, "MEAN": layers.mean, "SOFTMAX": layers.softmax,
    "RESHAPE": layers.reshape, "SQUEEZE": layers.reshape, "EXPAND_DIMS": layers.reshape, "TRANSPOSE": layers.transpose,
    "PAD": layers.pad, "PADV2": layers.pad, "CONCATENATION": layers.concat, "SPLIT": layers.split, "SPLIT_V": layers.split,
    "SLICE": layers.strided_slice, "STRIDED_SLICE": layers.strided_slice, "RESIZE_NEAREST_NEIGHBOR": layers.resize,
    "RELU": layers.function_of(F.relu), "RELU6": layers.function_of(F.relu6), "RELU_N1_TO_1": layers.function_of(F.hardtanh, -1.0, 1.0),
    "RELU_0_TO_1": layers.function_of(F.hardtanh, 0.0, 1.0), "LEAKY_RELU": layers.leaky_relu, "PRELU": layers.prelu,
    "LOGISTIC": layers.function_of(torch.sigmoid), "TANH": layers.function_of(torch.tanh), "HARD_SWISH": layers.function_of(F.hardswish),
    "ELU": layers.function_of(F.elu), "GELU": layers.gelu, "ABS": layers.function_of(torch.abs), "EXP": layers.function_of(torch.exp),
    "SQUARE": layers.function_of(torch.square), "NEG": layers.function_of(torch.neg), "MAXIMUM": layers.limit, "MINIMUM": layers.limit,
    "QUANTIZE": layers.same, "DEQUANTIZE": layers.same,
})  # fmt: skip
"""Operators that become part of a module."""

_KEEPS_QUANTISATION = frozenset((
    "RESHAPE", "SQUEEZE", "EXPAND_DIMS", "TRANSPOSE", "PAD", "PADV2", "MAX_POOL_2D", "CONCATENATION", "SPLIT", "SPLIT_V", "SLICE",
    "STRIDED_SLICE", "RESIZE_NEAREST_NEIGHBOR", "DEQUANTIZE",
))  # fmt: skip
"""Operators that move codes and change none."""


def load_tflite(path: str | Path) -> tuple[fx.GraphModule, tuple[torch.Tensor, ...]]:
    """The network in a .tflite file as a module, and example inputs for it: kqgen.compile(*kqgen.load_tflite("net.tflite"), ...).

    The module is an ordinary float32 one (torch.fx.GraphModule) in eval mode, channels first, and may be trained. Its submodules bear the
    names of the file's layers. Quantised weights become float32, quantisations of other tensors torch.fake_quantize_per_tensor_affine.

    Raises:
        InputError: see `tflite_read.read_tflite`; shapes that do not belong together.
        UnsupportedError: operators, or settings of one, that do not compile.
    """
    return module_of(read_tflite(Path(path)))


def module_of(model: Model) -> tuple[fx.GraphModule, tuple[torch.Tensor, ...]]:
    """The network `model` as a module; see `load_tflite`."""
    refuse_unknown(model, HANDLERS, f"of {', '.join(sorted(HANDLERS))}")
    model = _folded(without_ends(model, integers=False))
    net = Net(model, tensor_names(model))
    for number in model.inputs:
        _pin(net, number)
    for operator in model.operators:
        step = Step(net, operator)
        HANDLERS[operator.kind](step)
        if operator.kind not in _KEEPS_QUANTISATION:
            for number in operator.outputs:
                _pin(net, number)
    return net.finish()


def _folded(model: Model) -> Model:
    """The model without DEQUANTIZE of constants, which are then as the file has them."""
    tensors = list(model.tensors)
    kept: list[Operator] = []
    for operator in model.operators:
        source = tensors[operator.inputs[0]]
        if operator.kind == "DEQUANTIZE" and source.values is not None:
            tensors[operator.outputs[0]] = replace(source, name=tensors[operator.outputs[0]].name)
        else:
            kept.append(operator)
    return replace(model, tensors=tuple(tensors), operators=tuple(kept))


def _pin(net: Net, number: int) -> None:
    """Gives a computed tensor the file's quantisation where that is one of bytes."""
    tensor = net.model.tensors[number]
    if tensor.quantised and tensor.dtype in ("int8", "uint8"):
        scale, zero_point = int8_quantisation(tensor)
        value = net.values[number]
        node = net.graph.call_function(torch.fake_quantize_per_tensor_affine, (value.node, scale, zero_point, -128, 127))
        net.values[number] = replace(value, node=node)


def int8_quantisation(tensor: Tensor) -> tuple[float, int]:
    """Scale and zero point of a tensor's codes, those of uint8 moved by 128 to int8."""
    return float(tensor.scale[0]), int(tensor.zero_point[0]) - (128 if tensor.dtype == "uint8" else 0)
