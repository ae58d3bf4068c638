"""The trained networks of examples/: their C on real images, against the integer reference and the accuracy that docs/RESULTS.md states."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import resnets
from conftest import require_tool

from kqgen import pipeline, store
from kqgen.board import load_board
from kqgen.firmware import Firmware, open_firmware
from kqgen.hostlib import build_library
from kqgen.training import bits_per_weight
from kqgen.verify import Tensors, reference_outputs

ROOT = Path(__file__).resolve().parents[2]
NETWORKS = sorted(path for path in (ROOT / "examples").glob("*/*.kq.safetensors") if path.parent.name != "kws")
ACCURACY_OF = "examples/resnet8/resnet8-1.50.kq.safetensors"
CHECKED = {"vgg16": 4, "resnet8_wide": 20, "resnet20": 40, "resnet8": 100}


def compiled(network: Path, out: Path) -> Firmware:
    pipeline.compile_integers(network, board=load_board("host"), name=None, out=out, build=False, toolchain=None)
    return open_firmware(out)


def pixels(start: int, stop: int) -> Tensors:
    """Images as int8 codes: every one of these networks takes raw pixels, zero point -128, scale 1."""
    images, _ = resnets.cifar10("test")
    return ((images[start:stop].astype(np.int16) - 128).astype(np.int8),)


def test_all_networks_of_the_examples_are_there() -> None:
    assert {path.name.rpartition("-")[0] for path in NETWORKS} == set(CHECKED)


@pytest.mark.parametrize("network", NETWORKS, ids=lambda path: path.name.removesuffix(".kq.safetensors"))
def test_the_c_of_a_trained_network_is_the_reference(network: Path, tmp_path: Path) -> None:
    require_tool("cc")
    name, _, bits = network.name.removesuffix(".kq.safetensors").rpartition("-")
    firmware = compiled(network, tmp_path / "out")
    trained, _ = store.read(network)  # with its dead channels, of which the C has none
    (tensor,) = trained.inputs
    assert (tensor.scale, tensor.zero_point) == (1.0, -128)
    assert bits_per_weight(trained) <= float(bits)
    inputs = pixels(0, CHECKED[name])
    outputs = build_library(firmware.folder, firmware.graph).run(inputs)
    assert all(np.array_equal(a, b) for a, b in zip(reference_outputs(trained, inputs), outputs, strict=True))


def test_trained_resnet8_is_as_accurate_as_the_results_say(tmp_path: Path) -> None:
    """All 10 000 test images through the C; the row of docs/RESULTS.md that names the file gives the accuracy."""
    require_tool("cc")
    row = next(line for line in (ROOT / "docs" / "RESULTS.md").read_text(encoding="utf-8").splitlines() if f"`{ACCURACY_OF}`" in line)
    stated = re.search(r"\| (\d\d\.\d\d) %", row)
    assert stated is not None
    firmware = compiled(ROOT / ACCURACY_OF, tmp_path / "out")
    (scores,) = build_library(firmware.folder, firmware.graph).run(pixels(0, 10_000))
    _, labels = resnets.cifar10("test")
    right = int((scores.reshape(10_000, -1).argmax(axis=1) == labels).sum())
    assert f"{right / 100:.2f}" == stated.group(1)
    assert right >= 8500
