"""The emulator harness: its C, its linker script, and the files through which it speaks with either emulator.

Formats (little-endian): inputs.bin and outputs.bin hold the tensors' bytes image after image; taps.bin one record a step,
or a piece of one (uint32 step, uint32 size in bytes, the bytes); stats.bin five uint32 (see templates/harness.c.j2).
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass

from kqgen.blocks import LayerProfile
from kqgen.board import Board
from kqgen.errors import InputError, ToolchainError
from kqgen.render import render

INPUTS_FILE, OUTPUTS_FILE, TAPS_FILE, STATS_FILE = "inputs.bin", "outputs.bin", "taps.bin", "stats.bin"

WATCHED_STACK_BYTES = 16 << 10
"""Stack painted and searched for the high-water mark, at most: a network needs a tenth of it."""

LEAST_STACK_BYTES = 512
"""Below this an image is not linked: the harness itself takes about 200 bytes."""


@dataclass(frozen=True, slots=True)
class IoBuffer:
    """One input or output of a model: name, and size in bytes (int8 elements)."""

    name: str
    size_bytes: int


@dataclass(frozen=True, slots=True)
class ModelApi:
    """How the generated C is called: <name>_run(arena, inputs in order, outputs in order).

    With one input (output) its size macro is <NAME>_INPUT_BYTES, with several <NAME>_INPUT_<INPUT>_BYTES. `defines` are the macros that
    model and runtime must be compiled with.
    """

    name: str
    inputs: tuple[IoBuffer, ...]
    outputs: tuple[IoBuffer, ...]
    defines: tuple[str, ...] = ()

    @property
    def run_function(self) -> str:
        """Name of the function that runs the network."""
        return f"{self.name}_run"

    @property
    def tap_function(self) -> str:
        """Name of the function that a tap build calls after each step (SPEC 7.3)."""
        return f"{self.name}_tap"

    @property
    def input_bytes(self) -> int:
        """Bytes of all inputs of one image."""
        return sum(buffer.size_bytes for buffer in self.inputs)

    @property
    def output_bytes(self) -> int:
        """Bytes of all outputs of one image."""
        return sum(buffer.size_bytes for buffer in self.outputs)


@dataclass(frozen=True, slots=True)
class BufferView:
    """A buffer as the template prints it; `offset_macro` says where an input lies in the arena."""

    variable: str
    macro: str
    offset_macro: str
    size_bytes: int


@dataclass(frozen=True, slots=True)
class HarnessView:
    """What templates/harness.c.j2 prints."""

    model: str
    header: str
    run_function: str
    tap_function: str
    arena_bytes_macro: str
    arena_align_macro: str
    inputs: tuple[BufferView, ...]
    outputs: tuple[BufferView, ...]
    buffers: tuple[BufferView, ...]


@dataclass(frozen=True, slots=True)
class RegionView:
    """A memory as the template prints it."""

    name: str
    origin: str
    size_bytes: int


@dataclass(frozen=True, slots=True)
class LinkView:
    """What templates/link.ld.j2 prints."""

    title: str
    regions: tuple[RegionView, ...]
    watched_stack_bytes: int
    least_stack_bytes: int


@dataclass(frozen=True, slots=True)
class Tap:
    """The output of one step, as a tap build reports it."""

    step: int
    data: bytes


@dataclass(frozen=True, slots=True)
class EmulatedRun:
    """What an emulator saw.

    Attributes:
        outputs: per image, the output tensors' bytes one after the other.
        taps: per image and step, in order; empty unless the image is a tap build.
        stack_bytes: most stack any call of the network wrote to, its callees included; None in a tap build, whose taps use stack.
        profile: per layer, of the first image; None when not asked for.
        emulator: name and version of the emulator.
    """

    outputs: tuple[bytes, ...]
    taps: tuple[tuple[Tap, ...], ...]
    stack_bytes: int | None
    profile: tuple[LayerProfile, ...] | None
    emulator: str

    @property
    def instructions(self) -> int | None:
        """Exact instruction count of the network on the first image, None without a profile."""
        return None if self.profile is None else sum(layer.instructions for layer in self.profile)


def _buffers(model: str, direction: str, buffers: tuple[IoBuffer, ...]) -> tuple[BufferView, ...]:
    single = len(buffers) == 1
    prefix = f"{model.upper()}_{direction.upper()}"
    names = [prefix if single else f"{prefix}_{buffer.name.upper()}" for buffer in buffers]
    return tuple(
        BufferView(f"{direction}_{position}", f"{name}_BYTES", f"{name}_OFFSET", buffer.size_bytes)
        for position, (name, buffer) in enumerate(zip(names, buffers, strict=True))
    )


def harness_source(api: ModelApi) -> str:
    """The harness's C for one model."""
    inputs, outputs = _buffers(api.name, "input", api.inputs), _buffers(api.name, "output", api.outputs)
    view = HarnessView(
        model=api.name,
        header=f"{api.name}.h",
        run_function=api.run_function,
        tap_function=api.tap_function,
        arena_bytes_macro=f"{api.name.upper()}_ARENA_BYTES",
        arena_align_macro=f"{api.name.upper()}_ARENA_ALIGN",
        inputs=inputs,
        outputs=outputs,
        buffers=inputs + outputs,
    )
    return render("harness.c.j2", view)


def linker_script(board: Board) -> str:
    """The linker script of a harness image: the board's regions, all of them, the user's reserve included."""
    regions = tuple(RegionView(region.name, f"0x{region.origin:08x}", region.size_bytes) for region in board.regions)
    return render("link.ld.j2", LinkView(board.title, regions, WATCHED_STACK_BYTES, LEAST_STACK_BYTES))


def encode_inputs(api: ModelApi, inputs: Sequence[bytes]) -> bytes:
    """The bytes of inputs.bin.

    Raises: InputError when an image is not as long as all input tensors together.
    """
    for position, image in enumerate(inputs):
        if len(image) != api.input_bytes:
            raise InputError(
                f"image {position} does not fit {api.name}",
                found=f"{len(image)} bytes",
                wanted=f"{api.input_bytes} bytes",
                do="quantise it to int8, channels last",
            )
    return b"".join(inputs)


def decode_run(
    api: ModelApi, images: int, outputs: bytes, taps: bytes | None, stats: bytes, emulator: str,
    profile: tuple[LayerProfile, ...] | None = None,
) -> EmulatedRun:  # fmt: skip
    """Reads back what the harness wrote.

    Args: images: how many were sent. taps: None unless a tap build. stats: the bytes of stats.bin.
    Raises: ToolchainError when the network returned an error, the stack ran out, or the files are not of the length they must have.
    """
    if len(stats) != 20:
        raise ToolchainError(f"{emulator}: the harness left no figures", found=f"{len(stats)} bytes in {STATS_FILE}", wanted="20")
    status, begun, succeeded, stack_bytes, stack_reached = struct.unpack("<5I", stats)
    if status != 0:
        signed = status - (1 << 32) if status >> 31 else status
        raise ToolchainError(
            f"{emulator}: {api.run_function} returned status {signed} on image {begun - 1}", found=str(signed), wanted="0 (KQ_OK)"
        )
    if succeeded != images or len(outputs) != images * api.output_bytes:
        raise ToolchainError(
            f"{emulator}: not every image was run",
            found=f"{succeeded} runs, {len(outputs)} bytes of output",
            wanted=f"{images} runs, {images * api.output_bytes} bytes",
        )
    if stack_reached:
        raise ToolchainError(
            f"{emulator}: the stack of {api.run_function} reached the end of the room it has",
            found=f"{stack_bytes} bytes or more",
            wanted=f"less, {WATCHED_STACK_BYTES} at most",
            do="a board with more RAM; outputs of this run cannot be trusted",
        )
    size = api.output_bytes
    return EmulatedRun(
        outputs=tuple(outputs[place : place + size] for place in range(0, images * size, size)),
        taps=() if taps is None else _decode_taps(taps, images, emulator),
        stack_bytes=stack_bytes if taps is None else None,
        profile=profile,
        emulator=emulator,
    )


def _decode_taps(data: bytes, images: int, emulator: str) -> tuple[tuple[Tap, ...], ...]:
    """Splits taps.bin into images, each with as many records, and joins the pieces of each step."""
    taps: list[Tap] = []
    at = 0
    while at + 8 <= len(data):
        step, size = struct.unpack_from("<2I", data, at)
        taps.append(Tap(step, data[at + 8 : at + 8 + size]))
        at += 8 + size
    if at != len(data) or (images and len(taps) % images) or (not images and taps):
        raise ToolchainError(f"{emulator}: {TAPS_FILE} is cut short", found=f"{len(taps)} taps, {len(data)} bytes", wanted="whole images")
    pieces = len(taps) // images if images else 0
    return tuple(_joined(taps[image * pieces : (image + 1) * pieces]) for image in range(images))


def _joined(taps: Sequence[Tap]) -> tuple[Tap, ...]:
    """One tap a step, in order of steps, of pieces that came in order of rows."""
    pieces: dict[int, list[bytes]] = {}
    for tap in taps:
        pieces.setdefault(tap.step, []).append(tap.data)
    return tuple(Tap(step, b"".join(parts)) for step, parts in sorted(pieces.items()))
