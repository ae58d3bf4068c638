"""Speed and size of the trained ResNet-8 on every core, against what was measured before, the targets, and what the README says.

After a change that is meant: pytest tests/regression/test_speed.py --update-golden
"""

from __future__ import annotations

import dataclasses
import json
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest
from conftest import ROOT, require_that, require_tool

from kqgen import pipeline
from kqgen.bench import BenchReport
from kqgen.board import load_board
from kqgen.firmware import open_firmware
from kqgen.report import Report
from kqgen.toolchain import find_toolchain

NETWORK = ROOT / "examples" / "resnet8" / "resnet8-1.50.kq.safetensors"
BASELINE = Path(__file__).parent / "speed_baseline.json"
COMPILER = "arm-none-eabi-gcc 12.2.1"
"""Other compilers give other figures."""

SLOWER, LARGER = 1.02, 1.01
"""A layer may take so much more than the baseline says, and the flash."""

EXPECTED_WITHIN = 0.10
"""How far the plan's expectation of a layer's cycles may be from the count."""


@dataclass(frozen=True, slots=True)
class Bound:
    """What the network may take on one core: modelled cycles, and bytes of flash and RAM where they were set."""

    board: str
    cycles: int
    flash_bytes: int | None = None
    ram_bytes: int | None = None


BOUNDS = {
    "m0p": Bound("nucleo-g0b1re", 45_000_000, 32_000, 44_000),
    "m3": Bound("mps2-an385", 30_000_000),
    "m4": Bound("nucleo-f446re", 14_000_000, 32_000, 44_000),
    "m33": Bound("nucleo-u575zi", 13_000_000),
    "m7": Bound("nucleo-h7a3zi", 8_500_000),
    "m55": Bound("mps3-an547", 4_500_000),
}
CORES = pytest.mark.parametrize("core", BOUNDS)

Made = tuple[Report, BenchReport]


@cache
def _made(core: str, base: Path) -> Made:
    out = base / core
    compiled = pipeline.compile_integers(
        NETWORK, board=load_board(BOUNDS[core].board), name=None, out=out, build=True, toolchain="gcc"
    )
    return compiled.report, pipeline.bench_firmware(open_firmware(out), toolchain="gcc")


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for the compiled networks, one for all tests of this file."""
    return tmp_path_factory.mktemp("speed")


def made(core: str, base: Path) -> Made:
    """Report and count of the network on one core; skips (fails in CI) with another compiler than the baseline's."""
    require_tool("gcc", "unicorn" if core != "m55" else "qemu")
    title = find_toolchain("gcc").title
    require_that(title == COMPILER, f"the figures are those of {COMPILER}, this is {title}")
    return _made(core, base)


@dataclass(frozen=True, slots=True)
class Before:
    """What the network took on one core when the baseline was written; modelled cycles by layer."""

    flash_bytes: int
    ram_bytes: int
    layers: dict[str, int]


def baseline() -> dict[str, Before]:
    """The baseline by core."""
    return {core: Before(**known) for core, known in json.loads(BASELINE.read_text(encoding="utf-8")).items()}


@CORES
def test_speed_and_size(core: str, base: Path, request: pytest.FixtureRequest) -> None:
    """One test a core, as to compile and count it takes seconds: the bounds, the plan's expectations, then the baseline."""
    report, counted = made(core, base)
    bound, flash, ram = BOUNDS[core], report.flash_bytes.total, report.ram_bytes.total
    assert flash is not None
    assert ram is not None
    assert counted.cycles_modelled <= bound.cycles
    assert flash <= (bound.flash_bytes or flash)
    assert ram <= (bound.ram_bytes or ram)
    told = [layer for layer in counted.layers if layer.cycles_expected is not None]
    assert len(told) == 10
    for layer in told:
        assert layer.cycles_expected is not None
        assert abs(layer.cycles_expected / layer.cycles_modelled - 1) <= EXPECTED_WITHIN, f"{layer.name} {layer.form}"
    if request.config.getoption("--update-golden"):
        layers = {layer.name: layer.cycles_modelled for layer in counted.layers}
        known = {**(baseline() if BASELINE.exists() else {}), core: Before(flash, ram, layers)}
        text = {name: dataclasses.asdict(known[name]) for name in BOUNDS if name in known}
        BASELINE.write_text(json.dumps(text, indent=1) + "\n", encoding="utf-8")
    before = baseline()[core]
    assert set(before.layers) == {layer.name for layer in counted.layers}
    for layer in counted.layers:
        assert layer.cycles_modelled <= SLOWER * before.layers[layer.name], f"{layer.name} got slower; see --update-golden"
    assert flash <= LARGER * before.flash_bytes


@CORES
def test_the_readme_says_what_the_baseline_says(core: str) -> None:
    row = re.search(rf"^\| `{core}` \|.*$", (ROOT / "README.md").read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert row is not None
    known = baseline()[core]
    cells = [cell.strip() for cell in row.group(0).strip("|").split("|")]
    assert f"{sum(known.layers.values()) / 1e6:.2f} M" in cells
    for figure in (known.flash_bytes, known.ram_bytes):
        assert f"{figure:,}".replace(",", " ") in cells
