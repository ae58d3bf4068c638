"""Post-training Kernel Quantization: from a float graph and calibration images to stored weights and codebooks.

    1  choose which layers are indexed                                     kq_layers
    2  learn each codebook that several layers share, on float inputs      kq_moments, cluster, kq_fit
    3  walk the graph: each layer is fitted to give the float network's outputs from the inputs that the quantised layers before
       it really deliver (a codebook of one layer is learned here), and its bias takes up the mean error that is left
    4  if asked, refine codewords, scales and biases of all layers together   kq_simulate, kq_blocks
    5  drop the codewords that no kernel uses

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
from kqgen.intgraph import IntCodebook, KqWeights, UniformWeights, frozen
from kqgen.ir import Conv2d, Graph, Input, frozen_array
from kqgen.kq_blocks import reconstruct
from kqgen.kq_fit import Solution, learn, pose, solve_in
from kqgen.kq_layers import Choice, LayerWeights, Quantised, choose, codebook_members, distinct_kernels, with_runs
from kqgen.kq_moments import WIDEST, Moments, best_weights, codes_of, collect, damped
from kqgen.kq_simulate import Fitted
from kqgen.kq_uniform import scale_floor, uniform, usable_scale
from kqgen.options import Codebook, Compression, index_bits
from kqgen.samples import Samples

Progress = Callable[[str, float], None]
_Tensors = dict[str, torch.Tensor]

_LARGEST_MAP_BYTES = 1 << 28
"""As many images are used as keep the largest map of all of them within this."""
_MOSTLY_USED = 0.9
_NOTICEABLE_FACTOR, _NOTICEABLE_LOSS = 1.25, 0.005
"""Rounding codewords is worth a warning when it raises the error by this factor and by this part of the outputs' power."""
_LEARNING = 0.5
_BEFORE_RECONSTRUCTION = 0.3

__all__ = ["Choice", "LayerWeights", "Progress", "Quantised", "choose", "fake_quantise", "quantise"]


@dataclass(frozen=True, slots=True, eq=False)
class _Book:
    """A learned codebook, and each layer's codes in it when it was learned."""

    codewords: Codewords
    solutions: Mapping[str, Solution]


def quantise(graph: Graph, compression: Compression, samples: Samples, ranges: Ranges, progress: Progress | None = None) -> Quantised:
    """Stored weights for every Conv2d of a simplified graph, of which layers may be cut into runs already (see `with_runs`).

    Args:
        compression: what to index, how wide, and the seed; equal arguments give equal bytes.
        samples: calibration images.
        ranges: scale and zero point of every tensor.
        progress: told what is being done and the fraction done, 0..1.

    Raises:
        InputError: `compression.keep` names no layer.
    """
    tell = progress or (lambda label, fraction: None)
    done = _BEFORE_RECONSTRUCTION if compression.reconstruct else 1.0
    before = _earlier(tell, done)
    graph = with_runs(graph, compression)
    choices = {choice.layer: choice for choice in choose(graph, compression)}
    members = codebook_members(graph, choices.values())
    images = _images(graph, samples)
    shared = {name: nodes for name, nodes in members.items() if len(nodes) > 1}
    books = _learn_shared(graph, shared, choices, compression, images, ranges, before)
    fitted, learned = _walk(graph, choices, books, compression, images, ranges, before)
    if compression.reconstruct:
        codewords = {name: book.codewords for name, book in learned.items()}
        rebuilt = reconstruct(graph, fitted, codewords, images, ranges, compression.reconstruct, compression.seed, _later(tell, done))
        fitted = dict(rebuilt.layers)
        learned = {name: replace(book, codewords=rebuilt.books[name]) for name, book in learned.items()}
    tell("weights quantised", 1.0)
    return _finish(choices, members, learned, fitted, compression)


def fake_quantise(x: torch.Tensor, entry: TensorRange) -> torch.Tensor:
    """Real values as their int8 codes mean them, halves up, clamped (SPEC 1.2). Any shape, float32."""
    codes = (x / entry.scale).add_(0.5).floor_().clamp_(-128 - entry.zero_point, 127 - entry.zero_point)
    return codes.mul_(entry.scale)


def _earlier(tell: Progress, end: float) -> Progress:
    return lambda label, fraction: tell(label, fraction * end)


def _later(tell: Progress, start: float) -> Progress:
    return lambda label, fraction: tell(label, start + (1 - start) * fraction)


def _images(graph: Graph, samples: Samples) -> _Tensors:
    largest_bytes = max(4 * math.prod(node.shape) for node in graph)
    return next(samples.batches(max(1, min(samples.count, _LARGEST_MAP_BYTES // largest_bytes))))


def _limit(choice: Choice, codebook: Codebook) -> int:
    """How many codewords of a stage a layer may use, the first ones; 0: all."""
    return 2 ** ((choice.index_bits - int(codebook.sign)) // codebook.stages) if choice.index_bits else 0


def _distinct(nodes: tuple[Conv2d, ...], compression: Compression) -> int:
    kernels = np.concatenate([distinct_kernels(node.weight, compression.codebook.sign) for node in nodes])
    return len(np.unique(kernels, axis=0))


def _learn(
    layers: Mapping[str, tuple[Conv2d, Moments]], choices: Mapping[str, Choice], compression: Compression, name: str
) -> _Book:
    """The codebook `name` for layers (node name -> layer and moments)."""
    form = compression.codebook
    limits = [_limit(choices[key], form) for key in layers]
    posed = {key: pose(best_weights(node, moments), damped(moments), math.prod(node.kernel)) for key, (node, moments) in layers.items()}
    widest = form.codewords if 0 in limits else max(limits)
    count = min(form.codewords, widest, _distinct(tuple(node for node, _ in layers.values()), compression))
    # Each codebook draws from its own stream, so that one layer more or less leaves the others' codebooks alone.
    rng = np.random.default_rng([compression.seed % 2**64, *name.encode()])
    codewords, solutions = learn(tuple(posed.values()), count, form.sign, rng, additive=form.additive, limits=limits)
    return _Book(codewords, dict(zip(posed, solutions, strict=True)))


def _learn_shared(
    graph: Graph,
    members: Mapping[str, tuple[Conv2d, ...]],
    choices: Mapping[str, Choice],
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
        books[name] = _learn({node.name: seen[node.name] for node in nodes}, choices, compression, name)
    return books


def _walk(
    graph: Graph,
    choices: Mapping[str, Choice],
    books: Mapping[str, _Book],
    compression: Compression,
    images: _Tensors,
    ranges: Ranges,
    tell: Progress,
) -> tuple[dict[str, Fitted], dict[str, _Book]]:
    """Every layer fitted in execution order, the float network and the quantised one side by side; all codebooks, new ones included."""
    fitted: dict[str, Fitted] = {}
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
            layer = _fit(node, choices[node.name], learned, compression, source, wanted, entry)
            weight = frozen_array(layer.scale[:, None, None, None] * layer.integers.astype(np.float32))
            found = evaluate(replace(_unclamped(node), weight=weight), [source])
            shift = (wanted - found).double().mean((0, 2, 3)).numpy()
            bias = frozen_array(node.bias + shift)
            fitted[node.name] = replace(layer, bias=bias)
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
) -> Fitted:
    """The layer with its bias as it was. A missing codebook is learned and added."""
    floor = scale_floor(node.bias, entry.scale)
    if not choice.codebook and node.weight[0].size > WIDEST:
        values, scale = uniform(node.weight.reshape(len(node.weight), -1).astype(np.float64), None, choice.bits, floor)
        return Fitted(frozen(values.reshape(node.weight.shape), np.int8), frozen_array(scale), node.bias, choice.bits)
    moments = collect(node, codes_of(node, source, entry.scale), wanted, entry.scale)
    target, second = best_weights(node, moments), damped(moments)
    if not choice.codebook:
        values, scale = uniform(target, second, choice.bits, floor)
        return Fitted(frozen(values.reshape(node.weight.shape), np.int8), frozen_array(scale), node.bias, choice.bits)
    problem = pose(target, second, math.prod(node.kernel))
    if choice.codebook in books:
        book = books[choice.codebook]
        # Begun anew: going on from the codes learned on float inputs lowers this loss further, but not the error on unseen images.
        limit = _limit(choice, compression.codebook)
        solution = solve_in(problem, book.codewords, limit, compression.codebook.sign, book.solutions[node.name].scale)
    else:
        book = books[choice.codebook] = _learn({node.name: (node, moments)}, {node.name: choice}, compression, choice.codebook)
        solution = book.solutions[node.name]
    kernels = book.codewords.kernels()[solution.codes] * np.where(solution.negative, -1, 1)[:, :, None]
    scale = usable_scale(solution.scale * book.codewords.step, floor)
    integers = frozen(kernels.reshape(node.weight.shape), np.int8)
    return Fitted(integers, frozen_array(scale), node.bias, choice.bits, choice.codebook, solution)


def _unclamped(node: Conv2d) -> Conv2d:
    return replace(node, lo=-math.inf, hi=math.inf, pinned=None)  # a given quantisation limits the result as a clamp does


def _let_go(graph: Graph, index: int, tensors: _Tensors) -> None:
    """Forgets the tensors that no node after number `index` reads."""
    needed = {name for node in graph.nodes[index + 1 :] for name in node.inputs}
    for name in [name for name in tensors if name not in needed]:
        del tensors[name]


def _finish(
    choices: Mapping[str, Choice],
    members: Mapping[str, tuple[Conv2d, ...]],
    books: Mapping[str, _Book],
    fitted: Mapping[str, Fitted],
    compression: Compression,
) -> Quantised:
    """Packs the walk's findings: codewords in use only, codes renumbered, reductions and losses told."""
    form = compression.codebook
    numbers: dict[str, npt.NDArray[np.int64]] = {}
    codebooks: dict[str, IntCodebook] = {}
    warnings: list[str] = []
    for name, nodes in members.items():
        book = books[name].codewords
        codes = np.concatenate([solution.codes.reshape(-1) for node in nodes if (solution := fitted[node.name].solution) is not None])
        numbers[name], kept = _renumbered(codes, book)
        values = frozen(book.values[kept].reshape(-1, *nodes[0].kernel), np.int8)
        codebooks[name] = IntCodebook(name, values, form.sign, form.additive)
        warnings += _warnings(name, nodes, book, codebooks[name].codewords, compression)
    layers = []
    for name, layer in fitted.items():
        choice = choices[name]
        if layer.solution is None:
            weights: UniformWeights | KqWeights = UniformWeights(choice.bits, frozen(layer.integers.transpose(0, 2, 3, 1), np.int8))
        else:
            stored = codebooks[choice.codebook]
            width = min(choice.index_bits or stored.index_bits, stored.index_bits)
            width = index_bits(stored.named(width), form.sign, form.additive)
            codes = numbers[choice.codebook][:, layer.solution.codes]
            packed = codes[0] if not form.additive else codes[0] | codes[1] << stored.stage_bits(width)
            weights = KqWeights(choice.codebook, width, frozen(packed, np.int16), frozen(layer.solution.negative, np.bool_))
        layers.append((name, LayerWeights(weights, layer.scale, layer.bias, choice.reason)))
    return Quantised(tuple(layers), tuple(codebooks.values()), tuple(warnings))


def _renumbered(codes: npt.NDArray[np.int64], book: Codewords) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Per stage the new number of each old code's codeword (stages, codes), and which of `book.values` are kept, in their old order.

    Codewords out of use are dropped; of two stages, both keep as many as the one that needs more.
    """
    every = np.arange(book.count**2 if book.additive else book.count)
    parts = [every % book.count, every // book.count] if book.additive else [every]
    used = [np.unique(part[codes]) for part in parts]
    size = max(len(each) for each in used)
    numbers, kept = [], []
    for stage, (part, each) in enumerate(zip(parts, used, strict=True)):
        idle = np.setdiff1d(np.arange(book.count), each)[: size - len(each)]
        order = np.full(book.count, -1)
        order[each] = np.arange(len(each))
        order[idle] = np.arange(len(each), size)
        numbers.append(order[part])
        kept.append(stage * book.count + np.concatenate([each, idle]))
    return np.stack(numbers), np.concatenate(kept)


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
