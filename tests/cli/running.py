"""Runs the command line inside this process, as its entry point does, and looks at what it leaves behind."""

from __future__ import annotations

import io
import json
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from conftest import require_tool

from kqgen import cli
from kqgen.errors import ToolchainError
from kqgen.toolchain import find_toolchain

BOARD = "nucleo-g0b1re"

OPTIONS = ("--codewords", "16", "--keep", "stem.0=8")
"""With these one layer of the tiny network is indexed, into a codebook smaller than its kernels."""


@dataclass(frozen=True)
class Run:
    """One command: its exit status and what it wrote."""

    status: int
    out: str
    err: str


def kqgen(*arguments: str | Path) -> Run:
    """Runs `kqgen ARGUMENTS`; the exit status is the process's."""
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err), pytest.raises(SystemExit) as left:
        cli.main([str(argument) for argument in arguments])
    status = left.value.code
    assert isinstance(status, int)
    return Run(status, out.getvalue(), err.getvalue())


def ok(*arguments: str | Path) -> Run:
    """Runs `kqgen ARGUMENTS`, which must succeed."""
    run = kqgen(*arguments)
    assert run.status == 0, run.err
    return run


def require_arm() -> None:
    """Skips (fails in CI) without any compiler for Arm code."""
    try:
        find_toolchain()
    except ToolchainError:
        require_tool("gcc", "zig")


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file whose top level is an object."""
    content = json.loads(path.read_text(encoding="utf-8"))
    assert isinstance(content, dict)
    return content


def snapshot(folder: Path) -> dict[str, bytes]:
    """Every file in `folder`, hidden ones and those of subfolders too, by relative path."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def entries(folder: Path) -> set[str]:
    """Names in `folder`, hidden ones too."""
    return {path.name for path in folder.iterdir()}
