"""Small networks for tests of Kernel Quantization, their calibration images, and the error of a quantised one."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch

from kqgen import ir
from kqgen.calibrate import Ranges, calibrate
from kqgen.floatexec import evaluate
from kqgen.intgraph import KqWeights
from kqgen.options import Compression
from kqgen.post_training import LayerWeights, Quantised, fake_quantise, quantise
from kqgen.samples import Samples


def conv(
    name: str, source: str, shape: ir.Shape, weight: np.ndarray, *, path: str | None = None, bias: np.ndarray | None = None, **more: Any
) -> ir.Conv2d:
    """A padded convolution with ReLU; paths are dotted, names are not."""
    k_h, k_w = weight.shape[2:]
    options = {"padding": ((k_h - 1) // 2, k_h // 2, (k_w - 1) // 2, k_w // 2), "lo": 0.0, **more}
    values = np.zeros(len(weight)) if bias is None else bias
    return ir.Conv2d(
        name, f"net.{name}" if path is None else path, (source,), shape, ir.frozen_array(weight), ir.frozen_array(values), **options
    )


def weights(rng: np.random.Generator, c_out: int, c_in: int, k_h: int, k_w: int) -> np.ndarray:
    """He-scaled random weights."""
    out: np.ndarray = rng.normal(size=(c_out, c_in, k_h, k_w)) * np.sqrt(2 / (c_in * k_h * k_w))
    return out


def chain(*shapes: tuple[int, int, int], channels: int = 3, side: int = 8, seed: int = 0) -> ir.Graph:
    """Input, convolutions of (c_out, k_h, k_w) one after the other, mean over the map, a fully connected layer of 4."""
    rng = np.random.default_rng(seed)
    nodes: list[ir.Node] = [ir.Input("x", "", (), (channels, side, side))]
    for number, (c_out, k_h, k_w) in enumerate(shapes):
        weight = weights(rng, c_out, nodes[-1].shape[0], k_h, k_w)
        nodes.append(conv(f"c{number}", nodes[-1].name, (c_out, side, side), weight, bias=rng.normal(size=c_out) * 0.1))
    width = nodes[-1].shape[0]
    nodes.append(ir.AvgPool("mean", "", (nodes[-1].name,), (width, 1, 1), (side, side), (side, side)))
    nodes.append(conv("fc", "mean", (4, 1, 1), weights(rng, 4, width, 1, 1), lo=-np.inf, dense=True))
    return ir.Graph("net", tuple(nodes), ("fc",))


def calibrated(graph: ir.Graph, count: int = 24, seed: int = 1) -> tuple[Samples, Ranges]:
    """Smooth random images, so that neighbours correlate as they do in pictures, and the ranges they give."""
    rng = np.random.default_rng(seed)
    arrays = []
    for node in graph.inputs:
        c, h, w = node.shape
        coarse = torch.from_numpy(rng.normal(size=(count, c, -(-h // 2), -(-w // 2))).astype(np.float32))
        fine = torch.nn.functional.interpolate(coarse, (h, w), mode="bilinear") + 0.3 * torch.from_numpy(
            rng.normal(size=(count, c, h, w)).astype(np.float32)
        )
        arrays.append(ir.frozen_array(fine.numpy()))
    samples = Samples(tuple(node.name for node in graph.inputs), tuple(arrays))
    return samples, calibrate(graph, samples)


def changed(graph: ir.Graph, name: str, **fields: Any) -> ir.Graph:
    """The graph with fields of one node replaced; arrays are frozen."""
    values: dict[str, Any] = {key: ir.frozen_array(value) if isinstance(value, np.ndarray) else value for key, value in fields.items()}
    return replace(graph, nodes=tuple(replace(node, **values) if node.name == name else node for node in graph))


def quantised(graph: ir.Graph, compression: Compression) -> Quantised:
    samples, ranges = calibrated(graph)
    return quantise(graph, compression, samples, ranges)


def integers(result: Quantised, name: str) -> np.ndarray:
    return result.layer(name).integers({codebook.name: codebook for codebook in result.codebooks})


def indexed(layer: LayerWeights) -> KqWeights:
    assert isinstance(layer.weights, KqWeights)
    return layer.weights


def output_error(graph: ir.Graph, result: Quantised, samples: Samples, ranges: Ranges) -> float:
    """Squared error of the quantised network's outputs over the float network's variance, on given images."""
    nodes = [
        replace(node, weight=result.real_weights(node.name), bias=result.layer(node.name).bias) if isinstance(node, ir.Conv2d) else node
        for node in graph
    ]
    outputs = []
    for version, coded in ((graph.nodes, False), (tuple(nodes), True)):
        live: dict[str, torch.Tensor] = {}
        images = next(samples.batches(samples.count))
        for node in version:
            value = images[node.name] if isinstance(node, ir.Input) else evaluate(node, [live[name] for name in node.inputs])
            live[node.name] = fake_quantise(value, ranges[node.name]) if coded else value
        outputs.append(live[graph.outputs[0]].double())
    wanted, found = outputs
    return float((wanted - found).square().sum() / (wanted - wanted.mean(0)).square().sum())


def weight_of(graph: ir.Graph, name: str) -> ir.Float32:
    node = graph.node(name)
    assert isinstance(node, ir.Conv2d)
    return node.weight
