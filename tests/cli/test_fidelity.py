"""`kqgen fidelity` and `kqgen picture`: what they write, what they say, and what they refuse."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import torch

from cli import tinynet
from cli.running import BOARD, OPTIONS, kqgen, ok, read_json, snapshot
from kqgen import store

COUNT = 20


def labelled(folder: Path, **arrays: Any) -> Path:
    """An .npz of images and, unless given otherwise, labels."""
    path = folder / "test.npz"
    content = {"images": tinynet.images(COUNT), "labels": np.arange(COUNT) % 5, **arrays}
    np.savez(path, **{name: array for name, array in content.items() if array is not None})
    return path


def test_the_waterfall_is_written_and_shown(firmware: Path, tmp_path: Path) -> None:
    run = ok("fidelity", firmware, "--inputs", labelled(tmp_path))
    document = read_json(firmware / "fidelity.json")
    assert (document["schema"], document["model"], document["inputs"]) == (1, "tiny", COUNT)
    assert [step["step"] for step in document["steps"]] == ["float", "folded", "stored_weights", "int8_activations", "c"]
    assert [layer["name"] for layer in document["layers"]] == list(tinynet.LAYERS)
    module = tinynet.make()
    with torch.no_grad():
        right = module(torch.from_numpy(tinynet.images(COUNT))).argmax(1).numpy() == np.arange(COUNT) % 5
    assert document["steps"][0]["accuracy"] == pytest.approx(right.mean())
    report = read_json(firmware / "report.json")
    assert document["bits_per_weight"] == report["bits_per_weight"]
    lines = run.out.splitlines()
    assert lines[0] == f"tiny  on {COUNT} inputs"
    assert [line.split("  ")[1] for line in lines[3:8]] == [
        "float model", "folded graph", "6-bit codebook", "int8 activations", "generated C",
    ]  # fmt: skip
    assert {line.split()[0] for line in lines if line.startswith("  ") and line.split()} >= {*tinynet.LAYERS, "codebook_3x3", "blame"}
    assert "  left out float codebook: " in run.out
    assert max(len(line) for line in lines) <= 118


def test_a_folder_with_a_waterfall_is_compiled_anew(firmware: Path, inputs: Path, tmp_path: Path) -> None:
    ok("fidelity", firmware, "--inputs", labelled(tmp_path), "--limit", "4")
    assert read_json(firmware / "fidelity.json")["inputs"] == 4
    images = inputs / "images.npz"
    ok("compile", inputs / "tiny.pt2", "--board", BOARD, "--calibration", images, *OPTIONS, "--no-build", "--out", firmware)
    assert not (firmware / "fidelity.json").exists()


def test_json_goes_to_standard_output_alone(firmware: Path, tmp_path: Path) -> None:
    before = snapshot(firmware)
    run = ok("fidelity", firmware, "--inputs", labelled(tmp_path), "--json", "-")
    assert json.loads(run.out)["model"] == "tiny"
    assert "6-bit codebook" in run.err
    assert snapshot(firmware) == before


def test_without_labels_accuracy_is_left_out_and_said_so(firmware: Path, tmp_path: Path) -> None:
    run = ok("fidelity", firmware, "--inputs", labelled(tmp_path, labels=None))
    document = read_json(firmware / "fidelity.json")
    assert {step["accuracy"] for step in document["steps"]} == {None}
    assert {layer["accuracy"] for layer in document["layers"]} == {None}
    why = "test.npz holds no array 'labels': numpy.savez(..., images=..., labels=...)"
    assert document["left_out"][0] == {"what": "accuracy", "why": why}
    assert "accuracy %" not in run.out
    assert "left out accuracy: test.npz holds no array 'labels'" in run.out


@pytest.mark.parametrize("suffix", [".kq.safetensors", ".kqgen.safetensors"])
def test_a_file_of_integers_is_judged_with_its_float_model(firmware: Path, inputs: Path, tmp_path: Path, suffix: str) -> None:
    net = Path(shutil.copyfile(firmware / "tiny.kqgen.safetensors", tmp_path / f"net{suffix}"))
    images = labelled(tmp_path)
    run = ok("fidelity", net, "--inputs", images, "--model", inputs / "tiny.pt2", "--json", "-")
    found = json.loads(run.out)
    ok("fidelity", firmware, "--inputs", images)
    wanted = read_json(firmware / "fidelity.json")
    assert found["steps"][-1] == {**wanted["steps"][-1], "step": "integers"}
    assert (found["steps"][:-1], found["layers"]) == (wanted["steps"][:-1], wanted["layers"])
    assert {"what": "generated C", "why": "a file of integers has none: the integer reference stands for it"} in found["left_out"]
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_file()) == sorted([net.name, images.name])


def test_a_file_of_integers_alone_wants_its_float_model(firmware: Path, tmp_path: Path) -> None:
    run = kqgen("fidelity", firmware / "tiny.kqgen.safetensors", "--inputs", labelled(tmp_path))
    assert run.status == 2
    assert "the float model of tiny is needed" in run.err
    assert "--model net.pt2" in run.err


def test_another_float_model_is_refused(firmware: Path, tmp_path: Path) -> None:
    other = tinynet.save(torch.nn.Sequential(torch.nn.Conv2d(3, 5, 8), torch.nn.Flatten()), tmp_path / "other.pt2")
    run = kqgen("fidelity", firmware, "--inputs", labelled(tmp_path), "--model", other)
    assert run.status == 2
    assert "the float model is not the one that tiny was made of" in run.err


@pytest.mark.parametrize(
    ("labels", "says"),
    [
        (np.full(COUNT, 5), "label 5 of image 0; 20 such labels"),
        (np.zeros(COUNT - 1, np.int64), "19 labels, 20 images"),
        (np.zeros(COUNT), "float64 (20,)"),
    ],
)
def test_labels_that_cannot_be_right_are_refused(firmware: Path, tmp_path: Path, labels: Any, says: str) -> None:
    run = kqgen("fidelity", firmware, "--inputs", labelled(tmp_path, labels=labels))
    assert (run.status, run.out) == (2, "")
    assert says in run.err
    assert "nothing was written" in run.err
    assert not (firmware / "fidelity.json").exists()


def test_what_is_no_network_is_refused(tmp_path: Path, inputs: Path) -> None:
    for command, more in (("fidelity", ("--inputs", labelled(tmp_path))), ("picture", ("--out", tmp_path / "a.svg"))):
        for path, says in ((tmp_path / "none", "no such file or folder"), (inputs / "tiny.pt2", "a file of another kind")):
            run = kqgen(command, path, *more)
            assert run.status == 2
            assert "is no network of kqgen" in run.err
            assert says in run.err
    assert not (tmp_path / "a.svg").exists()


def test_the_picture_is_that_of_the_folder(firmware: Path, tmp_path: Path) -> None:
    net = Path(shutil.copyfile(firmware / "tiny.kqgen.safetensors", tmp_path / "net.kq.safetensors"))
    run = ok("picture", firmware, "--out", tmp_path / "folder.svg")
    ok("picture", net, "--out", tmp_path / "file.svg")
    assert f"written  to {tmp_path / 'folder.svg'}" in run.out
    text = (tmp_path / "folder.svg").read_bytes()
    assert text == (tmp_path / "file.svg").read_bytes()
    tiles = [group for group in ElementTree.fromstring(text).iter() if group.attrib.get("class") == "tile"]  # noqa: S314 - our own
    assert len(tiles) == store.read(net)[0].codebooks[0].codewords


def test_a_picture_is_an_svg(firmware: Path, tmp_path: Path) -> None:
    run = kqgen("picture", firmware, "--out", tmp_path / "codebook.png")
    assert run.status == 2
    assert f"--out {tmp_path / 'codebook.svg'}" in run.err
    assert list(tmp_path.glob("*.png")) == []


def test_a_network_without_codebooks_has_no_picture(inputs: Path, tmp_path: Path) -> None:
    images = inputs / "images.npz"
    ok("compile", inputs / "tiny.pt2", "--board", "host", "--calibration", images, "--weights", "int8", "--out", tmp_path / "fw")
    run = kqgen("picture", tmp_path / "fw", "--out", tmp_path / "a.svg")
    assert run.status == 2
    assert "tiny has no codebook to draw" in run.err
    found = ok("fidelity", tmp_path / "fw", "--inputs", labelled(tmp_path)).out
    assert "stored weights" in found
    assert "codebook" not in found
