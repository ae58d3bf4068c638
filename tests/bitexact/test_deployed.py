"""Whole networks as they are deployed: the C on this computer and on four emulated cores gives the
integer reference's bytes, and is near float PyTorch.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import zoo
from conftest import require_tool

import kqgen
from kqgen import pipeline
from kqgen.board import load_board
from kqgen.firmware import open_firmware
from kqgen.pipeline import verify_firmware
from kqgen.plan import Planning

BOARDS = ("nucleo-g0b1re", "nucleo-f446re", "nucleo-u575zi", "mps3-an547")
"""A Cortex-M0+, M4, M33 and M55; each runs one input."""

CASES = (
    ("mobilenet_v2", "int8", 5.0), ("efficientnet_lite", "int8", 5.0), ("unet", "int8", 20.0), ("ecg", "int8", 20.0),
    ("yolo", "int8", 20.0), ("mobilenet_v3", "int8", 20.0), ("shufflenet", "int8", 25.0), ("super_resolution", "int8", 25.0),
    ("yolo", "kq", 3.0),
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
    _agree_on_boards(tmp_path / name / f"{name}.kqgen.safetensors", given, tmp_path)


def _agree_on_boards(integers: Path, given: tuple[torch.Tensor, ...], folder: Path) -> None:
    """The same integers for every core, step by step under its emulator."""
    require_tool("gcc", "unicorn", "qemu")
    for name in BOARDS:
        board, out = load_board(name), folder / name
        planning = Planning("ram" if "mobilenet_v2" in integers.name else "balanced")  # its maps exceed the smaller boards
        pipeline.compile_integers(integers, board=board, name=None, out=out, build=False, toolchain="gcc", planning=planning)
        target = "qemu" if board.core.unicorn_model is None else "unicorn"
        report = verify_firmware(open_firmware(out), given[0].numpy(), targets=[target], limit=1, toolchain="gcc")
        assert report.exact is True, name
