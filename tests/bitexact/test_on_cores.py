"""200 random layers, each in every form its core has, on emulated cores: all of them give the bytes of the integer reference."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import nets
import numpy as np
import pytest
from conftest import require_tool

from kqgen import forms, memory, oracle, plan_check
from kqgen.board import Core, bench_board, load_core
from kqgen.conv_shape import Candidate, conv_shape
from kqgen.emit import Meta, emit
from kqgen.emulate import run_unicorn
from kqgen.firmware import model_api
from kqgen.image import build_image
from kqgen.intgraph import IntConv2d, IntGraph
from kqgen.plan import Plan, Step
from kqgen.qemu import run_qemu
from kqgen.toolchain import find_toolchain

LAYERS, BATCH = 200, 25
KERNELS = ((3, 3), (3, 3), (3, 3), (3, 3), (1, 1), (5, 5), (1, 5), (2, 3))


def layer(net: nets.Builder, rng: np.random.Generator, number: int) -> None:
    """One layer of random kind, with an input of its own."""
    h, w, c_in, c_out = (int(rng.integers(1, top)) for top in (14, 15, 36, 36))
    kernel = KERNELS[int(rng.integers(len(KERNELS)))]
    stride = (int(rng.integers(1, 3)),) * 2
    sides = [int(rng.integers(0, side + 1)) for side in (kernel[0], kernel[0], kernel[1], kernel[1])]
    lacking = [max(0, kernel[axis] - (h, w)[axis] - sides[2 * axis]) for axis in (0, 1)]
    padding = (sides[0], sides[1] + lacking[0], sides[2], sides[3] + lacking[1])
    net.input(f"x{number}", h, w, c_in)
    book, kind = None, int(rng.integers(4))
    if kind:
        codewords = int(2 ** rng.uniform(0, 5 if kind == 3 else 7))
        book = net.codebook(f"book{number}", codewords, kernel, bool(rng.integers(2)), additive=kind == 3)
    net.conv(
        f"layer{number}", c_out, kernel, stride=stride, padding=padding, bits=int(rng.choice([8, 6, 4])), codebook=book,
        mixed_pads=bool(rng.integers(2)), lo=int(rng.choice([-128, -40])), source=f"x{number}", acc_shift=int(rng.integers(3)),
    )  # fmt: skip


def batch(first: int) -> IntGraph:
    """BATCH layers side by side."""
    net = nets.Builder(f"layers{first}", seed=first)
    for number in range(first, first + BATCH):
        layer(net, np.random.default_rng(1000 + number), number)
    return net.graph()


def in_every_form(graph: IntGraph, core: Core) -> Plan:
    """Every layer once for each function that can run it on `core`, with its least and with its most scratch."""
    nodes: list[IntConv2d] = []
    steps: list[Step] = []
    for node in graph.nodes:
        assert isinstance(node, IntConv2d)
        for number, way in enumerate(ways(graph, node, core)):
            name = f"{node.name}_{number}"
            nodes.append(replace(node, name=name, output=replace(node.output, name=name)))
            steps.append(Step(name, way.form, way.function, way.tile, way.strip, way.scratch_bytes, way.cycles, ""))
    plan = memory.plan(replace(graph, nodes=tuple(nodes), outputs=(nodes[-1].name,)), tuple(steps))
    plan_check.check(plan)
    return plan


def ways(graph: IntGraph, node: IntConv2d, core: Core) -> list[Candidate]:
    shape = conv_shape(graph, node)
    every = [each for engine in forms.ENGINES for each in engine(shape, forms.engine_core(core))]
    chosen: list[Candidate] = []
    for function in sorted({each.function for each in every}):
        own = sorted((each for each in every if each.function == function), key=lambda each: (each.scratch_bytes, each.tile))
        chosen += dict.fromkeys((own[0], own[-1]))
    return chosen


def depthwise_layer(net: nets.Builder, rng: np.random.Generator, number: int) -> None:
    """One depthwise layer of random kind, with an input of its own."""
    kernel = (*KERNELS, (10, 4))[int(rng.integers(len(KERNELS) + 1))]
    stride = (int(rng.integers(1, 3)),) * 2
    h, w = (int(rng.integers(size, size + 12)) for size in kernel)
    sides = [int(rng.integers(0, size)) for size in (kernel[0], kernel[0], kernel[1], kernel[1])]
    c_in, each = int(rng.choice([1, 3, 4, 8, 16, 21, 32])), int(rng.choice([1, 1, 1, 2]))
    net.input(f"x{number}", h, w, c_in)
    book, kind = None, int(rng.integers(4))
    if kind > 1:
        book = net.codebook(f"book{number}", int(2 ** rng.uniform(0, 5)), kernel, bool(rng.integers(2)), additive=kind == 3)
    net.conv(
        f"layer{number}", each * c_in, kernel, stride=stride, padding=(sides[0], sides[1], sides[2], sides[3]), codebook=book,
        bits=int(rng.choice([8, 6, 4])), mixed_pads=bool(rng.integers(2)), lo=int(rng.choice([-128, -40])), source=f"x{number}",
        acc_shift=int(rng.integers(3)), depthwise=True,
    )  # fmt: skip


def depthwise_batch() -> IntGraph:
    """BATCH depthwise layers side by side."""
    net = nets.Builder("depthwise", seed=1)
    for number in range(BATCH):
        depthwise_layer(net, np.random.default_rng(3000 + number), number)
    return net.graph()


@pytest.mark.parametrize("core", ["m0p", "m4", "m55"])
@pytest.mark.parametrize("first", range(0, LAYERS, BATCH))
def test_all_forms_agree_on_random_layers(first: int, core: str, tmp_path: Path) -> None:
    check_all_forms(batch(first), core, tmp_path, first, 2 * BATCH)


@pytest.mark.parametrize("core", ["m0p", "m4", "m55"])
def test_depthwise_layers(core: str, tmp_path: Path) -> None:
    check_all_forms(depthwise_batch(), core, tmp_path, 1, BATCH - 1)


def check_all_forms(graph: IntGraph, core: str, tmp_path: Path, seed: int, more_than: int) -> None:
    """Every layer of a graph in every form its core has gives the bytes of the integer reference."""
    require_tool("gcc", "qemu" if core == "m55" else "unicorn")
    plan = in_every_form(graph, load_core(core))
    assert len(plan.steps) > more_than
    board = bench_board(load_core(core))
    inputs = nets.random_inputs(graph, 1, seed=seed)
    nets.write(emit(plan, board, nets.make_golden(plan.graph, inputs), Meta("test", "")), tmp_path / "src")
    image = build_image(tmp_path / "src", model_api(plan.graph), board, find_toolchain("gcc"), tmp_path / "build", tap=True)
    run = (run_qemu if core == "m55" else run_unicorn)(image, [b"".join(array.tobytes() for array in inputs)])
    wanted = oracle.run(graph, {tensor.name: array for tensor, array in zip(graph.inputs, inputs, strict=True)})
    assert run.taps is not None
    assert len(run.taps[0]) == len(plan.steps)
    for step, tap in zip(plan.steps, run.taps[0], strict=True):
        name = step.node.rpartition("_")[0]
        assert tap.data == wanted[name][0].tobytes(), f"{step.function} tile {step.tile} strip {step.strip}: {name}"
