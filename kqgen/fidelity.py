"""The fidelity waterfall: how good a network is after each step from float model to C, and what each layer costs, so that a loss has a
name (fidelity.json).

Layers are quantised one after the other, the rest of the network staying float: what the outputs' noise rises by at a layer is its share.
The shares sum to 1. A layer fitted to make up for those before it (bias correction, refitted weights) has a share below 0; judged by
itself in the float network it would look like the worst.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from kqgen import oracle
from kqgen.compare import float_agreement, layer_labels
from kqgen.dequantised import Codewords, dequantised, rounded, simulate
from kqgen.floatexec import evaluate, run
from kqgen.intgraph import IntConv2d, IntGraph, IntNode, KqWeights, UniformWeights
from kqgen.ir import Conv2d, Float32, Graph
from kqgen.report import IN_TABLES, BitsPerWeight, bits_per_weight, op_title
from kqgen.samples import Samples
from kqgen.verify import Tensors

Tell = Callable[[str, float], None]
Labels = npt.NDArray[np.int64]
_Maps = Mapping[str, torch.Tensor]
_Outputs = tuple[Float32, ...]

LAYER_INPUTS = 256
"""Inputs of which every layer is judged, at most: the network runs once for each layer."""
_BATCH = 25
_MAKING_UP = 2.0
_REGAINED = 0.1
"""Layers that were trained together make up for each other: on the way the outputs have more noise than at the end by this factor, and
fewer inputs of the float model's class by this share. No layer is blamed then: it would be for what the float layers after it did not
learn. Noise alone does not tell: saturation takes some away too."""
_FLOAT32_BYTES = 4


@dataclass(frozen=True, slots=True)
class StepFidelity:
    """The network after one step.

    Attributes:
        step: `float`, `folded`, `float_codebook`, `stored_weights`, `int8_activations`, and last `c` or `integers`.
        accuracy: share of inputs whose largest output is the label's, 0..1; None without labels.
        sqnr_db: of all outputs against the float model; None for the float model itself and where nothing differs.
        same_class: share of inputs whose largest output is the float model's, 0..1; None for outputs of one value.
        weights_bytes: tables of weights and codebooks: float32, or as stored; no biases, no scales.
        title: the step as people read it.
    """

    step: str
    accuracy: float | None
    sqnr_db: float | None
    same_class: float | None
    weights_bytes: int
    title: str = dataclasses.field(metadata=IN_TABLES)


@dataclass(frozen=True, slots=True)
class LayerFidelity:
    """One layer. SQNR is None where nothing differs or there is no signal.

    Attributes:
        name: what `compare.layer_labels` calls it.
        op: operator and channels.
        weights: kind and bits of what is stored; "" without weights.
        weights_bytes: as stored, codebooks not counted.
        weights_db: SQNR of its weights against the float model's.
        alone_db: SQNR of its output, all layers before it float.
        all_db: SQNR of its output, all layers before it quantised too.
        network_db, same_class, accuracy: of the network, all layers up to this one quantised, those after it float.
        noise_share: what it adds to the noise of the outputs over that of the whole quantised network; the shares sum to 1.
    """

    name: str
    op: str
    weights: str
    weights_bytes: int
    bits_per_weight: float | None
    weights_db: float | None
    alone_db: float | None
    all_db: float | None
    network_db: float | None
    same_class: float | None
    accuracy: float | None
    noise_share: float | None


@dataclass(frozen=True, slots=True)
class CodebookFidelity:
    """One codebook: its stored codewords, those of both stages when it is additive, and its packed size."""

    name: str
    codewords: int
    weights_bytes: int


@dataclass(frozen=True, slots=True)
class Blame:
    """Whom to blame.

    Attributes:
        step: the step that adds most noise to the outputs; None when none adds any.
        layer: the layer with the largest share; None when none adds noise, or layers make up for each other.
        compensated: layers make up for each other, as they do after training: on the way there is far more noise than at the end.
    """

    step: str | None
    layer: str | None
    compensated: bool


@dataclass(frozen=True, slots=True)
class LeftOut:
    """Something that could not be measured, and why."""

    what: str
    why: str


@dataclass(frozen=True, slots=True)
class Waterfall:
    """The fidelity of a network.

    Attributes:
        inputs: how many the steps ran on.
        layer_inputs: how many of them, the first, the layers ran on.
        left_out: what is missing.
    """

    model: str
    inputs: int
    layer_inputs: int
    bits_per_weight: BitsPerWeight
    steps: tuple[StepFidelity, ...]
    layers: tuple[LayerFidelity, ...]
    codebooks: tuple[CodebookFidelity, ...]
    blame: Blame
    left_out: tuple[LeftOut, ...]


def _silent(label: str, fraction: float) -> None:
    del label, fraction


def waterfall(
    original: Graph,
    integers: IntGraph,
    samples: Samples,
    float_outputs: Sequence[Float32],
    integer_outputs: Tensors,
    *,
    by_c: bool,
    labels: Labels | None = None,
    codewords: Codewords | None = None,
    left_out: Sequence[LeftOut] = (),
    tell: Tell = _silent,
) -> Waterfall:
    """Judges a network after each step and layer by layer.

    Args:
        original: the simplified float graph before compression, with the layers of `integers`.
        samples: N inputs.
        float_outputs: of the user's model, each (N, ...).
        integer_outputs: int8 (N, h, w, c), of the generated C where `by_c`, else of the integer reference.
        labels: (N,), numbers of classes; None leaves accuracy out.
        codewords: codewords before they were rounded to 6 bits; None leaves this step out.
        left_out: what the caller could not give.

    Raises:
        InputError: `original` is another network.
    """
    measure = _Measure(original, samples, tuple(float_outputs), labels)
    stored = dequantised(original, integers)
    float_bytes = sum(_FLOAT32_BYTES * node.weight.size for node in original if isinstance(node, Conv2d))
    stored_bytes = sum(_bytes(node) for node in integers.nodes) + sum(book.packed_bytes for book in integers.codebooks)
    steps = [measure.step("float", "float model", float_outputs, float_bytes)]
    tell("the folded graph", 0.0)
    steps.append(measure.step("folded", "folded graph", measure.outputs(lambda batch: run(original, batch)), float_bytes))
    missing = list(left_out)
    if codewords is not None:
        tell("the float codebook", 0.1)
        real = dequantised(original, integers, codewords)
        wider = sum(_FLOAT32_BYTES * book.values.size - book.packed_bytes for book in integers.codebooks if book.name in codewords)
        outputs = measure.outputs(lambda batch: run(real, batch))
        steps.append(measure.step("float_codebook", "float codebook", outputs, stored_bytes + wider))
    elif integers.codebooks:
        missing.append(LeftOut("float codebook", "the codewords before their rounding to 6 bits are not at hand"))
    tell("the stored weights", 0.2)
    outputs = measure.outputs(lambda batch: run(stored, batch))
    steps.append(measure.step("stored_weights", "6-bit codebook" if integers.codebooks else "stored weights", outputs, stored_bytes))
    tell("int8 activations", 0.3)
    outputs = measure.outputs(lambda batch: simulate(stored, integers, batch))
    steps.append(measure.step("int8_activations", "int8 activations", outputs, stored_bytes))
    last = ("c", "generated C") if by_c else ("integers", "integer reference")
    steps.append(measure.step(*last, _reals(integers, integer_outputs), stored_bytes))
    layers, compensated = _layers(original, stored, integers, samples, labels, tell)
    return Waterfall(
        model=integers.name,
        inputs=samples.count,
        layer_inputs=min(samples.count, LAYER_INPUTS),
        bits_per_weight=bits_per_weight(integers),
        steps=tuple(steps),
        layers=layers,
        codebooks=tuple(CodebookFidelity(book.name, len(book.values), book.packed_bytes) for book in integers.codebooks),
        blame=Blame(_worst_step(steps), None if compensated else _worst_layer(layers), compensated),
        left_out=tuple(missing),
    )


def _bytes(node: IntNode) -> int:
    return node.weights.packed_bytes if isinstance(node, IntConv2d) else 0


def _reals(graph: IntGraph, outputs: Tensors) -> _Outputs:
    """Int8 (N, h, w, c) as float32 (N, c, h, w)."""
    tensors = [graph.tensor(name) for name in graph.outputs]
    return tuple(oracle.dequantise(tensor, codes).transpose(0, 3, 1, 2) for tensor, codes in zip(tensors, outputs, strict=True))


@dataclass(frozen=True, slots=True, eq=False)
class _Measure:
    """What every step is measured on and against."""

    original: Graph
    samples: Samples
    expected: _Outputs
    labels: Labels | None

    def outputs(self, forward: Callable[[_Maps], _Maps]) -> _Outputs:
        """The outputs of all samples by `forward`, which makes every tensor of a batch."""
        parts = []
        for batch in self.samples.batches(_BATCH):
            tensors = forward(batch)
            parts.append([tensors[name].numpy() for name in self.original.outputs])
        return tuple(np.concatenate([part[number] for part in parts]) for number in range(len(self.original.outputs)))

    def step(self, name: str, title: str, outputs: Sequence[Float32], weights_bytes: int) -> StepFidelity:
        """The figures of outputs (N, ...)."""
        agreement = float_agreement(self.expected, outputs)
        return StepFidelity(name, _accuracy(outputs[0], self.labels), agreement.sqnr_db, agreement.argmax_agreement, weights_bytes, title)


def _accuracy(scores: npt.NDArray[np.float32], labels: Labels | None) -> float | None:
    return None if labels is None else float(np.mean(scores.reshape(len(scores), -1).argmax(axis=1) == labels))


def _decibels(signal: float, noise: float) -> float | None:
    return 10 * math.log10(signal / noise) if signal > 0 and noise > 0 else None


def _power(values: torch.Tensor) -> float:
    return float(values.double().square().sum())


@dataclass(slots=True)
class _Sums:
    """Sums over the inputs for one layer.

    Attributes:
        signal: of its float output.
        alone, all: noise of its output, quantised alone and with all layers before it.
        network: noise of the network's outputs, quantised up to here.
        same, right: inputs of the float network's class, and of the label's.
    """

    signal: float = 0.0
    alone: float = 0.0
    all: float = 0.0
    network: float = 0.0
    same: int = 0
    right: int = 0


def _layers(
    original: Graph, stored: Graph, integers: IntGraph, samples: Samples, labels: Labels | None, tell: Tell
) -> tuple[tuple[LayerFidelity, ...], bool]:
    """Every layer in execution order, and whether layers make up for each other."""
    count = min(samples.count, LAYER_INPUTS)
    first = Samples(samples.names, tuple(array[:count] for array in samples.arrays))
    sums = {node.name: _Sums() for node in integers.nodes}
    signal = 0.0
    done = 0
    for batch in first.batches(_BATCH):
        real, quantised = run(original, batch), simulate(stored, integers, batch)
        expected = [real[name] for name in original.outputs]
        size = len(expected[0])
        classes = expected[0].flatten(1).argmax(1)
        known = None if labels is None else torch.from_numpy(labels[done : done + size])
        signal += sum(_power(value) for value in expected)
        for number, node in enumerate(integers.nodes):
            total = sums[node.name]
            own = stored.node(node.name)
            with torch.no_grad():
                alone = rounded(evaluate(own, [real[name] for name in own.inputs]), integers.tensor(node.name))
                found = _finished(original, node.name, quantised)
            predicted = found[0].flatten(1).argmax(1)
            total.signal += _power(real[node.name])
            total.alone += _power(alone - real[node.name])
            total.all += _power(quantised[node.name] - real[node.name])
            total.network += sum(_power(a - b) for a, b in zip(found, expected, strict=True))
            total.same += int((predicted == classes).sum())
            total.right += 0 if known is None else int((predicted == known).sum())
            tell("layer by layer", 0.4 + 0.6 * (done + size * (number + 1) / len(integers.nodes)) / count)
        done += size
    noises = [total.network for total in sums.values()]
    several = math.prod(original.node(original.outputs[0]).shape) > 1
    layers = tuple(
        dataclasses.replace(
            _described(node, label, original, stored, integers),
            alone_db=_decibels(total.signal, total.alone),
            all_db=_decibels(total.signal, total.all),
            network_db=_decibels(signal, total.network),
            same_class=total.same / count if several else None,
            accuracy=None if labels is None else total.right / count,
            noise_share=(total.network - before) / noises[-1] if noises[-1] > 0 else None,
        )
        for node, label, total, before in zip(
            integers.nodes, layer_labels(integers), sums.values(), [0.0, *noises[:-1]], strict=True
        )
    )
    regained = not several or (sums[integers.nodes[-1].name].same - min(total.same for total in sums.values())) > _REGAINED * count
    return layers, max(noises) > _MAKING_UP * noises[-1] and regained


def _finished(original: Graph, last: str, quantised: _Maps) -> list[torch.Tensor]:
    """The network's outputs when all tensors up to `last` are the quantised ones and the layers after it are float."""
    tensors: dict[str, torch.Tensor] = {}
    past = False
    for node in original:
        tensors[node.name] = evaluate(node, [tensors[name] for name in node.inputs]) if past else quantised[node.name]
        past = past or node.name == last
    return [tensors[name] for name in original.outputs]


def _described(node: IntNode, label: str, original: Graph, stored: Graph, integers: IntGraph) -> LayerFidelity:
    """What is known of a layer before it runs."""
    kind, per_weight, weights_db = "", None, None
    if isinstance(node, IntConv2d):
        real, found = original.node(node.name), stored.node(node.name)
        assert isinstance(real, Conv2d)
        assert isinstance(found, Conv2d)
        wanted = real.weight.astype(np.float64)
        noise = float(np.square(wanted - found.weight).sum())
        weights_db = _decibels(float(np.square(wanted).sum()), noise)
        per_weight = 8 * node.weights.packed_bytes / node.weight_count
        kind = f"int{node.weights.bits}" if isinstance(node.weights, UniformWeights) else _indexed(node.weights, integers)
    return LayerFidelity(label, op_title(node), kind, _bytes(node), per_weight, weights_db, None, None, None, None, None, None)


def _indexed(weights: KqWeights, integers: IntGraph) -> str:
    return f"KQ {integers.codebook(weights.codebook).index_text(weights.index_bits)}"


def _worst_step(steps: Sequence[StepFidelity]) -> str | None:
    """The step that raises the noise over signal most."""
    levels = [0.0 if step.sqnr_db is None else 10 ** (-step.sqnr_db / 10) for step in steps]
    rises = [after - before for before, after in itertools.pairwise(levels)]
    worst = int(np.argmax(rises))
    return steps[worst + 1].step if rises[worst] > 0 else None


def _worst_layer(layers: Sequence[LayerFidelity]) -> str | None:
    shares = [layer.noise_share or 0.0 for layer in layers]
    worst = int(np.argmax(shares))
    return layers[worst].name if shares[worst] > 0 else None
