"""Generated texts against stored ones, whole folders: any change of the output shows as a diff in review.

After a change that is meant: pytest tests/golden --update-golden
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

import nets
import pytest

from kqgen.board import load_board
from kqgen.emit import RUNTIME_FOLDER, Meta, emit
from kqgen.intgraph import IntGraph
from kqgen.plan import Form

EXPECTED = Path(__file__).resolve().parent / "expected"
META = Meta("kqgen 0.0.0", "--weights kq --codebook network --codewords 24 --sign --seed 0")

CASES: tuple[tuple[IntGraph, Mapping[str, Form], str], ...] = (
    (nets.residual(), {"b1_conv2": "reuse"}, "nucleo-g0b1re"),
    (nets.two_ports(), {}, "nucleo-f446re"),
    (nets.single(), {}, "host"),
    (nets.fused(), {}, "nucleo-u575zi"),
)


def generated(graph: IntGraph, forms: Mapping[str, Form], board: str) -> dict[str, str]:
    golden = nets.make_golden(graph, nets.random_inputs(graph, 2), 2)
    tree = emit(nets.spread_plan(graph, forms), load_board(board), golden, META)
    return {path: text for path, text in tree.files.items() if not path.startswith(f"{RUNTIME_FOLDER}/")}


@pytest.mark.parametrize(("graph", "forms", "board"), CASES, ids=lambda value: getattr(value, "name", None))
def test_generated_texts_are_the_stored_ones(
    graph: IntGraph, forms: Mapping[str, Form], board: str, request: pytest.FixtureRequest
) -> None:
    files, folder = generated(graph, forms, board), EXPECTED / graph.name
    if request.config.getoption("--update-golden"):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        for path, text in files.items():
            (folder / path).write_text(text, encoding="utf-8", newline="\n")
        pytest.skip(f"wrote {len(files)} texts to tests/golden/expected/{graph.name}")
    assert sorted(path.name for path in folder.iterdir()) == sorted(files)
    for path, text in files.items():
        assert text == (folder / path).read_bytes().decode("utf-8"), f"{graph.name}/{path} changed; see --update-golden"
