"""Lowering: the integers mean what the reals meant, and what does not fit is refused by layer."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from kqgen import graph_check, ir, oracle
from kqgen.calibrate import calibrate
from kqgen.errors import UnsupportedError
from kqgen.frontend import import_module
from kqgen.intgraph import IntCodebook, IntConv2d, IntGraph, KqWeights, UniformWeights, effective_kernels, frozen
from kqgen.lower import lower
from kqgen.options import Codebook, Compression
from kqgen.post_training import Quantised, quantise
from kqgen.samples import Samples, read_samples
from kqgen.simplify import simplify


def lowered(module: nn.Module, images: torch.Tensor, compression: Compression) -> tuple[IntGraph, Samples]:
    graph = simplify(import_module(module, (images[:1],), "net"))
    samples = read_samples(images, graph)
    ranges = calibrate(graph, samples)
    return lower(graph, ranges, quantise(graph, compression, samples, ranges), compression.weights), samples


def integers(graph: IntGraph, samples: Samples) -> np.ndarray:
    codes = oracle.quantise(graph.inputs[0], samples.arrays[0]).transpose(0, 2, 3, 1)
    name = graph.outputs[0]
    result = oracle.run(graph, {graph.inputs[0].name: np.ascontiguousarray(codes)})[name]
    return oracle.dequantise(graph.tensor(name), result).transpose(0, 3, 1, 2)


def sqnr_db(expected: np.ndarray, found: np.ndarray) -> float:
    noise = float(np.square(expected - found.reshape(expected.shape)).sum())
    return 10 * math.log10(float(np.square(expected).sum()) / noise)


class Every(nn.Module):
    """Every operator once, with odd sizes, asymmetric padding and input scaling."""

    def __init__(self) -> None:
        super().__init__()
        self.mean = nn.Buffer(torch.tensor([100.0, 120.0, 140.0]).view(1, 3, 1, 1))
        self.stem = nn.Sequential(nn.ZeroPad2d((0, 1, 2, 1)), nn.Conv2d(3, 5, 3, stride=2), nn.BatchNorm2d(5), nn.ReLU6())
        self.a = nn.Conv2d(5, 5, (3, 1), padding=(1, 0))
        self.pool = nn.MaxPool2d(3, 2, padding=1)
        self.b = nn.Conv2d(5, 17, 1)
        self.mean_pool = nn.AvgPool2d(2, 1)
        self.head = nn.Linear(17 * 4 * 3, 6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem((x - self.mean) / 58.0)
        x = torch.relu(x + self.a(x))
        scores: torch.Tensor = self.head(self.mean_pool(self.b(self.pool(x))).flatten(1))
        return scores


def images(count: int = 32, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    smooth = torch.nn.functional.interpolate(torch.rand(count, 3, 5, 5, generator=generator), size=(19, 17), mode="bilinear")
    return (255 * smooth).round()


def make(module: type[nn.Module]) -> nn.Module:
    torch.manual_seed(1)
    net = module()
    for layer in net.modules():
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.uniform_(layer.weight, 0.5, 1.5)
            nn.init.uniform_(layer.bias, -0.2, 0.4)
            layer.running_var = torch.linspace(0.5, 2.0, layer.num_features)
    return net.eval()


def test_int8_is_close_to_float_on_every_operator() -> None:
    net = make(Every)
    graph, samples = lowered(net, images(), Compression("int8"))
    with torch.no_grad():
        expected = net(images()).numpy()
    # 8-bit rounding of six layers: each leaves about 35..40 dB, together still above 25.
    assert sqnr_db(expected, integers(graph, samples)) > 25


def test_kq_with_as_many_codewords_as_kernels_is_close_too() -> None:
    net = make(Every)
    graph, samples = lowered(net, images(), Compression("kq", Codebook("layer", 64, False)))
    with torch.no_grad():
        expected = net(images()).numpy()
    # Every kernel has its own codeword, so only the 6-bit values (about 32 dB a layer) cost.
    assert sqnr_db(expected, integers(graph, samples)) > 18


def test_pixels_keep_their_codes() -> None:
    graph, _ = lowered(make(Every), images(), Compression("int8"))
    assert (graph.inputs[0].scale, graph.inputs[0].zero_point) == (1.0, -128)


def test_padding_reads_each_channels_own_zero() -> None:
    """Real zero after (x - mean) / 58 is the mean, pixel 100 is code -28."""
    graph, _ = lowered(make(Every), images(), Compression("int8"))
    stem = graph.nodes[0]
    assert isinstance(stem, IntConv2d)
    assert stem.pad_values.tolist() == [100 - 128, 120 - 128, 140 - 128]


def test_accumulators_stay_in_int32_on_extreme_inputs() -> None:
    graph, _ = lowered(make(Every), images(), Compression("int8"))
    for node in graph.nodes:
        if isinstance(node, IntConv2d):
            weights = graph.weights(node).astype(np.int64)
            bias = node.requant.bias.astype(np.int64)
            worst = bias + np.where(weights > 0, 127 * weights, -128 * weights).sum(axis=(1, 2, 3))
            assert np.all(worst << node.requant.acc_shift < 2**31)


def test_sums_of_two_codewords_are_lowered_like_the_kernels_they_are() -> None:
    """A layer of codewords of two stages, narrow and signed, gives what the same kernels stored in 8 bits give."""
    torch.manual_seed(3)
    graph = simplify(import_module(nn.Sequential(nn.Conv2d(3, 4, 3)), (torch.zeros(1, 3, 8, 8),), "net"))
    samples = read_samples(images()[:, :, :8, :8] / 255, graph)
    ranges = calibrate(graph, samples)
    stored = quantise(graph, Compression("int8"), samples, ranges)
    rng = np.random.default_rng(3)
    book = IntCodebook("pairs", frozen(rng.integers(-14, 15, (10, 3, 3)), np.int8), True, additive=True)
    weights = KqWeights("pairs", 5, frozen(rng.integers(0, 16, (4, 3)), np.int16), frozen(rng.random((4, 3)) < 0.5, np.bool_))
    ((name, layer),) = stored.layers
    kernels = UniformWeights(8, effective_kernels(weights, book))
    one, other = (
        lower(graph, ranges, Quantised(((name, replace(layer, weights=each)),), books), "kq")
        for each, books in ((weights, (book,)), (kernels, ()))
    )
    graph_check.check(one)
    assert one.codebooks == (book,)
    assert np.array_equal(integers(one, samples), integers(other, samples))


def test_a_bias_beyond_int32_is_refused_by_name() -> None:
    conv = nn.Conv2d(3, 2, 3)
    nn.init.constant_(conv.weight, 1e-3)
    assert conv.bias is not None
    nn.init.constant_(conv.bias, 0.5)
    graph = simplify(import_module(nn.Sequential(conv), (torch.zeros(1, 3, 8, 8),), "net"))
    samples = read_samples(images()[:, :, :8, :8] / 255, graph)
    ranges = calibrate(graph, samples)
    stored = quantise(graph, Compression("int8"), samples, ranges)
    layers = tuple((name, replace(layer, weight_scale=layer.weight_scale * np.float32(1e-12))) for name, layer in stored.layers)
    tiny = replace(stored, layers=layers)
    with pytest.raises(UnsupportedError, match=r"layer 0: .*bias of output channel"):
        lower(graph, ranges, tiny, "int8")


def test_a_layer_too_wide_for_its_fields_is_refused() -> None:
    node = ir.Input("x", "", (), (70000, 1, 1))
    graph = ir.Graph("net", (node,), ())
    samples = read_samples(np.zeros((2, 70000, 1, 1), np.float32), graph)
    ranges = calibrate(graph, samples)
    with pytest.raises(UnsupportedError, match="70000 channels"):
        lower(graph, ranges, quantise(graph, Compression("int8"), samples, ranges), "int8")
