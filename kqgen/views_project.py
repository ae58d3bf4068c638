"""Views of what surrounds the C: the build files and the read-me of the output folder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from kqgen.board import Board, Core

_CMAKE_RESERVED = frozenset(("all", "clean", "edit_cache", "help", "install", "kq_runtime", "package", "rebuild_cache", "test"))


@dataclass(frozen=True, slots=True)
class ToolchainView:
    """What the CMake toolchain file says.

    Attributes:
        file: its name.
        core: the core as a person writes it.
        processor: GCC's name of it.
        flags: compiler flags of core and ABI.
    """

    file: str
    core: str
    processor: str
    flags: str


@dataclass(frozen=True, slots=True)
class ProjectView:
    """What build files and read-me say beside the model's own view.

    Attributes:
        target: CMake's name of the library.
        runtime_sources: paths of the runtime's .c files.
        board: the board's name.
        board_title: the board as a person writes it.
        toolchain: for a board that is not the host; empty or one.
    """

    target: str
    runtime_sources: tuple[str, ...]
    board: str
    board_title: str
    toolchain: tuple[ToolchainView, ...]


def project_view(model: str, board: Board, runtime_files: Sequence[str]) -> ProjectView:
    """The project around `model`; `runtime_files` are the runtime's paths inside the output folder."""
    return ProjectView(
        target=f"{model}_net" if model.lower() in _CMAKE_RESERVED else model,
        runtime_sources=tuple(path for path in runtime_files if path.endswith(".c")),
        board=board.name,
        board_title=board.title,
        toolchain=() if board.is_host else (_toolchain_view(board.core),),
    )


def _toolchain_view(core: Core) -> ToolchainView:
    # ARMv6-M has no table branch, and the library routine that a jump table would call is not linked.
    tables = [] if core.has_long_multiply else ["-fno-jump-tables"]
    flags = " ".join([f"-mcpu={core.gcc_cpu}", "-mthumb", f"-mfloat-abi={core.float_abi}", *tables])
    return ToolchainView(f"toolchain-{core.name}.cmake", core.title, core.gcc_cpu, flags)
