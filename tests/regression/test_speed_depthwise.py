"""Depthwise layers: the plan's expectations hold within 10 %, and 3x3 ones take at most half of what CMSIS-NN takes."""

from __future__ import annotations

from pathlib import Path

import nets
import pytest
from conftest import require_that, require_tool

from kqgen import bench, planner
from kqgen.board import bench_board, load_core
from kqgen.emit import Meta, emit
from kqgen.firmware import model_api
from kqgen.image import build_image
from kqgen.intgraph import IntGraph
from kqgen.plan import Planning
from kqgen.toolchain import find_toolchain

COMPILER = "arm-none-eabi-gcc 12.2.1"
EXPECTED_WITHIN = 0.10
CMSIS_NN = {"m0p": (3_750_531, 4_805_355), "m4": (720_109, 932_077), "m33": (649_320, 826_845), "m7": (453_990, 575_051)}
"""Modelled cycles of the layers `spotter` and `eyes` by that library, counted as peer_cmsis_nn.csv says."""


def layers() -> IntGraph:
    """A layer of a keyword spotter, one of a network of 96x96 pixels with stride 2, and two that take the general loops."""
    net = nets.Builder("layers", seed=11)
    net.codebook("book", 40, (3, 3), True)
    net.codebook("large", 20, (5, 5), True)
    for name, h, w, c in (("a", 25, 5, 64), ("b", 48, 48, 16), ("c", 12, 12, 32), ("d", 14, 14, 16)):
        net.input(name, h, w, c)
    net.conv("spotter", 64, (3, 3), padding=(1, 1, 1, 1), depthwise=True, source="a")
    net.conv("eyes", 16, (3, 3), stride=(2, 2), padding=(0, 1, 0, 1), depthwise=True, source="b")
    net.conv("indexed", 32, (3, 3), padding=(1, 1, 1, 1), depthwise=True, codebook="book", source="c")
    net.conv("wide", 16, (5, 5), padding=(2, 2, 2, 2), depthwise=True, codebook="large", source="d")
    return net.graph(["spotter", "eyes", "indexed", "wide"])


@pytest.mark.parametrize("core", ["m0p", "m4", "m33", "m7", "m55"])
def test_depthwise_layers_are_as_fast_as_expected(core: str, tmp_path: Path) -> None:
    require_tool("gcc", "qemu" if core == "m55" else "unicorn")
    title = find_toolchain("gcc").title
    require_that(title == COMPILER, f"the figures are those of {COMPILER}, this is {title}")
    graph, board = layers(), bench_board(load_core(core))
    plan = planner.make_plan(graph, board, Planning(optimise="speed"))
    inputs = nets.random_inputs(graph, 1)
    nets.write(emit(plan, board, nets.make_golden(graph, inputs), Meta("test", "")), tmp_path / "src")
    image = build_image(tmp_path / "src", model_api(graph), board, find_toolchain("gcc"), tmp_path / "build")
    counted = bench.bench(plan, image, b"".join(each.tobytes() for each in inputs), None)
    for layer in counted.layers:
        assert layer.cycles_expected is not None
        assert abs(layer.cycles_expected / layer.cycles_modelled - 1) <= EXPECTED_WITHIN, f"{layer.name}: {layer.cycles_expected}"
    for layer, peer in zip(counted.layers, CMSIS_NN.get(core, ()), strict=False):
        assert layer.cycles_modelled <= peer / 2, layer.name
