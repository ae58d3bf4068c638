"""Sums, differences and products, of two tensors or with constants, and clamps."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from kqgen.frontend_axes import as_vector, covers, materialise, order_of, same_form, whole
from kqgen.frontend_call import Call, Constant, Operand, Value
from kqgen.ir import Add, Clamp, Mul, Unary

_Float64 = npt.NDArray[np.float64]
_ONE = np.ones(1)
_ZERO = np.zeros(1)


def add(call: Call) -> Operand:
    """Sum of two tensors, or of a tensor and a constant per channel."""
    return _sum(call, call.any("self"), call.any("other"), call.number("alpha", 1))


def subtract(call: Call) -> Operand:
    """Difference of two tensors, or of a tensor and a constant per channel, either way."""
    return _sum(call, call.any("self"), call.any("other"), -call.number("alpha", 1))


def reversed_subtract(call: Call) -> Operand:
    """aten.rsub: other - self."""
    return _sum(call, call.any("other"), call.any("self"), -call.number("alpha", 1))


def _sum(call: Call, left: Operand, right: Operand, factor: float) -> Value:
    """left + factor * right."""
    if isinstance(left, Value) and isinstance(right, Value):
        if abs(factor) != 1:
            right, factor = call.affine(whole(call, right), abs(factor) * _ONE, _ZERO, role="scale"), math.copysign(1, factor)
        return _add_two(call, left, right, minus=factor < 0)
    if isinstance(left, Value):
        value, constant = _with_constant(call, left, right)
        return call.affine(value, _ONE, factor * constant)
    value, constant = _with_constant(call, right, left)
    return call.affine(value, factor * _ONE, constant)


def _add_two(call: Call, left: Value, right: Value, *, minus: bool) -> Value:
    big, other, swapped = paired(call, left, right, channels_only=False)
    inputs = (other, big.tensor) if swapped else (big.tensor, other)
    shape = call.builder.shape(big.tensor)
    return call.emit(
        lambda name: Add(name=name, path=call.path, inputs=inputs, shape=shape, sources=call.sources, minus=minus),
        dims=big.dims,
        order=big.order,
    )


def multiply(call: Call) -> Operand:
    """Product of two tensors, the second perhaps one number a channel, or of a tensor and a constant per channel."""
    left, right = call.any("self"), call.any("other")
    if not (isinstance(left, Value) and isinstance(right, Value)):
        value, factor = _with_constant(call, left, right) if isinstance(left, Value) else _with_constant(call, right, left)
        return call.affine(value, factor, _ZERO)
    if left.tensor == right.tensor and same_form(call, left, right):
        return _square(call, left)
    big, other, _ = paired(call, left, right, channels_only=True)
    shape = call.builder.shape(big.tensor)
    return call.emit(
        lambda name: Mul(name=name, path=call.path, inputs=(big.tensor, other), shape=shape, sources=call.sources),
        dims=big.dims,
        order=big.order,
    )


def _square(call: Call, value: Value) -> Value:
    value = whole(call, value)
    shape = call.builder.shape(value.tensor)
    return call.emit(
        lambda name: Unary(name=name, path=call.path, inputs=(value.tensor,), shape=shape, kind="square", sources=call.sources),
        dims=value.dims,
        order=value.order,
    )


def power(call: Call) -> Operand:
    """aten.pow by 1 or 2."""
    exponent = call.number("exponent", 1)
    if exponent not in (1, 2):
        raise call.refuse(f"exponent {exponent:g}", wanted="exponent 2", do="rewrite it with x * x and fine-tune")
    return _square(call, call.value("self")) if exponent == 2 else call.value("self")


def paired(call: Call, left: Value, right: Value, *, channels_only: bool) -> tuple[Value, str, bool]:
    """Two operands of one shape, or that repeat along some axes, as a value and the tensor that goes with the value's tensor.

    Args:
        channels_only: a tensor with one number a channel, (c, 1, 1), goes with a map as it is; else it is enlarged.

    Returns:
        The value, the other tensor, and whether the value is the right operand.
    """
    if same_form(call, left, right) and covers(call, left):
        return left, right.tensor, False
    if len(left.dims) != len(right.dims):
        raise _shapes_differ(call)
    try:
        dims = np.broadcast_shapes(left.dims, right.dims)
    except ValueError:
        raise _shapes_differ(call) from None
    swapped = left.dims != dims and right.dims == dims
    big, small = (right, left) if swapped else (left, right)
    if big.dims != dims:
        big = Value(big.tensor, dims, np.broadcast_to(order_of(call, big), dims))
    big = whole(call, big)
    shape = call.builder.shape(big.tensor)
    placed = np.empty(math.prod(shape), dtype=np.int64)
    placed[order_of(call, big).ravel()] = np.broadcast_to(order_of(call, small), dims).ravel()
    wanted = placed.reshape(shape)
    if channels_only and bool((wanted == wanted[:, :1, :1]).all()):
        wanted = wanted[:, :1, :1]
    other = materialise(call, small.tensor, wanted)
    if other is None:
        raise _shapes_differ(call)
    return big, other, swapped


def _shapes_differ(call: Call) -> Exception:
    return call.refuse(
        "shapes that differ",
        wanted="two tensors of one shape, or one that repeats along whole axes",
        do="make the shapes equal by a 1x1 convolution",
    )


def divide(call: Call) -> Operand:
    """A tensor divided by a constant per channel."""
    if call.any("rounding_mode") is not None:
        raise call.refuse(f"rounding_mode {call.any('rounding_mode')!r}", wanted="a true division")
    if isinstance(call.any("other"), Value):
        raise call.refuse("a division by a computed tensor", wanted="a constant", do="normalise by nn.BatchNorm2d and fine-tune")
    value, divisor = _with_constant(call, call.any("self"), call.any("other"))
    if bool((divisor == 0).any()):
        raise call.refuse("a division by zero", wanted="a constant other than 0")
    return call.affine(value, 1.0 / divisor, _ZERO)


def negate(call: Call) -> Operand:
    """aten.neg."""
    return call.affine(whole(call, call.value("self")), -_ONE, _ZERO)


def _with_constant(call: Call, operand: Operand, constant: Operand) -> tuple[Value, _Float64]:
    """The tensor and the constant as (c,) or (1,) float64."""
    if not isinstance(operand, Value):
        raise call.refuse("a constant on the left", wanted="the computed tensor on the left")
    if isinstance(constant, (int, float)):
        return whole(call, operand), np.full(1, float(constant))
    if not isinstance(constant, Constant):
        raise call.refuse(wanted="arithmetic with a constant: a number, or one number per channel")
    array = call.weight("other" if constant is call.any("other") else "self")
    if array.size == 1:
        return whole(call, operand), array.reshape(1)
    value, (values,) = channel_values(call, operand, array)
    return value, values


def channel_values(call: Call, value: Value, *arrays: _Float64) -> tuple[Value, Sequence[_Float64]]:
    """The value, and constants that go with its axes as one number a channel of its tensor: each (c,).

    Args:
        arrays: broadcast to (dims), or to (1, *dims).

    Raises:
        UnsupportedError: a constant is larger than the value, or differs between positions of a channel.
    """
    value = whole(call, value)
    given = [array[0] if array.ndim == len(value.dims) + 1 and array.shape[0] == 1 else array for array in arrays]
    first = (value.dims[0], *(1 for _ in value.dims[1:]))
    if value.order is None and call.builder.shape(value.tensor)[0] == value.dims[0] and all(array.shape == first for array in given):
        return value, [array.reshape(-1) for array in given]
    try:
        spread = [np.broadcast_to(array, value.dims) for array in given]
    except ValueError:
        raise _no_channels(call, arrays[0], value) from None
    for trial in (value, as_vector(call, value) if len(value.dims) == 1 else value):
        shape = call.builder.shape(trial.tensor)
        order = order_of(call, trial).ravel()
        placed = [np.empty(order.size) for _ in spread]
        for row, array in zip(placed, spread, strict=True):
            row[order] = array.ravel()
        maps = [row.reshape(shape[0], -1) for row in placed]
        if all(np.array_equal(each, np.broadcast_to(each[:, :1], each.shape), equal_nan=True) for each in maps):
            return trial, [each[:, 0] for each in maps]
    raise _no_channels(call, arrays[0], value)


def _no_channels(call: Call, array: _Float64, value: Value) -> Exception:
    form = "(" + ", ".join([str(value.dims[0]), *("1" for _ in value.dims[1:])]) + ("," if len(value.dims) == 1 else "") + ")"
    return call.refuse(f"a constant {array.shape}", wanted=f"a number or one number per channel: {form}")


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
    value = whole(call, call.value("self"))
    shape = call.builder.shape(value.tensor)
    return call.emit(
        lambda name: Clamp(name=name, path=call.path, inputs=(value.tensor,), shape=shape, lo=lo, hi=hi),
        dims=value.dims,
        order=value.order,
    )
