"""The schedule's forms and tiles, and the planner's use of an arena that stands half empty."""

from __future__ import annotations

import nets
import pytest

from kqgen import memory
from kqgen.errors import InternalError
from kqgen.intgraph import IntConv2d, IntGraph
from kqgen.plan import Form
from kqgen.planner import make_plan
from kqgen.schedule import ROOMS, schedule, tile_channels, tile_pixels


def one_layer(codewords: int, c_in: int, c_out: int, side: int = 8) -> IntGraph:
    net = nets.Builder("one", seed=3)
    net.input("x", side, side, c_in)
    net.codebook("book", codewords, (3, 3), True)
    net.conv("layer", c_out, (3, 3), padding=(1, 1, 1, 1), codebook="book")
    return net.graph()


@pytest.mark.parametrize(("codewords", "form"), [(4, "reuse"), (8, "reuse"), (64, "decode"), (256, "decode")])
def test_few_codewords_are_reused_and_many_decoded(codewords: int, form: Form) -> None:
    """With 64 output channels the two cost about the same at 15 codewords, measured on an emulated M0+."""
    step = schedule(one_layer(codewords, 16, 64))[0]
    assert step.form == form
    assert "cycles" in step.form_reason


def test_sums_of_two_codewords_are_decoded_and_never_reused() -> None:
    graph = nets.summed()
    forms = {step.node: step.form for step in schedule(graph)}
    assert {forms[name] for name in ("sum", "narrow_sum", "one_pair", "row", "narrow_row")} == {"decode"}
    assert schedule(graph, {"sum": "decode"}) == schedule(graph)
    with pytest.raises(InternalError, match="layer sum: form reuse"):
        schedule(graph, {"sum": "reuse"})


def test_reuse_with_narrow_indices_takes_scratch_for_the_codewords_they_name() -> None:
    def scratch(codewords: int, width: int | None) -> int:
        net = nets.Builder("one", seed=3)
        net.input("x", 8, 8, 16)
        net.codebook("book", codewords, (3, 3), True)
        net.conv("layer", 64, (3, 3), padding=(1, 1, 1, 1), codebook="book", index_bits=width)
        return schedule(net.graph(), {"layer": "reuse"})[0].scratch_bytes

    assert scratch(64, 4) == scratch(8, None) < scratch(64, None)
    assert scratch(13, 5) == scratch(13, None)


def test_a_form_can_be_asked_for() -> None:
    graph = one_layer(4, 16, 64)
    assert schedule(graph, {"layer": "decode"})[0].form == "decode"


def conv(c_in: int, c_out: int) -> IntConv2d:
    node = one_layer(4, c_in, c_out).nodes[0]
    assert isinstance(node, IntConv2d)
    return node


@pytest.mark.parametrize(("c_in", "c_out", "budget", "tile"), [(16, 16, 4608, 16), (32, 32, 4608, 16), (64, 64, 4608, 8), (64, 60, 4608, 8),
                                                             (64, 50, 4608, 8), (64, 17, 4608, 6), (1000, 5, 4608, 1)])  # fmt: skip
def test_tiles_fill_the_budget_and_share_the_channels_evenly(c_in: int, c_out: int, budget: int, tile: int) -> None:
    assert tile_channels(conv(c_in, c_out), budget) == tile


def test_pixel_tiles_are_even_and_no_more_than_there_are() -> None:
    assert [tile_pixels(one_layer_of(side), 32) for side in (1, 3, 4, 6)] == [2, 10, 16, 32]


def one_layer_of(side: int) -> IntConv2d:
    node = one_layer(4, 4, 4, side).nodes[0]
    assert isinstance(node, IntConv2d)
    return node


def test_roomier_scratch_never_grows_the_arena() -> None:
    graph = nets.residual()
    plain, made = memory.plan(graph, schedule(graph)), make_plan(graph)
    assert made.arena_bytes <= plain.arena_bytes


def test_a_step_beside_a_fuller_one_gets_the_roomier_scratch() -> None:
    net = nets.Builder("two", seed=3)
    net.input("x", 32, 32, 3)
    net.codebook("book", 64, (3, 3), True)
    net.conv("wide", 32, (3, 3), padding=(1, 1, 1, 1))
    net.conv("narrow", 64, (3, 3), stride=(4, 4), padding=(1, 1, 1, 1), codebook="book")
    net.conv("last", 64, (3, 3), padding=(1, 1, 1, 1), codebook="book")
    graph = net.graph()
    tight = {step.node: step.tile for step in schedule(graph)}
    roomy = {step.node: step.tile for step in make_plan(graph).steps}
    assert (tight["last"], roomy["last"]) == (ROOMS[0].weights_bytes // 576, ROOMS[-1].weights_bytes // 576)
