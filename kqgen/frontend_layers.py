"""Operators with weights: convolutions, fully connected layers, batch norms."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from kqgen.frontend_arithmetic import channel_values
from kqgen.frontend_axes import as_map, as_vector, channels_last, covers, map_shape, materialise, order_of, viewed
from kqgen.frontend_call import Call, Constant, Operand, Order, Value
from kqgen.ir import Conv2d, Linear, Padding, Pair, Shape, SlicePad, Upsample, frozen_array

_Float64 = npt.NDArray[np.float64]
_ONE_D, _TWO_D = 3, 4


def convolution(call: Call) -> Operand:
    """aten.conv1d, conv2d, convolution: any kernel, stride, zero padding, dilation and groups."""
    if call.any("transposed"):
        return transposed(call)
    weight = _kernels(call)
    value, (c, h, w) = _conv_map(call, weight)
    groups = int(call.number("groups", 1))
    k_h, k_w = weight.shape[2:]
    if weight.shape[1] * groups != c or weight.shape[0] % groups:
        raise call.refuse(f"weight {weight.shape}, groups {groups}", wanted=f"{c} input channels")
    stride, dilation = _pair(call, "stride", 1), _pair(call, "dilation", 1)
    padding = _conv_padding(call, ((k_h - 1) * dilation[0], (k_w - 1) * dilation[1]))
    out = (
        int(weight.shape[0]),
        (h + padding[0] + padding[1] - (k_h - 1) * dilation[0] - 1) // stride[0] + 1,
        (w + padding[2] + padding[3] - (k_w - 1) * dilation[1] - 1) // stride[1] + 1,
    )
    return _emit(call, value.tensor, weight, out, stride, padding, groups, dilation, call.parameter("weight"))


def _emit(
    call: Call, tensor: str, weight: _Float64, shape: Shape, stride: Pair, padding: Padding, groups: int, dilation: Pair, parameter: str
) -> Value:
    bias = call.weight("bias", (shape[0],)) if call.has("bias") else np.zeros(shape[0])
    return call.emit(
        lambda name: Conv2d(
            name=name,
            path=call.path,
            inputs=(tensor,),
            shape=shape,
            weight=frozen_array(weight),
            bias=frozen_array(bias),
            stride=stride,
            padding=padding,
            sources=call.sources,
            parameter=parameter,
            groups=groups,
            dilation=dilation,
        ),
        dims=call.out_dims(),
    )


def _kernels(call: Call) -> _Float64:
    """The weight with four axes: a kernel of a sequence has one row."""
    weight = call.weight("weight")
    if weight.ndim not in (_ONE_D, _TWO_D):
        raise call.refuse(f"weight {weight.shape}", wanted="a convolution over maps or sequences", do="write it as nn.Conv2d or nn.Conv1d")
    return weight if weight.ndim == _TWO_D else weight[:, :, None, :]


def _conv_map(call: Call, weight: _Float64) -> tuple[Value, Shape]:
    value = call.value("input")
    one_d = call.weight("weight").ndim == _ONE_D
    if len(value.dims) != (2 if one_d else 3):
        wanted = "a sequence (N, C, L)" if one_d else "a map (N, C, H, W)"
        raise call.refuse(f"weight {weight.shape}", wanted=wanted)
    value = as_map(call, value)
    return value, call.builder.shape(value.tensor)


def _pair(call: Call, name: str, one: int) -> Pair:
    """The operand `name` as (rows, columns); a sequence has one row, for which `one` stands."""
    if call.weight("weight").ndim == _TWO_D:
        return call.pair(name)
    return (one, call.ints(name, 1)[0])


def _conv_padding(call: Call, reach: Pair) -> Padding:
    """(top, bottom, left, right); `reach` is how many rows and columns a dilated kernel spans beyond its first."""
    given = call.any("padding")
    if given == "valid":
        return (0, 0, 0, 0)
    if given == "same":
        rows, columns = reach
        return (rows // 2, rows - rows // 2, columns // 2, columns - columns // 2)
    rows, columns = _pair(call, "padding", 0)
    return (rows, rows, columns, columns)


def transposed(call: Call) -> Operand:
    """aten.conv_transpose1d, conv_transpose2d: zeros between the values, then the flipped kernels."""
    stored = _kernels(call)
    value, (c, h, w) = _conv_map(call, stored)
    groups = int(call.number("groups", 1))
    k_h, k_w = stored.shape[2:]
    if stored.shape[0] != c or c % groups:
        raise call.refuse(f"weight {stored.shape}, groups {groups}", wanted=f"{c} input channels")
    weight = stored.reshape(groups, c // groups, stored.shape[1], k_h, k_w).swapaxes(1, 2).reshape(-1, c // groups, k_h, k_w)
    weight = weight[:, :, ::-1, ::-1]
    stride, dilation, given = _pair(call, "stride", 1), _pair(call, "dilation", 1), _pair(call, "padding", 0)
    extra = _pair(call, "output_padding", 0)
    tensor = value.tensor
    if stride != (1, 1):
        source = (tensor,)
        shape = (c, h * stride[0], w * stride[1])
        tensor = call.emit(
            lambda name: Upsample(name=name, path=call.path, inputs=source, shape=shape, factor=stride, zeros=True), role="zeros"
        ).tensor
    ends = []
    for axis, kernel in enumerate((k_h, k_w)):
        before = dilation[axis] * (kernel - 1) - given[axis]
        ends += [before, before + extra[axis] - (stride[axis] - 1)]
    tensor = _cropped(call, tensor, ends)
    padding: Padding = (max(0, ends[0]), max(0, ends[1]), max(0, ends[2]), max(0, ends[3]))
    _, rows, columns = call.builder.shape(tensor)
    out = (
        int(weight.shape[0]),
        rows + padding[0] + padding[1] - dilation[0] * (k_h - 1),
        columns + padding[2] + padding[3] - dilation[1] * (k_w - 1),
    )
    return _emit(call, tensor, weight, out, (1, 1), padding, groups, dilation, "")


def _cropped(call: Call, tensor: str, ends: list[int]) -> str:
    """The map without the rows and columns that negative padding takes away."""
    gone = [max(0, -each) for each in ends]
    if not any(gone):
        return tensor
    c, h, w = call.builder.shape(tensor)
    shape = (c, h - gone[0] - gone[1], w - gone[2] - gone[3])
    return call.emit(
        lambda name: SlicePad(name=name, path=call.path, inputs=(tensor,), shape=shape, start=(gone[0], gone[2])), role="crop"
    ).tensor


def linear(call: Call) -> Operand:
    """aten.linear: weight (out, in)."""
    return _dense(call, call.value("input"), call.weight("weight"), "bias", call.parameter("weight"))


def addmm(call: Call) -> Operand:
    """aten.addmm: bias + input @ weight, weight (in, out); beta and alpha 1."""
    if call.number("beta", 1) != 1 or call.number("alpha", 1) != 1:
        raise call.refuse("beta or alpha other than 1", wanted="nn.Linear")
    return _dense(call, call.value("mat1"), call.weight("mat2").T, "self")


def matmul(call: Call) -> Operand:
    """aten.mm, aten.matmul by a constant (in, out)."""
    left, right = ("self", "mat2") if call.has("mat2") else ("self", "other")
    if not isinstance(call.any(right), Constant):
        raise call.refuse("a product of two computed tensors", wanted="nn.Linear", do="attention is not supported; use convolutions")
    weight = call.weight(right)
    if weight.ndim != 2:
        raise call.refuse(f"weight {weight.shape}", wanted="a matrix (in, out)")
    return _dense(call, call.value(left), weight.T, "")


def _dense(call: Call, value: Value, weight: _Float64, bias_name: str, parameter: str = "") -> Value:
    out, features = weight.shape
    if value.dims[-1:] != (features,):
        raise call.refuse(f"weight {weight.shape}", wanted=f"{features} input features")
    bias = np.broadcast_to(call.weight(bias_name), (out,)) if bias_name and call.has(bias_name) else np.zeros(out)
    if len(value.dims) != 1:
        return _pointwise(call, value, weight, bias, parameter)
    if not covers(call, value):
        value = as_map(call, value)
    if value.order is not None and call.builder.shape(value.tensor)[1:] != (1, 1):
        inverse: Order = np.argsort(value.order)
        weight, value, parameter = weight[:, inverse], Value(value.tensor, value.dims), ""
    flat = as_vector(call, value)
    return call.emit(
        lambda name: Linear(
            name=name,
            path=call.path,
            inputs=(flat.tensor,),
            shape=(int(out), 1, 1),
            weight=frozen_array(weight),
            bias=frozen_array(bias),
            parameter=parameter,
        ),
        dims=(int(out),),
    )


def _pointwise(call: Call, value: Value, weight: _Float64, bias: _Float64, parameter: str) -> Value:
    """A fully connected layer at each position of a map whose last axis in PyTorch are the channels."""
    tensor: str | None = value.tensor
    if not channels_last(call, value):
        moved = np.moveaxis(order_of(call, value), -1, 0)
        shape = map_shape(moved.shape)
        tensor = None if shape is None else materialise(call, value.tensor, moved.reshape(shape))
    if tensor is None or call.builder.shape(tensor)[0] != value.dims[-1]:
        raise call.refuse(
            f"applied to the last axis of {value.dims}", wanted="a vector (N, n), or channels as the last axis",
            do="torch.flatten(x, 1) before it, or x.transpose(1, -1), so that it goes over channels",
        )  # fmt: skip
    out, source = len(weight), (tensor,)
    _, h, w = call.builder.shape(tensor)
    dims = call.out_dims()
    made = call.emit(
        lambda name: Conv2d(
            name=name, path=call.path, inputs=source, shape=(out, h, w), weight=frozen_array(weight[:, :, None, None]),
            bias=frozen_array(bias), sources=call.sources, parameter=parameter,
        )
    )  # fmt: skip
    order = np.arange(out * h * w, dtype=np.int64).reshape(out, h, w).transpose(1, 2, 0).reshape(dims)
    return viewed(call, made, order)


def batch_norm(call: Call) -> Operand:
    """aten.batch_norm and aten._native_batch_norm_legit_no_training: scale = weight / sqrt(var + eps), offset = bias - mean * scale."""
    training = bool(call.any("training"))
    if training or not call.has("running_mean") or not call.has("running_var"):
        found = "training mode" if training else "no running statistics"
        raise call.refuse(
            found, wanted="inference with running statistics", do="call model.eval() before torch.export.export; track_running_stats=True"
        )
    value = call.value("input")
    c = value.dims[0]
    mean, variance = call.weight("running_mean", (c,)), call.weight("running_var", (c,))
    scale = call.weight("weight", (c,)) if call.has("weight") else np.ones(c)
    with np.errstate(invalid="ignore", divide="ignore"):
        scale = scale / np.sqrt(variance + call.number("eps", 0.0))
    offset = (call.weight("bias", (c,)) if call.has("bias") else np.zeros(c)) - mean * scale
    ones = (1,) * (len(value.dims) - 1)
    value, (scales, offsets) = channel_values(call, value, scale.reshape(c, *ones), offset.reshape(c, *ones))
    return call.affine(value, scales, offsets)


def batch_norm_results(call: Call) -> Operand:
    """The operators that return the result and two unused statistics."""
    made = batch_norm(call)
    return (made, None, None)


def batch_norm_training(call: Call) -> Operand:
    """Batch norm that learns its statistics: always refused."""
    raise call.refuse("training mode", wanted="inference", do="call model.eval() before torch.export.export")
