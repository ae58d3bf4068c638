"""The targets of a verification: the generated C on this computer and on emulated boards, each behind the same two calls."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from kqgen.board import Board
from kqgen.emulate import run_unicorn
from kqgen.errors import InputError, InternalError
from kqgen.harness import EmulatedRun, ModelApi
from kqgen.hostlib import HostLibrary, build_library
from kqgen.image import Image, build_image
from kqgen.intgraph import Int8, IntGraph
from kqgen.qemu import run_qemu
from kqgen.toolchain import find_toolchain
from kqgen.verify import Runner, Target, Tell, Tensors

TARGET_NAMES = ("host", "unicorn", "qemu")

HOST_LAYER_INPUTS = 64
EMULATED_LAYER_INPUTS = 4
"""Inputs of which every layer is read back; emulated boards hand over each layer's bytes one semihosting call at a time."""

ToolchainName = Literal["gcc", "zig"] | None


@dataclass(frozen=True, slots=True)
class HostRunner:
    """The C as a library of this computer."""

    library: HostLibrary
    tapped: HostLibrary

    def run(self, inputs: Tensors, tell: Tell) -> Tensors:
        """See `verify.Runner`."""
        return self.library.run(inputs, tell=tell)

    def run_layers(self, inputs: Tensors) -> Tensors:
        """See `verify.Runner`."""
        return self.tapped.run_tapped(inputs)[1]


@dataclass(frozen=True, slots=True)
class EmulatedRunner:
    """The C on an emulated board: one image as it ships, one with taps."""

    graph: IntGraph
    image: Image
    tapped: Image
    emulate: Callable[[Image, list[bytes], Tell], EmulatedRun]

    def run(self, inputs: Tensors, tell: Tell) -> Tensors:
        """See `verify.Runner`."""
        run = self.emulate(self.image, join_inputs(inputs), tell)
        tensors = [self.graph.tensor(name) for name in self.graph.outputs]
        outputs = np.frombuffer(b"".join(run.outputs), np.int8).reshape(len(run.outputs), -1)
        ends = np.cumsum([tensor.size_bytes for tensor in tensors])
        return tuple(
            outputs[:, end - tensor.size_bytes : end].reshape(-1, tensor.h, tensor.w, tensor.c)
            for tensor, end in zip(tensors, ends, strict=True)
        )

    def run_layers(self, inputs: Tensors) -> Tensors:
        """See `verify.Runner`."""
        run = self.emulate(self.tapped, join_inputs(inputs), lambda _: None)
        for taps in run.taps:
            if [tap.step for tap in taps] != list(range(len(self.graph.nodes))):
                raise InternalError(f"the test build reported {len(taps)} layers where the graph has {len(self.graph.nodes)}")
        return tuple(
            np.stack([_layer(taps[number].data, node.output.h, node.output.w, node.output.c) for taps in run.taps])
            for number, node in enumerate(self.graph.nodes)
        )


def _layer(data: bytes, h: int, w: int, c: int) -> Int8:
    return np.frombuffer(data, np.int8).reshape(h, w, c)


def join_inputs(inputs: Tensors) -> list[bytes]:
    """Per image the bytes of all input tensors, in order, as the harness reads them."""
    return [b"".join(array[number].tobytes() for array in inputs) for number in range(len(inputs[0]))]


@contextmanager
def make_targets(
    folder: Path, graph: IntGraph, api: ModelApi, board: Board, names: list[str] | None, toolchain: ToolchainName
) -> Iterator[tuple[Target, ...]]:
    """The targets asked for, by default the host and the board's emulator; what they build lies in a temporary folder.

    Raises:
        InputError: an unknown target, or one the board does not have.
    """
    default = ["host", *([board.emulator] if board.emulator != "none" else [])]
    chosen = names if names is not None else default
    for name in chosen:
        _check_target(name, board)
    with tempfile.TemporaryDirectory(prefix="kqgen-") as scratch:
        yield tuple(_target(name, folder, graph, api, board, toolchain, Path(scratch)) for name in chosen)


def _check_target(name: str, board: Board) -> None:
    has = [kind for kind, there in (("unicorn", board.core.unicorn_model), ("qemu", board.qemu_machine)) if there]
    if name not in TARGET_NAMES:
        raise InputError(
            f"unknown target {name!r}", found=name, wanted=f"some of {', '.join(TARGET_NAMES)}, separated by commas",
            do="for example --targets host,unicorn",
        )  # fmt: skip
    if name != "host" and name not in has:
        raise InputError(
            f"{board.name} ({board.core.title}) does not run under {name}",
            found=f"--targets {name}",
            wanted=" or ".join(["host", *has]),
            do="compile for another board to emulate it: `kqgen boards` lists them with their emulators",
        )


def _target(
    name: str, folder: Path, graph: IntGraph, api: ModelApi, board: Board, toolchain: ToolchainName, scratch: Path
) -> Target:
    def open_host() -> tuple[Runner, str]:
        plain = build_library(folder, graph, cache_dir=scratch)
        return HostRunner(plain, build_library(folder, graph, tap=True, cache_dir=scratch)), plain.compiler

    def open_emulated() -> tuple[Runner, str]:
        compiler = find_toolchain(toolchain)
        images = [
            build_image(folder, api, board, compiler, scratch / f"{name}-{kind}", tap=kind == "tap") for kind in ("plain", "tap")
        ]
        runner = EmulatedRunner(graph, images[0], images[1], _run_qemu if name == "qemu" else _run_unicorn)
        return runner, f"{board.name}, {compiler.title}"

    if name == "host":
        return Target(name, open_host, HOST_LAYER_INPUTS)
    return Target(name, open_emulated, EMULATED_LAYER_INPUTS)


def _run_unicorn(image: Image, inputs: list[bytes], tell: Tell) -> EmulatedRun:
    return run_unicorn(image, inputs, progress=lambda done, count: tell(done / count))


def _run_qemu(image: Image, inputs: list[bytes], tell: Tell) -> EmulatedRun:
    """QEMU tells nothing before its end."""
    del tell
    return run_qemu(image, inputs)
