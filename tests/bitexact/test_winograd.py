"""Winograd's transforms: what their bounds, partial tiles, groups and loop orders can get wrong."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise, product

import numpy as np
import pytest
from kernelcases import ConvCase, Indexed, additive, codebook, conv_case, expected, indexed, inputs, summing
from kernellib import Kernels, Way, shape_of

from kqgen.conv_shape import ConvShape
from kqgen.form_winograd import candidates, map_tiles, rounds, scratch_bytes

SIDES = (2, 4)
PADDING = (1, 1, 1, 1)


def way(shape: ConvShape, side: int, tile: int, strip: int) -> Way:
    """One call with any tile and strip, offered as a candidate or not."""
    return Way(f"kq_conv2d_winograd{side}_s8", tile, strip, scratch_bytes(shape, side, tile, strip))


def check(kernels: Kernels, case: ConvCase, tiles: tuple[tuple[int, int], ...] = ((2, 4), (4, 2), (8, 5), (4, 64))) -> None:
    """The case plain, with an addition at its end, and with results clamped to less than int8; each by both forms."""
    for variant in (replace(case, lo=-128, hi=127), summing(case), replace(case, lo=-77, hi=60)):
        shape, wanted = shape_of(variant), expected(variant)
        for side, (tile, strip) in product(SIDES, tiles):
            found = kernels.conv(variant, way(shape, side, tile, strip))
            np.testing.assert_array_equal(found, wanted, err_msg=f"{variant.label}: side {side}, tile {tile}, strip {strip}")


@pytest.mark.parametrize("h", range(1, 10))
def test_partial_tiles_on_every_side(kernels: Kernels, h: int) -> None:
    rng = np.random.default_rng(h)
    for w in (1, 2, 4, 5, 7, 9):
        weights = indexed(rng, 5, 3, codebook(rng, 12, (3, 3)), True)
        check(kernels, conv_case(rng, f"{h}x{w}", inputs(rng, (h, w, 3), "any"), weights, padding=PADDING, per_channel_pads=w % 2 == 0))


@pytest.mark.parametrize("padding", [(0, 0, 0, 0), (0, 1, 2, 0), (2, 0, 0, 2), (3, 6, 7, 3)])
def test_padding_of_any_width(kernels: Kernels, padding: tuple[int, int, int, int]) -> None:
    """Also patches that lie wholly off the map."""
    rng = np.random.default_rng(7)
    for c_in in (4, 6):
        weights = indexed(rng, 4, c_in, codebook(rng, 9, (3, 3)), True)
        check(kernels, conv_case(rng, f"padding {padding}", inputs(rng, (6, 7, c_in), "any"), weights, padding=padding))


@pytest.mark.parametrize("c_in", [1, 2, 3, 4, 5, 8, 11, 12, 17])
def test_channels_that_fill_no_word_and_no_group(kernels: Kernels, c_in: int) -> None:
    rng = np.random.default_rng(c_in)
    for c_out in (1, 2, 3, 6, 9):
        weights = indexed(rng, c_out, c_in, codebook(rng, 20, (3, 3)), c_out % 2 == 0)
        check(kernels, conv_case(rng, f"{c_in}->{c_out}", inputs(rng, (6, 5, c_in), "ends"), weights, padding=PADDING))


@pytest.mark.parametrize(("tile", "strip"), [*product((2, 4, 8, 12, 16), (4, 5, 8, 12, 40))])
def test_neither_tile_nor_strip_nor_order_matters(kernels: Kernels, tile: int, strip: int) -> None:
    rng = np.random.default_rng(tile * strip)
    for weights in (indexed(rng, 10, 6, codebook(rng, 30, (3, 3)), True), additive(rng, 10, 6, (3, 3), 16, True)):
        check(kernels, conv_case(rng, "tiles", inputs(rng, (13, 11, 6), "any"), weights, padding=PADDING), ((tile, strip),))


def test_both_orders_of_the_loops_are_among_them() -> None:
    case = conv_case(
        np.random.default_rng(1), "order", np.zeros((13, 11, 6), np.int8),
        indexed(np.random.default_rng(1), 10, 6, np.ones((1, 3, 3), np.int8), False), padding=PADDING,
    )  # fmt: skip
    shape = shape_of(case)
    assert map_tiles(shape, 4) == 12
    assert map_tiles(shape, 2) == 42
    found = {rounds(shape, side, tile, strip) for side, tile, strip in product(SIDES, (2, 4, 8, 12, 16), (4, 8, 12, 40))}
    assert any(kernels > 1 and patches == 1 for kernels, patches in found)
    assert any(kernels == 1 and patches > 1 for kernels, patches in found)


def extremes(c_in: int) -> ConvCase:
    """Sums of 255 a kernel over inputs of -128 and 127 whose signs follow those of the largest transformed values."""
    book = np.array([[31, 31, 31], [31, 31, 31], [31, 31, 7]], np.int8)
    signs = np.array([[1, -1, 1], [-1, 1, -1], [1, -1, 1]], np.int8)
    words = np.stack([book, book * signs, np.full((3, 3), -28, np.int8)])
    rng = np.random.default_rng(3)
    codes = np.arange(4 * c_in).reshape(4, c_in).astype(np.int16) % 3
    codes[0] = 0
    weights = Indexed(words, codes, np.zeros((4, c_in), bool), True)
    column = np.where(np.add.outer(np.arange(10), np.arange(12)) % 2 == 0, 127, -128)
    x = np.repeat(column[:, :, None], c_in, axis=2)
    x[:, 6:] = -128
    return conv_case(rng, f"extremes of {c_in}", x.astype(np.int8), weights, padding=PADDING)


@pytest.mark.parametrize("c_in", [4, 114])
def test_ends_of_lanes_and_of_sums(kernels: Kernels, c_in: int) -> None:
    """114 channels of kernels that sum to 255: 576 * 128 * 29070 is just below 2^31."""
    case = extremes(c_in)
    assert shape_of(case).largest_sum == 255 * c_in
    check(kernels, case, ((4, 4),))


def test_sums_beyond_the_bound_are_left_to_other_forms() -> None:
    assert {each.form for each in candidates(shape_of(extremes(114)), "m4")} == {"winograd2", "winograd4"}
    assert {each.form for each in candidates(shape_of(extremes(115)), "m4")} == {"winograd2"}


@pytest.mark.parametrize("change", ["stride", "kernel", "uniform"])
def test_other_layers_are_left_to_other_forms(change: str) -> None:
    shape = shape_of(extremes(4))
    assert candidates(shape, "m4")
    other = {"stride": replace(shape, stride=(2, 2)), "kernel": replace(shape, kernel=(5, 5)), "uniform": replace(shape, kind="uniform")}
    assert candidates(other[change], "m4") == ()


def test_candidates_trade_scratch_for_cycles(kernels: Kernels) -> None:
    """Each takes more scratch and fewer cycles than the one before of its form, and gives the same bytes."""
    rng = np.random.default_rng(11)
    weights = indexed(rng, 16, 16, codebook(rng, 40, (3, 3)), True)
    case = conv_case(rng, "candidates", inputs(rng, (17, 16, 16), "any"), weights, padding=PADDING)
    shape, wanted = shape_of(case), expected(case)
    for core, side in product(("m0p", "m3", "m4", "m33", "m7"), SIDES):
        offered = [each for each in candidates(shape, core) if each.form == f"winograd{side}"]
        assert 3 <= len(offered) <= 10
        for small, fast in pairwise(offered):
            assert small.scratch_bytes < fast.scratch_bytes
            assert small.cycles > fast.cycles
        for each in offered:
            assert each.scratch_bytes == scratch_bytes(shape, side, each.tile, each.strip)
            np.testing.assert_array_equal(kernels.conv(case, way(shape, side, each.tile, each.strip)), wanted)
