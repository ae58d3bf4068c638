"""Reconstruction: all layers refined together, so that the quantised network gives the float network's maps and outputs.

After the layers have been fitted one by one, the whole network is run on the calibration images with its int8 maps and 6-bit
codewords simulated, and its squared distance from the float network, at the outputs and at every sum of two branches, is lowered by
gradients (Adam) over codewords, uniform weights, scales and biases. No labels are used.

A part of the images is held out. Of the networks met on the way, the one that came in among them, the nearest to the float network
on these images is taken: few images cannot lead away from what was there. The idea is BRECQ's (Li et al., 2021), over the network
as one block.

The order of images is drawn from the seed. Sums within PyTorch's convolutions depend on its number of threads, so equal bytes need
an equal number of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch

from kqgen.calibrate import Ranges
from kqgen.cluster import Codewords
from kqgen.ir import Add, Graph
from kqgen.kq_simulate import Fitted, SimulatedNet, Tensors

Progress = Callable[[str, float], None]

_BATCH = 32
_HELD_OUT = 0.125
_MOST_HELD_OUT = 256
_WARM_UP = 50
_WORD_RATE, _UNIFORM_RATE, _SCALE_RATE, _BIAS_RATE = 0.01, 3e-4, 1e-3, 1e-3
"""What one step may move at first: a codeword's value by integers, a uniform weight by parts of the largest, a scale by parts of
itself, a bias by units of 64 steps of the output."""
_INNER = 0.2
"""What the maps inside count beside the outputs: enough that few images cannot lead away from the float network."""
_CHECKS = 8
_LEAST_IMAGES = 16


@dataclass(frozen=True, slots=True, eq=False)
class Reconstructed:
    """Layers and codebooks after reconstruction.

    Attributes:
        layers: by node name.
        books: by codebook name.
        before, after: squared error on the held-out images over the float maps' variance, outputs and sums of branches together; NaN when
            there are too few images to tell, or maps that never change.
    """

    layers: Mapping[str, Fitted]
    books: Mapping[str, Codewords]
    before: float
    after: float


def reconstruct(
    graph: Graph, fitted: Mapping[str, Fitted], books: Mapping[str, Codewords], images: Tensors, ranges: Ranges, steps: int, seed: int,
    tell: Progress,
) -> Reconstructed:  # fmt: skip
    """The network after `steps` of gradient descent, or what came in where that is better or there are too few images to tell.

    Args:
        images: per input (N, c, h, w).
        tell: given a label and the fraction done, 0..1.
    """
    count = len(next(iter(images.values())))
    held = min(round(count * _HELD_OUT), _MOST_HELD_OUT)
    net = SimulatedNet(graph, fitted, books, ranges)
    judging = {name: value[count - held :] for name, value in images.items()}
    shares = _shares(graph, net, judging)
    if count < _LEAST_IMAGES or not shares:
        return Reconstructed(fitted, books, math.nan, math.nan)
    before = after = _judge(net, judging, shares)
    best = net.stored()
    groups = [
        {"params": list(net.words.values()), "lr": _WORD_RATE},
        {"params": [layer.shares for layer in net.layers.values() if layer.shares.requires_grad], "lr": _UNIFORM_RATE},
        {"params": [layer.growth for layer in net.layers.values()], "lr": _SCALE_RATE},
        {"params": [layer.shift for layer in net.layers.values()], "lr": _BIAS_RATE},
    ]
    optimiser = torch.optim.Adam([group for group in groups if group["params"]])
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: min(1.0, (step + 1) / _WARM_UP) * _cosine(step / steps))
    order = _batches(count - held, seed)
    for step in range(steps):
        tell("reconstructing", step / steps)
        chosen = next(order)
        optimiser.zero_grad()
        _distance(net, {name: value[chosen] for name, value in images.items()}, shares).backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        schedule.step()
        net.bound()
        if (step + 1) % max(1, steps // _CHECKS) == 0 or step + 1 == steps:
            now = _judge(net, judging, shares)
            if now < after:
                after, best = now, net.stored()
    return Reconstructed(*best, before, after)


def _shares(graph: Graph, net: SimulatedNet, images: Tensors) -> dict[str, float]:
    """What a unit of squared error counts, per tensor compared: outputs together 1, sums of branches less, over their variance."""
    outputs = set(graph.outputs)
    inner = [node.name for node in graph if isinstance(node, Add) and node.name not in outputs]
    parts = {name: 1 / len(outputs) for name in outputs} | {name: _INNER / len(inner) for name in inner}
    real = net.float_maps(images, parts)
    variance = {name: float((value - value.mean(0)).square().mean()) for name, value in real.items()}
    return {name: part / variance[name] for name, part in sorted(parts.items()) if variance[name] > 0}


def _distance(net: SimulatedNet, images: Tensors, shares: Mapping[str, float]) -> torch.Tensor:
    wanted, found = net.float_maps(images, shares), net.maps(images, shares)
    return torch.stack([share * (wanted[name] - found[name]).square().mean() for name, share in shares.items()]).sum()


def _judge(net: SimulatedNet, images: Tensors, shares: Mapping[str, float]) -> float:
    count = len(next(iter(images.values())))
    with torch.no_grad():
        parts = [
            (min(_BATCH, count - start), _distance(net, {name: value[start : start + _BATCH] for name, value in images.items()}, shares))
            for start in range(0, count, _BATCH)
        ]
    return sum(size * float(part) for size, part in parts) / count


def _batches(count: int, seed: int) -> Iterator[torch.Tensor]:
    """Image numbers below `count`, each as often as any other, in an order drawn anew for every round."""
    rng = np.random.default_rng([seed % 2**64, count])
    queue = np.zeros(0, np.int64)
    while True:
        while len(queue) < _BATCH:
            queue = np.concatenate([queue, rng.permutation(count)])
        yield torch.from_numpy(queue[:_BATCH].copy())
        queue = queue[_BATCH:]


def _cosine(fraction: float) -> float:
    return 0.5 * (1 + math.cos(math.pi * fraction))
