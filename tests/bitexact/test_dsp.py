"""Engine `dsp`: what its layout and its requantisation by one multiplication can get wrong, on this computer and on emulated cores."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from pathlib import Path

import nets
import numpy as np
import pytest
from conftest import require_tool
from kernelcases import ConvCase, additive, codebook, conv_case, expected, extreme_pairs, indexed, inputs, summing, uniform
from kernellib import Kernels, Way, shape_of

from kqgen import form_dsp, memory, oracle
from kqgen.board import bench_board, load_core
from kqgen.conv_shape import conv_shape
from kqgen.emit import Meta, emit
from kqgen.emulate import run_unicorn
from kqgen.firmware import model_api
from kqgen.image import build_image
from kqgen.intgraph import IntConv2d
from kqgen.plan import Step
from kqgen.toolchain import find_toolchain

SHIFTS = (1, 2, 15, 16, 17, 22)
"""About 16, the largest whose requantisation is one multiplication."""


def ways(case: ConvCase) -> list[Way]:
    """Every tile and strip of both orders of instructions."""
    found = [Way(each.function, each.tile, each.strip, each.scratch_bytes)
             for core in ("m4", "m7") for each in form_dsp.candidates(shape_of(case), core)]  # fmt: skip
    assert {way.function.split("_")[-2] for way in found} == {"dsp", "dual"}
    return found


def check(kernels: Kernels, case: ConvCase) -> None:
    """The case, and the case with an addition at its end."""
    for variant in (case, summing(case)):
        wanted = expected(variant)
        for way in ways(variant):
            np.testing.assert_array_equal(kernels.conv(variant, way), wanted, err_msg=f"{way}: {variant.label}")


def test_only_cores_with_the_instructions_have_the_engine() -> None:
    rng = np.random.default_rng(0)
    shape = shape_of(conv_case(rng, "any", np.zeros((3, 3, 3), np.int8), uniform(rng, 4, 3, (3, 3), 6)))
    cores = ("m0", "m0p", "m3", "m4", "m33", "m7", "m55")
    assert [core for core in cores if form_dsp.candidates(shape, core)] == ["m4", "m33", "m7"]


@pytest.mark.parametrize("c_in", [1, 2, 3, 4, 6, 8, 13, 16])
@pytest.mark.parametrize("kernel", [(3, 3), (1, 1), (2, 4), (1, 5)], ids=str)
def test_every_way_of_filling_quads(kernels: Kernels, kernel: tuple[int, int], c_in: int) -> None:
    """Rows of a window that fill whole quads by whole channels, by chance, or not; groups that are full or not; an odd number of pixels."""
    rng = np.random.default_rng(c_in)
    x = inputs(rng, (5, 7, c_in), "any")
    for weights in (
        uniform(rng, 6, c_in, kernel, 4), uniform(rng, 8, c_in, kernel, 6), uniform(rng, 5, c_in, kernel, 8),
        indexed(rng, 7, c_in, codebook(rng, 11, kernel), True), additive(rng, 8, c_in, kernel, 6, True),
    ):  # fmt: skip
        check(kernels, conv_case(rng, "quads", x, weights, (2, 1), (1, 0, 1, 1)))


@pytest.mark.parametrize("width", [1, 3, 7])
def test_a_book_holds_the_codewords_that_indices_can_name(kernels: Kernels, width: int) -> None:
    """Of both stages: the second begins behind all codewords of the first, named or not."""
    rng = np.random.default_rng(width)
    x = inputs(rng, (4, 5, 4), "any")
    check(kernels, conv_case(rng, "narrow sums", x, additive(rng, 8, 4, (3, 3), 11, True, width), padding=(1, 1, 1, 1)))
    check(kernels, conv_case(rng, "narrow", x, indexed(rng, 8, 4, codebook(rng, 90, (3, 3)), False, width), padding=(1, 1, 1, 1)))


@pytest.mark.parametrize("kind", ["low", "high", "ends"])
def test_extremes_of_products(kernels: Kernels, kind: str) -> None:
    rng = np.random.default_rng(3)
    for negative in (False, True):
        check(kernels, conv_case(rng, kind, inputs(rng, (5, 4, 64), kind), extreme_pairs(64, negative), padding=(1, 1, 1, 1)))


def extreme(case: ConvCase, shift: int, acc_shift: int) -> ConvCase:
    """The case with accumulators at both ends of int32, and multipliers at both ends of their range."""
    c_out = case.out_shape[2]
    # One window of this case sums to less than 2^13.
    most = (2**31 >> acc_shift) - 2**13
    return replace(case, bias=np.resize([most, -most, 0, 77], c_out).astype(np.int32), acc_shift=acc_shift,
                   multiplier=np.resize([32767, 32766, 0, 1, 16384], c_out).astype(np.int16),
                   shift=np.full(c_out, shift, np.uint8), zero_point=-128, lo=-128, hi=127)  # fmt: skip


@pytest.mark.parametrize("acc_shift", [0, 1, 3, 15])
def test_extremes_of_requantisation(kernels: Kernels, acc_shift: int) -> None:
    rng = np.random.default_rng(acc_shift)
    weights = uniform(rng, 20, 4, (1, 1), 4)
    weights = replace(weights, values=np.sign(weights.values))
    case = conv_case(rng, "extremes", inputs(rng, (2, 3, 4), "ends"), weights)
    for shift in SHIFTS:
        check(kernels, extreme(case, shift, acc_shift))
    mixed = replace(extreme(case, 1, acc_shift), shift=np.resize(SHIFTS, 20).astype(np.uint8))
    assert len(np.unique(expected(mixed))) > 3
    check(kernels, mixed)


@pytest.mark.parametrize("core", ["m4", "m33", "m7"])
def test_the_instructions_themselves(core: str, tmp_path: Path) -> None:
    """All candidates on an emulated core: extremes of requantisation, an odd number of channels, a narrow range, 3, 16 and 5 channels."""
    require_tool("gcc", "unicorn")
    net = nets.Builder("dsp", seed=5)
    for number, (c_in, c_out, bits) in enumerate(product((3, 16, 5), (6, 8), (6, 0))):
        net.input(f"x{number}", 5, 7, c_in)
        book = None if bits else net.codebook(f"book{number}", 20, (3, 3), True, additive=c_out == 6)
        net.conv(f"layer{number}", c_out, (3, 3), stride=(1, 2), padding=(1, 1, 1, 1), bits=bits or 8, codebook=book, source=f"x{number}",
                 lo=-40 if number % 3 == 0 else -128)  # fmt: skip
    graph = net.graph()
    nodes: list[IntConv2d] = []
    steps: list[Step] = []
    for number, node in enumerate(graph.nodes):
        assert isinstance(node, IntConv2d)
        channels = node.output.c
        ends = np.resize([2**30, -(2**30), 5], channels).astype(np.int32)
        odd = replace(node.requant, bias=ends, shift=np.resize(SHIFTS[number % 3 :], channels).astype(np.uint8))
        for requant in (node.requant, replace(node.requant, bias=ends, shift=np.full(channels, 16, np.uint8)), odd):
            for each in form_dsp.candidates(conv_shape(graph, node), core):
                name = f"{node.name}_{len(nodes)}"
                nodes.append(replace(node, name=name, requant=requant, output=replace(node.output, name=name)))
                steps.append(Step(name, each.form, each.function, each.tile, each.strip, each.scratch_bytes, each.cycles, ""))
    graph = replace(graph, nodes=tuple(nodes), outputs=(nodes[-1].name,))
    plan = memory.plan(graph, tuple(steps))
    board = bench_board(load_core(core))
    arrays = nets.random_inputs(graph, 1, seed=1)
    nets.write(emit(plan, board, nets.make_golden(graph, arrays), Meta("test", "")), tmp_path / "src")
    image = build_image(tmp_path / "src", model_api(graph), board, find_toolchain("gcc"), tmp_path / "build", tap=True)
    run = run_unicorn(image, [b"".join(array.tobytes() for array in arrays)])
    wanted = oracle.run(graph, {tensor.name: array for tensor, array in zip(graph.inputs, arrays, strict=True)})
    assert run.taps is not None
    for step, tap in zip(plan.steps, run.taps[0], strict=True):
        assert tap.data == wanted[step.node][0].tobytes(), f"{step.function} tile {step.tile} strip {step.strip}: {step.node}"
