"""Operators that pool, pad or put together maps: from an exported program's call to nodes of the float graph."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from kqgen.frontend_axes import as_map, channels_last, map_shape, order_of, viewed, whole
from kqgen.frontend_call import Call, Operand, Order, Value
from kqgen.ir import NO_PADDING, AvgPool, Concat, Conv2d, MaxPool, Pad, Padding, Pair, Shape, SlicePad, Upsample, frozen_array


def max_pool(call: Call) -> Operand:
    """aten.max_pool1d, max_pool2d: dilation 1."""
    if set(call.ints("dilation", 1)) - {1}:
        raise call.refuse(f"dilation {call.ints('dilation', 2)}", wanted="dilation 1", do="use a larger window and fine-tune")
    value, kernel, stride, padding, shape = _window(call)
    if call.any("ceil_mode"):
        _, h, w = call.builder.shape(value.tensor)
        made = (1, *call.out_dims()[1:])[-2:]
        missing = [
            max(0, (made[axis] - 1) * stride[axis] + kernel[axis] - size - 2 * padding[2 * axis]) for axis, size in enumerate((h, w))
        ]
        padding = (padding[0], padding[1] + missing[0], padding[2], padding[3] + missing[1])
        shape = (shape[0], made[0], made[1])
    return call.emit(
        lambda name: MaxPool(
            name=name, path=call.path, inputs=(value.tensor,), shape=shape, kernel=kernel, stride=stride, padding=padding
        ),
        dims=call.out_dims(),
    )


def max_pool_with_indices(call: Call) -> Operand:
    """aten.max_pool2d_with_indices: the values; the indices are refused where something reads them."""
    return (max_pool(call), None)


def avg_pool(call: Call) -> Operand:
    """aten.avg_pool1d, avg_pool2d: divisor k_h * k_w."""
    value, kernel, stride, padding, shape = _window(call)
    if any(padding) and not call.any("count_include_pad"):
        raise call.refuse(
            f"count_include_pad False, padding {padding}",
            wanted="count_include_pad=True, or no padding",
            do="pass count_include_pad=True and fine-tune",
        )
    divisor = call.any("divisor_override")
    if divisor is not None and divisor != kernel[0] * kernel[1]:
        raise call.refuse(f"divisor_override {divisor}", wanted=f"the window's size, {kernel[0] * kernel[1]}", do="scale a layer instead")
    if call.any("ceil_mode") and call.out_dims() != (shape if len(value.dims) == 3 else shape[::2]):
        raise call.refuse(
            f"ceil_mode, kernel {kernel}, stride {stride}: {call.out_dims()[1:]} windows instead of {shape[1:]}",
            wanted="windows inside the padded map",
            do="pass ceil_mode=False, or pad the map so that the windows fit",
        )
    return average(call, value.tensor, kernel, stride, padding, shape)


def pair(call: Call, name: str, one: int, value: Value) -> Pair:
    """The operand `name` as (rows, columns); of a sequence its one number belongs to the columns, and the rows have `one`."""
    if len(value.dims) == 3:
        return call.pair(name)
    items = call.ints(name, 1)
    if len(value.dims) != 2 or len(items) != 1:
        raise call.refuse(f"{name} {list(items)} for axes {value.dims}", wanted="a map (N, C, H, W) or a sequence (N, C, L)")
    return (one, items[0])


def _window(call: Call) -> tuple[Value, Pair, Pair, Padding, Shape]:
    value = as_map(call, call.value("self"))
    c, h, w = call.builder.shape(value.tensor)
    kernel = pair(call, "kernel_size", 1, value)
    stride = pair(call, "stride", 1, value) if call.ints("stride", 1) else kernel
    rows, columns = pair(call, "padding", 0, value)
    shape = (c, (h + 2 * rows - kernel[0]) // stride[0] + 1, (w + 2 * columns - kernel[1]) // stride[1] + 1)
    return value, kernel, stride, (rows, rows, columns, columns), shape


def adaptive_avg_pool(call: Call) -> Operand:
    """aten.adaptive_avg_pool1d, adaptive_avg_pool2d: the output must divide the map."""
    value, window, shape = _adaptive(call)
    return average(call, value.tensor, window, window, NO_PADDING, shape)


def adaptive_max_pool(call: Call) -> Operand:
    """aten.adaptive_max_pool1d, adaptive_max_pool2d: the output must divide the map."""
    value, window, shape = _adaptive(call)
    pooled = call.emit(
        lambda name: MaxPool(name=name, path=call.path, inputs=(value.tensor,), shape=shape, kernel=window, stride=window),
        dims=call.out_dims(),
    )
    return (pooled, None)


def _adaptive(call: Call) -> tuple[Value, Pair, Shape]:
    value = as_map(call, call.value("self"))
    c, h, w = call.builder.shape(value.tensor)
    rows, columns = pair(call, "output_size", 1, value)
    if h % rows or w % columns:
        sides = " or ".join(str(each) for each in _near(w if h % rows == 0 else h, columns if h % rows == 0 else rows))
        raise call.refuse(
            f"output size ({rows}, {columns}) of a map {h} x {w}",
            wanted="an output size that divides the map",
            do=f"ask for another output size ({sides} fits), or change the input's size",
        )
    return value, (h // rows, w // columns), (c, rows, columns)


def _near(size: int, asked: int) -> list[int]:
    """The divisors of `size` next below and above `asked`."""
    divisors = [each for each in range(1, size + 1) if size % each == 0]
    return [*[each for each in divisors if each < asked][-1:], *[each for each in divisors if each > asked][:1]]


def average(call: Call, tensor: str, kernel: Pair, stride: Pair, padding: Padding, shape: Shape) -> Value:
    """Emits an AvgPool as what the operator makes."""
    return call.emit(
        lambda name: AvgPool(
            name=name, path=call.path, inputs=(tensor,), shape=shape, kernel=kernel, stride=stride, padding=padding, sources=call.sources
        ),
        dims=call.out_dims(),
    )


@dataclass(frozen=True, slots=True, eq=False)
class _Reduction:
    """A reduction over whole axes of a map.

    Attributes:
        tensor: of the map.
        axes: which of (c, h, w) go.
        order: of the result, in its own node.
    """

    tensor: str
    axes: tuple[bool, bool, bool]
    order: Order


def axes_of(call: Call, value: Value, axes: set[int]) -> tuple[bool, bool, bool] | None:
    """Which of (c, h, w) of the tensor the axes (1 is the first behind the batch) run over; None where they run over a part of one."""
    _, h, w = call.builder.shape(value.tensor)
    order = order_of(call, value)
    places = (order // (h * w), order // w % h, order % w)

    def varies(place: Order, axis: int) -> bool:
        return bool((place != place.take([0], axis)).any())

    inside = tuple(any(varies(place, axis - 1) for axis in axes) for place in places)
    outside = tuple(any(varies(place, axis) for axis in range(order.ndim) if axis + 1 not in axes) for place in places)
    return None if any(a and b for a, b in zip(inside, outside, strict=True)) else (inside[0], inside[1], inside[2])


def reduction(call: Call) -> _Reduction:
    """The operands `self`, `dim` of an operator that reduces axes."""
    value = whole(call, call.value("self"))
    c, h, w = call.builder.shape(value.tensor)
    rank = len(value.dims) + 1
    axes = {axis % rank for axis in call.ints("dim", 1)}
    inner = bool(axes) and 0 not in axes
    if inner and map_shape(value.dims) is not None and axes_of(call, value, axes) is None:
        value = as_map(call, value)
        c, h, w = call.builder.shape(value.tensor)
    gone = axes_of(call, value, axes) if inner else None
    if gone is None:
        raise call.refuse(
            f"over the axes {sorted(axes)} of (N, {', '.join(map(str, value.dims))})",
            wanted="whole rows, columns or channels of a map: (2, 3)",
            do="use nn.AdaptiveAvgPool2d(1)",
        )
    order = order_of(call, value)
    for axis in axes:
        order = order.take([0], axis - 1)
    sizes = tuple(1 if out else size for out, size in zip(gone, (c, h, w), strict=True))
    places = [place % size for place, size in zip((order // (h * w), order // w % h, order % w), sizes, strict=True)]
    kept = (places[0] * sizes[1] + places[1]) * sizes[2] + places[2]
    return _Reduction(value.tensor, gone, kept.reshape(call.out_dims()))


def mean(call: Call) -> Operand:
    """aten.mean over rows, columns or both, or over all channels."""
    found = reduction(call)
    c, h, w = call.builder.shape(found.tensor)
    channels, rows, columns = found.axes
    if channels and (rows or columns):
        raise call.refuse("over channels and positions", wanted="rows and columns, or channels", do="take one mean after the other")
    if channels:
        return sum_channels(call, found, 1 / c)
    kernel = (h if rows else 1, w if columns else 1)
    made = average(call, found.tensor, kernel, kernel, NO_PADDING, (c, h // kernel[0], w // kernel[1]))
    return viewed(call, made, found.order)


def add_up(call: Call) -> Operand:
    """aten.sum over rows, columns or both, or over all channels."""
    found = reduction(call)
    c, h, w = call.builder.shape(found.tensor)
    channels, rows, columns = found.axes
    if channels and (rows or columns):
        raise call.refuse("over channels and positions", wanted="rows and columns, or channels", do="take one sum after the other")
    if channels:
        return sum_channels(call, found, 1.0)
    kernel = (h if rows else 1, w if columns else 1)
    shape = (c, h // kernel[0], w // kernel[1])
    pooled = call.emit(
        lambda name: AvgPool(name=name, path=call.path, inputs=(found.tensor,), shape=shape, kernel=kernel, stride=kernel), role="mean"
    )
    return viewed(call, call.affine(pooled, np.full(1, float(kernel[0] * kernel[1])), np.zeros(1)), found.order)


def sum_channels(call: Call, found: _Reduction, factor: float) -> Value:
    """The sum of all channels times `factor`: a 1x1 convolution."""
    c, h, w = call.builder.shape(found.tensor)
    made = call.emit(
        lambda name: Conv2d(
            name=name, path=call.path, inputs=(found.tensor,), shape=(1, h, w), weight=frozen_array(np.full((1, c, 1, 1), factor)),
            bias=frozen_array(np.zeros(1)), sources=call.sources,
        )
    )  # fmt: skip
    return viewed(call, made, found.order)


def amax(call: Call) -> Operand:
    """aten.amax over rows, columns or both."""
    found = reduction(call)
    c, h, w = call.builder.shape(found.tensor)
    if found.axes[0]:
        raise call.refuse("over channels", wanted="rows and columns of a map: (2, 3)", do="use the mean over channels and fine-tune")
    kernel = (h if found.axes[1] else 1, w if found.axes[2] else 1)
    shape = (c, h // kernel[0], w // kernel[1])
    made = call.emit(
        lambda name: MaxPool(name=name, path=call.path, inputs=(found.tensor,), shape=shape, kernel=kernel, stride=kernel)
    )
    return viewed(call, made, found.order)


def max_of_axis(call: Call) -> Operand:
    """aten.max over rows or columns: the values; the indices are refused where something reads them."""
    return (amax(call), None)


def pad(call: Call) -> Operand:
    """aten.pad, constant_pad_nd: a constant around the map, constant channels, or by negative numbers a crop."""
    value = call.value("self")
    mode = call.any("mode") or "constant"
    if mode != "constant":
        raise call.refuse(f"mode {mode!r}", wanted="a constant", do="use nn.ZeroPad2d or padding_mode='zeros' and fine-tune")
    constant = call.number("value", 0.0)
    if not math.isfinite(constant):
        raise call.refuse(f"value {constant:g}", wanted="a finite value", do="give the padding to nn.MaxPool2d, where it never wins")
    counts = call.ints("pad", 0)
    if not any(counts):
        return value
    value = as_map(call, value)
    rank = len(value.dims)
    if any(counts[2 * rank :]):
        raise call.refuse(f"pad {list(counts)}", wanted="padding of rows, columns and channels")
    ends = [(0, 0)] * 3
    for number, axis in enumerate({3: (2, 1, 0), 2: (2, 0), 1: (0,)}[rank][: len(counts) // 2]):
        ends[axis] = (counts[2 * number], counts[2 * number + 1])
    if constant != 0:
        value = call.affine(value, np.ones(1), np.full(1, -constant), role="shift")
    tensor = _pad(call, value.tensor, ends, last=constant == 0)
    if constant == 0:
        return Value(tensor, call.out_dims())
    return call.affine(Value(tensor, call.out_dims()), np.ones(1), np.full(1, constant))


def _pad(call: Call, tensor: str, ends: list[tuple[int, int]], *, last: bool) -> str:
    (before, after), (top, bottom), (left, right) = ends
    around = tuple(max(0, each) for each in (top, bottom, left, right))
    role = "" if last else "pad"
    if before or after or min(top, bottom, left, right) < 0:
        c, h, w = call.builder.shape(tensor)
        source = (tensor,)
        shape = (c + before + after, h + min(0, top) + min(0, bottom), w + min(0, left) + min(0, right))
        start = (max(0, -top), max(0, -left))
        tensor = call.emit(
            lambda name: SlicePad(
                name=name, path=call.path, inputs=source, shape=shape, start=start, c_before=before, c_after=after
            ),
            role="crop" if any(around) else role,
        ).tensor  # fmt: skip
    if any(around):
        c, h, w = call.builder.shape(tensor)
        inside = (tensor,)
        wide = (c, h + around[0] + around[1], w + around[2] + around[3])
        padding: Padding = (around[0], around[1], around[2], around[3])
        tensor = call.emit(lambda name: Pad(name=name, path=call.path, inputs=inside, shape=wide, padding=padding), role=role).tensor
    return tensor


def concatenate(call: Call) -> Operand:
    """aten.cat along channels, rows or columns."""
    operands = call.any("tensors")
    given = list(operands) if isinstance(operands, (list, tuple)) else []
    values = [each for each in given if isinstance(each, Value)]
    if not values or len(values) < len(given):
        raise call.refuse("a constant among the tensors", wanted="tensors computed from an input", do="pad channels by F.pad instead")
    rank = len(values[0].dims) + 1
    axis = int(call.number("dim", 0)) % rank
    if len(values) == 1:
        return values[0]
    backwards = all(channels_last(call, value) for value in values)
    if backwards:
        places = {2: (2, 0), 3: (1, 2, 0)}.get(rank - 1)
        tensors = [value.tensor for value in values]
        backwards = places is not None and all(
            value.dims == tuple(call.builder.shape(value.tensor)[place] for place in places) for value in values
        )
    if not backwards:
        places = {1: (0,), 2: (0, 2), 3: (0, 1, 2)}.get(rank - 1)
        tensors = [as_map(call, value).tensor for value in values]
    if places is None or axis == 0:
        raise call.refuse(f"along axis {axis} of {rank}", wanted="channels, rows or columns of a map")
    along = places[axis - 1]
    shape = list(call.builder.shape(tensors[0]))
    shape[along] = sum(call.builder.shape(tensor)[along] for tensor in tensors)
    made = call.emit(
        lambda name: Concat(name=name, path=call.path, inputs=tuple(tensors), shape=(shape[0], shape[1], shape[2]), axis=along),
        dims=call.out_dims(),
    )
    if not backwards:
        return made
    order = np.arange(math.prod(shape), dtype=np.int64).reshape(shape).transpose(1, 2, 0).reshape(call.out_dims())
    return viewed(call, made, order)


def upsample_nearest(call: Call) -> Operand:
    """aten.upsample_nearest1d, upsample_nearest2d and their exact kin, by whole factors."""
    value = as_map(call, call.value("input" if call.has("input") else "self"))
    sizes, made = (1, *value.dims[1:])[-2:], (1, *call.out_dims()[1:])[-2:]
    if any(out % size for size, out in zip(sizes, made, strict=True)):
        raise call.refuse(
            f"from {sizes} to {made}", wanted="a size that is a whole multiple", do="ask for a whole scale factor, or crop afterwards"
        )
    factor = (made[0] // sizes[0], made[1] // sizes[1])
    shape = (value.dims[0], made[0], made[1])
    return call.emit(
        lambda name: Upsample(name=name, path=call.path, inputs=(value.tensor,), shape=shape, factor=factor), dims=call.out_dims()
    )
