"""Every case under the address and undefined behaviour sanitisers, every buffer ending with its allocation."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, _missing, require_tool
from kernellib import SANITIZE_FLAGS, build

from kqgen.toolchain import find_host_compiler, run_tool


def sanitiser_libraries() -> str:
    """The sanitisers' libraries, loaded before a Python that was not built with them; skips (fails in CI) where there are none."""
    require_tool("cc")
    compiler = find_host_compiler()
    paths = []
    for name in ("libasan.so", "libubsan.so"):
        argv = [*compiler.compiler, f"-print-file-name={name}"]
        path = run_tool(argv, cwd=None, what=f"looking for {name}", kind=compiler.kind).strip()
        if not Path(path).is_absolute():
            _missing(f"needs a compiler with {name}")
        paths.append(path)
    return ":".join(paths)


def run_all(folder: Path) -> subprocess.CompletedProcess[str]:
    environment = {
        **os.environ, "LD_PRELOAD": sanitiser_libraries(), "ASAN_OPTIONS": "detect_leaks=0", "UBSAN_OPTIONS": "print_stacktrace=1",
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")]),
    }  # fmt: skip
    argv = [sys.executable, str(ROOT / "tests" / "kernellib.py"), str(folder)]
    return subprocess.run(argv, env=environment, capture_output=True, text=True, timeout=300, check=False)


def test_all_cases_run_clean(tmp_path: Path) -> None:
    sanitiser_libraries()
    build(tmp_path, SANITIZE_FLAGS)
    done = run_all(tmp_path)
    assert done.returncode == 0, done.stderr[-4000:]
    runs = re.fullmatch(r"(\d+) runs\n", done.stdout)
    assert runs is not None
    assert int(runs[1]) > 2000


def test_the_sanitiser_would_have_seen_a_byte_too_far(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The twin: a table reader that starts one byte late reads past a table's end, which ends the run."""
    sanitiser_libraries()
    broken = tmp_path / "runtime_c"
    broken.mkdir()
    for path in (ROOT / "runtime_c").iterdir():
        if path.suffix in (".c", ".h"):
            text = path.read_text(encoding="utf-8")
            if path.name == "kq_bits.h":
                assert "reader.next = table +" in text
                text = text.replace("reader.next = table +", "reader.next = table + 1 +")
            (broken / path.name).write_text(text, encoding="utf-8")
    monkeypatch.setattr("kernellib.RUNTIME", broken)
    build(tmp_path, SANITIZE_FLAGS)
    done = run_all(tmp_path)
    assert done.returncode != 0
    assert "AddressSanitizer: heap-buffer-overflow" in done.stderr, done.stderr[-4000:]
