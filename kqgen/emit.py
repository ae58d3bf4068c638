"""Emits the output folder as text: every source, header and build file of a planned network. Touches no disk but to read assets."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from kqgen.assets import runtime_dir
from kqgen.board import Board
from kqgen.errors import InternalError
from kqgen.plan import Plan
from kqgen.render import render
from kqgen.views import Meta, ModelView, model_view
from kqgen.views_project import RULE_FUNCTION, defines
from kqgen.views_selftest import SELFTEST_FUNCTION, Golden, GoldenVector
from kqgen.views_steps import step_functions

__all__ = ["Golden", "GoldenVector", "Meta", "SourceTree", "emit", "runtime_files"]

RUNTIME_FOLDER = "runtime"


@dataclass(frozen=True, slots=True, eq=False)
class SourceTree:
    """The text files of an output folder.

    Attributes:
        model: the model's C name, prefix of its files.
        files: texts by relative path with forward slashes, in order of path; read-only.
    """

    model: str
    files: Mapping[str, str]


def runtime_files(functions: Collection[str]) -> tuple[Path, ...]:
    """The runtime's .c files that define one of `functions`, and all headers these include, in order of name.

    Raises: InternalError for a function that the runtime does not have.
    """
    texts = {path.name: path.read_text(encoding="utf-8") for path in runtime_dir().glob("kq*") if path.suffix in (".c", ".h")}
    defined = {name: set(re.findall(r"^KQGEN_CODE [\w ]+?\*?(kq_\w+)\(", text, re.MULTILINE)) for name, text in texts.items()}
    missing = sorted(set(functions).difference(*defined.values()))
    if missing:
        raise InternalError(f"the runtime has no function {missing[0]}")
    needed = [name for name in texts if name.endswith(".c") and defined[name] & set(functions)]
    for name in needed:
        needed.extend(header for header in re.findall(r'#include "(\w+\.h)"', texts[name]) if header not in needed)
    return tuple(sorted(runtime_dir() / name for name in needed))


def emit(plan: Plan, board: Board, golden: Golden, meta: Meta) -> SourceTree:
    """The output folder of a planned network: the same texts on every machine for the same arguments.

    Args:
        plan: the network.
        board: whose core gets a CMake toolchain file; C, headers and tables do not depend on it.
        golden: vectors of the self-test, at least one.
        meta: what the banners say.

    Raises:
        InputError: the network's name cannot be used in C.
        InternalError: a value does not fit its C field, or the arguments do not belong together.
    """
    called = {*step_functions(plan), SELFTEST_FUNCTION, *({RULE_FUNCTION} if defines(plan.graph) else ())}
    runtime = {f"{RUNTIME_FOLDER}/{path.name}": path.read_text(encoding="utf-8") for path in runtime_files(called)}
    view = model_view(plan, board, golden, meta, tuple(runtime))
    files = {path: render(template, view) for path, template in _templates(view)}
    return SourceTree(view.name, MappingProxyType(dict(sorted((files | runtime).items()))))


def _templates(view: ModelView) -> tuple[tuple[str, str], ...]:
    """Output path and template of each rendered file."""
    name = view.name
    return (
        (f"{name}.h", "model.h.j2"),
        (f"{name}.c", "model.c.j2"),
        (f"{name}_tables.h", "tables.h.j2"),
        (f"{name}_tables.c", "tables.c.j2"),
        (f"{name}_selftest.c", "selftest.c.j2"),
        ("CMakeLists.txt", "CMakeLists.txt.j2"),
        ("README.md", "README.md.j2"),
        ("LICENSE", "LICENSE.j2"),
        *((toolchain.file, "toolchain.cmake.j2") for toolchain in view.project.toolchain),
    )
