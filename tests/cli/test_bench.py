"""`kqgen bench`: exact counts and modelled cycles, on the board's core and on others."""

from __future__ import annotations

import json
from pathlib import Path

from conftest import require_tool

from cli import tinynet
from cli.running import kqgen, ok, read_json, snapshot


def test_it_counts_the_boards_core(firmware: Path) -> None:
    require_tool("unicorn")
    run = ok("bench", firmware)
    document = read_json(firmware / "bench.json")
    assert set(document) == {
        "schema", "core", "toolchain", "instructions", "cycles_modelled", "cycles_with_wait_states", "stack_bytes", "layers",
    }  # fmt: skip
    assert {frozenset(layer) for layer in document["layers"]} == {frozenset(
        {"name", "form", "macs", "instructions", "cycles_modelled", "cycles_expected", "scratch_bytes", "cmsis_nn_cycles"}
    )}
    report = read_json(firmware / "report.json")
    assert (document["schema"], document["core"], document["toolchain"]) == (1, "m0p", report["toolchain"])
    named = [[(layer["name"], layer["macs"]) for layer in each["layers"]] for each in (document, report)]
    assert named[0] == named[1]
    for total in ("instructions", "cycles_modelled"):
        assert sum(layer[total] for layer in document["layers"]) == document[total]
    assert document["instructions"] <= document["cycles_modelled"] < document["cycles_with_wait_states"]
    assert 0 < document["stack_bytes"] <= report["ram_bytes"]["stack"]
    lines = run.out.splitlines()
    assert lines[0].startswith("tiny  on Cortex-M0+   ")
    assert [line.split()[0] for line in lines[3 : 3 + len(tinynet.LAYERS)]] == list(tinynet.LAYERS)
    assert " ms at 64 MHz, " in run.out


def test_another_core_is_counted_in_a_temporary_folder(firmware: Path) -> None:
    require_tool("unicorn")
    before = snapshot(firmware)
    run = ok("bench", firmware, "--core", "m4", "--json", "-")
    document = json.loads(run.out)
    assert document["core"] == "m4"
    assert 0 < document["instructions"] < 200_000
    assert snapshot(firmware) == before
    assert " ms at " not in run.err


def test_a_folder_for_this_computer_wants_a_core(inputs: Path, tmp_path: Path) -> None:
    images = inputs / "images.npz"
    ok("compile", inputs / "tiny.pt2", "--board", "host", "--calibration", images, "--weights", "int8", "--out", tmp_path / "fw")
    run = kqgen("bench", tmp_path / "fw")
    assert run.status == 2
    assert f"kqgen bench {tmp_path / 'fw'} --core m4" in run.err
