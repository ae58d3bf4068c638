"""Kernel Quantization of small networks: bounds, widths, choices, warnings, dead channels, and equal bytes for equal seeds."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from kqnets import calibrated, chain, changed, conv, indexed, integers, output_error, quantised, weight_of, weights

from kqgen import ir
from kqgen.calibrate import calibrate
from kqgen.errors import InputError
from kqgen.floatexec import evaluate
from kqgen.intgraph import KqWeights, UniformWeights
from kqgen.kq_layers import distinct_kernels
from kqgen.options import Codebook, Compression
from kqgen.post_training import Quantised, fake_quantise, quantise
from kqgen.samples import Samples

INT32_ROOM = 2**28


def kq(codewords: int, scope: Any = "network", sign: bool = True, **more: Any) -> Compression:
    return Compression(codebook=Codebook(scope, codewords, sign), **more)


def test_equal_arguments_give_equal_bytes() -> None:
    graph = chain((8, 3, 3), (16, 3, 3), (16, 1, 1), (16, 3, 3))

    def everything(seed: int) -> bytes:
        result = quantised(graph, kq(32, seed=seed))
        parts = [codebook.values.tobytes() for codebook in result.codebooks]
        for _, layer in result.layers:
            parts += [layer.weight_scale.tobytes(), layer.bias.tobytes()]
            if isinstance(layer.weights, KqWeights):
                parts += [layer.weights.codes.tobytes(), layer.weights.negative.tobytes()]
            else:
                parts.append(layer.weights.values.tobytes())
        return b"".join(parts)

    assert everything(3) == everything(3)
    assert everything(3) != everything(4)


@pytest.mark.parametrize("scope", ["layer", "network"])
@pytest.mark.parametrize("kernel", [(3, 3), (5, 5), (7, 7), (10, 4), (1, 5)])
@pytest.mark.parametrize("sign", [False, True])
def test_codebooks_keep_the_bounds_for_every_kernel_shape(scope: str, kernel: tuple[int, int], sign: bool) -> None:
    graph = chain((8, *kernel), (10, *kernel), (9, *kernel), side=11)
    result = quantised(graph, kq(12, scope, sign))
    k_h, k_w = kernel
    names = [f"codebook_{k_h}x{k_w}"] if scope == "network" else ["c1_codebook", "c2_codebook"]
    assert [codebook.name for codebook in result.codebooks][-len(names) :] == names
    for codebook in result.codebooks:
        values = codebook.values.astype(np.int64)
        assert codebook.values.dtype == np.int8
        assert values.shape[1:] == kernel
        assert np.abs(values).max() <= 31
        assert np.abs(values).sum(axis=(1, 2)).max() <= 255
        stored = [layer.weights for _, layer in result.layers if isinstance(layer.weights, KqWeights)]
        codes = np.concatenate([each.codes.ravel() for each in stored if each.codebook == codebook.name])
        assert np.array_equal(np.unique(codes), np.arange(codebook.codewords))
    for name in ("c1", "c2"):
        layer = result.layer(name)
        assert layer.reason == f"indexed into {indexed(layer).codebook}"
        assert integers(result, name).shape == (graph.node(name).shape[0], k_h, k_w, graph.node(graph.node(name).inputs[0]).shape[0])
        assert not (indexed(layer).negative.any() and not sign)


@pytest.mark.parametrize(
    ("codewords", "sign", "width"),
    [(1, False, 1), (1, True, 1), (2, False, 1), (2, True, 2), (4, True, 3), (16, False, 4), (16, True, 5), (33, False, 6), (64, True, 7),
     (128, True, 8), (256, True, 9), (512, True, 10)],
)  # fmt: skip
def test_index_widths(codewords: int, sign: bool, width: int) -> None:
    """One layer of 1024 kernels; what the table holds fits the width, and the width is the one of SPEC 4.2."""
    graph = chain((32, 1, 1), (32, 3, 3), side=6)
    result = quantised(graph, kq(codewords, sign=sign))
    layer = indexed(result.layer("c1"))
    assert layer.index_bits == width == result.codebooks[0].index_bits
    assert int(layer.codes.max()) < result.codebooks[0].codewords <= codewords
    assert layer.codes.dtype == np.int16
    assert layer.negative.dtype == np.bool_
    assert layer.packed_bytes == 1024 * width // 8


@pytest.mark.parametrize(("codewords", "sign", "width"), [(700, True, 11), (1100, True, 12), (1500, False, 11), (2100, False, 12)])
def test_wide_indices(codewords: int, sign: bool, width: int) -> None:
    graph = chain((48, 1, 1), (48, 3, 3), side=4)
    result = quantised(graph, kq(codewords, sign=sign))
    assert indexed(result.layer("c1")).index_bits == width
    assert 2 ** (width - sign - 1) < result.codebooks[0].codewords <= codewords


def test_a_codebook_larger_than_its_kernels_is_reduced_with_a_warning() -> None:
    """The warning names the layers, what was asked and what there is; with a codeword for every kernel, only 6-bit rounding is lost."""
    layered = chain((8, 1, 1), (16, 3, 3), (16, 3, 3))
    twin = changed(changed(layered, "c1", weight=_repeated(weight_of(layered, "c1"))), "c2", weight=_repeated(weight_of(layered, "c2")))
    samples, ranges = calibrated(twin)
    result = quantise(twin, kq(256), samples, ranges)
    distinct = len(np.unique(np.concatenate([distinct_kernels(weight_of(twin, name), True) for name in ("c1", "c2")]), axis=0))
    assert distinct < 256
    assert result.codebooks[0].codewords <= distinct
    assert len(result.warnings) == 1
    for word in ("codebook_3x3", "256 codewords", "net.c1", "net.c2", f"{distinct} distinct kernels"):
        assert word in result.warnings[0]
    assert output_error(twin, result, samples, ranges) < 0.01


def _repeated(weight: ir.Float32) -> np.ndarray:
    """All output channels made of the first one's kernels, scaled and in another order."""
    return np.stack([np.roll(weight[0], shift, axis=0) * (shift + 1) for shift in range(len(weight))])


def test_distinct_kernels_ignore_scale_and_sign() -> None:
    rng = np.random.default_rng(0)
    first = rng.normal(size=(4, 3, 3))
    weight = np.stack([first, -2 * first, 0.5 * first[::-1], 0 * first]).astype(np.float32)
    assert len(distinct_kernels(weight, True)) == 5  # four and the zero kernel
    assert len(distinct_kernels(weight, False)) == 9


def test_mirrored_kernels_need_half_the_codebook() -> None:
    """Kernels that come in pairs v and -v: with the sign, half as many codewords give the same error."""
    graph = chain((8, 1, 1), (16, 3, 3))
    weight = weight_of(graph, "c1")
    mirrored = np.concatenate([weight[:8], -weight[:8]])
    graph = changed(graph, "c1", weight=mirrored)
    samples, ranges = calibrated(graph)
    signed = quantise(graph, kq(32, sign=True), samples, ranges)
    plain = quantise(graph, kq(64, sign=False), samples, ranges)
    assert signed.codebooks[0].codewords <= 32
    assert indexed(signed.layer("c1")).index_bits == indexed(plain.layer("c1")).index_bits == 6

    def error(result: Quantised) -> float:
        return float(np.square(result.real_weights("c1") - weight_of(graph, "c1")).sum())

    assert error(signed) < 1.15 * error(plain)


@pytest.mark.parametrize("scope", ["layer", "network"])
def test_scopes(scope: str) -> None:
    graph = chain((16, 3, 3), (16, 3, 3), (16, 5, 5), (16, 3, 3))
    result = quantised(graph, kq(24, scope))
    shared = {name: indexed(result.layer(name)).codebook for name in ("c1", "c2", "c3")}
    if scope == "network":
        assert shared == {"c1": "codebook_3x3", "c2": "codebook_5x5", "c3": "codebook_3x3"}
    else:
        assert shared == {name: f"{name}_codebook" for name in shared}
    order = list(dict.fromkeys(layer.weights.codebook for _, layer in result.layers if isinstance(layer.weights, KqWeights)))
    assert order == [codebook.name for codebook in result.codebooks]


def test_layers_that_are_not_indexed_say_why() -> None:
    graph = chain((8, 3, 3), (24, 3, 3), (32, 1, 1), (24, 3, 3))
    result = quantised(graph, kq(32, runs=(("c2", 0), ("net.fc", 0))))
    for name, reason in (("c2", "1x1 kernel, uniform as asked"), ("fc", "fully connected, uniform as asked")):
        layer = result.layer(name)
        assert isinstance(layer.weights, UniformWeights)
        assert (layer.weights.bits, layer.reason) == (8, reason)
    first = result.layer("c0")
    assert isinstance(first.weights, UniformWeights)
    saved = 24 * 9 - 24 * 6 // 8 - -(-32 * 9 * 6 * 24 // (8 * (24 + 192 + 768)))
    assert f"its 24 kernels would save {saved} bytes" in first.reason


@pytest.mark.parametrize("bits", [8, 6, 4])
@pytest.mark.parametrize("name", ["c1", "net.c1"])
@pytest.mark.parametrize("kind", ["kq", "int8"])
def test_keep_is_honoured(bits: int, name: str, kind: Any) -> None:
    graph = chain((16, 3, 3), (16, 3, 3), (16, 3, 3))
    result = quantised(graph, kq(16, weights=kind, keep=((name, bits),)))
    layer = result.layer("c1")
    limit = 2 ** (bits - 1) - 1
    assert isinstance(layer.weights, UniformWeights)
    assert layer.weights.bits == bits
    assert layer.weights.values.shape == (16, 3, 3, 16)
    assert int(np.abs(layer.weights.values.astype(np.int64)).max()) == limit
    assert layer.reason == f"kept at {bits} bits as asked"
    assert isinstance(result.layer("c2").weights, KqWeights if kind == "kq" else UniformWeights)


def test_keep_refuses_unknown_layers_and_two_widths() -> None:
    graph = chain((8, 3, 3), (16, 3, 3))
    with pytest.raises(InputError) as unknown:
        quantised(graph, kq(8, keep=(("net.c9", 8),)))
    for word in ("net.c9", "net.c0", "net.c1", "net.fc"):
        assert word in str(unknown.value)
    with pytest.raises(InputError, match="two widths"):
        quantised(graph, kq(8, keep=(("net.c1", 8), ("c1", 4))))


def test_int8_stores_every_layer_in_8_bits_and_stays_close() -> None:
    graph = chain((16, 3, 3), (16, 1, 1), (16, 5, 5))
    samples, ranges = calibrated(graph)
    result = quantise(graph, Compression(weights="int8"), samples, ranges)
    assert result.codebooks == ()
    assert [name for name, _ in result.layers] == ["c0", "c1", "c2", "fc"]
    for name, layer in result.layers:
        assert isinstance(layer.weights, UniformWeights)
        assert layer.weights.bits == 8
        assert layer.weight_scale.dtype == layer.bias.dtype == np.float32
        assert np.square(result.real_weights(name) - weight_of(graph, name)).sum() < 0.01 * np.square(weight_of(graph, name)).sum()
    assert output_error(graph, result, samples, ranges) < 0.003


def test_more_codewords_lose_less() -> None:
    """On images that were not calibrated with."""
    graph = chain((24, 3, 3), (24, 3, 3), (24, 3, 3))
    samples, ranges = calibrated(graph, 64)
    unseen, _ = calibrated(graph, 64, seed=2)
    errors = [output_error(graph, quantise(graph, kq(codewords), samples, ranges), unseen, ranges) for codewords in (8, 32, 128)]
    assert errors[0] > 1.2 * errors[1] > 1.2**2 * errors[2]


def test_bias_correction_keeps_every_mean() -> None:
    """Before its clamp, each channel of the first indexed layer has the float layer's mean over the calibration images."""
    graph = chain((16, 1, 1), (24, 3, 3))
    samples, ranges = calibrated(graph)
    result = quantise(graph, kq(8), samples, ranges)
    means = []
    for stored in (False, True):
        value = next(samples.batches(samples.count))["x"]
        for name in ("c0", "c1"):
            node = graph.node(name)
            assert isinstance(node, ir.Conv2d)
            if stored:
                value = fake_quantise(value, ranges[node.inputs[0]])
                node = replace(node, weight=result.real_weights(name), bias=result.layer(name).bias)
            value = evaluate(replace(node, lo=-np.inf) if name == "c1" else node, [value])
        means.append(value.double().mean((0, 2, 3)).numpy())
    assert np.abs(means[0] - means[1]).max() < 1e-5 * np.abs(means[0]).max()


@pytest.mark.parametrize("compression", [kq(8), Compression(weights="int8"), kq(8, keep=(("c1", 4),))])
def test_dead_and_tiny_channels_keep_an_int32_bias(compression: Compression) -> None:
    """Channels 0 and 1 have no weights, 2 and 3 next to none, with and without a bias: scales > 0, integer biases below 2**28."""
    graph = chain((8, 1, 1), (16, 3, 3))
    weight, bias = weight_of(graph, "c1").copy(), np.zeros(16)
    weight[:2], weight[2:4] = 0, weight[2:4] * 1e-12
    bias[[0, 2]] = 3.0
    graph = changed(graph, "c1", weight=weight, bias=bias)
    samples, ranges = calibrated(graph)
    result = quantise(graph, compression, samples, ranges)
    layer = result.layer("c1")
    assert np.all(layer.weight_scale > 0)
    assert np.all(np.isfinite(layer.bias))
    assert np.all(np.abs(layer.bias.astype(np.float64) / (ranges["c0"].scale * layer.weight_scale)) <= INT32_ROOM)
    real = result.real_weights("c1")
    assert np.abs(real[:4]).max() < 2.0**-10 * np.abs(real[4:]).max()
    assert np.allclose(layer.bias[:4], [3, 0, 3, 0], atol=2.0**-8)


def test_a_network_of_dead_layers_is_stored() -> None:
    graph = chain((8, 1, 1), (16, 3, 3))
    for name in ("c0", "c1", "fc"):
        graph = changed(graph, name, weight=weight_of(graph, name) * 0)
    result = quantised(graph, kq(8))
    assert result.codebooks[0].codewords == 1
    assert all(np.all(layer.weight_scale > 0) and np.all(np.isfinite(layer.bias)) for _, layer in result.layers)
    assert not result.real_weights("c1").any()


def test_input_offsets_count_as_zero() -> None:
    """A first layer that subtracts a mean of its own gives the same weights as one whose images have it subtracted already."""
    graph = chain((16, 3, 3), (16, 3, 3))
    samples, ranges = calibrated(graph)
    offset = np.array([0.5, -0.25, 1.0], np.float32)
    moved = changed(graph, "c0", input_offset=offset)
    shifted = Samples(samples.names, (ir.frozen_array(samples.arrays[0] + offset[:, None, None]),))
    plain = quantise(graph, Compression(weights="int8"), samples, ranges)
    other = quantise(moved, Compression(weights="int8"), shifted, calibrate(moved, shifted))
    difference = np.square(plain.real_weights("c0") - other.real_weights("c0")).sum()
    assert difference < 1e-3 * np.square(plain.real_weights("c0")).sum()


def test_dense_weights_follow_the_map() -> None:
    """A fully connected layer on a (c, h, w) map: the stored order is row, column, channel (SPEC 4.5)."""
    rng = np.random.default_rng(0)
    dense = conv("fc", "x", (6, 1, 1), weights(rng, 6, 3, 4, 5), lo=-np.inf, dense=True, padding=ir.NO_PADDING)
    result = quantised(ir.Graph("net", (ir.Input("x", "", (), (3, 4, 5)), dense), ("fc",)), kq(8, runs=(("fc", 0),)))
    stored = result.layer("fc").weights
    assert isinstance(stored, UniformWeights)
    real = stored.values.reshape(6, 60).reshape(6, 4, 5, 3).transpose(0, 3, 1, 2) * result.layer("fc").weight_scale[:, None, None, None]
    assert np.array_equal(real, result.real_weights("fc"))


def test_progress_rises_to_one_and_names_layers() -> None:
    graph = chain((16, 3, 3), (16, 3, 3), (16, 3, 3))
    samples, ranges = calibrated(graph)
    told: list[tuple[str, float]] = []
    quantise(graph, kq(8), samples, ranges, lambda label, fraction: told.append((label, fraction)))
    fractions = [fraction for _, fraction in told]
    assert fractions == sorted(fractions)
    assert fractions[0] == 0.0
    assert fractions[-1] == 1.0
    assert any("net.c2" in label for label, _ in told)


def test_large_kernels_tell_what_the_bound_costs() -> None:
    """225 values within an absolute sum of 255 are coarse: the warning names the layer and what rounding costs."""
    graph = chain((8, 1, 1), (8, 15, 15), side=16)
    result = quantised(graph, kq(60))
    assert len(result.warnings) == 1
    assert "net.c1" in result.warnings[0]
    assert "at most 255 raise the error" in result.warnings[0]
