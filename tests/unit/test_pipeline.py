"""The whole order as Python calls it: one network through every stage, and what must hold of the result."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from floatnets import Lambda, images, randomise
from torch import nn

import kqgen
from kqgen import deliver, pipeline, store
from kqgen.board import load_board
from kqgen.errors import CapacityError, InputError, UnsupportedError
from kqgen.firmware import open_firmware
from kqgen.samples import read_samples
from kqgen.verify import reference_outputs


def network() -> nn.Module:
    return randomise(nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.Flatten(), nn.Linear(64, 3)))


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


EXAMPLE = (torch.zeros(1, 2, 6, 6),)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> kqgen.Compiled:
    """The network, compiled without a build."""
    out = tmp_path_factory.mktemp("made") / "fw"
    told: list[tuple[str, float]] = []
    compiled = kqgen.compile(
        network(), EXAMPLE, calibration=images(20, 2, 6, 6).numpy(), board="nucleo-f446re", codebook=kqgen.Codebook("network", 4),
        keep=(("0", 8),), name="small", out=out, build=False, tell=lambda label, fraction: told.append((label, fraction)),
    )  # fmt: skip
    assert all(label and 0 <= fraction <= 1 for label, fraction in told)
    assert len({label for label, _ in told}) > 3
    return compiled


def test_the_folder_and_the_object_say_the_same(made: kqgen.Compiled) -> None:
    assert made.folder is not None
    firmware = open_firmware(made.folder)
    assert store.to_bytes(firmware.graph) == store.to_bytes(made.plan.graph)
    assert (firmware.plan.steps, firmware.plan.tensors) == (made.plan.steps, made.plan.tensors)
    assert firmware.board == made.board == load_board("nucleo-f446re")
    for path, text in made.tree.files.items():
        assert (made.folder / path).read_text(encoding="utf-8") == text
    assert firmware.read_report()["model"] == made.report.model == "small"


def test_compiling_again_gives_the_same_bytes_of_every_file(made: kqgen.Compiled, tmp_path: Path) -> None:
    assert made.folder is not None
    kqgen.compile(
        network(), EXAMPLE, calibration=images(20, 2, 6, 6), board="nucleo-f446re", codebook=kqgen.Codebook("network", 4),
        keep=(("0", 8),), name="small", out=tmp_path / "again", build=False,
    )  # fmt: skip
    first, second = (
        {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        for folder in (made.folder, tmp_path / "again")
    )
    assert first == second


def test_nothing_is_written_without_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    compiled = kqgen.compile(network(), EXAMPLE, calibration=images(4, 2, 6, 6), board="host", weights="int8")
    assert compiled.folder is None
    assert compiled.report.weights == "int8"
    assert "model.c" in compiled.tree.files
    assert list(tmp_path.iterdir()) == []


def test_the_module_is_not_changed() -> None:
    module = network()
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    kqgen.compile(module, EXAMPLE, calibration=images(4, 2, 6, 6), board="host", weights="int8")
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())


def test_several_inputs_are_calibrated_by_name_or_order() -> None:
    module = Lambda(lambda self, a, b: self.first(a) + self.second(b), first=nn.Conv2d(2, 3, 3), second=nn.Conv2d(1, 3, 3)).eval()
    example = (torch.zeros(1, 2, 5, 5), torch.zeros(1, 1, 5, 5))
    a, b = images(6, 2, 5, 5).numpy(), images(6, 1, 5, 5, seed=2).numpy()
    graphs = [
        kqgen.compile(module, example, calibration=calibration, board="host", weights="int8").plan.graph
        for calibration in ({"inputs_1": b, "inputs_0": a}, [(a, b)])
    ]
    assert [(tensor.h, tensor.w, tensor.c) for tensor in graphs[0].inputs] == [(5, 5, 2), (5, 5, 1)]
    assert store.to_bytes(graphs[0]) == store.to_bytes(graphs[1])


def test_codes_of_samples_are_channels_last(made: kqgen.Compiled) -> None:
    graph = made.plan.graph
    samples = read_samples(images(3, 2, 6, 6), pipeline._input_graph(graph))
    (codes,) = deliver.quantised_inputs(graph, samples, 2)
    assert codes.shape == (2, 6, 6, 2)
    tensor = graph.inputs[0]
    value = samples.arrays[0][1, 1, 4, 3]
    assert codes[1, 4, 3, 1] == np.clip(np.floor(value / tensor.scale + 0.5) + tensor.zero_point, -128, 127)


def test_a_board_may_be_a_description(tmp_path: Path) -> None:
    own = replace(load_board("nucleo-g0b1re"), name="mine", clock_hz=48_000_000)
    out = tmp_path / "fw"
    kqgen.compile(network(), EXAMPLE, calibration=images(4, 2, 6, 6), board=own, weights="int8", out=out, build=False)
    assert open_firmware(out).board == replace(own, where=str(out / "board.toml"))


def test_a_network_too_large_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    module = nn.Sequential(nn.Conv2d(1, 32, 3, padding=1), nn.Conv2d(32, 2, 3))
    with pytest.raises(CapacityError, match="model does not fit microbit"):
        kqgen.compile(
            module, (torch.zeros(1, 1, 32, 32),), calibration=images(1, 1, 32, 32), board="microbit", weights="int8", out=tmp_path / "fw"
        )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["9", "a-b", "return", "kq", "", "naïve"])
def test_names_that_c_does_not_take(name: str) -> None:
    with pytest.raises(InputError, match="cannot be called"):
        kqgen.compile(network(), EXAMPLE, calibration=images(1, 2, 6, 6), board="host", name=name)


def test_bad_calls_are_refused() -> None:
    with pytest.raises(UnsupportedError, match="log_sigmoid"):
        kqgen.compile(nn.LogSigmoid(), EXAMPLE, calibration=images(1, 2, 6, 6), board="host")
    with pytest.raises(InputError, match="unknown board 'hots'"):
        kqgen.compile(network(), EXAMPLE, calibration=images(1, 2, 6, 6), board="hots")
    with pytest.raises(InputError, match="cannot read calibration data"):
        kqgen.compile(network(), EXAMPLE, calibration=None, board="host")


def test_float_agreement_of_the_whole_way(made: kqgen.Compiled) -> None:
    assert made.folder is not None
    firmware = open_firmware(made.folder)
    samples = read_samples(images(8, 2, 6, 6, seed=9), pipeline._input_graph(firmware.graph))
    outputs = reference_outputs(firmware.graph, deliver.quantised_inputs(firmware.graph, samples))
    agreement = pipeline._float_agreement(firmware, samples, outputs)
    assert agreement is not None
    assert agreement.sqnr_db is not None
    assert agreement.sqnr_db > 3
