"""Layers that run some rows at a time give the bytes that they give whole: on this computer, and on emulated cores."""

from __future__ import annotations

import subprocess
from pathlib import Path

import nets
import numpy as np
import pytest
import streamnets
from conftest import require_tool

from kqgen import plan_check
from kqgen.bench import bench
from kqgen.board import load_board
from kqgen.emit import Meta, emit
from kqgen.emulate import run_unicorn
from kqgen.firmware import model_api
from kqgen.hostlib import STRICT_FLAGS, build_library
from kqgen.image import build_image
from kqgen.intgraph import IntGraph
from kqgen.plan import Form, Plan, Planning
from kqgen.planner import make_plan
from kqgen.toolchain import find_host_compiler, find_toolchain, run_tool

ALL = {0: (3, 4, 2, 3, 1, 2, 2, 1, 1, 2)}
APART = {0: (4, 2, 3), 3: (2, 3, 2, 1), 8: (2, 2)}
KQ_LAYERS = ("b1_conv1", "b1_add", "b2_conv1", "b2_add")


def write(plan: Plan, board: str, folder: Path) -> Path:
    graph = plan.graph
    golden = nets.make_golden(graph, nets.random_inputs(graph, 2), 2)
    return nets.write(emit(plan, load_board(board), golden, Meta("test", "")), folder)


def expected(graph: IntGraph, inputs: tuple[np.ndarray, ...]) -> list[np.ndarray]:
    tensors = nets.run_reference(graph, inputs)
    return [tensors[node.name] for node in graph.nodes]


@pytest.mark.parametrize("streams", [{0: (1,) * 10}, ALL, APART, {1: (2, 1), 6: (1, 2)}], ids=str)
def test_every_layer_of_a_stream_equals_the_reference(streams: dict[int, tuple[int, ...]], tmp_path: Path) -> None:
    require_tool("cc")
    plan = streamnets.streamed(streamnets.rows(), streams)
    plan_check.check(plan)
    inputs = nets.random_inputs(plan.graph, 5)
    outputs, layers = build_library(write(plan, "host", tmp_path), plan.graph, tap=True).run_tapped(inputs)
    for node, wanted, found in zip(plan.graph.nodes, expected(plan.graph, inputs), layers, strict=True):
        assert np.array_equal(wanted, found), node.name
    assert np.array_equal(outputs[0], layers[-1])


@pytest.mark.parametrize("form", ["decode", "reuse"])
def test_every_form_runs_in_pieces(form: Form, tmp_path: Path) -> None:
    require_tool("cc")
    plan = streamnets.streamed(streamnets.rows(), ALL, None, dict.fromkeys(KQ_LAYERS, form))
    inputs = nets.random_inputs(plan.graph, 3)
    layers = build_library(write(plan, "host", tmp_path), plan.graph, tap=True).run_tapped(inputs)[1]
    assert all(np.array_equal(a, b) for a, b in zip(expected(plan.graph, inputs), layers, strict=True))


def test_a_wrong_job_gives_wrong_bytes(tmp_path: Path) -> None:
    """What the tests above compare does depend on the jobs: one row of padding less is seen."""
    require_tool("cc")
    plan = streamnets.streamed(streamnets.rows(), ALL)
    folder = write(plan, "host", tmp_path)
    source = folder / "rows.c"
    text = source.read_text(encoding="utf-8")
    job = next(job for job in plan.streams[0].jobs if job.step == 1 and job.row == 0)
    row = f"{{{job.input}u, {job.output}u, 1u, {job.pad_top}u, {job.h_in}u, {job.rows}u}},"
    assert text.count(row) == 1
    source.write_text(text.replace(row, row.replace(f"1u, {job.pad_top}u", "1u, 0u")), encoding="utf-8")
    inputs = nets.random_inputs(plan.graph, 2)
    layers = build_library(folder, plan.graph, tap=True).run_tapped(inputs)[1]
    same = [np.array_equal(a, b) for a, b in zip(expected(plan.graph, inputs), layers, strict=True)]
    assert same[:2] == [True, False]


_SELFTEST = """
#include <stdio.h>
#include "rows.h"
static _Alignas(ROWS_ARENA_ALIGN) uint8_t arena[ROWS_ARENA_BYTES];
int main(void)
{
    printf("%d", (int)rows_selftest(arena));
    return 0;
}
"""


@pytest.mark.parametrize("wrong", [None, "b1_conv1", "four"])
def test_the_selftest_takes_pieces_and_names_the_layer(wrong: str | None, tmp_path: Path) -> None:
    require_tool("cc")
    plan = streamnets.streamed(streamnets.rows(), ALL)
    folder = write(plan, "host", tmp_path / "src")
    (folder / "main.c").write_text(_SELFTEST, encoding="utf-8")
    if wrong is not None:
        tables = folder / "rows_tables.c"
        kind = "indices" if wrong in KQ_LAYERS else "weights"
        tables.write_text(nets.flip_first_byte(tables.read_text(encoding="utf-8"), f"rows_{wrong}_{kind}", 1), encoding="utf-8")
    compiler = find_host_compiler()
    sources = [*map(str, sorted(folder.glob("*.c"))), *map(str, sorted((folder / "runtime").glob("*.c")))]
    argv = [*compiler.compiler, *STRICT_FLAGS, "-DKQGEN_TAP", f"-I{folder}", f"-I{folder / 'runtime'}", *sources, "-o", "selftest"]
    run_tool(argv, cwd=tmp_path, what="compiling the self-test", kind=compiler.kind)
    found = subprocess.run([tmp_path / "selftest"], check=True, capture_output=True, text=True).stdout
    assert found == ("0" if wrong is None else str(1 + [node.name for node in plan.graph.nodes].index(wrong)))


@pytest.mark.parametrize("board", ["nucleo-g0b1re", "nucleo-f446re"])
def test_streams_on_emulated_boards(board: str, tmp_path: Path) -> None:
    """As the planner streams them for little RAM: input in the arena, every layer compared, cycles added up by layer."""
    require_tool("gcc", "unicorn")
    graph = streamnets.rows()
    plan = make_plan(graph, load_board(board), Planning("ram"))
    assert plan.streams
    folder = write(plan, board, tmp_path / "src")
    inputs = nets.random_inputs(graph, 2)
    images = [b"".join(array[number].tobytes() for array in inputs) for number in range(2)]
    image = build_image(folder, model_api(graph), load_board(board), find_toolchain("gcc"), tmp_path / "tap", tap=True)
    run = run_unicorn(image, images)
    wanted = expected(graph, inputs)
    for number in range(2):
        assert [tap.step for tap in run.taps[number]] == list(range(len(graph.nodes)))
        assert all(tap.data == wanted[tap.step][number].tobytes() for tap in run.taps[number])
    plain = build_image(folder, model_api(graph), load_board(board), find_toolchain("gcc"), tmp_path / "plain")
    assert run_unicorn(plain, images).outputs == tuple(wanted[-1][number].tobytes() for number in range(2))
    found = bench(plan, plain, images[0], None)
    assert len(found.layers) == len(graph.nodes)
    assert [layer.form for layer in found.layers] == [plan.form_text(number) for number in range(len(graph.nodes))]
    assert all(layer.instructions > 0 for layer in found.layers)
