"""Additions done by convolutions in graphs from files: those that no compiled network has are refused, by layer and field."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import nets
import pytest

from kqgen import fixed, graph_check
from kqgen.errors import InputError
from kqgen.intgraph import Addend, IntConv2d, IntGraph


def adding(graph: IntGraph, layer: str) -> tuple[IntConv2d, Addend]:
    node = next(node for node in graph.nodes if node.name == layer)
    assert isinstance(node, IntConv2d)
    assert node.addend is not None
    return node, node.addend


def changed(layer: str, node_fields: dict[str, Any], addend_fields: dict[str, Any]) -> IntGraph:
    """The network with another addition in one layer."""
    graph = nets.fused()
    node, addend = adding(graph, layer)
    wrong = replace(node, **{"addend": replace(addend, **addend_fields), **node_fields})
    return replace(graph, nodes=tuple(wrong if each is node else each for each in graph.nodes))


RESULT = adding(nets.fused(), "b2_add")[1].result


def test_the_sound_network_passes() -> None:
    graph_check.check(nets.fused())


@pytest.mark.parametrize(
    ("node_fields", "addend_fields", "field"),
    [
        ({"inputs": ("b2_conv1",)}, {}, "inputs"),
        ({"inputs": ("b2_conv1", "b2_skip", "b2_skip")}, {}, "inputs"),
        ({"inputs": ("b2_conv1", "nowhere")}, {}, "inputs"),
        ({"addend": None}, {}, "inputs"),
        ({"inputs": ("b2_conv1", "b1_add")}, {}, "addend"),
        ({"inputs": ("b2_conv1", "b2_conv1")}, {}, "addend"),
        ({}, {"result": replace(RESULT, c=RESULT.c - 1)}, "addend"),
        ({}, {"result": replace(RESULT, scale=0.0)}, "scale"),
        ({}, {"result": replace(RESULT, zero_point=-129)}, "zero_point"),
        ({}, {"lo": 5, "hi": 4}, "clamp"),
        ({}, {"shift": 0}, "multipliers"),
        ({}, {"shift": fixed.ADD_SHIFT_MAX + 1}, "multipliers"),
        ({}, {"multiplier_a": 0}, "multipliers"),
        ({}, {"multiplier_b": 2**31 - 1}, "multipliers"),
        ({}, {"bias": 2**31 - 1}, "multipliers"),
    ],
)
def test_an_addition_that_does_not_fit_is_refused(node_fields: dict[str, Any], addend_fields: dict[str, Any], field: str) -> None:
    with pytest.raises(InputError, match=f"^layer b2_add: {field} "):
        graph_check.check(changed("b2_add", node_fields, addend_fields))


def test_what_others_need_is_not_overwritten() -> None:
    graph = nets.fused()
    with pytest.raises(InputError, match=r"^layer b1_add: addend "):
        graph_check.check(replace(graph, outputs=("stem", "fc")))
    with pytest.raises(InputError, match=r"^layer b2_add: addend "):
        graph_check.check(replace(graph, outputs=("b2_add", "fc")))
    last = replace(graph.nodes[-1], name="again", output=replace(graph.nodes[-1].output, name="again"))
    graph_check.check(replace(graph, nodes=(*graph.nodes, last)))
    reader = replace(graph.nodes[1], name="again", output=replace(graph.nodes[1].output, name="again"))
    with pytest.raises(InputError, match=r"^layer b1_add: addend "):
        graph_check.check(replace(graph, nodes=(*graph.nodes, reader)))
    _, addend = adding(graph, "b1_add")
    given = replace(graph, inputs=(*graph.inputs, replace(graph.tensor("stem"), name="given")))
    node, _ = adding(given, "b1_add")
    wrong = replace(node, inputs=(node.inputs[0], "given"), addend=addend)
    with pytest.raises(InputError, match=r"^layer b1_add: addend "):
        graph_check.check(replace(given, nodes=tuple(wrong if each is node else each for each in given.nodes)))


def test_a_result_inside_has_a_name_of_its_own() -> None:
    for taken in ("b2_skip", "mean", "x"):
        with pytest.raises(InputError, match=r"^the network: name cannot be"):
            graph_check.check(changed("b2_add", {}, {"result": replace(RESULT, name=taken)}))
    with pytest.raises(InputError, match=r"^layer b2_add: name cannot be"):
        graph_check.check(changed("b2_add", {}, {"result": replace(RESULT, name="b1_conv2")}))
