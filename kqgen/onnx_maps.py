"""ONNX operators that move, pool or join numbers: from a node to a module."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from kqgen import onnx_modules as modules
from kqgen.onnx_layers import around, paddings, spatial_rank, spread
from kqgen.onnx_site import Constant, Site, Tensor, Value
from kqgen.onnx_tensor import LARGEST_VALUES

_MAX_POOLS, _AVERAGES = (F.max_pool1d, F.max_pool2d), (F.avg_pool1d, F.avg_pool2d)


def axis_of(site: Site, axis: int, rank: int) -> int:
    """`axis` counted from the front."""
    if not -rank <= axis < rank:
        raise site.wrong(f"axis {axis}", f"-{rank} to {rank - 1}")
    return axis % rank


def max_pool(site: Site) -> Value:
    """MaxPool, 1-D and 2-D; padding never wins."""
    x = site.tensor()
    rank = spatial_rank(site, x)
    dilation = spread(site, "dilations", rank, 1)
    if site.attribute("storage_order", 0):
        raise site.refuse("storage_order 1", wanted="storage_order 0")
    return _pool(site, x, _MAX_POOLS[rank - 1], dilation, -math.inf)


def average_pool(site: Site) -> Value:
    """AveragePool, 1-D and 2-D; the divisor counts padding or leaves it out, as the node says."""
    x = site.tensor()
    rank = spatial_rank(site, x)
    if set(spread(site, "dilations", rank, 1)) != {1}:
        raise site.refuse(f"dilations {site.attribute('dilations', ())}", wanted="dilation 1")
    return _pool(site, x, _AVERAGES[rank - 1], (1,) * rank, 0.0)


def _pool(site: Site, x: Tensor, pool: Callable[..., torch.Tensor], dilation: Sequence[int], fill: float) -> Value:
    rank, mean = len(x.shape) - 2, fill == 0
    kernel, stride = spread(site, "kernel_shape", rank, 0, least=0), spread(site, "strides", rank, 1)
    if min(kernel) < 1:
        raise site.wrong(f"kernel_shape {kernel}", f"{rank} sizes of 1 and more")
    begin, end = paddings(site, x.shape[2:], kernel, stride, dilation)
    if min(*begin, *end) < 0:
        raise site.refuse(f"pads {begin} and {end}", wanted="pads of 0 and more")
    up = bool(site.attribute("ceil_mode", 0)) and site.attribute("auto_pad", "NOTSET") == "NOTSET"
    windows = [
        _windows(size + b + e - (k - 1) * d - 1, step, up, size + b)
        for size, b, e, k, d, step in zip(x.shape[2:], begin, end, kernel, dilation, stride, strict=True)
    ]
    if min(windows) < 1:
        raise site.wrong(f"kernel {kernel} on {x.shape[2:]}", "a window inside the padded map")
    counted = bool(site.attribute("count_include_pad", 0))
    common = {"kernel_size": kernel, "stride": stride} | ({} if mean else {"dilation": dilation})
    same = begin == end
    if same and all(b <= k // 2 for b, k in zip(begin, kernel, strict=True)):
        options = common | {"padding": begin, "ceil_mode": up} | ({"count_include_pad": counted or not any(begin)} if mean else {})
        return site.emit(modules.Function(pool, **options), x)
    if not mean and all(b <= k // 2 for b, k in zip(begin, kernel, strict=True)):
        # Windows that leave the map behind it see what padding would hold: ceil_mode gives them where the number of windows agrees.
        reached = [
            _windows(size + 2 * b - (k - 1) * d - 1, step, True, size + b)
            for size, b, k, d, step in zip(x.shape[2:], begin, kernel, dilation, stride, strict=True)
        ]
        if reached == windows:
            return site.emit(modules.Function(pool, **common, padding=begin, ceil_mode=True), x)
    if mean and not counted and (any(begin) or any(end)):
        raise site.refuse(
            f"pads {begin} and {end} that do not count", wanted="count_include_pad 1, equal pads, or none", do="pad before the network"
        )
    behind = [
        max((n - 1) * step + (k - 1) * d + 1 - size - b, 0) if up and not mean else e
        for n, step, k, d, size, b, e in zip(windows, stride, kernel, dilation, x.shape[2:], begin, end, strict=True)
    ]
    wrap = nn.ConstantPad2d(tuple(around(begin, behind)), fill) if rank == 2 else nn.ConstantPad1d(tuple(around(begin, behind)), fill)  # type: ignore[arg-type]
    return site.emit(modules.PaddedPool(wrap, pool, **common, **({"ceil_mode": up} if mean else {})), x)


def _windows(room: int, step: int, up: bool, end: int) -> int:
    """How many windows fit into `room` beyond the first; rounded up, the last one must begin before `end`."""
    count = (-(-room // step) if up else room // step) + 1
    return count - 1 if up and (count - 1) * step >= end else count


def global_pool(function: Callable[..., torch.Tensor]) -> Callable[[Site], Value]:
    """The handler of GlobalAveragePool or GlobalMaxPool."""

    def handle(site: Site) -> Value:
        x = site.tensor()
        axes = tuple(range(2, 2 + spatial_rank(site, x)))
        return site.emit(modules.Function(function, dim=axes, keepdim=True), x)

    return handle


def reduce(function: Callable[..., torch.Tensor], since: int) -> Callable[[Site], Value]:
    """The handler of ReduceMean, ReduceMax or ReduceSum, whose axes are an operand from opset `since` on."""

    def handle(site: Site) -> Value:
        x = site.tensor()
        rank = len(x.shape)
        given = site.ints(1) if site.has(1) else site.numbers("axes") if site.opset < since else ()
        if not given and site.attribute("noop_with_empty_axes", 0):
            return x
        axes = sorted({axis_of(site, axis, rank) for axis in given or range(rank)})
        if 0 in axes:
            raise site.refuse(f"over the axes {axes}, the batch among them", wanted="rows and columns: axes [2, 3]")
        return site.emit(modules.Function(function, dim=tuple(axes), keepdim=bool(site.attribute("keepdims", 1))), x)

    return handle


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
