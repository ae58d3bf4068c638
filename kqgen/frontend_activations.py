"""Functions of each value alone, softmax and argmax, and quantisations that the model itself gives."""

from __future__ import annotations

import math
from collections.abc import Callable

from kqgen.frontend_arithmetic import channel_values
from kqgen.frontend_axes import as_map, as_vector, map_shape, viewed, whole
from kqgen.frontend_call import Call, Operand, Value
from kqgen.frontend_maps import axes_of, reduction
from kqgen.ir import ArgMax, Clamp, Float32, Pin, Softmax, Unary, frozen_array

Handler = Callable[[Call], Operand]
_LEVELS = 256


def _emit(call: Call, value: Value, kind: str, arguments: tuple[float, ...] = (), slope: Float32 | None = None) -> Value:
    shape = call.builder.shape(value.tensor)
    return call.emit(
        lambda name: Unary(
            name=name, path=call.path, inputs=(value.tensor,), shape=shape, kind=kind, arguments=arguments, slope=slope,
            sources=call.sources,
        ),
        dims=value.dims,
        order=value.order,
    )  # fmt: skip


def function(kind: str, **defaults: float) -> Handler:
    """The handler of a function of one value; `defaults` are its numbers by the names of its schema, in order."""

    def handle(call: Call) -> Operand:
        value = whole(call, call.value("self"))
        return _emit(call, value, kind, tuple(call.number(name, default) for name, default in defaults.items()))

    return handle


def gelu(call: Call) -> Operand:
    """aten.gelu, exact or by tanh."""
    return _emit(call, whole(call, call.value("self")), "gelu_tanh" if call.any("approximate") == "tanh" else "gelu")


def celu(call: Call) -> Operand:
    """aten.celu: an ELU whose exponent is divided by alpha."""
    alpha = call.number("alpha", 1.0)
    return _emit(call, whole(call, call.value("self")), "elu", (alpha, 1.0, 1.0 / alpha))


def selu(call: Call) -> Operand:
    """aten.selu: an ELU with fixed numbers."""
    return _emit(call, whole(call, call.value("self")), "elu", (1.6732632423543772, 1.0507009873554805, 1.0))


def prelu(call: Call) -> Operand:
    """aten.prelu: one slope, or one a channel."""
    value, slope = call.value("self"), call.weight("weight").ravel()
    if slope.size == 1:
        return _emit(call, whole(call, value), "leaky_relu", (float(slope[0]),))
    if slope.size != value.dims[0]:
        raise call.refuse(f"{slope.size} slopes", wanted="one slope, or one per channel")
    value, (slopes,) = channel_values(call, value, slope.reshape(-1, *(1 for _ in value.dims[1:])))
    return _emit(call, value, "prelu", (), frozen_array(slopes))


def softmax(call: Call) -> Operand:
    """aten.softmax over channels."""
    value = whole(call, call.value("self"))
    if len(value.dims) == 1:
        value = as_vector(call, value)
    axis = int(call.number("dim", -1)) % (len(value.dims) + 1)
    if axis and map_shape(value.dims) is not None and axes_of(call, value, {axis}) is None:
        value = as_map(call, value)
    if axis == 0 or axes_of(call, value, {axis}) not in ((True, False, False), (False, False, False)):
        raise call.refuse(f"over axis {axis} of {('N', *value.dims)}", wanted="softmax over the channels of a map or vector")
    shape = call.builder.shape(value.tensor)
    return call.emit(
        lambda name: Softmax(name=name, path=call.path, inputs=(value.tensor,), shape=shape), dims=value.dims, order=value.order
    )


def argmax(call: Call) -> Operand:
    """aten.argmax over channels."""
    if not call.has("dim"):
        raise call.refuse("over all numbers", wanted="argmax over the channels", do="pass dim=1")
    found = reduction(call)
    c, h, w = call.builder.shape(found.tensor)
    if found.axes != (True, False, False) or c > _LEVELS:
        raise call.refuse(f"over other axes than channels, or {c} of these", wanted=f"argmax over at most {_LEVELS} channels")
    made = call.emit(lambda name: ArgMax(name=name, path=call.path, inputs=(found.tensor,), shape=(1, h, w)))
    return viewed(call, made, found.order)


def pin(call: Call) -> Operand:
    """aten.fake_quantize_per_tensor_affine: the quantisation that the model gives to a tensor."""
    value = whole(call, call.value("self"))
    scale, zero_point = call.number("scale", 1.0), int(call.number("zero_point", 0))
    lowest, highest = int(call.number("quant_min", -128)), int(call.number("quant_max", 127))
    if not (scale > 0 and math.isfinite(scale) and 0 < highest - lowest < _LEVELS and lowest <= zero_point <= highest):
        raise call.refuse(
            f"scale {scale:g}, zero point {zero_point} of {lowest}..{highest}", wanted="a scale above 0 and at most 256 levels around 0",
            do="quantise to 8 bits",
        )  # fmt: skip
    shift = 0 if lowest >= -128 and highest <= 127 else -128 - lowest
    shape = call.builder.shape(value.tensor)
    if highest - lowest < _LEVELS - 1:
        lo, hi = (lowest - zero_point) * scale, (highest - zero_point) * scale
        inside = value.tensor
        value = call.emit(
            lambda name: Clamp(name=name, path=call.path, inputs=(inside,), shape=shape, lo=lo, hi=hi),
            role="limit", dims=value.dims, order=value.order,
        )  # fmt: skip
    tensor = value.tensor
    return call.emit(
        lambda name: Pin(name=name, path=call.path, inputs=(tensor,), shape=shape, scale=scale, zero_point=zero_point + shift),
        dims=value.dims,
        order=value.order,
    )


def pin_results(call: Call) -> Operand:
    """The operators that return the result and an unused mask."""
    return (pin(call), None)
