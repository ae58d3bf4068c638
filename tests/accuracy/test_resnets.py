"""Real networks, real images: the C against the integer reference on all of CIFAR-10's test set, on emulated cores, with two compilers."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import resnets
from conftest import require_tool

from kqgen.board import load_board
from kqgen.deliver import quantised_inputs
from kqgen.emit import Golden, GoldenVector, Meta, emit
from kqgen.emulate import run_unicorn
from kqgen.firmware import Firmware
from kqgen.hostlib import build_library
from kqgen.image import build_image
from kqgen.intgraph import IntConv2d, KqWeights
from kqgen.options import Weights
from kqgen.plan import Form, Plan, Planning
from kqgen.planner import make_plan
from kqgen.qemu import run_qemu
from kqgen.samples import Samples
from kqgen.targets import join_inputs
from kqgen.toolchain import find_toolchain
from kqgen.verify import Tensors, reference_outputs

TEST_IMAGES = 10_000
UNICORN_IMAGES = 100
QEMU_IMAGES = 10

Compiler = Literal["gcc", "zig"]


@pytest.fixture(scope="session")
def shared_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder for all worker processes of this test run."""
    base = tmp_path_factory.getbasetemp()
    return base.parent if base.name.startswith("popen-") else base


def codes(firmware: Firmware, images: resnets.Images) -> Tensors:
    return quantised_inputs(firmware.graph, Samples((firmware.graph.inputs[0].name,), (images,)))


def accuracy(outputs: Tensors, labels: resnets.Labels) -> float:
    return float((outputs[0].reshape(len(labels), -1).argmax(axis=1) == labels).mean())


@pytest.mark.parametrize(
    ("name", "weights", "images", "at_least"),
    [("resnet8", "int8", TEST_IMAGES, 0.865), ("resnet8", "kq", TEST_IMAGES, None), ("resnet20", "int8", 1000, 0.90)],
)
def test_every_output_of_the_c_is_the_references(
    name: str, weights: Weights, images: int, at_least: float | None, shared_folder: Path
) -> None:
    """`at_least` is what an int8 network must keep of its float accuracy; KQ without training promises none."""
    require_tool("cc", "unicorn")
    firmware = resnets.compiled(shared_folder, name, weights)
    inputs = codes(firmware, resnets.network(name).images("test", 0, images))
    outputs = build_library(firmware.folder, firmware.graph).run(inputs)
    assert all(np.array_equal(a, b) for a, b in zip(reference_outputs(firmware.graph, inputs), outputs, strict=True))
    labels = resnets.cifar10("test")[1][:images]
    if at_least is not None:
        assert accuracy(outputs, labels) >= at_least


def emulated_bytes(firmware: Firmware, board: str, compiler: Compiler, images: int, emulator: str, out: Path) -> list[bytes]:
    inputs = join_inputs(codes(firmware, resnets.network("resnet8").images("test", 0, images)))
    image = build_image(firmware.folder, firmware.api, load_board(board), find_toolchain(compiler), out)
    run = run_unicorn(image, inputs) if emulator == "unicorn" else run_qemu(image, inputs)
    return list(run.outputs)


def expected_bytes(firmware: Firmware, images: int) -> list[bytes]:
    outputs = reference_outputs(firmware.graph, codes(firmware, resnets.network("resnet8").images("test", 0, images)))
    return join_inputs(outputs)


@pytest.mark.parametrize("compiler", ["gcc", "zig"])
@pytest.mark.parametrize("board", ["nucleo-g0b1re", "mps2-an385", "nucleo-f446re", "nucleo-u575zi"])
def test_emulated_boards_give_the_same_bytes(board: str, compiler: Compiler, shared_folder: Path, tmp_path: Path) -> None:
    require_tool("unicorn", compiler)
    firmware = resnets.compiled(shared_folder, "resnet8", "kq")
    found = emulated_bytes(firmware, board, compiler, UNICORN_IMAGES, "unicorn", tmp_path / "build")
    assert found == expected_bytes(firmware, UNICORN_IMAGES)


@pytest.mark.parametrize("compiler", ["gcc", "zig"])
@pytest.mark.parametrize("board", ["mps2-an385", "mps2-an386", "mps2-an500", "mps2-an521", "mps3-an547"])
def test_qemu_gives_the_same_bytes(board: str, compiler: Compiler, shared_folder: Path, tmp_path: Path) -> None:
    require_tool("qemu", compiler)
    firmware = resnets.compiled(shared_folder, "resnet8", "kq")
    found = emulated_bytes(firmware, board, compiler, QEMU_IMAGES, "qemu", tmp_path / "build")
    assert found == expected_bytes(firmware, QEMU_IMAGES)


def test_both_lookup_forms_give_the_same_bytes_on_every_layer(shared_folder: Path, tmp_path: Path) -> None:
    require_tool("cc")
    firmware = resnets.compiled(shared_folder, "resnet8", "kq")
    indexed = [node.name for node in firmware.graph.nodes if isinstance(node, IntConv2d) and isinstance(node.weights, KqWeights)]
    assert len(indexed) == 6
    inputs = codes(firmware, resnets.network("resnet8").images("test", 0, 8))
    layers = []
    forms: tuple[Form, Form] = ("decode", "reuse")
    for form in forms:
        plan = make_plan(firmware.graph, firmware.board, Planning(forms=tuple((name, form) for name in indexed)))
        folder = tmp_path / form
        rewrite_sources(firmware, folder, emit_again(firmware, plan))
        layers.append(build_library(folder, firmware.graph, tap=True).run_tapped(inputs)[1])
    for node, a, b in zip(firmware.graph.nodes, *layers, strict=True):
        assert np.array_equal(a, b), node.name


def emit_again(firmware: Firmware, plan: Plan) -> dict[str, str]:
    """The folder's C for another plan of the same graph; its golden vectors are of no matter here."""
    tensors = [np.zeros((tensor.h, tensor.w, tensor.c), np.int8).tobytes() for tensor in plan.graph.inputs]
    outputs = [bytes(plan.graph.tensor(name).size_bytes) for name in plan.graph.outputs]
    vector = GoldenVector(tuple(tensors), tuple(outputs), (0,) * len(plan.steps))
    tree = emit(plan, firmware.board, Golden((vector,)), Meta("test", "test"))
    return dict(tree.files)


def rewrite_sources(firmware: Firmware, folder: Path, files: dict[str, str]) -> None:
    assert f"{firmware.graph.name}.c" in files
    for path, text in files.items():
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text, encoding="utf-8")
