"""`kqgen verify`: what it proves, and that it sees and names what is wrong."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import require_tool

from cli import tinynet
from cli.running import kqgen, ok, read_json, require_arm, snapshot


def flip(folder: Path, table: str, element: int = 0) -> None:
    """Changes one element of a table in the generated C: a high bit of a byte, or the sign of an integer."""
    path = folder / "tiny_tables.c"
    text = path.read_text(encoding="utf-8")
    start = re.search(rf"\btiny_{table}\[[^\]]*\] = {{", text)
    assert start is not None, table
    values = list(re.finditer(r"0x[0-9a-f]{2}|-?\d+", text[start.end() : text.index("};", start.end())]))
    found = values[element]
    old = found.group()
    new = f"0x{int(old, 16) ^ 0x40:02x}" if old.startswith("0x") else str(-int(old) - 1)
    at = start.end() + found.start()
    path.write_text(text[:at] + new + text[at + len(old) :], encoding="utf-8")


def differences(document: dict[str, Any]) -> dict[str, Any]:
    return {target["name"]: target["first_difference"] for target in document["targets"]}


def test_it_proves_host_and_emulated_board(firmware: Path, inputs: Path) -> None:
    require_tool("cc", "unicorn")
    run = ok("verify", firmware, "--inputs", inputs / "images.npz")
    document = read_json(firmware / "verify.json")
    assert set(document) == {"schema", "exact", "inputs", "outputs_compared", "targets", "float"}
    assert (document["schema"], document["exact"], document["inputs"]) == (1, True, tinynet.INPUTS)
    assert document["outputs_compared"] == 5 * tinynet.INPUTS
    assert document["targets"] == [
        {"name": "host", "exact": True, "first_difference": None}, {"name": "unicorn", "exact": True, "first_difference": None},
    ]  # fmt: skip
    assert set(document["float"]) == {"sqnr_db", "argmax_agreement"}
    assert document["float"]["sqnr_db"] > 5
    assert 0 <= document["float"]["argmax_agreement"] <= 1
    lines = run.out.splitlines()
    assert lines[0] == "EXACT   tiny on nucleo-g0b1re"
    assert lines[1].startswith("  host     exact on 6 of 6 inputs, every layer of 6   (")
    assert lines[2].startswith("  unicorn  exact on 6 of 6 inputs, every layer of 4   (nucleo-g0b1re, ")
    assert lines[3].startswith("  float    SQNR ")
    assert run.err == ""


def test_json_limit_and_targets(firmware: Path, inputs: Path) -> None:
    require_tool("unicorn")
    (firmware / "tiny.pt2").unlink()
    before = snapshot(firmware)
    run = ok("verify", firmware, "--inputs", inputs / "images.npz", "--targets", "unicorn", "--limit", "2", "--json", "-")
    document = json.loads(run.out)
    assert (document["exact"], document["inputs"], document["outputs_compared"]) == (True, 2, 10)
    assert [target["name"] for target in document["targets"]] == ["unicorn"]
    assert document["float"] is None
    assert snapshot(firmware) == before
    assert "EXACT" in run.err


def test_zig_gives_the_same_bytes(firmware: Path, inputs: Path) -> None:
    require_tool("zig", "unicorn")
    run = ok("verify", firmware, "--inputs", inputs / "images.npz", "--targets", "unicorn", "--limit", "2", "--toolchain", "zig")
    assert "zig cc" in run.out


TABLES = {"stem.0": "stem_0_weights", "body": "body_indices", "point": "point_weights", "head": "head_weights"}


@pytest.mark.parametrize("layer", tinynet.WEIGHTED)
def test_a_changed_byte_is_blamed_on_its_layer(firmware: Path, inputs: Path, layer: str) -> None:
    require_tool("cc")
    flip(firmware, TABLES[layer])
    run = kqgen("verify", firmware, "--inputs", inputs / "images.npz", "--targets", "host")
    assert run.status == 1
    document = read_json(firmware / "verify.json")
    assert document["exact"] is False
    difference = document["targets"][0]["first_difference"]
    assert set(difference) == {"input", "layer", "index", "expected", "found"}
    assert difference["layer"] == layer
    assert difference["expected"] != difference["found"]
    assert len(difference["index"]) == 3
    assert run.out.startswith("NOT EXACT   tiny on nucleo-g0b1re\n")
    assert f"first difference at layer {layer}, input {difference['input']}" in run.out
    y, x, c = difference["index"]
    assert f"wanted {difference['expected']}, got {difference['found']} at [y {y}, x {x}, c {c}]" in run.out


def test_host_and_board_see_the_same_difference(firmware: Path, inputs: Path) -> None:
    """The last weight of the head is that of its last output alone."""
    require_tool("cc", "unicorn")
    flip(firmware, "head_weights", -1)
    run = kqgen("verify", firmware, "--inputs", inputs / "images.npz", "--limit", "4")
    assert run.status == 1
    found = differences(read_json(firmware / "verify.json"))
    assert found["host"] == found["unicorn"]
    assert (found["host"]["layer"], found["host"]["index"]) == ("head", [0, 0, 4])


def test_a_changed_bias_is_seen_on_the_board(firmware: Path, inputs: Path) -> None:
    require_tool("unicorn")
    flip(firmware, "point_bias", 2)
    run = kqgen("verify", firmware, "--inputs", inputs / "images.npz", "--targets", "unicorn", "--limit", "2")
    assert run.status == 1
    found = differences(read_json(firmware / "verify.json"))["unicorn"]
    assert (found["layer"], found["input"], found["index"]) == ("point", 0, [0, 0, 2])


def test_a_changed_codebook_is_blamed_on_the_layer_that_reads_it(firmware: Path, inputs: Path) -> None:
    require_tool("cc")
    flip(firmware, "codebook_3x3", 3)
    run = kqgen("verify", firmware, "--inputs", inputs / "images.npz", "--targets", "host", "--json", "-")
    assert run.status == 1
    assert differences(json.loads(run.out))["host"]["layer"] == "body"


def test_qemu_on_a_board_it_has(inputs: Path, tmp_path: Path) -> None:
    require_arm()
    require_tool("qemu")
    images = inputs / "images.npz"
    ok("compile", inputs / "tiny.pt2", "--board", "mps2-an386", "--calibration", images, "--out", tmp_path / "fw", "--no-build")
    ok("verify", tmp_path / "fw", "--inputs", images, "--targets", "qemu", "--limit", "2")
    document = read_json(tmp_path / "fw" / "verify.json")
    assert [(target["name"], target["exact"]) for target in document["targets"]] == [("qemu", True)]


@pytest.mark.parametrize(
    ("targets", "says"),
    [
        ("host,renode", ("unknown target 'renode'", "host, unicorn, qemu")),
        ("qemu", ("nucleo-g0b1re (Cortex-M0+) does not run under qemu", "host or unicorn")),
    ],
)
def test_targets_that_are_not_there(compiled: Path, inputs: Path, targets: str, says: tuple[str, str]) -> None:
    before = snapshot(compiled)
    run = kqgen("verify", compiled, "--inputs", inputs / "images.npz", "--targets", targets)
    assert run.status == 2
    assert all(part in run.err for part in says)
    assert snapshot(compiled) == before


def test_inputs_are_checked_like_calibration(compiled: Path, inputs: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "nhwc.npz", tinynet.images().transpose(0, 2, 3, 1))
    run = kqgen("verify", compiled, "--inputs", tmp_path / "nhwc.npz")
    assert run.status == 2
    assert "(6, 8, 8, 3)" in run.err
    assert "array.transpose(0, 3, 1, 2)" in run.err
    run = kqgen("verify", compiled, "--inputs", tmp_path / "none.npz")
    assert run.status == 2
    assert "no such file" in run.err
    assert kqgen("verify", tmp_path, "--inputs", inputs / "images.npz").status == 2
