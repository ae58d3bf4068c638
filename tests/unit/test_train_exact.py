"""The promise of training: what a prepared model answers in eval mode is what the C answers, number by number."""

from __future__ import annotations

import copy
import dataclasses
import functools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from trainnets import SIDE, Batches, Residual, make, one_thread, outputs_of_c, pixels, plain_loop

from kqgen import store, training
from kqgen.intgraph import IntConv2d, IntGraph, KqWeights, UniformWeights
from kqgen.options import Codebook
from kqgen.train_model import run_integers

_one_thread = one_thread

STEPS = 6
OUTPUT_STEPS = 3.0
"""How far the simulation may be from the integers, in steps of the output. Both round the same values, but the simulation sums in
float32 and the integers multiply by 15-bit factors (relative error up to 2**-15 each): a value next to a rounding boundary goes to the
other side, one step of its map, now and then. Five maps follow one another; an int8 head of 12 inputs with weights of the size of 1 /
sqrt(12) passes a single step on as less than one of its own, so few such steps come together."""

FORMS: dict[str, tuple[dict[str, Any], dict[str, tuple[str, int]]]] = {
    "signed, uniform layers": (
        {"codebook": Codebook("network", 24), "keep": (("stem", 8), ("plain", 6))},
        {"stem": ("uniform", 8), "narrow": ("kq", 6), "plain": ("uniform", 6)},
    ),
    "unsigned, narrow indices": (
        {"codebook": Codebook("network", 32, sign=False), "widths": (("plain", 3),)},
        {"stem": ("kq", 5), "narrow": ("kq", 5), "plain": ("kq", 3)},
    ),
    "sums of codewords": (
        {"codebook": Codebook("network", 8, additive=True), "keep": (("plain", 4),)},
        {"stem": ("kq", 7), "narrow": ("kq", 7), "plain": ("uniform", 4)},
    ),
    "a codebook a layer": (
        {"codebook": Codebook("layer", 16), "widths": (("stem", 4), ("narrow", 5))},
        {"stem": ("kq", 4), "narrow": ("kq", 5), "plain": ("kq", 5)},
    ),
}


@functools.cache
def trained(form: str) -> training.KqModule:
    """The residual network after a few steps of a plain loop, in eval mode; not to be changed."""
    images, labels = pixels(64)
    torch.manual_seed(0)
    model = training.prepare(make(Residual), example_inputs=(images[:1],), **FORMS[form][0])
    plain_loop(model, Batches(images, labels, 16), STEPS)
    return model.eval()


@pytest.mark.parametrize("form", FORMS)
def test_eval_mode_is_the_c(form: str, tmp_path: Path) -> None:
    options, stored = FORMS[form]
    model = trained(form)
    images, _ = pixels(100, seed=7)
    found = model(images)
    made = outputs_of_c(model, tmp_path, images)
    assert found.shape == (100, 5)
    assert np.array_equal(made, found.numpy())
    assert np.array_equal(made.argmax(1), found.argmax(1).numpy())
    assert len({tuple(row) for row in made.tolist()}) > 50

    graph, _ = store.read(tmp_path / "net.kq.safetensors")
    kinds = {node.path: node.weights for node in graph.nodes if isinstance(node, IntConv2d) and not node.dense}
    assert {
        path: ("kq", weights.index_bits) if isinstance(weights, KqWeights) else ("uniform", weights.bits) for path, weights in kinds.items()
    } == stored
    assert [book.additive for book in graph.codebooks] == [options["codebook"].additive] * len(graph.codebooks)
    assert [book.sign for book in graph.codebooks] == [options["codebook"].sign] * len(graph.codebooks)
    assert len(graph.codebooks) == (3 if options["codebook"].scope == "layer" else 1)
    for book in graph.codebooks:
        assert int(np.abs(book.values).max()) <= 31
        assert int(np.abs(book.values.astype(int)).reshape(len(book.values), -1).sum(1).max()) <= (127 if book.additive else 255)
    assert any(isinstance(node.weights, UniformWeights) for node in graph.nodes if isinstance(node, IntConv2d) and node.dense)


def output_steps(model: training.KqModule, graph: IntGraph) -> torch.Tensor:
    """How far the simulation is from an integer graph's outputs, in their steps."""
    images, _ = pixels(64, seed=8)
    with torch.no_grad():
        far: torch.Tensor = model.simulate(images) - run_integers(graph, [images])[0].flatten(1)
    return far.abs() / graph.tensor(graph.outputs[0]).scale


@pytest.mark.parametrize("form", FORMS)
def test_the_simulation_is_within_a_few_steps_of_the_integers(form: str) -> None:
    """And the bound is tight enough to see a zero point that is off by a twentieth of its map's range."""
    model = trained(form)
    graph = training.integers(model)
    far = output_steps(model, graph)
    assert float(far.max()) <= OUTPUT_STEPS
    assert float(far.mean()) < 0.3
    shifted = dataclasses.replace(graph.inputs[0], zero_point=graph.inputs[0].zero_point + 12)
    assert float(output_steps(model, dataclasses.replace(graph, inputs=(shifted,))).max()) > OUTPUT_STEPS


def test_another_codebook_gives_other_answers() -> None:
    """Equality means something: codewords of one layer turned are seen."""
    model = trained("a codebook a layer")
    images, _ = pixels(20, seed=7)
    found = model(images).numpy()
    graph = training.integers(model)
    first, second, third = graph.codebooks
    changed = dataclasses.replace(graph, codebooks=(first, dataclasses.replace(second, values=-second.values), third))
    made = run_integers(changed, [images])[0].flatten(1).numpy()
    assert not np.array_equal(made, found)


def test_batches_do_not_change_answers() -> None:
    model = trained("signed, uniform layers")
    images = torch.randint(0, 256, (260, 3, SIDE, SIDE), generator=torch.Generator().manual_seed(3)).float()
    together = model(images)
    assert torch.equal(together, torch.cat([model(part) for part in torch.split(images, 70)]))
    assert torch.equal(together[:1], model(images[:1]))


def test_a_change_of_any_kind_is_followed() -> None:
    """Integers are kept until something changes: an optimiser that writes into .data, a loaded state."""
    model = copy.deepcopy(trained("signed, uniform layers"))
    images, labels = pixels(16, seed=9)
    before, state = model(images), copy.deepcopy(model.state_dict())
    assert model.trained() is model.trained()
    model.train()
    torch.nn.functional.cross_entropy(model(images), labels).backward()  # type: ignore[no-untyped-call]
    for parameter in model.parameters():
        if parameter.grad is not None:
            parameter.data.add_(parameter.grad, alpha=-0.5)
    model.eval()
    assert not torch.equal(model(images), before)
    model.load_state_dict(state)
    assert torch.equal(model(images), before)


def test_the_network_is_called_after_the_file(tmp_path: Path) -> None:
    unnamed, file = trained("a codebook a layer"), tmp_path / "7 nets.kq.safetensors"
    training.save(unnamed, file)
    assert store.read(file)[0].name == "net_7_nets"
    assert training.integers(unnamed, "Watch dog").name == "Watch_dog"
    assert [path.name for path in tmp_path.iterdir()] == [file.name]
