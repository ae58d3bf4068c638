"""The self-test that a firmware engineer calls on the board, here built for this computer."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from conftest import require_tool

from cli.test_verify import flip
from kqgen.hostlib import STRICT_FLAGS
from kqgen.toolchain import find_host_compiler

MAIN = """\
#include <stdio.h>
#include "tiny.h"
int32_t tiny_selftest(void *arena);
static _Alignas(TINY_ARENA_ALIGN) unsigned char arena[TINY_ARENA_BYTES];
int main(void)
{
    printf("%ld\\n", (long)tiny_selftest(arena));
    return 0;
}
"""


def selftest(folder: Path, *, tap: bool) -> int:
    """What <model>_selftest() returns on this computer; the C is compiled as strictly as it is promised to be clean."""
    compiler = find_host_compiler()
    (folder / "main.c").write_text(MAIN, encoding="utf-8")
    sources = [str(path.relative_to(folder)) for path in (*folder.glob("*.c"), *folder.glob("runtime/*.c"))]
    flags = ("-O0", "-I.", "-Iruntime", *STRICT_FLAGS, *(("-DKQGEN_TAP",) if tap else ()))
    subprocess.run([*compiler.compiler, *flags, *sources, "-o", "selftest"], cwd=folder, check=True)
    done = subprocess.run([str(folder / "selftest")], capture_output=True, text=True, check=True)
    return int(done.stdout)


@pytest.mark.parametrize(
    ("table", "plain", "tap"), [(None, 0, 0), ("stem_0_weights", -1, 1), ("body_indices", -1, 2), ("head_weights", -1, 6)]
)
def test_it_returns_the_first_step_that_differs(compiled: Path, tmp_path: Path, table: str | None, plain: int, tap: int) -> None:
    require_tool("cc")
    folder = Path(shutil.copytree(compiled, tmp_path / "fw"))
    if table is not None:
        flip(folder, table)
    assert (selftest(folder, tap=False), selftest(folder, tap=True)) == (plain, tap)
