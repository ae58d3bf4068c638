"""`--optimise` and `--form`: what is asked for is done, kept beside the network, and refused in one message where it cannot be."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from conftest import require_tool

from cli.running import BOARD, OPTIONS, Run, entries, kqgen, ok, read_json, require_arm
from kqgen.firmware import open_firmware
from kqgen.plan import Planning


def options(inputs: Path, out: Path, *more: str, board: str = BOARD) -> tuple[str | Path, ...]:
    return ("compile", inputs / "tiny.pt2", "--board", board, "--calibration", inputs / "images.npz", *OPTIONS, "--out", out, *more)


def forms(folder: Path) -> dict[str, str]:
    return {layer["name"]: layer["form"] for layer in read_json(folder / "report.json")["layers"]}


@pytest.mark.parametrize("form", ["decode", "reuse"])
def test_a_layer_runs_in_the_form_asked_for(inputs: Path, tmp_path: Path, form: str) -> None:
    ok(*options(inputs, tmp_path / "fw", "--no-build", "--form", f"body={form}"))
    assert forms(tmp_path / "fw")["body"] == form
    firmware = open_firmware(tmp_path / "fw")
    assert firmware.planning.forms == (("body", form),)
    step = next(step for step in firmware.plan.steps if step.form == form)
    assert f"{step.function}(&tiny_" in (tmp_path / "fw" / "tiny.c").read_text(encoding="utf-8")


def test_ram_is_saved_and_the_folder_is_opened_as_it_was_planned(inputs: Path, compiled: Path, tmp_path: Path) -> None:
    ok(*options(inputs, tmp_path / "ram", "--no-build", "--optimise", "ram"))
    arenas = {}
    for optimise, out in (("ram", tmp_path / "ram"), ("balanced", compiled)):
        arenas[optimise] = read_json(out / "report.json")["ram_bytes"]["arena"]
        firmware = open_firmware(out)
        assert firmware.planning.optimise == optimise
        assert firmware.plan.arena_bytes == arenas[optimise]
        assert f"#define TINY_ARENA_BYTES {arenas[optimise]}u" in (out / "tiny.h").read_text(encoding="utf-8")
    assert arenas["ram"] < arenas["balanced"]
    assert open_firmware(compiled).planning == Planning(), "without a choice"


def refused(run: Run, *says: str) -> None:
    assert run.status == 2
    assert [word for word in (*says, "nothing was written") if word not in run.err] == []
    assert "Traceback" not in run.err


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (("--form", "body"), ("cannot read --form body", "LAYER=FORM", "reuse")),
        (("--form", "body=fast"), ("cannot read --form body=fast", "direct, unpack, decode")),
        (("--form", "=decode"), ("cannot read --form =decode",)),
        (("--form", "body=plain"), ("cannot read --form body=plain",)),
        (("--form", "nowhere=decode"), ("there is no layer nowhere", "stem.0", "body", "head")),
        (("--form", "stem.0=reuse"), ("layer stem.0 cannot run in form reuse on a Cortex-M0+", "uniform weights", "direct")),
        (("--form", "mean=decode"), ("layer mean has no weights",)),
        (("--form", "body=decode", "--form", "body=reuse"), ("--form is given twice for layer body",)),
        (("--optimise", "most"), ("most", "balanced", "speed")),
    ],
    ids=lambda value: " ".join(value) if value[0].startswith("--") else "",
)
def test_what_cannot_be_planned_is_refused_and_nothing_written(
    inputs: Path, tmp_path: Path, more: tuple[str, ...], says: tuple[str, ...]
) -> None:
    work = tmp_path / "work"
    work.mkdir()
    run = kqgen(*options(inputs, work / "fw", "--no-build", *more))
    refused(run, *says)
    assert entries(work) == set()


def counted(document: dict[str, Any]) -> list[tuple[object, ...]]:
    return [(layer["name"], layer["form"], layer["instructions"], layer["cycles_modelled"]) for layer in document["layers"]]


def test_bench_on_another_core_counts_what_a_folder_for_that_core_would_run(inputs: Path, compiled: Path, tmp_path: Path) -> None:
    require_arm()
    require_tool("unicorn")
    ok(*options(inputs, tmp_path / "m4", board="nucleo-f446re"))
    own, other = (json.loads(ok("bench", folder, "--core", "m4", "--json", "-").out) for folder in (tmp_path / "m4", compiled))
    assert own["core"] == other["core"] == "m4"
    assert counted(own) == counted(other)
