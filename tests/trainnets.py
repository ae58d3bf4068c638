"""Small modules to train, their data, and what tests of training do with a prepared one."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, cast
from unittest import mock

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import require_tool
from torch import nn

import kqgen
from kqgen import hostlib, pipeline, training
from kqgen.board import load_board


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Networks this small only lose by threads; test modules take it by a name of their own."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


CLASSES = 5
SIDE = 12


class Residual(nn.Module):
    """(N, 3, 12, 12) pixels -> (N, 5): input scaling, batch norms (negative gammas in the first), ReLU6, both pools, a shortcut
    without weights that takes every second pixel and adds channels, a layer without batch norm, a fully connected layer."""

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor([120.0, 110.0, 100.0]).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor([60.0, 50.0, 70.0]).view(1, 3, 1, 1))
        self.stem = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.narrow = nn.Conv2d(8, 12, 3, stride=2, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(12)
        self.plain = nn.Conv2d(12, 12, 3, padding=1)
        self.head = nn.Linear(12, CLASSES)
        with torch.no_grad():
            self.norm.weight[::3] *= -1.0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = (x - self.mean) / self.std
        x = F.max_pool2d(F.relu6(self.norm(self.stem(x))), 2)
        short = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 2, 2))
        x = F.relu6(short + self.norm2(self.narrow(x)))
        return cast(torch.Tensor, self.head(F.avg_pool2d(self.plain(x), 3).flatten(1)))


class LeNet(nn.Module):
    """(N, 1, 8, 8) -> (N, 10), as anyone writes it: no batch norm, 5x5 kernels, dropout, three fully connected layers."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 6, 5, padding=2)
        self.conv2 = nn.Conv2d(6, 12, 5, padding=2)
        self.pool = nn.MaxPool2d(2)
        self.drop = nn.Dropout(0.2)
        self.fc1 = nn.Linear(12 * 4, 40)
        self.fc2 = nn.Linear(40, 24)
        self.fc3 = nn.Linear(24, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.pool(torch.relu(self.conv1(x)))
        x = self.pool(torch.relu(self.conv2(x)))
        x = self.drop(torch.relu(self.fc1(x.flatten(1))))
        return cast(torch.Tensor, self.fc3(torch.relu(self.fc2(x))))


class UNet(nn.Module):
    """(N, 1, 16, 16) -> (N, 1, 16, 16): two levels, a bilinear upsampling (which does not compile) and a transposed convolution, skips by
    concatenation."""

    def __init__(self) -> None:
        super().__init__()
        self.down1 = self._block(1, 8)
        self.down2 = self._block(8, 12)
        self.bottom = self._block(12, 12)
        self.up2 = self._block(24, 8)
        self.rise = nn.ConvTranspose2d(8, 8, 2, stride=2)
        self.up1 = self._block(16, 8)
        self.head = nn.Conv2d(8, 1, 1)

    @staticmethod
    def _block(c_in: int, c_out: int) -> nn.Sequential:
        return nn.Sequential(nn.Conv2d(c_in, c_out, 3, padding=1, bias=False), nn.BatchNorm2d(c_out), nn.ReLU())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        first = self.down1(x)
        second = self.down2(F.max_pool2d(first, 2))
        third = self.bottom(F.max_pool2d(second, 2))
        risen = torch.cat([F.interpolate(third, scale_factor=2.0, mode="bilinear"), second], 1)
        risen = torch.cat([self.rise(self.up2(risen)), first], 1)
        return cast(torch.Tensor, self.head(self.up1(risen)))


class Small(nn.Module):
    """(N, 2, 6, 6) -> (N, 3): two convolutions, one batch norm, one dropout; prepared in a moment."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(2, 6, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(6)
        self.second = nn.Conv2d(6, 6, 3, padding=1)
        self.drop = nn.Dropout(0.1)
        self.head = nn.Linear(6, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.norm(self.first(x)))
        x = torch.relu(self.second(x)).mean((2, 3))
        return cast(torch.Tensor, self.head(self.drop(x)))


def make(kind: type[nn.Module], seed: int = 0) -> nn.Module:
    """A module with weights of a fixed seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return kind()


def pixels(count: int, seed: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    """(count, 3, 12, 12) float32 of whole numbers 0..255, the class shown by the brighter corner, and (count,) int64."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, CLASSES, (count,), generator=generator)
    images = torch.randint(0, 160, (count, 3, SIDE, SIDE), generator=generator).float()
    for number, label in enumerate(labels.tolist()):
        images[number, label % 3, label : label + 6] += 95
    return images, labels


def maps(count: int, seed: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    """(count, 2, 6, 6) float32 for `Small` and classes 0..2 that its mean tells."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 3, (count,), generator=generator)
    return torch.randn((count, 2, 6, 6), generator=generator) + labels[:, None, None, None] - 1.0, labels


class Batches:
    """A loader of fixed batches, in an order that the epoch tells."""

    def __init__(self, inputs: torch.Tensor, labels: torch.Tensor, batch: int) -> None:
        self.inputs, self.labels, self.batch, self.epoch = inputs, labels, batch, 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.labels) // self.batch

    def __iter__(self) -> Any:
        order = torch.randperm(len(self.labels), generator=torch.Generator().manual_seed(self.epoch))
        for start in range(0, len(self) * self.batch, self.batch):
            part = order[start : start + self.batch]
            yield self.inputs[part], self.labels[part]


def plain_loop(model: nn.Module, data: Iterable[tuple[torch.Tensor, torch.Tensor]], steps: int, rate: float = 0.02) -> list[float]:
    """The loop of a user who knows nothing of us; returns the losses."""
    optimiser = torch.optim.SGD(model.parameters(), lr=rate, momentum=0.9)
    model.train()
    losses: list[float] = []
    while len(losses) < steps:
        for inputs, labels in data:
            loss = F.cross_entropy(model(inputs), labels)
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            losses.append(loss.item())
            if len(losses) == steps:
                break
    return losses


def outputs_of_c(model: training.KqModule, folder: Path, *inputs: torch.Tensor) -> np.ndarray:
    """What the C of a prepared model answers: saved, compiled for this computer, loaded, called."""
    require_tool("cc")
    file = folder / "net.kq.safetensors"
    training.save(model, file)
    pipeline.compile_integers(file, board=load_board("host"), name=None, out=folder / "fw", build=False, toolchain=None)
    with mock.patch.object(hostlib, "_PLAIN_FLAGS", ("-O1",)):  # -O3 takes the compiler four times as long
        made = kqgen.load(folder / "fw")(*(each.numpy() for each in inputs))
    assert isinstance(made, np.ndarray)
    return made


def state_of(model: nn.Module) -> dict[str, torch.Tensor]:
    """Every tensor of a module's state, copied."""
    return {name: tensor.clone() for name, tensor in model.state_dict().items() if isinstance(tensor, torch.Tensor)}


def differing(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> list[str]:
    """Names of the tensors that are not equal in every bit."""
    assert left.keys() == right.keys()
    return [name for name in left if not torch.equal(left[name], right[name])]
