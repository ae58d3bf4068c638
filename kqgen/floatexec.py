"""Runs a float graph in PyTorch: the meaning of every node of both levels, against which all later stages are judged."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType

import torch
import torch.nn.functional as F

from kqgen.errors import InputError, InternalError
from kqgen.ir import (
    Add,
    ArgMax,
    AvgPool,
    ChannelAffine,
    Clamp,
    Concat,
    Conv2d,
    Flatten,
    Float32,
    Graph,
    Input,
    Interleave,
    Linear,
    MaxPool,
    Mul,
    Node,
    Pad,
    Padding,
    Pair,
    Pin,
    Shuffle,
    SlicePad,
    Softmax,
    Unary,
    Upsample,
)

_LOWEST, _HIGHEST = -128, 127


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

    A tensor with a quantisation given by the model (`pinned`, `Pin`) is limited to the numbers that this can hold; nothing is rounded.

    Raises:
        InternalError: the node's kind is unknown.
    """
    value = _evaluate(node, operands)
    return value if node.pinned is None else value.clamp(*pinned_range(*node.pinned))


def pinned_range(scale: float, zero_point: int) -> tuple[float, float]:
    """The smallest and the largest real number that real = scale * (q - zero_point), q -128..127, can hold."""
    return (_LOWEST - zero_point) * scale, (_HIGHEST - zero_point) * scale


def conv_input(node: Conv2d, x: torch.Tensor) -> torch.Tensor:
    """The map over which the kernel of `node` goes: `x` itself, or with runs its channels cut into runs.

    Args:
        x: (N, c, h, w), the node's input.

    Returns:
        `x`; with run g (N, c / g, h, w * g), where channel r at column y * g + j is channel j * (c / g) + r of `x` at column y. A dense
        node with runs reads its map as one position with h * w * c channels, channels fastest as they lie in memory.
    """
    if node.run == 1:
        return x
    if node.dense:
        x = x.permute(0, 2, 3, 1).reshape(x.shape[0], -1, 1, 1)
    n, c, h, w = x.shape
    return x.reshape(n, node.run, c // node.run, h, w).permute(0, 2, 3, 4, 1).reshape(n, c // node.run, h, w * node.run)


def conv_stride(node: Conv2d) -> Pair:
    """The steps of the kernel of `node` over `conv_input`: (rows, columns)."""
    return (node.stride[0], node.stride[1] * node.run)


def _evaluate(node: Node, operands: list[torch.Tensor]) -> torch.Tensor:
    x = operands[0]
    match node:
        case Conv2d():
            return _conv(node, x)
        case Linear():
            flat = F.linear(x.flatten(1), _tensor(node.weight), _tensor(node.bias))
            return flat.reshape(x.shape[0], -1, 1, 1)
        case ChannelAffine():
            return x * _tensor(node.scale).reshape(1, -1, 1, 1) + _tensor(node.offset).reshape(1, -1, 1, 1)
        case Clamp():
            return _clamp(x, node.lo, node.hi)
        case Add():
            y = operands[1]
            return _clamp(x - y if node.minus else x + y, node.lo, node.hi)
        case Mul():
            return _clamp(x * operands[1], node.lo, node.hi)
        case Unary():
            return _clamp(_unary(node, x), node.lo, node.hi)
        case MaxPool():
            return F.max_pool2d(_pad(x, node.padding, float("-inf")), node.kernel, node.stride)
        case AvgPool():
            return _clamp(F.avg_pool2d(_pad(x, node.padding), node.kernel, node.stride), node.lo, node.hi)
        case Softmax():
            return x.softmax(1)
        case ArgMax():
            return x.argmax(1, keepdim=True).to(x.dtype)
        case _:
            return _moved(node, operands)


def _moved(node: Node, operands: list[torch.Tensor]) -> torch.Tensor:
    """What the nodes make that compute nothing."""
    x = operands[0]
    match node:
        case Pad():
            return _pad(x, node.padding)
        case SlicePad():
            return _slice_pad(node, x)
        case Concat():
            return torch.stack(operands, 2).flatten(1, 2) if node.woven else torch.cat(operands, node.axis + 1)
        case Interleave():
            rows, columns = node.factor
            across = [torch.stack(operands[i * columns : (i + 1) * columns], 4).flatten(3) for i in range(rows)]
            return torch.stack(across, 3).flatten(2, 3)
        case Upsample():
            return _upsample(node, x)
        case Shuffle():
            return x[:, list(node.order)]
        case Flatten():
            return x.reshape(x.shape[0], -1, 1, 1)
        case Pin():
            return x.clamp(*pinned_range(node.scale, node.zero_point))
        case _:
            raise InternalError(f"no float meaning for a node of kind {type(node).__name__}")


def _conv(node: Conv2d, x: torch.Tensor) -> torch.Tensor:
    if node.input_offset is not None:
        x = x - _tensor(node.input_offset).reshape(1, -1, 1, 1)
    top, bottom, left, right = node.padding
    even = (top, left) == (bottom, right)
    x = conv_input(node, x) if even else _pad(conv_input(node, x), node.padding)
    sides = (top, left) if even else (0, 0)
    made = F.conv2d(x, _tensor(node.weight), _tensor(node.bias), conv_stride(node), sides, node.dilation, node.groups)
    return _clamp(made, node.lo, node.hi)


_FUNCTIONS: Mapping[str, Callable[..., torch.Tensor]] = MappingProxyType({
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "hardsigmoid": F.hardsigmoid,
    "hardswish": F.hardswish,
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "leaky_relu": F.leaky_relu,
    "elu": torch.ops.aten.elu,
    "softplus": F.softplus,
    "mish": F.mish,
    "abs": torch.abs,
    "square": torch.square,
    "exp": torch.exp,
})


def _unary(node: Unary, x: torch.Tensor) -> torch.Tensor:
    if node.kind == "prelu" and node.slope is not None:
        return F.prelu(x, _tensor(node.slope))
    if node.kind not in _FUNCTIONS:
        raise InternalError(f"no float meaning for the function {node.kind} of node {node.name}")
    return _FUNCTIONS[node.kind](x, *node.arguments)


def _upsample(node: Upsample, x: torch.Tensor) -> torch.Tensor:
    rows, columns = node.factor
    if not node.zeros:
        return x.repeat_interleave(rows, 2).repeat_interleave(columns, 3)
    n, c, h, w = x.shape
    out = x.new_zeros(n, c, h * rows, w * columns)
    out[:, :, ::rows, ::columns] = x
    return out


def _slice_pad(node: SlicePad, x: torch.Tensor) -> torch.Tensor:
    before, after = max(0, -node.c_before), max(0, -node.c_after)
    x = x[:, before : x.shape[1] - after]
    for axis in (0, 1):
        x = _stepped(x, axis + 2, node.start[axis], node.step[axis], node.shape[axis + 1])
    return F.pad(x, (0, 0, 0, 0, max(0, node.c_before), max(0, node.c_after)))


def _stepped(x: torch.Tensor, axis: int, start: int, step: int, count: int) -> torch.Tensor:
    """`count` values along `axis` from place `start` on, `step` apart; 0 outside."""
    size = x.shape[axis]
    end = start + (count - 1) * step + 1
    before, after = max(0, -start), max(0, end - size)
    sides = (0, 0, before, after) if axis == 2 else (before, after)
    wide = F.pad(x, sides) if before or after else x
    return wide.narrow(axis, start + before, end - start)[(slice(None),) * axis + (slice(None, None, step),)]


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
