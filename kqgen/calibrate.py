"""Ranges of activations: one int8 scale and zero point a tensor, from calibration images.

Estimator: the images run twice. The first pass takes every tensor's minimum and maximum, the second a histogram of 4096 bins between
them (0 always inside). Of the ranges that shrink either end, the one with the least mean squared quantisation error over the histogram
is taken: the error of clipping rare large values is weighed against the finer step for all others. Against plain minimum and maximum
it gives up the far ends of long tails; against percentiles it needs no constant chosen by hand, and it never clips more than pays.
Outputs of the network keep minimum and maximum, since there the largest value is the answer. Memory is one batch of activations and
the histograms, whatever the number of images.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from types import MappingProxyType

import numpy as np
import numpy.typing as npt

from kqgen.errors import InputError, InternalError
from kqgen.floatexec import steps
from kqgen.ir import (
    Add,
    ArgMax,
    AvgPool,
    Clamp,
    Concat,
    Conv2d,
    Graph,
    Input,
    Interleave,
    MaxPool,
    Mul,
    Node,
    SlicePad,
    Softmax,
    Unary,
    Upsample,
)
from kqgen.samples import Samples

Progress = Callable[[str, float], None]
_Float64 = npt.NDArray[np.float64]

_BINS = 4096
_BATCH = 25
_LEVELS = 255
_LOWEST, _HIGHEST = -128, 127
_SHRINK = np.linspace(0.05, 1.0, 96)
_PIXEL_REACH = 128
_PIXEL_TOLERANCE = 1e-3
_SMALLEST_SPAN = 1e-30
_WIDEST_SPAN = 1e37
_SOFTMAX_SCALE = 1 / 256
_NATURAL = MappingProxyType({"sigmoid": (0.0, 1.0), "hardsigmoid": (0.0, 1.0), "tanh": (-1.0, 1.0)})
"""Where the values of a function lie whatever its input: an output of the network may reach what calibration has not seen."""


@dataclass(frozen=True, slots=True)
class TensorRange:
    """Quantisation of one tensor: real = scale * (q - zero_point), q in -128..127.

    Attributes:
        name: the tensor.
        scale: > 0, a float32 number.
        zero_point: -128..127, the code of real 0.
    """

    name: str
    scale: float
    zero_point: int

    def __post_init__(self) -> None:
        if not (self.scale > 0 and math.isfinite(self.scale) and _LOWEST <= self.zero_point <= _HIGHEST):
            raise InternalError(f"tensor {self.name}: scale {self.scale}, zero point {self.zero_point}")


@dataclass(frozen=True, slots=True)
class Ranges:
    """The quantisation of every tensor of a graph, in execution order."""

    tensors: tuple[TensorRange, ...]

    def __getitem__(self, name: str) -> TensorRange:
        """The quantisation of tensor `name`; KeyError if there is none."""
        for entry in self.tensors:
            if entry.name == name:
                return entry
        raise KeyError(name)

    def __iter__(self) -> Iterator[TensorRange]:
        return iter(self.tensors)


@dataclass(frozen=True, slots=True)
class _Extent:
    """What the first pass saw of one tensor.

    Attributes:
        lo, hi: minimum and maximum, 0 included.
        pixels: all values are whole numbers.
        fractions: all values are multiples of 1/255.
    """

    lo: float = 0.0
    hi: float = 0.0
    pixels: bool = True
    fractions: bool = True


def calibrate(graph: Graph, samples: Samples, progress: Progress | None = None) -> Ranges:
    """Scale and zero point of every tensor of a simplified graph.

    Zero is always a code. A tensor that is never negative, such as one behind a ReLU, has zero point -128. Which tensors share a
    quantisation says `range_roots`. An input whose calibration values are all pixels 0..255, or pixels divided by 255, gets exactly
    scale 1 or 1/255 and zero point -128; a softmax has scale 1/256, an index of the largest scale 1, both zero point -128; what the
    model itself gives (`pinned`) is taken as it is.

    Args:
        samples: calibration images.
        progress: told what is being done and the fraction done, 0..1.

    Raises:
        InputError: a layer computes numbers beyond float32's range.

    Source: the search follows the mean-squared-error range setting of Nagel et al., A White Paper on Neural Network Quantization
    (2021), section 3.1.
    """
    tell = progress or (lambda label, fraction: None)
    roots = range_roots(graph)
    seen = _extents(graph, samples, roots, tell)
    extents, lifted = _with_clamps(seen, roots)
    finals = {roots[name] for name in graph.outputs} | lifted
    histograms = _histograms(graph, samples, roots, extents, tell)
    own = {
        node.name: _quantisation(
            node, extents[node.name], histograms[node.name], minmax=node.name in finals, lifted=node.name in lifted
        )
        for node in graph
        if roots[node.name] == node.name
    }
    tell("ranges found", 1.0)
    return Ranges(tuple(TensorRange(node.name, own[roots[node.name]].scale, own[roots[node.name]].zero_point) for node in graph))


def range_roots(graph: Graph) -> dict[str, str]:
    """Per tensor of a simplified graph the one whose quantisation it has; roots may come later in the graph.

    MaxPool, SlicePad, Upsample and Clamp share their input's, and so does a Concat or Interleave whose operands share one. A tensor
    that only ends in one Concat, by way of such nodes or at once, has the Concat's: its values are rounded to that anyway, so one
    rounding is saved and the C copies bytes. An operand that others read too keeps its own, which suits them, and is requantised into
    the Concat; so are inputs, Softmax, ArgMax, outputs and tensors with a quantisation of the model's own.
    """
    roots: dict[str, str] = {}
    for node in graph:
        held = {roots[name] for name in node.inputs}
        shares = isinstance(node, (*_SHARING, *_JOINING)) and len(held) == 1 and node.pinned is None
        roots[node.name] = held.pop() if shares else node.name
    for node in reversed(graph.nodes):
        if isinstance(node, _JOINING):
            for root in dict.fromkeys(roots[name] for name in node.inputs):
                if _only_joined(graph, roots, root, node):
                    roots |= {name: roots[node.name] for name, held in roots.items() if held == root}
    return roots


_SHARING = (MaxPool, SlicePad, Upsample, Clamp)
_JOINING = (Concat, Interleave)
_FIXED = (Input, Softmax, ArgMax)


def _only_joined(graph: Graph, roots: dict[str, str], root: str, concat: Node) -> bool:
    """Whether `concat` alone reads the tensors of `root`, other than those tensors themselves, and may choose their quantisation."""
    maker = graph.node(root)
    if isinstance(maker, _FIXED) or maker.pinned is not None or root == roots[concat.name]:
        return False
    held = [name for name, each in roots.items() if each == root]
    readers = {reader.name for name in held for reader in graph.consumers(name)} - set(held)
    return readers == {concat.name} and not set(held) & set(graph.outputs)


def _extents(graph: Graph, samples: Samples, roots: dict[str, str], tell: Progress) -> dict[str, _Extent]:
    """Of every tensor with a quantisation of its own, and of the clamps that share one."""
    found = {node.name: _Extent() for node in graph if roots[node.name] == node.name or isinstance(node, Clamp)}
    done = 0
    for batch in samples.batches(_BATCH):
        for node, value in steps(graph, batch):
            if node.name in found:
                before = found[node.name]
                pixels = fractions = False
                if isinstance(node, Input):
                    values = value.numpy().astype(np.float64)
                    pixels = before.pixels and bool((values == np.rint(values)).all())
                    scaled = values * _LEVELS
                    fractions = before.fractions and bool((np.abs(scaled - np.rint(scaled)) < _PIXEL_TOLERANCE).all())
                lo, hi = (float(end) for end in value.aminmax())
                if not hi - lo < _WIDEST_SPAN:
                    raise InputError(
                        f"layer {node.path or node.name} computes numbers beyond float32's range",
                        found=f"values from {lo:g} to {hi:g} on the calibration images",
                        wanted=f"a span below {_WIDEST_SPAN:g}",
                        do="check the weights up to this layer, and the scale of the calibration images",
                    )
                found[node.name] = _Extent(min(before.lo, lo), max(before.hi, hi), pixels, fractions)
        done += next(iter(batch.values())).shape[0]
        tell("measuring activations", 0.4 * done / samples.count)
    return found


def _with_clamps(seen: dict[str, _Extent], roots: dict[str, str]) -> tuple[dict[str, _Extent], set[str]]:
    """Extents by root, and the roots whose clamps make values beyond their own: these need codes too, though few may need them."""
    extents = {name: extent for name, extent in seen.items() if roots[name] == name}
    lifted = set()
    for name, clamped in seen.items():
        root = extents[roots[name]]
        if clamped.lo < root.lo or clamped.hi > root.hi:
            extents[roots[name]] = replace(root, lo=min(root.lo, clamped.lo), hi=max(root.hi, clamped.hi))
            lifted.add(roots[name])
    return extents, lifted


def _histograms(
    graph: Graph, samples: Samples, roots: dict[str, str], extents: dict[str, _Extent], tell: Progress
) -> dict[str, _Float64]:
    found = {name: np.zeros(_BINS) for name in extents}
    done = 0
    for batch in samples.batches(_BATCH):
        for node, value in steps(graph, batch):
            extent = extents.get(node.name)
            if extent is not None and _span(extent) > 0:
                counts = value.reshape(-1).histc(_BINS, extent.lo, extent.hi)
                found[node.name] = found[node.name] + counts.double().numpy()
        done += next(iter(batch.values())).shape[0]
        tell("measuring activations", 0.4 + 0.5 * done / samples.count)
    return found


def _quantisation(node: Node, extent: _Extent, histogram: _Float64, *, minmax: bool, lifted: bool) -> TensorRange:
    if node.pinned is not None:
        return TensorRange(node.name, *node.pinned)
    if isinstance(node, (Softmax, ArgMax)):
        return TensorRange(node.name, _SOFTMAX_SCALE if isinstance(node, Softmax) else 1.0, _LOWEST)
    if isinstance(node, Input):
        if node.uint8 or (extent.pixels and extent.lo >= 0 and _PIXEL_REACH <= extent.hi <= _LEVELS):
            return TensorRange(node.name, 1.0, _LOWEST)
        if extent.fractions and extent.lo >= 0 and _PIXEL_REACH / _LEVELS <= extent.hi <= 1:
            return TensorRange(node.name, float(np.float32(1 / _LEVELS)), _LOWEST)
    lo, hi = extent.lo, extent.hi
    if isinstance(node, Unary) and minmax:
        natural = _NATURAL.get(node.kind, (lo, hi))
        lo, hi = min(lo, natural[0]), max(hi, natural[1])
    if isinstance(node, (Conv2d, Add, AvgPool, Mul, Unary)) and not lifted:
        lo, hi = max(lo, min(node.lo, 0.0)), min(hi, max(node.hi, 0.0))
    if not hi - lo > _SMALLEST_SPAN:
        return TensorRange(node.name, 1.0, _LOWEST)
    if not minmax:
        lo, hi = _least_error(lo, hi, extent, histogram)
    scale, zero_point = _affine(lo, hi)
    return TensorRange(node.name, scale, zero_point)


def _span(extent: _Extent) -> float:
    span = extent.hi - extent.lo
    return span if span > _SMALLEST_SPAN else 0.0


def _affine(lo: float, hi: float) -> tuple[float, int]:
    """Scale, rounded to float32, and zero point of the range lo <= 0 <= hi, 0 being a code."""
    scale = float(np.float32((hi - lo) / _LEVELS))
    zero_point = math.floor(_LOWEST - lo / scale + 0.5)
    return scale, min(max(zero_point, _LOWEST), _HIGHEST)


def _least_error(lo: float, hi: float, extent: _Extent, histogram: _Float64) -> tuple[float, float]:
    """The range inside lo..hi of least error: each end is searched in turn until neither moves."""
    width = _span(extent) / _BINS
    used = histogram > 0
    centres: _Float64 = (extent.lo + (np.arange(_BINS, dtype=np.float64) + 0.5) * width)[used]
    weights: _Float64 = histogram[used]
    best_lo, best_hi = lo, hi
    for _ in range(4):
        highs = hi * _SHRINK if hi > 0 else np.zeros(1)
        next_hi = min(highs[::-1], key=lambda end: _error(best_lo, end, centres, weights))
        lows = lo * _SHRINK if lo < 0 else np.zeros(1)
        next_lo = min(lows[::-1], key=lambda end: _error(end, next_hi, centres, weights))
        if (next_lo, next_hi) == (best_lo, best_hi):
            break
        best_lo, best_hi = float(next_lo), float(next_hi)
    return best_lo, best_hi


def _error(lo: float, hi: float, centres: _Float64, weights: _Float64) -> float:
    """Sum of squared differences between values and what their codes mean."""
    scale, zero_point = _affine(lo, hi)
    codes = np.clip(np.floor(centres / scale + 0.5) + zero_point, _LOWEST, _HIGHEST)
    residue = centres - (codes - zero_point) * scale
    return float(weights @ (residue * residue))
