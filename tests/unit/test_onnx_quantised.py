"""A network in the QDQ format: the integers keep every scale it gives, and compute what its fake quantisation computes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnxmodels import model, node, save, weights

import kqgen
from kqgen import oracle

GIVEN = {
    "x": (0.03, 120), "a": (0.02, 0), "b": (0.05, 130), "s": (0.06, 125), "h": (0.03, 10), "j": (0.03, 10), "m": (0.03, 10),
    "p": (0.02, 5), "g": (0.05, 128), "y": (1 / 256, 0),
}  # fmt: skip
"""Tensor to scale and uint8 zero point."""

LAYERS = {
    "a_Conv": "a", "b_Conv": "b", "add": "s", "act": "h", "join": "j", "max": "m", "mean": "p", "head": "g", "soft": "y",
}  # fmt: skip
"""Node of the integer graph to the tensor that it makes."""


def pair(name: str, tensor: str) -> list[onnx.NodeProto]:
    """QuantizeLinear of `tensor` and DequantizeLinear into `name`d, with the scale of `name`."""
    operands = f"{name}scale {name}zero"
    return [
        node("QuantizeLinear", f"{tensor} {operands}", f"{name}q", f"{name}/Q"), node("DequantizeLinear", f"{name}q {operands}", f"{name}d")
    ]  # fmt: skip


def network() -> onnx.ModelProto:
    """Convolutions, an addition, a table, a concatenation, pools, a head and a softmax, each between given quantisations."""
    rng = np.random.default_rng(0)
    constants: dict[str, np.ndarray] = {}
    for name, (scale, zero) in GIVEN.items():
        constants |= {f"{name}scale": np.array(scale, np.float32), f"{name}zero": np.array(zero, np.uint8)}
    weighted = []
    for name, shape in (("wa", (8, 3, 3, 3)), ("wb", (8, 1, 3, 3)), ("wg", (5, 16))):
        constants[f"{name}q"] = rng.integers(-127, 128, shape).astype(np.int8)
        constants[f"{name}s"] = (rng.random(shape[0]) * 0.004 + 0.001).astype(np.float32)
        weighted.append(node("DequantizeLinear", f"{name}q {name}s", name, axis=0))
    nodes = [
        *pair("x", "x"), *weighted,
        node("Conv", "xd wa", "a0", "a/Conv", pads=[1, 1, 1, 1], strides=[2, 2]), node("Relu", "a0", "a", "relu"),
        *pair("a", "a"), node("Conv", "ad wb", "b", "b/Conv", pads=[1, 1, 1, 1], group=8), *pair("b", "b"),
        node("Add", "bd ad", "s", "add"), *pair("s", "s"), node("HardSwish", "sd", "h", "act"), *pair("h", "h"),
        node("Concat", "hd ad", "j", "join", axis=1), *pair("j", "j"),
        node("MaxPool", "jd", "m", "max", kernel_shape=[2, 2], strides=[2, 2]),
        *pair("m", "m"), node("GlobalAveragePool", "md", "p", "mean"), *pair("p", "p"), node("Flatten", "pd", "f", "flat"),
        node("Gemm", "f wg", "g", "head", transB=1), *pair("g", "g"), node("Softmax", "gd", "y", "soft"), *pair("y", "y"),
    ]  # fmt: skip
    return model(nodes, {"x": ("N", 3, 8, 8)}, ["yd"], constants, 13)


@pytest.fixture(scope="module")
def module(tmp_path_factory: pytest.TempPathFactory) -> torch.fx.GraphModule:
    loaded, _ = kqgen.load_onnx(save(network(), tmp_path_factory.mktemp("onnx") / "net.onnx"))
    assert isinstance(loaded, torch.fx.GraphModule)
    return loaded


class _Watched(torch.fx.Interpreter):
    """Keeps what each fake quantisation makes."""

    def __init__(self, module: torch.fx.GraphModule) -> None:
        super().__init__(module)
        self.seen: dict[str, np.ndarray] = {}

    def run_node(self, n: torch.fx.Node) -> torch.Tensor:
        """The node's result."""
        made: torch.Tensor = super().run_node(n)
        if str(n.target).endswith("/Q"):
            self.seen[str(n.target).removesuffix("/Q")] = made.numpy()
        return made


def test_given_scales_and_what_they_make_are_those_of_the_integers(module: torch.fx.GraphModule, tmp_path: Path) -> None:
    images = weights(9, 64, 3, 8, 8, scale=1.0)
    compiled = kqgen.compile(module, (torch.zeros(1, 3, 8, 8),), calibration=images, board="nucleo-g0b1re", weights="int8")
    graph = compiled.plan.graph
    assert [node.name for node in graph.nodes] == list(LAYERS)
    for name, given in {graph.inputs[0].name: "x", **LAYERS}.items():
        scale, zero = GIVEN[given]
        assert float(graph.tensor(name).scale) == pytest.approx(scale, rel=1e-6), name
        assert graph.tensor(name).zero_point == zero - 128, name
    watched = _Watched(module)
    with torch.no_grad():
        watched.run(torch.from_numpy(images))
    found = oracle.run(graph, {graph.inputs[0].name: oracle.quantise(graph.inputs[0], images.transpose(0, 2, 3, 1))})
    for name, given in LAYERS.items():
        scale, zero = GIVEN[given]
        made = watched.seen[given]
        codes = np.round((made.transpose(0, 2, 3, 1) if made.ndim == 4 else made) / scale) + zero - 128
        off = np.abs(codes.reshape(len(images), -1) - np.asarray(found[name], np.int64).reshape(len(images), -1))
        assert off.max() <= (8 if name == "soft" else 4), (name, off.max())
        assert off.mean() < 1, (name, off.mean())
