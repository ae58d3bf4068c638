"""Form `reuse`: tables and lists give the bytes of the specification at the ends of their lanes; a wide layer outruns the multiplier."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import nets
import numpy as np
import pytest
from conftest import require_tool
from kernelcases import Indexed, accumulators, codebook, conv_case, expected, indexed, inputs
from kernellib import Kernels, Way, shape_of

from kqgen import form_reuse, memory, oracle
from kqgen.bench import bench
from kqgen.board import bench_board, load_core
from kqgen.conv_shape import conv_shape
from kqgen.emit import Meta, emit
from kqgen.emulate import run_unicorn
from kqgen.firmware import model_api
from kqgen.image import build_image
from kqgen.intgraph import IntConv2d
from kqgen.plan import Step
from kqgen.toolchain import find_toolchain

FUNCTION = "kq_conv2d_reuse_s8"


@pytest.mark.parametrize("strip", range(1, 9))
@pytest.mark.parametrize(("width", "c_in", "c_out", "codewords", "sign"), [
    (8, 13, 32, 32, True), (8, 13, 70, 32, True), (16, 6, 33, 20, True), (7, 9, 64, 64, False), (8, 8, 36, 5, False), (1, 3, 1, 1, True),
])  # fmt: skip
def test_any_strip_gives_the_same_bytes(
    kernels: Kernels, strip: int, width: int, c_in: int, c_out: int, codewords: int, sign: bool
) -> None:
    rng = np.random.default_rng(strip)
    weights = indexed(rng, c_out, c_in, codebook(rng, codewords, (3, 3), at_bound=True), sign)
    case = conv_case(rng, "strips", inputs(rng, (3, width, c_in), "ends"), weights, padding=(1, 1, 1, 1))
    way = Way(FUNCTION, 8, strip, form_reuse.scratch_bytes(shape_of(case), strip))
    np.testing.assert_array_equal(kernels.conv(case, way), expected(case))


@pytest.mark.parametrize("padding", [(1, 1, 1, 1), (0, 0, 0, 0), (0, 2, 0, 2), (2, 0, 2, 0), (1, 1, 2, 2), (0, 0, 3, 3)])
def test_windows_side_by_side_with_any_padding(kernels: Kernels, padding: tuple[int, int, int, int]) -> None:
    """Eight windows in a row, with one, two or three padded columns at their ends."""
    rng = np.random.default_rng(sum(padding))
    weights = indexed(rng, 5, 4, codebook(rng, 12, (3, 3)), True)
    x = inputs(rng, (4, 10 - padding[2] - padding[3], 4), "any")
    case = conv_case(rng, "side by side", x, weights, padding=padding)
    assert case.out_shape[1] == 8
    way = Way(FUNCTION, 8, 3, form_reuse.scratch_bytes(shape_of(case), 3))
    np.testing.assert_array_equal(kernels.conv(case, way), expected(case))


@pytest.mark.parametrize("negative", [False, True])
def test_sums_at_the_ends_of_their_halves(kernels: Kernels, negative: bool) -> None:
    """Dot products of -32640 and 32640 side by side in all words of an entry, of codewords and of minus them, in windows that slide."""
    book = np.zeros((1, 3, 3), np.int8)
    book[0, 1] = (31, 31, 31)
    book[0, 0], book[0, 2] = (31, 31, 31), (31, 31, 7)
    x = np.where(np.arange(10)[None, :, None] // 5 % 2, -128, 127) * np.ones((5, 1, 2), np.int64)
    weights = Indexed(book, np.zeros((3, 2), np.int16), np.full((3, 2), negative), sign=True)
    case = conv_case(np.random.default_rng(1), "halves", x.astype(np.int8), weights)
    case = replace(case, bias=np.zeros(3, np.int32))
    assert {2 * 32640, -2 * 32385} <= {int(value) * (1 if negative else -1) for value in accumulators(case).ravel()}
    way = Way(FUNCTION, 8, 2, form_reuse.scratch_bytes(shape_of(case), 2))
    np.testing.assert_array_equal(kernels.conv(case, way), expected(case))


@pytest.mark.parametrize(("core", "macs_per_cycle"), [("m4", 2.6), ("m33", 2.62), ("m7", 4.3)])
def test_a_wide_layer_outruns_the_multiplier(tmp_path: Path, core: str, macs_per_cycle: float) -> None:
    """512 to 512 channels by 32 sign-symmetric codewords within 24 KiB of scratch; one row of eight pixels stands for eight of them.

    An M4 or M33 multiplies two pairs of int16 a cycle at best.
    """
    require_tool("gcc", "unicorn")
    net = nets.Builder("wide", 1)
    net.input("image", 1, 8, 512)
    net.conv("layer", 512, (3, 3), padding=(1, 1, 1, 1), codebook=net.codebook("book", 32, (3, 3), True), source="image")
    graph = net.graph()
    (node,) = graph.nodes
    assert isinstance(node, IntConv2d)
    shape = conv_shape(graph, node)
    chosen = [each for each in form_reuse.candidates(shape, core) if each.scratch_bytes <= 24 * 1024][-1]
    step = Step("layer", chosen.form, chosen.function, chosen.tile, chosen.strip, chosen.scratch_bytes, chosen.cycles, "")
    plan = memory.plan(graph, (step,))
    drawn = nets.random_inputs(graph, 1, seed=1)
    nets.write(emit(plan, bench_board(load_core(core)), nets.make_golden(graph, drawn), Meta("test", "")), tmp_path / "src")
    image = build_image(tmp_path / "src", model_api(graph), bench_board(load_core(core)), find_toolchain("gcc"), tmp_path / "build")
    found = run_unicorn(image, [drawn[0].tobytes()])
    assert found.outputs[0] == oracle.run(graph, {"image": drawn[0]})["layer"][0].tobytes()
    layer = bench(plan, image, drawn[0].tobytes(), None).layers[0]
    assert shape.macs / layer.cycles_modelled >= macs_per_cycle
    assert abs(chosen.cycles / layer.cycles_modelled - 1) < 0.1, "the price is within a tenth"
