"""Depthwise and dilated convolutions give exactly the bytes SPEC.md says, in every engine, in place too."""

from __future__ import annotations

from pathlib import Path

import nets
import numpy as np
import pytest
from conftest import require_tool
from kernelcases import ConvCase, Indexed, Uniform, depthwise_cases, dilated_cases, expected, summing
from kernellib import Kernels, ways

from kqgen import planner
from kqgen.board import bench_board, load_core
from kqgen.emit import Meta, emit
from kqgen.emulate import run_unicorn
from kqgen.firmware import model_api
from kqgen.image import build_image
from kqgen.intgraph import IntGraph
from kqgen.plan import Optimise, Planning
from kqgen.toolchain import find_toolchain

CASES = depthwise_cases()


def storage(case: ConvCase) -> str:
    """How a case's weights are stored."""
    return "uniform" if isinstance(case.weights, Uniform) else "indexed" if case.weights.second is None else "additive"


def test_cases_cover_what_engines_tell_apart() -> None:
    for kind in ("uniform", "indexed", "additive"):
        own = [case for case in CASES if storage(case) == kind]
        assert {case.out_shape[2] // case.x.shape[2] for case in own} == {1, 2, 3}, kind
        assert {(case.kernel, case.stride) for case in own} >= {((3, 3), (1, 1)), ((3, 3), (2, 2))}
        assert {case.out_shape[1] % 2 for case in own} == {case.out_shape[0] % 2 for case in own} == {0, 1}
    assert {case.acc_shift for case in CASES} >= {0, 1, 2}
    assert max(int(np.abs(case.weights.values.astype(int)).sum((1, 2)).max()) for case in CASES if isinstance(case.weights, Indexed)) == 255


@pytest.mark.parametrize("kind", ["uniform", "indexed", "additive"])
def test_depthwise(kernels: Kernels, kind: str) -> None:
    cases = [case for case in CASES if storage(case) == kind]
    for case in [*cases, *(summing(case) for case in cases[::3])]:
        wanted = expected(case)
        for way in ways(case, every=True):
            np.testing.assert_array_equal(kernels.conv(case, way), wanted, err_msg=f"{way}: {case.label}, adds: {case.addend is not None}")


def test_the_output_may_take_the_input_s_place(kernels: Kernels) -> None:
    done = 0
    for case in CASES:
        if case.out_shape != case.x.shape or case.stride != (1, 1):
            continue
        for way in ways(case, every=True):
            if not way.function.endswith("_ref"):
                np.testing.assert_array_equal(kernels.conv(case, way, in_place=True), expected(case), err_msg=f"{way}: {case.label}")
                done += 1
    assert done > 20


@pytest.mark.parametrize(("core", "optimise"), [("m0p", "ram"), ("m4", "balanced"), ("m4", "size")])
def test_a_separable_network_runs_in_place(core: str, optimise: Optimise, tmp_path: Path) -> None:
    """Layers between maps of one shape take their input's place; every tensor is what the integer reference says."""
    require_tool("gcc", "unicorn")
    graph, board = nets.separable(), bench_board(load_core(core))
    plan = planner.make_plan(graph, board, Planning(optimise=optimise))
    alone = {step.node for number, step in enumerate(plan.steps) if plan.stream(number) is None}
    over = [node.name for node in graph.nodes if plan.place(node.name) == plan.place(node.inputs[0]) and node.name in alone]
    assert over == [name for name in ("d1", "d2", "d4") if name in alone]
    inputs = nets.random_inputs(graph, 1)
    nets.write(emit(plan, board, nets.make_golden(graph, inputs), Meta("test", "")), tmp_path / "src")
    image = build_image(tmp_path / "src", model_api(graph), board, find_toolchain("gcc"), tmp_path / "build", tap=True)
    run = run_unicorn(image, [inputs[0].tobytes()])
    wanted = nets.run_reference(graph, inputs)
    assert run.taps is not None
    for tap in run.taps[0]:
        if plan.stream(tap.step) is None:
            assert tap.data == wanted[graph.nodes[tap.step].name][0].tobytes(), graph.nodes[tap.step].name


def test_dilated(kernels: Kernels) -> None:
    cases = dilated_cases()
    for case in [*cases, *(summing(case) for case in cases[::4])]:
        found = ways(case, every=True)
        assert found, case.label
        for way in found:
            np.testing.assert_array_equal(kernels.conv(case, way), expected(case), err_msg=f"{way}: {case.label}")


def line() -> IntGraph:
    """Dilated layers along a line: two that are windows of neighbours on a map, two that are not, and one in two dimensions."""
    net = nets.Builder("line", seed=6)
    net.input("x", 1, 48, 3)
    net.codebook("book", 12, (1, 3), True)
    net.conv("near", 8, (1, 3), dilation=(1, 4), padding=(0, 0, 4, 4))
    net.conv("causal", 8, (1, 3), dilation=(1, 8), padding=(0, 0, 16, 0), depthwise=True, codebook="book", mixed_pads=True)
    net.conv("odd", 5, (1, 3), dilation=(1, 5), padding=(0, 0, 5, 5), codebook="book")
    net.conv("apart", 5, (1, 3), dilation=(1, 2), stride=(1, 2), padding=(0, 0, 2, 1), depthwise=True)
    net.input("y", 9, 8, 2)
    net.conv("plane", 4, (3, 3), dilation=(2, 2), padding=(2, 2, 2, 2), source="y")
    return net.graph(["apart", "plane"])


@pytest.mark.parametrize("core", ["m0p", "m4"])
def test_dilated_layers_along_a_line_are_ordinary_ones_on_a_map(core: str, tmp_path: Path) -> None:
    require_tool("gcc", "unicorn")
    graph, board = line(), bench_board(load_core(core))
    plan = planner.make_plan(graph, board)
    dilated = [step.node for step in plan.steps if "dilated" in step.function]
    assert dilated == ["odd", "apart", "plane"]
    inputs = nets.random_inputs(graph, 1)
    nets.write(emit(plan, board, nets.make_golden(graph, inputs), Meta("test", "")), tmp_path / "src")
    image = build_image(tmp_path / "src", model_api(graph), board, find_toolchain("gcc"), tmp_path / "build", tap=True)
    run = run_unicorn(image, [b"".join(each.tobytes() for each in inputs)])
    wanted = nets.run_reference(graph, inputs)
    assert run.taps is not None
    for tap in run.taps[0]:
        assert tap.data == wanted[graph.nodes[tap.step].name][0].tobytes(), graph.nodes[tap.step].name
