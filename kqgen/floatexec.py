"""Runs a float graph in PyTorch: the meaning of every node of both levels, against which all later stages are judged."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import torch
import torch.nn.functional as F

from kqgen.errors import InputError, InternalError
from kqgen.ir import (
    Add,
    AvgPool,
    ChannelAffine,
    Clamp,
    Conv2d,
    Flatten,
    Float32,
    Graph,
    Input,
    Linear,
    MaxPool,
    Node,
    Pad,
    Padding,
    SlicePad,
)


def run(graph: Graph, inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Every tensor of the graph by name, each (N, c, h, w) float32; a vector of n features is (N, n, 1, 1).

    Args:
        inputs: per input name (N, c, h, w) float32.

    Raises:
        InputError: an input is missing or has another shape.
    """
    return {node.name: value for node, value in steps(graph, inputs, keep=True)}


def steps(graph: Graph, inputs: Mapping[str, torch.Tensor], *, keep: bool = False) -> Iterator[tuple[Node, torch.Tensor]]:
    """Node and tensor (N, c, h, w), in execution order; unless `keep`, a tensor is let go after its last reader.

    Raises:
        InputError: an input is missing or has another shape.
    """
    last_reader = {name: index for index, node in enumerate(graph) for name in node.inputs}
    live: dict[str, torch.Tensor] = {}
    for index, node in enumerate(graph):
        operands = [live[name] for name in node.inputs]
        with torch.no_grad():
            value = _checked(node, inputs) if isinstance(node, Input) else evaluate(node, operands)
        if tuple(value.shape[1:]) != node.shape:
            raise InternalError(f"node {node.name} made {tuple(value.shape[1:])}, its shape says {node.shape}")
        if keep or node.name in last_reader:
            live[node.name] = value
        if not keep:
            for name in set(node.inputs):
                if last_reader[name] == index:
                    del live[name]
        yield node, value


def evaluate(node: Node, operands: list[torch.Tensor]) -> torch.Tensor:
    """The tensor (N, c, h, w) that one node makes of its operands, by the formula in its docstring.

    Raises:
        InternalError: the node's kind is unknown.
    """
    x = operands[0]
    match node:
        case Conv2d():
            if node.input_offset is not None:
                x = x - _tensor(node.input_offset).reshape(1, -1, 1, 1)
            top, bottom, left, right = node.padding
            even = (top, left) == (bottom, right)
            x = x if even else _pad(x, node.padding)
            sides = (top, left) if even else (0, 0)
            return _clamp(F.conv2d(x, _tensor(node.weight), _tensor(node.bias), node.stride, sides), node.lo, node.hi)
        case Linear():
            flat = F.linear(x.flatten(1), _tensor(node.weight), _tensor(node.bias))
            return flat.reshape(x.shape[0], -1, 1, 1)
        case ChannelAffine():
            return x * _tensor(node.scale).reshape(1, -1, 1, 1) + _tensor(node.offset).reshape(1, -1, 1, 1)
        case Clamp():
            return _clamp(x, node.lo, node.hi)
        case Add():
            return _clamp(operands[0] + operands[1], node.lo, node.hi)
        case Pad():
            return _pad(x, node.padding)
        case MaxPool():
            return F.max_pool2d(_pad(x, node.padding, float("-inf")), node.kernel, node.stride)
        case AvgPool():
            return _clamp(F.avg_pool2d(_pad(x, node.padding), node.kernel, node.stride), node.lo, node.hi)
        case SlicePad():
            _, h, w = node.shape
            (top, left), (rows, columns) = node.start, node.step
            taken = x[:, :, top::rows, left::columns][:, :, :h, :w]
            return F.pad(taken, (0, 0, 0, 0, node.c_before, node.c_after))
        case Flatten():
            return x.reshape(x.shape[0], -1, 1, 1)
        case _:
            raise InternalError(f"no float meaning for a node of kind {type(node).__name__}")


def _checked(node: Input, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
    value = inputs.get(node.name)
    wanted = f"(N, {', '.join(map(str, node.shape))}) float32"
    if value is None:
        raise InputError(f"input {node.name} is missing", found=", ".join(inputs) or "none", wanted=wanted)
    if value.dtype != torch.float32 or tuple(value.shape[1:]) != node.shape:
        raise InputError(f"input {node.name} has another form", found=f"{tuple(value.shape)} {value.dtype}", wanted=wanted)
    return value


def _tensor(values: Float32) -> torch.Tensor:
    return torch.from_numpy(values.copy())


def _clamp(x: torch.Tensor, lo: float, hi: float) -> torch.Tensor:
    return x if (lo, hi) == (-math.inf, math.inf) else x.clamp(lo, hi)


def _pad(x: torch.Tensor, padding: Padding, value: float = 0.0) -> torch.Tensor:
    top, bottom, left, right = padding
    return F.pad(x, (left, right, top, bottom), value=value) if any(padding) else x
