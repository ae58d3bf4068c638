"""Operators that move or pool numbers: from an exported program's call to nodes of the float graph."""

from __future__ import annotations

from kqgen.frontend_call import Call, Operand, Value
from kqgen.ir import NO_PADDING, AvgPool, MaxPool, Pad, Padding, Pair, Shape, SlicePad

_END = 2**63 - 1
"""What torch.export writes for a slice without an end."""


def max_pool2d(call: Call) -> Operand:
    """aten.max_pool2d: dilation 1; ceil_mode only where it changes nothing."""
    if set(call.ints("dilation", 2)) - {1}:
        raise call.refuse(f"dilation {call.ints('dilation', 2)}", wanted="dilation 1", do="use a larger window and fine-tune")
    value, kernel, stride, padding, shape = _window(call)
    return call.emit(
        lambda name: MaxPool(
            name=name, path=call.path, inputs=(value.tensor,), shape=shape, kernel=kernel, stride=stride, padding=padding
        )
    )


def max_pool2d_with_indices(call: Call) -> Operand:
    """aten.max_pool2d_with_indices: the values; the indices are refused where something reads them."""
    pooled = max_pool2d(call)
    return (pooled, None)


def avg_pool2d(call: Call) -> Operand:
    """aten.avg_pool2d: divisor k_h * k_w."""
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
    return _average(call, value, kernel, stride, padding, shape)


def _window(call: Call) -> tuple[Value, Pair, Pair, Padding, Shape]:
    value = call.value("self")
    c, h, w = call.as_map(value)
    kernel = call.pair("kernel_size")
    stride = call.pair("stride") if call.ints("stride", 2) else kernel
    rows, columns = call.pair("padding")
    shape = (c, (h + 2 * rows - kernel[0]) // stride[0] + 1, (w + 2 * columns - kernel[1]) // stride[1] + 1)
    if call.any("ceil_mode") and call.out_dims() != shape:
        raise call.refuse(
            f"ceil_mode, kernel {kernel}, stride {stride}: {call.out_dims()[1:]} windows instead of {shape[1:]}",
            wanted="windows inside the padded map",
            do="pass ceil_mode=False, or pad the map so that the windows fit",
        )
    return value, kernel, stride, (rows, rows, columns, columns), shape


def adaptive_avg_pool2d(call: Call) -> Operand:
    """aten.adaptive_avg_pool2d: the output must divide the map."""
    value, window, shape = _adaptive(call)
    return _average(call, value, window, window, NO_PADDING, shape)


def adaptive_max_pool2d(call: Call) -> Operand:
    """aten.adaptive_max_pool2d: the output must divide the map."""
    value, window, shape = _adaptive(call)
    pooled = call.emit(
        lambda name: MaxPool(name=name, path=call.path, inputs=(value.tensor,), shape=shape, kernel=window, stride=window)
    )
    return (pooled, None)


def _adaptive(call: Call) -> tuple[Value, Pair, Shape]:
    value = call.value("self")
    c, h, w = call.as_map(value)
    rows, columns = call.pair("output_size")
    if h % rows or w % columns:
        raise call.refuse(
            f"output {(rows, columns)}",
            wanted=f"an output that divides {(h, w)}",
            do=f"use another output size, such as 1, or nn.AvgPool2d with a fixed window on the {h} x {w} map",
        )
    return value, (h // rows, w // columns), (c, rows, columns)


def mean(call: Call) -> Operand:
    """aten.mean.dim over rows, columns or both; also over the one axis of a flattened map."""
    value, kernel, shape = _reduced(call)
    if call.any("dtype") is not None:
        raise call.refuse(f"dtype {call.any('dtype')}", wanted="a mean in float32")
    made = _average(call, value, kernel, kernel, NO_PADDING, shape)
    return Value(made.tensor, call.out_dims())


def amax(call: Call) -> Operand:
    """aten.amax over rows, columns or both."""
    value, kernel, shape = _reduced(call)
    return call.emit(
        lambda name: MaxPool(name=name, path=call.path, inputs=(value.tensor,), shape=shape, kernel=kernel, stride=kernel),
        dims=call.out_dims(),
    )


def _reduced(call: Call) -> tuple[Value, Pair, Shape]:
    """The tensor, the window and the map left by a reduction over some axes."""
    value = call.value("self")
    c, h, w = call.builder.shape(value.tensor)
    rank = len(value.dims) + 1
    axes = {axis % rank for axis in call.ints("dim", 1)}
    if value.dims == (c, h, w) and axes and axes <= {2, 3}:
        kernel = (h if 2 in axes else 1, w if 3 in axes else 1)
    elif value.dims == (c, h * w) and axes == {2}:
        kernel = (h, w)
    else:
        raise call.refuse(
            f"over the axes {sorted(axes)}", wanted="rows and columns of a map: (2, 3)", do="use nn.AdaptiveAvgPool2d(1)"
        )
    return value, kernel, (c, h // kernel[0], w // kernel[1])


def _average(call: Call, value: Value, kernel: Pair, stride: Pair, padding: Padding, shape: Shape) -> Value:
    return call.emit(
        lambda name: AvgPool(
            name=name,
            path=call.path,
            inputs=(value.tensor,),
            shape=shape,
            kernel=kernel,
            stride=stride,
            padding=padding,
            sources=(call.path,) if call.path else (),
        )
    )


def pad(call: Call) -> Operand:
    """aten.pad, constant_pad_nd: zeros around the map and zero channels."""
    value = call.value("self")
    mode = call.any("mode") or "constant"
    if mode != "constant":
        raise call.refuse(f"mode {mode!r}", wanted="zeros", do="use nn.ZeroPad2d or padding_mode='zeros' and fine-tune")
    if call.number("value", 0.0) != 0:
        raise call.refuse(f"value {call.number('value', 0.0):g}", wanted="zeros", do="pad by 0")
    counts = call.ints("pad", 0)
    if not any(counts):
        return value
    c, h, w = call.as_map(value)
    left, right, top, bottom, before, after, *batch = (*counts, 0, 0, 0, 0, 0, 0, 0, 0)[:8]
    if any(batch) or min(counts) < 0:
        raise call.refuse(f"pad {list(counts)}", wanted="zeros added to rows, columns and channels", do="crop by a slice")
    if before or after:
        shape = (c + before + after, h, w)
        value = _slice_pad(call, value, shape, c_before=before, c_after=after)
        c = shape[0]
    if top or bottom or left or right:
        tensor = value.tensor
        shape = (c, h + top + bottom, w + left + right)
        value = call.emit(
            lambda name: Pad(name=name, path=call.path, inputs=(tensor,), shape=shape, padding=(top, bottom, left, right))
        )
    return value


def slice_axis(call: Call) -> Operand:
    """aten.slice over rows or columns with a positive step."""
    value = call.value("self")
    axis = int(call.number("dim", 0)) % (len(value.dims) + 1)
    whole = axis == 0 and call.number("start", 0) == 0 and call.number("step", 1) == 1 and call.number("end", _END) >= _END
    if whole or (axis != 0 and call.out_dims() == value.dims):
        return value
    if axis not in (2, 3) or len(value.dims) != 3:
        where = "batch" if axis == 0 else "channels" if axis == 1 else f"axis {axis}"
        raise call.refuse(f"of the {where}", wanted="a slice of rows or columns", do="split channels by a 1x1 convolution instead")
    c, h, w = call.as_map(value)
    step = int(call.number("step", 1))
    size = (h, w)[axis - 2]
    start = int(call.number("start", 0))
    start = max(0, start + size if start < 0 else start)
    made = call.out_dims()
    shape = (c, made[1], made[2])
    if axis == 2:
        return _slice_pad(call, value, shape, start=(start, 0), step=(step, 1))
    return _slice_pad(call, value, shape, start=(0, start), step=(1, step))


def _slice_pad(
    call: Call, value: Value, shape: Shape, start: Pair = (0, 0), step: Pair = (1, 1), c_before: int = 0, c_after: int = 0
) -> Value:
    return call.emit(
        lambda name: SlicePad(
            name=name,
            path=call.path,
            inputs=(value.tensor,),
            shape=shape,
            start=start,
            step=step,
            c_before=c_before,
            c_after=c_after,
        )
    )


def reshape(call: Call) -> Operand:
    """view, reshape, flatten, squeeze, unsqueeze: the order of the numbers stays, the batch axis too."""
    value = call.value("self")
    return Value(value.tensor, call.out_dims())


def permute(call: Call) -> Operand:
    """permute, transpose: only where no number moves."""
    value = call.value("self")
    rank = len(value.dims) + 1
    if call.has("dims"):
        order = [axis % rank for axis in call.ints("dims", rank)]
    elif call.has("dim0"):
        first, second = int(call.number("dim0", 0)) % rank, int(call.number("dim1", 0)) % rank
        order = list(range(rank))
        order[first], order[second] = second, first
    else:
        order = list(reversed(range(rank)))
    sizes = (0, *value.dims)
    moved = [axis for axis in order if axis == 0 or sizes[axis] != 1]
    if order[0] != 0 or moved != sorted(moved):
        raise call.refuse(
            f"order {order}",
            wanted="axes that stay in order",
            do="take it out: the generated C has channels last anyway, and the model is given channels first",
        )
    return Value(value.tensor, call.out_dims())


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


def expand(call: Call) -> Operand:
    """aten.expand, repeat: only to the shape that the tensor has."""
    value = call.value("self")
    if call.out_dims() != value.dims:
        raise call.refuse(f"to {call.out_dims()}", wanted="the shape it has")
    return value
