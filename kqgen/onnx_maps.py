"""ONNX operators that move or join numbers: from a node to a module."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from kqgen import onnx_modules as modules
from kqgen.onnx_layers import around, axis_of, spatial_rank
from kqgen.onnx_site import Constant, Site, Tensor, Value
from kqgen.onnx_tensor import LARGEST_VALUES


def _reshaped(site: Site, sizes: Sequence[int]) -> Value:
    """The same numbers as `sizes`, whose first axis must be the batch."""
    x = site.tensor()
    if math.prod(sizes) != math.prod(x.shape) or min(sizes, default=1) < 1:
        raise site.wrong(f"{x.shape} as {tuple(sizes)}", "as many values")
    if not sizes or sizes[0] != x.shape[0]:
        raise site.refuse(
            f"to {tuple(sizes)}", wanted=f"the batch axis ({x.shape[0]}) first", do="keep the first axis: Flatten(axis=1) does"
        )
    if tuple(sizes) == x.shape:
        return x
    if len(sizes) == 2:
        return site.emit(nn.Flatten(1), x)
    return site.emit(modules.Function(modules.reshape, sizes=tuple(sizes[1:])), x)


def reshape(site: Site) -> Value:
    """Reshape to constant sizes; 0 copies, -1 is worked out."""
    x, wanted = site.tensor(), list(site.ints(1))
    if wanted.count(-1) > 1 or any(each < -1 for each in wanted):
        raise site.wrong(f"shape {wanted}", "sizes, and at most one -1")
    if not site.attribute("allowzero", 0):
        if any(each == 0 and axis >= len(x.shape) for axis, each in enumerate(wanted)):
            raise site.wrong(f"shape {wanted} of {x.shape}", "a 0 only where the input has an axis")
        wanted = [x.shape[axis] if each == 0 else each for axis, each in enumerate(wanted)]
    if -1 in wanted:
        known = -math.prod(wanted)
        if known <= 0 or math.prod(x.shape) % known:
            raise site.wrong(f"shape {wanted} of {x.shape}", "sizes that divide the number of values")
        wanted[wanted.index(-1)] = math.prod(x.shape) // known
    return _reshaped(site, wanted)


def flatten(site: Site) -> Value:
    """Flatten from any axis on."""
    x = site.tensor()
    axis = site.attribute("axis", 1)
    axis = axis if axis == len(x.shape) else axis_of(site, axis, len(x.shape))
    return _reshaped(site, (math.prod(x.shape[:axis]), math.prod(x.shape[axis:])))


def squeeze(site: Site) -> Value:
    """Squeeze of axes of size 1."""
    x = site.tensor()
    given = site.ints(1) if site.has(1) else site.numbers("axes")
    axes = {axis_of(site, axis, len(x.shape)) for axis in given} or {axis for axis, size in enumerate(x.shape) if size == 1}
    if any(x.shape[axis] != 1 for axis in axes):
        raise site.wrong(f"axes {sorted(axes)} of {x.shape}", "axes of size 1")
    if 0 in axes:
        raise site.refuse("of the batch axis", wanted="axes behind the first", do="name the axes: torch.squeeze(x, (2, 3))")
    return _reshaped(site, [size for axis, size in enumerate(x.shape) if axis not in axes])


def unsqueeze(site: Site) -> Value:
    """Unsqueeze."""
    x = site.tensor()
    given = site.ints(1) if site.has(1) else site.numbers("axes")
    axes = {axis_of(site, axis, len(x.shape) + len(given)) for axis in given}
    sizes = iter(x.shape)
    return _reshaped(site, [1 if axis in axes else next(sizes) for axis in range(len(x.shape) + len(axes))])


def transpose(site: Site) -> Value:
    """Transpose; the batch axis stays first."""
    x = site.tensor()
    order = site.numbers("perm") or tuple(reversed(range(len(x.shape))))
    if sorted(order) != list(range(len(x.shape))):
        raise site.wrong(f"perm {order}", f"an order of {len(x.shape)} axes")
    if order == tuple(range(len(x.shape))):
        return x
    return site.emit(modules.Function(modules.permute, order=order), x)


def concat(site: Site) -> Value:
    """Concat of computed tensors."""
    parts = [site.tensor(index) for index in range(len(site.operands))]
    axis = axis_of(site, site.attribute("axis", 1), len(parts[0].shape))
    return parts[0] if len(parts) == 1 else site.emit(modules.Function(modules.concat, axis=axis), *parts)


def split(site: Site) -> tuple[Value, ...]:
    """Split into parts along one axis."""
    x, count = site.tensor(), len(site.node.outputs)
    axis = axis_of(site, site.attribute("axis", 0), len(x.shape))
    sizes = site.ints(1) if site.has(1) else site.numbers("split")
    if not sizes:
        largest = -(-x.shape[axis] // count)
        sizes = (*(largest,) * (count - 1), x.shape[axis] - largest * (count - 1))
    if len(sizes) != count or sum(sizes) != x.shape[axis] or min(sizes) < 1:
        raise site.wrong(f"parts {sizes} of {x.shape[axis]}", f"{count} parts of 1 and more")
    starts = np.cumsum((0, *sizes))
    return tuple(
        site.emit(modules.Function(modules.part, slices=[(axis, int(starts[i]), int(starts[i + 1]), 1)]), x, role=str(i))
        for i in range(count)
    )


def slices(site: Site) -> Value:
    """Slice by constants with positive steps."""
    x = site.tensor()
    axes: tuple[int, ...]
    steps: tuple[int, ...] = ()
    if site.opset < 10:
        starts, ends, axes = site.numbers("starts"), site.numbers("ends"), site.numbers("axes")
    else:
        starts, ends = site.ints(1), site.ints(2)
        axes, steps = site.ints(3) if site.has(3) else (), site.ints(4) if site.has(4) else ()
    axes, steps = axes or tuple(range(len(starts))), steps or (1,) * len(starts)
    if not len(starts) == len(ends) == len(axes) == len(steps):
        raise site.wrong(f"starts {starts}, ends {ends}, axes {axes}, steps {steps}", "as many of each")
    cuts = []
    for start, end, given, step in zip(starts, ends, axes, steps, strict=True):
        if step < 1:
            raise site.refuse(f"step {step}", wanted="steps of 1 and more")
        axis = axis_of(site, given, len(x.shape))
        low, high, _ = slice(start, end).indices(x.shape[axis])
        if (low, high, step) != (0, x.shape[axis], 1):
            cuts.append((axis, low, high, step))
    return site.emit(modules.Function(modules.part, slices=cuts), x) if cuts else x


def pad(site: Site) -> Value:
    """Pad by a constant."""
    x, rank = site.tensor(), len(site.tensor().shape)
    mode = site.attribute("mode", "constant")
    if mode != "constant":
        raise site.refuse(f"mode {mode}", wanted="mode constant", do="use zero padding and fine-tune")
    if site.opset < 11:
        counts, value = list(site.numbers("pads")), site.attribute("value", 0.0)
    else:
        counts, value = list(site.ints(1)), site.number(2, 0.0)
    axes = [axis_of(site, axis, rank) for axis in site.ints(3)] if site.has(3) else list(range(rank))
    if len(counts) != 2 * len(axes) or max((abs(each) for each in counts), default=0) > 1 << 20:
        raise site.wrong(f"pads {counts}", f"{2 * len(axes)} numbers")
    begin, end = [0] * rank, [0] * rank
    for position, axis in enumerate(axes):
        begin[axis], end[axis] = counts[position], counts[len(axes) + position]
    if begin[0] or end[0]:
        raise site.refuse("of the batch axis", wanted="axes behind the first")
    if not any(begin) and not any(end):
        return x
    return site.emit(modules.Function(F.pad, pad=around(begin[1:], end[1:]), value=value), x)


def resize(site: Site) -> Value:
    """Resize and Upsample: nearest, by whole factors."""
    x = site.tensor()
    rank = spatial_rank(site, x)
    mode = site.attribute("mode", "nearest")
    if mode != "nearest":
        raise site.refuse(f"mode {mode}", wanted="mode nearest", do="use nearest upsampling by a whole factor and fine-tune")
    sizes, scales = _resized(site, x)
    if math.prod(sizes) > LARGEST_VALUES:
        raise site.wrong(f"to {tuple(sizes)}", "sizes that fit a board")
    line = [n // s if s and n % s == 0 else 0 for n, s in zip(sizes, x.shape, strict=True)]
    if line[:2] != [1, 1] or min(line) < 1:
        raise site.refuse(f"to {tuple(sizes[1:])}", wanted="whole factors of rows and columns", do="use scale_factor=2 and the like")
    for axis in range(2, 2 + rank):
        if not np.array_equal(_sources(site, x.shape[axis], sizes[axis], scales[axis]), np.arange(sizes[axis]) // line[axis]):
            raise site.refuse(
                f"{site.attribute('coordinate_transformation_mode', 'half_pixel')}, {site.attribute('nearest_mode', 'round_prefer_floor')}",
                wanted="every value repeated equally often",
                do="coordinate_transformation_mode asymmetric with nearest_mode floor, as nn.Upsample exports",
            )
    factors = tuple(float(each) for each in line[2:])
    if set(factors) == {1.0}:
        return x
    return site.emit(nn.Upsample(scale_factor=factors if rank == 2 else factors[0], mode="nearest"), x)


def _resized(site: Site, x: Tensor) -> tuple[list[int], list[float]]:
    """The sizes asked for, and the scales; operands differ between Upsample and the Resizes."""
    rank = len(x.shape)
    place = 2 if site.node.operator == "Resize" and site.opset >= 11 else 1
    axes = [axis_of(site, axis, rank) for axis in site.numbers("axes") or range(rank)]
    if place == 2 and site.has(3) and site.constant(3).size:
        if site.attribute("keep_aspect_ratio_policy", "stretch") != "stretch":
            raise site.refuse("a kept aspect ratio", wanted="keep_aspect_ratio_policy stretch")
        given = dict(zip(axes, site.ints(3), strict=False))
        sizes = [given.get(axis, size) for axis, size in enumerate(x.shape)]
        return sizes, [n / s for n, s in zip(sizes, x.shape, strict=True)]
    raw: Sequence[float] = site.attribute("scales", ()) if site.opset < 9 else [float(each) for each in site.constant(place).reshape(-1)]
    if len(raw) != len(axes) or not all(0 < each < 1024 for each in raw):
        raise site.wrong(f"scales {tuple(raw)}", f"{len(axes)} numbers above 0")
    factors = dict(zip(axes, raw, strict=True))
    scales = [factors.get(axis, 1.0) for axis in range(rank)]
    return [math.floor(size * scale) for size, scale in zip(x.shape, scales, strict=True)], scales


def _sources(site: Site, size: int, wanted: int, scale: float) -> np.ndarray:
    """Which input position each output position reads."""
    i = np.arange(wanted, dtype=np.float64)
    default = "asymmetric" if site.opset < 11 else "half_pixel"
    match site.attribute("coordinate_transformation_mode", default):
        case "asymmetric":
            at = i / scale
        case "half_pixel" | "half_pixel_symmetric":
            at = (i + 0.5) / scale - 0.5
        case "pytorch_half_pixel":
            at = (i + 0.5) / scale - 0.5 if wanted > 1 else i * 0.0
        case "align_corners":
            at = i * (size - 1) / max(wanted - 1, 1)
        case other:
            raise site.refuse(f"coordinate_transformation_mode {other}", wanted="asymmetric or half_pixel")
    match site.attribute("nearest_mode", "floor" if site.opset < 11 else "round_prefer_floor"):
        case "floor":
            found = np.floor(at)
        case "ceil":
            found = np.ceil(at)
        case "round_prefer_floor":
            found = np.ceil(at - 0.5)
        case _:
            found = np.floor(at + 0.5)
    return np.clip(found, 0, size - 1)


def depth_to_space(site: Site) -> Value:
    """DepthToSpace, both orders."""
    block, mode = site.attribute("blocksize", 0), site.attribute("mode", "DCR")
    if block < 1 or mode not in ("DCR", "CRD"):
        raise site.wrong(f"blocksize {block}, mode {mode}", "a blocksize of 1 and more, DCR or CRD")
    return site.emit(nn.PixelShuffle(block) if mode == "CRD" else modules.Function(modules.space_of_depth, block=block), site.tensor())


def softmax(site: Site) -> Value:
    """Softmax along one axis."""
    x = site.tensor()
    axis = axis_of(site, site.attribute("axis", 1 if site.opset < 13 else -1), len(x.shape))
    if site.opset < 13 and math.prod(x.shape[axis + 1 :]) != 1:
        raise site.refuse(f"over the axes {axis} and on", wanted="one axis", do="export with opset 13 or later")
    return site.emit(nn.Softmax(axis), x)


def arg_max(site: Site) -> Value:
    """ArgMax along one axis, the first of equals."""
    x = site.tensor()
    if site.attribute("select_last_index", 0):
        raise site.refuse("select_last_index 1", wanted="the first of equals: select_last_index 0")
    axis = axis_of(site, site.attribute("axis", 0), len(x.shape))
    return site.emit(modules.Function(torch.argmax, dim=axis, keepdim=bool(site.attribute("keepdims", 1))), x)


def identity(site: Site) -> Value:
    """Operators that change no number at inference."""
    return site.tensor()


def dropout(site: Site) -> Value:
    """Dropout at inference."""
    if site.opset >= 12 and site.has(2) and bool(site.constant(2).any()):
        raise site.refuse("training mode", wanted="inference", do="export in eval mode: torch.onnx.export(model.eval(), ...)")
    return site.tensor()


def cast(site: Site) -> Value:
    """Cast to a float type; pixels may come as uint8."""
    x = site.tensor()
    if site.attribute("to", 1) not in (1, 10, 11, 16):
        raise site.refuse(f"to type {site.attribute('to', 1)}", wanted="a float type", do="leave integers to the quantisation of kqgen")
    return x if x.fake.dtype == torch.float32 else site.emit(modules.Function(modules.as_float), x)


def expand(site: Site) -> Value:
    """Expand to the shape that the tensor has."""
    x, sizes = site.tensor(), site.ints(1)
    if any(size not in (1, have) for size, have in zip(reversed(sizes), reversed(x.shape), strict=False)) or len(sizes) > len(x.shape):
        raise site.refuse(f"to {sizes}", wanted=f"the shape it has, {x.shape}")
    return x


def shape_of(site: Site) -> Value:
    """Shape: every size is known."""
    rank = len(site.tensor().shape)
    start, end = site.attribute("start", 0), site.attribute("end", rank)
    return Constant(np.array(site.tensor().shape[start:end], np.int64), site.node.name)


def size_of(site: Site) -> Value:
    """Size: every size is known."""
    return Constant(np.array(math.prod(site.tensor().shape), np.int64), site.node.name)
