"""What of ONNX compiles, as users read it, and which handler takes which operator."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import nn

from kqgen import onnx_layers as layers
from kqgen import onnx_maps as maps
from kqgen import onnx_pools as pools
from kqgen import onnx_quantise as qdq
from kqgen.onnx_site import Site, Value

Handler = Callable[[Site], Value | tuple[Value, ...]]


@dataclass(frozen=True, slots=True)
class OnnxOperators:
    """One row: operators that are read alike.

    Attributes:
        operators: as ONNX names them.
        conditions: what must hold for them to compile.
        torch: what they become in PyTorch; its own conditions hold as well.
        handlers: one an operator.
        keeps_codes: they only move or compare numbers, and may stand between QuantizeLinear and DequantizeLinear.
    """

    operators: tuple[str, ...]
    conditions: str
    torch: str
    handlers: tuple[Handler, ...]
    keeps_codes: bool = False


def _row(operators: str, conditions: str, becomes: str, *handlers: Handler, keeps_codes: bool = False) -> OnnxOperators:
    names = tuple(operators.split())
    return OnnxOperators(names, conditions, becomes, handlers if len(handlers) > 1 else handlers * len(names), keeps_codes)


_PER_CHANNEL = "two tensors, or a tensor and a constant"

ONNX_OPERATORS: tuple[OnnxOperators, ...] = (
    _row("Conv", "1-D and 2-D; weights constant; any group, dilation, pads, auto_pad", "nn.Conv1d, nn.Conv2d", layers.conv),
    _row("ConvTranspose", "1-D and 2-D; weights constant", "nn.ConvTranspose1d, nn.ConvTranspose2d", layers.conv_transpose),
    _row("Gemm", "B and C constant, transA 0", "nn.Linear", layers.gemm),
    _row("MatMul", "by a constant matrix (in, out)", "nn.Linear", layers.matmul),
    _row("BatchNormalization", "at inference", "nn.BatchNorm1d, nn.BatchNorm2d", layers.batch_norm),
    _row("Relu", "", "nn.ReLU", layers.plain(nn.ReLU)),
    _row("Clip", "bounds constant", "nn.ReLU, nn.ReLU6, torch.clamp", layers.clip),
    _row("Min Max", "of a tensor and a number", "torch.clamp", layers.limit("max"), layers.limit("min")),
    _row("LeakyRelu", "", "nn.LeakyReLU", layers.leaky_relu),
    _row("PRelu", "one slope, or one a channel", "nn.PReLU", layers.prelu),
    _row("Elu", "", "nn.ELU", layers.elu),
    _row("Sigmoid", "", "nn.Sigmoid", layers.plain(nn.Sigmoid)),
    _row("Tanh", "", "nn.Tanh", layers.plain(nn.Tanh)),
    _row("HardSigmoid", "any alpha and beta", "nn.Hardsigmoid, or a line and torch.clamp", layers.hard_sigmoid),
    _row("HardSwish", "also as x * HardSigmoid(x), x * Clip(x + 3, 0, 6) / 6", "nn.Hardswish", layers.plain(nn.Hardswish)),
    _row("Swish", "also as x * Sigmoid(x), in any opset", "nn.SiLU", layers.plain(nn.SiLU)),
    _row("Gelu", "also as a formula with Erf", "nn.GELU", layers.gelu),
    _row("Mish", "also as x * Tanh(Softplus(x))", "nn.Mish", layers.plain(nn.Mish)),
    _row("Softplus", "", "nn.Softplus", layers.plain(nn.Softplus)),
    _row("Abs Exp Neg", "", "torch.abs, torch.exp, -x", layers.apply(torch.abs), layers.apply(torch.exp), layers.apply(torch.neg)),
    _row("Pow", "the power 2", "torch.square", layers.power),
    _row("Add Sub Mul Div", _PER_CHANNEL, "+ - * /",
         layers.arithmetic(torch.add), layers.arithmetic(torch.sub), layers.arithmetic(torch.mul), layers.arithmetic(torch.div)),
    _row("Sum", "of tensors", "+", layers.total),
    _row("MaxPool", "1-D and 2-D; indices are not read", "nn.MaxPool1d, nn.MaxPool2d", pools.max_pool, keeps_codes=True),
    _row("AveragePool", "1-D and 2-D; unequal pads only with count_include_pad 1", "nn.AvgPool1d, nn.AvgPool2d", pools.average_pool),
    _row("GlobalAveragePool GlobalMaxPool", "", "x.mean((2, 3)), x.amax((2, 3))",
         pools.global_pool(torch.mean), pools.global_pool(torch.amax)),
    _row("ReduceMean ReduceMax ReduceSum", "not over the batch", "x.mean, x.amax, x.sum",
         pools.reduce(torch.mean, 18), pools.reduce(torch.amax, 18), pools.reduce(torch.sum, 13)),
    _row("Softmax", "over one axis", "nn.Softmax", maps.softmax),
    _row("ArgMax", "the first of equals", "torch.argmax", maps.arg_max),
    _row("Concat", "computed tensors", "torch.cat", maps.concat, keeps_codes=True),
    _row("Split", "sizes constant", "slices", maps.split, keeps_codes=True),
    _row("Slice", "constants, positive steps", "slices", maps.slices, keeps_codes=True),
    _row("Pad", "mode constant, not the batch", "F.pad", maps.pad),
    _row("Resize Upsample", "nearest, by whole factors", "nn.Upsample", maps.resize, keeps_codes=True),
    _row("DepthToSpace", "DCR and CRD", "nn.PixelShuffle", maps.depth_to_space, keeps_codes=True),
    _row("Reshape Flatten Squeeze Unsqueeze", "sizes constant; the batch axis stays first", "x.reshape",
         maps.reshape, maps.flatten, maps.squeeze, maps.unsqueeze, keeps_codes=True),
    _row("Transpose", "the batch axis stays first", "x.permute", maps.transpose, keeps_codes=True),
    _row("Identity", "", "nothing", maps.identity, keeps_codes=True),
    _row("Dropout", "at inference", "nothing", maps.dropout),
    _row("Cast", "to a float type", "x.float()", maps.cast),
    _row("Expand", "to the shape that the tensor has", "nothing", maps.expand),
    _row("QuantizeLinear DequantizeLinear", "in pairs, 8 bits; activations per tensor; their scales are kept",
         "torch.fake_quantize_per_tensor_affine", qdq.quantise, qdq.dequantise),
    _row("Shape Size", "", "constants", maps.shape_of, maps.size_of),
)  # fmt: skip
"""Every operator that may read computed tensors."""

ONNX_HANDLERS: Mapping[str, tuple[Handler, bool]] = MappingProxyType({
    operator: (handler, row.keeps_codes)
    for row in ONNX_OPERATORS for operator, handler in zip(row.operators, row.handlers, strict=True)
})  # fmt: skip
"""Operator to its handler, and whether it may stand between QuantizeLinear and DequantizeLinear."""

FOLDED = frozenset((
    "Abs", "Add", "And", "Cast", "Ceil", "Clip", "Concat", "Constant", "ConstantOfShape", "DequantizeLinear", "Div", "Equal", "Exp",
    "Expand", "Flatten", "Floor", "Gather", "Greater", "Identity", "Less", "Max", "Min", "Mod", "Mul", "Neg", "Not", "Or", "Pad", "Pow",
    "QuantizeLinear", "Range", "Reciprocal", "ReduceMean", "ReduceProd", "ReduceSum", "Relu", "Reshape", "Round", "Shape", "Size", "Slice",
    "Split", "Sqrt", "Squeeze", "Sub", "Tile", "Transpose", "Unsqueeze", "Where",
))  # fmt: skip
"""Operators that are computed when the file is read, where all operands are constants."""

_QDQ = "quantise with quant_format=QuantFormat.QDQ"
_NORM = "use BatchNormalization and fine-tune"
_RECURRENT = "recurrent layers do not compile; use 1-D convolutions"
_ATTENTION = "attention is not supported; use convolutions"

WAYS_OUT: Mapping[str, str] = MappingProxyType(
    dict.fromkeys(("QLinearConv", "QLinearMatMul", "ConvInteger", "MatMulInteger", "DynamicQuantizeLinear"), _QDQ)
    | dict.fromkeys(("InstanceNormalization", "LayerNormalization", "GroupNormalization", "RMSNormalization", "LRN"), _NORM)
    | dict.fromkeys(("LSTM", "GRU", "RNN"), _RECURRENT)
    | dict.fromkeys(("Attention", "Einsum"), _ATTENTION)
    | {
        "LogSoftmax": "end the network with the logits; it does not change their order",
        "If": "export without branches that depend on the data",
        "Loop": "export without loops that depend on the data",
        "Erf": "only as part of Gelu; export with opset 20",
        "NonMaxSuppression": "end the network before it and do it on the device",
        "TopK": "use ArgMax, or end the network before it",
    }
)
"""For operators that are refused: what to do."""
