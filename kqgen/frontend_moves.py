"""Operators that move numbers and compute nothing: views, permutations, slices, shuffles. They only change a value's order."""

from __future__ import annotations

import math

import numpy as np
import torch

from kqgen.frontend_axes import as_map, channels_last, map_shape, materialise, order_of, settled, viewed
from kqgen.frontend_call import Call, Constant, Operand, Order, Value


def reshape(call: Call) -> Operand:
    """view, reshape, flatten, squeeze, unsqueeze: the batch axis stays."""
    value = call.value("self")
    dims = call.out_dims()
    if math.prod(dims) != math.prod(value.dims):
        raise call.refuse(f"output {dims}", wanted="the batch axis first", do="torch.flatten(x, 1) keeps it")
    if len(dims) == 1 and value.order is not None and not channels_last(call, value):
        shape = map_shape(value.dims)
        made = None if shape is None else materialise(call, value.tensor, value.order.reshape(shape))
        value = value if made is None else Value(made, value.dims)
    return Value(value.tensor, dims, None if value.order is None else value.order.reshape(dims))


def permute(call: Call) -> Operand:
    """permute, transpose: the batch axis stays first."""
    value = call.value("self")
    rank = len(value.dims) + 1
    if call.has("dims"):
        axes = [axis % rank for axis in call.ints("dims", rank)]
    elif call.has("dim0"):
        first, second = int(call.number("dim0", 0)) % rank, int(call.number("dim1", 0)) % rank
        axes = list(range(rank))
        axes[first], axes[second] = second, first
    else:
        axes = list(reversed(range(rank)))
    if axes[0] != 0:
        raise call.refuse(f"order {axes}", wanted="the batch axis first", do="leave the batch where it is")
    return viewed(call, value, order_of(call, value).transpose([axis - 1 for axis in axes[1:]]))


def slice_axis(call: Call) -> Operand:
    """aten.slice: every step-th place from start to end."""
    value, axis = _axis(call)
    start, end, step = (call.any(name) for name in ("start", "end", "step"))
    span = slice(*(each if isinstance(each, int) else None for each in (start, end, step)))
    whole = call.out_dims() == value.dims if axis else True
    if axis == 0:
        whole = span.start in (None, 0) and span.step in (None, 1) and (span.stop is None or span.stop >= 2**31)
    if whole:
        return value
    if axis == 0:
        raise call.refuse("of the batch", wanted="a slice of channels, rows or columns")
    return _picked(call, value, (slice(None),) * (axis - 1) + (span,))


def select(call: Call) -> Operand:
    """aten.select: one place of an axis, which goes."""
    value, axis = _inner_axis(call)
    return _picked(call, value, (slice(None),) * (axis - 1) + (int(call.number("index", 0)),))


def split(call: Call) -> Operand:
    """aten.split, split_with_sizes, chunk: parts of an axis."""
    value, axis = _inner_axis(call)
    made = call.node.meta["val"]
    out, start = [], 0
    for part in made:
        size = int(part.shape[axis])
        out.append(_picked(call, value, (slice(None),) * (axis - 1) + (slice(start, start + size),)))
        start += size
    return tuple(out)


def unbind(call: Call) -> Operand:
    """aten.unbind: every place of an axis, which goes."""
    value, axis = _inner_axis(call)
    return tuple(_picked(call, value, (slice(None),) * (axis - 1) + (place,)) for place in range(value.dims[axis - 1]))


def index_select(call: Call) -> Operand:
    """aten.index_select by a constant list."""
    value, axis = _inner_axis(call)
    return settled(call, viewed(call, value, order_of(call, value).take(_places(call, call.any("index")), axis - 1)))


def index(call: Call) -> Operand:
    """aten.index by one constant list of places of one axis."""
    value = call.value("self")
    given = call.any("indices")
    lists = list(given) if isinstance(given, (list, tuple)) else []
    used = [axis for axis, each in enumerate(lists) if each is not None]
    if len(used) != 1 or used[0] == 0:
        raise call.refuse("by lists of several axes or of the batch", wanted="a list of places of one axis")
    places = _places(call, lists[used[0]])
    return settled(call, viewed(call, value, order_of(call, value).take(places, used[0] - 1)))


def _places(call: Call, operand: Operand) -> Order:
    if not isinstance(operand, Constant) or operand.tensor.dtype not in (torch.int64, torch.int32):
        raise call.refuse("places that are no constant list", wanted="a list of whole numbers known before the network runs")
    places: Order = operand.tensor.long().numpy()
    return places


def flip(call: Call) -> Operand:
    """aten.flip of channels; rows and columns are refused where a layer reads them."""
    value = call.value("self")
    axes = [axis % (len(value.dims) + 1) - 1 for axis in call.ints("dims", 1)]
    if min(axes) < 0:
        raise call.refuse("of the batch", wanted="axes behind the batch")
    return settled(call, viewed(call, value, np.flip(order_of(call, value), tuple(axes))))


def pixel_shuffle(call: Call) -> Operand:
    """aten.pixel_shuffle: channels become rows and columns between the others."""
    value, factor = call.value("self"), int(call.number("upscale_factor", 1))
    c, h, w = _three(call, value)
    order = order_of(call, value).reshape(c // factor**2, factor, factor, h, w).transpose(0, 3, 1, 4, 2)
    return as_map(call, viewed(call, value, order.reshape(call.out_dims())))


def pixel_unshuffle(call: Call) -> Operand:
    """aten.pixel_unshuffle: the way back from pixel_shuffle."""
    value, factor = call.value("self"), int(call.number("downscale_factor", 1))
    c, h, w = _three(call, value)
    order = order_of(call, value).reshape(c, h // factor, factor, w // factor, factor).transpose(0, 2, 4, 1, 3)
    return as_map(call, viewed(call, value, order.reshape(call.out_dims())))


def channel_shuffle(call: Call) -> Operand:
    """aten.channel_shuffle, native_channel_shuffle: the channels of groups taken in turn."""
    value, groups = call.value("self"), int(call.number("groups", 1))
    order = order_of(call, value)
    turned = order.reshape(groups, value.dims[0] // groups, -1).swapaxes(0, 1).reshape(value.dims)
    return as_map(call, viewed(call, value, turned))


def expand(call: Call) -> Operand:
    """aten.expand: places repeated."""
    value = call.value("self")
    dims = call.out_dims()
    if dims == value.dims:
        return value
    if len(dims) != len(value.dims):
        raise call.refuse(f"to {dims}", wanted="as many axes as it has", do="x.unsqueeze(...) before it")
    return viewed(call, value, np.broadcast_to(order_of(call, value), dims))


def repeat(call: Call) -> Operand:
    """aten.repeat: an axis several times."""
    value = call.value("self")
    counts = call.ints("repeats", 1)
    if len(counts) != len(value.dims) + 1 or counts[0] != 1:
        raise call.refuse(f"repeats {list(counts)}", wanted="repetition of channels, rows or columns")
    return value if set(counts) == {1} else viewed(call, value, np.tile(order_of(call, value), counts[1:]))


def identity(call: Call) -> Operand:
    """Operators that change no number at inference."""
    return call.value("input" if call.has("input") else "self")


def dropout(call: Call) -> Operand:
    """aten.dropout: nothing at inference."""
    if call.any("train"):
        raise call.refuse("training mode", wanted="inference", do="call model.eval() before torch.export.export")
    return call.value("input")


def native_dropout(call: Call) -> Operand:
    """aten.native_dropout."""
    value = dropout(call)
    return (value if isinstance(value, Value) else None, None)


def _axis(call: Call) -> tuple[Value, int]:
    value = call.value("self")
    return value, int(call.number("dim", 0)) % (len(value.dims) + 1)


def _inner_axis(call: Call) -> tuple[Value, int]:
    value, axis = _axis(call)
    if axis == 0:
        raise call.refuse("of the batch", wanted="channels, rows or columns")
    return value, axis


def _picked(call: Call, value: Value, where: tuple[slice | int, ...]) -> Value:
    return settled(call, viewed(call, value, np.asarray(order_of(call, value)[where])))


def _three(call: Call, value: Value) -> tuple[int, int, int]:
    if len(value.dims) != 3:
        raise call.refuse(f"axes {value.dims}", wanted="a map (N, C, H, W)")
    return (value.dims[0], value.dims[1], value.dims[2])
