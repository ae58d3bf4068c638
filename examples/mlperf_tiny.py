"""The networks of MLPerf Tiny beyond ResNet-8 as factories for `kqgen compile`, for weights that were lifted from its files.

    kqgen compile examples.mlperf_tiny:dscnn --state dscnn_kws.pt --calibration clips.npz --board nucleo-f446re --out firmware/

`python examples/model_zoo.py` runs them all.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parent))
from autoencoder.autoencoder import AutoEncoder
from kws.dscnn import DSCNN

_EVEN, _STRIDED = (1, 1, 1, 1), (0, 1, 0, 1)
"""TensorFlow's padding "same" of a 3x3 kernel: a stride of 2 on an even side pads behind alone."""

_BLOCKS = ((16, 1), (32, 2), (32, 1), (64, 2), (64, 1), (128, 2), *[(128, 1)] * 5, (256, 2), (256, 1))
"""Channels and stride of MobileNetV1's blocks at a quarter of its width."""


def _layer(c_in: int, c_out: int, kernel: int, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    padding = nn.ZeroPad2d(_EVEN if stride == 1 else _STRIDED) if kernel > 1 else nn.Identity()
    return [nn.Sequential(padding, nn.Conv2d(c_in, c_out, kernel, stride, groups=groups), nn.BatchNorm2d(c_out, eps=1e-3)), nn.ReLU()]


class MobileNetV1(nn.Module):
    """Takes pixels 0..1, (N, 3, 96, 96), gives scores (N, 2): nobody there, somebody there."""

    def __init__(self) -> None:
        super().__init__()
        width = 8
        layers = _layer(3, width, 3, 2)
        for c_out, stride in _BLOCKS:
            layers += [*_layer(width, width, 3, stride, width), *_layer(width, c_out, 1)]
            width = c_out
        self.f, self.fc = nn.Sequential(*layers), nn.Linear(width, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """A strided convolution, thirteen separable ones, mean over the map, one dense layer."""
        scores: torch.Tensor = self.fc(self.f(x).mean((2, 3)))
        return scores


def dscnn() -> tuple[nn.Module, torch.Tensor]:
    """Keyword spotting; also DS-CNN-S of Arm."""
    return DSCNN(), torch.zeros(1, 1, 49, 10)


def mobilenet() -> tuple[nn.Module, torch.Tensor]:
    """Visual wake words."""
    return MobileNetV1(), torch.zeros(1, 3, 96, 96)


def autoencoder() -> tuple[nn.Module, torch.Tensor]:
    """Anomaly detection."""
    return AutoEncoder(), torch.zeros(1, 640)
