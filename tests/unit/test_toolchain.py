"""Finding compilers, their flags, and running them."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Literal

import pytest
from conftest import require_tool

from kqgen.board import CORES, load_core
from kqgen.elf import read_elf
from kqgen.errors import InputError, ToolchainError
from kqgen.toolchain import compile_flags, compile_object, core_flags, find_host_compiler, find_toolchain, run_tool

KINDS: tuple[tuple[Literal["gcc", "zig"], str], ...] = (("gcc", "arm-none-eabi-gcc "), ("zig", "zig cc "))


def _without_programs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("KQGEN_TOOLCHAIN", raising=False)


def _without_zig(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)


def test_gcc_before_zig(monkeypatch: pytest.MonkeyPatch) -> None:
    require_tool("gcc", "zig")
    monkeypatch.delenv("KQGEN_TOOLCHAIN", raising=False)
    assert find_toolchain().kind == "gcc"
    assert find_toolchain("zig").kind == "zig"
    monkeypatch.setenv("KQGEN_TOOLCHAIN", "zig")
    assert find_toolchain().kind == "zig"
    assert find_toolchain("gcc").kind == "gcc"


def test_titles_are_name_and_version() -> None:
    require_tool("gcc", "zig")
    for kind, start in KINDS:
        title = find_toolchain(kind).title
        assert title.startswith(start)
        assert title.removeprefix(start)[0].isdigit()
        assert "/" not in title


def test_zig_where_there_is_no_gcc(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    require_tool("zig")
    _without_programs(monkeypatch, tmp_path)
    assert find_toolchain().kind == "zig"
    assert find_host_compiler().kind == "zig"


def test_missing_compilers_say_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    _without_programs(monkeypatch, tmp_path)
    _without_zig(monkeypatch)
    with pytest.raises(ToolchainError) as caught:
        find_toolchain()
    assert "pip install ziglang" in caught.value.do
    assert "gcc-arm-none-eabi" in caught.value.do
    assert caught.value.exit_status == 4
    with pytest.raises(ToolchainError, match="no C compiler for this computer"):
        find_host_compiler()


def test_a_forced_compiler_that_is_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    _without_programs(monkeypatch, tmp_path)
    monkeypatch.setenv("KQGEN_TOOLCHAIN", "gcc")
    with pytest.raises(ToolchainError, match="no gcc compiler"):
        find_toolchain()


def test_unknown_forced_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KQGEN_TOOLCHAIN", "iar")
    with pytest.raises(InputError, match="KQGEN_TOOLCHAIN is 'iar'"):
        find_toolchain()


def test_flags_choose_the_core() -> None:
    assert core_flags("gcc", load_core("m0p")) == ("-mcpu=cortex-m0plus", "-mthumb", "-mfloat-abi=soft", "-fno-jump-tables")
    assert core_flags("gcc", load_core("m4")) == ("-mcpu=cortex-m4", "-mthumb", "-mfloat-abi=soft")
    assert core_flags("zig", load_core("m3")) == ("-target", "thumb-freestanding-eabi", "-mcpu=cortex_m3", "-mfloat-abi=soft")
    assert core_flags("cc", load_core("host")) == ()
    assert core_flags("gcc", load_core("m55")) == ("-mcpu=cortex-m55+nofp", "-mthumb", "-mfloat-abi=softfp")
    for core in CORES:
        assert "-O3" in compile_flags("gcc", core, "-O3")
        assert "-fstack-usage" in compile_flags("gcc", core)
        assert "-fstack-size-section" in compile_flags("zig", core)


@pytest.mark.parametrize("kind", ["gcc", "zig"])
def test_the_m55_has_integer_vectors_and_no_floats(tmp_path: Path, kind: Literal["gcc", "zig"]) -> None:
    require_tool(kind)
    source = tmp_path / "vectors.c"
    source.write_text(
        "#include <arm_mve.h>\n"
        "#if __ARM_FEATURE_MVE != 1 || defined(__ARM_FP)\n#error vectors of integers alone\n#endif\n"
        "int dot(const signed char *a) { return vmladavq_s8(vldrbq_s8(a), vldrbq_s8(a)); }\n",
        encoding="ascii",
    )
    compile_object(find_toolchain(kind), load_core("m55"), source, tmp_path / "vectors.o", flags=("-Wall", "-Werror"))
    assert "dot" in {symbol.name for symbol in read_elf(tmp_path / "vectors.o").symbols}


def test_a_tool_that_fails_keeps_its_words() -> None:
    program = "import sys; sys.stderr.write('net.c:3: no such thing'); sys.exit(7)"
    with pytest.raises(ToolchainError) as caught:
        run_tool((sys.executable, "-c", program), cwd=None, what="compiling net.c", kind="cc")
    assert caught.value.what == "compiling net.c failed"
    assert "returned 7" in caught.value.found
    assert "net.c:3: no such thing" in caught.value.found


def test_a_tool_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ToolchainError, match="cannot start"):
        run_tool((str(tmp_path / "none"),), cwd=None, what="compiling", kind="cc")


def test_a_tool_that_works_gives_its_output() -> None:
    assert run_tool((sys.executable, "-c", "print(42)"), cwd=None, what="asking", kind="cc") == "42\n"
