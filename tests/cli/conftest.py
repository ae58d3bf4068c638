"""What every test of the command line starts from: the input files, and one compiled folder."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from cli.running import BOARD, OPTIONS, Run, ok, require_arm
from cli.tinynet import write_inputs


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> Iterator[None]:
    """Networks this small only lose by threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with tiny.pt2, tiny.pt, tiny.safetensors and images.npz; not to be written to."""
    folder = tmp_path_factory.mktemp("inputs")
    write_inputs(folder)
    return folder


@pytest.fixture(scope="session")
def compile_run(inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, Path]:
    """`kqgen compile tiny.pt2` for the M0+ board, and the folder it wrote."""
    require_arm()
    out = tmp_path_factory.mktemp("compiled") / "fw"
    return ok("compile", inputs / "tiny.pt2", "--board", BOARD, "--calibration", inputs / "images.npz", *OPTIONS, "--out", out), out


@pytest.fixture(scope="session")
def compiled(compile_run: tuple[Run, Path]) -> Path:
    """The folder that `kqgen compile tiny.pt2` writes for the M0+ board; not to be written to."""
    return compile_run[1]


@pytest.fixture
def firmware(compiled: Path, tmp_path: Path) -> Path:
    """A copy of `compiled` that a test may change."""
    return Path(shutil.copytree(compiled, tmp_path / "fw"))
