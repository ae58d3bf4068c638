"""The command as a process of its own, as a shell starts it."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cli.running import BOARD, entries, kqgen
from kqgen.board import board_names

COMMANDS = ("compile", "verify", "bench", "finetune", "fidelity", "picture", "boards", "ops")


def process(*arguments: str | Path, python: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, *python, "-m", "kqgen", *map(str, arguments)]
    return subprocess.run(argv, capture_output=True, text=True, check=False, env={**os.environ, "COLUMNS": "100"})


def test_help_does_not_wait_for_torch() -> None:
    done = process("--help", python=("-X", "importtime"))
    assert done.returncode == 0
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "rich.console" in imported
    assert "torch" not in imported
    assert tuple(re.findall(r"^  (\w+)  ", done.stdout.split("Commands:\n")[1], re.MULTILINE)) == COMMANDS


def test_an_error_is_one_message_and_standard_output_stays_empty(tmp_path: Path) -> None:
    done = process("compile", "none.pt2", "--board", BOARD, "--calibration", "none.npz", "--out", tmp_path / "fw")
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("kqgen: no such file: none.pt2\n")
    assert done.stderr.endswith("  nothing was written\n")
    assert entries(tmp_path) == set()


def test_ctrl_c_leaves_nothing(inputs: Path, tmp_path: Path) -> None:
    """The interrupt comes while the user's factory runs."""
    (tmp_path / "slow.py").write_text("import time\n\ndef build():\n    print('begun', flush=True)\n    time.sleep(60)\n", encoding="utf-8")
    out = tmp_path / "work" / "fw"
    out.parent.mkdir()
    argv = [sys.executable, "-m", "kqgen", "compile", "slow:build", "--board", BOARD, "--calibration", str(inputs / "images.npz")]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    running = subprocess.Popen([*argv, "--out", str(out)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
    assert running.stdout is not None
    assert running.stdout.readline() == "begun\n"
    time.sleep(0.2)
    running.send_signal(signal.SIGINT)
    _, err = running.communicate(timeout=60)
    assert running.returncode == 130
    assert err.strip().splitlines() == ["kqgen: interrupted"]
    assert entries(out.parent) == set()


def test_boards_and_operators_are_listed() -> None:
    boards, ops = kqgen("boards"), kqgen("ops")
    assert (boards.status, ops.status, boards.err, ops.err) == (0, 0, "", "")
    assert [line.split()[0] for line in boards.out.splitlines() if line[2:3].strip()][1:] == list(board_names())
    assert max(len(line) for line in (*boards.out.splitlines(), *ops.out.splitlines())) <= 118
    assert "nn.Conv2d" in ops.out


@pytest.mark.parametrize("command", ["compile", "verify", "bench"])
def test_help_of_a_command_tells_every_option(command: str) -> None:
    run = kqgen(command, "--help")
    assert run.status == 0
    assert {"compile": "--codewords K", "verify": "--targets LIST", "bench": "--core"}[command] in run.out
    assert "--json -" in run.out
    assert "--toolchain [gcc|zig]" in run.out

