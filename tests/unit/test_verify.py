"""Verification with targets that are made up here: what counts as exact, which difference is named, what a missing tool means."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import nets
import numpy as np
import pytest

from kqgen import verify
from kqgen.board import load_board
from kqgen.errors import InputError, ToolchainError
from kqgen.firmware import model_api
from kqgen.intgraph import Int8, IntGraph
from kqgen.targets import join_inputs, make_targets
from kqgen.verify import Runner, Target, Tell, Tensors, reference_outputs, summarise, verify_target

Change = Callable[[dict[str, Int8]], None]


class Reference:
    """A target that computes by the integer reference, but for what `plain` and `tapped` change."""

    def __init__(self, graph: IntGraph, plain: Change, tapped: Change) -> None:
        self.graph, self.plain, self.tapped = graph, plain, tapped
        self.layer_inputs: list[int] = []

    def _tensors(self, inputs: Tensors, change: Change) -> dict[str, Int8]:
        tensors = {name: array.copy() for name, array in nets.run_reference(self.graph, inputs).items()}
        change(tensors)
        return tensors

    def run(self, inputs: Tensors, tell: Tell) -> Tensors:
        tell(1.0)
        tensors = self._tensors(inputs, self.plain)
        return tuple(tensors[name] for name in self.graph.outputs)

    def run_layers(self, inputs: Tensors) -> Tensors:
        self.layer_inputs.append(len(inputs[0]))
        tensors = self._tensors(inputs, self.tapped)
        return tuple(tensors[node.name] for node in self.graph.nodes)


def nothing(tensors: dict[str, Int8]) -> None:
    del tensors


def put(name: str, index: tuple[int, ...]) -> Change:
    """Changes one element of one tensor."""

    def change(tensors: dict[str, Int8]) -> None:
        tensors[name][index] ^= 1

    return change


def check(graph: IntGraph, plain: Change, tapped: Change, count: int = 6, layer_inputs: int = 2) -> verify.TargetResult:
    inputs = nets.random_inputs(graph, count)
    target = Target("made up", lambda: (Reference(graph, plain, tapped), "by hand"), layer_inputs)
    return verify_target(graph, target, inputs, reference_outputs(graph, inputs))


@pytest.fixture(scope="module")
def graph() -> IntGraph:
    return nets.two_ports()


def test_a_target_that_agrees(graph: IntGraph) -> None:
    result = check(graph, nothing, nothing)
    assert (result.exact, result.first_difference, result.layer_inputs, result.detail) == (True, None, 2, "by hand")


def test_an_output_that_differs_late_is_traced_to_its_layer(graph: IntGraph) -> None:
    """Input 4 is not among those of which every layer is read anyway; its layers are read for the blame."""
    result = check(graph, put("sum", (4, 2, 1, 3)), put("a", (2, 5, 0, 1)))
    assert result.exact is False
    assert result.first_difference is not None
    assert (result.first_difference.layer, result.first_difference.input, result.first_difference.index) == ("a", 4, (5, 0, 1))
    assert abs(result.first_difference.expected - result.first_difference.found) == 1
    assert result.layer_inputs == 3


def test_a_layer_that_differs_counts_though_the_outputs_agree(graph: IntGraph) -> None:
    result = check(graph, nothing, put("run", (1, 0, 0, 0)))
    assert result.exact is False
    assert result.first_difference is not None
    assert (result.first_difference.layer, result.first_difference.input) == ("run", 1)


def test_the_first_layer_in_order_is_named(graph: IntGraph) -> None:
    def both(tensors: dict[str, Int8]) -> None:
        put("tail", (0, 0, 0, 0))(tensors)
        put("run", (0, 3, 3, 2))(tensors)

    result = check(graph, nothing, both)
    assert result.first_difference is not None
    assert result.first_difference.layer == "run"


def test_an_output_that_only_the_shipped_build_has_wrong_is_named_as_output(graph: IntGraph) -> None:
    result = check(graph, put("tail", (5, 1, 1, 2)), nothing)
    assert result.exact is False
    assert result.first_difference is not None
    assert (result.first_difference.layer, result.first_difference.input, result.first_difference.index) == ("output tail", 5, (1, 1, 2))


def test_a_tool_that_is_missing_proves_nothing(graph: IntGraph) -> None:
    def open_runner() -> tuple[Runner, str]:
        raise ToolchainError("no emulator", do="install one")

    inputs = nets.random_inputs(graph, 1)
    result = verify_target(graph, Target("made up", open_runner, 1), inputs, reference_outputs(graph, inputs))
    assert (result.exact, result.first_difference, result.layer_inputs) == (None, None, 0)
    assert "install one" in result.detail


def result(exact: bool | None) -> verify.TargetResult:
    return verify.TargetResult("a", exact, None, 0, "")


@pytest.mark.parametrize(
    ("verdicts", "exact"),
    [((True, True), True), ((True, False), False), ((None, False), False), ((True, None), None), ((None,), None), ((), None)],
)
def test_one_verdict(verdicts: tuple[bool | None, ...], exact: bool | None) -> None:
    outputs = (np.zeros((3, 1, 1, 4), np.int8), np.zeros((3, 2, 2, 1), np.int8))
    report = summarise(3, outputs, [result(verdict) for verdict in verdicts], None)
    assert (report.exact, report.inputs, report.outputs_compared) == (exact, 3, 24)


def test_the_reference_is_the_same_in_chunks(graph: IntGraph, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = nets.random_inputs(graph, 7)
    told: list[float] = []
    whole = reference_outputs(graph, inputs)
    monkeypatch.setattr(verify, "CHUNK_INPUTS", 3)
    parts = reference_outputs(graph, inputs, told.append)
    assert all(np.array_equal(a, b) for a, b in zip(whole, parts, strict=True))
    assert told == sorted(told)
    assert (len(told), told[-1]) == (3, 1.0)


def test_inputs_of_an_image_lie_one_after_the_other(graph: IntGraph) -> None:
    inputs = nets.random_inputs(graph, 2)
    assert join_inputs(inputs)[1] == inputs[0][1].tobytes() + inputs[1][1].tobytes()


@pytest.mark.parametrize(
    ("board", "names", "made"),
    [
        ("nucleo-g0b1re", None, ["host", "unicorn"]), ("mps3-an547", None, ["host", "qemu"]), ("host", None, ["host"]),
        ("mps2-an386", ["qemu", "host"], ["qemu", "host"]),
    ],
)  # fmt: skip
def test_targets_of_a_board(tmp_path: Path, graph: IntGraph, board: str, names: list[str] | None, made: list[str]) -> None:
    with make_targets(tmp_path, graph, model_api(graph), load_board(board), names, None) as targets:
        assert [target.name for target in targets] == made


@pytest.mark.parametrize(("board", "name"), [("nucleo-g0b1re", "qemu"), ("mps3-an547", "unicorn"), ("host", "unicorn"), ("host", "")])
def test_targets_a_board_does_not_have(graph: IntGraph, board: str, name: str) -> None:
    with (
        pytest.raises(InputError),
        make_targets(Path("nowhere"), graph, model_api(graph), load_board(board), [name], None),
    ):
        pytest.fail("made")
