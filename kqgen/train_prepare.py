"""Prepares a user's module for training: codebooks learned from its kernels, few-bit weights, int8 maps, and the module left as it was."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import nn
from torch.nn.utils import parametrize

from kqgen.calibrate import Ranges
from kqgen.cluster import Block, cluster
from kqgen.errors import InputError
from kqgen.kq_layers import Choice, choose, convolutions
from kqgen.kq_uniform import best_scale
from kqgen.options import Compression
from kqgen.planned import codewords_at
from kqgen.train_assign import nearest
from kqgen.train_blueprint import Blueprint, TrainedLayer
from kqgen.train_graph import QUANT_PREFIX, trainable
from kqgen.train_model import KqModule
from kqgen.train_modules import FakeQuant, IndexedWeight, KernelLayout, LearnedCodebook, UniformWeight

_CLUSTER_KERNELS, _KERNELS_A_WORD = 32768, 48
"""Codebooks are started from so many kernels at most, in all and for each codeword: more would change nothing after training."""
_GROUP = 2048
_LEAST_SPREAD = 1e-6


def build(model: nn.Module | None, blueprint: Blueprint, compression: Compression) -> KqModule:
    """The module that trains, on the CPU, its codebooks started by clustering.

    Raises:
        InputError: a layer named in `compression` does not exist.
    """
    points = {point.value: FakeQuant(pixels=point.is_input, fixed=point.fixed) for point in blueprint.points}
    net = trainable(blueprint.program, model, points)
    compression = replace(compression, keep=(*_other_than_8_bits(blueprint, compression), *((name, 8) for name in blueprint.derived)))
    choices = {choice.layer: choice for choice in choose(blueprint.graph, compression)}
    books, reasons = _parametrise(net, blueprint, choices, compression)
    return KqModule(net, blueprint, books, reasons)


def _other_than_8_bits(blueprint: Blueprint, compression: Compression) -> tuple[tuple[str, int], ...]:
    """The layers to keep uniform, less those that training keeps at 8 bits anyway.

    Raises:
        InputError: such a layer is to be kept at fewer bits.
    """
    names = {name for conv in convolutions(blueprint.graph) if conv.name in blueprint.derived for name in (conv.name, conv.path)}
    for layer, bits in compression.keep:
        if layer in names and bits != 8:
            raise InputError(
                f"layer {layer} cannot be trained at {bits} bits: its weight is a parameter turned, split or reordered",
                wanted="8 bits", do=f"drop --keep {layer}={bits}, or narrow it after training",
            )  # fmt: skip
    return tuple((layer, bits) for layer, bits in compression.keep if layer not in names)


def start_ranges(model: KqModule, ranges: Ranges) -> None:
    """Starts every map from its calibrated range."""
    for point in model.blueprint.points:
        entry = ranges[point.tensor]
        if point.fixed is not None:
            continue
        quant = getattr(model.net, f"{QUANT_PREFIX}{point.value}")
        quant.set_range((-128 - entry.zero_point) * entry.scale, (127 - entry.zero_point) * entry.scale)


def _parametrise(
    net: nn.Module, blueprint: Blueprint, choices: Mapping[str, Choice], compression: Compression
) -> tuple[dict[str, str], dict[str, str]]:
    """Parametrises every weight; returns codebook names and reasons by parameter."""
    indexed: dict[str, list[TrainedLayer]] = {}
    reasons: dict[str, str] = {}
    for layer in blueprint.layers:
        choice = choices.get(layer.conv.name)
        reasons[layer.parameter] = choice.reason if choice else "no kernels to index"
        if choice is not None and choice.codebook:
            indexed.setdefault(choice.codebook, []).append(layer)
        else:
            _register(net, layer.parameter, _uniform(layer, choice.bits if choice else 8, _raw(net, layer.parameter)))
    books: dict[str, str] = {}
    for position, (name, layers) in enumerate(indexed.items()):
        layouts = [_layout(net, layer, choices[layer.conv.name].run) for layer in layers]
        _index(net, layers, layouts, compression, [compression.seed % 2**64, position])
        books.update({layer.parameter: name for layer in layers})
    order = [layer.parameter for layer in blueprint.layers if layer.parameter in books]
    return {parameter: books[parameter] for parameter in order}, reasons


def _raw(net: nn.Module, parameter: str) -> torch.Tensor:
    return net.get_parameter(parameter).detach().cpu()


def _register(net: nn.Module, parameter: str, made: nn.Module) -> None:
    path, _, leaf = parameter.rpartition(".")
    parametrize.register_parametrization(net.get_submodule(path), leaf, made, unsafe=True)


def _along(values: torch.Tensor, rank: int, axis: int) -> torch.Tensor:
    """A vector laid on one axis of `rank` axes."""
    return values.reshape([-1 if each == axis else 1 for each in range(rank)])


def _uniform(layer: TrainedLayer, bits: int, weight: torch.Tensor) -> UniformWeight:
    inputs = torch.from_numpy(layer.input_scale.copy())
    rank = weight.dim()
    spread = _along(inputs, rank, 1) if not layer.plain else torch.ones([1] * rank)
    rows = (weight * spread).movedim(layer.channel_axis, 0).flatten(1).double().numpy()
    scale = torch.from_numpy(best_scale(rows, np.ones(rows.shape[1]), bits))
    alive = scale[(torch.from_numpy(rows) != 0).any(1)]
    scale = torch.where(torch.from_numpy(rows != 0).any(1), scale, alive.median() if len(alive) else torch.ones(()))
    return UniformWeight(bits, _along(scale, rank, layer.channel_axis), spread)


def _layout(net: nn.Module, layer: TrainedLayer, run: int) -> KernelLayout:
    c_out, c, k_h, k_w = layer.conv.weight.shape
    return KernelLayout(net.get_parameter(layer.parameter).shape, (c_out, c, k_h, k_w), run)


def _index(
    net: nn.Module, layers: Sequence[TrainedLayer], layouts: Sequence[KernelLayout], compression: Compression, seed: list[int]
) -> None:
    """Learns one codebook and gives each kernel of its layers the nearest codeword."""
    book_options = compression.codebook
    scales, latents = [], []
    for layer, layout in zip(layers, layouts, strict=True):
        inputs = layout.per_kernel(torch.from_numpy(layer.input_scale.copy()).double())
        weight = layout.kernels(_raw(net, layer.parameter).double()) * inputs
        deviation = weight.flatten(1).square().mean(1).sqrt()
        deviation = deviation.clamp_min(_LEAST_SPREAD * float(deviation.max().clamp_min(1e-30)))
        # Where the batch norm behind turns a channel's sign, its kernels are read turned, so that no integer scale is negative.
        turned = torch.where(torch.from_numpy(layer.factor.copy()) < 0, -deviation, deviation)
        scales.append(turned.float())
        latents.append((weight / turned[:, None, None, None]).flatten(0, 1).flatten(1))
    vectors = torch.cat(latents)
    widths = dict(compression.widths)
    counts = [codewords_at(widths.get(layer.conv.path, widths.get(layer.conv.name)), book_options) for layer in layers]
    stored = max(counts)
    values, step = _start_words(vectors, stored, book_options.sign, book_options.additive, np.random.default_rng(seed))
    book = LearnedCodebook(values, step, sign=book_options.sign, additive=book_options.additive)
    for layer, layout, scale, latent, count in zip(layers, layouts, scales, latents, counts, strict=True):
        inputs = torch.from_numpy(layer.input_scale.copy())
        made = IndexedWeight(book, count, layout, scale, inputs, gain=not layer.normed)
        codes, signs, _ = nearest(latent.float(), book.table(count).detach(), book.sign)
        made.codes.copy_(codes[:, 0])
        made.signs.copy_(signs[:, 0])
        _register(net, layer.parameter, made)


def _start_words(
    vectors: torch.Tensor, count: int, sign: bool, additive: bool, rng: np.random.Generator
) -> tuple[torch.Tensor, float]:
    """Codewords in steps and the step, by k-means on the kernels; for sums, a second codebook on what the first leaves."""
    most = max(4096, min(_CLUSTER_KERNELS, _KERNELS_A_WORD * count))
    if len(vectors) > most:
        vectors = vectors[torch.from_numpy(np.sort(rng.choice(len(vectors), most, replace=False)))]
    first = cluster(_blocks(vectors), count, sign and not additive, rng, restarts=1)
    words = torch.from_numpy(first.reals())
    if not additive:
        # The most used first: they are all that layers of narrow indices have.
        use = torch.bincount(nearest(vectors.float(), words.float(), sign)[0][:, 0], minlength=len(words))
        words = words[use.argsort(descending=True, stable=True)]
        return _filled(words, count, vectors, rng) / first.step, first.step
    words = _filled(words, count, vectors, rng)
    left = vectors
    if sign:
        codes, signs, _ = nearest(vectors.float(), words.float(), True)
        left = vectors * signs.double() - words[codes[:, 0]]
    else:
        codes, _, _ = nearest(vectors.float(), words.float(), False)
        left = vectors - words[codes[:, 0]]
    second = cluster(_blocks(left), count, False, rng, restarts=1)
    both = torch.cat([words, _filled(torch.from_numpy(second.reals()), count, left, rng)])
    return both / first.step, first.step


def _blocks(vectors: torch.Tensor) -> tuple[Block, ...]:
    """Kernels that all cost alike, in groups small enough for the tables of distances."""
    root = torch.eye(vectors.shape[1], dtype=torch.float64)[None]
    return tuple(Block(part[None], torch.ones((1, len(part)), dtype=torch.float64), root) for part in torch.split(vectors, _GROUP))


def _filled(words: torch.Tensor, count: int, vectors: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """Exactly `count` codewords: where fewer distinct kernels exist, kernels drawn at random fill the rest."""
    missing = count - len(words)
    if missing <= 0:
        return words
    return torch.cat([words, vectors[torch.from_numpy(rng.integers(len(vectors), size=missing))]])

