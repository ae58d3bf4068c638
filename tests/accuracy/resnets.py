"""The real networks and images: ResNet-8 of MLPerf Tiny and ResNet-20 on CIFAR-10, compiled once a test session."""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from conftest import require_data
from filelock import FileLock

import kqgen
from kqgen.firmware import Firmware, open_firmware
from kqgen.options import Codebook, Weights

CALIBRATION_IMAGES = 500

Images = npt.NDArray[np.float32]
Labels = npt.NDArray[np.uint8]


@cache
def loaders() -> Any:
    """The shared data's own loaders and network definitions."""
    path = require_data("loaders.py")
    spec = importlib.util.spec_from_file_location("kqgen_shared_loaders", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@dataclass(frozen=True)
class Network:
    """A network with its weights and the way its images are prepared."""

    name: str
    module: torch.nn.Module
    prepare: Any

    def images(self, split: str, start: int, stop: int) -> Images:
        """Images `start` to `stop` of CIFAR-10 as this network takes them, (N, 3, 32, 32)."""
        pixels, _ = cifar10(split)
        prepared: Images = self.prepare(pixels[start:stop]).numpy()
        return prepared


@cache
def cifar10(split: str) -> tuple[npt.NDArray[np.uint8], Labels]:
    """Pixels (N, 32, 32, 3) uint8 and labels."""
    require_data("cifar10/labels.npz")
    pixels, labels = loaders().cifar10(split)
    return pixels, labels


@cache
def network(name: str) -> Network:
    """`resnet8` (float 87.19 % of the test images) or `resnet20` (91.73 %)."""
    kit = loaders()
    if name == "resnet8":
        require_data("mlperf_tiny/pytorch/resnet8_cifar10.pt")
        return Network(name, kit.load(kit.ResNet8(), "mlperf_tiny/pytorch/resnet8_cifar10.pt"), kit.nchw)
    require_data("cifar10_resnets/resnet20.pt")
    return Network(name, kit.load(kit.CifarResNet(3), "cifar10_resnets/resnet20.pt"), kit.imagenet_norm)


@cache
def calibration(name: str) -> Images:
    """The first training images, prepared."""
    require_data("cifar10/train_00.webp")
    kit = loaders()
    pixels = kit._unsheet(kit.HERE / "cifar10/train_00.webp", 32, 32)[:CALIBRATION_IMAGES]
    prepared: Images = network(name).prepare(pixels).numpy()
    return prepared


def compiled(base: Path, name: str, weights: Weights, codewords: int = 256) -> Firmware:
    """The output folder of a network, compiled once for all processes that share `base`."""
    out = base / f"{name}_{weights}_{codewords}"
    with FileLock(f"{out}.lock"):
        if not out.is_dir():
            kqgen.compile(
                network(name).module, (torch.zeros(1, 3, 32, 32),), calibration=calibration(name), board="nucleo-g0b1re", weights=weights,
                codebook=Codebook("network", codewords), name=name, out=out,
            )  # fmt: skip
    return open_firmware(out)
