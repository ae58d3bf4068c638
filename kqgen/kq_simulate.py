"""The quantised network as PyTorch can differentiate it: int8 maps and 6-bit codewords simulated, gradients pass roundings unchanged.

What can be changed are codewords, unindexed integers, scales and biases of all layers together; codes stay.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from kqgen.calibrate import Ranges, TensorRange
from kqgen.cluster import VALUE_LIMIT, Codewords, round_codewords
from kqgen.cluster_pairs import round_pairs
from kqgen.floatexec import conv_input, conv_stride, evaluate
from kqgen.intgraph import Int8, frozen
from kqgen.ir import Conv2d, Float32, Graph, Input, frozen_array
from kqgen.kq_fit import Solution
from kqgen.kq_uniform import scale_floor

Tensors = dict[str, torch.Tensor]

_BIAS_STEPS = 64
"""A bias is counted in so many int8 steps of the layer's output, so that one rate of learning serves all layers."""


@dataclass(frozen=True, slots=True, eq=False)
class Fitted:
    """A layer's weights while they are worked on.

    Attributes:
        integers: of the float weight's shape.
        scale, bias: (c_out,).
        bits: of uniform weights.
        book: name of the codebook, "" for uniform weights.
        solution: the codes of an indexed layer, as `Codewords.kernels` counts them.
    """

    integers: Int8
    scale: Float32
    bias: Float32
    bits: int
    book: str = ""
    solution: Solution | None = None


class _Rounded(torch.autograd.Function):
    """Whole numbers in the place of reals; gradients as if they were the reals."""

    @staticmethod
    def forward(ctx: Any, reals: torch.Tensor, whole: torch.Tensor) -> torch.Tensor:
        del ctx, reals
        return whole.clone()

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        del ctx
        return gradient, None


class _Coded(torch.autograd.Function):
    """Reals as their int8 codes mean them, halves up (SPEC 1.2); gradients pass where no code is clamped."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, scale: float, low: int, high: int) -> torch.Tensor:
        codes = (x / scale).add_(0.5).floor_()
        ctx.save_for_backward((codes >= low) & (codes <= high))
        return codes.clamp_(low, high).mul_(scale)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None, None, None]:
        return gradient * ctx.saved_tensors[0], None, None, None


def rounded(reals: torch.Tensor, whole: torch.Tensor) -> torch.Tensor:
    """`whole`, with the gradients of `reals`. Equal shapes."""
    value: torch.Tensor = _Rounded.apply(reals, whole)  # type: ignore[no-untyped-call]
    return value


def coded(x: torch.Tensor, entry: TensorRange) -> torch.Tensor:
    """`x` as int8 codes mean it, differentiable. Any shape, float32."""
    value: torch.Tensor = _Coded.apply(x, entry.scale, -128 - entry.zero_point, 127 - entry.zero_point)  # type: ignore[no-untyped-call]
    return value


class SimulatedLayer:
    """One layer, and what of it can be changed.

    Attributes:
        growth: (c_out,), the scale's change, as a natural logarithm.
        shift: (c_out,), the bias's change in units of 64 int8 steps of the output.
        shares: of the weight's shape, uniform weights as parts of the largest; fixed in an indexed layer.
    """

    def __init__(self, node: Conv2d, fitted: Fitted, output_scale: float) -> None:
        self.node, self.fitted = node, fitted
        self._scale, self._bias = torch.from_numpy(fitted.scale.copy()), torch.from_numpy(fitted.bias.copy())
        self.growth = torch.zeros_like(self._scale, requires_grad=True)
        self.shift = torch.zeros_like(self._bias, requires_grad=True)
        self._unit = _BIAS_STEPS * output_scale
        self._offset = None if node.input_offset is None else torch.from_numpy(node.input_offset.copy())[:, None, None]
        self._limit = 2 ** (fitted.bits - 1) - 1
        self.shares = torch.from_numpy(fitted.integers.astype(np.float32) / self._limit).requires_grad_(not fitted.book)
        if fitted.solution is not None:
            self.codes = torch.from_numpy(fitted.solution.codes.reshape(-1))
            self.signs = torch.from_numpy(np.where(fitted.solution.negative, -1.0, 1.0).astype(np.float32).reshape(-1, 1))

    def integers(self, kernels: Tensors) -> torch.Tensor:
        """(c_out, c_in, k_h, k_w) whole numbers, from what each codebook's codes stand for."""
        if not self.fitted.book:
            reals = self.shares * self._limit
            return rounded(reals, reals.detach().round().clamp(-self._limit, self._limit))
        return (kernels[self.fitted.book][self.codes] * self.signs).reshape(self.shares.shape)

    def scale(self) -> torch.Tensor:
        """(c_out,), > 0."""
        return self._scale * torch.exp(self.growth)

    def bias(self) -> torch.Tensor:
        """(c_out,)."""
        return self._bias + self.shift * self._unit

    def run(self, x: torch.Tensor, kernels: Tensors) -> torch.Tensor:
        """The layer's real output (N, c_out, h, w), clamped as the node says."""
        node = self.node
        x = conv_input(node, x if self._offset is None else x - self._offset)
        top, bottom, left, right = node.padding
        if (top, left) != (bottom, right):
            x, top, left = F.pad(x, (left, right, top, bottom)), 0, 0
        weight = self.integers(kernels) * self.scale()[:, None, None, None]
        y = F.conv2d(x, weight, self.bias(), conv_stride(node), (top, left), node.dilation, node.groups)
        return y if (node.lo, node.hi) == (-math.inf, math.inf) else y.clamp(node.lo, node.hi)


class SimulatedNet:
    """The quantised network beside the float one.

    Attributes:
        layers: by node name.
        words: per codebook its codewords in steps, not rounded.
    """

    def __init__(self, graph: Graph, fitted: Mapping[str, Fitted], books: Mapping[str, Codewords], ranges: Ranges) -> None:
        self._graph, self._books = graph, books
        self._ranges = {entry.name: entry for entry in ranges}
        self.layers = {
            node.name: SimulatedLayer(node, fitted[node.name], self._ranges[node.name].scale) for node in graph if isinstance(node, Conv2d)
        }
        self.words = {name: torch.from_numpy(book.values.astype(np.float32)).requires_grad_() for name, book in books.items()}

    def float_maps(self, images: Tensors, wanted: Mapping[str, float]) -> Tensors:
        """The float network's tensors named in `wanted`, each (N, c, h, w)."""
        live: Tensors = {}
        with torch.no_grad():
            for node in self._graph:
                live[node.name] = images[node.name] if isinstance(node, Input) else evaluate(node, [live[name] for name in node.inputs])
        return {name: live[name] for name in wanted}

    def maps(self, images: Tensors, wanted: Mapping[str, float]) -> Tensors:
        """The quantised network's tensors named in `wanted`, each (N, c, h, w), differentiable."""
        kernels = {name: self._kernels(name) for name in self.words}
        live: Tensors = {}
        for node in self._graph:
            if isinstance(node, Input):
                value = images[node.name]
            elif isinstance(node, Conv2d):
                value = self.layers[node.name].run(live[node.inputs[0]], kernels)
            else:
                value = evaluate(node, [live[name] for name in node.inputs])
            live[node.name] = coded(value, self._ranges[node.name])
        return {name: live[name] for name in wanted}

    def bound(self) -> None:
        """Draws codewords back to where 6 bits reach."""
        with torch.no_grad():
            for words in self.words.values():
                words.clamp_(-VALUE_LIMIT, VALUE_LIMIT)

    def stored(self) -> tuple[dict[str, Fitted], dict[str, Codewords]]:
        """Layers and codebooks as they now are, in whole numbers."""
        books = {name: replace(book, values=self._whole(name)) for name, book in self._books.items()}
        kernels = {name: torch.from_numpy(book.kernels().astype(np.float32)) for name, book in books.items()}
        layers = {}
        with torch.no_grad():
            for name, layer in self.layers.items():
                bias, integers = layer.bias().numpy(), layer.integers(kernels).numpy()
                floor = scale_floor(bias, self._ranges[layer.node.inputs[0]].scale)
                scale = np.maximum(layer.scale().numpy(), np.nextafter(floor.astype(np.float32), np.float32(np.inf)))
                layers[name] = replace(
                    layer.fitted, integers=frozen(integers, np.int8), scale=frozen_array(scale), bias=frozen_array(bias)
                )
        return layers, books

    def _whole(self, name: str) -> Int8:
        words = self.words[name].detach().double()
        return round_pairs(words, 1.0) if self._books[name].additive else round_codewords(words, 1.0)

    def _kernels(self, name: str) -> torch.Tensor:
        """(codes, d): what the codes stand for."""
        whole = torch.from_numpy(self._whole(name).astype(np.float32))
        words = rounded(self.words[name], whole)
        if not self._books[name].additive:
            return words
        first, second = words.chunk(2)
        return (second[:, None] + first[None]).flatten(0, 1)
