"""Comparing what two targets computed: the first element that differs, and how far integers are from float PyTorch."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from kqgen.intgraph import Int8, IntConv2d, IntGraph, IntNode


def layer_labels(graph: IntGraph) -> tuple[str, ...]:
    """What reports call each layer, in execution order: its PyTorch module path, else the node's name in C.

    The path serves where it names this layer and no other: not for an addition inside a block, nor for a module called twice.
    """
    own = [node.path if _is_module(node) else node.name for node in graph.nodes]
    counts = Counter(own)
    return tuple(label if counts[label] == 1 else node.name for label, node in zip(own, graph.nodes, strict=True))


def _is_module(node: IntNode) -> bool:
    """Whether the node is the module at its path, not one of several operators in there."""
    if isinstance(node, IntConv2d) and node.addend is not None:
        node = replace(node, name=node.addend.result.name)
    path = re.sub(r"_*[^0-9A-Za-z_]+_*", "_", node.path).strip("_")
    return bool(path) and (node.name == path or (path[0].isdigit() and node.name.endswith(f"_{path}")))


@dataclass(frozen=True, slots=True)
class FirstDifference:
    """Where two targets first differ.

    Attributes:
        input: number of the image.
        layer: what `layer_labels` calls it.
        index: (y, x, c) inside the layer's output.
        expected, found: the int8 values.
    """

    input: int
    layer: str
    index: tuple[int, ...]
    expected: int
    found: int


def first_difference(layer: str, image: int, expected: Int8, found: Int8) -> FirstDifference | None:
    """The first differing element of one layer's output in row-major order; None when equal.

    Shapes: expected and found (h, w, c) int8.
    """
    different = np.argwhere(expected != found)
    if not len(different):
        return None
    index = tuple(int(value) for value in different[0])
    return FirstDifference(image, layer, index, int(expected[index]), int(found[index]))


@dataclass(frozen=True, slots=True)
class FloatAgreement:
    """How far the integers are from float PyTorch.

    Attributes:
        sqnr_db: signal to quantisation noise over all outputs; None when there is no noise or no signal.
        argmax_agreement: share of images whose largest output is the same; None for outputs of one value.
    """

    sqnr_db: float | None
    argmax_agreement: float | None


def float_agreement(expected: Sequence[npt.NDArray[np.float32]], found: Sequence[npt.NDArray[np.float32]]) -> FloatAgreement:
    """Float outputs against dequantised ones; each (N, ...), the first output decides the argmax."""
    signal = sum(float(np.square(values.astype(np.float64)).sum()) for values in expected)
    pairs = list(zip(expected, found, strict=True))
    noise = sum(float(np.square(a.astype(np.float64) - b.reshape(a.shape).astype(np.float64)).sum()) for a, b in pairs)
    sqnr_db = 10 * math.log10(signal / noise) if signal > 0 and noise > 0 else None
    scores, integers = (values.reshape(len(values), -1) for values in pairs[0])
    same = float(np.mean(scores.argmax(axis=1) == integers.argmax(axis=1))) if scores.shape[1] > 1 else None
    return FloatAgreement(sqnr_db, same)
