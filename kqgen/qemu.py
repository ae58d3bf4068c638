"""Runs an image under qemu-system-arm: the second, unrelated emulator, and the only one with a Cortex-M55."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from kqgen.errors import InputError, ToolchainError
from kqgen.harness import INPUTS_FILE, OUTPUTS_FILE, STATS_FILE, TAPS_FILE, EmulatedRun, decode_run, encode_inputs
from kqgen.image import Image

TIMEOUT_S = 600.0

_HARNESS_STATUS = {0, 3}
"""Statuses with which the harness leaves a stats.bin: all went well, or the network returned an error."""


def find_qemu() -> str:
    """Path of qemu-system-arm.

    Raises: ToolchainError with what to install when it is missing.
    """
    path = shutil.which("qemu-system-arm")
    if path is None:
        raise ToolchainError(
            "the emulator qemu-system-arm is not installed",
            found="not on PATH",
            wanted="qemu-system-arm",
            do="on Debian and Ubuntu `apt install qemu-system-arm`; boards with another core than the M55 run under unicorn too",
        )
    return path


def _version(qemu: str) -> str:
    done = subprocess.run([qemu, "--version"], capture_output=True, text=True, timeout=60, check=False)
    words = done.stdout.split()
    if done.returncode != 0 or len(words) < 4:
        raise ToolchainError("qemu-system-arm does not tell its version", found=(done.stderr or done.stdout).strip())
    return words[3]


def run_qemu(image: Image, inputs: Sequence[bytes], *, timeout_s: float = TIMEOUT_S) -> EmulatedRun:
    """Runs every image of `inputs` (the bytes of all input tensors, in order) on the board's QEMU machine.

    Instructions are not counted: `profile` of the result is None.

    Raises: ToolchainError when QEMU is missing, does not end in `timeout_s` seconds, or the image faults or returns an error (its
        output is kept); InputError for a board that QEMU has no machine for, or inputs of the wrong length.
    """
    machine = image.board.qemu_machine
    if machine is None:
        raise InputError(
            f"QEMU has no machine for {image.board.name}",
            found="no qemu_machine in the board file",
            wanted="a board of QEMU's",
            do="run it under unicorn",
        )
    data = encode_inputs(image.api, inputs)
    qemu = find_qemu()
    title = f"QEMU {_version(qemu)}"
    argv = [
        qemu, "-M", machine, "-display", "none", "-monitor", "none", "-serial", "null", "-nic", "none", "-chardev", "stdio,id=sh",
        "-semihosting-config", "enable=on,target=native,chardev=sh", "-kernel", str(image.path.resolve()),
    ]  # fmt: skip
    with tempfile.TemporaryDirectory(prefix="kqgen-qemu-") as name:
        folder = Path(name)
        (folder / INPUTS_FILE).write_bytes(data)
        try:
            done = subprocess.run(
                argv, cwd=folder, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", timeout=timeout_s, check=False
            )
        except OSError as error:
            raise ToolchainError(f"{title} cannot start", found=str(error)) from error
        except subprocess.TimeoutExpired as error:
            raise ToolchainError(
                f"{title}: {machine} did not end within {timeout_s:.0f} s", found=f"{len(inputs)} images", do="fewer images"
            ) from error
        if done.returncode not in _HARNESS_STATUS or not (folder / STATS_FILE).exists():
            said = (done.stdout + done.stderr).strip() or "it said nothing"
            raise ToolchainError(f"{title}: the image on {machine} ended with status {done.returncode}", found=said)
        outputs, stats = (folder / OUTPUTS_FILE).read_bytes(), (folder / STATS_FILE).read_bytes()
        taps = (folder / TAPS_FILE).read_bytes() if image.tap else None
    return decode_run(image.api, len(inputs), outputs, taps, stats, title)
