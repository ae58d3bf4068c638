"""Runs an image under qemu-system-arm: the second, unrelated emulator, and the only one with a Cortex-M55.

Blocks are counted by a plugin of ours, on the first image only, as unicorn's hooks count them (kqgen/blockcount.py).
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from kqgen.blockcount import CountScope, count_scope, layer_profiles
from kqgen.blockcount_qemu import COUNTS_FILE, PLUGIN_FILE, parse_counts, plugin_api, plugin_library, plugin_option, whole_instructions
from kqgen.blocks import LayerProfile
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


def _plugin_argv(folder: Path, version: str, image: Image, scope: CountScope) -> list[str]:
    """Puts the plugin into `folder`; the arguments that load it."""
    library = folder / PLUGIN_FILE
    library.write_bytes(plugin_library(plugin_api(version)))
    return ["-plugin", plugin_option(library, image.elf.symbol(image.api.run_function).address, scope)]


def _profile(counts: Path, image: Image, scope: CountScope) -> tuple[LayerProfile, ...]:
    """What the plugin wrote, layer by layer."""
    raw = parse_counts(counts.read_text("ascii") if counts.exists() else "")
    return layer_profiles(whole_instructions(raw, image.elf), scope, image)


def _execute(argv: Sequence[str], folder: Path, title: str, timeout_s: float) -> None:
    """Runs QEMU in `folder`, where the image leaves its files."""
    try:
        done = subprocess.run(
            list(argv), cwd=folder, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", timeout=timeout_s,
            check=False,
        )  # fmt: skip
    except OSError as error:
        raise ToolchainError(f"{title} cannot start", found=str(error)) from error
    except subprocess.TimeoutExpired as error:
        raise ToolchainError(f"{title} did not end within {timeout_s:.0f} s", found="no answer", do="fewer images") from error
    if done.returncode in _HARNESS_STATUS and (folder / STATS_FILE).exists():
        return
    said = (done.stdout + done.stderr).strip() or "it said nothing"
    # The image speaks on standard output: on the other one it is QEMU.
    if "-plugin" in argv and "plugin" in done.stderr:
        raise ToolchainError(
            f"{title} refuses the plugin that counts instructions", found=said, wanted="QEMU 6.0 to 11, built with plugins (TCG)",
            do="install the qemu-system-arm of Debian or Ubuntu, which has plugins",
        )  # fmt: skip
    raise ToolchainError(f"{title} ended with status {done.returncode}", found=said)


def run_qemu(
    image: Image, inputs: Sequence[bytes], *, profile: bool = False, flash_reads: bool = False, timeout_s: float = TIMEOUT_S
) -> EmulatedRun:
    """Runs every image of `inputs` (the bytes of all input tensors, in order) on the board's QEMU machine.

    Args: profile: count blocks and instructions per layer on the first image. flash_reads: count data reads from flash too.
    Raises: ToolchainError when QEMU is missing, does not end in `timeout_s` seconds, or the image faults or returns an error (its
        output is kept), or when a profile finds no C compiler for this computer or a QEMU without plugins; InputError for a board
        that QEMU has no machine for, inputs of the wrong length, or a profile of a tap build.
    """
    board = image.board
    if board.qemu_machine is None:
        raise InputError(
            f"QEMU has no machine for {board.name}",
            found="no qemu_machine in the board file",
            wanted="a board of QEMU's",
            do="run it under unicorn" if board.core.unicorn_model is not None else "compile for mps3-an547, QEMU's board with that core",
        )
    if profile and image.tap:
        raise InputError("a tap build cannot be profiled", found="profile of a tap build", wanted="an image without taps")
    data = encode_inputs(image.api, inputs)
    qemu = find_qemu()
    version = _version(qemu)
    title = f"QEMU {version}"
    argv = [
        qemu, "-M", board.qemu_machine, "-display", "none", "-monitor", "none", "-serial", "null", "-nic", "none",
        "-chardev", "stdio,id=sh", "-semihosting-config", "enable=on,target=native,chardev=sh", "-kernel", str(image.path.resolve()),
    ]  # fmt: skip
    scope = count_scope(image, flash_reads=flash_reads)
    counting = profile and len(inputs) > 0
    with tempfile.TemporaryDirectory(prefix="kqgen-qemu-") as name:
        folder = Path(name)
        (folder / INPUTS_FILE).write_bytes(data)
        if counting:
            argv += _plugin_argv(folder, version, image, scope)
        _execute(argv, folder, f"{title}: the image on {board.qemu_machine}", timeout_s)
        outputs, stats = (folder / OUTPUTS_FILE).read_bytes(), (folder / STATS_FILE).read_bytes()
        taps = (folder / TAPS_FILE).read_bytes() if image.tap else None
        layers = _profile(folder / COUNTS_FILE, image, scope) if counting else None
    return decode_run(image.api, len(inputs), outputs, taps, stats, title, layers)
