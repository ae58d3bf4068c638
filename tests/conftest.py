"""Helpers for tests that need something from outside: a compiler, an emulator, the shared data.

Locally such a test is skipped with its reason; with CI=true in the environment it fails, so that none is missed there.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Literal, NoReturn

import kernellib
import pytest
import tiny
import torch

from kqgen.board import Board, load_board
from kqgen.image import Image, build_image
from kqgen.toolchain import find_toolchain

ToolName = Literal["cc", "gcc", "zig", "unicorn", "qemu", "cmake", "litert"]
ArmCompiler = Literal["gcc", "zig"]

ROOT = Path(__file__).resolve().parent.parent

_PROGRAMS: dict[ToolName, tuple[str, ...]] = {
    "cc": ("cc", "gcc", "clang"), "gcc": ("arm-none-eabi-gcc",), "qemu": ("qemu-system-arm",), "cmake": ("cmake",),
}  # fmt: skip
_MODULES: dict[ToolName, str] = {"zig": "ziglang", "unicorn": "unicorn", "litert": "ai_edge_litert"}


def pytest_addoption(parser: pytest.Parser) -> None:
    """--update-golden rewrites the expected texts under tests/golden/ instead of comparing with them."""
    parser.addoption("--update-golden", action="store_true", help="rewrite the expected texts of tests/golden/")


def pytest_configure(config: pytest.Config) -> None:
    """Shares the processors among the worker processes: torch's threads wait by spinning, and two pools on one core starve each other."""
    del config
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // workers))


def _missing(reason: str) -> NoReturn:
    if os.environ.get("CI") == "true":
        pytest.fail(f"{reason} (CI=true: nothing may be skipped)", pytrace=False)
    pytest.skip(reason)


def require_that(holds: bool, reason: str) -> None:
    """Skips (fails in CI) unless a condition of the surroundings holds."""
    if not holds:
        _missing(reason)


@cache
def _has(tool: ToolName) -> bool:
    if tool in _MODULES:
        return importlib.util.find_spec(_MODULES[tool]) is not None
    return any(shutil.which(program) for program in _PROGRAMS[tool])


def require_tool(*tools: ToolName) -> None:
    """Skips (fails in CI) unless every tool is installed; `cc` is a compiler for this computer."""
    for tool in tools:
        if not _has(tool):
            _missing(f"needs {' or '.join(_PROGRAMS.get(tool, ()))}{_MODULES.get(tool, '')}, which is not installed")


def require_data(relative: str) -> Path:
    """A file or folder of the shared data; skips (fails in CI) when it is not there.

    The data lie in the folder KQGEN_DATA names, else in ../shared/data beside the checkout.
    """
    base = Path(os.environ.get("KQGEN_DATA") or ROOT.parent / "shared" / "data")
    path = base / relative
    if not path.exists():
        _missing(f"needs {relative} of the shared data (set KQGEN_DATA to their folder)")
    return path


ImageBuilder = Callable[..., Image]
"""build(board, compiler, tap=False): the tiny model's image, built once a session."""


@pytest.fixture(scope="session")
def tiny_image(tmp_path_factory: pytest.TempPathFactory) -> ImageBuilder:
    """Builds the tiny model for a board (name or Board) with a compiler, once for each choice."""
    built: dict[tuple[str, str, bool], Image] = {}
    sources = tiny.write_sources(tmp_path_factory.mktemp("tiny"))

    def build(board: str | Board, compiler: ArmCompiler, tap: bool = False) -> Image:
        require_tool(compiler)
        chosen = load_board(board) if isinstance(board, str) else board
        key = (chosen.name, compiler, tap)
        if key not in built:
            out = tmp_path_factory.mktemp("image")
            built[key] = build_image(sources, tiny.API, chosen, find_toolchain(compiler), out, tap=tap)
        return built[key]

    return build


@pytest.fixture(scope="session")
def kernels(tmp_path_factory: pytest.TempPathFactory) -> kernellib.Kernels:
    """The runtime as a library of this computer, built once a session with the strict warnings."""
    require_tool("cc")
    folder = tmp_path_factory.mktemp("kernels")
    kernellib.build(folder, kernellib.PLAIN_FLAGS)
    return kernellib.load(folder)
