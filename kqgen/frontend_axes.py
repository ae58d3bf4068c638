"""Views while a program is read: reshapes, permutations and slices move no number until an operator needs its operand in a certain form.

A value then knows, for each of its places, which number of its node's tensor stands there. What such an order amounts to is found by
looking at it: a part of the map, channels in another order, a map enlarged, maps put between each other; or it is refused.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from kqgen.frontend_call import Call, Order, Value
from kqgen.ir import Concat, Flatten, Interleave, Pair, Shape, Shuffle, SlicePad, Upsample

_MOST_PARTS = 64
_LARGEST_FACTOR = 16
_MOST_PIECES = 8


def order_of(call: Call, value: Value) -> Order:
    """The order of `value`, (dims)."""
    if value.order is not None:
        return value.order
    return np.arange(math.prod(call.builder.shape(value.tensor)), dtype=np.int64).reshape(value.dims)


def viewed(call: Call, value: Value, order: Order) -> Value:
    """The same tensor in another order."""
    total = math.prod(call.builder.shape(value.tensor))
    natural = order.size == total and bool(np.array_equal(order.ravel(), np.arange(total)))
    return Value(value.tensor, tuple(order.shape), None if natural else order)


def covers(call: Call, value: Value) -> bool:
    """Whether each number of the node's tensor stands at exactly one place of `value`."""
    if value.order is None:
        return True
    total = math.prod(call.builder.shape(value.tensor))
    return value.order.size == total and bool((np.bincount(value.order.ravel(), minlength=total) == 1).all())


def map_shape(dims: Sequence[int]) -> Shape | None:
    """The map that axes are without the batch axis: (n), (c, length) or (c, h, w)."""
    match tuple(dims):
        case (n,):
            return (n, 1, 1)
        case (c, length):
            return (c, 1, length)
        case (c, h, w):
            return (c, h, w)
    return None


def as_map(call: Call, value: Value) -> Value:
    """`value` as a node's tensor in PyTorch's order, made by nodes that move numbers where a view has to be."""
    shape = map_shape(value.dims)
    if shape is None:
        raise call.refuse(f"axes {value.dims} without the batch", wanted="a map (N, C, H, W), a sequence (N, C, L) or a vector (N, n)")
    order = order_of(call, value).reshape(shape)
    made = materialise(call, value.tensor, order)
    if made is None:
        raise call.refuse(
            f"a view that moves numbers of {call.builder.shape(value.tensor)} between channels, rows and columns",
            wanted="a map (N, C, H, W) or sequence (N, C, L) whose channels stay channels",
            do="leave out the permute or reshape before it: the generated C has channels last anyway, and takes and gives channels first",
        )
    return Value(made, value.dims)


def whole(call: Call, value: Value) -> Value:
    """`value` in an order that holds each number of its tensor once, so that an operation on the tensor is one on the value."""
    return value if covers(call, value) else as_map(call, value)


def settled(call: Call, value: Value) -> Value:
    """`value` made by a node at once where that can be told already, so that the node is named after this operator."""
    shape = map_shape(value.dims)
    if value.order is None or shape is None or covers(call, value):
        return value
    made = materialise(call, value.tensor, value.order.reshape(shape))
    return value if made is None else Value(made, value.dims)


def as_vector(call: Call, value: Value) -> Value:
    """The numbers of a vector (n) as a tensor (n, 1, 1)."""
    c, h, w = call.builder.shape(value.tensor)
    size = math.prod(value.dims)
    if value.order is not None or (h, w) == (1, 1) or call.builder.reshape_input(value.tensor, (size, 1, 1)):
        return as_map(call, Value(value.tensor, (size,), None if value.order is None else value.order.reshape(size)))
    flat = (value.tensor,)
    return call.emit(
        lambda name: Flatten(name=name, path=call.path, inputs=flat, shape=(c * h * w, 1, 1)), role="flatten", dims=(c * h * w,)
    )


def materialise(call: Call, tensor: str, order: Order) -> str | None:
    """The tensor (c, h, w) with number order[c, y, x] of `tensor` at each place; None where nodes cannot make it."""
    c, h, w = call.builder.shape(tensor)
    shape: Shape = (order.shape[0], order.shape[1], order.shape[2])
    natural = order.size == c * h * w and np.array_equal(order.ravel(), np.arange(order.size))
    if natural and (shape == (c, h, w) or call.builder.reshape_input(tensor, shape)):
        return tensor
    rows = 1 if shape[1] > 1 and bool((order == order[:, :1]).all()) else shape[1]
    columns = 1 if shape[2] > 1 and bool((order == order[:, :, :1]).all()) else shape[2]
    if (rows, columns) != shape[1:]:
        small = materialise(call, tensor, order[:, :rows, :columns])
        return None if small is None else _enlarge(call, small, (shape[1] // rows, shape[2] // columns), shape)
    part = _part(order, (c, h, w))
    if part is not None:
        return _take(call, tensor, part)
    return _gathered(call, tensor, order) or _stacked(call, tensor, order) or _interleaved(call, tensor, order)


@dataclass(frozen=True, slots=True)
class _Part:
    """Some channels, rows and columns of a map.

    Attributes:
        channels: which, in order.
        start, step, count: (rows, columns).
    """

    channels: tuple[int, ...]
    start: Pair
    step: Pair
    count: Pair


def _part(order: Order, shape: Shape) -> _Part | None:
    _, h, w = shape
    channels, rows, columns = order // (h * w), order // w % h, order % w
    apart = (channels == channels[:, :1, :1]).all() and (rows == rows[:1, :, :1]).all() and (columns == columns[:1, :1]).all()
    down, across = _steps(rows[0, :, 0]), _steps(columns[0, 0])
    if not apart or down is None or across is None:
        return None
    return _Part(
        tuple(int(each) for each in channels[:, 0, 0]), (down[0], across[0]), (down[1], across[1]), (order.shape[1], order.shape[2])
    )


def _steps(places: Order) -> tuple[int, int] | None:
    """(start, step) of places evenly apart and rising."""
    gaps = np.diff(places)
    if not gaps.size:
        return int(places[0]), 1
    return (int(places[0]), int(gaps[0])) if gaps[0] > 0 and bool((gaps == gaps[0]).all()) else None


def _take(call: Call, tensor: str, part: _Part) -> str:
    c, h, w = call.builder.shape(tensor)
    first, last = min(part.channels), max(part.channels)
    in_row = part.channels == tuple(range(first, last + 1))
    before, after = (-first, last + 1 - c) if in_row else (0, 0)
    if (part.start, part.step, part.count, before, after) != ((0, 0), (1, 1), (h, w), 0, 0):
        source = (tensor,)
        kept = c + before + after
        tensor = call.emit(
            lambda name: SlicePad(
                name=name, path=call.path, inputs=source, shape=(kept, *part.count),
                start=part.start, step=part.step, c_before=before, c_after=after,
            ),
            role="slice",
        ).tensor  # fmt: skip
    return tensor if in_row else shuffle(call, tensor, part.channels)


def shuffle(call: Call, tensor: str, channels: tuple[int, ...]) -> str:
    """The tensor with channel channels[i] of `tensor` as its channel i."""
    _, h, w = call.builder.shape(tensor)
    return call.emit(
        lambda name: Shuffle(name=name, path=call.path, inputs=(tensor,), shape=(len(channels), h, w), order=channels), role="shuffle"
    ).tensor


def _enlarge(call: Call, tensor: str, factor: Pair, shape: Shape) -> str:
    return call.emit(
        lambda name: Upsample(name=name, path=call.path, inputs=(tensor,), shape=shape, factor=factor), role="expand"
    ).tensor


def _gathered(call: Call, tensor: str, order: Order) -> str | None:
    """Channels that lie at several places of the map: one part a place, put one behind the other, then in order."""
    shape = call.builder.shape(tensor)
    places = [int(each) % (shape[1] * shape[2]) for each in order[:, 0, 0]]
    members = {place: [number for number, each in enumerate(places) if each == place] for place in dict.fromkeys(places)}
    parts = [_part(order[numbers], shape) for numbers in members.values()] if 1 < len(members) <= _MOST_PARTS else [None]
    found = [part for part in parts if part is not None]
    if len(found) < len(parts):
        return None
    made = tuple(_take(call, tensor, part) for part in found)
    joined = call.emit(
        lambda name: Concat(name=name, path=call.path, inputs=made, shape=(order.shape[0], order.shape[1], order.shape[2])), role="join"
    ).tensor
    at = [number for numbers in members.values() for number in numbers]
    back = tuple(int(each) for each in np.argsort(at))
    return joined if back == tuple(range(len(back))) else shuffle(call, joined, back)


def _stacked(call: Call, tensor: str, order: Order) -> str | None:
    """Rows or columns in few runs, each evenly apart: one part a run, put one behind the other."""
    shape = call.builder.shape(tensor)
    for axis in (1, 2):
        places = order[0, :, 0] if axis == 1 else order[0, 0]
        cuts, start = [0], 0
        for at in range(1, len(places)):
            gap = int(places[at] - places[at - 1])
            if gap <= 0 or (at > start + 1 and gap != places[start + 1] - places[start]):
                start = at
                cuts.append(at)
        pieces = np.split(order, cuts[1:], axis) if 1 < len(cuts) <= _MOST_PIECES else []
        found = [part for part in (_part(piece, shape) for piece in pieces) if part is not None]
        if not pieces or len(found) < len(pieces):
            continue
        made = tuple(_take(call, tensor, part) for part in found)
        return call.emit(
            lambda name, made=made, axis=axis: Concat(  # type: ignore[misc]
                name=name, path=call.path, inputs=made, shape=(order.shape[0], order.shape[1], order.shape[2]), axis=axis
            ),
            role="join",
        ).tensor
    return None


def _interleaved(call: Call, tensor: str, order: Order) -> str | None:
    """Parts of the map put between each other."""
    shape = call.builder.shape(tensor)
    for rows in range(1, min(_LARGEST_FACTOR, order.shape[1]) + 1):
        for columns in range(1, min(_LARGEST_FACTOR, order.shape[2]) + 1):
            if order.shape[1] % rows or order.shape[2] % columns or rows * columns == 1:
                continue
            parts = [_part(order[:, i::rows, j::columns], shape) for i in range(rows) for j in range(columns)]
            found = [part for part in parts if part is not None]
            if len(found) == len(parts):
                return interleave(call, tuple(_take(call, tensor, part) for part in found), (rows, columns))
    return None


def interleave(call: Call, tensors: tuple[str, ...], factor: Pair) -> str:
    """Tensors of one shape put between each other, see `ir.Interleave`."""
    c, h, w = call.builder.shape(tensors[0])
    return call.emit(
        lambda name: Interleave(
            name=name, path=call.path, inputs=tensors, shape=(c, h * factor[0], w * factor[1]), factor=factor
        ),
        role="interleave",
    ).tensor


def same_form(call: Call, left: Value, right: Value) -> bool:
    """Whether numbers at the same place of two values stand at the same place of their tensors."""
    if left.dims != right.dims or call.builder.shape(left.tensor) != call.builder.shape(right.tensor):
        return False
    if left.order is None or right.order is None:
        return left.order is None and right.order is None
    return bool(np.array_equal(left.order, right.order))


def channels_last(call: Call, value: Value) -> bool:
    """Whether the numbers of `value` lie as they do in the C's memory, channels fastest, though its tensor has several positions."""
    c, h, w = call.builder.shape(value.tensor)
    if value.order is None or h * w == 1:
        return False
    return bool(np.array_equal(value.order.ravel(), np.arange(c * h * w).reshape(c, h, w).transpose(1, 2, 0).ravel()))
