"""House rules on the C runtime: what its text may not say, and what its objects may not need on any core."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal

import pytest
from conftest import ROOT, require_tool

from kqgen.board import CORES, Core
from kqgen.elf import read_elf
from kqgen.hostlib import STRICT_FLAGS
from kqgen.toolchain import compile_flags, find_host_compiler, find_toolchain, run_tool

RUNTIME = ROOT / "runtime_c"
SOURCES = sorted(RUNTIME.glob("*.c"))
FILES = sorted([*SOURCES, *RUNTIME.glob("*.h")])
ARM_CORES = [core for core in CORES if not core.is_host and core.name != "m0"]  # the M0 runs the M0+'s code

ALLOWED = {"memcpy", "memset"}
"""What compilers make of copying and filling loops; any firmware has them."""

FORBIDDEN = {
    "division": r"[/%]",
    "floating point": r"\b(float|double)\b|\b\d+\.\d|\b\d+e[+-]?\d",
    "64-bit arithmetic": r"\b(u?int64_t|long)\b",
    "plain char": r"(?<!signed )(?<!unsigned )\bchar\b",
    "library calls": r"\b(malloc|calloc|realloc|free|memcpy|memset|memmove|printf|assert)\s*\(",
    "jumps": r"\b(goto|setjmp|longjmp|switch)\b",
    "unclosed bodies": r"\b(if|for|while) \(.*\)$|^ +else$|\bdo$",
}


def code(path: Path) -> str:
    """The C without comments, strings and preprocessor lines."""
    text = re.sub(r"/\*.*?\*/", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)
    text = re.sub(r'"[^"\n]*"', '""', text)
    return "\n".join(line.rstrip() for line in text.split("\n") if not line.startswith("#"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_nothing_forbidden_is_said(path: Path) -> None:
    text = code(path)
    for what, pattern in FORBIDDEN.items():
        found = re.search(pattern, text, flags=re.MULTILINE)
        assert found is None, f"{path.name}: {what}: {found[0] if found else ''}"


def test_the_patterns_find_what_they_forbid() -> None:
    samples = ["a / b", "float x;", "uint64_t x;", "char *x;", "memcpy (a, b, 3);", "goto end;", "if (x)\n    y();"]
    for (what, pattern), sample in zip(FORBIDDEN.items(), samples, strict=True):
        assert re.search(pattern, sample, flags=re.MULTILINE), what


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_only_free_standing_headers_are_included(path: Path) -> None:
    included = re.findall(r"#include ([<\"].*[>\"])", path.read_text(encoding="utf-8"))
    free_standing = {"<stdint.h>", "<stddef.h>", "<stdbool.h>", "<arm_acle.h>", "<arm_mve.h>"}
    allowed = {*free_standing, *(f'"{header.name}"' for header in RUNTIME.glob("*.h"))}
    assert set(included) <= allowed


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_variables_outside_functions_never_change(path: Path) -> None:
    for line in code(path).split("\n"):
        if re.match(r"(KQGEN_TABLE )?(static )?[a-z]\w* .*(=|;)", line) and "(" not in line and not line.startswith(("typedef", "}")):
            assert "const" in line, f"{path.name}: {line}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_every_function_has_a_comment_above(path: Path) -> None:
    lines = path.read_text(encoding="utf-8").split("\n")
    for number, line in enumerate(lines):
        if re.match(r"(static |KQGEN_CODE )[^=;]*\($|(static |KQGEN_CODE )[^=;]*\)$", line) and "#define" not in line:
            assert lines[number - 1].rstrip().endswith("*/"), f"{path.name}:{number + 1} {line}"


@pytest.mark.parametrize("core", ARM_CORES, ids=lambda core: core.name)
@pytest.mark.parametrize("kind", ["gcc", "zig"])
def test_objects_need_nothing_from_outside(tmp_path: Path, core: Core, kind: Literal["gcc", "zig"]) -> None:
    """Clean under the strict warnings, and no helper of the compiler (division, 64-bit products, jump tables) on any core."""
    require_tool(kind)
    toolchain = find_toolchain(kind)
    argv = [*toolchain.compiler, *compile_flags(kind, core), *STRICT_FLAGS, "-c", *map(str, SOURCES)]
    run_tool(argv, cwd=tmp_path, what=f"compiling the runtime for the {core.title}", kind=kind)
    objects = [read_elf(path) for path in sorted(tmp_path.glob("*.o"))]
    assert len(objects) == (len(SOURCES) if kind == "gcc" else 1), "zig cc joins the objects of one command"
    defined = {symbol.name for part in objects for symbol in part.symbols if symbol.is_global}
    assert {name for part in objects for name in part.undefined} - defined <= ALLOWED
    assert all(name.startswith("kq_") for name in defined)
    assert all(part.section_bytes(".data") == part.section_bytes(".bss") == 0 for part in objects)


def test_the_rule_of_tflite_needs_nothing_from_outside(tmp_path: Path) -> None:
    """Its 64-bit products are no calls of the compiler's helpers on a core without a long multiplication."""
    require_tool("gcc")
    toolchain, core = find_toolchain("gcc"), next(core for core in ARM_CORES if core.name == "m0p")
    argv = [*toolchain.compiler, *compile_flags("gcc", core), *STRICT_FLAGS, "-DKQ_WITH_TFLITE=1", "-c", *map(str, SOURCES)]
    run_tool(argv, cwd=tmp_path, what="compiling the runtime with the rule", kind="gcc")
    objects = [read_elf(path) for path in sorted(tmp_path.glob("*.o"))]
    defined = {symbol.name for part in objects for symbol in part.symbols if symbol.is_global}
    assert {"kq_scale_tflite", "kq_built_with_KQ_WITH_TFLITE"} <= defined
    assert {name for part in objects for name in part.undefined} - defined <= ALLOWED
    assert all(part.section_bytes(".data") == part.section_bytes(".bss") == 0 for part in objects)


@pytest.mark.parametrize("core", [core for core in ARM_CORES if core.name in ("m0p", "m3", "m4")], ids=lambda core: core.name)
def test_r7_may_be_the_frame_pointer(tmp_path: Path, core: Core) -> None:
    """Assembly takes r7 without the compiler's knowledge: a build that keeps frame pointers there accepts it."""
    require_tool("gcc")
    toolchain = find_toolchain("gcc")
    argv = [*toolchain.compiler, *compile_flags("gcc", core), *STRICT_FLAGS, "-fno-omit-frame-pointer", "-c", *map(str, SOURCES)]
    run_tool(argv, cwd=tmp_path, what=f"compiling with frame pointers for the {core.title}", kind="gcc")


def test_sections_can_be_chosen(tmp_path: Path) -> None:
    """KQGEN_CODE moves functions and KQGEN_TABLE tables."""
    require_tool("gcc")
    toolchain = find_toolchain("gcc")
    core = next(core for core in CORES if core.name == "m7")
    places = ['-DKQGEN_CODE=__attribute__((section(".itcm")))', '-DKQGEN_TABLE=__attribute__((section(".dtcm")))']
    argv = [*toolchain.compiler, *compile_flags("gcc", core), *STRICT_FLAGS, *places, "-c", str(RUNTIME / "kq_crc.c")]
    run_tool(argv, cwd=tmp_path, what="compiling with sections", kind="gcc")
    sections = read_elf(tmp_path / "kq_crc.o")
    assert sections.section_bytes(".itcm") > 0
    assert sections.section_bytes(".dtcm") == 64


def test_the_umbrella_header_is_c_plus_plus_too(tmp_path: Path) -> None:
    require_tool("zig")
    source = tmp_path / "user.cpp"
    source.write_text('#include "kq.h"\nuint32_t f(const int8_t *p) { return kq_crc32(0u, p, KQ_RUNTIME_VERSION); }\n', encoding="utf-8")
    zig = find_toolchain("zig")
    argv = [*zig.compiler, "-x", "c++", "-std=c++11", "-Wall", "-Wextra", "-Werror", "-I", str(RUNTIME), "-c", "user.cpp", "-o", "user.o"]
    run_tool(argv, cwd=tmp_path, what="compiling as C++", kind="zig")
    assert "kq_crc32" in read_elf(tmp_path / "user.o").undefined, "the functions must keep their C names"


def test_the_host_s_compiler_accepts_it_at_every_level(tmp_path: Path) -> None:
    require_tool("cc")
    compiler = find_host_compiler()
    for level in ("-O0", "-O3"):
        argv = [*compiler.compiler, *STRICT_FLAGS, level, "-c", *map(str, SOURCES)]
        run_tool(argv, cwd=tmp_path, what=f"compiling at {level}", kind=compiler.kind)
