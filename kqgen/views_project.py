"""Views of what surrounds the C: the build files and the read-me of the output folder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from kqgen.board import Board, Core
from kqgen.intgraph import IntGraph

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
        defines: macros that model and runtime must be compiled with.
        rule_mark: the constant that a runtime without them does not have; may be empty.
        toolchain: for a board that is not the host; empty or one.
    """

    target: str
    runtime_sources: tuple[str, ...]
    board: str
    board_title: str
    defines: tuple[str, ...]
    rule_mark: str
    toolchain: tuple[ToolchainView, ...]


RULE_FUNCTION = "kq_scale_tflite"
"""The runtime's function of rule `tflite`."""

RULE_MARK = "kq_built_with_KQ_WITH_TFLITE"
"""The runtime's constant that generated code of rule `tflite` reads: a runtime without the rule does not have it (SPEC 3.5)."""


def defines(graph: IntGraph) -> tuple[str, ...]:
    """The macros that model and runtime must be compiled with, `NAME=value`."""
    return ("KQ_WITH_TFLITE=1",) if graph.rounding == "tflite" else ()


def project_view(graph: IntGraph, board: Board, runtime_files: Sequence[str]) -> ProjectView:
    """The project around a network; `runtime_files` are the runtime's paths inside the output folder."""
    model = graph.name
    return ProjectView(
        target=f"{model}_net" if model.lower() in _CMAKE_RESERVED else model,
        runtime_sources=tuple(path for path in runtime_files if path.endswith(".c")),
        board=board.name,
        board_title=board.title,
        defines=defines(graph),
        rule_mark=RULE_MARK if graph.rounding == "tflite" else "",
        toolchain=() if board.is_host else (_toolchain_view(board.core),),
    )


def _toolchain_view(core: Core) -> ToolchainView:
    # ARMv6-M has no table branch, and the library routine that a jump table would call is not linked.
    tables = [] if core.has_long_multiply else ["-fno-jump-tables"]
    flags = " ".join([f"-mcpu={core.gcc_cpu}", "-mthumb", f"-mfloat-abi={core.float_abi}", *tables])
    return ToolchainView(f"toolchain-{core.name}.cmake", core.title, core.gcc_cpu, flags)
