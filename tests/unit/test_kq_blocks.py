"""Reconstruction: the simulated network is the stored one, its gradients are right, and the error on unseen images does not rise."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from kqnets import calibrated, chain, changed, conv, integers, output_error, weight_of, weights

from kqgen import ir
from kqgen.calibrate import TensorRange
from kqgen.cluster import Codewords
from kqgen.errors import InputError
from kqgen.intgraph import KqWeights, UniformWeights, codeword_rows, frozen
from kqgen.kq_blocks import reconstruct
from kqgen.kq_fit import Solution
from kqgen.kq_simulate import Fitted, SimulatedNet, coded
from kqgen.options import Codebook, Compression
from kqgen.post_training import LayerWeights, Quantised, fake_quantise, quantise

IMAGES = 96
STEPS = 60


def residual() -> ir.Graph:
    """A stem, two branches that are added, and a fully connected layer: 3x3 kernels, one uniform layer, one uneven padding."""
    rng = np.random.default_rng(0)
    stem = conv("c0", "x", (12, 8, 8), weights(rng, 12, 3, 3, 3), bias=rng.normal(size=12) * 0.1)
    first = conv("c1", "c0", (12, 8, 8), weights(rng, 12, 12, 3, 3), bias=rng.normal(size=12) * 0.1)
    second = conv("c2", "c1", (12, 8, 8), weights(rng, 12, 12, 3, 3) * 0.5, lo=-np.inf)
    total = ir.Add("sum", "", ("c0", "c2"), (12, 8, 8), lo=0.0)
    last = conv("c3", "sum", (16, 4, 4), weights(rng, 16, 12, 3, 3), stride=(2, 2), padding=(0, 1, 0, 1))
    mean = ir.AvgPool("mean", "", ("c3",), (16, 1, 1), (4, 4), (4, 4))
    dense = conv("fc", "mean", (4, 1, 1), weights(rng, 4, 16, 1, 1), lo=-np.inf, dense=True)
    return ir.Graph("net", (ir.Input("x", "", (), (3, 8, 8)), stem, first, second, total, last, mean, dense), ("fc",))


def options(**more: Any) -> Compression:
    form = {"codewords": 16, **{key: more.pop(key) for key in ("codewords", "additive", "scope") if key in more}}
    return Compression(codebook=Codebook(**form), **more)


def test_a_network_that_was_spoiled_is_mended() -> None:
    """Scales 20 % too large and biases off: most of the harm is undone, on unseen images too."""
    graph = residual()
    samples, ranges = calibrated(graph, IMAGES)
    unseen, _ = calibrated(graph, IMAGES, seed=7)
    result = quantise(graph, options(), samples, ranges)
    spoiled = replace(
        result,
        layers=tuple(
            (name, replace(layer, weight_scale=layer.weight_scale * np.float32(1.2), bias=layer.bias + np.float32(0.1)))
            for name, layer in result.layers
        ),
    )
    layers = {name: fitted(spoiled, name) for name, _ in spoiled.layers}
    images = next(samples.batches(IMAGES))
    mended = reconstruct(graph, layers, {}, images, ranges, 250, 0, lambda label, fraction: None)
    assert mended.after < 0.7 * mended.before
    repaired = replace(result, layers=tuple((name, stored(mended.layers[name])) for name, _ in result.layers))
    harm, left = (output_error(graph, each, unseen, ranges) - output_error(graph, result, unseen, ranges) for each in (spoiled, repaired))
    assert left < 0.5 * harm


def fitted(result: Quantised, name: str) -> Fitted:
    """A stored layer as if it were uniform: its integers stay."""
    layer = result.layer(name)
    bits = layer.weights.bits if isinstance(layer.weights, UniformWeights) else 8
    return Fitted(integers(result, name).transpose(0, 3, 1, 2), layer.weight_scale, layer.bias, bits)


def stored(layer: Fitted) -> LayerWeights:
    return LayerWeights(UniformWeights(8, frozen(layer.integers.transpose(0, 2, 3, 1), np.int8)), layer.scale, layer.bias, "")


@pytest.mark.parametrize("form", [{}, {"additive": True, "codewords": 8}, {"scope": "layer"}])
def test_unseen_images_do_not_suffer(form: dict[str, Any]) -> None:
    graph = residual()
    samples, ranges = calibrated(graph, IMAGES)
    unseen, _ = calibrated(graph, IMAGES, seed=7)
    before, after = (
        output_error(graph, quantise(graph, options(**form, reconstruct=steps), samples, ranges), unseen, ranges) for steps in (0, STEPS)
    )
    assert after < 1.05 * before


@pytest.mark.parametrize("additive", [False, True])
def test_whatever_the_gradients_do_the_bounds_hold(additive: bool) -> None:
    """Codewords and uniform weights thrown far off: 6 bits, absolute sums of 255, codes as they were, scales > 0."""
    graph = residual()
    samples, ranges = calibrated(graph, 32)
    result = quantise(graph, options(codewords=8, additive=additive, keep=(("c2", 4),)), samples, ranges)
    book = result.codebooks[0]
    words = Codewords(frozen(book.values.reshape(len(book.values), -1), np.int8), 1.0, 0.0, 0.0, additive)
    layers = {name: fitted(result, name) for name, _ in result.layers} | {
        name: replace(fitted(result, name), book=book.name, solution=solution(result, name))
        for name, layer in result.layers
        if isinstance(layer.weights, KqWeights)
    }
    net = SimulatedNet(graph, layers, {book.name: words}, ranges)
    untouched, same = net.stored()
    for name, layer in layers.items():
        assert np.array_equal(untouched[name].integers, layer.integers)
    assert np.array_equal(same[book.name].values, words.values)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        net.words[book.name].add_(60 * torch.randn(net.words[book.name].shape, generator=generator))
        for simulated in net.layers.values():
            simulated.growth.add_(torch.randn(simulated.growth.shape, generator=generator))
            if simulated.shares.requires_grad:
                simulated.shares.add_(3 * torch.randn(simulated.shares.shape, generator=generator))
    net.bound()
    changed_layers, books = net.stored()
    assert 16 < np.abs(books[book.name].values.astype(np.int64)).max() <= 31
    for name, layer in changed_layers.items():
        assert np.all(layer.scale > 0)
        sizes = np.abs(layer.integers.astype(np.int64))
        if layer.book:
            assert layer.solution is layers[name].solution
            assert sizes.sum(axis=(2, 3)).max() <= 255
        else:
            assert sizes.max() == 2 ** (layer.bits - 1) - 1


def solution(result: Quantised, name: str) -> Solution:
    """A stored layer's codes as `Codewords.kernels` counts them."""
    weights = result.layer(name).weights
    assert isinstance(weights, KqWeights)
    book = result.codebooks[0]
    rows = codeword_rows(weights, book)
    codes = rows[0] + (rows[1] - book.codewords) * book.codewords if book.additive else rows[0]
    return Solution(codes, weights.negative, result.layer(name).weight_scale.astype(np.float64), 0.0)


def test_equal_arguments_give_equal_bytes() -> None:
    graph = residual()
    samples, ranges = calibrated(graph, IMAGES)

    def everything(steps: int, seed: int) -> bytes:
        result = quantise(graph, options(reconstruct=steps, seed=seed), samples, ranges)
        parts = [book.values.tobytes() for book in result.codebooks]
        parts += [layer.weight_scale.tobytes() + layer.bias.tobytes() for _, layer in result.layers]
        return b"".join(parts)

    assert everything(STEPS, 0) == everything(STEPS, 0)


def test_too_few_images_change_nothing() -> None:
    graph = residual()
    samples, ranges = calibrated(graph, 8)
    plain, asked = (quantise(graph, options(reconstruct=steps), samples, ranges) for steps in (0, 20))
    for name, layer in plain.layers:
        assert np.array_equal(layer.bias, asked.layer(name).bias)
        assert np.array_equal(layer.weight_scale, asked.layer(name).weight_scale)


def test_progress_rises_through_reconstruction() -> None:
    graph = chain((8, 3, 3), (12, 3, 3))
    samples, ranges = calibrated(graph, 32)
    told: list[tuple[str, float]] = []
    quantise(graph, options(reconstruct=10), samples, ranges, lambda label, fraction: told.append((label, fraction)))
    fractions = [fraction for _, fraction in told]
    assert fractions == sorted(fractions)
    assert fractions[-1] == 1.0
    assert sum(label == "reconstructing" for label, _ in told) == 10


def test_dead_layers_are_left_alone() -> None:
    graph = residual()
    dead = graph
    for name in ("c0", "c1", "c2", "c3", "fc"):
        dead = changed(dead, name, weight=np.zeros_like(weight_of(graph, name)))
    samples, ranges = calibrated(dead, 32)
    result = quantise(dead, options(reconstruct=5), samples, ranges)
    for name, layer in result.layers:
        assert np.all(np.isfinite(layer.bias))
        assert np.all(np.isfinite(layer.weight_scale))
        assert not result.real_weights(name).any()


def test_codes_are_those_of_the_walk_and_let_gradients_through() -> None:
    entry = TensorRange("x", 0.25, -28)
    x = torch.linspace(-30, 45, 301, requires_grad=True)
    found = coded(x, entry)
    assert torch.equal(found.detach(), fake_quantise(x.detach(), entry))
    (found * torch.arange(301)).sum().backward()  # type: ignore[no-untyped-call]
    assert x.grad is not None
    inside = (x.detach() >= -25.1) & (x.detach() < 38.8)
    assert torch.equal(x.grad, torch.where(inside, torch.arange(301.0), torch.zeros(())))


def test_negative_steps_are_refused() -> None:
    with pytest.raises(InputError, match="-1 steps"):
        Compression(reconstruct=-1)
