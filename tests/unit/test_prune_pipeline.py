"""Dead structure from end to end: what compile removes, says, and keeps beside the integers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from kqgen import oracle, pipeline
from kqgen.calibrate import calibrate
from kqgen.dequantised import check_same
from kqgen.errors import InputError
from kqgen.firmware import open_network
from kqgen.frontend import export_module, import_exported
from kqgen.fuse import split
from kqgen.intgraph import IntGraph
from kqgen.options import Weights
from kqgen.prune_float import narrowed
from kqgen.prune_record import KEY, before_compression, read, record, without_dead
from kqgen.samples import read_samples
from kqgen.simplify import simplify

IMAGES = np.random.default_rng(0).normal(0, 1, (12, 3, 8, 8)).astype(np.float32)
EXAMPLE = (torch.zeros(1, 3, 8, 8),)


def module() -> nn.Module:
    """Of 16 channels behind the first layer 5 never leave zero, nor do those of the depthwise layer behind it."""
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(16)
    with torch.no_grad():
        norm.bias[[1, 4, 5, 9, 14]] = -40.0
    layers = [nn.Conv2d(3, 16, 3, padding=1), norm, nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1, groups=16), nn.ReLU()]
    layers += [nn.Conv2d(16, 24, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(24, 5)]
    return nn.Sequential(*layers).eval()


def compiled(weights: Weights, keep_dead: bool = False, out: Path | None = None) -> pipeline.Compiled:
    return pipeline.compile(
        module(), EXAMPLE, calibration=IMAGES, board="nucleo-g0b1re", weights=weights, keep_dead=keep_dead, out=out, build=False,
    )  # fmt: skip


def outputs(graph: IntGraph) -> np.ndarray:
    codes = np.random.default_rng(1).integers(-128, 128, (20, 8, 8, 3), dtype=np.int8)
    return oracle.run(graph, {graph.inputs[0].name: codes})[graph.outputs[0]]


def test_int8_stays_the_same_in_every_bit() -> None:
    slim, padded = compiled("int8"), compiled("int8", keep_dead=True)
    assert padded.report.dead is None
    dead = slim.report.dead
    assert dead is not None
    assert dead.channels >= 10
    assert dead.of_weights == 3 * 9 * 16 + 16 * 9 + 16 * 24 + 24 * 5
    assert dead.weights >= 5 * (27 + 9 + 24)
    assert dead.padded_int8_tables_bytes == padded.report.flash_bytes.tables
    assert dead.int8_tables_bytes == slim.report.flash_bytes.tables
    assert np.array_equal(outputs(slim.plan.graph), outputs(padded.plan.graph))


def test_what_is_removed_is_kept_beside_the_integers(tmp_path: Path) -> None:
    """And makes the float model the one that the integers stand for."""
    made = compiled("kq", out=tmp_path / "out")
    network = open_network(tmp_path / "out")
    assert network.dead is not None
    assert made.report.dead is not None
    assert network.dead.removed.channels == made.report.dead.channels > 0
    original = simplify(import_exported(export_module(module(), EXAMPLE), "model"))
    found = narrowed(original, network.dead.rests, network.dead.twins)
    tensors = {node.name: node.shape[0] for node in found}
    assert tensors.items() >= {node.name: node.output.c for node in split(network.graph).nodes}.items()
    with pytest.raises(InputError, match="not the one"):
        check_same(original, split(network.graph))
    again = pipeline.compile_integers(
        tmp_path / "out" / "model.kqgen.safetensors", board=made.board, name=None, out=tmp_path / "again", build=False, toolchain=None
    )
    assert again.report.dead == made.report.dead


def test_before_kernels_are_clustered_channels_stay_in_fours() -> None:
    original = simplify(import_exported(export_module(module(), EXAMPLE), "model"))
    samples = read_samples(IMAGES, original)
    graph, dead = before_compression(original, calibrate(original, samples))
    counts = [node.shape[0] for node in graph if node.name not in (*graph.outputs, graph.inputs[0].name)]
    assert min(counts) == 12
    assert all(count % 4 == 0 for count in counts)
    assert dead.rests


def test_a_record_reads_back_and_a_damaged_one_is_refused() -> None:
    kept = compiled("int8", keep_dead=True).plan.graph
    graph, dead = without_dead(kept)
    found = read(record(dead), "file")
    assert found is not None
    assert (found.removed, found.padded_weights, found.twins) == (dead.removed, dead.padded_weights, dead.twins)
    assert found.rests.keys() == dead.rests.keys()
    for name, rest in found.rests.items():
        assert np.array_equal(rest.mask, dead.rests[name].mask)
        assert np.array_equal(rest.values[~rest.mask], dead.rests[name].values[~rest.mask])
    assert record(without_dead(graph)[1]) == {}
    assert read({}, "file") is None
    beyond = {"counts": [0] * 5, "tensors": {"a": [2, [[9, 0.0]]]}, "twins": {}}
    damaged: list[object] = [3, {}, {"counts": [1], "tensors": {}, "twins": {}}, beyond]
    for value in damaged:
        with pytest.raises(InputError, match="does not say what was removed"):
            read({KEY: value}, "file")
