"""ONNX operators with weights or constants, and activations: from a node to a module of torch.nn."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import nn

from kqgen import onnx_modules as modules
from kqgen.onnx_site import Constant, Site, Tensor, Value

_SIXTH = 1.0 / 6.0
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d)
_PADDED = (modules.PaddedConv1d, modules.PaddedConv2d)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d)
_CROPPED = (modules.CroppedConvTranspose1d, modules.CroppedConvTranspose2d)


def spatial_rank(site: Site, x: Tensor) -> int:
    """1 for a sequence (N, C, L), 2 for a map (N, C, H, W); everything else is refused."""
    rank = len(x.shape) - 2
    if rank not in (1, 2):
        raise site.refuse(f"input of {len(x.shape)} axes", wanted="a map (N, C, H, W) or a sequence (N, C, L)")
    return rank


def axis_of(site: Site, axis: int, rank: int) -> int:
    """`axis` counted from the front."""
    if not -rank <= axis < rank:
        raise site.wrong(f"axis {axis}", f"-{rank} to {rank - 1}")
    return axis % rank


def spread(site: Site, name: str, rank: int, default: int, least: int = 1) -> tuple[int, ...]:
    """Attribute `name`, one number an axis."""
    given = site.numbers(name) or (default,) * rank
    if len(given) != rank or min(given) < least:
        raise site.wrong(f"attribute {name} is {given}", f"{rank} numbers of {least} or more")
    return given


def paddings(
    site: Site, sizes: Sequence[int], kernel: Sequence[int], stride: Sequence[int], dilation: Sequence[int]
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """What is added before and behind each axis, by `pads` or `auto_pad`."""
    rank, auto = len(sizes), site.attribute("auto_pad", "NOTSET")
    if auto == "VALID":
        return (0,) * rank, (0,) * rank
    if auto in ("SAME_UPPER", "SAME_LOWER"):
        whole = [
            max((math.ceil(size / step) - 1) * step + (k - 1) * d + 1 - size, 0)
            for size, k, step, d in zip(sizes, kernel, stride, dilation, strict=True)
        ]
        less, more = tuple(each // 2 for each in whole), tuple(each - each // 2 for each in whole)
        return (less, more) if auto == "SAME_UPPER" else (more, less)
    if auto != "NOTSET":
        raise site.wrong(f"auto_pad {auto}", "NOTSET, SAME_UPPER, SAME_LOWER or VALID")
    pads = spread(site, "pads", 2 * rank, 0, least=-LARGEST_PAD)
    if max(abs(each) for each in pads) > LARGEST_PAD:
        raise site.wrong(f"attribute pads is {pads}", f"at most {LARGEST_PAD}")
    return pads[:rank], pads[rank:]


LARGEST_PAD = 1 << 12
"""Rows or columns added at one side, at most."""


def around(begin: Sequence[int], end: Sequence[int]) -> list[int]:
    """`begin` and `end` as F.pad takes them: the last axis first."""
    return [each for pair in reversed(list(zip(begin, end, strict=True))) for each in pair]


def conv(site: Site) -> Value:
    """Conv, 1-D and 2-D: groups, dilation, any padding."""
    x = site.tensor()
    rank = spatial_rank(site, x)
    weight = site.weight(1)
    groups = site.attribute("group", 1)
    if weight.dim() != rank + 2 or groups < 1 or weight.shape[0] % groups:
        raise site.wrong(f"weight {tuple(weight.shape)}, group {groups}", f"a weight of {rank + 2} axes whose first one group divides")
    if weight.shape[1] * groups != x.shape[1]:
        raise site.wrong(f"weight {tuple(weight.shape)}, group {groups}", f"{x.shape[1]} input channels")
    kernel = tuple(weight.shape[2:])
    if spread(site, "kernel_shape", rank, 0, least=0) not in (kernel, (0,) * rank):
        raise site.wrong(f"kernel_shape {site.attribute('kernel_shape', ())}", f"that of the weight, {kernel}")
    stride, dilation = spread(site, "strides", rank, 1), spread(site, "dilations", rank, 1)
    begin, end = paddings(site, x.shape[2:], kernel, stride, dilation)
    same = begin == end and min(begin) >= 0
    make = _CONVOLUTIONS[rank - 1] if same else _PADDED[rank - 1]
    with torch.device("meta"):
        layer = make(
            x.shape[1], weight.shape[0], kernel, stride, begin if same else 0, dilation, groups, bias=site.has(2)  # type: ignore[arg-type]
        )
    if not same:
        layer.around = nn.ConstantPad2d(tuple(around(begin, end)), 0.0) if rank == 2 else nn.ConstantPad1d(tuple(around(begin, end)), 0.0)  # type: ignore[arg-type]
    return site.emit(_with_weights(site, layer, weight, weight.shape[0]), x)


def _with_weights(site: Site, layer: nn.Module, weight: torch.Tensor, outputs: int) -> nn.Module:
    layer.weight = nn.Parameter(weight)
    if site.has(2):
        bias = site.weight(2)
        if tuple(bias.shape) != (outputs,):
            raise site.wrong(f"bias {tuple(bias.shape)}", f"({outputs},)")
        layer.bias = nn.Parameter(bias)
    return layer


def conv_transpose(site: Site) -> Value:
    """ConvTranspose, 1-D and 2-D."""
    x = site.tensor()
    rank = spatial_rank(site, x)
    weight = site.weight(1)
    groups = site.attribute("group", 1)
    if weight.dim() != rank + 2 or groups < 1 or weight.shape[0] != x.shape[1] or weight.shape[0] % groups:
        raise site.wrong(f"weight {tuple(weight.shape)}, group {groups}", f"{x.shape[1]} input channels, which group divides")
    kernel, outputs = tuple(weight.shape[2:]), weight.shape[1] * groups
    stride, dilation = spread(site, "strides", rank, 1), spread(site, "dilations", rank, 1)
    extra = spread(site, "output_padding", rank, 0, least=0)
    begin, end = _transposed_paddings(site, x, kernel, stride, dilation, extra)
    same = begin == end and min(begin) >= 0
    make = _TRANSPOSED[rank - 1] if same else _CROPPED[rank - 1]
    with torch.device("meta"):
        layer = make(
            x.shape[1], outputs, kernel, stride, begin if same else 0, extra, groups, site.has(2), dilation  # type: ignore[arg-type]
        )
    if not same:
        whole = [
            (size - 1) * step + (k - 1) * d + 1 + more
            for size, step, k, d, more in zip(x.shape[2:], stride, kernel, dilation, extra, strict=True)
        ]
        if min(*begin, *end) < 0 or any(b + e >= size for b, e, size in zip(begin, end, whole, strict=True)):
            raise site.refuse(f"pads {begin} and {end} of {whole}", wanted="pads from 0 to less than the result")
        slices = [(2 + axis, begin[axis], whole[axis] - end[axis], 1) for axis in range(rank)]
        layer.crop = modules.Function(modules.part, slices=slices)
    return site.emit(_with_weights(site, layer, weight, outputs), x)


def _transposed_paddings(
    site: Site, x: Tensor, kernel: Sequence[int], stride: Sequence[int], dilation: Sequence[int], extra: Sequence[int]
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    rank, auto = len(kernel), site.attribute("auto_pad", "NOTSET")
    wanted = site.numbers("output_shape")[-rank:]
    if auto in ("SAME_UPPER", "SAME_LOWER") and not wanted:
        wanted = tuple(size * step for size, step in zip(x.shape[2:], stride, strict=True))
    if not wanted:
        return paddings(site, x.shape[2:], kernel, stride, dilation)
    cut = [
        step * (size - 1) + more + (k - 1) * d + 1 - out
        for size, step, k, d, more, out in zip(x.shape[2:], stride, kernel, dilation, extra, wanted, strict=True)
    ]
    less, more = tuple(each // 2 for each in cut), tuple(each - each // 2 for each in cut)
    return (less, more) if auto == "SAME_UPPER" else (more, less)


def _dense(weight: torch.Tensor, bias: torch.Tensor | None) -> nn.Linear:
    """nn.Linear of weight (out, in)."""
    with torch.device("meta"):
        layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
    layer.weight = nn.Parameter(weight.contiguous())
    if bias is not None:
        layer.bias = nn.Parameter(bias)
    return layer


def gemm(site: Site) -> Value:
    """Gemm by a constant matrix: alpha * x @ B + beta * C; alpha and beta go into the weights."""
    x = site.tensor()
    if site.attribute("transA", 0):
        raise site.refuse("transA 1", wanted="transA 0: the batch axis first", do="x @ W instead of W @ x")
    weight = site.weight(1)
    if weight.dim() != 2:
        raise site.wrong(f"B {tuple(weight.shape)}", "a matrix")
    weight = weight if site.attribute("transB", 0) else weight.T
    weight = weight * site.attribute("alpha", 1.0)
    bias = None
    if site.has(2):
        given = site.weight(2) * site.attribute("beta", 1.0)
        if given.numel() not in (1, weight.shape[0]) or given.dim() > 2 or (given.dim() == 2 and given.shape[0] != 1):
            raise site.refuse(f"C {tuple(given.shape)}", wanted=f"one number an output: ({weight.shape[0]},)")
        bias = given.reshape(-1).expand(weight.shape[0]).clone()
    return site.emit(_dense(weight, bias), x)


def matmul(site: Site) -> Value:
    """MatMul by a constant matrix (in, out)."""
    if not isinstance(site.operands[0], Tensor) or not isinstance(site.operands[1], Constant):
        raise site.refuse(
            "a product of two computed tensors" if isinstance(site.operands[0], Tensor) else "a constant on the left",
            wanted="x @ W with a constant W",
            do="attention is not supported; use convolutions",
        )
    weight = site.weight(1)
    if weight.dim() != 2:
        raise site.refuse(f"a constant {tuple(weight.shape)}", wanted="a matrix (in, out)")
    return site.emit(_dense(weight.T, None), site.tensor())


def batch_norm(site: Site) -> Value:
    """BatchNormalization at inference."""
    x = site.tensor()
    if site.attribute("training_mode", 0) or not site.attribute("spatial", 1):
        raise site.refuse("training mode" if site.attribute("training_mode", 0) else "spatial 0", wanted="inference, one scale a channel",
                          do="export in eval mode: torch.onnx.export(model.eval(), ...)")  # fmt: skip
    scale, bias, mean, variance = (site.weight(index) for index in range(1, 5))
    c = x.shape[1] if len(x.shape) > 1 else 0
    if any(tuple(each.shape) != (c,) for each in (scale, bias, mean, variance)) or len(x.shape) > 4:
        raise site.wrong(f"statistics {tuple(mean.shape)}, input of {len(x.shape)} axes", f"({c},)")
    make = nn.BatchNorm2d if len(x.shape) == 4 else nn.BatchNorm1d
    layer = make(c, eps=site.attribute("epsilon", 1e-5), momentum=1.0 - site.attribute("momentum", 0.9))
    layer.weight, layer.bias = nn.Parameter(scale), nn.Parameter(bias)
    layer.running_mean, layer.running_var = mean, variance
    return site.emit(layer, x)


def arithmetic(function: Callable[..., torch.Tensor]) -> Callable[[Site], Value]:
    """The handler of Add, Sub, Mul or Div: two tensors, or a tensor and a constant."""

    def handle(site: Site) -> Value:
        left, right = site.operands[:2] if len(site.operands) >= 2 else (None, None)
        if isinstance(left, Tensor) and isinstance(right, Tensor):
            return site.emit(modules.Function(function), left, right)
        first = isinstance(left, Constant)
        x = site.tensor(1 if first else 0)
        constant = _aligned(site.weight(0 if first else 1), x)
        return site.emit(modules.WithConstant(function, constant, first), x)

    return handle


def _aligned(constant: torch.Tensor, x: Tensor) -> torch.Tensor:
    """A constant of one value as (1,), of others with as many axes as `x`, where that changes nothing."""
    if bool((constant == constant.reshape(-1)[0]).all()) and all(
        size in (1, have) for size, have in zip(reversed(constant.shape), reversed(x.shape), strict=False)
    ) and constant.dim() <= len(x.shape):  # fmt: skip
        return constant.reshape(-1)[:1].clone()
    missing = len(x.shape) - constant.dim()
    return constant.reshape(*(1,) * missing, *constant.shape) if missing > 0 else constant


def total(site: Site) -> Value:
    """Sum of several tensors."""
    if len(site.operands) == 1:
        return site.tensor()
    if any(isinstance(each, Constant) for each in site.operands):
        if len(site.operands) == 2:
            return arithmetic(torch.add)(site)
        raise site.refuse("a sum with constants", wanted="tensors alone, or Add")
    return site.emit(modules.Function(modules.total), *(site.tensor(index) for index in range(len(site.operands))))


def limit(name: str) -> Callable[[Site], Value]:
    """The handler of Min or Max of a tensor and one number."""

    def handle(site: Site) -> Value:
        index = 0 if isinstance(site.operands[0], Tensor) else 1
        if len(site.operands) != 2 or not isinstance(site.operands[1 - index], Constant):
            raise site.refuse("of two tensors", wanted="a tensor and a number", do="use Clip or Relu")
        return site.emit(modules.Function(torch.clamp, **{name: site.number(1 - index, 0.0)}), site.tensor(index))

    return handle


def clip(site: Site) -> Value:
    """Clip with numbers as bounds."""
    bounds = (-math.inf, math.inf)
    if site.opset < 11:
        lo, hi = site.attribute("min", bounds[0]), site.attribute("max", bounds[1])
    else:
        lo, hi = site.number(1, bounds[0]), site.number(2, bounds[1])
    huge = float(np.finfo(np.float32).max)
    lo, hi = (-math.inf if lo <= -huge else lo), (math.inf if hi >= huge else hi)
    if lo == 0 and hi in (6, math.inf):
        return site.emit(nn.ReLU6() if hi == 6 else nn.ReLU(), site.tensor())
    return site.emit(modules.Function(torch.clamp, min=lo, max=hi), site.tensor())


def power(site: Site) -> Value:
    """Pow by 1 or 2."""
    exponent = site.number(1, 1.0)
    if exponent == 1:
        return site.tensor()
    if exponent != 2:
        raise site.refuse(f"the power {exponent:g}", wanted="the power 2")
    return site.emit(modules.Function(torch.square), site.tensor())


def hard_sigmoid(site: Site) -> Value:
    """HardSigmoid: PyTorch's slope of 1/6, or a line and a clamp."""
    slope, offset = site.attribute("alpha", 0.2), site.attribute("beta", 0.5)
    if abs(slope - _SIXTH) < 1e-6 and offset == 0.5:
        return site.emit(nn.Hardsigmoid(), site.tensor())
    return site.emit(modules.Function(modules.clamped_line, slope=slope, offset=offset), site.tensor())


def prelu(site: Site) -> Value:
    """PRelu: one slope, or one a channel."""
    x, slope = site.tensor(), site.weight(1)
    c = x.shape[1]
    if slope.numel() not in (1, c) or (slope.numel() == c and c > 1 and _channel_axis(slope, x) != 1):
        raise site.refuse(f"slopes {tuple(slope.shape)}", wanted=f"one slope, or one a channel: ({c}, 1, 1)")
    layer = nn.PReLU(slope.numel())
    layer.weight = nn.Parameter(slope.reshape(-1))
    return site.emit(layer, x)


def _channel_axis(constant: torch.Tensor, x: Tensor) -> int:
    """The axis of `x` along which a constant with one long axis lies."""
    long = [axis for axis, size in enumerate(constant.shape) if size > 1]
    return len(x.shape) - constant.dim() + long[0] if len(long) == 1 else -1


def gelu(site: Site) -> Value:
    """Gelu, exact or by tanh."""
    return site.emit(nn.GELU(approximate=site.attribute("approximate", "none")), site.tensor())


def leaky_relu(site: Site) -> Value:
    """LeakyRelu."""
    return site.emit(nn.LeakyReLU(site.attribute("alpha", 0.01)), site.tensor())


def elu(site: Site) -> Value:
    """Elu."""
    return site.emit(nn.ELU(site.attribute("alpha", 1.0)), site.tensor())


def plain(make: Callable[[], nn.Module]) -> Callable[[Site], Value]:
    """The handler of a function of one tensor without options."""

    def handle(site: Site) -> Value:
        return site.emit(make(), site.tensor())

    return handle


def apply(function: Callable[..., torch.Tensor]) -> Callable[[Site], Value]:
    """The handler of a function of one tensor that no module of torch.nn is."""

    def handle(site: Site) -> Value:
        return site.emit(modules.Function(function), site.tensor())

    return handle
