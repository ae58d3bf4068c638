"""Builds the image that proves a network on a board: model, runtime, harness and start-up code, linked for its memories."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from kqgen.assets import runtime_dir
from kqgen.board import Board
from kqgen.elf import Elf, Frame, check_cpu_arch, read_elf
from kqgen.emit import RUNTIME_FOLDER
from kqgen.errors import InputError, InternalError, ToolchainError
from kqgen.harness import ModelApi, harness_source, linker_script
from kqgen.toolchain import WARNING_FLAGS, Toolchain, compile_object, link_image

ALLOWED_UNDEFINED: frozenset[str] = frozenset({"memcpy", "memset", "__aeabi_memcpy", "__aeabi_memset"})
"""What model and runtime may leave to the firmware; the Arm run-time ABI has names of its own for the two."""

_PORT_FLAGS = ("-fno-builtin",)
_GCC_PORT_FLAGS = ("-fno-tree-loop-distribute-patterns",)


@dataclass(frozen=True, slots=True)
class Image:
    """A linked image and what it takes.

    Attributes:
        elf: the file read back.
        code_bytes: .kq_code, machine code and literal pools of model and runtime (unreferenced functions left out).
        tables_bytes: .kq_tables, their constant data.
        frames: stack frame of every function of model and runtime that the compiler states, by name; equal names of
            several files keep the larger frame.
    """

    elf: Elf
    api: ModelApi
    board: Board
    toolchain: Toolchain
    tap: bool
    code_bytes: int
    tables_bytes: int
    frames: tuple[Frame, ...]

    @property
    def path(self) -> Path:
        """The ELF file."""
        return self.elf.path

    def frame_bytes(self, function: str) -> int | None:
        """The frame of a function in bytes, None when the compiler states none."""
        return next((frame.size_bytes for frame in self.frames if frame.function == function), None)


@dataclass(frozen=True, slots=True)
class _Unit:
    """One source to compile into `object_name`, with flags of its own."""

    source: Path
    object_name: str
    flags: tuple[str, ...]


def build_image(
    sources: Path, api: ModelApi, board: Board, toolchain: Toolchain, out_dir: Path, *, tap: bool = False, optimise: str = "-O2"
) -> Image:
    """Compiles the network in `sources` and links it with the harness for `board`.

    The network is every .c of `sources`, but not the self-test, which brings a tap of its own, and every .c of its folder runtime/.
    Objects, linker script and `<model>.elf` are written into `out_dir`, which is made. The image is the same for the same sources,
    wherever the folders lie.

    Raises: ToolchainError when a compiler fails, when objects need a function that no firmware has to have, when a frame has
        no fixed size or the code is for another core; CapacityError when a memory overflows; InputError without sources.
    """
    if board.is_host:
        raise InternalError("no image can be linked for the host board")
    folders = tuple(folder.resolve() for folder in (sources, sources / RUNTIME_FOLDER) if folder.is_dir())
    selftest = f"{api.name}_selftest.c"
    files = [path for folder in folders for path in sorted(folder.glob("*.c")) if path.name != selftest]
    if not files:
        raise InputError(f"no C sources in {sources}", found="no *.c", wanted=f"{api.name}.c, its tables and the runtime")
    out_dir.mkdir(parents=True, exist_ok=True)
    (out_dir / "harness.c").write_text(harness_source(api), encoding="utf-8")
    (out_dir / "link.ld").write_text(linker_script(board), encoding="utf-8")
    port = runtime_dir() / "port"
    tap_flags = (*(f"-D{each}" for each in api.defines), *(("-DKQGEN_TAP",) if tap else ()))
    port_flags = (*_PORT_FLAGS, *(_GCC_PORT_FLAGS if toolchain.kind == "gcc" else ()), *tap_flags)
    model_units = [_Unit(path, _object_name(path), tap_flags) for path in files]
    port_units = [_Unit(path, f"port-{path.stem}.o", port_flags) for path in sorted(port.glob("*.c"))]
    port_units.append(_Unit(out_dir / "harness.c", "port-harness.o", tap_flags))

    def compile_unit(unit: _Unit) -> None:
        compile_object(
            toolchain, board.core, unit.source, (out_dir / unit.object_name).resolve(), include=(*folders, port.resolve()),
            flags=(*WARNING_FLAGS, *unit.flags), optimise=optimise,
        )  # fmt: skip

    with ThreadPoolExecutor(max_workers=os.cpu_count() or 1) as pool:
        list(pool.map(compile_unit, [*model_units, *port_units]))
    model_objects = [read_elf(out_dir / unit.object_name) for unit in model_units]
    check_undefined(model_objects, {api.tap_function} if tap else set())
    names = [unit.object_name for unit in (*model_units, *port_units)]
    link_image(toolchain, board.core, out_dir, names, "link.ld", f"{api.name}.elf")
    elf = read_elf(out_dir / f"{api.name}.elf")
    for part in (*model_objects, elf):
        check_cpu_arch(part, board.core)
    return Image(
        elf=elf,
        api=api,
        board=board,
        toolchain=toolchain,
        tap=tap,
        code_bytes=elf.section_bytes(".kq_code"),
        tables_bytes=elf.section_bytes(".kq_tables"),
        frames=_frames(model_objects, toolchain),
    )


def _object_name(source: Path) -> str:
    """The linker script knows network and runtime by the start "model-"; a network may be called like a file of the runtime."""
    return f"model-{RUNTIME_FOLDER}-{source.stem}.o" if source.parent.name == RUNTIME_FOLDER else f"model-{source.stem}.o"


def check_undefined(objects: Sequence[Elf], also: Set[str] = frozenset()) -> None:
    """Checks that model and runtime need nothing from outside but memcpy and memset (and `also`), as the headers promise.

    Raises: ToolchainError naming the objects and functions.
    """
    defined = {symbol.name for part in objects for symbol in part.symbols if symbol.is_global}
    allowed = defined | ALLOWED_UNDEFINED | also
    foreign = [f"{part.path.name} needs {', '.join(names)}" for part in objects if (names := sorted(set(part.undefined) - allowed))]
    if foreign:
        raise ToolchainError(
            "the generated C needs functions that no firmware has to have",
            found="; ".join(foreign),
            wanted="no undefined symbol but memcpy and memset",
            do="__aeabi_* means a division, a 64-bit multiply or shift, or a float that the core has no instruction for",
        )


_SU_LINE = re.compile(r"^.*:\d+:\d+:(?P<function>[^\t]+)\t(?P<size>\d+)\t(?P<kinds>[a-z,]+)$")


def _su_frames(path: Path) -> list[Frame]:
    """Frames out of GCC's -fstack-usage file: "file:line:column:function", bytes, static or dynamic, tab-separated."""
    frames: list[Frame] = []
    for line in path.read_text(encoding="utf-8").splitlines():
        match = _SU_LINE.match(line)
        if match is None:
            raise ToolchainError(f"cannot read {path.name}", found=line, wanted="file:line:column:function, size, kind")
        if match["kinds"] == "dynamic":
            raise ToolchainError(f"the stack frame of {match['function']} has no fixed size", found=line, wanted="arrays of fixed length")
        frames.append(Frame(match["function"], int(match["size"])))
    return frames


def _frames(objects: Sequence[Elf], toolchain: Toolchain) -> tuple[Frame, ...]:
    largest: dict[str, int] = {}
    for part in objects:
        for frame in _su_frames(part.path.with_suffix(".su")) if toolchain.kind == "gcc" else part.frames:
            largest[frame.function] = max(frame.size_bytes, largest.get(frame.function, 0))
    return tuple(Frame(function, size) for function, size in sorted(largest.items()))
