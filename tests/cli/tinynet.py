"""A network that compiles in a second, as a module, a factory and files."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import numpy as np
import safetensors.torch
import torch
from torch import nn

LAYERS = ("stem.0", "body", "add", "point", "mean", "head")
"""What reports call its layers."""

WEIGHTED = ("stem.0", "body", "point", "head")

INPUTS = 6


class TinyNet(nn.Module):
    """(N, 3, 8, 8) -> (N, 5): a strided convolution, a residual block, a 1x1 convolution and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.body = nn.Conv2d(8, 8, 3, padding=1)
        self.point = nn.Conv2d(8, 6, 1)
        self.head = nn.Linear(6, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        x = self.point(torch.relu(x + self.body(x)))
        return cast(torch.Tensor, self.head(x.mean((2, 3))))


def _seeded(seed: int) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return TinyNet().eval()


def make() -> nn.Module:
    """The network with the weights of tiny.pt2, as a factory for the command line."""
    return _seeded(3)


def blank() -> nn.Module:
    """The network with other weights, for a factory that needs --state."""
    return _seeded(4)


def save(module: nn.Module, path: Path, *shape: int) -> Path:
    """Writes `module` as a .pt2 with an example input of `shape`."""
    torch.export.save(torch.export.export(module.eval(), (torch.zeros(shape or (1, 3, 8, 8)),)), path)
    return path


def write_inputs(folder: Path) -> None:
    """tiny.pt2, tiny.pt, tiny.safetensors and images.npz in `folder`."""
    module = make()
    save(module, folder / "tiny.pt2")
    torch.save(module.state_dict(), folder / "tiny.pt")
    safetensors.torch.save_file(module.state_dict(), folder / "tiny.safetensors")
    np.savez(folder / "images.npz", images=images())


def images(count: int = INPUTS, seed: int = 5) -> np.ndarray:
    """(count, 3, 8, 8) float32."""
    return np.random.default_rng(seed).standard_normal((count, 3, 8, 8)).astype(np.float32)


def write_labelled(path: Path, count: int = 96, seed: int = 5) -> Path:
    """An .npz of `images` (count, 3, 8, 8) float32, brighter in one channel and half by their class, and `labels` 0..4."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 5, count)
    made = rng.standard_normal((count, 3, 8, 8)).astype(np.float32)
    for number, label in enumerate(labels):
        made[number, label % 3, 4 * (label // 3) :] += 2.0
    np.savez(path, images=made, labels=labels)
    return path
