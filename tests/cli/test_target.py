"""Compiling to a size: the target is met by what is stored, is told layer by layer, and stands beside no option that it decides."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import kqgen as package
from cli.running import BOARD, Run, kqgen, ok, read_json, snapshot
from cli.tinynet import WEIGHTED, images, make
from kqgen.console_allocation import REPEAT


def options(inputs: Path, out: Path) -> tuple[str | Path, ...]:
    return ("compile", inputs / "tiny.pt2", "--board", BOARD, "--calibration", inputs / "images.npz", "--no-build", "--out", out)


def test_bits_are_met_and_shown_layer_by_layer(inputs: Path, tmp_path: Path) -> None:
    run = ok(*options(inputs, tmp_path / "fw"), "--target-bits", "4", "--seed", "5")
    report = read_json(tmp_path / "fw" / "report.json")
    assert 3.7 < report["bits_per_weight"]["conv"] <= 4.0
    rows = run.out.splitlines()
    assert rows[0].split() == ["layer", "stored", "as", "weights", "bytes", "bits/w", "error", "%", "sensitivity"]
    assert tuple(row.split()[0] for row in rows[1:5]) == WEIGHTED
    assert f"{report['bits_per_weight']['conv']:.3f} bits a weight of the convolutions" in run.out
    assert "--seed 5" in run.out


def test_bytes_are_met_through_python(tmp_path: Path) -> None:
    compiled = package.compile(
        make(), (torch.zeros(1, 3, 8, 8),), calibration=images(), board=BOARD, target_bytes=500, out=tmp_path / "fw", build=False
    )
    assert compiled.allocation is not None
    graph = compiled.plan.graph
    stored = sum(layer.weight_bits // 8 for layer in compiled.report.layers) + sum(book.packed_bytes for book in graph.codebooks)
    assert stored <= compiled.allocation.table_bytes <= 500
    assert stored >= 450


def test_widths_groups_and_sums_are_taken_as_given(inputs: Path, tmp_path: Path) -> None:
    ok(
        *options(inputs, tmp_path / "fw"), "--codebook", "layer", "--codewords", "4", "--additive", "--width", "body=3",
        "--width", "stem.0=5", "--group", "stem.0,body",
    )  # fmt: skip
    report = read_json(tmp_path / "fw" / "report.json")
    assert {layer["name"]: layer["index_bits"] for layer in report["layers"] if layer["index_bits"]} == {"stem.0": 5, "body": 3}
    assert len(report["codebooks"]) == 1


def refused(run: Run, *says: str) -> None:
    assert run.status == 2
    assert all(word in run.err for word in (*says, "nothing was written")), run.err


@pytest.mark.parametrize(
    ("extra", "says"),
    [
        (("--target-bits", "2", "--codewords", "64"), ("--codewords would decide it too", "--target-bits")),
        (("--target-bytes", "500", "--width", "body=4"), ("--width would decide it too", "--target-bytes")),
        (("--target-bits", "2", "--group", "stem.0,body"), ("--group would decide it too",)),
        (("--target-bits", "2", "--weights", "int8"), ("--weights int8 would decide it too",)),
        (("--target-bits", "2", "--target-bytes", "500"), ("either bits for a weight or bytes of tables", "found    both")),
        (("--target-bits", "-1"), ("a target must be a positive number", "-1")),
        (("--target-bits", "0.1"), ("no allocation reaches 0.1 bits a weight", "at the least, with --weights kq --codebook")),
        (("--target-bits", "9"), ("no allocation takes as much as 9 bits", "8 bits a weight at the most")),
        (("--target-bytes", "20"), ("no allocation reaches 20 bytes of tables", "bytes at the least")),
        (("--width", "body"), ("cannot read --width body", "LAYER=BITS")),
        (("--width", "body=12"), ("cannot have indices of 12 bits", "1 to 9 bits")),
        (("--group", "body"), ("cannot read --group body", "two layers or more")),
        (("--additive", "--codewords", "64"), ("a codebook of 64 codewords cannot be indexed", "1 to 32")),
    ],
)
def test_what_cannot_be_is_refused(inputs: Path, tmp_path: Path, extra: tuple[str, ...], says: tuple[str, ...]) -> None:
    refused(kqgen(*options(inputs, tmp_path / "fw"), *extra), *says)
    assert not (tmp_path / "fw").exists()


def test_a_target_and_its_spelled_options_store_the_same(inputs: Path, tmp_path: Path) -> None:
    run = ok(*options(inputs, tmp_path / "a"), "--target-bits", "5")
    line = next(line for line in run.out.splitlines() if line.startswith(REPEAT))
    ok(*options(inputs, tmp_path / "b"), *line.removeprefix(REPEAT).split())
    assert snapshot(tmp_path / "a") == snapshot(tmp_path / "b")
