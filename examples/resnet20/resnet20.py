"""ResNet-20 of He et al. on CIFAR-10 at 0.8 and 1.1 bits a weight.

    python examples/resnet20/resnet20.py --state resnet20.pt --teacher-state vgg16.pt

Without --state the float network is trained first (some hours on a CPU).
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

sys.path.insert(0, str(Path(__file__).parents[1]))
from cifar10 import Recipe, arguments, cifar10, compress, load, train_float
from vgg16.vgg16 import VGG16

from kqgen import kq

MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
LAST_STAGE = tuple(f"layer3.{block}.conv{number}" for block in range(3) for number in (1, 2))


class Block(nn.Module):
    """Two 3x3 convolutions and a shortcut without weights."""

    def __init__(self, c_in: int, c_out: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(c_in, c_out, 3, stride, 1, bias=False), nn.BatchNorm2d(c_out)
        self.conv2, self.bn2 = nn.Conv2d(c_out, c_out, 3, 1, 1, bias=False), nn.BatchNorm2d(c_out)
        self.pad = (c_out - c_in) // 2

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Zero channels make up for a wider output, every second pixel for a smaller one."""
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        if self.pad:
            x = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.pad, self.pad))
        return F.relu(y + x)


class ResNet20(nn.Module):
    """Takes pixels 0..255, (N, 3, 32, 32), gives scores (N, 10)."""

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16)
        self.layer1 = nn.Sequential(*(Block(16, 16, 1) for _ in range(3)))
        self.layer2 = nn.Sequential(Block(16, 32, 2), Block(32, 32, 1), Block(32, 32, 1))
        self.layer3 = nn.Sequential(Block(32, 64, 2), Block(64, 64, 1), Block(64, 64, 1))
        self.linear = nn.Linear(64, 10)
        self.register_buffer("mean", 255 * torch.tensor(MEAN).view(1, 3, 1, 1))
        self.register_buffer("std", 255 * torch.tensor(DEVIATION).view(1, 3, 1, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Three stages of three blocks, mean over the map, one dense layer."""
        x = F.relu(self.bn1(self.conv1((x - self.mean) / self.std)))
        scores: torch.Tensor = self.linear(self.layer3(self.layer2(self.layer1(x))).mean((2, 3)))
        return scores


RECIPES = {
    "1.10": Recipe(kq.Codebook("network", 320), keep=(("conv1", 6),), widths=tuple((layer, 9) for layer in LAST_STAGE)),
    "0.80": Recipe(kq.Codebook("network", 64), keep=(("conv1", 6),)),
}


def main() -> None:
    """Trains, saves and judges one network."""
    options = arguments(__doc__ or "", list(RECIPES))
    net: nn.Module = ResNet20()
    if options.state is not None:
        net = load(net, options.state)
    else:
        net = train_float(net, cifar10(options.data)[0], epochs=120, rate=0.1, seed=options.seed, device=options.device)
    teacher = net if options.teacher_state is None else load(VGG16(), options.teacher_state)
    out = options.out or Path(__file__).with_name(f"resnet20-{options.bits}.kq.safetensors")
    compress("resnet20", net, teacher, RECIPES[options.bits], options, out)


if __name__ == "__main__":
    main()
