"""Post-training Kernel Quantization: from a float graph and calibration images to stored weights and codebooks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np
import torch

from kqgen.calibrate import Ranges
from kqgen.cluster import Block, Codewords, assign, cluster
from kqgen.floatexec import evaluate
from kqgen.intgraph import IntCodebook, KqWeights, UniformWeights, frozen
from kqgen.ir import Conv2d, Graph, Input, frozen_array
from kqgen.kq_layers import Choice, LayerWeights, Quantised, choose, convolutions, distinct_kernels
from kqgen.kq_uniform import scale_floor, uniform, usable_scale
from kqgen.options import Compression, index_bits
from kqgen.samples import Samples

Progress = Callable[[str, float], None]

__all__ = ["Choice", "LayerWeights", "Progress", "Quantised", "choose", "fake_quantise", "quantise"]


def quantise(graph: Graph, compression: Compression, samples: Samples, ranges: Ranges, progress: Progress | None = None) -> Quantised:
    """Stored weights for every Conv2d of a simplified graph.

    Args:
        compression: what to index, how wide, and the seed; equal arguments give equal bytes.
        samples: calibration images.
        ranges: scale and zero point of every tensor.
        progress: told what is being done and the fraction done, 0..1.

    Raises:
        InputError: `compression.keep` names no layer.
    """
    tell = progress or (lambda label, fraction: None)
    choices = {choice.layer: choice for choice in choose(graph, compression)}
    books: dict[str, Codewords] = {}
    warnings: list[str] = []
    names = list(dict.fromkeys(choice.codebook for choice in choices.values() if choice.codebook))
    for position, name in enumerate(names):
        tell(f"clustering {name}", 0.7 * position / len(names))
        members = [node for node in convolutions(graph) if choices[node.name].codebook == name]
        books[name], warning = _cluster(name, members, compression)
        warnings += warning
    layers = _walk(graph, choices, books, compression, samples, ranges, tell)
    tell("weights quantised", 1.0)
    codebooks = tuple(_codebook(name, books[name], graph, choices, compression.codebook.sign) for name in names)
    return Quantised(tuple(layers.items()), codebooks, tuple(warnings))


def fake_quantise(x: torch.Tensor, scale: float, zero_point: int) -> torch.Tensor:
    """Real values as their int8 codes mean them, halves up, clamped (SPEC 1.2). Any shape, float32."""
    codes = (torch.floor(x.double() / scale + 0.5) + zero_point).clamp(-128, 127)
    return ((codes - zero_point) * scale).float()


def _root_mean_square(node: Conv2d) -> np.ndarray:
    flat = node.weight.reshape(node.weight.shape[0], -1).astype(np.float64)
    size: np.ndarray = np.sqrt((flat * flat).mean(axis=1))
    return size


def _block(node: Conv2d) -> Block:
    c_out, c_in, k_h, k_w = node.weight.shape
    size = _root_mean_square(node)
    scaled = node.weight.astype(np.float64) / np.where(size > 0, size, 1.0)[:, None, None, None]
    vectors = torch.from_numpy(scaled).reshape(c_out, c_in, k_h * k_w).transpose(0, 1).contiguous()
    roots = torch.eye(k_h * k_w, dtype=torch.float64).repeat(c_in, 1, 1)
    return Block(vectors, torch.ones((c_in, c_out), dtype=torch.float64), roots)


def _cluster(name: str, members: list[Conv2d], compression: Compression) -> tuple[Codewords, list[str]]:
    sign, wanted = compression.codebook.sign, compression.codebook.codewords
    distinct = len(np.unique(np.concatenate([distinct_kernels(node.weight, sign) for node in members]), axis=0))
    warnings = []
    if distinct < wanted:
        layers = ", ".join(node.path or node.name for node in members)
        warnings.append(
            f"{name}: {wanted} codewords were asked for, but {layers} {'has' if len(members) == 1 else 'have'} only "
            f"{distinct} distinct kernels; the codebook is reduced to {distinct}."
        )
    blocks = [_block(node) for node in members]
    return cluster(blocks, min(wanted, distinct), sign, np.random.default_rng(compression.seed)), warnings


def _codebook(name: str, book: Codewords, graph: Graph, choices: Mapping[str, Choice], sign: bool) -> IntCodebook:
    kernel = next(node.kernel for node in convolutions(graph) if choices[node.name].codebook == name)
    return IntCodebook(name, frozen(book.values.reshape(-1, *kernel), np.int8), sign)


def _walk(
    graph: Graph,
    choices: Mapping[str, Choice],
    books: Mapping[str, Codewords],
    compression: Compression,
    samples: Samples,
    ranges: Ranges,
    tell: Progress,
) -> dict[str, LayerWeights]:
    """Stores layer after layer; each bias makes up for the mean error that the layers before it and its own weights cause."""
    layers: dict[str, LayerWeights] = {}
    real: dict[str, torch.Tensor] = {}
    quant: dict[str, torch.Tensor] = {}
    images = next(samples.batches(samples.count))
    last_reader = {name: index for index, node in enumerate(graph) for name in node.inputs}
    for index, node in enumerate(graph):
        tell(f"quantising {node.name}", 0.7 + 0.3 * index / len(graph.nodes))
        if isinstance(node, Input):
            real[node.name], value = images[node.name], images[node.name]
        elif isinstance(node, Conv2d):
            x = quant[node.inputs[0]]
            stored = _store(node, choices[node.name], books, compression, ranges[node.inputs[0]].scale)
            integers, free = stored[0], replace(node, lo=-np.inf, hi=np.inf)
            weight = frozen_array(stored[1][:, None, None, None] * integers.astype(np.float32))
            wanted, got = evaluate(free, [real[node.inputs[0]]]), evaluate(replace(free, weight=weight), [x])
            shift = (wanted - got).double().mean((0, 2, 3))
            value = (got + shift.float()[:, None, None]).clamp(node.lo, node.hi)
            real[node.name] = wanted.clamp(node.lo, node.hi)
            bias = frozen_array(node.bias + shift.numpy())
            layers[node.name] = LayerWeights(stored[2], frozen_array(stored[1]), bias, choices[node.name].reason)
        else:
            real[node.name] = evaluate(node, [real[name] for name in node.inputs])
            value = evaluate(node, [quant[name] for name in node.inputs])
        entry = ranges[node.name]
        quant[node.name] = fake_quantise(value, entry.scale, entry.zero_point)
        for name in {name for name in node.inputs if last_reader[name] == index}:
            del real[name], quant[name]
    return layers


def _store(
    node: Conv2d, choice: Choice, books: Mapping[str, Codewords], compression: Compression, input_scale: float
) -> tuple[np.ndarray, np.ndarray, UniformWeights | KqWeights]:
    """Integers (c_out, c_in, k_h, k_w), weight scale (c_out,) float32 and how they are stored."""
    shape = node.weight.shape
    floor = scale_floor(node.bias, input_scale)
    if not choice.codebook:
        flat = node.weight.reshape(shape[0], -1).astype(np.float64)
        values, scale = uniform(flat, np.ones(flat.shape[1]), choice.bits, floor)
        integers = values.reshape(shape)
        return integers, scale, UniformWeights(choice.bits, frozen(integers.transpose(0, 2, 3, 1), np.int8))
    book, sign = books[choice.codebook], compression.codebook.sign
    found = assign(_block(node), book.tensor(), sign)
    codes, negative = found.codes.numpy().T, found.negative.numpy().T
    integers = np.where(negative[:, :, None], -1, 1) * book.values[codes].astype(np.int64)
    flat, whole = node.weight.reshape(shape[0], -1).astype(np.float64), integers.reshape(shape[0], -1)
    power = (whole * whole).sum(axis=1)
    scale = usable_scale(np.maximum((flat * whole).sum(axis=1) / np.maximum(power, 1), 0), floor)
    weights = KqWeights(
        choice.codebook, index_bits(len(book.values), sign), frozen(codes, np.int16), frozen(negative, np.bool_)
    )
    return integers.reshape(shape), scale, weights
