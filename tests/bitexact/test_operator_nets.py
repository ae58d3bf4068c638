"""Networks of lookups, products, assemblies, slices, softmax and argmax: C of this computer and of emulated cores equals the oracle."""

from __future__ import annotations

from pathlib import Path

import nets
import numpy as np
import opnets
import pytest
import torch
from conftest import require_tool
from opmodules import Gated, Joined, Ports

from kqgen import graph_check, plan_check, store
from kqgen.board import bench_board, load_board, load_core
from kqgen.calibrate import calibrate
from kqgen.emit import Meta, emit
from kqgen.emulate import run_unicorn
from kqgen.firmware import model_api
from kqgen.frontend import import_module
from kqgen.fuse import fuse
from kqgen.hostlib import build_library
from kqgen.image import build_image
from kqgen.intgraph import IntConv2d, IntGraph
from kqgen.lower import lower
from kqgen.options import Codebook, Compression
from kqgen.plan import Optimise, Planning
from kqgen.planner import make_plan
from kqgen.post_training import quantise
from kqgen.qemu import run_qemu
from kqgen.reorder import reorder
from kqgen.samples import read_samples
from kqgen.simplify import simplify
from kqgen.toolchain import find_toolchain

GRAPHS = [pytest.param(graph, id=graph.name) for graph in opnets.all_nets()]


def ready(graph: IntGraph) -> IntGraph:
    """The graph as a compiled network has it."""
    graph_check.check(graph)
    return reorder(fuse(graph))


@pytest.mark.parametrize("optimise", ["balanced", "ram"])
@pytest.mark.parametrize("graph", GRAPHS)
def test_every_layer_on_this_computer(graph: IntGraph, optimise: Optimise, tmp_path: Path) -> None:
    require_tool("cc")
    plan = make_plan(ready(graph), None, Planning(optimise))
    plan_check.check(plan)
    inputs = nets.random_inputs(plan.graph, 6)
    folder = nets.write(emit(plan, load_board("host"), nets.make_golden(plan.graph, inputs), Meta("test", "")), tmp_path)
    layers = build_library(folder, plan.graph, tap=True).run_tapped(inputs)[1]
    wanted = nets.run_reference(plan.graph, inputs)
    for node, found in zip(plan.graph.nodes, layers, strict=True):
        assert np.array_equal(wanted[node.name], found), node.name


@pytest.mark.parametrize("module", [Gated, Joined, Ports])
def test_networks_of_pytorch_on_this_computer(module: type[torch.nn.Module], tmp_path: Path) -> None:
    """From the module to C: gates and tables, joined and enlarged maps, sequences with two inputs and outputs."""
    require_tool("cc")
    torch.manual_seed(0)
    shapes = [(2, 32), (2, 32)] if module is Ports else [(3, 12, 8)]
    given = tuple(torch.randn(16, *shape) for shape in shapes)
    graph = simplify(import_module(module().eval(), tuple(each[:1] for each in given), "net"))
    samples, compression = read_samples([given], graph), Compression("kq", Codebook("layer", 32, True))
    ranges = calibrate(graph, samples)
    plan = make_plan(ready(lower(graph, ranges, quantise(graph, compression, samples, ranges), "kq")))
    plan_check.check(plan)
    inputs = nets.random_inputs(plan.graph, 4)
    folder = nets.write(emit(plan, load_board("host"), nets.make_golden(plan.graph, inputs), Meta("test", "")), tmp_path)
    layers = build_library(folder, plan.graph, tap=True).run_tapped(inputs)[1]
    wanted = nets.run_reference(plan.graph, inputs)
    for node, found in zip(plan.graph.nodes, layers, strict=True):
        assert np.array_equal(wanted[node.name], found), node.name


@pytest.mark.parametrize("core", ["m0p", "m4", "m55"])
@pytest.mark.parametrize("graph", GRAPHS)
def test_every_layer_on_emulated_cores(graph: IntGraph, core: str, tmp_path: Path) -> None:
    require_tool("gcc", "qemu" if core == "m55" else "unicorn")
    board = bench_board(load_core(core))
    plan = make_plan(ready(graph), board)
    inputs = nets.random_inputs(plan.graph, 1, seed=3)
    nets.write(emit(plan, board, nets.make_golden(plan.graph, inputs), Meta("test", "")), tmp_path / "src")
    image = build_image(tmp_path / "src", model_api(plan.graph), board, find_toolchain("gcc"), tmp_path / "build", tap=True)
    run = (run_qemu if core == "m55" else run_unicorn)(image, [b"".join(array.tobytes() for array in inputs)])
    wanted = nets.run_reference(plan.graph, inputs)
    assert run.taps is not None
    pieces = dict.fromkeys(range(len(plan.steps)), b"")
    for tap in run.taps[0]:
        pieces[tap.step] += tap.data
    for number, node in enumerate(plan.graph.nodes):
        assert pieces[number] == wanted[node.name][0].tobytes(), node.name


@pytest.mark.parametrize("graph", GRAPHS)
def test_a_stored_network_gives_the_same_c(graph: IntGraph, tmp_path: Path) -> None:
    path = tmp_path / "net.kqgen.safetensors"
    path.write_bytes(store.to_bytes(graph))
    back, _ = store.read(path)
    golden = nets.make_golden(graph, nets.random_inputs(graph, 1))
    first, second = (emit(make_plan(each), load_board("host"), golden, Meta("test", "")) for each in (graph, back))
    assert first.files == second.files


def test_the_networks_have_every_kind_of_layer() -> None:
    kinds = {type(node).__name__ for graph in opnets.all_nets() for node in graph.nodes}
    assert {"IntLookup", "IntMul", "IntAssemble", "IntSlicePad", "IntSoftmax", "IntArgMax", "IntAdd"} <= kinds


def test_differences_are_made_on_the_way() -> None:
    addends = [node.addend for node in ready(opnets.differences()).nodes if isinstance(node, IntConv2d) and node.addend is not None]
    assert [addend.swapped for addend in addends] == [False, True, False, True]
    assert all((addend.multiplier_a < 0) == addend.swapped != (addend.multiplier_b < 0) for addend in addends)


def test_tables_may_be_in_the_place_of_what_they_read() -> None:
    """Lookups and gates write over their input: two tables in a row cost no memory."""
    net = nets.Builder("chain")
    net.input("x", 8, 8, 4)
    net.conv("first", 4, (1, 1))
    opnets.lookup(net, "one")
    opnets.lookup(net, "two", by_channel=True)
    opnets.mul(net, "three", "two", "two")
    net.conv("last", 2, (1, 1))
    plan = make_plan(net.graph())
    assert len({plan.place(name) for name in ("first", "one", "two", "three")}) == 1
