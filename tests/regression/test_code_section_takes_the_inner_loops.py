"""KQGEN_CODE moves every function of the runtime, the static ones that hold the inner loops too.

Once it moved the public functions alone: a firmware that placed the code in fast memory ran its loops from flash.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import ROOT, require_tool

from kqgen.board import load_core
from kqgen.elf import read_elf
from kqgen.hostlib import STRICT_FLAGS
from kqgen.toolchain import compile_flags, find_toolchain, run_tool

SOURCES = sorted(path for path in (ROOT / "runtime_c").glob("*.c") if path.name != "kq_tflite.c")
"""All but the mark that says which rules the runtime has, which is no code."""


@pytest.mark.parametrize("core", ["m0p", "m7"])
@pytest.mark.parametrize("level", ["-O0", "-O2"])
def test_no_function_stays_behind(tmp_path: Path, core: str, level: str) -> None:
    require_tool("gcc")
    place = '-DKQGEN_CODE=__attribute__((section(".itcm")))'
    argv = [*find_toolchain("gcc").compiler, *compile_flags("gcc", load_core(core)), *STRICT_FLAGS, level, place, "-c", *map(str, SOURCES)]
    run_tool(argv, cwd=tmp_path, what="compiling the runtime with a section for code", kind="gcc")
    objects = [read_elf(tmp_path / f"{source.stem}.o") for source in SOURCES]
    left = {symbol.name for elf in objects for symbol in elf.symbols if symbol.kind == "function" and symbol.section != ".itcm"}
    assert left == set()
    assert all(elf.section_bytes(".itcm") > 0 for elf in objects)
    assert [part.name for elf in objects for part in elf.sections if part.name.startswith(".text") and part.size_bytes] == []
