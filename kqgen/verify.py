"""Verification: the integer reference, the host's C and the emulated board, compared in every byte (verify.json).

A target is first run as it would ship, on every input. Its test build, which reports every layer, then runs on the first
inputs, and on an input whose outputs differ, so that a difference is blamed on the first layer that has it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from kqgen import oracle
from kqgen.compare import FirstDifference, FloatAgreement, first_difference
from kqgen.errors import ToolchainError
from kqgen.intgraph import Int8, IntGraph

CHUNK_INPUTS = 200
"""Inputs the reference computes at a time: its float64 maps of one chunk stay below a few hundred MB for networks of this size."""

Tensors = tuple[Int8, ...]
"""One array a tensor, (N, h, w, c) int8."""


class Runner(Protocol):
    """What `verify` needs of a target; each may raise ToolchainError when its tool is missing."""

    def run(self, inputs: Tensors) -> Tensors:
        """The outputs of the build that ships, one array an output."""

    def run_layers(self, inputs: Tensors) -> Tensors:
        """The output of every step of the test build, one array a step."""


@dataclass(frozen=True, slots=True)
class Target:
    """Something that can run the generated C.

    Attributes:
        name: `host`, `unicorn` or `qemu`.
        open: builds it and gives its runner and a line for people (compiler, emulator).
        layer_inputs: inputs of which every layer is compared.
    """

    name: str
    open: Callable[[], tuple[Runner, str]]
    layer_inputs: int


@dataclass(frozen=True, slots=True)
class TargetResult:
    """What came of one target; `exact` is None when it could not run, `detail` says why or with what it ran."""

    name: str
    exact: bool | None
    first_difference: FirstDifference | None
    layers_compared: int
    detail: str


@dataclass(frozen=True, slots=True)
class VerifyReport:
    """The result of a verification.

    Attributes:
        exact: True only when every requested target ran and agreed; None when one could not run and none differed.
        inputs: how many inputs were run.
        outputs_compared: int8 values compared, a target.
        targets: in the order asked for.
        float: how far the integers are from float PyTorch, None without the float model.
    """

    exact: bool | None
    inputs: int
    outputs_compared: int
    targets: tuple[TargetResult, ...]
    float: FloatAgreement | None


def reference_outputs(graph: IntGraph, inputs: Tensors, progress: Callable[[float], None] | None = None) -> Tensors:
    """The integer reference's outputs for any number of inputs, computed in chunks."""
    parts: list[list[Int8]] = []
    count = len(inputs[0])
    for start in range(0, count, CHUNK_INPUTS):
        tensors = _reference(graph, tuple(array[start : start + CHUNK_INPUTS] for array in inputs))
        parts.append([tensors[name] for name in graph.outputs])
        if progress is not None:
            progress(min(1.0, (start + CHUNK_INPUTS) / count))
    return tuple(np.concatenate([part[number] for part in parts]) for number in range(len(graph.outputs)))


def _reference(graph: IntGraph, inputs: Tensors) -> dict[str, Int8]:
    return oracle.run(graph, {tensor.name: array for tensor, array in zip(graph.inputs, inputs, strict=True)})


def verify_target(graph: IntGraph, target: Target, inputs: Tensors, expected: Tensors) -> TargetResult:
    """Runs one target on all inputs and compares it with the reference's `expected` outputs."""
    try:
        runner, detail = target.open()
        outputs = runner.run(inputs)
        wrong = [
            int(image)
            for image in np.flatnonzero(
                np.any([np.any((a != b).reshape(len(a), -1), axis=1) for a, b in zip(expected, outputs, strict=True)], axis=0)
            )
        ]
        images = sorted({*range(min(target.layer_inputs, len(inputs[0]))), *wrong[:1]})
        difference = _layer_difference(graph, runner, inputs, images)
    except ToolchainError as error:
        return TargetResult(target.name, None, None, 0, str(error))
    if difference is None and wrong:
        difference = _output_difference(graph, wrong[0], expected, outputs)
    layers = len(images) * len(graph.nodes)
    return TargetResult(target.name, difference is None, difference, layers, detail)


def _layer_difference(graph: IntGraph, runner: Runner, inputs: Tensors, images: Sequence[int]) -> FirstDifference | None:
    """The first layer, in execution order of the first differing image, whose bytes are not the reference's."""
    chosen = tuple(array[list(images)] for array in inputs)
    tensors = _reference(graph, chosen)
    steps = runner.run_layers(chosen)
    for position, image in enumerate(images):
        for node, found in zip(graph.nodes, steps, strict=True):
            expected = tensors[node.name][position]
            difference = first_difference(node.path or node.name, image, expected, found[position].reshape(expected.shape))
            if difference is not None:
                return difference
    return None


def _output_difference(graph: IntGraph, image: int, expected: Tensors, found: Tensors) -> FirstDifference | None:
    """The differing output itself, when the test build's layers agree."""
    for name, a, b in zip(graph.outputs, expected, found, strict=True):
        difference = first_difference(f"output {name}", image, a[image], b[image])
        if difference is not None:
            return difference
    return None


def summarise(inputs: int, expected: Tensors, targets: Sequence[TargetResult], agreement: FloatAgreement | None) -> VerifyReport:
    """One verdict: a difference outweighs a missing tool, a missing tool outweighs agreement."""
    verdicts = [target.exact for target in targets]
    exact = False if False in verdicts else None if None in verdicts or not verdicts else True
    return VerifyReport(exact, inputs, sum(array.size for array in expected), tuple(targets), agreement)
