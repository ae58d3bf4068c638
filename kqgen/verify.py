"""Verification: the integer reference, the host's C and the emulated board, compared in every byte (verify.json).

A target is first run as it would ship, on every input. Its test build, which reports every layer, then runs on the first
inputs, and on an input whose outputs differ, so that a difference is blamed on the first layer that has it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from kqgen import oracle
from kqgen.compare import FirstDifference, FloatAgreement, first_difference, layer_labels
from kqgen.errors import ToolchainError
from kqgen.intgraph import Int8, IntGraph
from kqgen.report import IN_TABLES

CHUNK_INPUTS = 200
"""Inputs the reference computes at a time: its float64 maps of one chunk stay below a few hundred MB for networks of this size."""

Tensors = tuple[Int8, ...]
"""One array a tensor, (N, h, w, c) int8."""

Tell = Callable[[float], None]
"""Progress: the fraction done."""


def _silent(fraction: float) -> None:
    del fraction



class Runner(Protocol):
    """What `verify` needs of a target; each may raise ToolchainError when its tool is missing."""

    def run(self, inputs: Tensors, tell: Tell) -> Tensors:
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
    """What came of one target.

    Attributes:
        exact: None when it could not run.
        layer_inputs: inputs of which every layer was compared.
        detail: with what it ran, or why it could not.
    """

    name: str
    exact: bool | None
    first_difference: FirstDifference | None
    layer_inputs: int = field(metadata=IN_TABLES)
    detail: str = field(metadata=IN_TABLES)


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


def verify_target(graph: IntGraph, target: Target, inputs: Tensors, expected: Tensors, tell: Tell = _silent) -> TargetResult:
    """Runs one target on all inputs and compares it with the reference's `expected` outputs."""
    try:
        runner, detail = target.open()
        outputs = runner.run(inputs, tell)
        wrong = _differing(expected, outputs)
        images = sorted({*range(min(target.layer_inputs, len(inputs[0]))), *wrong[:1]})
        difference = _layer_difference(graph, runner, inputs, images)
    except ToolchainError as error:
        return TargetResult(target.name, None, None, 0, str(error))
    if difference is None and wrong:
        difference = _output_difference(graph, wrong[0], expected, outputs)
    return TargetResult(target.name, difference is None, difference, len(images), detail)


def _differing(expected: Tensors, found: Tensors) -> list[int]:
    """The numbers of the inputs on which any output differs."""
    differs = [np.any((a != b).reshape(len(a), -1), axis=1) for a, b in zip(expected, found, strict=True)]
    return [int(number) for number in np.flatnonzero(np.any(differs, axis=0))]


def _layer_difference(graph: IntGraph, runner: Runner, inputs: Tensors, images: Sequence[int]) -> FirstDifference | None:
    """The first layer, in execution order of the first differing image, whose bytes are not the reference's."""
    chosen = tuple(array[list(images)] for array in inputs)
    tensors = _reference(graph, chosen)
    steps = runner.run_layers(chosen)
    labels = layer_labels(graph)
    for position, image in enumerate(images):
        for node, label, found in zip(graph.nodes, labels, steps, strict=True):
            expected = tensors[node.name][position]
            difference = first_difference(label, image, expected, found[position].reshape(expected.shape))
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
