"""The integer reference: runs an integer graph in PyTorch, exactly. It is the meaning of the generated C (SPEC 5).

Convolutions are done on floating-point numbers that hold integers: every partial sum is an integer below 2^24 (float32) or
2^53 (float64), so the sum is exact in any order. Requantisation is `fixed`, in int64.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

from kqgen import fixed, oracle_maps, oracle_tflite
from kqgen.errors import InputError, InternalError
from kqgen.intgraph import (
    Addend,
    Int8,
    IntAdd,
    IntAvgPool,
    IntClamp,
    IntConv2d,
    IntGraph,
    IntMaxPool,
    IntNode,
    QTensor,
)
from kqgen.oracle_maps import clip

FLOAT32_EXACT = 2**24
BLOCK_VALUES = 32768


def quantise(tensor: QTensor, real: npt.NDArray[Any]) -> Int8:
    """Real values in `tensor`'s int8 codes, halves up, clamped, infinities too. Any shape.

    Raises:
        InternalError: a value is NaN.

    Source: SPEC 1.2.
    """
    steps = np.clip(np.asarray(real, np.float64) / tensor.scale, -fixed.FAR_STEPS, fixed.FAR_STEPS)
    codes = fixed.round_half_up(steps) + tensor.zero_point
    return np.clip(codes, -128, 127).astype(np.int8)


def input_codes(tensor: QTensor, real: npt.NDArray[Any]) -> Int8:
    """An input as PyTorch takes it, (N, c, h, w) or (N, n), as the C takes it: (N, h, w, c) int8; see `quantise`."""
    planes = quantise(tensor, real).reshape(-1, tensor.c, tensor.h, tensor.w)
    return np.ascontiguousarray(planes.transpose(0, 2, 3, 1))


def dequantise(tensor: QTensor, codes: Int8) -> npt.NDArray[np.float32]:
    """The float32 real values that `codes` stand for (SPEC 1.2)."""
    return np.asarray((codes.astype(np.float64) - tensor.zero_point) * tensor.scale, np.float32)


def run(graph: IntGraph, inputs: Mapping[str, Int8]) -> dict[str, Int8]:
    """Every tensor of the graph for a batch of inputs.

    Shapes: inputs and results (N, h, w, c) int8.

    Raises:
        InputError: an input is missing or has another shape or dtype.
    """
    tensors: dict[str, Int8] = {}
    for spec in graph.inputs:
        if spec.name not in inputs:
            raise InputError(f"input {spec.name} is missing", found=", ".join(inputs) or "nothing", wanted=spec.name)
        given = inputs[spec.name]
        if given.dtype != np.int8 or given.shape[1:] != (spec.h, spec.w, spec.c):
            raise InputError(
                f"input {spec.name} has the wrong form",
                found=f"{given.dtype} {given.shape}",
                wanted=f"int8 (N, {spec.h}, {spec.w}, {spec.c})",
            )
        tensors[spec.name] = given
    for node in graph.nodes:
        tensors[node.name] = _node(graph, node, [tensors[name] for name in node.inputs])
    return tensors


def _node(graph: IntGraph, node: IntNode, inputs: list[Int8]) -> Int8:
    match node:
        case IntConv2d(addend=None):
            return _conv(graph, node, inputs[0])
        case IntConv2d(addend=Addend() as addend):
            return clip(_sum(addend, _conv(graph, node, inputs[0]), inputs[1]), node)
        case IntAdd():
            return clip(_sum(node, *inputs), node)
        case IntAvgPool():
            return _avg_pool(node, inputs[0])
        case IntMaxPool():
            padded = _window_input(inputs[0], node.padding, np.full(inputs[0].shape[3], -128, np.int8))
            pooled = F.max_pool2d(padded.permute(0, 3, 1, 2).to(torch.float32), node.kernel, node.stride)
            return clip(_to_hwc(pooled), node)
        case IntClamp():
            return clip(inputs[0], node)
        case _:
            made = oracle_maps.run(node, inputs)
            made = oracle_tflite.run(node, inputs) if made is None else made
            if made is None:
                raise InternalError(f"no integer meaning for {type(node).__name__} at {node.name}")
            return made


def _sum(add: IntAdd | Addend, a: Int8, b: Int8) -> npt.NDArray[np.int32]:
    total: npt.NDArray[np.int32] = a.astype(np.int32) * add.multiplier_a + b.astype(np.int32) * add.multiplier_b + add.bias
    return total >> add.shift


def _window_input(x: Int8, padding: tuple[int, int, int, int], pad_values: Int8) -> torch.Tensor:
    """(N, h + top + bottom, w + left + right, c) int8 with each channel padded by its own value."""
    top, bottom, left, right = padding
    n, h, w, c = x.shape
    padded = np.empty((n, h + top + bottom, w + left + right, c), np.int8)
    padded[...] = pad_values
    padded[:, top : top + h, left : left + w, :] = x
    return torch.from_numpy(padded)


def _conv(graph: IntGraph, node: IntConv2d, x: Int8) -> Int8:
    padded = _window_input(x.reshape(len(x), *node.in_shape), node.padding, node.pad_values)
    requant, out = node.requant, node.output
    made, lo, hi = node.result
    sums = _depthwise_sums(graph, node, padded.numpy()) if node.depthwise else _sums(graph, node, padded)
    result = np.empty((len(x), out.h, out.w, out.c), np.int8)
    # Blocks small enough that the int64 temporaries stay in the cache.
    block = max(1, BLOCK_VALUES // out.size_bytes)
    for start in range(0, len(x), block):
        acc = sums(start, start + block).astype(np.int64) + requant.bias
        codes = fixed.requantise(acc, requant.multiplier, requant.shift, requant.acc_shift, made.zero_point, lo, hi)
        result[start : start + block] = codes.reshape(-1, out.h, out.w, out.c)
    return result


_Sums = Callable[[int, int], npt.NDArray[Any]]
"""The sums over the windows of images from one number up to another, (..., c_out)."""


def _sums(graph: IntGraph, node: IntConv2d, padded: torch.Tensor) -> _Sums:
    weights = graph.weights(node).reshape(node.output.c, -1)
    largest = int(np.abs(weights.astype(np.int64)).sum(axis=1).max()) * 128
    dtype = torch.float32 if largest < FLOAT32_EXACT else torch.float64
    matrix = torch.tensor(weights, dtype=dtype).T
    (k_h, k_w), (down, right) = node.kernel, node.dilation
    rows = padded.unfold(1, (k_h - 1) * down + 1, node.stride[0])[..., ::down]
    windows = rows.unfold(2, (k_w - 1) * right + 1, node.stride[1])[..., ::right].permute(0, 1, 2, 4, 5, 3)
    # A matrix product, not a convolution: fast convolution algorithms (Winograd) would round.
    return lambda start, end: (windows[start:end].reshape(-1, matrix.shape[0]).to(dtype) @ matrix).numpy()


def _depthwise_sums(graph: IntGraph, node: IntConv2d, padded: Int8) -> _Sums:
    weights = graph.weights(node)[..., 0].astype(np.int32)
    out, (down, right) = node.output, node.dilation

    def sums(start: int, end: int) -> npt.NDArray[np.int32]:
        part = np.repeat(padded[start:end].astype(np.int32), out.c // node.in_shape[2], axis=3)
        total = np.zeros((len(part), out.h, out.w, out.c), np.int32)
        for row, column in np.ndindex(node.kernel):
            y, x = row * down, column * right
            rows = slice(y, y + (out.h - 1) * node.stride[0] + 1, node.stride[0])
            columns = slice(x, x + (out.w - 1) * node.stride[1] + 1, node.stride[1])
            total += part[:, rows, columns] * weights[:, row, column]
        return total

    return sums


def _to_hwc(x: torch.Tensor) -> npt.NDArray[Any]:
    return np.ascontiguousarray(x.permute(0, 2, 3, 1).numpy())


def _avg_pool(node: IntAvgPool, x: Int8) -> Int8:
    padded = _window_input(x, node.padding, np.full(x.shape[3], node.pad_value, np.int8))
    total = F.avg_pool2d(padded.permute(0, 3, 1, 2).to(torch.float64), node.kernel, node.stride, divisor_override=1)
    acc = _to_hwc(total).astype(np.int64) + node.bias
    return fixed.requantise(acc, node.multiplier, node.shift, node.acc_shift, node.output.zero_point, node.lo, node.hi)

