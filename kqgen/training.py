"""Training with codewords, as users call it: prepare a module, train it in their loop or ours, keep what the C needs.

    model = kq.prepare(model, codebook=Codebook("network", 256), example_inputs=(images[:1],))
    kq.finetune(model, loader, teacher=float_model, epochs=80)
    kq.save(model, "net.kq.safetensors")
"""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.export import ExportedProgram

from kqgen import store
from kqgen.allocate import settle
from kqgen.calibrate import Ranges, calibrate
from kqgen.errors import InputError
from kqgen.frontend_names import c_identifier
from kqgen.goal import Goal, goal_or_options
from kqgen.intgraph import IntGraph
from kqgen.options import Codebook, Compression, Weights
from kqgen.report import bits_per_weight as stored_bits
from kqgen.samples import Samples, read_samples
from kqgen.train_blueprint import Blueprint, draw
from kqgen.train_graph import trainable
from kqgen.train_loop import Progress, Settings, batches
from kqgen.train_loop import finetune as run
from kqgen.train_model import KqModule, Tempo
from kqgen.train_prepare import build, start_ranges

SUFFIX = ".kq.safetensors"


def prepare(
    model: nn.Module | ExportedProgram,
    *,
    example_inputs: Sequence[torch.Tensor] = (),
    codebook: Codebook | None = None,
    weights: Weights = "kq",
    keep: Sequence[tuple[str, int]] = (),
    widths: Sequence[tuple[str, int]] = (),
    groups: Sequence[Sequence[str]] = (),
    runs: Sequence[tuple[str, int]] = (),
    target_bits: float | None = None,
    target_bytes: int | None = None,
    calibration: object = None,
    seed: int = 0,
    name: str = "model",
) -> KqModule:
    """An ordinary module that trains with codewords and int8 maps and, in eval mode, computes what the generated C will.

    In training mode it gives gradients; it renews its codes by itself. `model` is not changed.

    Args:
        model: any module that torch.export follows, or what torch.export made of one in eval mode. One that holds operators which do
            not compile is trained all the same.
        example_inputs: one tensor an input, with a batch axis; values do not matter. An exported program needs none.
        codebook, weights, keep, widths, groups, runs, seed: see `Compression`.
        target_bits, target_bytes: see `Target`; either chooses codewords and widths.
        calibration: typical inputs (path of an .npz, an array, or an iterable of batches) to start the ranges of maps from and to
            weigh layers by when a target is given. Without them the first training batches give the ranges.
        name: C identifier of the network.

    Raises:
        InputError: parameters on several devices, a forward() that cannot be exported, a layer that does not exist, a target out of reach.
    """
    if not isinstance(model, (nn.Module, ExportedProgram)):
        raise InputError("there is no module to prepare", found=type(model).__name__, wanted="a torch.nn.Module")
    devices = {tensor.device for tensor in (*model.parameters(), *model.buffers())}
    if len(devices) > 1:
        raise InputError(
            "the model lies on several devices", found=", ".join(sorted(map(str, devices))), wanted="one device", do='model.to("cuda")'
        )
    if any(device.type == "meta" for device in devices):
        raise InputError("the model has no values", found="device meta", wanted="parameters that hold numbers", do="load its weights first")
    wish = goal_or_options(
        weights, codebook, keep=keep, widths=widths, groups=groups, runs=runs, seed=seed, target_bits=target_bits,
        target_bytes=target_bytes,
    )
    blueprint = draw(model, example_inputs, c_identifier(name))
    samples, ranges = _calibrated(blueprint, calibration)
    compression = settle(blueprint.graph, wish, samples, ranges).compression if isinstance(wish, Goal) else wish
    prepared = build(model if isinstance(model, nn.Module) else None, blueprint, compression)
    if ranges is not None:
        start_ranges(prepared, ranges)
    return prepared.to(next(iter(devices))) if devices else prepared


def _calibrated(blueprint: Blueprint, calibration: object) -> tuple[Samples | None, Ranges | None]:
    if calibration is None or blueprint.refusal is not None:
        return None, None
    samples = read_samples(calibration, blueprint.graph)
    return samples, calibrate(blueprint.graph, samples)


def finetune(
    model: KqModule,
    train_loader: Iterable[Any],
    *,
    teacher: nn.Module | None = None,
    epochs: int,
    rate: float = 4e-3,
    validation: Iterable[Any] | None = None,
    checkpoint: str | Path | None = None,
    report: Callable[[Progress], None] | None = None,
    seed: int = 0,
    settings: Settings | None = None,
) -> Progress:
    """Trains a prepared model in place with our own loop.

    Args:
        train_loader: yields (inputs, labels); has a length, and `set_epoch` where its order shall depend on the epoch alone.
        teacher: the float model, whose outputs are imitated; a stronger one of the same classes is better still.
        epochs, rate, seed: see `Settings`; `settings` gives all of it and overrides these.
        validation: yields (inputs, labels); the accuracy of the integers on them ends the run.
        checkpoint: file to keep the run in after every epoch. An existing one is taken up, with the same result as an unbroken run.
        report: told how it goes, a few times an epoch.

    Raises:
        InputError: the loader is empty, labels are out of range, the checkpoint is damaged or of another run, or the loss is no longer
            a number: the last whole epoch's checkpoint is kept.
    """
    if not isinstance(model, KqModule):
        raise InputError("the model is not prepared", found=type(model).__name__, wanted="what kqgen.kq.prepare returned")
    if epochs < 1 and settings is None:
        raise InputError("there is nothing to train", found=f"{epochs} epochs", wanted="1 or more")
    chosen = settings or Settings(epochs, rate=rate, seed=seed)
    judge = (lambda trained: accuracy(trained, validation)) if validation is not None else None
    if teacher is not None:
        teacher = copy.deepcopy(teacher).to(next(model.net.parameters()).device).eval().requires_grad_(False)
    return run(
        model, train_loader, chosen, teacher=teacher, validation=judge, checkpoint=Path(checkpoint) if checkpoint else None, report=report
    )


def float_twin(model: KqModule) -> nn.Module:
    """The float network that `model` was prepared from, in eval mode, for any batch size: the teacher that is always at hand."""
    return trainable(model.blueprint.program, None, {}).to(next(model.net.parameters()).device).eval().requires_grad_(False)


def accuracy(model: nn.Module, loader: Iterable[Any]) -> float:
    """The share of samples whose largest output is the label's, 0..1; of a prepared model in eval mode, that of the integers."""
    device = next(model.parameters()).device
    right = count = 0
    was = model.training
    model.eval()
    with torch.no_grad():
        for inputs, labels in batches(loader, device, check=False):
            made = model(*inputs)
            first = made[0] if isinstance(made, (tuple, list)) else made
            right += int((first.flatten(1).argmax(1) == labels).sum())
            count += len(labels)
    model.train(was)
    if count == 0:
        raise InputError("the validation loader yields nothing", wanted="batches of (inputs, labels)")
    return right / count


def integers(model: KqModule, name: str | None = None) -> IntGraph:
    """The integer graph of a prepared model as it is now.

    Raises:
        UnsupportedError: it holds operators that do not compile.
    """
    graph = model.trained().integers
    return graph if name is None else replace(graph, name=c_identifier(name))


def save(model: KqModule, path: str | Path) -> None:
    """Writes all that the C needs, and nothing else, into one file; `kqgen compile` takes it.

    Args:
        path: ends in .kq.safetensors; the network is called after its stem.

    Raises:
        InputError: another ending, or a model that has seen no input.
        UnsupportedError: the model holds operators that do not compile. Nothing has been written then.
    """
    target = Path(path)
    if not target.name.endswith(SUFFIX):
        raise InputError(f"{target} does not end in {SUFFIX}", do=f"name it {target.stem}{SUFFIX}")
    graph = integers(model)
    model.check_ranges()
    if graph.name == "model":
        graph = integers(model, target.name.removesuffix(SUFFIX))
    content = store.to_bytes(graph, {"bits_per_weight": round(bits_per_weight(graph), 6)})
    beside = target.with_name(f"{target.name}.part{os.getpid()}")
    try:
        beside.write_bytes(content)
        os.replace(beside, target)
    finally:
        beside.unlink(missing_ok=True)


def bits_per_weight(graph: IntGraph) -> float:
    """Stored bits for each weight of the convolutions: indices, uniform weights, codebooks, padding to bytes; 0 without any."""
    return stored_bits(graph).conv or 0.0


__all__ = [
    "Compression", "KqModule", "Progress", "Settings", "Tempo", "accuracy", "bits_per_weight", "finetune", "integers", "prepare", "save",
]  # fmt: skip
