"""A compiled network as a Python object: the host's C against the integer reference, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nets
import numpy as np
import pytest
import torch
from conftest import require_tool
from nets import write

import kqgen
from kqgen import oracle, store
from kqgen.board import load_board
from kqgen.emit import Meta, emit
from kqgen.errors import InputError, ToolchainError
from kqgen.firmware import planned_for
from kqgen.intgraph import IntGraph
from kqgen.plan import Planning
from kqgen.planner import make_plan


def folder_of(graph: IntGraph, folder: Path) -> Path:
    golden, board, planning = nets.make_golden(graph, nets.random_inputs(graph, 1)), load_board("host"), Planning()
    write(emit(make_plan(graph, board, planning), board, golden, Meta("kqgen", "")), folder)
    (folder / f"{graph.name}.kqgen.safetensors").write_bytes(store.to_bytes(graph, planned_for(board, planning)))
    return folder


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> kqgen.Net:
    """x (2, 3, 4) -> (2, 3, 2)."""
    require_tool("cc")
    return kqgen.load(folder_of(nets.single(), tmp_path_factory.mktemp("single")))


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> kqgen.Net:
    """Left (6, 6, 4), right (6, 6, 2) -> (6, 6, 5), (2, 2, 3)."""
    require_tool("cc")
    return kqgen.load(str(folder_of(nets.two_ports(), tmp_path_factory.mktemp("two_ports"))))


def real_images(graph: IntGraph, count: int) -> list[Any]:
    """Real values that reach beyond what int8 codes stand for."""
    rng = np.random.default_rng(7)
    return [(rng.standard_normal((count, t.c, t.h, t.w)) * 90 * t.scale).astype(np.float32) for t in graph.inputs]


def test_one_input_and_output_are_plain_arrays(one: kqgen.Net) -> None:
    (codes,) = nets.random_inputs(one.firmware.graph, 70)
    found, wanted = one.run(codes), one.reference(codes)
    assert isinstance(found, np.ndarray)
    assert isinstance(wanted, np.ndarray)
    assert (str(found.dtype), found.shape) == ("int8", (70, 2, 3, 2))
    assert np.array_equal(found, wanted)


def test_several_are_tuples_in_order(two: kqgen.Net) -> None:
    codes = nets.random_inputs(two.firmware.graph, 9)
    found, wanted = two.run(*codes), two.reference(*codes)
    assert [array.shape for array in found] == [(9, 6, 6, 5), (9, 2, 2, 3)]
    assert all(np.array_equal(a, b) for a, b in zip(found, wanted, strict=True))


def test_real_values_are_quantised_and_back(two: kqgen.Net) -> None:
    graph = two.firmware.graph
    images = real_images(graph, 5)
    codes = [oracle.quantise(t, image).transpose(0, 2, 3, 1) for t, image in zip(graph.inputs, images, strict=True)]
    assert all((code == limit).any() for code in codes for limit in (-128, 127))
    wanted = two.reference(*codes)
    found = two(*images)
    assert [(array.dtype, array.shape) for array in found] == [(np.dtype(np.float32), (5, 5, 6, 6)), (np.dtype(np.float32), (5, 3, 2, 2))]
    for name, real, code in zip(graph.outputs, found, wanted, strict=True):
        assert np.array_equal(real, oracle.dequantise(graph.tensor(name), code).transpose(0, 3, 1, 2))


def test_pixels_and_tensors_are_taken(one: kqgen.Net) -> None:
    pixels = np.random.default_rng(1).integers(0, 2, (3, 4, 2, 3)).astype(np.uint8)
    assert np.array_equal(one(pixels), one(pixels.astype(np.float32)))
    assert np.array_equal(one(torch.from_numpy(pixels)), one(pixels))


def test_no_image_gives_no_result(one: kqgen.Net) -> None:
    found = one(np.zeros((0, 4, 2, 3), np.float32))
    assert isinstance(found, np.ndarray)
    assert found.shape == (0, 2, 2, 3)


@pytest.mark.parametrize(
    ("image", "says"),
    [
        (np.zeros((1, 4, 2, 3)), ("input x of single has the wrong form", "float64 (1, 4, 2, 3)", "float32 or uint8 (N, 4, 2, 3)")),
        (np.zeros((1, 2, 3, 4), np.float32), ("float32 (1, 2, 3, 4)", "(N, 4, 2, 3)", "array.transpose(0, 3, 1, 2)")),
        (np.zeros((4, 2, 3), np.float32), ("array[None]",)),
        (np.zeros((1, 4, 2, 3), np.int8), ("int8 (1, 4, 2, 3)", "float32 or uint8")),
        (np.full((1, 4, 2, 3), np.nan, np.float32), ("input x of single has NaN", "24 values")),
        ([[1.0]], ("float64 (1, 1)",)),
    ],
)
def test_images_of_the_wrong_form(one: kqgen.Net, image: Any, says: tuple[str, ...]) -> None:
    with pytest.raises(InputError) as raised:
        one(image)
    assert [text for text in says if text not in str(raised.value)] == []


def test_codes_of_the_wrong_form(one: kqgen.Net, two: kqgen.Net) -> None:
    wrong: Any = np.zeros((1, 2, 3, 4), np.float32)
    for call in (one.run, one.reference):
        with pytest.raises(InputError, match="int8"):
            call(wrong)
        with pytest.raises(InputError, match=r"\(1, 4, 2, 3\)"):
            call(np.zeros((1, 4, 2, 3), np.int8))
    codes = nets.random_inputs(two.firmware.graph, 2)
    for call in (two, two.run, two.reference):
        with pytest.raises(InputError, match="two_ports has 2 inputs"):
            call(codes[0])
    with pytest.raises(InputError, match="the same N for every input"):
        two.run(codes[0], codes[1][:1])


def test_the_report_is_that_of_the_folder(one: kqgen.Net) -> None:
    path = one.firmware.folder / "report.json"
    with pytest.raises(InputError, match=r"report\.json cannot be read"):
        _ = one.report
    path.write_text(json.dumps({"schema": 1, "model": "single"}), encoding="utf-8")
    assert one.report["model"] == "single"
    path.write_text("[1]", encoding="utf-8")
    with pytest.raises(InputError, match="holds no report"):
        _ = one.report
    path.unlink()


def test_a_folder_must_be_one_of_ours(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is no folder of kqgen"):
        kqgen.load(tmp_path)


def test_without_a_compiler_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = folder_of(nets.single(), tmp_path / "single")
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("importlib.util.find_spec", lambda *_: None)
    with pytest.raises(ToolchainError, match="no C compiler for this computer"):
        kqgen.load(folder)
