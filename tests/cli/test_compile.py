"""`kqgen compile`: what it writes, what each option does, and that it writes the same twice."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from conftest import require_tool

from cli import tinynet
from cli.running import BOARD, OPTIONS, Run, entries, ok, read_json, snapshot
from kqgen.board import load_board
from kqgen.firmware import open_firmware

REPORT_KEYS = {
    "schema", "model", "generator", "toolchain", "board", "weights", "bits_per_weight", "flash_bytes", "ram_bytes", "macs", "codebooks",
    "layers", "dead",
}  # fmt: skip
LAYER_KEYS = {"name", "op", "macs", "weight_bits", "bits_per_weight", "index_bits", "flash_bytes", "form", "reason"}


def sources(inputs: Path, out: Path, *options: str | Path, model: str | Path = "", board: str | Path = BOARD) -> Run:
    """Compiles without building, which must succeed."""
    images = inputs / "images.npz"
    return ok("compile", model or inputs / "tiny.pt2", "--board", board, "--calibration", images, "--out", out, "--no-build", *options)


def layers(report: dict[str, Any]) -> dict[str, Any]:
    return {layer["name"]: layer for layer in report["layers"]}


def test_the_report_has_the_documented_keys_and_no_others(compiled: Path) -> None:
    report = read_json(compiled / "report.json")
    assert set(report) == REPORT_KEYS
    assert set(report["bits_per_weight"]) == {"kq", "conv", "all"}
    assert set(report["flash_bytes"]) == {"tables", "code", "total"}
    assert set(report["dead"]) == {"layers", "channels", "weights", "of_weights", "int8_tables_bytes", "padded_int8_tables_bytes"}
    assert set(report["ram_bytes"]) == {"arena", "output", "stack", "total"}
    assert {frozenset(book) for book in report["codebooks"]} == {frozenset({"name", "codewords", "flash_bytes"})}
    assert {frozenset(layer) for layer in report["layers"]} == {frozenset(LAYER_KEYS)}
    assert (report["schema"], report["model"], report["board"], report["weights"]) == (1, "tiny", BOARD, "kq")
    assert re.fullmatch(r"kqgen \d+\.\d+\.\d+", report["generator"])
    assert re.match(r"arm-none-eabi-gcc \d|zig cc \d", report["toolchain"])


def test_the_report_adds_up(compiled: Path) -> None:
    report = read_json(compiled / "report.json")
    flash, ram = report["flash_bytes"], report["ram_bytes"]
    parts = [*report["layers"], *report["codebooks"]]
    assert sum(part["flash_bytes"] for part in parts) == flash["tables"]
    assert flash["tables"] + flash["code"] == flash["total"]
    assert ram["arena"] + ram["output"] + ram["stack"] == ram["total"]
    assert ram["output"] == 5
    assert ram["arena"] > 3 * 8 * 8
    assert sum(layer["macs"] for layer in report["layers"]) == report["macs"]


def test_the_report_tells_the_layers(compiled: Path) -> None:
    report = read_json(compiled / "report.json")
    found = layers(report)
    assert tuple(found) == tinynet.LAYERS
    assert {name: layer["op"] for name, layer in found.items()} == {
        "stem.0": "conv2d", "body": "conv2d", "add": "add", "point": "conv2d", "mean": "avg_pool", "head": "dense",
    }  # fmt: skip
    assert found["body"]["macs"] == 4 * 4 * 8 * 8 * 9
    assert found["body"]["index_bits"] == 5
    assert found["body"]["weight_bits"] == 8 * 8 * 5
    assert found["body"]["bits_per_weight"] == pytest.approx(5 / 9)
    assert [layer["name"] for layer in report["layers"] if layer["index_bits"] is not None] == ["body"]
    assert found["add"]["bits_per_weight"] is None
    assert found["add"]["weight_bits"] == 0
    assert all(layer["reason"] for layer in report["layers"])
    assert report["codebooks"] == [{"name": "codebook_3x3", "codewords": 16, "flash_bytes": 16 * 9 * 6 // 8}]
    indexed = 8 * 8 * 5 + 16 * 9 * 6
    other = 8 * (8 * 3 * 9 + 6 * 8)
    assert report["bits_per_weight"]["kq"] == pytest.approx(indexed / 576)
    assert report["bits_per_weight"]["conv"] == pytest.approx((indexed + other) / (576 + 216 + 48))
    assert report["bits_per_weight"]["all"] == pytest.approx((indexed + other + 240) / (576 + 216 + 48 + 30))


def test_the_folder_stands_alone(compiled: Path) -> None:
    files = set(snapshot(compiled))
    assert {name for name in files if not name.startswith("runtime/")} == {
        "CMakeLists.txt", "LICENSE", "README.md", "report.json", "tiny.c", "tiny.elf", "tiny.h", "tiny.kqgen.safetensors", "tiny.pt2",
        "tiny_selftest.c", "tiny_tables.c", "tiny_tables.h", "toolchain-m0p.cmake",
    }  # fmt: skip
    assert "runtime/kq.h" in files
    assert entries(compiled.parent) == {"fw"}


def test_a_second_compile_gives_the_same_bytes_and_replaces_the_first(compiled: Path, inputs: Path, tmp_path: Path) -> None:
    out = tmp_path / "fw"
    images = inputs / "images.npz"
    first = ("compile", inputs / "tiny.pt2", "--board", BOARD, "--calibration", images, "--out", out)
    ok(*first, "--no-build", "--weights", "int8", "--name", "other")
    (out / "verify.json").write_text("{}", encoding="utf-8")
    assert (out / "other.c").is_file()
    ok(*first, *OPTIONS)
    assert snapshot(out) == snapshot(compiled)
    assert entries(tmp_path) == {"fw"}


def test_json_goes_to_standard_output_alone(inputs: Path, tmp_path: Path) -> None:
    run = sources(inputs, tmp_path / "fw", "--json", "-")
    report = json.loads(run.out)
    assert set(report) == REPORT_KEYS
    assert not (tmp_path / "fw" / "report.json").exists()
    assert (tmp_path / "fw" / "tiny.c").is_file()
    assert "stem.0" in run.err


def test_without_a_build_measured_figures_are_null(inputs: Path, tmp_path: Path) -> None:
    run = sources(inputs, tmp_path / "fw", "--weights", "int8")
    report = read_json(tmp_path / "fw" / "report.json")
    assert report["toolchain"] is None
    assert (report["flash_bytes"]["code"], report["flash_bytes"]["total"]) == (None, None)
    assert (report["ram_bytes"]["stack"], report["ram_bytes"]["total"]) == (None, None)
    assert not (tmp_path / "fw" / "tiny.elf").exists()
    assert "not built" in run.out


def test_int8_turns_quantization_by_kernels_off(inputs: Path, tmp_path: Path) -> None:
    sources(inputs, tmp_path / "fw", "--weights", "int8")
    report = read_json(tmp_path / "fw" / "report.json")
    assert report["weights"] == "int8"
    assert report["codebooks"] == []
    assert report["bits_per_weight"] == {"kq": None, "conv": 8.0, "all": 8.0}
    assert {layer["index_bits"] for layer in report["layers"]} == {None}
    assert sum(layer["flash_bytes"] for layer in report["layers"]) == report["flash_bytes"]["tables"]


def test_options_of_the_codebook(inputs: Path, tmp_path: Path) -> None:
    options = ("--codebook", "layer", "--codewords", "6", "--no-sign", "--keep", "stem.0=6", "--keep", "point=4", "--keep", "head=8")
    sources(inputs, tmp_path / "a", *options, "--name", "Other", "--seed", "3")
    report = read_json(tmp_path / "a" / "report.json")
    found = layers(report)
    assert report["model"] == "Other"
    assert [book["codewords"] for book in report["codebooks"]] == [6]
    assert found["body"]["index_bits"] == 3
    assert {name: found[name]["weight_bits"] for name in ("stem.0", "point", "head")} == {
        "stem.0": 6 * 216, "point": 4 * 48, "head": 8 * 30,
    }  # fmt: skip
    assert found["stem.0"]["form"] == found["point"]["form"] == "unpack"
    assert "OTHER_ARENA_BYTES" in (tmp_path / "a" / "Other.h").read_text(encoding="utf-8")
    sources(inputs, tmp_path / "b", *options, "--name", "Other", "--seed", "4")
    books = [open_firmware(tmp_path / name).graph.codebooks[0].values for name in ("a", "b")]
    assert books[0].shape == books[1].shape == (6, 3, 3)
    assert (books[0] != books[1]).any()


def test_zig_builds_it_too(inputs: Path, compiled: Path, tmp_path: Path) -> None:
    require_tool("zig")
    options = ("--board", BOARD, "--calibration", inputs / "images.npz", *OPTIONS, "--out", tmp_path / "fw")
    ok("compile", inputs / "tiny.pt2", *options, "--toolchain", "zig")
    report, other = read_json(tmp_path / "fw" / "report.json"), read_json(compiled / "report.json")
    assert report["toolchain"].startswith("zig cc ")
    assert report["layers"] == other["layers"]
    assert report["ram_bytes"]["stack"] > 0
    assert (tmp_path / "fw" / "tiny.elf").is_file()


def test_a_factory_with_either_kind_of_weights(inputs: Path, compiled: Path, tmp_path: Path) -> None:
    wanted = (compiled / "tiny_tables.c").read_bytes()
    for state in ("tiny.pt", "tiny.safetensors"):
        out = tmp_path / state
        sources(inputs, out, "--state", inputs / state, "--name", "tiny", *OPTIONS, model="cli.tinynet:blank")
        assert (out / "tiny_tables.c").read_bytes() == wanted
    sources(inputs, tmp_path / "own", "--weights", "int8", model="cli.tinynet:make")
    assert read_json(tmp_path / "own" / "report.json")["model"] == "make"


def test_a_board_file_of_the_users_own(inputs: Path, tmp_path: Path) -> None:
    own = tmp_path / "blinky.toml"
    text = (Path(__file__).parents[2] / "boards" / "microbit.toml").read_text(encoding="utf-8")
    own.write_text(text.replace("16_000_000", "20_000_000"), encoding="utf-8")
    sources(inputs, tmp_path / "fw", board=own)
    own.unlink()
    board = open_firmware(tmp_path / "fw").board
    assert (board.name, board.clock_hz, board.core.name) == ("blinky", 20_000_000, "m0")
    assert read_json(tmp_path / "fw" / "report.json")["board"] == "blinky"


def test_a_board_file_with_the_name_of_a_known_board_counts(inputs: Path, tmp_path: Path) -> None:
    own = tmp_path / "microbit.toml"
    text = (Path(__file__).parents[2] / "boards" / "microbit.toml").read_text(encoding="utf-8")
    own.write_text(text.replace("16_000_000", "20_000_000"), encoding="utf-8")
    sources(inputs, tmp_path / "fw", board=own)
    assert open_firmware(tmp_path / "fw").board.clock_hz == 20_000_000
    assert load_board("microbit").clock_hz == 16_000_000


def test_for_this_computer_nothing_is_linked(inputs: Path, tmp_path: Path) -> None:
    images = inputs / "images.npz"
    ok("compile", inputs / "tiny.pt2", "--board", "host", "--calibration", images, "--out", tmp_path / "fw")
    report = read_json(tmp_path / "fw" / "report.json")
    assert (report["board"], report["toolchain"], report["ram_bytes"]["stack"]) == ("host", None, None)
    assert not list((tmp_path / "fw").glob("*.elf"))
    assert not list((tmp_path / "fw").glob("toolchain-*"))


def test_the_out_folder_may_be_deep_and_relative(inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    sources(inputs, Path("a/b/fw"), "--weights", "int8")
    assert entries(tmp_path / "a" / "b") == {"fw"}
    assert (tmp_path / "a" / "b" / "fw" / "tiny.c").is_file()


def test_a_file_name_that_is_no_identifier_becomes_one(inputs: Path, tmp_path: Path) -> None:
    model = tmp_path / "my-net 2.pt2"
    model.write_bytes((inputs / "tiny.pt2").read_bytes())
    sources(inputs, tmp_path / "fw", "--weights", "int8", model=model)
    assert read_json(tmp_path / "fw" / "report.json")["model"] == "my_net_2"


def test_a_codebook_larger_than_the_kernels_is_reduced_with_a_warning(inputs: Path, tmp_path: Path) -> None:
    run = sources(inputs, tmp_path / "fw", "--codewords", "2000", "--keep", "stem.0=8")
    _, line = run.err.split("warning: ")[1:]
    assert line.startswith("codebook_3x3: 2000 codewords were asked for")
    assert "64" in line.splitlines()[0]
    assert "warning" not in run.out
    assert read_json(tmp_path / "fw" / "report.json")["codebooks"][0]["codewords"] == 64


def test_the_table_says_what_a_user_asks(compile_run: tuple[Run, Path], inputs: Path) -> None:
    run, folder = compile_run
    lines = run.out.splitlines()
    assert lines[0] == "tiny  ->  nucleo-g0b1re   Cortex-M0+, 64 MHz, 512 KB flash, 144 KB RAM"
    assert [line.split()[0] for line in lines[3:9]] == list(tinynet.LAYERS)
    assert "KQ 4+sign" in lines[4]
    assert [line for line in lines if line != line.rstrip()] == []
    report = read_json(folder / "report.json")
    total_kb, ram_kb = report["flash_bytes"]["total"] / 1024, report["ram_bytes"]["total"] / 1024
    labels = {line[2:10].strip(): line[11:] for line in lines[12:]}
    assert labels["flash"].startswith(f"{total_kb:.1f} KB of 512   tables ")
    assert labels["RAM"].startswith(f"{ram_kb:.1f} KB of 144   arena ")
    assert labels["exact"] == f"not compared yet: kqgen verify {folder} --inputs {inputs / 'images.npz'}"
    assert labels["speed"] == f"not counted yet:  kqgen bench {folder}"
    assert labels["written"] == f"to {folder}"
    assert max(len(line) for line in lines if "kqgen verify" not in line) <= 118
    assert run.err.startswith("warning: 6 calibration images: ")
    assert run.err.count("warning") == 1
