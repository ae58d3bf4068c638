"""Post-training Kernel Quantization: from a float graph and calibration images to stored weights and codebooks.

    1  choose which layers are indexed                                     kq_layers
    2  learn each codebook that several layers share, on float inputs      kq_moments, cluster, kq_fit
    3  walk the graph: each layer is fitted to give the float network's outputs from the inputs that the quantised layers before
       it really deliver (a codebook of one layer is learned here), and its bias takes up the mean error that is left
    4  drop the codewords that no kernel uses

Only the cluster seeds are drawn, from the seed given; the covariances of inputs are sums of whole numbers, exact in any order, and
everything after them is float64 in a fixed order. Equal arguments give equal bytes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch

from kqgen.calibrate import Ranges, TensorRange
from kqgen.cluster import L1_LIMIT, Codewords
from kqgen.floatexec import evaluate
from kqgen.intgraph import Int8, IntCodebook, KqWeights, UniformWeights, frozen
from kqgen.ir import Conv2d, Float32, Graph, Input, frozen_array
from kqgen.kq_fit import Solution, learn, pose, solve
from kqgen.kq_layers import Choice, LayerWeights, Quantised, choose, codebook_members, distinct_kernels
from kqgen.kq_moments import WIDEST, Moments, best_weights, codes_of, collect, damped
from kqgen.kq_uniform import scale_floor, uniform, usable_scale
from kqgen.options import Compression, index_bits
from kqgen.samples import Samples

Progress = Callable[[str, float], None]
_Tensors = dict[str, torch.Tensor]

_LARGEST_MAP_BYTES = 1 << 28
"""As many images are used as keep the largest map of all of them within this."""
_MOSTLY_USED = 0.9
_NOTICEABLE_FACTOR, _NOTICEABLE_LOSS = 1.25, 0.005
"""Rounding codewords is worth a warning when it raises the error by this factor and by this part of the outputs' power."""
_LEARNING = 0.5

__all__ = ["Choice", "LayerWeights", "Progress", "Quantised", "choose", "fake_quantise", "quantise"]


@dataclass(frozen=True, slots=True, eq=False)
class _Book:
    """A learned codebook, and each layer's codes in it when it was learned."""

    codewords: Codewords
    solutions: Mapping[str, Solution]


@dataclass(frozen=True, slots=True, eq=False)
class _Fitted:
    """A layer as the walk leaves it: integers (c_out, c_in, k_h, k_w), scale and bias (c_out,), its codes when it is indexed."""

    integers: Int8
    scale: Float32
    bias: Float32
    solution: Solution | None


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
    members = codebook_members(graph, choices.values())
    images = _images(graph, samples)
    books = _learn_shared(graph, {name: nodes for name, nodes in members.items() if len(nodes) > 1}, compression, images, ranges, tell)
    fitted, learned = _walk(graph, choices, books, compression, images, ranges, tell)
    tell("weights quantised", 1.0)
    return _finish(choices, members, learned, fitted, compression)


def fake_quantise(x: torch.Tensor, entry: TensorRange) -> torch.Tensor:
    """Real values as their int8 codes mean them, halves up, clamped (SPEC 1.2). Any shape, float32."""
    codes = (x / entry.scale).add_(0.5).floor_().clamp_(-128 - entry.zero_point, 127 - entry.zero_point)
    return codes.mul_(entry.scale)


def _images(graph: Graph, samples: Samples) -> _Tensors:
    largest_bytes = max(4 * math.prod(node.shape) for node in graph)
    return next(samples.batches(max(1, min(samples.count, _LARGEST_MAP_BYTES // largest_bytes))))


def _distinct(nodes: tuple[Conv2d, ...], compression: Compression) -> int:
    kernels = np.concatenate([distinct_kernels(node.weight, compression.codebook.sign) for node in nodes])
    return len(np.unique(kernels, axis=0))


def _learn(layers: Mapping[str, tuple[Conv2d, Moments]], compression: Compression, name: str) -> _Book:
    """The codebook `name` for layers (node name -> layer and moments)."""
    posed = {key: pose(best_weights(node, moments), damped(moments), math.prod(node.kernel)) for key, (node, moments) in layers.items()}
    count = min(compression.codebook.codewords, _distinct(tuple(node for node, _ in layers.values()), compression))
    # Each codebook draws from its own stream, so that one layer more or less leaves the others' codebooks alone.
    rng = np.random.default_rng([compression.seed % 2**64, *name.encode()])
    codewords, solutions = learn(tuple(posed.values()), count, compression.codebook.sign, rng)
    return _Book(codewords, dict(zip(posed, solutions, strict=True)))


def _learn_shared(
    graph: Graph,
    members: Mapping[str, tuple[Conv2d, ...]],
    compression: Compression,
    images: _Tensors,
    ranges: Ranges,
    tell: Progress,
) -> dict[str, _Book]:
    """The codebooks that serve several layers, from the float network's maps."""
    wanted = {node.name for nodes in members.values() for node in nodes}
    if not wanted:
        return {}
    seen: dict[str, tuple[Conv2d, Moments]] = {}
    real: _Tensors = {}
    for index, node in enumerate(graph):
        tell(f"observing {node.path or node.name}", _LEARNING * 0.7 * index / len(graph.nodes))
        if isinstance(node, Conv2d):
            before = evaluate(_unclamped(node), [real[node.inputs[0]]])
            if node.name in wanted:
                entry = ranges[node.inputs[0]]
                codes = codes_of(node, fake_quantise(real[node.inputs[0]], entry), entry.scale)
                seen[node.name] = (node, collect(node, codes, before, entry.scale))
            real[node.name] = before.clamp_(node.lo, node.hi)
        else:
            real[node.name] = images[node.name] if isinstance(node, Input) else evaluate(node, [real[name] for name in node.inputs])
        _let_go(graph, index, real)
    books: dict[str, _Book] = {}
    for position, (name, nodes) in enumerate(members.items()):
        tell(f"clustering the kernels of {name}", _LEARNING * (0.7 + 0.3 * position / len(members)))
        books[name] = _learn({node.name: seen[node.name] for node in nodes}, compression, name)
    return books


def _walk(
    graph: Graph,
    choices: Mapping[str, Choice],
    books: Mapping[str, _Book],
    compression: Compression,
    images: _Tensors,
    ranges: Ranges,
    tell: Progress,
) -> tuple[dict[str, _Fitted], dict[str, _Book]]:
    """Every layer fitted in execution order, the float network and the quantised one side by side; all codebooks, new ones included."""
    fitted: dict[str, _Fitted] = {}
    learned = dict(books)
    real: _Tensors = {}
    quant: _Tensors = {}
    for index, node in enumerate(graph):
        tell(f"fitting {node.path or node.name}", _LEARNING + (1 - _LEARNING) * index / len(graph.nodes))
        if isinstance(node, Input):
            real[node.name] = value = images[node.name]
        elif isinstance(node, Conv2d):
            source, entry = quant[node.inputs[0]], ranges[node.inputs[0]]
            wanted = evaluate(_unclamped(node), [real[node.inputs[0]]])
            integers, scale, solution = _fit(node, choices[node.name], learned, compression, source, wanted, entry)
            weight = frozen_array(scale[:, None, None, None] * integers.astype(np.float32))
            found = evaluate(replace(_unclamped(node), weight=weight), [source])
            shift = (wanted - found).double().mean((0, 2, 3)).numpy()
            bias = frozen_array(node.bias + shift)
            fitted[node.name] = _Fitted(integers, frozen_array(scale), bias, solution)
            value = (found + torch.from_numpy(bias - node.bias)[:, None, None]).clamp_(node.lo, node.hi)
            real[node.name] = wanted.clamp_(node.lo, node.hi)
        else:
            real[node.name] = evaluate(node, [real[name] for name in node.inputs])
            value = evaluate(node, [quant[name] for name in node.inputs])
        quant[node.name] = fake_quantise(value, ranges[node.name])
        _let_go(graph, index, real)
        _let_go(graph, index, quant)
    return fitted, learned


def _fit(
    node: Conv2d,
    choice: Choice,
    books: dict[str, _Book],
    compression: Compression,
    source: torch.Tensor,
    wanted: torch.Tensor,
    entry: TensorRange,
) -> tuple[Int8, npt.NDArray[np.float32], Solution | None]:
    """Integers (c_out, c_in, k_h, k_w), scales (c_out,) and, for an indexed layer, its codes. A missing codebook is learned and added."""
    floor = scale_floor(node.bias, entry.scale)
    if not choice.codebook and node.weight[0].size > WIDEST:
        values, scale = uniform(node.weight.reshape(len(node.weight), -1).astype(np.float64), None, choice.bits, floor)
        return frozen(values.reshape(node.weight.shape), np.int8), scale, None
    moments = collect(node, codes_of(node, source, entry.scale), wanted, entry.scale)
    target, second = best_weights(node, moments), damped(moments)
    if not choice.codebook:
        values, scale = uniform(target, second, choice.bits, floor)
        return frozen(values.reshape(node.weight.shape), np.int8), scale, None
    if choice.codebook in books:
        book = books[choice.codebook]
        problem = pose(target, second, math.prod(node.kernel))
        # Begun anew: going on from the codes learned on float inputs lowers this loss further, but not the error on unseen images.
        solution = solve(problem, book.codewords.reals(), compression.codebook.sign, book.solutions[node.name].scale)
    else:
        book = books[choice.codebook] = _learn({node.name: (node, moments)}, compression, choice.codebook)
        solution = book.solutions[node.name]
    kernels = book.codewords.values[solution.codes] * np.where(solution.negative, -1, 1)[:, :, None]
    scale = usable_scale(solution.scale * book.codewords.step, floor)
    return frozen(kernels.reshape(node.weight.shape), np.int8), scale, solution


def _unclamped(node: Conv2d) -> Conv2d:
    return replace(node, lo=-math.inf, hi=math.inf)


def _let_go(graph: Graph, index: int, tensors: _Tensors) -> None:
    """Forgets the tensors that no node after number `index` reads."""
    needed = {name for node in graph.nodes[index + 1 :] for name in node.inputs}
    for name in [name for name in tensors if name not in needed]:
        del tensors[name]


def _finish(
    choices: Mapping[str, Choice],
    members: Mapping[str, tuple[Conv2d, ...]],
    books: Mapping[str, _Book],
    fitted: Mapping[str, _Fitted],
    compression: Compression,
) -> Quantised:
    """Packs the walk's findings: codewords in use only, codes renumbered, reductions and losses told."""
    sign = compression.codebook.sign
    numbers: dict[str, npt.NDArray[np.int64]] = {}
    codebooks: list[IntCodebook] = []
    warnings: list[str] = []
    for name, nodes in members.items():
        book = books[name].codewords
        codes = [solution.codes for node in nodes if (solution := fitted[node.name].solution) is not None]
        used = np.unique(np.concatenate([each.reshape(-1) for each in codes]))
        numbers[name] = np.full(len(book.values), -1)
        numbers[name][used] = np.arange(len(used))
        codebooks.append(IntCodebook(name, frozen(book.values[used].reshape(-1, *nodes[0].kernel), np.int8), sign))
        warnings += _warnings(name, nodes, book, len(used), compression)
    layers = []
    for name, layer in fitted.items():
        choice = choices[name]
        if layer.solution is None:
            weights: UniformWeights | KqWeights = UniformWeights(choice.bits, frozen(layer.integers.transpose(0, 2, 3, 1), np.int8))
        else:
            codes_now = frozen(numbers[choice.codebook][layer.solution.codes], np.int16)
            width = index_bits(int(numbers[choice.codebook].max()) + 1, sign)
            weights = KqWeights(choice.codebook, width, codes_now, frozen(layer.solution.negative, np.bool_))
        layers.append((name, LayerWeights(weights, layer.scale, layer.bias, choice.reason)))
    return Quantised(tuple(layers), tuple(codebooks), tuple(warnings))


def _warnings(name: str, nodes: tuple[Conv2d, ...], book: Codewords, used: int, compression: Compression) -> list[str]:
    out = []
    asked, distinct = compression.codebook.codewords, _distinct(nodes, compression)
    layers = ", ".join(node.path or node.name for node in nodes)
    if distinct < asked:
        out.append(
            f"{name}: {asked} codewords were asked for, but {layers} {'has' if len(nodes) == 1 else 'have'} only {distinct} distinct "
            f"kernels; {used} codewords are stored."
        )
    elif used < _MOSTLY_USED * asked:
        out.append(f"{name}: {used} of the {asked} codewords asked for are in use by {layers}; only these are stored.")
    before, after = book.loss_before_rounding / len(nodes), book.loss / len(nodes)
    if after > _NOTICEABLE_FACTOR * before and after - before > _NOTICEABLE_LOSS:
        out.append(
            f"{name}: codewords of 6 bits whose absolute values sum to at most {L1_LIMIT} raise the error of {layers} from "
            f"{100 * before:.1f} to {100 * after:.1f} % of the output power."
        )
    return out
