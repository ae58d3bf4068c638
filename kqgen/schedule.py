"""The schedule: in which form each layer runs, with which tile and how much scratch (SPEC 6)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from kqgen import forms
from kqgen.board import CORES, Core
from kqgen.compare import layer_labels
from kqgen.conv_shape import Candidate, ConvShape, conv_shape
from kqgen.errors import InputError
from kqgen.intgraph import IntConv2d, IntGraph, IntNode
from kqgen.plan import Form, Step


@dataclass(frozen=True, slots=True)
class Choice:
    """What one layer may run as: by scratch, rising, each faster than the one before; empty for a layer without weights."""

    node: IntNode
    candidates: tuple[Candidate, ...]


def choices(graph: IntGraph, core: Core, asked: Mapping[str, Form], lean: bool = False) -> tuple[Choice, ...]:
    """The candidates of every layer, in order.

    Args:
        graph: integer graph.
        core: where it will run.
        asked: forms given instead of chosen, by layer.
        lean: one engine for all layers, so that there is little code.

    Raises:
        InputError: a form given does not suit its layer or this core.
    """
    labels = layer_labels(graph)
    shapes = [conv_shape(graph, node) if isinstance(node, IntConv2d) else None for node in graph.nodes]
    engines = forms.leanest([shape for shape in shapes if shape is not None], core) if lean else forms.ENGINES
    return tuple(
        _choice(node, shape, core, asked.get(node.name), label, engines)
        for node, shape, label in zip(graph.nodes, shapes, labels, strict=True)
    )


def _choice(
    node: IntNode, shape: ConvShape | None, core: Core, asked: Form | None, label: str, engines: Sequence[forms.Engine]
) -> Choice:
    if shape is None:
        if asked is not None:
            raise InputError(
                f"layer {label} has no weights, so no form to choose", found=f"--form {label}={asked}", wanted="a layer with weights",
                do="leave this --form out",
            )  # fmt: skip
        return Choice(node, ())
    found = forms.candidates(shape, core, asked, engines if asked is None else None)
    if not found:
        raise _unsuited(label, shape, core, asked)
    return Choice(node, found)


def _unsuited(label: str, shape: ConvShape, core: Core, asked: Form | None) -> InputError:
    suited = sorted({each.form for each in forms.candidates(shape, core)})
    return InputError(
        f"layer {label} cannot run in form {asked} on a {core.title}",
        found=f"{shape.kernel[0]}x{shape.kernel[1]} stride {shape.stride[0]}, {shape.kind} weights",
        wanted=" or ".join(suited),
        do=f"--form {label}={suited[0]}, or leave the choice to kqgen",
    )


def suits(graph: IntGraph, node: IntConv2d, form: Form, function: str) -> bool:
    """Whether `function` runs the layer in that form on any core."""
    shape = conv_shape(graph, node)
    cores = dict.fromkeys(forms.engine_core(core) for core in CORES)
    each = (candidate for core in cores for engine in forms.ENGINES for candidate in engine(shape, core))
    return any((candidate.form, candidate.function) == (form, function) for candidate in each)


def step(choice: Choice, limit_bytes: int) -> Step:
    """The fastest way that takes no more scratch than `limit_bytes`, or the one with the least scratch if all take more."""
    if not choice.candidates:
        return Step(choice.node.name, "plain", "", 0, 0, 0, 0.0, "no weights")
    fitting = [each for each in choice.candidates if each.scratch_bytes <= limit_bytes]
    best = fitting[-1] if fitting else choice.candidates[0]
    others = {each.form: each for each in choice.candidates if each.form != best.form}
    told = [f"{best.cycles:.3g} cycles expected"] + [f"{each.form} {each.cycles:.3g}" for each in others.values()]
    return Step(choice.node.name, best.form, best.function, best.tile, best.strip, best.scratch_bytes, best.cycles, ", ".join(told))
