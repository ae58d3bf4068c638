"""Our own loop: it learns, a killed run ends as an unbroken one, and what cannot be trained is said clearly with nothing lost."""

from __future__ import annotations

import copy
import io
import math
import os
import pickle
import re
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from trainnets import Batches, Small, differing, make, maps, one_thread, state_of

from kqgen import training
from kqgen.errors import InputError
from kqgen.options import Codebook
from kqgen.train_loop import Progress, Settings
from kqgen.train_model import KqModule, Tempo

_one_thread = one_thread

EPOCHS = 4
SETTINGS = Settings(EPOCHS, rate=2e-3, seed=5, tempo=Tempo(soft_part=0.2, frozen_part=0.6, settled_part=0.4, revival_steps=3))
"""Every phase, and the last of them longer than an epoch."""


class StoppedError(Exception):
    """The run was killed here."""


@cache
def start() -> KqModule:
    inputs, _ = maps(8)
    return training.prepare(make(Small), example_inputs=(inputs[:1],), codebook=Codebook("network", 6))


def prepared() -> KqModule:
    return copy.deepcopy(start())


def loader(count: int = 48) -> Batches:
    return Batches(*maps(count), 8)


def finetune(model: KqModule, data: Any = None, settings: Settings = SETTINGS, **more: Any) -> Progress:
    return training.finetune(
        model, loader() if data is None else data, epochs=settings.epochs, settings=settings, teacher=make(Small, 3), **more
    )


def message(error: pytest.ExceptionInfo[InputError]) -> str:
    return str(error.value)


# Learning


def test_it_learns_and_tells_how_it_goes() -> None:
    told: list[Progress] = []
    model = other_network(codebook=Codebook("network", 24))
    data = Batches(*maps(96), 8)
    settings = Settings(8, rate=4e-2)
    end = training.finetune(model, data, epochs=8, settings=settings, validation=Batches(*maps(60, seed=4), 20), report=told.append)
    assert told[-1].loss < 0.7 * told[0].loss
    assert end.validation is not None
    assert end.validation > 0.9
    assert end.validation == training.accuracy(model, Batches(*maps(60, seed=4), 20))
    assert not model.training
    assert [each.epoch for each in told] == sorted(each.epoch for each in told)
    assert (told[-1].step, told[-1].steps, told[-1].epoch, told[-1].epochs) == (96, 96, 8, 8)
    assert {each.phase for each in told} == {"hard", "frozen", "settled"}
    assert all(0 <= each.accuracy <= 1 and 0 <= each.changed <= 1 for each in told)


def test_a_teacher_is_imitated() -> None:
    """With labels that say nothing: the student comes nearer to the teacher's answers; the teacher stays as it was."""
    inputs, _ = maps(96)
    teacher = make(Small, 3).train()
    before = state_of(teacher)
    wanted = copy.deepcopy(teacher).eval()(inputs).detach().softmax(1)

    def far(model: KqModule) -> float:
        with torch.no_grad():
            return float((model.simulate(inputs).softmax(1) - wanted).abs().mean())

    model = prepared()
    model(inputs)
    first = far(model)
    settings = Settings(6, rate=1e-2, distillation=1.0)
    training.finetune(model, Batches(inputs, torch.zeros(96, dtype=torch.int64), 16), teacher=teacher, epochs=6, settings=settings)
    assert far(model) < 0.6 * first
    assert differing(before, state_of(teacher)) == []
    assert teacher.training


def test_a_second_run_starts_at_its_beginning() -> None:
    """A model that was trained before, by us or by the user's own loop, goes through all phases again."""
    model = prepared()
    settings = Settings(1, rate=2e-3)
    for steps in (0, 3):
        model.step = steps
        seen: list[Progress] = []
        training.finetune(model, loader(), epochs=1, settings=settings, report=seen.append)
        assert [each.step for each in seen] == [1, 2, 3, 4, 5, 6]
        assert [each.phase for each in seen[:3]] == ["hard"] * 3


# The same again


@cache
def unbroken() -> dict[str, torch.Tensor]:
    model = prepared()
    finetune(model)
    return state_of(model)


def test_a_run_is_a_function_of_its_seed() -> None:
    model, other = prepared(), prepared()
    torch.manual_seed(99)
    finetune(model)
    finetune(other, settings=replace(SETTINGS, seed=6))
    assert differing(unbroken(), state_of(model)) == []
    assert differing(unbroken(), state_of(other)) != []


@pytest.mark.parametrize("epoch", [1, 2, 3, 4])
def test_a_killed_run_ends_as_an_unbroken_one(epoch: int, tmp_path: Path) -> None:
    """Killed in the middle of an epoch, of each phase."""
    file = tmp_path / "run.checkpoint"

    def report(now: Progress) -> None:
        if now.epoch == epoch and now.step % 6 == 3:
            raise StoppedError

    with pytest.raises(StoppedError):
        finetune(prepared(), checkpoint=file, report=report)
    assert file.exists() == (epoch > 1)
    model = prepared()
    seen: list[Progress] = []
    finetune(model, checkpoint=file, report=seen.append)
    assert min(each.epoch for each in seen) == epoch
    assert differing(unbroken(), state_of(model)) == []
    assert [path.name for path in tmp_path.iterdir()] == ["run.checkpoint"]


def test_a_finished_run_is_not_trained_again(tmp_path: Path) -> None:
    model, again = prepared(), prepared()
    finetune(model, checkpoint=tmp_path / "run.checkpoint")
    seen: list[Progress] = []
    finetune(again, checkpoint=tmp_path / "run.checkpoint", report=seen.append)
    assert seen == []
    assert differing(unbroken(), state_of(again)) == []


def test_a_checkpoint_is_replaced_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that is full when the second is written leaves the first as it was, and no other file."""
    file = tmp_path / "run.checkpoint"
    write, written = Path.write_bytes, []

    def full(path: Path, data: Any) -> int:
        written.append(path)
        if len(written) == 2:
            write(path, data[: len(data) // 2])
            raise OSError(28, "No space left on device", str(path))
        return write(path, data)

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="No space left"):
        finetune(prepared(), checkpoint=file)
    assert all(path != file and path.parent == tmp_path for path in written)
    assert [path.name for path in tmp_path.iterdir()] == ["run.checkpoint"]
    monkeypatch.undo()
    model = prepared()
    seen: list[Progress] = []
    finetune(model, checkpoint=file, report=seen.append)
    assert seen[0].epoch == 2
    assert differing(unbroken(), state_of(model)) == []


# Files that are no checkpoint of this run


@cache
def kept() -> bytes:
    """The checkpoint of the whole run."""
    with tempfile.TemporaryDirectory() as folder:
        finetune(prepared(), checkpoint=Path(folder) / "run.checkpoint")
        return (Path(folder) / "run.checkpoint").read_bytes()


def refused(tmp_path: Path, content: bytes, **run: Any) -> str:
    """The message of a run that finds `content` at its checkpoint; model and file stay as they were."""
    file = tmp_path / "run.checkpoint"
    file.write_bytes(content)
    model = run.pop("model", None) or prepared()
    with pytest.raises(InputError) as error:
        finetune(model, checkpoint=file, **run)
    assert file.read_bytes() == content
    assert [path.name for path in tmp_path.iterdir()] == ["run.checkpoint"]
    assert f"delete {file} to start anew" in message(error)
    assert len(message(error).splitlines()) <= 5
    return message(error)


def _flipped() -> bytes:
    """One bit of the largest tensor."""
    content = bytearray(kept())
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        largest = max((entry for entry in archive.infolist() if "/data/" in entry.filename), key=lambda entry: entry.file_size)
        at = content.index(archive.read(largest))
    content[at + largest.file_size // 2] ^= 0x10
    return bytes(content)


def _member(name: str) -> bytes:
    """A zip archive with one entry."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr(name, b"0")
    return file.getvalue()


def _saved(content: object) -> bytes:
    file = io.BytesIO()
    torch.save(content, file)
    return file.getvalue()


class Harmful:
    """A pickle that would run code."""

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return os.mkdir, ("harm",)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (lambda: b"", "cannot be read as a checkpoint"),
        (lambda: kept()[:1], "cannot be read as a checkpoint"),
        (lambda: kept()[:1000], "cannot be read as a checkpoint"),
        (lambda: kept()[: len(kept()) // 2], "cannot be read as a checkpoint"),
        (lambda: kept()[:-1], "cannot be read as a checkpoint"),
        (_flipped, "cannot be read as a checkpoint"),
        (lambda: b"no archive at all" * 100, "cannot be read as a checkpoint"),
        (lambda: pickle.dumps({"mark": "kqgen training run"}), "cannot be read as a checkpoint"),
        (lambda: _member("notes.txt"), "cannot be read as a checkpoint"),
        (lambda: _saved(Harmful()), "cannot be read as a checkpoint"),
        (lambda: _saved({"weight": torch.zeros(3)}), "is no checkpoint of kqgen"),
        (lambda: _saved([1, 2]), "is no checkpoint of kqgen"),
        (lambda: _saved({"mark": "kqgen training run"}), "has another schema"),
        (lambda: _saved({"mark": "kqgen training run", "schema": 2, "run": {}, "content": {}}), "has another schema"),
    ],
)
def test_a_file_that_is_no_checkpoint_is_left_alone(content: Callable[[], bytes], says: str, tmp_path: Path) -> None:
    assert says in refused(tmp_path, content())
    assert not Path("harm").exists()


def other_network(**options: Any) -> KqModule:
    inputs, _ = maps(8)
    chosen: dict[str, Any] = {"codebook": Codebook("network", 6), **options}
    return training.prepare(make(Small, chosen.pop("weights_of", 0)), example_inputs=(inputs[:1],), **chosen)


@pytest.mark.parametrize(
    ("run", "found", "wanted"),
    [
        (lambda: {"settings": replace(SETTINGS, epochs=5)}, "epochs 4", "epochs 5"),
        (lambda: {"settings": replace(SETTINGS, rate=1e-3)}, "rate 0.002", "rate 0.001"),
        (lambda: {"settings": replace(SETTINGS, tempo=Tempo())}, "frozen_part 0.6", "frozen_part 0.2"),
        (lambda: {"data": Batches(*maps(40), 8)}, "steps per epoch 6", "steps per epoch 5"),
        (lambda: {"model": other_network(weights_of=1)}, "float network", "float network"),
        (lambda: {"model": other_network(keep=(("first", 8),))}, "stored weights", "stored weights"),
        (lambda: {"model": other_network(codebook=Codebook("layer", 6))}, "stored weights", "stored weights"),
        (lambda: {"model": other_network(codebook=Codebook("network", 6, sign=False))}, "stored weights", "stored weights"),
    ],
)
def test_the_checkpoint_of_another_run_is_left_alone(
    run: Callable[[], dict[str, Any]], found: str, wanted: str, tmp_path: Path
) -> None:
    said = refused(tmp_path, kept(), **run())
    assert "is the checkpoint of another run" in said
    lines = dict(line.strip().split(maxsplit=1) for line in said.splitlines()[1:])
    assert found in lines["found"]
    assert wanted in lines["wanted"]
    assert lines["found"] != lines["wanted"]
    assert "give the same settings again" in said


# Loaders and labels


class Loader:
    """A loader that claims a length and yields what it is told."""

    def __init__(self, length: int | None, items: Callable[[], Iterator[Any]]) -> None:
        self.length, self.items = length, items

    def __iter__(self) -> Iterator[Any]:
        return self.items()

    def __len__(self) -> int:
        if self.length is None:
            raise TypeError("object of type 'Loader' has no len()")
        return self.length


def first(count: int) -> list[Any]:
    return list(loader())[:count]


def with_labels(change: Callable[[torch.Tensor], torch.Tensor], at: int = 0) -> list[Any]:
    made = first(6)
    made[at] = (made[at][0], change(made[at][1].clone()))
    return made


def put(index: int, value: int) -> Callable[[torch.Tensor], torch.Tensor]:
    return lambda labels: labels.index_fill(0, torch.tensor([index]), value)


@pytest.mark.parametrize(
    ("length", "items", "says"),
    [
        (0, list, ("yields nothing", "length 0")),
        (3, list, ("yields nothing", "0 batches")),
        (None, lambda: first(6), ("has no length", "use a DataLoader")),
        (6, lambda: first(4), ("ended early in epoch 1", "4 batches", "6, its length")),
        (2, lambda: [x for x, _ in first(2)], ("a batch of the loader is not (inputs, labels)", "Tensor")),
        (2, lambda: [(*batch, 1) for batch in first(2)], ("not (inputs, labels)", "tuple of 3")),
        (2, lambda: [(x, y.tolist()) for x, y in first(2)], ("not (inputs, labels)", "labels a tensor")),
        (2, lambda: [(x, y[:5]) for x, y in first(2)], ("do not fit the labels", "(8, 3)", "(5,)")),
        (2, lambda: [(x, y[:, None]) for x, y in first(2)], ("the labels have the wrong form", "(8, 1)", "(N,)")),
        (2, lambda: [(x, y.float()) for x, y in first(2)], ("the labels have the wrong form", "float32", "whole numbers")),
        (6, lambda: with_labels(put(2, -1)), ("a label is out of range", "found    -1", "0 to 2", "3 outputs")),
        (6, lambda: with_labels(put(2, 3), at=4), ("a label is out of range", "found    3", "0 to 2")),
        (6, lambda: [(x * math.nan, y) for x, y in first(6)], ("NaN or infinity", "check the data set")),
        (6, lambda: [(x / 0, y) for x, y in first(6)], ("NaN or infinity",)),
    ],
)
def test_loaders_and_labels_that_cannot_be_right(
    length: int | None, items: Callable[[], list[Any]], says: tuple[str, ...], tmp_path: Path
) -> None:
    with pytest.raises(InputError) as error:
        finetune(prepared(), Loader(length, lambda: iter(items())), checkpoint=tmp_path / "run.checkpoint")
    assert [text for text in says if text not in message(error)] == []
    assert list(tmp_path.iterdir()) == []


def test_a_loader_that_yields_more_than_its_length_is_cut() -> None:
    model = prepared()
    finetune(model, Loader(2, lambda: iter(first(6))), settings=Settings(1))
    assert model.step == 2


def test_a_data_loader_whose_workers_stay_will_do() -> None:
    """Its iterators are one and the same, and statistics are estimated in the middle of an epoch: the epoch goes on unharmed."""
    data = torch.utils.data.TensorDataset(*maps(48))
    model = prepared()
    told: list[Progress] = []
    workers = torch.utils.data.DataLoader(data, 8, shuffle=True, num_workers=1, persistent_workers=True)
    finetune(model, workers, settings=replace(SETTINGS, epochs=2), report=told.append)
    assert model.step == 12
    assert told[-1].phase == "settled"


def test_a_plain_list_of_batches_will_do() -> None:
    model = prepared()
    finetune(model, first(3), settings=Settings(2))
    assert model.step == 6


# Numbers that are none


class Spoiling(nn.Module):
    """A teacher that answers NaN from its call number `at` on."""

    def __init__(self, at: int, value: float) -> None:
        super().__init__()
        self.calls, self.at, self.value = [0], at, value

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls[0] += 1
        return torch.full((len(x), 3), self.value if self.calls[0] == self.at else 0.0)


@pytest.mark.parametrize(("at", "epoch", "phase"), [(1, 1, "hard"), (8, 2, "hard"), (11, 2, "hard"), (12, 2, "hard"), (17, 3, "frozen")])
@pytest.mark.parametrize("told", [True, False])
def test_the_first_loss_that_is_no_number_stops_the_run(at: int, epoch: int, phase: str, told: bool, tmp_path: Path) -> None:
    """At that step and no other, also where only one step's loss is; the checkpoint is that of the last whole epoch."""
    file = tmp_path / "run.checkpoint"
    settings = Settings(3, tempo=Tempo(frozen_part=0.3))
    losses: list[float] = []
    more: dict[str, Any] = {"report": lambda now: losses.append(now.loss)} if told else {}
    with pytest.raises(InputError) as error:
        training.finetune(
            prepared(), loader(), epochs=3, settings=settings, teacher=Spoiling(at, math.nan), checkpoint=file, **more
        )
    assert f"the loss became NaN or infinite at step {at}\n" in message(error)
    assert f"epoch {epoch}, phase {phase}" in message(error)
    assert "lower the learning rate" in message(error)
    assert all(math.isfinite(loss) for loss in losses)
    assert file.exists() == (epoch > 1)
    if epoch > 1:
        model = prepared()
        seen: list[Progress] = []
        training.finetune(model, loader(), epochs=3, settings=settings, teacher=Spoiling(0, 0), checkpoint=file, report=seen.append)
        assert seen[0].epoch == epoch
        assert all(bool(tensor.isfinite().all()) for tensor in state_of(model).values())


def test_gradients_that_spoil_parameters_in_the_last_step_of_an_epoch_are_seen(tmp_path: Path) -> None:
    """The loss was a number still; a checkpoint of such parameters would be lost work."""
    file = tmp_path / "run.checkpoint"
    model = prepared()
    parameter = next(iter(dict(model.net.named_parameters()).values()))
    parameter.register_hook(lambda gradient: gradient * math.nan if model.step == 6 else gradient)  # type: ignore[no-untyped-call]
    with pytest.raises(InputError, match="a parameter became NaN or infinite at step 6"):
        finetune(model, settings=Settings(2), checkpoint=file)
    assert not file.exists()


def test_a_rate_that_is_too_high_is_named_as_the_reason(tmp_path: Path) -> None:
    model = prepared()
    with pytest.raises(InputError, match="became NaN or infinite at step") as error:
        training.finetune(model, loader(), epochs=4, rate=1e30, checkpoint=tmp_path / "a")
    step = int(re.findall(r"at step (\d+)", message(error))[0])
    assert 1 <= step <= 24


@pytest.mark.parametrize("rate", [0.0, -1.0, math.nan, math.inf])
def test_rates_that_are_none(rate: float) -> None:
    with pytest.raises(InputError, match="the learning rate must be a positive number"):
        training.finetune(prepared(), loader(), epochs=1, rate=rate)


@pytest.mark.parametrize("part", ["soft_part", "frozen_part", "settled_part", "cap", "revival_part"])
def test_parts_are_parts(part: str) -> None:
    for value in (-0.1, 1.1, math.nan):
        with pytest.raises(InputError, match=part.replace("_", " ")):
            replace(Tempo(), **{part: value})  # type: ignore[arg-type]


# What is given as model, teacher, validation


class Two(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.mean((2, 3))


def test_what_does_not_fit_is_said() -> None:
    with pytest.raises(InputError, match=r"the model is not prepared(.|\n)*kq.prepare"):
        training.finetune(make(Small), loader(), epochs=1)  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"nothing to train(.|\n)*0 epochs"):
        training.finetune(prepared(), loader(), epochs=0)
    with pytest.raises(InputError, match=r"the teacher's outputs do not fit(.|\n)*\(8, 2\), of the model \(8, 3\)"):
        training.finetune(prepared(), loader(), teacher=Two(), epochs=1)
    with pytest.raises(InputError, match="validation loader yields nothing"):
        training.finetune(prepared(), loader(), epochs=1, validation=[])
