"""Whole networks as they are deployed: the C on this computer gives the integer reference's bytes, and both are near float PyTorch."""

from __future__ import annotations

from pathlib import Path

import pytest
import zoo
from conftest import require_tool

import kqgen
from kqgen.firmware import open_firmware
from kqgen.pipeline import verify_firmware

CASES = (
    ("mobilenet_v2", "int8", 5.0), ("efficientnet_lite", "int8", 5.0), ("unet", "int8", 20.0), ("yolo", "int8", 20.0),
    ("mobilenet_v3", "int8", 20.0), ("shufflenet", "int8", 25.0), ("super_resolution", "int8", 25.0), ("yolo", "kq", 3.0),
)  # fmt: skip
"""Network, weights, and dB of signal over noise at the outputs: random weights in many layers amplify noise from layer to layer."""


@pytest.mark.parametrize(("name", "weights", "floor_db"), CASES)
def test_reference_and_c_agree(name: str, weights: str, floor_db: float, tmp_path: Path) -> None:
    require_tool("cc")
    module, given = zoo.build(name), zoo.inputs(name, 6, seed=9)
    (calibration,) = zoo.inputs(name, 12, seed=5)
    kqgen.compile(
        module, tuple(each[:1] for each in given), calibration=calibration.numpy(), out=tmp_path / name, board="host",
        weights="kq" if weights == "kq" else "int8", name=name,
    )  # fmt: skip
    report = verify_firmware(open_firmware(tmp_path / name), given[0].numpy())
    assert report.exact is True
    assert report.float is not None
    assert (report.float.sqnr_db or 0) > floor_db
    made = kqgen.load(tmp_path / name)(given[0].numpy())
    for found, wanted in zip(made if isinstance(made, tuple) else (made,), zoo.outputs(module, given), strict=True):
        assert found.reshape(wanted.shape).shape == wanted.shape
        error = wanted.numpy() - found.reshape(wanted.shape)
        assert float((error**2).sum()) < 10 ** (-floor_db / 10) * float((wanted**2).sum()), name
