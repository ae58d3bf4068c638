"""Layers without weights, depthwise and dilated ones in graphs from files: what no compiled network has is refused by layer and field."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import nets
import numpy as np
import opnets
import pytest

from kqgen import graph_check
from kqgen.errors import InputError
from kqgen.intgraph import IntAssemble, IntGraph, IntNode, IntSoftmax, frozen

SQUEEZE, UNET = opnets.squeeze_excite(), opnets.unet()
JOIN = next(node for node in UNET.nodes if node.name == "skip")
assert isinstance(JOIN, IntAssemble)
FIRST = JOIN.parts[0]


def changed(graph: IntGraph, layer: str, fields: dict[str, Any]) -> IntGraph:
    """The network with other fields in one layer; those named `output.*` are its output's."""
    node = next(node for node in graph.nodes if node.name == layer)
    sizes = {name.removeprefix("output."): value for name, value in fields.items() if name.startswith("output.")}
    own = {name: value for name, value in fields.items() if not name.startswith("output.")}
    wrong = replace(node, **{"output": replace(node.output, **sizes), **own})
    return replace(graph, nodes=tuple(wrong if each is node else each for each in graph.nodes))


def test_sound_networks_pass() -> None:
    for graph in opnets.all_nets():
        graph_check.check(graph)


@pytest.mark.parametrize(
    ("layer", "fields", "field"),
    [
        ("swish", {"inputs": ("stem", "stem")}, "inputs"),
        ("swish", {"output.c": 9}, "output"),
        ("swish", {"lo": -127}, "clamp"),
        ("swish", {"table": frozen(np.zeros((1, 255)), np.int8)}, "table"),
        ("swish", {"table": frozen(np.zeros((2, 256)), np.int8)}, "table"),
        ("swish", {"table": frozen(np.zeros((1, 256)), np.int16)}, "table"),
        ("swish", {"table": frozen(0, np.int8)}, "table"),
        ("gated", {"inputs": ("swish",)}, "inputs"),
        ("gated", {"inputs": ("swish", "pool", "pool")}, "inputs"),
        ("gated", {"broadcast": False}, "output"),
        ("gated", {"zero_point_b": 128}, "zero_point"),
        ("gated", {"zero_point_a": -129}, "zero_point"),
        ("gated", {"shift": 0}, "requant"),
        ("gated", {"shift": 23}, "requant"),
        ("gated", {"multiplier": 2**15}, "requant"),
        ("gated", {"acc_shift": 16}, "requant"),
        ("square", {"broadcast": True}, "output"),
        ("less", {"multiplier_b": 0}, "multipliers"),
        ("less", {"multiplier_a": -5}, "multipliers"),
        ("pool", {"kernel": (0, 7)}, "window"),
        ("pool", {"kernel": (10, 7)}, "output"),
        ("pool", {"padding": (256, 0, 0, 0)}, "window"),
        ("pool", {"pad_value": 200}, "pad_value"),
        ("pool", {"bias": 2**31}, "bias"),
        ("probabilities", {"output.scale": 0.5}, "output"),
        ("probabilities", {"output.zero_point": 0}, "output"),
        ("probabilities", {"exponentials": frozen([], np.int32)}, "exponentials"),
        ("probabilities", {"exponentials": frozen(np.full(257, 2**31 - 1), np.int32)}, "exponentials"),
        ("probabilities", {"exponentials": frozen([2**31 - 2], np.int32)}, "exponentials"),
        ("probabilities", {"exponentials": frozen([2**31 - 1, -1], np.int32)}, "exponentials"),
        ("probabilities", {"exponentials": frozen([2**31 - 1, 3, 4], np.int32)}, "exponentials"),
        ("probabilities", {"exponentials": frozen([2**31 - 1], np.int64)}, "exponentials"),
    ],
)
def test_what_does_not_fit_is_refused(layer: str, fields: dict[str, Any], field: str) -> None:
    with pytest.raises(InputError, match=f"^layer {layer}: {field} "):
        graph_check.check(changed(SQUEEZE, layer, fields))


@pytest.mark.parametrize(
    ("layer", "fields", "field"),
    [
        ("skip", {"inputs": ("up", "enc", "nowhere")}, "inputs"),
        ("skip", {"inputs": ("up", "enc", "extra", "extra")}, "parts"),
        ("skip", {"parts": ()}, "parts"),
        ("skip", {"parts": JOIN.parts[:2]}, "parts"),
        ("skip", {"parts": JOIN.parts * 100}, "parts"),
        ("skip", {"fill": 128}, "fill"),
        ("skip", {"parts": (replace(FIRST, source=3), *JOIN.parts)}, "source"),
        ("skip", {"parts": (replace(FIRST, source=-1), *JOIN.parts)}, "source"),
        ("skip", {"parts": (replace(FIRST, start=(0, 0, 9)), *JOIN.parts)}, "start"),
        ("skip", {"parts": (replace(FIRST, start=(0, -1, 0)), *JOIN.parts)}, "start"),
        ("skip", {"parts": (replace(FIRST, step=(0, 1)), *JOIN.parts)}, "start"),
        ("skip", {"parts": (replace(FIRST, step=(2, 1)), *JOIN.parts)}, "start"),
        ("skip", {"parts": (replace(FIRST, shift=21), *JOIN.parts)}, "multipliers"),
        ("skip", {"parts": (replace(FIRST, multiplier=2**31 - 1, shift=3), *JOIN.parts)}, "multipliers"),
        ("skip", {"parts": (replace(FIRST, multiplier=2), *JOIN.parts)}, "multipliers"),
        ("skip", {"parts": (replace(FIRST, multiplier=-1, shift=2), *JOIN.parts)}, "multipliers"),
        ("skip", {"hi": 100}, "clamp"),
        ("sparse", {"fill": None}, "parts"),
        ("part", {"c_before": -2}, "c_after"),
        ("part", {"start": (-40000, 0)}, "start"),
        ("part", {"step": (0, 1)}, "step"),
        ("part", {"step": (256, 1)}, "step"),
        ("part", {"c_before": -40000, "c_after": 39998}, "c_before"),
        ("part", {"pad_value": -129}, "pad_value"),
        ("best", {"output.c": 2}, "output"),
        ("best", {"output.scale": 2.0}, "output"),
        ("best", {"inputs": ()}, "inputs"),
    ],
)
def test_what_does_not_fit_in_an_assembly_is_refused(layer: str, fields: dict[str, Any], field: str) -> None:
    with pytest.raises(InputError, match=f"^layer {layer}: {field} "):
        graph_check.check(changed(UNET, layer, fields))


def test_a_map_too_large_to_look_into_is_refused_before_anyone_looks() -> None:
    with pytest.raises(InputError, match=r"^layer skip: output "):
        graph_check.check(changed(UNET, "skip", {"output.h": 65535, "output.w": 65535}))
    with pytest.raises(InputError, match=r"^layer skip: output "):
        graph_check.check(changed(UNET, "skip", {"output.h": 60000, "output.w": 2000}))


def test_a_kind_of_layer_that_is_none_is_refused() -> None:
    node = UNET.nodes[-1]
    bare = IntNode(node.name, "", (), node.inputs, node.output, -128, 127)
    with pytest.raises(InputError, match=r"^layer best: type "):
        graph_check.check(replace(UNET, nodes=(*UNET.nodes[:-1], bare)))


def test_a_softmax_has_no_more_channels_than_its_sum_has_bits_for() -> None:
    net = nets.Builder("wide")
    net.input("x", 1, 1, 4096)
    opnets.softmax(net, "probabilities")
    assert isinstance(net.nodes[0], IntSoftmax)
    with pytest.raises(InputError, match=r"^layer probabilities: output "):
        graph_check.check(net.graph())


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"depthwise": False}, "weights"),
        ({"dilation": (0, 1)}, "window"),
        ({"dilation": (2, 1)}, "output"),
        ({"in_shape": (6, 10, 2)}, "in_shape"),
        ({"output.c": 7}, "depthwise"),
    ],
)
def test_depthwise_layers_that_do_not_fit_are_refused(fields: dict[str, Any], field: str) -> None:
    net = nets.Builder("depthwise")
    net.input("x", 6, 5, 4)
    net.conv("dw", 8, (3, 3), padding=(1, 1, 1, 1), depthwise=True)
    graph_check.check(net.graph())
    with pytest.raises(InputError, match=f"^layer dw: {field} "):
        graph_check.check(changed(net.graph(), "dw", fields))
