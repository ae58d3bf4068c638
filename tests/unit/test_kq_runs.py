"""Runs of input channels as kernels of 1x1 and fully connected layers, and depthwise layers, by Kernel Quantization after training."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import zoo
from kqnets import calibrated, changed, conv, weights

from kqgen import ir, oracle
from kqgen.allocate import Target, allocate
from kqgen.calibrate import calibrate
from kqgen.dequantised import dequantised
from kqgen.errors import InputError
from kqgen.floatexec import evaluate, run
from kqgen.frontend import export_module, import_exported
from kqgen.intgraph import IntConv2d, IntGraph, KqWeights, UniformWeights, frozen
from kqgen.kq_blocks import reconstruct
from kqgen.kq_layers import choose, with_runs
from kqgen.kq_moments import best_weights, codes_of, collect, damped
from kqgen.kq_runs import cut, cut_weight, joined_weight, lengths, natural_length
from kqgen.kq_simulate import Fitted
from kqgen.lower import lower
from kqgen.options import Codebook, Compression
from kqgen.pipeline import compress
from kqgen.planned import planned_bytes
from kqgen.post_training import fake_quantise, quantise
from kqgen.samples import Samples
from kqgen.sensitivity import measure
from kqgen.simplify import simplify

SIDE = 6


def separable(width: int = 32, seed: int = 0) -> ir.Graph:
    """A 3x3 layer, twice depthwise and 1x1 (the second with a stride of 2), a fully connected layer on the whole map."""
    rng = np.random.default_rng(seed)
    small = SIDE // 2
    nodes = (
        ir.Input("x", "", (), (3, SIDE, SIDE)),
        conv("stem", "x", (width, SIDE, SIDE), weights(rng, width, 3, 3, 3), bias=rng.normal(size=width) * 0.1),
        conv("d0", "stem", (width, SIDE, SIDE), weights(rng, width, 1, 3, 3), groups=width),
        conv("p0", "d0", (2 * width, small, small), weights(rng, 2 * width, width, 1, 1), stride=(2, 2)),
        conv("d1", "p0", (2 * width, small, small), weights(rng, 2 * width, 1, 3, 3), groups=2 * width),
        conv("p1", "d1", (width, small, small), weights(rng, width, 2 * width, 1, 1)),
        conv("fc", "p1", (16, 1, 1), weights(rng, 16, width, small, small), lo=-np.inf, dense=True, padding=ir.NO_PADDING),
    )
    return ir.Graph("net", nodes, ("fc",))


def kq(codewords: int, **more: Any) -> Compression:
    book = Codebook(more.pop("scope", "network"), codewords, more.pop("sign", True), more.pop("additive", False))
    return Compression(codebook=book, **more)


def lowered(graph: ir.Graph, compression: Compression) -> tuple[ir.Graph, IntGraph]:
    samples, ranges = calibrated(graph)
    shaped = with_runs(graph, compression)
    return shaped, lower(shaped, ranges, quantise(shaped, compression, samples, ranges), "kq")


@pytest.mark.parametrize("run_length", [2, 4, 8, 16])
def test_a_layer_of_runs_computes_what_the_layer_does(run_length: int) -> None:
    graph = separable()
    images = {"x": torch.from_numpy(np.random.default_rng(3).normal(size=(4, 3, SIDE, SIDE)).astype(np.float32))}
    plain = run(graph, images)
    for name in ("p0", "p1", "fc"):
        node = graph.node(name)
        assert isinstance(node, ir.Conv2d)
        made = evaluate(cut(node, run_length), [plain[node.inputs[0]]])
        assert torch.allclose(made, plain[name], atol=1e-5)
        again = joined_weight(cut_weight(node.weight, run_length), node.weight.shape)
        assert np.array_equal(again, node.weight)


def test_run_lengths_divide_the_inputs_and_leave_bits_for_a_weight() -> None:
    rng = np.random.default_rng(0)
    node = conv("p", "x", (8, 4, 4), weights(rng, 8, 24, 1, 1))
    assert lengths(node) == (2, 4, 8)
    assert [natural_length(node, bits) for bits in (3, 4, 7, 8, 9, 12)] == [1, 2, 2, 4, 4, 4]
    for other in (conv("p", "x", (8, 4, 4), weights(rng, 8, 7, 1, 1)), conv("p", "x", (8, 4, 4), weights(rng, 8, 24, 3, 3))):
        assert lengths(other) == ()
    assert lengths(conv("p", "x", (8, 6, 6), weights(rng, 8, 24, 1, 1), padding=(1, 1, 1, 1))) == ()


def test_layers_of_one_run_length_share_a_codebook() -> None:
    _, integers = lowered(separable(), kq(128))
    layers = {node.name: node for node in integers.nodes if isinstance(node, IntConv2d)}
    for name in ("p0", "p1"):
        node = layers[name]
        assert isinstance(node.weights, KqWeights)
        assert (node.weights.codebook, node.kernel) == ("codebook_run4", (1, 4))
    assert "are no less than" in layers["d0"].reason
    assert isinstance(layers["d0"].weights, UniformWeights)
    # 1x1 layers that stay uniform stay 1x1.
    plain = lowered(separable(), kq(128, runs=(("p0", 0),)))[1]
    first = next(node for node in plain.nodes if node.name == "p0")
    assert isinstance(first, IntConv2d)
    assert (first.kernel, first.reason) == ((1, 1), "1x1 kernel, uniform as asked")


@pytest.mark.parametrize("additive", [False, True])
def test_integers_of_runs_and_depthwise_layers_mean_what_was_fitted(additive: bool) -> None:
    """Lowered and run by the integer reference, the network gives the outputs that its real weights give."""
    graph = separable()
    asked = kq(16 if additive else 64, additive=additive, widths=(("d0", 5), ("d1", 5)), runs=(("p0", 8), ("fc", 4)))
    shaped, integers = lowered(graph, asked)
    layers = {node.name: node for node in integers.nodes if isinstance(node, IntConv2d)}
    assert {name for name, node in layers.items() if isinstance(node.weights, KqWeights)} >= {"d0", "d1", "p0", "fc"}
    deep = layers["d0"].weights
    assert isinstance(deep, KqWeights)
    assert deep.codes.shape == (32, 1)
    assert (layers["p0"].kernel, layers["p0"].stride) == ((1, 8), (2, 16))
    samples, ranges = calibrated(graph)
    made = oracle.run(integers, {"x": oracle.input_codes(integers.inputs[0], samples.arrays[0])})
    real = dequantised(graph, integers)
    for version in (real, dequantised(shaped, integers)):
        live: dict[str, torch.Tensor] = {}
        for node in version:
            value = torch.from_numpy(samples.arrays[0].copy()) if isinstance(node, ir.Input) else evaluate(node, [live[node.inputs[0]]])
            live[node.name] = fake_quantise(value, ranges[node.name])
        found = oracle.dequantise(integers.tensor("fc"), made["fc"]).transpose(0, 3, 1, 2)
        steps = np.abs(found - live["fc"].numpy()) / integers.tensor("fc").scale
        assert steps.max() <= 2.01


def test_depthwise_moments_are_each_channels_own() -> None:
    rng = np.random.default_rng(5)
    node = conv("d", "x", (6, 5, 5), weights(rng, 6, 1, 3, 3), groups=3, stride=(1, 1))
    x = torch.from_numpy(rng.integers(-9, 9, size=(7, 3, 5, 5)).astype(np.float32))
    wanted = evaluate(ir.Conv2d(**{**fields(node), "lo": -np.inf}), [x])
    moments = collect(node, codes_of(node, x, 1.0), wanted, 1.0)
    assert moments.second.shape == (6, 9, 9)
    assert np.allclose(moments.second[0], moments.second[1])
    for channel in range(3):
        one = conv("d", "x", (2, 5, 5), node.weight[2 * channel : 2 * channel + 2])
        alone = collect(one, codes_of(one, x[:, channel : channel + 1], 1.0), wanted[:, 2 * channel : 2 * channel + 2], 1.0)
        assert np.allclose(moments.second[2 * channel], alone.second)
        assert np.allclose(moments.cross[2 * channel : 2 * channel + 2], alone.cross)
        assert np.allclose(damped(moments)[2 * channel], damped(alone))
        assert np.allclose(best_weights(node, moments)[2 * channel : 2 * channel + 2], best_weights(one, alone))


def fields(node: ir.Conv2d) -> dict[str, Any]:
    return {name: getattr(node, name) for base in type(node).__mro__ for name in getattr(base, "__slots__", ())}


def test_reconstruction_mends_a_separable_network_that_was_spoiled() -> None:
    """Scales 20 % too large in layers of runs and depthwise layers: most of the harm is undone, so gradients reach them rightly."""
    graph = with_runs(separable(16), kq(16))
    samples, ranges = calibrated(graph, count=48)
    result = quantise(graph, kq(16), samples, ranges)
    books = {book.name: book for book in result.codebooks}
    layers = {}
    for name, layer in result.layers:
        bits = layer.weights.bits if isinstance(layer.weights, UniformWeights) else 8
        whole = frozen(layer.integers(books).transpose(0, 3, 1, 2), np.int8)
        layers[name] = Fitted(whole, ir.frozen_array(layer.weight_scale * (1.2 if name in ("d0", "p0", "p1") else 1.0)), layer.bias, bits)
    mended = reconstruct(graph, layers, {}, next(samples.batches(48)), ranges, 50, 0, lambda label, fraction: None)
    assert mended.after < 0.8 * mended.before


def test_dead_channels_of_a_depthwise_layer_do_no_harm() -> None:
    graph = separable()
    weight = graph.node("d0").weight.copy()  # type: ignore[attr-defined]
    weight[5] = 0
    bias = graph.node("stem").bias.copy()  # type: ignore[attr-defined]
    bias[7] = -1e3
    dead = changed(changed(graph, "d0", weight=weight), "stem", bias=bias)
    for asked in (kq(64), kq(64, widths=(("d0", 4),)), kq(8, keep=(("d0", 4),))):
        _, integers = lowered(dead, asked)
        node = next(each for each in integers.nodes if each.name == "d0")
        assert isinstance(node, IntConv2d)
        assert not (node.weight_scale <= 0).any()


@pytest.mark.parametrize("sampled", [True, False])
def test_an_allocation_cuts_layers_into_runs_and_is_met(sampled: bool) -> None:
    graph = separable()
    samples, ranges = calibrated(graph)
    target = Target(table_bytes=3400)
    found = allocate(graph, target, samples if sampled else None, ranges if sampled else None)
    assert found.compression.runs
    assert found.table_bytes <= 3400
    assert planned_bytes(graph, found.compression).table_bytes == found.table_bytes
    chosen = {choice.layer: choice for choice in choose(graph, found.compression)}
    named = {layer.name.removeprefix("net."): layer for layer in found.layers}
    for name, length in ((path.removeprefix("net."), length) for path, length in found.compression.runs):
        assert chosen[name].run == length
        assert f"runs of {length}" in named[name].choice
    assert {name for name, choice in chosen.items() if choice.run > 1} == {path.removeprefix("net.") for path, _ in found.compression.runs}


@pytest.mark.parametrize("length", [3, 32, -1])
def test_a_run_of_another_length_is_refused(length: int) -> None:
    with pytest.raises(InputError, match=f"runs of {length}"):
        Compression(runs=(("p0", length),))


def test_a_run_that_does_not_divide_the_inputs_is_refused() -> None:
    rng = np.random.default_rng(0)
    node = conv("p", "x", (8, 4, 4), weights(rng, 8, 6, 1, 1))
    with pytest.raises(InputError, match="6 inputs") as refused:
        choose(ir.Graph("net", (ir.Input("x", "", (), (6, 4, 4)), node), ("p",)), kq(8, runs=(("p", 4),)))
    assert "--run net.p=2" in str(refused.value)


@pytest.mark.parametrize("name", ["ecg", "mobilenet_v3"])
def test_whole_networks_are_quantised_and_reconstructed(name: str) -> None:
    """Sequences, gates, products, tables and concatenations on the way of moments, sensitivities and gradients."""
    given = zoo.inputs(name, 20)
    program = export_module(zoo.build(name), [each[:1] for each in given])
    graph = simplify(import_exported(program, "net"))
    arrays = tuple(ir.frozen_array(each.reshape(-1, *node.shape).numpy()) for each, node in zip(given, graph.inputs, strict=True))
    samples = Samples(tuple(node.name for node in graph.inputs), arrays)
    ranges = calibrate(graph, samples)
    real = run(graph, next(samples.batches(20)))[graph.outputs[0]].numpy()
    noise = []
    for asked in (kq(64), kq(64, reconstruct=3)):
        integers, _ = compress(graph, samples, asked, ranges=ranges)
        codes = {tensor.name: oracle.input_codes(tensor, array) for tensor, array in zip(integers.inputs, arrays, strict=True)}
        found = oracle.dequantise(integers.tensor(graph.outputs[0]), oracle.run(integers, codes)[graph.outputs[0]]).transpose(0, 3, 1, 2)
        noise.append(np.square(found - real).sum() / np.square(real - real.mean(0)).sum())
    assert max(noise) < 0.3
    known = measure(graph, samples, ranges, 0, lambda label, fraction: None)
    assert all(0 < each.importance < 100 for each in known.values())
