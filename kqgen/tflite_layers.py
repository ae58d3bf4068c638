"""TFLite's operators as PyTorch's: what each becomes in the module (`tflite_build`)."""

from __future__ import annotations

import math
import operator as operators
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from kqgen.tflite_build import Shape, Step, Value, channels_first, torch_axis
from kqgen.tflite_window import padding_of, slice_bounds

_NOT_NEGATIVE = ("RELU", "RELU6")


def conv(step: Step) -> None:
    """CONV_2D: kernels (c_out, k_h, k_w, c_in / groups); SAME pads the odd one out behind."""
    weight = step.constant(1)
    if weight.ndim != 4:
        raise step.refuse(f"weights {weight.shape}", wanted="(c_out, rows, columns, c_in)")
    _convolve(step, weight.transpose(0, 3, 1, 2), step.value(0).shape[-1] // weight.shape[3])


def depthwise(step: Step) -> None:
    """DEPTHWISE_CONV_2D: kernels (1, k_h, k_w, c_in * multiplier)."""
    weight = step.constant(1)
    if weight.ndim != 4 or weight.shape[0] != 1:
        raise step.refuse(f"weights {weight.shape}", wanted="(1, rows, columns, channels)")
    _convolve(step, weight.transpose(3, 0, 1, 2), step.value(0).shape[-1])


def _convolve(step: Step, weight: np.ndarray[tuple[int, ...], np.dtype[np.float32]], groups: int) -> None:
    value, options = step.value(0), step.options
    c_out, c_in, k_h, k_w = weight.shape
    if len(value.shape) != 4 or groups < 1 or value.shape[3] != c_in * groups or c_out % groups:
        raise step.refuse(f"weights for {c_in} of {groups} times as many channels", wanted="channels that weights and input agree on")
    top, bottom, left, right = padding_of(value.shape[1:3], (k_h, k_w), options)
    even = (top, left) == (bottom, right)
    layer = nn.Conv2d(
        value.shape[3], c_out, (k_h, k_w), options.stride, (top, left) if even else 0, options.dilation, groups, bias=step.has(2)
    )
    _fill(layer, weight, step)
    if not even:
        value = step.call(F.pad, value, (left, right, top, bottom))
    step.done(step.module(layer, value))


def _fill(layer: nn.Conv2d | nn.Conv1d | nn.Linear, weight: np.ndarray[tuple[int, ...], np.dtype[np.float32]], step: Step) -> None:
    layer.weight = nn.Parameter(torch.from_numpy(np.array(weight)))
    if layer.bias is not None:
        bias = step.constant(2).reshape(-1)
        if bias.shape != layer.bias.shape:
            raise step.refuse(f"bias {bias.shape}", wanted=f"({layer.bias.shape[0]},)")
        layer.bias = nn.Parameter(torch.from_numpy(np.array(bias)))


def dense(step: Step) -> None:
    """FULLY_CONNECTED on all numbers of a map, or on its last axis alone."""
    value, weight = step.value(0), step.constant(1)
    if not step.options.plain_weights or weight.ndim != 2:
        raise step.refuse(f"weights {weight.shape}, shuffled or sparse", wanted="a matrix (out, in)")
    out, features = weight.shape
    layer: nn.Conv2d | nn.Conv1d | nn.Linear
    if len(value.shape) > 2 and value.shape[-1] == features and math.prod(value.shape[1:-1]) != 1 and step.options.keep_axes:
        if len(value.shape) > 4:
            raise step.refuse("", wanted="at most two axes beside the channels")
        layer = nn.Conv2d(features, out, 1, bias=step.has(2)) if len(value.shape) == 4 else nn.Conv1d(features, out, 1, bias=step.has(2))
        _fill(layer, weight.reshape(out, features, *(1 for _ in value.shape[1:-1])), step)
        step.done(step.module(layer, value))
        return
    value = _flattened(step, value)
    if value.shape[1] != features:
        raise step.refuse(f"weights {weight.shape}", wanted=f"{value.shape[1]} inputs")
    if value.scrambled is not None:
        h, w, c = value.scrambled
        weight = weight.reshape(out, h, w, c).transpose(0, 3, 1, 2).reshape(out, features)
    layer = nn.Linear(features, out, bias=step.has(2))
    _fill(layer, weight, step)
    made = step.module(layer, Value(value.node, value.shape, value.example))
    shape = channels_first(step.output_shape())
    step.done(made if len(shape) == 2 else step.call(torch.reshape, made, (-1, *shape[1:])))


def _flattened(step: Step, value: Value) -> Value:
    """A map as a vector; its numbers then come in PyTorch's order."""
    if len(value.shape) == 2:
        return value
    size = math.prod(value.shape[1:])
    plain = value.shape[-1] in (1, size)
    made = step.call(torch.flatten, value, 1)
    sides = (1,) * (4 - len(value.shape)) + value.shape[1:]
    return Value(made.node, (value.shape[0], size), made.example, None if plain else sides)


def reshape(step: Step) -> None:
    """RESHAPE, SQUEEZE, EXPAND_DIMS: no number moves where channels stay; else a permutation that the front end judges."""
    value, shape = step.value(0), step.output_shape()
    if shape[:1] != value.shape[:1] or math.prod(shape) != math.prod(value.shape):
        raise step.refuse(f"to {shape}", wanted="a first axis, the batch, that stays, and as many numbers")
    step.done(_reshaped(step, value, shape))


def _reshaped(step: Step, value: Value, shape: Shape) -> Value:
    if shape == value.shape:
        return value
    if len(shape) == 2 and len(value.shape) > 2:
        return _flattened(step, value)
    target = (-1, *channels_first(shape)[1:])
    size = math.prod(shape[1:])
    if value.scrambled is not None:
        if shape[1:] != value.scrambled[4 - len(shape) :]:
            raise step.refuse(f"to {shape} of a flattened map {value.scrambled}", wanted="that map again, or a fully connected layer")
        made = step.call(torch.reshape, value, target)
        return Value(made.node, shape, made.example)
    plain_before = len(value.shape) == 2 or value.shape[-1] in (1, size)
    plain_after = shape[-1] in (1, size)
    if shape[-1] == value.shape[-1] or (plain_before and plain_after):
        return step.call(torch.reshape, value, target)
    last = value if len(value.shape) == 2 else step.call(torch.movedim, value, 1, -1)
    made = step.call(torch.reshape, last, (-1, *shape[1:]))
    return step.call(torch.movedim, made, -1, 1)


def sum_of(step: Step) -> None:
    """ADD."""
    _binary(step, torch.add)


def difference(step: Step) -> None:
    """SUB."""
    _binary(step, torch.sub)


def product(step: Step) -> None:
    """MUL."""
    _binary(step, torch.mul)


def quotient(step: Step) -> None:
    """DIV."""
    _binary(step, torch.div)


def _binary(step: Step, function: Callable[..., torch.Tensor]) -> None:
    if step.is_constant(0) and step.is_constant(1):
        raise step.refuse("two constants", wanted="a computed operand", do="let the converter fold constants")
    rank = len(step.output_shape())
    operands = [_operand(step, place, rank) for place in (0, 1)]
    values = [each for each in operands if isinstance(each, Value) and each.node.op != "get_attr"]
    orders = {value.scrambled for value in values}
    if len(orders) > 1 or (orders != {None} and len(values) < len([each for each in operands if isinstance(each, Value)])):
        raise step.refuse("a flattened map and a vector", wanted="operands in one order", do="do it before the map is flattened")
    left, right = operands
    if isinstance(left, Value):
        made = step.call(function, left, right)
    else:
        assert isinstance(right, Value)
        made = step.call(exchanged(function), right, left)
    step.done(Value(made.node, made.shape, made.example, values[0].scrambled))


def exchanged(function: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """The function with its operands exchanged, for a number on the left."""
    others: dict[Callable[..., torch.Tensor], Callable[..., torch.Tensor]] = {torch.sub: torch.rsub, torch.div: _divided}
    return others.get(function, function)


def _divided(value: torch.Tensor, number: float) -> torch.Tensor:
    return torch.reciprocal(value) * number


def _operand(step: Step, place: int, rank: int) -> Value | float:
    """A computed operand, one number, or a constant with one number a channel as PyTorch wants it."""
    if not step.is_constant(place):
        return step.value(place)
    values = step.constant(place)
    if values.size == 1:
        return float(values.reshape(()))
    sides = (1,) * (rank - values.ndim) + values.shape
    aligned = values.reshape(sides)
    return step.buffer(np.moveaxis(aligned, -1, 1) if rank > 2 else aligned)


def average_pool(step: Step) -> None:
    """AVERAGE_POOL_2D: padded positions are left out of the mean."""
    value, options = step.value(0), step.options
    top, bottom, left, right = padding_of(value.shape[1:3], options.window, options)
    if (top, left) != (bottom, right):
        raise step.refuse(
            f"padding {(top, bottom, left, right)}", wanted="as much padding on either side",
            do="pool without padding (VALID); an int8 file compiles as it is with --weights int8",
        )  # fmt: skip
    step.done(step.call(F.avg_pool2d, value, options.window, options.stride, (top, left), count_include_pad=False))


def max_pool(step: Step) -> None:
    """MAX_POOL_2D: padded positions never win."""
    value, options = step.value(0), step.options
    top, bottom, left, right = padding_of(value.shape[1:3], options.window, options)
    padding = (0, 0)
    if (top, left) == (bottom, right):
        padding = (top, left)
    else:
        maker = next((each for each in step.net.model.operators if step.operator.inputs[0] in each.outputs), None)
        positive = maker is not None and (maker.options.activation in _NOT_NEGATIVE or maker.kind in _NOT_NEGATIVE)
        value = step.call(F.pad, value, (left, right, top, bottom), value=0.0 if positive else -math.inf)
    step.done(step.call(F.max_pool2d, value, options.window, options.stride, padding))


def mean(step: Step) -> None:
    """MEAN over rows and columns."""
    value = step.value(0)
    rank = len(value.shape)
    axes = tuple(sorted(torch_axis(axis, rank) for axis in step.whole(1)))
    step.done(step.call(torch.mean, value, axes, keepdim=step.options.keep_axes))


def softmax(step: Step) -> None:
    """SOFTMAX over the channels."""
    value = step.value(0)
    if step.options.beta != 1:
        value = step.call(torch.mul, value, step.options.beta)
    step.done(step.call(F.softmax, value, 1))


def pad(step: Step) -> None:
    """PAD, PADV2 with zeros."""
    value, counts = step.value(0), step.whole(1)
    rank = len(value.shape)
    number = float(step.constant(2).reshape(-1)[0]) if step.has(2) else 0.0
    if len(counts) != 2 * rank or min(counts) < 0:
        raise step.refuse(f"counts {counts}", wanted="two for each axis")
    around: list[int] = [0] * (2 * rank)
    for axis in range(rank):
        place = 2 * (rank - 1 - torch_axis(axis, rank))
        around[place : place + 2] = counts[2 * axis : 2 * axis + 2]
    while around and around[-2:] == [0, 0]:
        del around[-2:]
    step.done(step.call(F.pad, value, tuple(around), value=number) if around else value)


def concat(step: Step) -> None:
    """CONCATENATION along any axis but the batch."""
    values = [step.value(place) for place in range(len(step.operator.inputs))]
    if any(value.scrambled is not None for value in values):
        raise step.refuse("a flattened map", wanted="maps, or vectors that were none", do="concatenate the maps before they are flattened")
    step.done(step.gather(torch.cat, values, torch_axis(step.options.axis, len(values[0].shape))))


def strided_slice(step: Step) -> None:
    """STRIDED_SLICE, SLICE with constant bounds and positive steps."""
    value = step.value(0)
    numbers = tuple(step.whole(place) for place in range(1, len(step.operator.inputs)))
    bounds = slice_bounds(value.shape, numbers, step.operator)
    if bounds is None:
        raise step.refuse(f"bounds {numbers}", wanted="bounds for every axis, positive steps, no axis added or taken, something left")
    begin, end, steps = bounds
    rank = len(value.shape)
    cuts = [slice(None)] * rank
    for axis in range(rank):
        if (begin[axis], end[axis], steps[axis]) != (0, value.shape[axis], 1):
            cuts[torch_axis(axis, rank)] = slice(begin[axis], end[axis], steps[axis])
    _plain(step, value)
    step.done(step.call(operators.getitem, value, tuple(cuts)))


def _plain(step: Step, value: Value) -> None:
    if value.scrambled is not None:
        raise step.refuse("a flattened map", wanted="a map, or a vector that was none", do="cut the map before it is flattened")


def split(step: Step) -> None:
    """SPLIT, SPLIT_V into slices."""
    place, axes = (0, 1) if step.operator.kind == "SPLIT_V" else (1, 0)
    value = step.value(place)
    _plain(step, value)
    rank = len(value.shape)
    axis = step.whole(2 if step.operator.kind == "SPLIT_V" else axes)[0] % rank
    start = 0
    for number in range(len(step.operator.outputs)):
        size = step.output_shape(number)[axis]
        cuts = [slice(None)] * rank
        cuts[torch_axis(axis, rank)] = slice(start, start + size)
        step.done(step.call(operators.getitem, value, tuple(cuts)), number)
        start += size


def resize(step: Step) -> None:
    """RESIZE_NEAREST_NEIGHBOR to a multiple of the size."""
    value, shape = step.value(0), step.output_shape()
    multiple = len(shape) == 4 and not shape[1] % value.shape[1] and not shape[2] % value.shape[2]
    if not multiple or (step.options.corners and shape != value.shape):
        raise step.refuse(f"to {shape}", wanted="a multiple of the rows and of the columns, corners not aligned")
    factor = (float(shape[1] // value.shape[1]), float(shape[2] // value.shape[2]))
    step.done(step.call(F.interpolate, value, None, factor, "nearest"))


def prelu(step: Step) -> None:
    """PRELU with a slope a channel."""
    value, slope = step.value(0), step.constant(1)
    if slope.size not in (1, slope.shape[-1]):
        raise step.refuse(f"slopes {slope.shape}", wanted="one, or one a channel", do="shared_axes=[1, 2] in Keras")
    layer = nn.PReLU(slope.size)
    layer.weight = nn.Parameter(torch.from_numpy(np.array(slope.reshape(-1))))
    step.done(step.module(layer, value))


def transpose(step: Step) -> None:
    """TRANSPOSE, judged by the front end where numbers move."""
    value, order = step.value(0), step.whole(1)
    rank = len(value.shape)
    _plain(step, value)
    if sorted(order) != list(range(rank)) or order[0] != 0:
        raise step.refuse(f"order {order}", wanted="the batch first")
    axes = [0] * rank
    for axis, source in enumerate(order):
        axes[torch_axis(axis, rank)] = torch_axis(source, rank)
    step.done(step.call(torch.permute, value, tuple(axes)))


def leaky_relu(step: Step) -> None:
    """LEAKY_RELU."""
    step.done(step.call(F.leaky_relu, step.value(0), step.options.alpha))


def gelu(step: Step) -> None:
    """GELU."""
    step.done(step.call(F.gelu, step.value(0), approximate="tanh" if step.options.approximate else "none"))


def limit(step: Step) -> None:
    """MAXIMUM, MINIMUM with a number."""
    bound = step.constant(1).reshape(-1)
    if bound.size != 1:
        raise step.refuse(f"a constant of {bound.size} numbers", wanted="one number")
    bounds = (float(bound[0]), None) if step.operator.kind == "MAXIMUM" else (None, float(bound[0]))
    step.done(step.call(torch.clamp, step.value(0), *bounds))


def same(step: Step) -> None:
    """QUANTIZE, DEQUANTIZE: the real number stays."""
    step.done(step.value(0))


def function_of(function: Callable[..., torch.Tensor], *arguments: float) -> Callable[[Step], None]:
    """A handler for a function of each value alone."""

    def handler(step: Step) -> None:
        step.done(step.call(function, step.value(0), *arguments))

    return handler
