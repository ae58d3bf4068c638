"""Rule `tflite`: operators equal TFLite's reference kernels to the bit: integer reference, C on this computer, C on emulated cores."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import nets
import numpy as np
import pytest
from conftest import require_tool

from kqgen import forms, memory, plan_check
from kqgen.board import Core, bench_board, load_board, load_core
from kqgen.conv_shape import conv_shape
from kqgen.emit import Meta, emit
from kqgen.emulate import run_unicorn
from kqgen.errors import ToolchainError
from kqgen.firmware import model_api
from kqgen.graph_check import check
from kqgen.hostlib import build_library
from kqgen.image import build_image
from kqgen.intgraph import Int8, IntConv2d, IntGraph, IntNode
from kqgen.plan import Plan, Step
from kqgen.qemu import run_qemu
from kqgen.toolchain import find_host_compiler, find_toolchain, run_tool

if TYPE_CHECKING:
    from tfliteoperators import Case

KINDS = (
    "CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED", "ADD", "SUB", "MUL", "AVERAGE_POOL_2D", "MAX_POOL_2D", "MEAN", "QUANTIZE", "RELU",
    "RELU6", "RELU_N1_TO_1", "LOGISTIC", "TANH", "ELU", "HARD_SWISH", "LEAKY_RELU", "PRELU",
)  # fmt: skip
CASES = 12
LAYERS = 6
"""Convolutions of each kind that run in every form on every core."""


def operators() -> ModuleType:
    """The module of cases, which imports ai-edge-litert."""
    require_tool("litert")
    return importlib.import_module("tfliteoperators")


def joined(cases: Sequence[Case]) -> IntGraph:
    """Operators side by side in one network."""
    return IntGraph(
        name="operators",
        inputs=tuple(source for case in cases for source in case.sources),
        nodes=tuple(case.node for case in cases),
        outputs=tuple(case.node.name for case in cases),
        flattened=frozenset(),
        codebooks=(),
        rounding="tflite",
        compression="int8",
    )


def arrays(cases: Sequence[Case]) -> list[Int8]:
    return [array for case in cases for array in case.inputs]


@pytest.mark.parametrize("kind", KINDS)
def test_the_integer_reference_equals_tflite(kind: str) -> None:
    cases = [operators().KINDS[kind](number) for number in range(CASES)]
    graph = joined(cases)
    check(graph)
    made = nets.run_reference(graph, arrays(cases))
    for case in cases:
        assert np.array_equal(made[case.node.name], case.wanted), case.node.name
    assert sum(len(np.unique(case.wanted)) > 1 for case in cases) > CASES // 2, "most operators must not give one value everywhere"


def test_every_operator_is_tested() -> None:
    assert set(operators().KINDS) == set(KINDS)


def test_dilated_convolutions() -> None:
    cases = [operators().convolution(number, depthwise, dilated=True) for number in range(6) for depthwise in (False, True)]
    made = nets.run_reference(joined(cases), arrays(cases))
    for case in cases:
        assert np.array_equal(made[case.node.name], case.wanted), case.node.name


def in_every_form(graph: IntGraph, core: Core) -> Plan:
    """Every layer with weights once for each function that can run it on `core`, with its least and with its most scratch."""
    nodes: list[IntNode] = []
    steps: list[Step] = []
    for node in graph.nodes:
        if not isinstance(node, IntConv2d):
            nodes.append(node)
            steps.append(Step(node.name, "plain", "", 0, 0, 0, 0.0, ""))
            continue
        shape = conv_shape(graph, node)
        every = [each for engine in forms.ENGINES for each in engine(shape, forms.engine_core(core))]
        ways = [sorted((each for each in every if each.function == name), key=lambda each: each.scratch_bytes) for name in
                sorted({each.function for each in every})]  # fmt: skip
        for number, way in enumerate(dict.fromkeys(each for some in ways for each in (some[0], some[-1]))):
            name = f"{node.name}__{number}"
            nodes.append(replace(node, name=name, output=replace(node.output, name=name)))
            steps.append(Step(name, way.form, way.function, way.tile, way.strip, way.scratch_bytes, way.cycles, ""))
    plan = memory.plan(replace(graph, nodes=tuple(nodes), outputs=(nodes[-1].name,)), tuple(steps))
    plan_check.check(plan)
    return plan


def test_the_c_equals_tflite(tmp_path: Path) -> None:
    require_tool("cc")
    cases = [make(number) for make in operators().KINDS.values() for number in range(2)]
    plan = in_every_form(joined(cases), load_core("m4"))
    golden = nets.make_golden(plan.graph, arrays(cases))
    folder = nets.write(emit(plan, load_board("host"), golden, Meta("test", "")), tmp_path)
    layers = build_library(folder, plan.graph, tap=True).run_tapped(arrays(cases))[1]
    wanted = {case.node.name: case.wanted for case in cases}
    for step, made in zip(plan.steps, layers, strict=True):
        assert np.array_equal(made, wanted[step.node.partition("__")[0]]), f"{step.function} tile {step.tile}: {step.node}"


@pytest.mark.parametrize("core", ["m0p", "m4", "m55"])
def test_all_forms_agree_on_every_core(core: str, tmp_path: Path) -> None:
    require_tool("gcc", "qemu" if core == "m55" else "unicorn")
    made = operators()
    convs = [made.convolution(number, depthwise) for number in range(LAYERS) for depthwise in (False, True)]
    others = [made.KINDS[kind](number) for kind in ("ADD", "SUB", "MUL", "AVERAGE_POOL_2D", "MEAN") for number in range(4)]
    cases = [*convs, *(made.fully_connected(number) for number in range(4)), *others]
    graph = joined(cases)
    board = bench_board(load_core(core))
    plan = in_every_form(graph, load_core(core))
    inputs = arrays(cases)
    nets.write(emit(plan, board, nets.make_golden(plan.graph, inputs), Meta("test", "")), tmp_path / "src")
    image = build_image(tmp_path / "src", model_api(plan.graph), board, find_toolchain("gcc"), tmp_path / "build", tap=True)
    run = (run_qemu if core == "m55" else run_unicorn)(image, [b"".join(array.tobytes() for array in inputs)])
    assert run.taps is not None
    wanted = {case.node.name: case.wanted for case in cases}
    for step, tap in zip(plan.steps, run.taps[0], strict=True):
        assert tap.data == wanted[step.node.partition("__")[0]].tobytes(), f"{step.function} tile {step.tile}: {step.node}"
    assert len({step.function for step in plan.steps}) > 3


def test_a_runtime_without_the_rule_does_not_link(tmp_path: Path) -> None:
    """Whoever forgets the define, for the runtime or for all, is told its name."""
    require_tool("cc")
    cases = [operators().KINDS["ADD"](1)]
    graph = joined(cases)
    tree = emit(nets.make_plan(graph), load_board("host"), nets.make_golden(graph, arrays(cases)), Meta("test", ""))
    assert "KQ_WITH_TFLITE=1" in tree.files["CMakeLists.txt"]
    assert "-DKQ_WITH_TFLITE=1" in tree.files["README.md"]
    folder, compiler = nets.write(tree, tmp_path), find_host_compiler()
    model = ["operators.c", "operators_tables.c", "operators_selftest.c"]
    runtime = [f"runtime/{path.name}" for path in sorted((folder / "runtime").glob("*.c"))]
    define, flags = "-DKQ_WITH_TFLITE=1", ["-std=c11", "-I.", "-Iruntime"]
    (folder / "main.c").write_text('#include "operators.h"\nstatic _Alignas(8) uint8_t a[OPERATORS_ARENA_BYTES + 8];\n'
                                   "int main(void) { return (int)operators_selftest(a); }\n", encoding="utf-8")  # fmt: skip

    def build(for_model: list[str], for_runtime: list[str]) -> None:
        for sources, defines in ((model, for_model), (runtime, for_runtime)):
            run_tool([*compiler.compiler, *flags, *defines, "-c", *sources], cwd=folder, what="compiling", kind=compiler.kind)
        objects = sorted(path.name for path in folder.glob("*.o"))
        run_tool([*compiler.linker, *flags, "main.c", *objects, "-o", "selftest"], cwd=folder, what="linking", kind=compiler.kind)

    build([define], [define])
    run_tool(["./selftest"], cwd=folder, what="the self-test", kind=compiler.kind)
    for defines in ([define], []):
        with pytest.raises(ToolchainError, match="KQ_WITH_TFLITE"):
            build(defines, [])
