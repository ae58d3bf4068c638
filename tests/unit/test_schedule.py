"""Which form a layer gets: the fastest that its scratch has room for, or the one asked for."""

from __future__ import annotations

from dataclasses import replace

import nets
import pytest

from kqgen import memory
from kqgen.board import CORES, Core, load_board, load_core
from kqgen.conv_shape import ConvShape, conv_shape
from kqgen.errors import InputError
from kqgen.form_portable import tile_channels
from kqgen.forms import ENGINES, candidates, engine_core
from kqgen.intgraph import IntConv2d, IntGraph
from kqgen.plan import Form, Planning
from kqgen.planner import ROOM_BYTES, ROOM_SHARE, STACK_BYTES, make_plan
from kqgen.schedule import choices, step

M0P = load_core("m0p")


def one_layer(codewords: int, c_in: int, c_out: int, side: int = 8) -> IntGraph:
    net = nets.Builder("one", seed=3)
    net.input("x", side, side, c_in)
    net.codebook("book", codewords, (3, 3), True)
    net.conv("layer", c_out, (3, 3), padding=(1, 1, 1, 1), codebook="book")
    return net.graph()


def shape_of(graph: IntGraph, number: int = 0) -> ConvShape:
    node = graph.nodes[number]
    assert isinstance(node, IntConv2d)
    return conv_shape(graph, node)


def graphs() -> list[IntGraph]:
    return [nets.residual(), nets.summed(), one_layer(16, 17, 5, 7)]


@pytest.mark.parametrize("core", CORES, ids=lambda core: core.name)
def test_candidates_rise_in_scratch_and_fall_in_cycles_on_every_core(core: Core) -> None:
    layers = 0
    for graph in graphs():
        for choice in choices(graph, core, {}):
            assert bool(choice.candidates) == isinstance(choice.node, IntConv2d)
            for less, more in zip(choice.candidates, choice.candidates[1:], strict=False):
                assert less.scratch_bytes < more.scratch_bytes
                assert less.cycles > more.cycles > 0
            layers += bool(choice.candidates)
    assert layers > 12


def test_no_candidate_is_worse_than_one_that_was_kept() -> None:
    shape = shape_of(one_layer(16, 32, 32))
    kept = candidates(shape, M0P)
    for each in (each for engine in ENGINES for each in engine(shape, "m0p")):
        assert any(other.scratch_bytes <= each.scratch_bytes and other.cycles <= each.cycles for other in kept)


@pytest.mark.parametrize(("asked", "wanted"), [("m7", "m7"), ("m0", "m0"), ("host", "m4")])
def test_forms_know_a_core_by_what_it_can_do(asked: str, wanted: str) -> None:
    assert engine_core(load_core(asked)) == wanted


def test_an_m33_without_dsp_instructions_runs_what_the_m3_does() -> None:
    assert engine_core(load_core("m33").without_dsp()) == "m3"


def test_a_step_takes_what_fits_and_never_less_than_the_least() -> None:
    choice = choices(one_layer(64, 32, 32), M0P, {})[0]
    assert len(choice.candidates) > 1
    for each in choice.candidates:
        made = step(choice, each.scratch_bytes)
        assert (made.function, made.tile, made.strip, made.scratch_bytes) == (each.function, each.tile, each.strip, each.scratch_bytes)
        assert "cycles expected" in made.form_reason
    assert step(choice, 0).scratch_bytes == choice.candidates[0].scratch_bytes


@pytest.mark.parametrize("form", ["decode", "reuse"])
def test_a_form_can_be_asked_for_by_node_or_module(form: Form) -> None:
    graph = one_layer(16, 16, 64)
    assert make_plan(graph, None, Planning(forms=(("layer", form),))).steps[0].form == form


def test_a_form_that_does_not_suit_is_refused_with_those_that_do() -> None:
    graph = nets.summed()
    with pytest.raises(InputError, match="layer sum cannot run in form reuse") as caught:
        make_plan(graph, None, Planning(forms=(("sum", "reuse"),)))
    assert "decode" in caught.value.wanted
    with pytest.raises(InputError, match="there is no layer nowhere") as caught:
        make_plan(graph, None, Planning(forms=(("nowhere", "reuse"),)))
    assert "stem" in caught.value.wanted


@pytest.mark.parametrize(("c_in", "c_out", "budget", "tile"), [(16, 16, 4608, 16), (32, 32, 4608, 16), (64, 64, 4608, 8), (64, 60, 4608, 8),
                                                             (64, 50, 4608, 8), (64, 17, 4608, 6), (1000, 5, 4608, 1)])  # fmt: skip
def test_tiles_fill_the_budget_and_share_the_channels_evenly(c_in: int, c_out: int, budget: int, tile: int) -> None:
    assert tile_channels(shape_of(one_layer(4, c_in, c_out)), budget) == tile


def test_the_arena_stays_within_its_limit_and_more_room_never_makes_it_slower() -> None:
    for graph in graphs():
        maps = max(memory.alive_bytes(graph))
        plans = {each: make_plan(graph, load_board("nucleo-g0b1re"), Planning(each)) for each in ("ram", "balanced", "speed")}
        cycles = {each: sum(step.cycles for step in plan.steps) for each, plan in plans.items()}
        assert plans["ram"].arena_bytes <= plans["balanced"].arena_bytes <= maps + max(maps // ROOM_SHARE, ROOM_BYTES)
        assert cycles["ram"] >= cycles["balanced"] >= cycles["speed"] > 0


def test_a_small_board_gets_a_smaller_arena() -> None:
    graph = one_layer(64, 64, 64)
    board = load_board("nucleo-g0b1re")
    wide = make_plan(graph, board, Planning("speed"))
    ram = replace(board.ram, size_bytes=board.reserve_ram_bytes + wide.arena_bytes + 4096 + STACK_BYTES - 4)
    tight = replace(board, regions=tuple(ram if region == board.ram else region for region in board.regions))
    assert make_plan(graph, board, Planning("ram")).arena_bytes <= make_plan(graph, tight, Planning("speed")).arena_bytes < wide.arena_bytes


@pytest.mark.parametrize("name", ["nucleo-g0b1re", "nucleo-f446re", "mps3-an547"])
def test_for_size_one_engine_runs_all_layers(name: str) -> None:
    """Functions of one engine share their code; two engines' would both be linked."""
    graph, board = nets.residual(), load_board(name)
    lean = {step.function for step in make_plan(graph, board, Planning("size")).steps if step.function}
    shapes = [shape_of(graph, number) for number, node in enumerate(graph.nodes) if isinstance(node, IntConv2d)]
    own = [{each.function for shape in shapes for each in engine(shape, engine_core(board.core))} for engine in ENGINES]
    assert any(lean <= functions for functions in own)
    assert len(lean) <= 2
