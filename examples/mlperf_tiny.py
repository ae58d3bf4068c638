"""The networks of MLPerf Tiny beyond ResNet-8, in PyTorch, for weights that were lifted from its files; factories for `kqgen compile`.

    kqgen compile examples.mlperf_tiny:dscnn --state dscnn_kws.pt --calibration kws_calibration.npz --board nucleo-f446re --out firmware/

`python examples/zoo.py` runs them all. TensorFlow's padding "same" puts the odd zero behind: rows (4, 5) for a kernel of 10 and stride 2.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

_EVEN, _STRIDED = (1, 1, 1, 1), (0, 1, 0, 1)
_BLOCKS = ((16, 1), (32, 2), (32, 1), (64, 2), (64, 1), (128, 2), *[(128, 1)] * 5, (256, 2), (256, 1))
"""Channels and stride of MobileNetV1's blocks at a quarter of its width."""


def _layer(c_in: int, c_out: int, kernel: tuple[int, int], stride: int, pad: Sequence[int] = (), groups: int = 1) -> nn.Sequential:
    """Padding (left, right, top, bottom), convolution and batch norm."""
    padding = nn.ZeroPad2d((pad[0], pad[1], pad[2], pad[3])) if pad else nn.Identity()
    return nn.Sequential(padding, nn.Conv2d(c_in, c_out, kernel, stride, groups=groups), nn.BatchNorm2d(c_out, eps=1e-3))


def _separable(c_in: int, c_out: int, stride: int) -> list[nn.Module]:
    """A depthwise 3x3 layer and a 1x1 layer, each with its activation."""
    depthwise = _layer(c_in, c_in, (3, 3), stride, _EVEN if stride == 1 else _STRIDED, c_in)
    return [depthwise, nn.ReLU(), _layer(c_in, c_out, (1, 1), 1), nn.ReLU()]


class Separable(nn.Module):
    """A stem, depthwise separable blocks, the mean over the map and a dense layer: maps (N, c, h, w) to scores (N, classes)."""

    def __init__(self, stem: nn.Sequential, width: int, blocks: Sequence[tuple[int, int]], classes: int) -> None:
        super().__init__()
        layers: list[nn.Module] = [stem, nn.ReLU()]
        for c_out, stride in blocks:
            layers += _separable(width, c_out, stride)
            width = c_out
        self.f, self.fc = nn.Sequential(*layers), nn.Linear(width, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Scores, not yet probabilities."""
        scores: torch.Tensor = self.fc(self.f(x).mean((2, 3)))
        return scores


class AutoEncoder(nn.Module):
    """Ten dense layers with a waist of 8: (N, 640), five frames of 128 log-mel bands, to their likeness."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        width = 640
        for out in (*[128] * 4, 8, *[128] * 4):
            layers += [nn.Linear(width, out), nn.BatchNorm1d(out, eps=1e-3), nn.ReLU()]
            width = out
        self.f = nn.Sequential(*layers, nn.Linear(width, 640))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """What the waist lets through."""
        likeness: torch.Tensor = self.f(x)
        return likeness


def dscnn() -> tuple[nn.Module, torch.Tensor]:
    """Keyword spotting, and DS-CNN-S of Arm: MFCC (N, 1, 49, 10) to 12 scores."""
    return Separable(_layer(1, 64, (10, 4), 2, (1, 1, 4, 5)), 64, [(64, 1)] * 4, 12), torch.zeros(1, 1, 49, 10)


def mobilenet() -> tuple[nn.Module, torch.Tensor]:
    """Visual wake words: MobileNetV1 of width 0.25, pixels 0..1 (N, 3, 96, 96) to 2 scores."""
    return Separable(_layer(3, 8, (3, 3), 2, _STRIDED), 8, _BLOCKS, 2), torch.zeros(1, 3, 96, 96)


def autoencoder() -> tuple[nn.Module, torch.Tensor]:
    """Anomaly detection."""
    return AutoEncoder(), torch.zeros(1, 640)
