"""Views: names, numbers and comments as they will stand in C, and what is refused."""

from __future__ import annotations

import doctest
import re
from dataclasses import replace

import nets
import numpy as np
import pytest

from kqgen import memory, views_text
from kqgen.board import load_board
from kqgen.emit import Golden, Meta
from kqgen.errors import InputError, InternalError
from kqgen.fuse import fuse
from kqgen.intgraph import IntConv2d, IntGraph, KqWeights, UniformWeights, frozen
from kqgen.plan import Plan
from kqgen.views import ModelView, buffer_views, graph_digest, model_view
from kqgen.views_params import Conv2dKqParams, Conv2dParams, PoolParams
from kqgen.views_steps import StepView

META = Meta("kqgen 1.2.3", "--weights kq")


def view_of(graph: IntGraph, plan: Plan | None = None, meta: Meta = META) -> ModelView:
    golden = nets.make_golden(graph, nets.random_inputs(graph, 1))
    return model_view(plan or nets.make_plan(graph), load_board("host"), golden, meta, ())


def step_of(view: ModelView, layer: str) -> StepView:
    return next(step for step in view.steps if step.layer == layer)


def test_examples_in_the_docstrings_hold() -> None:
    result = doctest.testmod(views_text)
    assert (result.failed, result.attempted > 3) == (0, True)


@pytest.mark.parametrize("name", ["", "2net", "net-1", "_net", "ö", "kq", "KQ_x", "kq_net", "math", "String", "n" * 49])
def test_names_that_cannot_prefix_c_are_refused(name: str) -> None:
    with pytest.raises(InputError, match="--name"):
        views_text.check_model_name(name)


@pytest.mark.parametrize("name", ["net", "ResNet8", "kqnet", "n" * 48, "int", "test"])
def test_names_that_can_are_taken(name: str) -> None:
    views_text.check_model_name(name)


def test_a_network_with_such_a_name_is_not_emitted() -> None:
    graph = replace(nets.single(), name="stdint")
    with pytest.raises(InputError, match="stdint"):
        view_of(graph)


def test_decimals_read_back_exactly() -> None:
    rng = np.random.default_rng(5)
    for value in [*rng.uniform(1e-6, 4, 200).tolist(), *rng.uniform(1e-6, 4, 200).astype(np.float32).astype(float).tolist()]:
        text = views_text.decimal(value)
        assert float(text) == value or float(np.float32(text)) == value
        assert len(text) <= len(repr(value))


def test_literals_of_int32() -> None:
    assert [views_text.int32_literal(value) for value in (-(2**31), -1, 2**31 - 1)] == ["INT32_MIN", "-1", "2147483647"]


def test_no_comment_can_end_early_or_pass_the_margin() -> None:
    lines = views_text.comment_lines("a */ b /* c " + "word " * 60 + "x" * 300, indent=4)
    text = "\n".join(lines)
    assert (text.count("/*"), text.count("*/"), len(lines) > 3) == (1, 1, True)
    assert max(map(len, lines)) + 4 <= views_text.COLUMNS


def test_long_lists_flow_over_lines() -> None:
    items = [f"argument_{number}" for number in range(30)]
    lines = views_text.flow("call(", items, ", ", ");", indent=4)
    assert max(map(len, lines)) + 4 <= views_text.COLUMNS
    assert " ".join(line.strip() for line in lines) == f"call({', '.join(items)});"


def test_rows_hold_every_literal_once() -> None:
    rows = views_text.array_rows([str(number) for number in range(-100, 100)])
    assert ",".join(rows).replace(" ", "").replace(",,", ",").strip(",").split(",") == [str(number) for number in range(-100, 100)]
    assert max(map(len, rows)) + 4 <= views_text.COLUMNS


def test_pad_values_become_one_value_where_one_serves() -> None:
    view = view_of(nets.residual())
    mixed, equal, unpadded = (step_of(view, name).params for name in ("stem", "b1_conv1", "four"))
    assert isinstance(mixed, Conv2dParams)
    assert isinstance(equal, Conv2dKqParams)
    assert isinstance(unpadded, Conv2dParams)
    assert mixed.pad_values == "residual_stem_pad_values"
    assert (equal.pad_values, equal.pad_value) == ("NULL", view_zero_point(nets.residual(), "stem"))
    assert unpadded.pad_values == "NULL"


def view_zero_point(graph: IntGraph, tensor: str) -> int:
    return graph.tensor(tensor).zero_point


def test_different_pad_values_without_padding_need_no_table() -> None:
    net = nets.Builder("net")
    net.input("x", 5, 5, 3)
    net.conv("c", 2, (3, 3), mixed_pads=True)
    params = view_of(net.graph()).steps[0].params
    assert isinstance(params, Conv2dParams)
    assert params.pad_values == "NULL"


def test_names_that_meet_are_told_apart() -> None:
    net = nets.Builder("net")
    net.input("x", 5, 5, 3)
    net.codebook("a", 4, (3, 3), False)
    for name in ("run", "a", "a_bias", "A"):
        net.conv(name, 2, (3, 3) if name == "a" else (1, 1), codebook="a" if name == "a" else None)
    view = view_of(net.graph())
    names = [*(step.ident for step in view.steps), *(table.ident for group in view.groups for table in group.tables), "net_run"]
    assert len({name.lower() for name in names}) == len(names)


def test_macros_of_one_and_of_several_buffers() -> None:
    one, _ = buffer_views(nets.single())
    several, outputs = buffer_views(nets.two_ports())
    assert (one[0].macro, one[0].param) == ("SINGLE_INPUT", "input")
    assert [(view.macro, view.param) for view in several] == [
        ("TWO_PORTS_INPUT_LEFT", "input_Left"), ("TWO_PORTS_INPUT_RIGHT", "input_right"),
    ]  # fmt: skip
    assert [view.param for view in outputs] == ["output_sum", "output_tail"]
    assert [view.real for view in several] == ["real = 0.0078125 * q", "real = 0.1 * (q - 5)"]


def test_values_that_do_not_fit_their_field_name_layer_and_field() -> None:
    net = nets.Builder("net")
    net.input("x", 1, 70_000, 1)
    net.conv("wide", 1, (1, 1))
    with pytest.raises(InternalError, match=r"wide: shape") as refused:
        view_of(net.graph())
    assert (refused.value.found, refused.value.wanted) == ("70000", "0..65535")


def test_a_form_that_does_not_suit_the_weights_is_refused() -> None:
    graph = nets.single()
    plan = nets.make_plan(graph)
    steps = (replace(plan.steps[0], form="decode"),)
    with pytest.raises(InternalError, match="layer only: form decode does not suit its weights"):
        view_of(graph, replace(plan, steps=steps))


@pytest.mark.parametrize("function", ["kq_conv2d_decode_s8", "kq_conv2d_s9", ""])
def test_a_function_that_does_not_suit_the_weights_is_refused(function: str) -> None:
    plan = nets.make_plan(nets.single())
    steps = (replace(plan.steps[0], function=function),)
    with pytest.raises(InternalError, match="layer only: form direct does not suit its weights") as refused:
        view_of(plan.graph, replace(plan, steps=steps))
    assert refused.value.found == function


def test_sums_of_two_codewords_are_never_reused() -> None:
    graph = nets.summed()
    plan = nets.spread_plan(graph, {"sum": "reuse"})
    with pytest.raises(InternalError, match="sum: form reuse"):
        view_of(graph, plan)
    steps = tuple(replace(step, function="kq_conv2d_reuse_s8") if step.node == "sum" else step for step in plan.steps)
    with pytest.raises(InternalError, match="sum: form reuse"):
        view_of(graph, replace(plan, steps=steps))


def test_parameters_and_words_of_additive_and_narrow_indices() -> None:
    view = view_of(nets.summed(), nets.spread_plan(nets.summed(), {}))
    found = {}
    for step in view.steps:
        if isinstance(step.params, Conv2dKqParams):
            function, table = step.call[0].split("(")[0].strip(), next(line for line in view.layers if f" {step.layer} " in line)
            words = re.search(r"KQ \S+", table)
            assert words is not None
            found[step.layer] = (step.params.codewords, step.params.index_bits, step.params.sign, function, words[0])
    additive = "kq_conv2d_decode_additive_s8"
    assert {name: entry for name, entry in found.items() if entry[3] == additive} == {
        "sum": (13, 9, 1, additive, "KQ 2x4+sign"),
        "narrow_sum": (13, 5, 1, additive, "KQ 2x2+sign"),
        "one_pair": (13, 1, 1, additive, "KQ 2x0+sign"),
        "row": (4, 4, 0, additive, "KQ 2x2-bit"),
        "narrow_row": (4, 2, 0, additive, "KQ 2x1-bit"),
    }
    assert {name: (*entry[:3], entry[4]) for name, entry in found.items() if entry[3] != additive} == {
        "stem": (21, 6, 1, "KQ 5+sign"), "narrow": (4, 3, 1, "KQ 2+sign"), "one_word": (1, 1, 1, "KQ 0+sign"),
    }  # fmt: skip
    assert any("codebook, 2 x 13 of 3x3" in line for line in view.layers)
    comments = [re.sub(r"\s+(\* )?", " ", " ".join(table.comment)) for group in view.groups for table in group.tables]
    assert any("9 bits (4 + 4 index, 1 sign)" in text for text in comments)
    assert any("4 bits (2 + 2 index), " in text for text in comments)
    assert any("the sum of one of the first 13 and one of the others, also negated" in text for text in comments)


def test_an_index_that_names_no_codeword_is_never_written() -> None:
    """Of 21 codewords indices have 5 bits, which could say 31."""
    graph = nets.summed()
    conv = graph.nodes[0]
    assert isinstance(conv, IntConv2d)
    assert isinstance(conv.weights, KqWeights)
    codes = conv.weights.codes.copy()
    codes[0, 0] = 21
    wrong = replace(graph, nodes=(replace(conv, weights=replace(conv.weights, codes=frozen(codes, np.int16))), *graph.nodes[1:]))
    golden = nets.make_golden(graph, nets.random_inputs(graph, 1))
    with pytest.raises(InternalError, match="stem: codes do not suit codebook plain") as refused:
        model_view(replace(nets.make_plan(graph), graph=wrong), load_board("host"), golden, META, ())
    assert "codeword number 21" in refused.value.found
    with pytest.raises(InternalError, match="stem: codes do not suit codebook plain"):
        nets.make_plan(wrong)


def test_a_plan_of_another_graph_is_refused() -> None:
    plan = nets.make_plan(nets.single())
    with pytest.raises(InternalError, match="steps"):
        view_of(nets.single(), replace(plan, steps=(replace(plan.steps[0], node="other"),)))


def test_an_output_that_nothing_writes_is_refused() -> None:
    graph = nets.single()
    plan = nets.make_plan(graph)
    twice = replace(graph, outputs=("only", "only"))
    with pytest.raises(InternalError, match="no place for only"):
        view_of(twice, replace(plan, graph=twice))


def test_a_zero_point_beyond_int8_is_refused() -> None:
    graph = nets.single()
    node = replace(graph.nodes[0], output=replace(graph.nodes[0].output, zero_point=128))
    wrong = replace(graph, nodes=(node,))
    with pytest.raises(InternalError, match="only: zero_point"):
        model_view(nets.make_plan(wrong), load_board("host"), nets.make_golden(graph, nets.random_inputs(graph, 1)), META, ())


def test_a_layer_with_another_codebook_is_refused() -> None:
    graph = nets.residual()
    books = tuple(replace(book, sign=not book.sign) for book in graph.codebooks)
    with pytest.raises(InternalError, match="b1_conv1"):
        view_of(replace(graph, codebooks=books))


def test_golden_vectors_of_another_network_are_refused() -> None:
    graph, other = nets.residual(), nets.single()
    golden = nets.make_golden(other, nets.random_inputs(other, 1))
    with pytest.raises(InternalError, match="golden vector 0"):
        model_view(nets.make_plan(graph), load_board("host"), golden, META, ())
    with pytest.raises(InternalError, match="at least one"):
        model_view(nets.make_plan(graph), load_board("host"), Golden(()), META, ())


def test_the_digest_sees_every_number_and_name() -> None:
    graph = nets.residual()
    conv = graph.nodes[0]
    assert isinstance(conv, IntConv2d)
    assert isinstance(conv.weights, UniformWeights)
    flipped = conv.weights.values.copy()
    flipped[0, 0, 0, 0] ^= 1
    changed = [
        replace(graph, name="other"),
        replace(graph, compression="int8"),
        replace(graph, nodes=(replace(conv, weights=UniformWeights(8, frozen(flipped, np.int8))), *graph.nodes[1:])),
        replace(graph, nodes=(replace(conv, lo=conv.lo + 1), *graph.nodes[1:])),
        replace(graph, inputs=(replace(graph.inputs[0], scale=graph.inputs[0].scale * (1 + 2**-50)),)),
    ]
    digests = [graph_digest(each) for each in (graph, *changed)]
    assert len(set(digests)) == len(digests)
    assert graph_digest(nets.residual()) == digests[0]
    assert view_of(graph).options_digest != view_of(graph, meta=Meta("kqgen 1.2.3", "--weights int8")).options_digest


def test_an_arena_has_room_for_the_input_even_where_no_layer_uses_it() -> None:
    graph = nets.single()
    plan = memory.plan(graph, nets.spread_plan(graph, {}).steps)
    view = view_of(graph, plan)
    assert (view.arena_bytes, view.uses_arena, view.buffers[0].offset) == (24, False, "0")


def test_inputs_have_an_offset_in_the_arena_and_outputs_none() -> None:
    graph = nets.two_ports()
    plan = nets.make_plan(graph)
    view = view_of(graph, plan)
    assert [buffer.offset for buffer in view.buffers] == [*(str(plan.place(each.name).offset) for each in graph.inputs), "", ""]
    assert len({buffer.offset for buffer in view.buffers[:2]}) == 2


def test_a_layer_that_adds_is_told_as_one() -> None:
    net = nets.Builder("net", seed=4)
    net.input("x", 6, 6, 3)
    net.conv("stem", 4, (3, 3), padding=(1, 1, 1, 1))
    net.conv("first", 4, (3, 3), padding=(1, 1, 1, 1))
    net.conv("second", 4, (3, 3), padding=(1, 1, 1, 1), lo=-90)
    net.add("total", "second", "stem", lo=-30)
    net.conv("last", 2, (1, 1))
    graph = fuse(net.graph())
    plan = nets.make_plan(graph)
    step = step_of(view_of(graph, plan), "total")
    assert step.addend is not None
    assert isinstance(step.params, Conv2dParams)
    assert (step.params.requant.sum, step.params.requant.lo, step.addend.lo) == ("&net_total_addend", -90, -30)
    assert (step.addend.multiplier_a, step.addend.multiplier_b) == (9000, 12345)
    call = " ".join(line.strip() for line in step.call)
    place = f"mem + {plan.place('stem').offset}"
    assert call.startswith(f"{plan.steps[2].function}(&net_total, mem + {plan.place('first').offset}, {place}, ")
    assert step.title == ("/* 2  total: conv 3x3, 4 -> 4, + stem. PyTorch: second, forward(), relu */",)
    assert "6x6x4 -> 6x6x4 over stem, 8-bit, " in " ".join(step.comment)


def test_a_maximum_has_no_requantisation() -> None:
    params = step_of(view_of(nets.residual()), "pool").params
    assert isinstance(params, PoolParams)
    assert (params.multiplier, params.shift, params.zero_point) == (0, 0, 0)


def test_flattened_maps_are_explained() -> None:
    graph = nets.two_ports()
    view = view_of(replace(graph, flattened=frozenset({"tail"})))
    assert any("PyTorch flattens output_tail" in line for line in view.layout)
    assert not any("PyTorch flattens" in line for line in view_of(graph).layout)
