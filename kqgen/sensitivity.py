"""How much a network's outputs suffer from an error in one layer, measured on calibration images.

Two figures a layer. `moments`: the covariance of the values that meet a kernel, one d x d block an input channel (a run of input
channels where a layer is cut into runs; an output channel's own input in a depthwise layer); errors of different kernels being next to
uncorrelated, the expected error at the layer's output is the sum of what each kernel costs under its block. `importance`: the change of
the network's outputs, relative to their variance, over the change of this layer's output, relative to its variance, when noise as large
as a coarse codebook's is added to this layer's weights alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch

from kqgen.calibrate import Ranges
from kqgen.floatexec import conv_input, evaluate
from kqgen.ir import Conv2d, Graph, Input, Node, frozen_array
from kqgen.kq_moments import windows_of
from kqgen.kq_runs import cut, lengths
from kqgen.post_training import fake_quantise
from kqgen.samples import Samples

Float64 = npt.NDArray[np.float64]
Progress = Callable[[str, float], None]

_NOISE = 0.3
"""Standard deviation of the noise in units of the channel's weights; codebooks of 1 to 2 bits a weight err by 0.2 to 0.5."""
_IMAGES = 64
_MAP_BYTES = 1 << 26
_WORK = 6e10
"""Multiply-accumulates spent on the importances of a network, at most; fewer images serve larger networks."""
_LEAST_IMAGES = 16
_PATCH_VALUES = 1 << 22
_DAMPING = 0.01
_GAIN_CHANNELS = 64


@dataclass(frozen=True, slots=True, eq=False)
class Sensitivity:
    """What is known of one layer.

    Attributes:
        moments: (c_in, d, d) float64, positive definite; of a depthwise layer (c_out, d, d).
        importance: > 0; 1 means that losing a share of the layer's output power loses the same share of the network's.
        gain: 0..1, the part of the error that is left when each kernel's error is handed on to those not yet decided (kqgen.kq_fit).
        cuts: (run length, the same of the layer cut into such runs) where it can be.
    """

    moments: Float64
    importance: float
    gain: float = 1.0
    cuts: tuple[tuple[int, Sensitivity], ...] = ()

    def of(self, node: Conv2d) -> Sensitivity:
        """What is known of the layer as `node` has it, cut into runs or not."""
        return dict(self.cuts).get(node.run, self)


def plain(node: Conv2d) -> Sensitivity:
    """Without images: every weight counts the same, and every layer."""
    blocks, d = node.weight.shape[0 if node.depthwise else 1], node.kernel[0] * node.kernel[1]
    cuts = tuple((run, plain(cut(node, run))) for run in lengths(node))
    return Sensitivity(np.tile(np.eye(d), (blocks, 1, 1)), 1.0, cuts=cuts)


def measure(graph: Graph, samples: Samples, ranges: Ranges | None, seed: int, progress: Progress) -> dict[str, Sensitivity]:
    """The sensitivity of every Conv2d of a simplified graph, by node name.

    Args:
        ranges: of every tensor, whose int8 codes the layers then see; None leaves the maps in float.
        seed: of the noise.
    """
    images = _images(graph, samples)
    maps = _forward(graph.nodes, images, ranges)
    layers = [node for node in graph if isinstance(node, Conv2d)]
    out: dict[str, Sensitivity] = {}
    for number, node in enumerate(layers):
        progress(f"weighing {node.path or node.name}", number / len(layers))
        rng = np.random.default_rng([seed % 2**64, *node.name.encode()])
        importance = _importance(graph, node, maps, ranges, rng)
        x = maps[node.inputs[0]]
        cuts = tuple((run, _known(cut(node, run), x, importance)) for run in lengths(node))
        out[node.name] = replace(_known(node, x, importance), cuts=cuts)
    return out


def _known(node: Conv2d, x: torch.Tensor, importance: float) -> Sensitivity:
    patches = _patches(node, x)
    if not node.depthwise:
        return Sensitivity(_moments(patches), importance, _gain(patches))
    # Kernels of a depthwise layer do not meet in any output: no error can be handed on.
    each = len(node.weight) // len(patches)
    return Sensitivity(np.repeat(_moments(patches), each, axis=0), importance)


def _patches(node: Conv2d, x: torch.Tensor) -> torch.Tensor:
    """What lies under each input channel's kernel, means taken out, (c_in, n, d) float64; n evenly spaced places of x (N, c, h, w)."""
    offset = 0.0 if node.input_offset is None else torch.from_numpy(node.input_offset.copy())[:, None, None]
    windows = windows_of(node, conv_input(node, x - offset))
    c_in, rows, columns = windows.shape[1], windows.shape[2], windows.shape[3]
    d = node.kernel[0] * node.kernel[1]
    places = len(x) * rows * columns
    # An odd distance visits all columns and rows of maps with even sides.
    taken = torch.arange(0, places, max(1, places * c_in * d // _PATCH_VALUES) | 1)
    image, place = taken // (rows * columns), taken % (rows * columns)
    patches = windows[image, :, place // columns, place % columns].reshape(len(taken), c_in, d).permute(1, 0, 2).double()
    return patches - patches.mean(1, keepdim=True)


def _moments(patches: torch.Tensor) -> Float64:
    """Covariance of the values under each input channel's kernel, (c_in, d, d), with a small ridge."""
    d = patches.shape[2]
    second: Float64 = (patches.transpose(1, 2) @ patches / patches.shape[1]).numpy()
    mean = float(np.trace(second, axis1=1, axis2=2).mean()) / d
    return second + (_DAMPING * mean if mean > 0 else 1.0) * np.eye(d)


def _gain(patches: torch.Tensor) -> float:
    """What is left of the variance under a kernel, once the values under all weaker inputs' kernels are known.

    An error handed on costs no more than the part of its input that the inputs still open cannot make. Among many input channels
    evenly spaced ones stand for all.
    """
    some = patches[:: -(-len(patches) // _GAIN_CHANNELS)]
    channels, count, d = some.shape
    strongest = torch.argsort(-some.square().sum((1, 2)), stable=True)
    flat = some[strongest].permute(1, 0, 2).reshape(count, channels * d)
    second = (flat.T @ flat / count).numpy()
    mean = float(np.trace(second)) / len(second)
    if mean <= 0:
        return 1.0
    second = second + max(_DAMPING, len(second) / count) * mean * np.eye(len(second))
    # Rows from the last input to the first: each diagonal entry is what the later ones leave open.
    lower = np.linalg.cholesky(second[::-1, ::-1])[::-1, ::-1]
    blocks = [lower[start : start + d, start : start + d] for start in range(0, len(lower), d)]
    return sum(float(np.square(block).sum()) for block in blocks) / float(np.trace(second))


def _importance(graph: Graph, node: Conv2d, maps: Mapping[str, torch.Tensor], ranges: Ranges | None, rng: np.random.Generator) -> float:
    flat = node.weight.reshape(len(node.weight), -1)
    size = np.sqrt(np.mean(flat.astype(np.float64) ** 2, axis=1))[:, None, None, None]
    open_ended = replace(node, lo=-math.inf, hi=math.inf, pinned=None)
    noisy = replace(open_ended, weight=frozen_array(node.weight + _NOISE * size * rng.normal(size=node.weight.shape)))
    wanted = evaluate(open_ended, [maps[node.inputs[0]]])
    found = evaluate(noisy, [maps[node.inputs[0]]])
    found = found - (found - wanted).mean((0, 2, 3), keepdim=True)  # the quantiser's bias correction takes the mean error out
    here = _share(wanted, found, (0, 2, 3))
    if here <= 0:
        return 1.0
    start = found.clamp(node.lo, node.hi)
    coded = start if ranges is None else fake_quantise(start, ranges[node.name])
    changed = _forward(_behind(graph, node), {**maps, node.name: coded}, ranges)
    there = [_share(maps[name], changed.get(name, maps[name]), (0,)) for name in graph.outputs]
    return max(sum(there) / len(there) / here, 1e-6)


def _share(wanted: torch.Tensor, found: torch.Tensor, axes: tuple[int, ...]) -> float:
    """Squared error over the variance of `wanted`, both summed over everything; means are taken over `axes`."""
    power = float((wanted - wanted.mean(axes, keepdim=True)).double().square().sum())
    return float((found - wanted).double().square().sum()) / power if power > 0 else 0.0


def _behind(graph: Graph, node: Node) -> tuple[Node, ...]:
    """The nodes that the tensor of `node` reaches, in execution order."""
    reached = {node.name}
    out: list[Node] = []
    for other in graph:
        if other.name != node.name and reached & set(other.inputs):
            reached.add(other.name)
            out.append(other)
    return tuple(out)


def _forward(nodes: tuple[Node, ...], given: Mapping[str, torch.Tensor], ranges: Ranges | None) -> dict[str, torch.Tensor]:
    """The tensors `given` and those that `nodes` make of them, each in its int8 codes where there are ranges."""
    live = dict(given)
    for node in nodes:
        value = live[node.name] if isinstance(node, Input) else evaluate(node, [live[name] for name in node.inputs])
        live[node.name] = value if ranges is None else fake_quantise(value, ranges[node.name])
    return live


def _images(graph: Graph, samples: Samples) -> dict[str, torch.Tensor]:
    largest_bytes = max(4 * math.prod(node.shape) for node in graph)
    macs = [node.weight.size * node.shape[1] * node.shape[2] for node in graph if isinstance(node, Conv2d)]
    # Layer i is followed by all later ones: about half of all layers' work, once a layer.
    work = sum(macs) * (len(macs) + 1) / 2
    count = min(_IMAGES, max(_LEAST_IMAGES, int(_WORK / max(work, 1))), max(1, _MAP_BYTES // largest_bytes))
    return next(samples.batches(max(1, min(samples.count, count))))
