"""The waterfall: each step against the float model, the layer that is at fault, and the JSON of it."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cli import tinynet
from conftest import require_tool

from kqgen import dequantised, floatexec, ir
from kqgen.board import load_board
from kqgen.deliver import quantised_inputs
from kqgen.dequantised import simulate
from kqgen.errors import InputError
from kqgen.fidelity import Waterfall, waterfall
from kqgen.floatmodel import float_outputs
from kqgen.frontend import export_module, import_exported
from kqgen.hostlib import build_library
from kqgen.intgraph import IntConv2d, IntGraph, IntNode, KqWeights, UniformWeights, frozen
from kqgen.options import Codebook, Compression
from kqgen.pipeline import Compiled, compress
from kqgen.pipeline import compile as compile_module
from kqgen.report import document
from kqgen.samples import Samples, read_samples
from kqgen.simplify import simplify
from kqgen.verify import reference_outputs

COUNT = 60
LABELS = np.random.default_rng(9).integers(0, 5, COUNT)


@cache
def network() -> tuple[ir.Graph, IntGraph, Samples, tuple[ir.Float32, ...]]:
    """The small network: float, integers with one indexed layer, inputs and float outputs."""
    program = export_module(tinynet.make(), (torch.zeros(1, 3, 8, 8),))
    original = simplify(import_exported(program, "tiny"))
    samples = read_samples(tinynet.images(COUNT), original)
    integers, _ = compress(original, samples, Compression("kq", Codebook("network", 48), (("stem.0", 8),)))
    assert [book.name for book in integers.codebooks] == ["codebook_3x3"]
    return original, integers, samples, float_outputs(program, samples, COUNT)


def judged(integers: IntGraph | None = None, **options: Any) -> Waterfall:
    original, own, samples, expected = network()
    graph = integers or own
    outputs = reference_outputs(graph, quantised_inputs(graph, samples))
    return waterfall(original, graph, samples, expected, outputs, by_c=False, **options)


def swapped(graph: IntGraph, name: str, **fields: Any) -> IntGraph:
    return replace(graph, nodes=tuple(replace(node, **fields) if node.name == name else node for node in graph.nodes))


def conv(graph: IntGraph, name: str) -> IntConv2d:
    (node,) = [node for node in graph.nodes if node.name == name]
    assert isinstance(node, IntConv2d)
    return node


def test_the_steps_stand_in_order_and_the_folded_graph_is_the_float_model() -> None:
    found = judged(labels=LABELS)
    assert [step.step for step in found.steps] == ["float", "folded", "stored_weights", "int8_activations", "integers"]
    first, folded, *rest = found.steps
    assert (first.sqnr_db, first.same_class) == (None, 1.0)
    assert folded.sqnr_db is None or folded.sqnr_db > 100
    assert (folded.accuracy, folded.same_class) == (first.accuracy, 1.0)
    assert all(step.sqnr_db is not None and 3 < step.sqnr_db < 60 for step in rest)
    scores = network()[3][0]
    assert first.accuracy == np.mean(scores.argmax(1) == LABELS)
    assert first.weights_bytes == 4 * (8 * 3 * 9 + 8 * 8 * 9 + 6 * 8 + 5 * 6)
    graph = network()[1]
    packed = sum(node.weights.packed_bytes for node in graph.nodes if isinstance(node, IntConv2d))
    assert {step.weights_bytes for step in rest} == {packed + sum(book.packed_bytes for book in graph.codebooks)}


def test_rounded_activations_are_the_integers_but_for_multipliers() -> None:
    original, integers, samples, _ = network()
    stored = dequantised.dequantised(original, integers)
    found = simulate(stored, integers, next(samples.batches(COUNT)))
    (codes,) = reference_outputs(integers, quantised_inputs(integers, samples))
    (name,) = integers.outputs
    tensor = integers.tensor(name)
    simulated = np.rint(found[name].numpy()[:, :, 0, 0] / tensor.scale) + tensor.zero_point
    assert np.abs(simulated - codes[:, 0, 0, :]).max() <= 1


def test_real_biases_come_back_from_the_integers() -> None:
    """With the float weights' own integers nothing moved a bias by more than half a step, and bias correction is small at 8 bits."""
    original, _, samples, _ = network()
    integers, _ = compress(original, samples, Compression("int8"))
    stored = dequantised.dequantised(original, integers)
    for before, after in zip(original, stored, strict=True):
        if isinstance(before, ir.Conv2d) and isinstance(after, ir.Conv2d):
            assert np.allclose(before.bias, after.bias, atol=0.03)
            assert np.allclose(before.weight, after.weight, atol=0.03)


def test_input_scaling_is_counted_in_the_bias() -> None:
    class Scaled(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = tinynet.make()

        def forward(self, x: torch.Tensor) -> Any:
            return self.net((x - 0.7) / 1.3)

    program = export_module(Scaled(), (torch.zeros(1, 3, 8, 8),))
    original = simplify(import_exported(program, "scaled"))
    assert any(isinstance(node, ir.Conv2d) and node.input_offset is not None for node in original)
    samples = read_samples(tinynet.images(COUNT), original)
    integers, _ = compress(original, samples, Compression("int8"))
    found = floatexec.run(dequantised.dequantised(original, integers), next(samples.batches(COUNT)))
    wanted = floatexec.run(original, next(samples.batches(COUNT)))
    (name,) = original.outputs
    noise, signal = float((found[name] - wanted[name]).square().sum()), float(wanted[name].square().sum())
    assert 10 * math.log10(signal / noise) > 25


def test_the_c_is_judged_as_the_reference_exactly(tmp_path: Path) -> None:
    require_tool("cc")
    original, _, samples, expected = network()
    made: Compiled = compile_module(
        tinynet.make(), (torch.zeros(1, 3, 8, 8),), calibration=tinynet.images(COUNT), board=load_board("host"),
        codebook=Codebook("network", 48), keep=(("stem.0", 8),), name="tiny", out=tmp_path / "fw",
    )  # fmt: skip
    graph = made.plan.graph
    codes = quantised_inputs(graph, samples)
    reference = reference_outputs(graph, codes)
    by_c = build_library(tmp_path / "fw", graph, cache_dir=tmp_path).run(codes)
    assert all(np.array_equal(a, b) for a, b in zip(reference, by_c, strict=True))
    found = waterfall(original, graph, samples, expected, by_c, by_c=True, labels=LABELS).steps[-1]
    wanted = waterfall(original, graph, samples, expected, reference, by_c=False, labels=LABELS).steps[-1]
    assert (found.step, wanted.step) == ("c", "integers")
    assert replace(found, step="integers", title=wanted.title) == wanted


@pytest.mark.parametrize("name", ["stem_0", "point", "head"])
def test_a_layer_with_wrong_weights_is_blamed(name: str) -> None:
    graph = network()[1]
    node = conv(graph, name)
    assert not isinstance(node.weights, KqWeights)
    wrong = replace(node.weights, values=frozen(-node.weights.values, np.int8))
    found = judged(swapped(graph, name, weights=wrong))
    label = {"stem_0": "stem.0"}.get(name, name)
    assert (found.blame.step, found.blame.layer) == ("stored_weights", label)
    (layer,) = [layer for layer in found.layers if layer.name == label]
    assert layer.weights_db is not None
    assert layer.weights_db < 0 < min(other.weights_db for other in found.layers if other.weights_db and other is not layer)


def test_a_layer_with_wrong_codes_is_blamed() -> None:
    graph = network()[1]
    node = conv(graph, "body")
    assert isinstance(node.weights, KqWeights)
    wrong = replace(node.weights, negative=frozen(~node.weights.negative, np.bool_))
    assert judged(swapped(graph, "body", weights=wrong)).blame.layer == "body"


def test_a_tensor_with_a_wrong_scale_is_blamed_on_int8() -> None:
    original, graph, samples, expected = network()
    narrow = replace(conv(graph, "stem_0").output, scale=conv(graph, "stem_0").output.scale / 40)
    damaged = swapped(graph, "stem_0", output=narrow)
    outputs = reference_outputs(graph, quantised_inputs(graph, samples))
    found = waterfall(original, damaged, samples, expected, outputs, by_c=False)
    assert found.layers[0].alone_db is not None
    assert found.layers[0].alone_db < 3
    assert found.blame.step == "int8_activations"


def test_shares_sum_to_one_and_the_last_layer_is_the_whole() -> None:
    found = judged(labels=LABELS)
    assert sum(layer.noise_share or 0 for layer in found.layers) == pytest.approx(1)
    whole = found.steps[3]
    last = found.layers[-1]
    assert (last.accuracy, last.same_class) == (whole.accuracy, whole.same_class)
    assert last.network_db == pytest.approx(whole.sqnr_db, abs=1e-3)
    assert last.all_db == pytest.approx(last.network_db)
    assert (found.layers[0].alone_db or 0) > (found.layers[0].all_db or 0)  # the second has rounded inputs
    assert [layer.name for layer in found.layers] == list(tinynet.LAYERS)
    assert sum(layer.weights_bytes for layer in found.layers) + found.codebooks[0].weights_bytes == whole.weights_bytes


def test_codewords_before_rounding_are_a_step_of_their_own() -> None:
    graph = network()[1]
    (book,) = graph.codebooks
    same = judged(codewords={book.name: book.values.astype(np.float64)})
    assert [step.step for step in same.steps][2:4] == ["float_codebook", "stored_weights"]
    assert same.steps[2].sqnr_db == same.steps[3].sqnr_db
    assert same.steps[2].weights_bytes - same.steps[3].weights_bytes == 4 * book.values.size - book.packed_bytes
    assert same.left_out == ()
    moved = judged(codewords={book.name: book.values + 0.4})
    assert moved.steps[2].sqnr_db != moved.steps[3].sqnr_db
    assert judged().left_out[0].what == "float codebook"
    with pytest.raises(InputError, match="codewords before rounding"):
        judged(codewords={book.name: book.values[1:].astype(np.float64)})


def test_layers_that_make_up_for_each_other_are_not_blamed() -> None:
    """Two halves of one change of sign: the first alone ruins the network, both together change nothing."""
    original, _, samples, _ = network()
    integers, _ = compress(original, samples, Compression("int8"))
    point, head = conv(integers, "point"), conv(integers, "head")
    assert isinstance(point.weights, UniformWeights)
    assert isinstance(head.weights, UniformWeights)
    assert not judged(integers).blame.compensated
    minus = {name: frozen(-1 - integers.tensor(name).zero_point, np.int64).item() for name in ("point", "mean")}
    bias = point.requant.bias.astype(np.int64)
    turned_point = replace(
        point, weights=replace(point.weights, values=frozen(-point.weights.values, np.int8)),
        requant=replace(point.requant, bias=frozen(-bias, np.int32)), output=replace(point.output, zero_point=minus["point"]),
    )  # fmt: skip
    (mean,) = [node for node in integers.nodes if node.name == "mean"]
    turned_mean = replace(mean, output=replace(mean.output, zero_point=minus["mean"]))
    zeros = head.weights.values.astype(np.int64).sum(axis=(1, 2, 3)) * mean.output.zero_point
    real = head.requant.bias + zeros
    turned_head = replace(
        head, weights=replace(head.weights, values=frozen(-head.weights.values, np.int8)),
        requant=replace(head.requant, bias=frozen(real + head.weights.values.sum(axis=(1, 2, 3)) * minus["mean"], np.int32)),
    )  # fmt: skip
    swaps: dict[str, IntNode] = {"point": turned_point, "mean": turned_mean, "head": turned_head}
    found = judged(replace(integers, nodes=tuple(swaps.get(node.name, node) for node in integers.nodes)))
    assert (found.steps[3].sqnr_db or 0) > 20
    assert (found.blame.compensated, found.blame.layer) == (True, None)


def test_another_float_model_is_refused() -> None:
    original, graph, samples, expected = network()
    wider = replace(original, nodes=tuple(
        replace(node, weight=ir.frozen_array(node.weight[:, :4])) if isinstance(node, ir.Conv2d) and node.name == "body" else node
        for node in original
    ))  # fmt: skip
    for other in (wider, replace(original, outputs=("mean",)), replace(original, nodes=original.nodes[:-1])):
        with pytest.raises(InputError, match="not the one that tiny was made of"):
            waterfall(other, graph, samples, expected, (), by_c=False)


def test_the_json_is_that_of_the_specification() -> None:
    text = json.dumps(document(judged(labels=LABELS)), allow_nan=False)
    found = json.loads(text)
    assert list(found) == [
        "schema", "model", "inputs", "layer_inputs", "bits_per_weight", "steps", "layers", "codebooks", "blame", "left_out",
    ]  # fmt: skip
    assert (found["schema"], found["inputs"], found["layer_inputs"]) == (1, COUNT, COUNT)
    assert {frozenset(step) for step in found["steps"]} == {
        frozenset({"step", "accuracy", "sqnr_db", "same_class", "weights_bytes"})
    }  # fmt: skip
    assert {tuple(layer) for layer in found["layers"]} == {(
        "name", "op", "weights", "weights_bytes", "bits_per_weight", "weights_db", "alone_db", "all_db", "network_db", "same_class",
        "accuracy", "noise_share",
    )}  # fmt: skip
    assert set(found["blame"]) == {"step", "layer", "compensated"}
    assert [set(entry) for entry in found["left_out"]] == [{"what", "why"}]
