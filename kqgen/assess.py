"""Judging a network by its files: reads folder or graph, float model and labelled inputs, and hands them to `fidelity`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from torch.export import ExportedProgram

from kqgen.deliver import quantised_inputs
from kqgen.errors import InputError, ToolchainError
from kqgen.fidelity import LeftOut, Waterfall, waterfall
from kqgen.firmware import FLOAT_SUFFIX, Network
from kqgen.floatmodel import as_maps, float_outputs
from kqgen.frontend import export_module, import_exported
from kqgen.fuse import split
from kqgen.loading import load_model
from kqgen.net import load
from kqgen.prune_float import narrowed
from kqgen.pt2 import load_pt2
from kqgen.samples import LABELS, read_labels, read_samples
from kqgen.simplify import simplify
from kqgen.verify import Tensors, reference_outputs

Tell = Callable[[str, float], None]

def assess(network: Network, inputs: Path, *, model: Path | None = None, limit: int | None = None, tell: Tell) -> Waterfall:
    """The fidelity of a network on the first `limit` inputs of an .npz, with accuracy where that holds `labels`.

    Args:
        model: the float model, a .pt2, .onnx or .tflite; None takes the one in the network's folder.

    Raises:
        InputError: no float model, another one, inputs or labels that do not fit.
    """
    graph = split(network.graph)
    stored = _float_model(network, model)
    tell("reading the model", 0.0)
    program = _program(stored)
    original = simplify(import_exported(program, graph.name))
    if network.dead is not None:
        original = narrowed(original, network.dead.rests, network.dead.twins)
    samples = read_samples(inputs, original, limit=limit)
    left_out: list[LeftOut] = []
    labels = None
    first = graph.tensor(graph.outputs[0])
    if first.h * first.w > 1 and first.name not in graph.flattened:
        left_out.append(LeftOut("accuracy", f"output {first.name} is a map of {first.h} x {first.w}, which has no one class"))
    elif (labels := read_labels(inputs, first.size_bytes, limit=limit)) is None:
        left_out.append(LeftOut("accuracy", f"{inputs.name} holds no array '{LABELS}': numpy.savez(..., images=..., {LABELS}=...)"))
    tell("float PyTorch", 0.0)
    expected = as_maps(graph, float_outputs(program, samples, samples.count))
    codes = quantised_inputs(graph, samples)
    outputs, why = _integer_outputs(network, codes, tell)
    if why:
        left_out.append(LeftOut("generated C", f"{why}: the integer reference stands for it"))
    return waterfall(original, graph, samples, expected, outputs, by_c=not why, labels=labels, left_out=left_out, tell=tell)


def _float_model(network: Network, model: Path | None) -> Path:
    found = model or (network.firmware.float_model if network.firmware else None)
    if found is None:
        where = f"{network.firmware.folder} holds no *{FLOAT_SUFFIX}" if network.firmware else "a file of integers alone"
        raise InputError(
            f"the float model of {network.graph.name} is needed", found=where, wanted=f"the {FLOAT_SUFFIX} it was made of",
            do="--model net.pt2, written by torch.export.save(torch.export.export(net.eval(), (example,)), 'net.pt2')",
        )  # fmt: skip
    return found


def _program(path: Path) -> ExportedProgram:
    """The float model in a file of any kind that compiles."""
    if path.suffix == FLOAT_SUFFIX:
        return load_pt2(path)
    loaded = load_model(str(path))
    assert loaded.module is not None  # a .pt2 alone is a program
    return export_module(loaded.module, loaded.example_inputs)


def _integer_outputs(network: Network, codes: Tensors, tell: Tell) -> tuple[Tensors, str]:
    """Outputs by the C on this computer and "", or by the integer reference and why not by the C."""
    why = "a file of integers has none"
    if network.firmware is not None:
        tell("building the C", 0.0)
        try:
            library = load(network.firmware.folder).library
            return library.run(codes, tell=lambda fraction: tell("running the C", fraction)), ""
        except ToolchainError as error:
            why = error.what
    return reference_outputs(network.graph, codes, lambda fraction: tell("integer reference", fraction)), why
