"""Our own fine-tuning loop, for those who have none: distillation from a float teacher, Adam, one cycle, phases, checkpoints.

A run is a function of its settings, its seed and its data: killed and taken up again it ends with the same codes and codewords as one
that was never interrupted (on one device and with one number of threads).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader

from kqgen.checkpoint import identity, read_checkpoint, write_checkpoint
from kqgen.errors import InputError
from kqgen.train_model import KqModule, Tempo
from kqgen.train_modules import BatchNormSwitch

_FINITE_EVERY = 20
_STATISTICS_BATCHES = 60
_WARM_PART = 0.15


@dataclass(frozen=True, slots=True)
class Settings:
    """How to fine-tune.

    Attributes:
        epochs: passes over the loader.
        rate: peak learning rate of Adam.
        codebook_factor: codewords, which sum the gradients of all their kernels and count in steps, learn so much faster.
        distillation: share of the teacher's distribution in the loss, the rest is the labels'; 0 without a teacher.
        softness: temperature of both distributions.
        smoothing: of the labels.
        seed: of everything the loop draws itself.
        tempo: when codes are renewed; its total is set by the run.

    Raises:
        InputError: a rate that is not positive.
    """

    epochs: int
    rate: float = 4e-3
    codebook_factor: float = 10.0
    distillation: float = 0.7
    softness: float = 2.0
    smoothing: float = 0.0
    seed: int = 0
    tempo: Tempo = field(default_factory=Tempo)

    def __post_init__(self) -> None:
        if not 0 < self.rate < math.inf:
            raise InputError("the learning rate must be a positive number", found=str(self.rate), do="for example 4e-3")


@dataclass(frozen=True, slots=True)
class Progress:
    """Where a run is.

    Attributes:
        epoch, epochs, step, steps: done and in all.
        phase: soft, hard, frozen or settled.
        loss: mean since the last report.
        accuracy: of the training batches since the last report, 0..1.
        changed: part of the codes changed by the last renewal.
        validation: accuracy of the integers on held-out samples, None before the first.
    """

    epoch: int
    epochs: int
    step: int
    steps: int
    phase: str
    loss: float
    accuracy: float
    changed: float
    validation: float | None


Batch = tuple[tuple[torch.Tensor, ...], torch.Tensor]
Report = Callable[[Progress], None]


def finetune(
    model: KqModule,
    loader: Iterable[Any],
    settings: Settings,
    *,
    teacher: nn.Module | None = None,
    validation: Callable[[KqModule], float] | None = None,
    checkpoint: Path | None = None,
    report: Report | None = None,
    origin: Mapping[str, Any] | None = None,
) -> Progress:
    """Trains a prepared model in place.

    With torch.distributed set up, gradients are averaged over all processes and every process ends with the same model.

    Args:
        loader: yields (inputs, labels); has a length; `set_epoch` is called when there is one.
        teacher: float model whose outputs are imitated; None trains on labels alone.
        validation: accuracy of the model on held-out samples, called in eval mode after the last epoch.
        checkpoint: file to keep the run in after every epoch; an existing one is taken up.
        report: told how it goes, a few times an epoch.
        origin: what else makes this run itself, such as its data; a checkpoint must agree in it.

    Raises:
        InputError: the loader is empty or has no length, labels are out of range, the checkpoint is damaged or of another run.
            Or the loss is no longer a number; the checkpoint of the last whole epoch is kept.
    """
    steps_per_epoch = _length(loader)
    device = next(model.net.parameters()).device
    total = settings.epochs * steps_per_epoch
    model.tempo = replace(settings.tempo, total_steps=total)
    model.set_extra_state({"step": 0})
    torch.manual_seed(settings.seed)
    groups = parameter_groups(model, settings)
    optimiser = torch.optim.Adam(groups, fused=device.type == "cuda")
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, [group["lr"] for group in groups], total_steps=max(2, total), pct_start=_WARM_PART
    )
    share_state(model)
    run = {**identity(model, settings), "steps per epoch": steps_per_epoch, "processes": world(), **(origin or {})}
    start = _take_up(read_checkpoint(checkpoint, run, device), model, optimiser, schedule) if checkpoint and checkpoint.exists() else 0
    state = _Run(model, loader, settings, teacher, optimiser, schedule, report, steps_per_epoch)
    for epoch in range(start, settings.epochs):
        state.epoch(epoch)
        if checkpoint is not None and _rank() == 0:
            write_checkpoint(checkpoint, _content(epoch + 1, model, optimiser, schedule), run)
    if model.phase(total - 1) != "settled":  # too short a run for a settled step, which begins with these
        state.estimate_statistics()
    share_state(model)
    model.eval()
    return state.progress(settings.epochs, validation(model) if validation is not None else None)


def parameter_groups(model: KqModule, settings: Settings) -> list[dict[str, Any]]:
    """Codewords apart from everything else, each with its learning rate; no weight decay."""
    words = [book.values for book in model.codebooks().values()]
    known = {id(each) for each in words}
    latents = {id(latent) for _, _, latent in model.indexed()}
    others = [each for each in model.parameters() if id(each) not in known and (each.requires_grad or id(each) in latents)]
    groups = [{"params": others, "lr": settings.rate}]
    return [*groups, {"params": words, "lr": settings.rate * settings.codebook_factor}] if words else groups


class _Run:
    """One run's moving parts."""

    def __init__(
        self, model: KqModule, loader: Iterable[Any], settings: Settings, teacher: nn.Module | None, optimiser: torch.optim.Optimizer,
        schedule: torch.optim.lr_scheduler.LRScheduler, report: Report | None, steps_per_epoch: int,
    ) -> None:  # fmt: skip
        self.model, self.loader, self.settings = model, loader, settings
        self.teacher = teacher.eval() if teacher is not None else None
        self.optimiser, self.schedule, self.report = optimiser, schedule, report
        self.steps_per_epoch = steps_per_epoch
        self.device = next(model.net.parameters()).device
        self.sums = torch.zeros(3, device=self.device)
        self.last = (math.nan, math.nan)
        self.first_bad = torch.zeros((), dtype=torch.int64, device=self.device)
        self.wrapped: nn.Module = model
        self.wrapped_phase = ""

    def progress(self, epoch: int, validation: float | None = None) -> Progress:
        loss, accuracy = self.last
        return Progress(
            epoch, self.settings.epochs, self.model.step, self.settings.epochs * self.steps_per_epoch, self.model.phase(), loss, accuracy,
            self.model.changed_codes(), validation,
        )  # fmt: skip

    def epoch(self, epoch: int) -> None:
        self.model.train()
        torch.manual_seed(self.settings.seed * 1_000_003 + epoch)
        set_epoch = getattr(self.loader, "set_epoch", None)
        if callable(set_epoch):
            set_epoch(epoch)
        every = max(1, self.steps_per_epoch // 4)
        done = 0
        for inputs, labels in batches(self.loader, self.device, check=epoch == 0):
            if done == self.steps_per_epoch:
                break
            done += 1
            self._step(inputs, labels)
            reports = self.report is not None and (done % every == 0 or done == self.steps_per_epoch)
            if reports or done % _FINITE_EVERY == 0 or done == self.steps_per_epoch:
                self._check_finite(whole=done == self.steps_per_epoch)
            if self.report is not None and reports:
                self._settle_sums()
                self.report(self.progress(epoch + 1))
        if done == 0:
            raise _nothing("0 batches")
        if done < self.steps_per_epoch:
            raise InputError(
                f"the training loader ended early in epoch {epoch + 1}",
                found=f"{done} batches",
                wanted=f"{self.steps_per_epoch}, its length",
            )
        self._settle_sums()

    def _step(self, inputs: tuple[torch.Tensor, ...], labels: torch.Tensor) -> None:
        model = self.model
        phase = model.phase()
        if phase == "settled" and (model.step == 0 or model.phase(model.step - 1) != "settled"):
            self.estimate_statistics()
        if phase != self.wrapped_phase:
            self._wrap(phase)
        outputs = _logits(self.wrapped(*inputs))
        if outputs.dim() != 2 or len(labels) != len(outputs):
            raise InputError(
                "the model's outputs do not fit the labels",
                found=f"outputs {tuple(outputs.shape)}, labels {tuple(labels.shape)}",
                wanted="outputs (N, classes) and labels (N,)",
                do="train with your own loop and loss: model is an ordinary module",
            )
        if model.step <= self.steps_per_epoch:
            _check_labels(labels, outputs.shape[1])
        loss = F.cross_entropy(outputs, labels, label_smoothing=self.settings.smoothing)
        if self.teacher is not None and self.settings.distillation > 0:
            loss = (1 - self.settings.distillation) * loss + self.settings.distillation * self._imitation(inputs, outputs)
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimiser.step()
        self.schedule.step()
        with torch.no_grad():
            bad = torch.isfinite(loss.detach()).logical_not() & (self.first_bad == 0)
            self.first_bad = torch.where(bad, model.step, self.first_bad)
            self.sums += torch.stack([loss.detach(), (outputs.argmax(1) == labels).float().mean(), torch.ones_like(loss)])

    def _imitation(self, inputs: tuple[torch.Tensor, ...], outputs: torch.Tensor) -> torch.Tensor:
        assert self.teacher is not None
        soft = self.settings.softness
        with torch.no_grad():
            wanted = _logits(self.teacher(*inputs))
        if wanted.shape != outputs.shape:
            raise InputError(
                "the teacher's outputs do not fit the model's",
                found=f"{tuple(wanted.shape)}, of the model {tuple(outputs.shape)}",
                wanted="a teacher of the same classes",
            )
        return F.kl_div(F.log_softmax(outputs / soft, 1), F.softmax(wanted / soft, 1), reduction="batchmean") * soft * soft

    def _wrap(self, phase: str) -> None:
        """A phase changes which parameters learn, and the gradient exchange has to know."""
        self.model.enter(phase)
        self.wrapped_phase = phase
        if world() > 1:
            devices = [self.device.index] if self.device.type == "cuda" else None
            self.wrapped = nn.parallel.DistributedDataParallel(self.model, device_ids=devices)

    def estimate_statistics(self) -> None:
        """Batch norm statistics of the final codes: the mean over batches instead of a moving one."""
        self.model.train()
        self.model.enter("frozen")
        step = self.model.step
        norms = [module for module in self.model.net.modules() if isinstance(module, BatchNormSwitch)]
        for module in norms:
            module.averaged = 0
        with torch.no_grad():
            for number, (inputs, _) in enumerate(batches(_another(self.loader), self.device, check=False)):
                if number == _STATISTICS_BATCHES:
                    break
                self.model.net(*inputs)
        for module in norms:
            module.averaged = None
        self.model.step = step
        share_state(self.model)

    def _check_finite(self, *, whole: bool) -> None:
        """Stops at the first loss that was no number; `whole` looks for gradients that spoilt a parameter after the last loss too."""
        step = int(self.first_bad)
        what = "the loss"
        if step == 0 and whole and not all(bool(torch.isfinite(each).all()) for each in self.model.parameters()):
            step, what = self.model.step, "a parameter"
        if step:
            raise InputError(
                f"{what} became NaN or infinite at step {step}",
                found=f"epoch {1 + (step - 1) // self.steps_per_epoch}, phase {self.model.phase(step - 1)}",
                wanted="finite numbers",
                do="lower the learning rate; the checkpoint of the last whole epoch, if one was asked for, is kept",
            )

    def _settle_sums(self) -> None:
        loss, accuracy, count = self.sums.tolist()
        if count > 0:
            self.last = (loss / count, accuracy / count)
            self.sums.zero_()


def batches(loader: Iterable[Any], device: torch.device, *, check: bool) -> Iterator[Batch]:
    """The loader's batches on a device: a tuple of inputs, and labels.

    Raises:
        InputError: a batch is not (inputs, labels), or holds NaN (only when `check`).
    """
    for batch in loader:
        if not isinstance(batch, (tuple, list)) or len(batch) != 2 or not isinstance(batch[1], torch.Tensor):
            found = f"{type(batch).__name__} of {len(batch)}" if isinstance(batch, (tuple, list)) else type(batch).__name__
            raise InputError("a batch of the loader is not (inputs, labels)", found=found, wanted="two entries, labels a tensor")
        given, labels = batch
        if labels.dim() != 1 or labels.is_floating_point():
            raise InputError(
                "the labels have the wrong form", found=f"{labels.dtype} {tuple(labels.shape)}", wanted="whole numbers (N,), one a sample"
            )
        inputs = tuple(given) if isinstance(given, (tuple, list)) else (given,)
        if check and not all(bool(torch.isfinite(each).all()) for each in inputs if each.is_floating_point()):
            raise InputError("a batch of the loader holds NaN or infinity", wanted="finite inputs", do="check the data set")
        yield tuple(each.to(device, non_blocking=True) for each in inputs), labels.to(device, torch.int64, non_blocking=True)


def _another(loader: Iterable[Any]) -> Iterable[Any]:
    """The loader for an iteration inside another: one whose workers stay has a single iterator, and would start that anew."""
    if not isinstance(loader, DataLoader) or not loader.persistent_workers:
        return loader
    twin = copy.copy(loader)
    twin._iterator = None
    return twin


def _check_labels(labels: torch.Tensor, classes: int) -> None:
    low, high = (int(each) for each in torch.aminmax(labels))
    if low < 0 or high >= classes:
        raise InputError(
            "a label is out of range", found=str(low if low < 0 else high), wanted=f"0 to {classes - 1}: the model has {classes} outputs"
        )


def _logits(made: Any) -> torch.Tensor:
    first = made[0] if isinstance(made, (tuple, list)) else made
    if not isinstance(first, torch.Tensor):
        raise InputError("the model's first output is no tensor", found=type(first).__name__, wanted="(N, classes)")
    return first


def _nothing(found: str) -> InputError:
    return InputError("the training loader yields nothing", found=found, wanted="batches of (inputs, labels)", do="check its data set")


def _length(loader: Iterable[Any]) -> int:
    try:
        length = len(loader)  # type: ignore[arg-type]
    except TypeError as error:
        raise InputError(
            "the training loader has no length", wanted="a loader with len(): the schedule needs the number of steps", do="use a DataLoader"
        ) from error
    if length == 0:
        raise _nothing("length 0")
    return length


def _content(
    epoch: int, model: KqModule, optimiser: torch.optim.Optimizer, schedule: torch.optim.lr_scheduler.LRScheduler
) -> Mapping[str, Any]:
    return {
        "epoch": epoch,
        "step": model.step,
        "model": model.net.state_dict(),
        "optimiser": optimiser.state_dict(),
        "schedule": {key: value for key, value in schedule.state_dict().items() if isinstance(value, (int, float, list))},
        "soft": {name: [made.temperature, made.near, made.near_signs] for name, made, _ in model.indexed()},
    }


def _take_up(
    content: Mapping[str, Any], model: KqModule, optimiser: torch.optim.Optimizer, schedule: torch.optim.lr_scheduler.LRScheduler
) -> int:
    model.net.load_state_dict(content["model"])
    optimiser.load_state_dict(content["optimiser"])
    schedule.load_state_dict(content["schedule"])
    model.set_extra_state({"step": content["step"]})
    for name, made, _ in model.indexed():
        made.temperature, made.near, made.near_signs = content["soft"][name]
    return int(content["epoch"])


def world() -> int:
    """How many processes train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def _rank() -> int:
    return dist.get_rank() if world() > 1 else 0


def share_state(model: KqModule) -> None:
    """Gives every process the first one's parameters, codes, ranges and statistics."""
    if world() > 1:
        for tensor in (*model.parameters(), *model.buffers()):
            if tensor.numel() > 0:
                dist.broadcast(tensor.data, 0)


