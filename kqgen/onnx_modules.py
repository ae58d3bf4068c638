"""Modules that compute what an ONNX node says where torch.nn has no module for it alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn


class Function(nn.Module):
    """A function of tensors with fixed options."""

    def __init__(self, function: Callable[..., torch.Tensor], **options: Any) -> None:
        super().__init__()
        self.function, self.options = function, options

    def forward(self, *tensors: torch.Tensor) -> torch.Tensor:
        """function(*tensors, **options)."""
        return self.function(*tensors, **self.options)


class WithConstant(nn.Module):
    """A function of a tensor and a constant, which is the first operand where `first` says so."""

    def __init__(self, function: Callable[..., torch.Tensor], constant: torch.Tensor, first: bool) -> None:
        super().__init__()
        self.function, self.first = function, first
        self.constant: torch.Tensor
        self.register_buffer("constant", constant)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """function(x, constant) or function(constant, x)."""
        return self.function(self.constant, x) if self.first else self.function(x, self.constant)


class PaddedConv1d(nn.Conv1d):
    """nn.Conv1d on a map padded by `around`."""

    around: nn.Module

    def forward(self, input: torch.Tensor) -> torch.Tensor:  # noqa: A002 - as nn.Conv1d calls it
        """The convolution of the padded map."""
        return super().forward(self.around(input))


class PaddedConv2d(nn.Conv2d):
    """nn.Conv2d on a map padded by `around`."""

    around: nn.Module

    def forward(self, input: torch.Tensor) -> torch.Tensor:  # noqa: A002 - as nn.Conv2d calls it
        """The convolution of the padded map."""
        return super().forward(self.around(input))


class CroppedConvTranspose1d(nn.ConvTranspose1d):
    """nn.ConvTranspose1d whose result `crop` cuts."""

    crop: nn.Module

    def forward(self, input: torch.Tensor, output_size: list[int] | None = None) -> torch.Tensor:  # noqa: A002 - as nn calls it
        """The cut result."""
        return torch.as_tensor(self.crop(super().forward(input, output_size)))


class CroppedConvTranspose2d(nn.ConvTranspose2d):
    """nn.ConvTranspose2d whose result `crop` cuts."""

    crop: nn.Module

    def forward(self, input: torch.Tensor, output_size: list[int] | None = None) -> torch.Tensor:  # noqa: A002 - as nn calls it
        """The cut result."""
        return torch.as_tensor(self.crop(super().forward(input, output_size)))


class PaddedPool(nn.Module):
    """A pooling on a map padded by `around`."""

    def __init__(self, around: nn.Module, pool: Callable[..., torch.Tensor], **options: Any) -> None:
        super().__init__()
        self.around, self.pool, self.options = around, pool, options

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """pool(around(x), **options)."""
        return self.pool(self.around(x), **self.options)


class CutPool(nn.Module):
    """A pooling whose result `cut` cuts."""

    def __init__(self, pool: Callable[..., torch.Tensor], cut: nn.Module, **options: Any) -> None:
        super().__init__()
        self.pool, self.cut, self.options = pool, cut, options

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """cut(pool(x, **options))."""
        return torch.as_tensor(self.cut(self.pool(x, **self.options)))


def reshape(x: torch.Tensor, sizes: Sequence[int]) -> torch.Tensor:
    """`x` with its first axis kept and `sizes` behind it."""
    return x.reshape(x.shape[0], *sizes)


def permute(x: torch.Tensor, order: Sequence[int]) -> torch.Tensor:
    """The axes of `x` in `order`."""
    return x.permute(*order)


def concat(*parts: torch.Tensor, axis: int) -> torch.Tensor:
    """The tensors one behind the other."""
    return torch.cat(parts, axis)


def total(*parts: torch.Tensor) -> torch.Tensor:
    """The sum of the tensors."""
    made = parts[0]
    for part in parts[1:]:
        made = made + part
    return made


def part(x: torch.Tensor, slices: Sequence[tuple[int, int, int, int]]) -> torch.Tensor:
    """`x` cut by (axis, start, end, step) each."""
    for axis, start, end, step in slices:
        if (start, step) == (0, 1) and end == x.shape[axis]:
            continue
        x = torch.ops.aten.slice.Tensor(x, axis, start, end, step)
    return x


def space_of_depth(x: torch.Tensor, block: int) -> torch.Tensor:
    """Channels (block * block, c) become c maps `block` times as high and wide."""
    n, c, h, w = x.shape
    ordered = x.reshape(n, block * block, c // (block * block), h, w).transpose(1, 2).reshape(n, c, h, w)
    return F.pixel_shuffle(ordered, block)


def scaled(x: torch.Tensor, scale: float, offset: float) -> torch.Tensor:
    """x * scale + offset."""
    return x * scale + offset


def clamped_line(x: torch.Tensor, slope: float, offset: float) -> torch.Tensor:
    """min(max(slope * x + offset, 0), 1)."""
    return torch.clamp(x * slope + offset, 0.0, 1.0)


def pixels(x: torch.Tensor, scale: float, zero_point: int) -> torch.Tensor:
    """(x - zero_point) * scale of raw integers."""
    return (x.to(torch.float32) - float(zero_point)) * scale


def as_float(x: torch.Tensor) -> torch.Tensor:
    """`x` in float32."""
    return x.to(torch.float32)
