"""One fine-tuning run as the command line asks for it, in one process or in several that torchrun started."""

from __future__ import annotations

import math
import os
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from kqgen.allocate import settle
from kqgen.errors import InputError
from kqgen.frontend_names import c_identifier
from kqgen.goal import Goal
from kqgen.ir import Graph
from kqgen.loading import load_model, with_examples
from kqgen.options import Compression
from kqgen.train_blueprint import draw
from kqgen.train_data import ArrayLoader, Labelled, read_labelled
from kqgen.train_graph import trainable
from kqgen.train_loop import Progress, Settings, finetune
from kqgen.train_model import KqModule
from kqgen.train_prepare import build
from kqgen.training import SUFFIX, accuracy, bits_per_weight, float_twin, integers, save

_JUDGED_BATCH = 250


@dataclass(frozen=True, slots=True)
class Job:
    """What `kqgen finetune` was asked for.

    Attributes:
        model, state: as `kqgen compile` takes them.
        train: labelled .npz.
        validation: labelled .npz; None judges on `held_out` samples of `train`.
        held_out: samples of `train` kept for judging.
        out: file to write.
        wish: how weights are stored.
        settings: epochs, rate, seed.
        batch: samples a step, over all processes.
        augment: see `ArrayLoader`.
        teacher, teacher_state: float model to imitate; None takes the model itself.
        checkpoint: kept after every epoch, taken up when it is there, deleted when `out` is written.
        device: "cuda", "cpu", or None for the first there is.
        name: C identifier, None for the stem of `out`.
    """

    model: str
    state: Path | None
    train: Path
    validation: Path | None
    held_out: int
    out: Path
    wish: Goal | Compression
    settings: Settings
    batch: int
    augment: tuple[str, ...]
    teacher: str | None
    teacher_state: Path | None
    checkpoint: Path
    device: str | None
    name: str | None


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a run came to.

    Attributes:
        progress: its end.
        samples: that accuracies were measured on.
        float_accuracy: of the float model, 0..1.
        accuracy: of the integers, 0..1.
        bits_per_weight: of the convolutions.
        table_bytes: of indices, codebooks and weights of all layers.
        first: this process writes and speaks; of several only one does.
    """

    progress: Progress
    samples: int
    float_accuracy: float
    accuracy: float
    bits_per_weight: float
    table_bytes: int
    first: bool


def run_job(job: Job, report: Callable[[Progress, float], None], tell: Callable[[str], None]) -> Outcome:
    """Runs it and writes the file.

    Args:
        report: told progress and bits for each weight of the convolutions.
        tell: told what is being done before training starts.

    Raises:
        KqgenError: see `training`; `out` has not been written then.
    """
    if not job.out.name.endswith(SUFFIX):
        raise InputError(f"--out {job.out} does not end in {SUFFIX}", do=f"--out {job.out.with_suffix('').name}{SUFFIX}")
    for path in (job.out, job.checkpoint):
        if not path.parent.is_dir():
            raise InputError(f"there is no folder to write {path} into", found=str(path.parent), do=f"mkdir -p {path.parent}")
    tell("reading the data")
    data = read_labelled(job.train)
    held, rest = _judged(job, data)
    with _processes(job.device) as (device, rank, count):
        tell("preparing the model")
        model = _prepared(job, data, held).to(device)
        bits = bits_per_weight(integers(model)) if model.blueprint.refusal is None else 0.0
        loader = ArrayLoader(rest.to(device), job.batch, seed=job.settings.seed, augment=job.augment, rank=rank, world=count)
        twin = float_twin(model)
        teacher = twin if job.teacher is None else _teacher(job.teacher, job.teacher_state).to(device)
        first = rank == 0
        progress = finetune(
            model, loader, job.settings, teacher=teacher, checkpoint=job.checkpoint,
            report=(lambda now: report(now, bits)) if first else None, origin=_origin(job, data),
        )  # fmt: skip
        tell("judging the integers")
        if not first:
            return Outcome(progress, 0, 0.0, 0.0, 0.0, 0, first)
        save(model, job.out)
        graph = integers(model)
        table_bytes = sum(node.weights.packed_bytes for node in graph.nodes if hasattr(node, "weights"))
        table_bytes += sum(book.packed_bytes for book in graph.codebooks)
        outcome = Outcome(
            progress, len(held), accuracy(twin, _tail(held)), accuracy(model, _tail(held)), bits_per_weight(graph),
            table_bytes, first,
        )  # fmt: skip
        job.checkpoint.unlink(missing_ok=True)
        return outcome


def _origin(job: Job, data: Labelled) -> dict[str, Any]:
    """What makes a run itself beside its settings and its network."""
    return {
        "samples": f"{tuple(data.inputs.shape)}, labels {zlib.crc32(data.labels.numpy().tobytes()):08x}",
        "held out": job.held_out if job.validation is None else 0,
        "batch": job.batch,
        "augment": ",".join(job.augment),
        "teacher": job.teacher or "",
    }


def _tail(held: Labelled) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Every sample once; a training loader drops what does not fill a batch."""
    for start in range(0, len(held), _JUDGED_BATCH):
        part = slice(start, start + _JUDGED_BATCH)
        yield held.inputs[part].float(), held.labels[part]


def _judged(job: Job, data: Labelled) -> tuple[Labelled, Labelled]:
    """(samples to judge on, samples to train on)."""
    if job.validation is not None:
        return read_labelled(job.validation), data
    if not 0 < job.held_out < len(data):
        raise InputError(
            "the training set is too small to keep samples for judging",
            found=f"{len(data)} samples, {job.held_out} to be held out",
            wanted="fewer held out than there are",
            do="give --validation, or a smaller --hold-out",
        )
    rest, held = data.split(job.held_out, job.settings.seed)
    return held, rest


def _check_fit(path: Path, data: Labelled, graph: Graph) -> None:
    """Refuses inputs and labels that the network cannot have been made for."""
    wanted = [node.shape for node in graph.inputs]
    if wanted != [(*data.inputs.shape[1:], 1, 1)[:3]]:
        raise InputError(
            f"the inputs of {path} do not fit {graph.name}", found=str(tuple(data.inputs.shape)),
            wanted=" and ".join(f"(N, {', '.join(map(str, shape))})" for shape in wanted),
        )  # fmt: skip
    classes = math.prod(graph.node(graph.outputs[0]).shape)
    wrong = data.labels[(data.labels < 0) | (data.labels >= classes)]
    if len(wrong):
        raise InputError(
            f"a label of {path} is out of range", found=str(int(wrong[0])),
            wanted=f"0 to {classes - 1}: {graph.name} has {classes} outputs",
        )  # fmt: skip


def _prepared(job: Job, data: Labelled, held: Labelled) -> KqModule:
    loaded = load_model(job.model, job.state)
    if loaded.program is None:
        loaded = with_examples(loaded, [tuple(data.inputs.shape)])
    found = loaded.program or loaded.module
    assert found is not None
    blueprint = draw(found, tuple(loaded.example_inputs), c_identifier(job.name or job.out.name.removesuffix(SUFFIX)))
    if blueprint.refusal is not None:
        raise blueprint.refusal
    _check_fit(job.train, data, blueprint.graph)
    if job.validation is not None:
        _check_fit(job.validation, held, blueprint.graph)
    wish = job.wish
    compression = settle(blueprint.graph, wish, None, None).compression if isinstance(wish, Goal) else wish
    return build(found if isinstance(found, nn.Module) else None, blueprint, compression)


def _teacher(model: str, state: Path | None) -> nn.Module:
    loaded = load_model(model, state)
    net = loaded.module
    if loaded.program is not None:
        net = trainable(draw(loaded.program, (), "teacher").program, None, {})
    assert net is not None
    return net.eval().requires_grad_(False)


@contextmanager
def _processes(device: str | None) -> Iterator[tuple[torch.device, int, int]]:
    """(device, rank, how many processes); sets up the exchange where torchrun started several."""
    cuda = torch.cuda.is_available() if device is None else device == "cuda"
    count, rank, local = (int(os.environ.get(key, default)) for key, default in (("WORLD_SIZE", "1"), ("RANK", "0"), ("LOCAL_RANK", "0")))
    if cuda and not torch.cuda.is_available():
        raise InputError("there is no CUDA device", found="--device cuda", do="--device cpu")
    place = torch.device("cuda", local) if cuda else torch.device("cpu")
    if count == 1:
        yield place, 0, 1
        return
    if cuda:
        torch.cuda.set_device(place)
    dist.init_process_group("nccl" if cuda else "gloo")
    try:
        yield place, rank, count
    finally:
        dist.destroy_process_group()
