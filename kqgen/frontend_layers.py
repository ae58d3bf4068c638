"""Operators with weights or constants, sums and activations: from an exported program's call to nodes of the float graph."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from kqgen.frontend_call import Call, Constant, Operand, Value
from kqgen.ir import Add, Clamp, Conv2d, Linear, Padding, frozen_array

_Float64 = npt.NDArray[np.float64]
_ONE = np.ones(1)
_ZERO = np.zeros(1)


def conv2d(call: Call) -> Operand:
    """aten.conv2d, aten.convolution: any kernel, stride and zero padding; dilation 1, groups 1."""
    value = call.value("input")
    weight = call.weight("weight")
    if weight.ndim != 4:
        raise call.refuse(f"weight {weight.shape}", wanted="a 2-D convolution", do="write it as nn.Conv2d with a kernel side of 1")
    if call.any("transposed"):
        raise call.refuse("transposed", wanted="nn.Conv2d", do="upsample outside the network or avoid upsampling")
    groups = int(call.number("groups", 1))
    if groups != 1:
        kind = "depthwise" if weight.shape[1] == 1 else "grouped"
        raise call.refuse(
            f"weight {weight.shape}, groups {groups} ({kind})", wanted="groups 1", do="use nn.Conv2d with groups=1 and fine-tune"
        )
    if set(call.ints("dilation", 2)) - {1}:
        raise call.refuse(
            f"dilation {call.ints('dilation', 2)}", wanted="dilation 1", do="use a larger kernel or stride instead and fine-tune"
        )
    c, h, w = call.as_map(value)
    k_h, k_w = weight.shape[2:]
    if weight.shape[1] != c:
        raise call.refuse(f"weight {weight.shape}", wanted=f"{c} input channels")
    padding = _conv_padding(call, k_h, k_w)
    stride = call.pair("stride")
    out = (
        int(weight.shape[0]),
        (h + padding[0] + padding[1] - k_h) // stride[0] + 1,
        (w + padding[2] + padding[3] - k_w) // stride[1] + 1,
    )
    bias = call.weight("bias", (weight.shape[0],)) if call.has("bias") else np.zeros(weight.shape[0])
    return call.emit(
        lambda name: Conv2d(
            name=name,
            path=call.path,
            inputs=(value.tensor,),
            shape=out,
            weight=frozen_array(weight),
            bias=frozen_array(bias),
            stride=stride,
            padding=padding,
            sources=(call.path,) if call.path else (),
            parameter=call.parameter("weight"),
        )
    )


def _conv_padding(call: Call, k_h: int, k_w: int) -> Padding:
    given = call.any("padding")
    if given == "valid":
        return (0, 0, 0, 0)
    if given == "same":
        rows, columns = k_h - 1, k_w - 1
        return (rows // 2, rows - rows // 2, columns // 2, columns - columns // 2)
    rows, columns = call.pair("padding")
    return (rows, rows, columns, columns)


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
    if len(value.dims) != 1:
        raise call.refuse(f"applied to the last axis of {value.dims}", wanted="a vector (N, n)", do="torch.flatten(x, 1) before it")
    flat = call.as_vector(value)
    out, features = weight.shape
    if flat.dims != (features,):
        raise call.refuse(f"weight {weight.shape}", wanted=f"{flat.dims[0]} input features")
    bias = np.broadcast_to(call.weight(bias_name), (out,)) if bias_name and call.has(bias_name) else np.zeros(out)
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


def batch_norm(call: Call) -> Operand:
    """aten.batch_norm and aten._native_batch_norm_legit_no_training: scale = weight / sqrt(var + eps), offset = bias - mean * scale."""
    training = bool(call.any("training"))
    if training or not call.has("running_mean") or not call.has("running_var"):
        found = "training mode" if training else "no running statistics"
        raise call.refuse(
            found, wanted="inference with running statistics", do="call model.eval() before torch.export.export; track_running_stats=True"
        )
    value = call.value("input")
    value = call.as_vector(value) if len(value.dims) == 1 else value
    if len(value.dims) == 3:
        call.as_map(value)
    elif len(value.dims) != 1:
        raise call.refuse(wanted="a map (N, c, h, w) or a vector (N, n)")
    c = value.dims[0]
    mean, variance = call.weight("running_mean", (c,)), call.weight("running_var", (c,))
    scale = call.weight("weight", (c,)) if call.has("weight") else np.ones(c)
    with np.errstate(invalid="ignore", divide="ignore"):
        scale = scale / np.sqrt(variance + call.number("eps", 0.0))
    offset = (call.weight("bias", (c,)) if call.has("bias") else np.zeros(c)) - mean * scale
    return call.affine(value, scale, offset)


def batch_norm_results(call: Call) -> Operand:
    """The operators that return the result and two unused statistics."""
    made = batch_norm(call)
    return (made, None, None)


def batch_norm_training(call: Call) -> Operand:
    """Batch norm that learns its statistics: always refused."""
    raise call.refuse("training mode", wanted="inference", do="call model.eval() before torch.export.export")


def add(call: Call) -> Operand:
    """Sum of two tensors, or of a tensor and a constant per channel."""
    return _sum(call, 1.0)


def subtract(call: Call) -> Operand:
    """A tensor minus a constant per channel, or the constant minus the tensor."""
    return _sum(call, -1.0)


def reversed_subtract(call: Call) -> Operand:
    """aten.rsub: other - self."""
    alpha = call.number("alpha", 1)
    value, other = _with_constant(call, call.any("self"), call.any("other"))
    return call.affine(value, -alpha * _ONE, other)


def _sum(call: Call, sign: float) -> Value:
    left, right = call.any("self"), call.any("other")
    factor = sign * call.number("alpha", 1)
    if isinstance(left, Value) and isinstance(right, Value):
        if factor != 1:
            raise call.refuse("a difference or weighted sum of two tensors", wanted="their plain sum", do="fold the factor into a layer")
        return _add_two(call, left, right)
    if isinstance(left, Value):
        value, constant = _with_constant(call, left, right)
        return call.affine(value, _ONE, factor * constant)
    value, constant = _with_constant(call, right, left)
    return call.affine(value, factor * _ONE, constant)


def _add_two(call: Call, left: Value, right: Value) -> Value:
    if left.dims != right.dims:
        raise call.refuse("shapes that differ", wanted="two tensors of one shape", do="make the shapes equal by a 1x1 convolution")
    if call.builder.shape(left.tensor) != call.builder.shape(right.tensor):
        left, right = call.as_vector(left), call.as_vector(right)
    shape = call.builder.shape(left.tensor)
    return call.emit(
        lambda name: Add(
            name=name,
            path=call.path,
            inputs=(left.tensor, right.tensor),
            shape=shape,
            sources=(call.path,) if call.path else (),
        ),
        dims=left.dims,
    )


def multiply(call: Call) -> Operand:
    """A tensor times a constant per channel."""
    left, right = call.any("self"), call.any("other")
    if isinstance(left, Value) and isinstance(right, Value):
        raise call.refuse(
            "a product of two tensors",
            wanted="a product with a constant",
            do="leave out attention and gating (squeeze-and-excite) and fine-tune",
        )
    value, factor = _with_constant(call, left, right) if isinstance(left, Value) else _with_constant(call, right, left)
    return call.affine(value, factor, _ZERO)


def divide(call: Call) -> Operand:
    """A tensor divided by a constant per channel."""
    if call.any("rounding_mode") is not None:
        raise call.refuse(f"rounding_mode {call.any('rounding_mode')!r}", wanted="a true division")
    value, divisor = _with_constant(call, call.any("self"), call.any("other"))
    if bool((divisor == 0).any()):
        raise call.refuse("a division by zero", wanted="a constant other than 0")
    return call.affine(value, 1.0 / divisor, _ZERO)


def negate(call: Call) -> Operand:
    """aten.neg."""
    return call.affine(call.value("self"), -_ONE, _ZERO)


def _with_constant(call: Call, operand: Operand, constant: Operand) -> tuple[Value, _Float64]:
    """The tensor and the constant as (c,) or (1,) float64."""
    if not isinstance(operand, Value):
        raise call.refuse("a constant on the left", wanted="the computed tensor on the left")
    if isinstance(constant, (int, float)):
        return operand, np.full(1, float(constant))
    if not isinstance(constant, Constant):
        raise call.refuse(wanted="arithmetic with a constant: a number, or one number per channel")
    array = call.weight("other" if constant is call.any("other") else "self")
    if array.size == 1:
        return operand, array.reshape(1)
    vector = len(operand.dims) == 1
    operand = call.as_vector(operand) if vector else operand
    if not vector:
        call.as_map(operand)
    c = operand.dims[0]
    shape = array.shape[1:] if array.ndim == len(operand.dims) + 1 and array.shape[0] == 1 else array.shape
    if shape != (c, *(1 for _ in operand.dims[1:])):
        form = f"({c},)" if vector else f"({c}, 1, 1)"
        raise call.refuse(f"a constant {array.shape}", wanted=f"a number or one number per channel: {form}")
    return operand, array.reshape(c)


def relu(call: Call) -> Operand:
    """aten.relu."""
    return _clamp(call, 0.0, math.inf)


def relu6(call: Call) -> Operand:
    """aten.relu6."""
    return _clamp(call, 0.0, 6.0)


def hardtanh(call: Call) -> Operand:
    """aten.hardtanh, which nn.ReLU6 is too."""
    return _clamp(call, call.number("min_val", -1.0), call.number("max_val", 1.0))


def clamp(call: Call) -> Operand:
    """aten.clamp, clamp_min, clamp_max with numbers."""
    return _clamp(call, call.number("min", -math.inf), call.number("max", math.inf))


def _clamp(call: Call, lo: float, hi: float) -> Value:
    if math.isnan(lo) or math.isnan(hi) or lo > hi:
        raise call.refuse(f"bounds {lo} and {hi}", wanted="a lower bound that is not above the upper one")
    value = call.value("self")
    shape = call.builder.shape(value.tensor)
    return call.emit(
        lambda name: Clamp(name=name, path=call.path, inputs=(value.tensor,), shape=shape, lo=lo, hi=hi), dims=value.dims
    )
