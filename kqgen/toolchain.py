"""Compilers and linkers: finding them, the flags for each core, and running them with every return code checked.

Arm code is built by arm-none-eabi-gcc, or without it by `zig cc` of the PyPI wheel ziglang, whose clang and lld need
nothing installed on the system. No output depends on where the sources lie: tools run inside the source folder on
relative names, and path prefixes are mapped away.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from kqgen.board import Core
from kqgen.errors import CapacityError, InputError, ToolchainError

ToolchainKind = Literal["gcc", "zig", "cc"]

WARNING_FLAGS: tuple[str, ...] = ("-Wall", "-Wextra", "-Wconversion", "-Wshadow", "-Werror")
"""What generated C and runtime must pass everywhere."""

TIMEOUT_S = 600.0
"""Longest run of one tool; the largest translation unit takes seconds."""


@dataclass(frozen=True, slots=True)
class Toolchain:
    """A compiler that was found.

    Attributes:
        kind: `gcc` (arm-none-eabi-gcc), `zig` (zig cc), `cc` (the host's own compiler).
        title: name and version for reports, free of paths.
        compiler: start of its command line.
        linker: start of the command line that links Arm images.
    """

    kind: ToolchainKind
    title: str
    compiler: tuple[str, ...]
    linker: tuple[str, ...]


def _cache_dir() -> Path:
    """A folder for zig's cache: the user's cache folder, or a temporary one where that cannot be written."""
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    places = (base / "kqgen" / "zig", Path(tempfile.gettempdir()) / f"kqgen-zig-{os.getuid() if hasattr(os, 'getuid') else 0}")
    for place in places:
        try:
            place.mkdir(parents=True, exist_ok=True)
        except OSError:
            continue
        if os.access(place, os.W_OK):
            return place
    raise ToolchainError(
        "zig has nowhere to keep its cache",
        found="no write access to " + " or ".join(str(place) for place in places),
        do="set XDG_CACHE_HOME to a folder that can be written",
    )


def _environment(toolchain_kind: ToolchainKind) -> Mapping[str, str]:
    """Messages in English (the linker's are read), and zig's caches in our own folder."""
    environment = {**os.environ, "LC_ALL": "C"}
    if toolchain_kind == "zig":
        cache = str(_cache_dir())
        environment.update(ZIG_GLOBAL_CACHE_DIR=cache, ZIG_LOCAL_CACHE_DIR=cache)
    return environment


def run_tool(argv: Sequence[str], *, cwd: Path | None, what: str, kind: ToolchainKind) -> str:
    """Runs one tool to its end and gives back its standard output.

    Args: what: what is being done, as the message says it ("compiling net.c").
    Raises: ToolchainError when it cannot start, runs longer than TIMEOUT_S or returns non-zero; its stderr is kept.
    """
    try:
        done = subprocess.run(
            list(argv), cwd=cwd, env=dict(_environment(kind)), capture_output=True, text=True, errors="replace", timeout=TIMEOUT_S,
            check=False,
        )  # fmt: skip
    except OSError as error:
        raise ToolchainError(f"{what}: cannot start {argv[0]}", found=str(error), do="check the installation of the compiler") from error
    except subprocess.TimeoutExpired as error:
        raise ToolchainError(f"{what}: {argv[0]} did not end within {TIMEOUT_S:.0f} s", found="no answer") from error
    if done.returncode != 0:
        output = (done.stderr.strip() or done.stdout.strip() or "it said nothing")[-8000:]
        raise ToolchainError(f"{what} failed", found=f"{Path(argv[0]).name} returned {done.returncode}:\n{output}")
    return done.stdout


def _find_gcc() -> Toolchain | None:
    path = shutil.which("arm-none-eabi-gcc")
    if path is None:
        return None
    version = run_tool((path, "-dumpfullversion"), cwd=None, what="asking arm-none-eabi-gcc for its version", kind="gcc").strip()
    return Toolchain("gcc", f"arm-none-eabi-gcc {version}", (path,), (path,))


def _find_zig() -> Toolchain | None:
    if importlib.util.find_spec("ziglang") is None:
        return None
    zig = (sys.executable, "-m", "ziglang")
    version = run_tool((*zig, "version"), cwd=None, what="asking zig for its version", kind="zig").strip()
    return Toolchain("zig", f"zig cc {version}", (*zig, "cc"), (*zig, "ld.lld"))


def find_toolchain(kind: Literal["gcc", "zig"] | None = None) -> Toolchain:
    """A compiler for Arm code: the one asked for, else what KQGEN_TOOLCHAIN (gcc or zig) says, else GCC before zig.

    Raises: ToolchainError when it is not installed, with what to install; InputError for another KQGEN_TOOLCHAIN.
    """
    wish = kind or os.environ.get("KQGEN_TOOLCHAIN") or None
    if wish not in (None, "gcc", "zig"):
        raise InputError(f"KQGEN_TOOLCHAIN is {wish!r}", found=wish, wanted="gcc or zig", do="unset it, or set one of the two")
    found = None
    if wish != "zig":
        found = _find_gcc()
    if found is None and wish != "gcc":
        found = _find_zig()
    if found is None:
        raise ToolchainError(
            "no compiler for Arm Cortex-M" if wish is None else f"no {wish} compiler for Arm Cortex-M",
            found={None: "neither arm-none-eabi-gcc nor ziglang", "gcc": "no arm-none-eabi-gcc on PATH", "zig": "no module ziglang"}[wish],
            wanted="arm-none-eabi-gcc on PATH or the Python package ziglang",
            do="`pip install ziglang`, or on Debian and Ubuntu `apt install gcc-arm-none-eabi`; --no-build writes sources only",
        )
    return found


def find_host_compiler() -> Toolchain:
    """A compiler for this computer: cc, gcc or clang on PATH, else zig cc.

    Raises: ToolchainError when there is none, with what to install.
    """
    for name in ("cc", "gcc", "clang"):
        path = shutil.which(name)
        if path is not None:
            first = run_tool((path, "--version"), cwd=None, what=f"asking {name} for its version", kind="cc").split("\n")[0]
            return Toolchain("cc", first.strip(), (path,), (path,))
    zig = _find_zig()
    if zig is not None:
        return zig
    raise ToolchainError(
        "no C compiler for this computer",
        found="no cc, gcc, clang or ziglang",
        wanted="any C11 compiler",
        do="`pip install ziglang`, or on Debian and Ubuntu `apt install gcc`",
    )


def core_flags(kind: ToolchainKind, core: Core) -> tuple[str, ...]:
    """Flags that choose the core and its ABI; the same for compiling and linking.

    The float ABI is the core's (see board.CORES). ARMv6-M has no table branch: switches there become compares, as the
    library routine a jump table needs is not linked.
    """
    if core.is_host:
        return ()
    flags = ("-mcpu=" + core.gcc_cpu, "-mthumb") if kind == "gcc" else ("-target", "thumb-freestanding-eabi", "-mcpu=" + core.zig_cpu)
    no_tables = ("-fno-jump-tables",) if not core.has_long_multiply else ()
    return (*flags, "-mfloat-abi=" + core.float_abi, *no_tables)


def compile_flags(kind: ToolchainKind, core: Core, optimise: str = "-O2") -> tuple[str, ...]:
    """Every flag but the warnings that model and runtime are compiled with for a board.

    zig turns a few things on that GCC does not: unwind tables, UBSan, debug data and frame pointers; they are turned off.
    """
    common = ("-std=c11", "-ffreestanding", optimise, "-ffunction-sections", "-fdata-sections", "-fno-common")
    if kind == "gcc":
        return (*core_flags(kind, core), *common, "-fstack-usage")
    own = ("-g0", "-fomit-frame-pointer", "-fno-unwind-tables", "-fno-asynchronous-unwind-tables", "-fno-sanitize=undefined")
    return (*core_flags(kind, core), *common, *own, "-fstack-size-section")


def compile_object(
    toolchain: Toolchain, core: Core, source: Path, output: Path, *, include: Sequence[Path] = (), flags: Sequence[str] = (),
    optimise: str = "-O2",
) -> None:  # fmt: skip
    """Compiles one source file for `core`; with GCC the frame sizes land beside `output` (suffix .su).

    Raises: ToolchainError with the compiler's messages.
    """
    folders = [argument for folder in include for argument in ("-I", str(folder))]
    prefix_map = [f"-ffile-prefix-map={folder}=." for folder in {source.parent, *include}]
    argv = [*toolchain.compiler, *compile_flags(toolchain.kind, core, optimise), *flags, *folders, *sorted(prefix_map)]
    run_tool(
        [*argv, "-c", source.name, "-o", str(output)], cwd=source.parent, what=f"compiling {source.name} for the {core.title}",
        kind=toolchain.kind,
    )  # fmt: skip


_NO_ROOM = re.compile(r"overflowed by|will not fit|no room for the stack")


def link_image(toolchain: Toolchain, core: Core, folder: Path, objects: Sequence[str], script: str, output: str) -> None:
    """Links objects (names inside `folder`) by the linker script of that name, without any library.

    Raises: CapacityError with the linker's message when a memory overflows; ToolchainError for any other failure.
    """
    options = ("--gc-sections", "--build-id=none", "-T", script)
    if toolchain.kind == "gcc":
        passed = [f"-Wl,{option}" for option in ("--gc-sections", "--build-id=none", "--no-warn-rwx-segments", f"-T,{script}")]
        argv = [*toolchain.linker, *core_flags("gcc", core), "-nostdlib", "-nostartfiles", "-static", *passed, *objects, "-o", output]
    else:
        argv = [*toolchain.linker, "-m", "armelf", "-static", *options, *objects, "-o", output]
    try:
        run_tool(argv, cwd=folder, what=f"linking {output} for the {core.title}", kind=toolchain.kind)
    except ToolchainError as error:
        if _NO_ROOM.search(error.found):
            raise CapacityError(
                f"{output} does not fit the memory of the board",
                found=error.found,
                do="a board with more memory, fewer bits per weight, or a smaller input",
            ) from error
        raise
