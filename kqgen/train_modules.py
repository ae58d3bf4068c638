"""What training puts into a network: kernels read through a codebook, uniform weights of few bits, int8 maps; all with gradients.

Forward values are those the integers will mean; gradients pass rounding straight through (Bengio et al., 2013). A kernel is kept
twice: as a latent vector that the optimiser moves, and as the code of a codeword that the network computes with.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from torch import nn

from kqgen.cluster import L1_LIMIT, VALUE_LIMIT
from kqgen.kq_simulate import rounded

_LEVELS = 255
_LOWEST, _HIGHEST = -128, 127
_SMALLEST_SPAN = 1e-8


class _ReadThrough(torch.autograd.Function):
    """Codewords in the place of latent kernels: the gradient goes to both."""

    @staticmethod
    def forward(ctx: object, kernels: torch.Tensor, latent: torch.Tensor) -> torch.Tensor:
        del ctx, latent
        return kernels.clone()

    @staticmethod
    def backward(ctx: object, *gradients: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        del ctx
        return gradients[0], gradients[0]


def round_through(values: torch.Tensor) -> torch.Tensor:
    """`values` rounded, with the gradient of the identity. Any shape."""
    return rounded(values, values.detach().round())


class LearnedCodebook(nn.Module):
    """A codebook that learns: real values in steps, read as the 6-bit integers nearest to them.

    Attributes:
        values: (codewords, d) float32, or (2 * codewords, d) where two are summed; optimised.
        step: () float32, what one integer is worth.
        sign, additive: see `options.Codebook`.
    """

    step: torch.Tensor

    def __init__(self, values: torch.Tensor, step: float, *, sign: bool, additive: bool) -> None:
        super().__init__()
        self.values = nn.Parameter(values.clone().float())
        self.register_buffer("step", torch.tensor(step))
        self.sign, self.additive = sign, additive
        self._tables: dict[int | None, torch.Tensor] = {}

    def forget(self) -> None:
        """Ends the use of the tables made so far: one table serves all layers of one pass, and no longer."""
        self._tables.clear()

    def __getstate__(self) -> dict[str, object]:
        # Tables belong to the pass that made them, and torch copies no tensor in the middle of one.
        return {**self.__dict__, "_tables": {}}

    @property
    def codewords(self) -> int:
        """How many are stored (of each of the two kinds where two are summed)."""
        return len(self.values) // (2 if self.additive else 1)

    def integers(self) -> torch.Tensor:
        """The codewords as stored, float32 holding integers within the bounds of SPEC 4.3, with gradients.

        Two summed codewords each keep half of the bound on absolute sums, so that every pair keeps it.
        """
        limit = L1_LIMIT // 2 if self.additive else L1_LIMIT
        inside = self.values.clamp(-VALUE_LIMIT, VALUE_LIMIT)
        rounded = round_through(inside)
        total = inside.abs().sum(1, keepdim=True)
        # Truncation keeps a shrunk codeword inside the bound whatever the fractions are.
        shrunk = inside * (limit / total.clamp_min(1.0))
        truncated = shrunk + (shrunk.trunc() - shrunk).detach()
        return torch.where(rounded.detach().abs().sum(1, keepdim=True) > limit, truncated, rounded)

    def table(self, count: int | None = None) -> torch.Tensor:
        """All kernels that codes stand for, real, signs apart: (n, d) float32; only of the first `count` codewords when given.

        Where two are summed, code first + second * count stands for that pair.
        """
        words = self.integers() * self.step
        used = self.codewords if count is None else min(count, self.codewords)
        if not self.additive:
            return words[:used]
        first, second = words[:used], words[self.codewords : self.codewords + used]
        return (first[None, :, :] + second[:, None, :]).flatten(0, 1)

    def shared_table(self, count: int | None) -> torch.Tensor:
        """`table`, computed once between two calls of `forget`."""
        if count not in self._tables or not torch.is_grad_enabled():
            table = self.table(count)
            if not torch.is_grad_enabled():
                return table
            self._tables[count] = table
        return self._tables[count]


@dataclass(frozen=True, slots=True)
class KernelLayout:
    """Where a parameter's values stand in the kernels of its layer.

    Attributes:
        parameter: the parameter's shape.
        weight: (c_out, c, k_h, k_w), as the float graph has the weight.
        run: length of the runs that serve as kernels, 1 for the kernels themselves; see `kq_runs.cut_weight`.
    """

    parameter: torch.Size
    weight: tuple[int, int, int, int]
    run: int = 1

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(c_out, kernels of an output channel, rows, columns of a kernel)."""
        c_out, c, h, w = self.weight
        return self.weight if self.run == 1 else (c_out, c * h * w // self.run, 1, self.run)

    def kernels(self, values: torch.Tensor) -> torch.Tensor:
        """A parameter's values, or those of some output channels, as kernels: `shape`."""
        planes = values.reshape(-1, *self.weight[1:])
        if self.run == 1:
            return planes
        flat = planes.permute(0, 2, 3, 1).reshape(len(planes), self.run, -1)
        return flat.transpose(1, 2)[:, :, None, :]

    def whole(self, kernels: torch.Tensor) -> torch.Tensor:
        """The parameter that is made of kernels: the inverse of `kernels`."""
        if self.run == 1:
            return kernels.reshape(self.parameter)
        c_out, c, h, w = self.weight
        planes = kernels.reshape(c_out, -1, self.run).transpose(1, 2).reshape(c_out, h, w, c)
        return planes.permute(0, 3, 1, 2).reshape(self.parameter)

    def per_kernel(self, inputs: torch.Tensor) -> torch.Tensor:
        """A value for each input channel (c,), laid along the kernels: (1, kernels, rows, columns), or of sizes 1."""
        if self.run == 1:
            return inputs.reshape(1, -1, 1, 1)
        return self.kernels(inputs.reshape(1, -1, 1, 1).expand(1, *self.weight[1:]))


class IndexedWeight(nn.Module):
    """Parametrisation of a layer's weight by codes: latent kernels in, the kernels that their codes stand for out.

    `kernels` is c_out * c_in, or runs * c_out where runs of input channels serve as kernels, c_out in a depthwise layer.

    Attributes:
        book: shared with the other layers of the codebook.
        layout: of the kernels in the parameter.
        codes: (kernels,) int64, rows of `book.table(count)`.
        signs: (kernels,) float32, 1 or -1.
        scale: (c_out, 1, 1, 1) float32, not 0; negative where the batch norm behind has a negative factor.
        input_scale: as `KernelLayout.per_kernel` has it, what the network multiplies an input by before this layer.
        log_gain: (c_out, 1, 1, 1) or None where a batch norm behind makes it pointless.
        near, near_signs: (kernels, candidates), the codes a soft choice is among; empty when the choice is hard.
        temperature: of the soft choice; 0 means the choice is hard.
    """

    codes: torch.Tensor
    signs: torch.Tensor
    scale: torch.Tensor
    input_scale: torch.Tensor
    near: torch.Tensor
    near_signs: torch.Tensor

    def __init__(
        self, book: LearnedCodebook, count: int | None, layout: KernelLayout, scale: torch.Tensor, input_scale: torch.Tensor, *, gain: bool
    ) -> None:
        super().__init__()
        self.book, self.count, self.layout = book, count, layout
        kernels = layout.shape[0] * layout.shape[1]
        self.register_buffer("scale", scale.reshape(-1, 1, 1, 1).float())
        self.register_buffer("input_scale", layout.per_kernel(input_scale).float().contiguous())
        self.register_buffer("codes", torch.zeros(kernels, dtype=torch.int64))
        self.register_buffer("signs", torch.ones(kernels))
        self.register_buffer("near", torch.zeros((kernels, 0), dtype=torch.int64), persistent=False)
        self.register_buffer("near_signs", torch.ones((kernels, 0)), persistent=False)
        self.log_gain = nn.Parameter(torch.zeros(layout.shape[0], 1, 1, 1)) if gain else None
        self.temperature = 0.0
        self._plain_inputs = bool((input_scale == 1).all())

    def right_inverse(self, weight: torch.Tensor) -> torch.Tensor:
        """The latent kernels of a real weight, as `layout` has them: of the codebook's size, so that one learning rate suits all layers."""
        return (self.layout.kernels(weight) * self.input_scale / self.scale).contiguous()

    def hard(self) -> torch.Tensor:
        """The kernels that the codes stand for, (kernels, d), in units of `scale`."""
        return self.book.table(self.count)[self.codes] * self.signs[:, None]

    def forward(self, latent: torch.Tensor) -> torch.Tensor:
        """The weight that the network computes with, of the parameter's shape."""
        flat = latent.view(-1, self.book.values.shape[1])
        if self.temperature > 0 and self.near.shape[1] > 0:
            near = self.book.shared_table(self.count)[self.near] * self.near_signs[:, :, None]
            shares = torch.softmax(-(flat[:, None, :] - near).square().sum(2) / self.temperature, dim=1)
            kernels = (shares[:, :, None] * near).sum(1)
        else:
            kernels = self.book.shared_table(self.count).index_select(0, self.codes) * self.signs[:, None]
            if latent.requires_grad:
                kernels = cast(torch.Tensor, _ReadThrough.apply(kernels, flat))  # type: ignore[no-untyped-call]
        scale = self.scale if self.log_gain is None else self.scale * self.log_gain.exp()
        return self.layout.whole(kernels.view(self.layout.shape) * (scale if self._plain_inputs else scale / self.input_scale))

    def output_scale(self) -> torch.Tensor:
        """What one unit of a table's kernel is worth in each output channel, (c_out,), signed."""
        scale = self.scale if self.log_gain is None else self.scale * self.log_gain.exp()
        return scale.detach().flatten()


class UniformWeight(nn.Module):
    """Parametrisation of a weight by integers of 8, 6 or 4 bits with a learned scale an output channel.

    Attributes:
        log_scale: float32 with the output channels on `axis` and 1 elsewhere; optimised.
        input_scale: as in `IndexedWeight`, of the weight's rank.
    """

    input_scale: torch.Tensor

    def __init__(self, bits: int, scale: torch.Tensor, input_scale: torch.Tensor) -> None:
        super().__init__()
        self.bits = bits
        self.log_scale = nn.Parameter(scale.clamp_min(1e-12).log().float())
        self.register_buffer("input_scale", input_scale.float())

    def integers(self, weight: torch.Tensor) -> torch.Tensor:
        """The weight in steps, rounded and clamped, float32 holding integers, with gradients."""
        limit = 2 ** (self.bits - 1) - 1
        return round_through((weight * self.input_scale / self.log_scale.exp()).clamp(-limit, limit))

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        """The weight that the integers mean, of the same shape."""
        return self.integers(weight) * (self.log_scale.exp() / self.input_scale)


class FakeQuant(nn.Module):
    """A map as its int8 codes mean it (SPEC 1.2), its range followed while training.

    Attributes:
        lo, hi: () float32, the range; 0 always lies inside.
        scale: () float32 and zero_point: () int32, what `calibrate` derives from that range.
        seen: () bool, whether a range is known.
        observing: whether training moves the range.
        momentum: how far one look moves it.
        pixels: the map is an input of the network: whole numbers 0..255, or these divided by 255, keep exactly that step.
        fixed: the steps are given, and nothing moves them.
    """

    lo: torch.Tensor
    hi: torch.Tensor
    scale: torch.Tensor
    zero_point: torch.Tensor
    seen: torch.Tensor

    def __init__(self, *, pixels: bool = False, fixed: tuple[float, int] | None = None) -> None:
        super().__init__()
        self.register_buffer("lo", torch.tensor(0.0))
        self.register_buffer("hi", torch.tensor(0.0))
        self.register_buffer("scale", torch.tensor(1.0))
        self.register_buffer("zero_point", torch.tensor(_LOWEST, dtype=torch.int32))
        self.register_buffer("seen", torch.tensor(False))
        self.observing, self.pixels, self.momentum = True, pixels, 0.02
        self.fixed = fixed is not None
        if fixed is not None:
            scale, zero_point = fixed
            self.set_range((_LOWEST - zero_point) * scale, (_HIGHEST - zero_point) * scale)
            self.scale.fill_(scale)
            self.zero_point.fill_(zero_point)

    @torch.no_grad()
    def set_range(self, lo: float, hi: float) -> None:
        """Starts from a known range."""
        self.lo.fill_(lo)
        self.hi.fill_(hi)
        self.seen.fill_(True)
        self._derive()

    def _derive(self) -> None:
        scale = (self.hi - self.lo).clamp_min(_SMALLEST_SPAN) / _LEVELS
        self.scale.copy_(scale)
        self.zero_point.copy_(torch.floor(_LOWEST - self.lo / scale + 0.5).clamp(_LOWEST, _HIGHEST))

    @torch.no_grad()
    def observe(self, values: torch.Tensor) -> None:
        """Moves the range towards that of `values`; the first time it is taken as it is."""
        low, high = torch.aminmax(values.detach())
        low, high = low.clamp_max(0.0), high.clamp_min(0.0)
        if self.pixels:
            low, high = _pixel_range(values, low, high)
        weight = torch.where(self.seen, 0.0 if self.pixels else self.momentum, 1.0)
        self.lo.lerp_(low, weight)
        self.hi.lerp_(high, weight)
        self.seen.fill_(True)
        self._derive()

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        """`values` rounded to the map's steps and clamped to its range."""
        if self.training and self.observing and not self.fixed:
            self.observe(values)
        return torch.fake_quantize_per_tensor_affine(values, self.scale, self.zero_point, _LOWEST, _HIGHEST)


def _pixel_range(values: torch.Tensor, low: torch.Tensor, high: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """0..255 for whole numbers, 0..1 for multiples of 1/255, else the range given; the rule of `calibrate`."""
    positive = low >= 0
    whole = positive & (values == values.round()).all() & (high >= 128) & (high <= _LEVELS)
    parts = values * _LEVELS
    fractions = positive & ((parts - parts.round()).abs() < 1e-3).all() & (high >= 128 / _LEVELS) & (high <= 1)
    zero, one = torch.zeros_like(low), torch.ones_like(high)
    return torch.where(whole | fractions, zero, low), torch.where(whole, one * _LEVELS, torch.where(fractions, one, high))


class BatchNormSwitch(nn.Module):
    """A batch norm that follows train() and eval(), and can be told to keep its running statistics.

    Attributes:
        frozen: running statistics are used, and kept, in training too.
        momentum: of the running statistics; None averages all batches since `count` was 0.
    """

    def __init__(self, eps: float, momentum: float) -> None:
        super().__init__()
        self.eps, self.momentum, self.frozen = eps, momentum, False
        self.averaged: int | None = None

    def forward(
        self, x: torch.Tensor, weight: torch.Tensor | None, bias: torch.Tensor | None, mean: torch.Tensor, variance: torch.Tensor
    ) -> torch.Tensor:
        """F.batch_norm on the statistics of the batch while training, else on the running ones."""
        learning = self.training and not self.frozen
        momentum = self.momentum
        if learning and self.averaged is not None:
            self.averaged += 1
            momentum = 1.0 / self.averaged
        return nn.functional.batch_norm(x, mean, variance, weight, bias, learning, momentum, self.eps)
