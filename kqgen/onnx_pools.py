"""ONNX operators that pool windows, or reduce axes: from a node to a module."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import nn

from kqgen import onnx_modules as modules
from kqgen.onnx_layers import around, axis_of, paddings, spatial_rank, spread
from kqgen.onnx_site import Site, Tensor, Value

_MAX_POOLS, _AVERAGES = (F.max_pool1d, F.max_pool2d), (F.avg_pool1d, F.avg_pool2d)


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
    if not mean:
        found = _symmetric(x.shape[2:], kernel, stride, dilation, begin, end, windows)
        if found is not None:
            padding, up, first = found
            cuts = [(2 + axis, start, start + windows[axis], 1) for axis, start in enumerate(first)]
            return site.emit(modules.CutPool(pool, modules.Function(modules.part, slices=cuts), **common, padding=padding, ceil_mode=up), x)
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


def _symmetric(
    sizes: Sequence[int], kernel: Sequence[int], stride: Sequence[int], dilation: Sequence[int], begin: Sequence[int], end: Sequence[int],
    windows: Sequence[int],
) -> tuple[tuple[int, ...], bool, tuple[int, ...]] | None:  # fmt: skip
    """Equal padding, ceil_mode and the first window to keep such that a maximum over `windows` is the same; None where there is none.

    Padding never wins, so more of it only adds windows before and behind the wanted ones; ceil_mode adds one behind.
    """
    for padding in (tuple(begin), tuple(map(max, begin, end))):
        shift = [p - b for p, b in zip(padding, begin, strict=True)]
        aligned = all(each % step == 0 for each, step in zip(shift, stride, strict=True))
        if not aligned or any(p > k // 2 for p, k in zip(padding, kernel, strict=True)):
            continue
        first = tuple(each // step for each, step in zip(shift, stride, strict=True))
        for up in (False, True):
            reached = [
                _windows(size + 2 * p - (k - 1) * d - 1, step, up, size + p)
                for size, p, k, d, step in zip(sizes, padding, kernel, dilation, stride, strict=True)
            ]
            if all(f + wanted <= have for f, wanted, have in zip(first, windows, reached, strict=True)):
                return padding, up, first
    return None


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
