"""The settings of TFLite operators, read out of the schema's many tables into one record."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal

Activation = Literal["NONE", "RELU", "RELU_N1_TO_1", "RELU6", "TANH", "SIGN_BIT"]
Pair = tuple[int, int]

_TABLES: Mapping[str, str] = MappingProxyType({
    "CONV_2D": "Conv2DOptions", "DEPTHWISE_CONV_2D": "DepthwiseConv2DOptions", "FULLY_CONNECTED": "FullyConnectedOptions",
    "AVERAGE_POOL_2D": "Pool2DOptions", "MAX_POOL_2D": "Pool2DOptions", "ADD": "AddOptions", "SUB": "SubOptions", "MUL": "MulOptions",
    "DIV": "DivOptions", "SOFTMAX": "SoftmaxOptions", "MEAN": "ReducerOptions", "CONCATENATION": "ConcatenationOptions",
    "STRIDED_SLICE": "StridedSliceOptions", "LEAKY_RELU": "LeakyReluOptions", "GELU": "GeluOptions",
    "RESIZE_NEAREST_NEIGHBOR": "ResizeNearestNeighborOptions",
})  # fmt: skip
_ACTIVATIONS: Mapping[int, Activation] = MappingProxyType(
    {0: "NONE", 1: "RELU", 2: "RELU_N1_TO_1", 3: "RELU6", 4: "TANH", 5: "SIGN_BIT"}
)


@dataclass(frozen=True, slots=True)
class Options:
    """What an operator's table says; settings that its kind has not keep the value here.

    Attributes:
        activation: applied to the result.
        same: padding "SAME"; else "VALID".
        stride, dilation, window: (rows, columns); the window of a pool.
        axis: of a concatenation.
        alpha: slope of a leaky ReLU.
        beta: factor of a softmax's inputs.
        approximate: a GELU by tanh.
        keep_axes: a mean leaves axes of size 1; a fully connected layer works on the last axis.
        masks: begin, end, ellipsis, new axis and shrink axis of a strided slice, bits by axis.
        corners: a resize aligns corners.
        plain_weights: a fully connected layer's weights are not shuffled.
    """

    activation: Activation = "NONE"
    same: bool = False
    stride: Pair = (1, 1)
    dilation: Pair = (1, 1)
    window: Pair = (1, 1)
    axis: int = 0
    alpha: float = 0.0
    beta: float = 1.0
    approximate: bool = False
    keep_axes: bool = False
    masks: tuple[int, int, int, int, int] = (0, 0, 0, 0, 0)
    corners: bool = False
    plain_weights: bool = True


def read_options(schema: Any, operator: Any, kind: str) -> Options:
    """The settings of one operator; defaults where its kind has none that matter.

    Args:
        schema: module of the generated classes.
        operator: the schema's Operator.
        kind: as the schema names the operator.

    Raises:
        ValueError: the table is of another kind, or a number in it is none of the schema's.
    """
    wanted = _TABLES.get(kind)
    if wanted is None or operator.BuiltinOptionsType() == 0:
        return Options()
    if operator.BuiltinOptionsType() != getattr(schema.BuiltinOptions, wanted):
        raise ValueError(f"{kind} with a table of kind {operator.BuiltinOptionsType()}")
    raw = operator.BuiltinOptions()
    table = getattr(schema, wanted)()
    table.Init(raw.Bytes, raw.Pos)
    return _options(table, kind)


def _options(table: Any, kind: str) -> Options:
    if kind in ("CONV_2D", "DEPTHWISE_CONV_2D"):
        dilation = _pair(table.DilationHFactor(), table.DilationWFactor())
        return Options(_activation(table), _same(table), _pair(table.StrideH(), table.StrideW()), dilation)
    if kind in ("AVERAGE_POOL_2D", "MAX_POOL_2D"):
        window = _pair(table.FilterHeight(), table.FilterWidth())
        return Options(_activation(table), _same(table), _pair(table.StrideH(), table.StrideW()), window=window)
    if kind == "FULLY_CONNECTED":
        return Options(_activation(table), keep_axes=bool(table.KeepNumDims()), plain_weights=table.WeightsFormat() == 0)
    if kind in ("ADD", "SUB", "MUL", "DIV"):
        return Options(_activation(table))
    if kind == "CONCATENATION":
        return Options(_activation(table), axis=int(table.Axis()))
    if kind == "STRIDED_SLICE":
        masks = table.BeginMask(), table.EndMask(), table.EllipsisMask(), table.NewAxisMask(), table.ShrinkAxisMask()
        return Options(masks=masks)
    if kind == "MEAN":
        return Options(keep_axes=bool(table.KeepDims()))
    if kind == "SOFTMAX":
        return Options(beta=float(table.Beta()))
    if kind == "LEAKY_RELU":
        return Options(alpha=float(table.Alpha()))
    if kind == "GELU":
        return Options(approximate=bool(table.Approximate()))
    return Options(corners=bool(table.AlignCorners()))


def _activation(table: Any) -> Activation:
    return _ACTIVATIONS[table.FusedActivationFunction()]


def _same(table: Any) -> bool:
    padding = table.Padding()
    if padding not in (0, 1):
        raise ValueError(f"padding {padding}")
    return bool(padding == 0)


def _pair(rows: int, columns: int) -> Pair:
    if min(rows, columns) < 1:
        raise ValueError(f"a window, stride or dilation of {rows} x {columns}")
    return (int(rows), int(columns))
