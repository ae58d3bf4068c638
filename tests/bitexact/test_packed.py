"""Two channels in a word: what lanes, groups and the Thumb code can get wrong, on this computer and on emulated cores."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Literal

import nets
import numpy as np
import pytest
from conftest import require_tool
from kernelcases import (
    ConvCase,
    Indexed,
    Uniform,
    additive,
    codebook,
    conv_case,
    expected,
    extreme_pairs,
    indexed,
    inputs,
    summing,
    uniform,
)
from kernellib import Kernels, Way, shape_of

from kqgen import memory, plan_check
from kqgen.board import bench_board, load_core
from kqgen.conv_shape import conv_shape
from kqgen.emit import Meta, emit
from kqgen.emulate import run_unicorn
from kqgen.firmware import model_api
from kqgen.form_packed import candidates, expected_layout, reserved_layout
from kqgen.image import build_image
from kqgen.intgraph import IntConv2d, IntGraph
from kqgen.plan import Plan, Step
from kqgen.toolchain import find_toolchain


def ways(case: ConvCase) -> list[Way]:
    """Every tile, with and without the codebook unpacked."""
    return [Way(each.function, each.tile, each.strip, each.scratch_bytes) for each in candidates(shape_of(case), "m0p")]


def check(kernels: Kernels, case: ConvCase) -> None:
    """The case, and the case with an addition at its end."""
    for variant in (case, summing(case)):
        wanted = expected(variant)
        for way in ways(variant):
            np.testing.assert_array_equal(kernels.conv(variant, way), wanted, err_msg=f"{way}: {variant.label}")


@pytest.mark.parametrize("pair", [(1, 1), (1, -1), (-1, 1), (-1, -1)])
@pytest.mark.parametrize("x", [-128, 127])
def test_neighbours_at_the_ends_of_their_lanes(kernels: Kernels, pair: tuple[int, int], x: int) -> None:
    """Both channels of a word reach +-32640 in every group; one's carry must not reach the other."""
    word = np.array([[31, 31, 31], [31, 31, 31], [31, 31, 7]])
    negative = np.tile(np.array(pair) < 0, 4)[:, None].repeat(6, axis=1)
    weights = Indexed(word[None].astype(np.int8), np.zeros((8, 6), np.int16), negative, True)
    case = conv_case(np.random.default_rng(1), f"{pair} of {x}", np.full((4, 3, 6), x, np.int8), weights, padding=(1, 1, 1, 1))
    check(kernels, replace(case, lo=-128, hi=127, zero_point=0))


@pytest.mark.parametrize("over", [0, 3])
@pytest.mark.parametrize("sign", [1, -1])
def test_groups_are_cut_where_sums_would_pass_the_lane(kernels: Kernels, over: int, sign: int) -> None:
    """Nine taps of 6 bits that sum to 255 go in one group, to 258 in two: one would turn -128 * -258 around."""
    values = np.full((9, 1, 1, 9), 29)
    values[..., 0] = 23 + over
    weights = Uniform(6, (sign * values).astype(np.int8))
    case = conv_case(np.random.default_rng(2), f"sum {255 + over}", np.full((2, 3, 9), -128, np.int8), weights)
    assert expected_layout(shape_of(case))[0].groups == (1 if over == 0 else 2)
    check(kernels, replace(case, lo=-128, hi=127, zero_point=0))


@pytest.mark.parametrize("bits", [8, 6, 4])
@pytest.mark.parametrize(("kernel", "c_in"), [((1, 1), 1), ((1, 1), 9), ((1, 1), 37), ((3, 3), 1), ((3, 3), 3), ((2, 3), 5), ((5, 5), 2)])
def test_uniform_weights_whose_groups_do_and_do_not_end_with_rows(kernels: Kernels, bits: int, kernel: tuple[int, int], c_in: int) -> None:
    rng = np.random.default_rng(bits * c_in)
    for most in (1, 2 ** (bits - 1) - 1):
        for c_out in (1, 8, 19):
            values = rng.integers(-most, most + 1, (c_out, *kernel, c_in)).astype(np.int8)
            x = inputs(rng, (kernel[0] + 2, kernel[1] + 1, c_in), "ends")
            check(kernels, conv_case(rng, f"{bits} bits {kernel} {c_in}->{c_out}", x, Uniform(bits, values), padding=(1, 0, 1, 1)))


@pytest.mark.parametrize("kernel", [(1, 1), (1, 2), (3, 3), (3, 1), (1, 3), (5, 5), (2, 4)])
def test_kernels_of_any_shape_and_channels_of_any_number(kernels: Kernels, kernel: tuple[int, int]) -> None:
    rng = np.random.default_rng(kernel[0] * 8 + kernel[1])
    for c_in, c_out, stride in ((1, 1, 1), (3, 9, 2), (8, 16, 1), (13, 10, 2)):
        x = inputs(rng, (kernel[0] + 4, kernel[1] + 3, c_in), "any")
        for weights in (indexed(rng, c_out, c_in, codebook(rng, 20, kernel, True), True), additive(rng, c_out, c_in, kernel, 8, True)):
            check(kernels, conv_case(rng, f"{kernel} {c_in}->{c_out}", x, weights, (stride, stride), (kernel[0] - 1, 0, 1, 1)))
    weights = indexed(rng, 9, 3, codebook(rng, 5, kernel), True)
    check(kernels, conv_case(rng, "width 1", inputs(rng, (7, 1, 3), "any"), weights, padding=(2, 2, 2, 2)))


def test_a_group_takes_no_more_room_than_the_scratch_has() -> None:
    """The runtime looks for fewer groups than any weights allow: none it may find is longer than what is reserved."""
    rng = np.random.default_rng(3)
    for taps in range(1, 130):
        for bits in (6, 4):
            shape = shape_of(conv_case(rng, "taps", np.zeros((1, 1, taps), np.int8), Uniform(bits, np.ones((2, 1, 1, taps), np.int8))))
            reserved = reserved_layout(shape)
            assert reserved.taps * (2 ** (bits - 1) - 1) <= 255
            assert (reserved.groups - 1) * reserved.taps < taps <= reserved.groups * reserved.taps
            assert expected_layout(shape)[0].stream_bytes <= reserved.stream_bytes
            assert expected_layout(shape)[0].words <= reserved.words


def layers() -> IntGraph:
    """Layers that take every path of the Thumb code: nine taps and others, windows on the map and at borders, whole octets and rests."""
    net = nets.Builder("layers", seed=9)
    net.input("x", 9, 8, 3)
    net.codebook("nine", 40, (3, 3), True)
    net.codebook("five", 12, (5, 5), True)
    net.codebook("two", 6, (3, 3), True, additive=True)
    net.conv("stem", 16, (3, 3), padding=(1, 1, 1, 1), bits=6)
    net.conv("same", 16, (3, 3), padding=(1, 1, 1, 1), codebook="nine", mixed_pads=True)
    net.conv("half", 27, (3, 3), stride=(2, 2), padding=(1, 1, 1, 1), codebook="nine")
    net.conv("short", 32, (1, 1), stride=(2, 2), bits=4, source="same")
    net.conv("large", 8, (5, 5), padding=(2, 2, 2, 2), codebook="five")
    net.conv("summed", 24, (3, 3), padding=(0, 1, 1, 0), codebook="two", acc_shift=2, lo=-40)
    net.conv("wide", 10, (1, 1), bits=8)
    return net.graph()


def packed_plan(graph: IntGraph, core: str, last: bool) -> Plan:
    """Every layer by this engine, with its first or its last candidate."""
    steps: list[Step] = []
    for node in graph.nodes:
        assert isinstance(node, IntConv2d)
        way = candidates(conv_shape(graph, node), core)[-1 if last else 0]
        steps.append(Step(node.name, way.form, way.function, way.tile, way.strip, way.scratch_bytes, way.cycles, ""))
    plan = memory.plan(graph, tuple(steps))
    plan_check.check(plan)
    return plan


@pytest.mark.parametrize(
    ("core", "compiler", "last"), [("m0p", "gcc", True), ("m0p", "zig", False), ("m3", "gcc", False), ("m3", "zig", True)]
)
def test_the_thumb_code_gives_the_same_bytes(core: str, compiler: Literal["gcc", "zig"], last: bool, tmp_path: Path) -> None:
    require_tool("unicorn", compiler)
    graph = layers()
    plan, board = packed_plan(graph, core, last), bench_board(load_core(core))
    images = nets.random_inputs(graph, 3)
    for array in images:
        array[0], array[1] = np.where(array[0] < 0, -128, 127), -128
    nets.write(emit(plan, board, nets.make_golden(graph, nets.random_inputs(graph, 1)), Meta("test", "")), tmp_path / "src")
    image = build_image(tmp_path / "src", model_api(graph), board, find_toolchain(compiler), tmp_path / "build", tap=True)
    run = run_unicorn(image, [each.tobytes() for each in images[0]])
    wanted = nets.run_reference(graph, images)
    for number, taps in enumerate(run.taps):
        for node, tap in zip(graph.nodes, taps, strict=True):
            assert tap.data == wanted[node.name][number].tobytes(), f"{node.name} of image {number}"
            assert len(set(tap.data)) > 1 or number == 1, node.name


def test_only_cores_without_simd_get_uniform_weights_this_way() -> None:
    rng = np.random.default_rng(0)
    shape = shape_of(conv_case(rng, "any", np.zeros((3, 3, 3), np.int8), uniform(rng, 4, 3, (3, 3), 6)))
    found = [core for core in ("m0", "m0p", "m3", "m4", "m33", "m7", "m55") if candidates(shape, core)]
    assert found == ["m0", "m0p", "m3"]


@pytest.mark.parametrize("negative", [False, True])
def test_sums_of_two_codewords_at_the_bound(kernels: Kernels, negative: bool) -> None:
    rng = np.random.default_rng(5)
    for kind in ("low", "high", "ends"):
        check(kernels, conv_case(rng, f"bound {kind}", inputs(rng, (4, 4, 24), kind), extreme_pairs(24, negative), padding=(1, 1, 1, 1)))
