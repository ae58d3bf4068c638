"""ResNet-8 of MLPerf Tiny on CIFAR-10, and its twin of 2.5 times the width, at 1 to 1.5 bits a weight.

    python examples/resnet8/resnet8.py --state resnet8_cifar10.pt --teacher-state resnet8_wide.pt
    python examples/resnet8/resnet8.py --wide --bits 1.20 --state resnet8_wide.pt --teacher-state vgg16.pt

Without --state the float network is trained first (an hour on a CPU). `wide_from_tflite.py` makes resnet8_wide.pt.
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

SAME, SAME_STRIDED = (1, 1, 1, 1), (0, 1, 0, 1)
SHORTCUTS = (("b2s", 4), ("b3s", 4))


def _layer(c_in: int, c_out: int, stride: int = 1) -> nn.Sequential:
    """3x3 convolution and batch norm; a stride of 2 pads as TensorFlow does, after the map only."""
    pad = nn.ZeroPad2d(SAME if stride == 1 else SAME_STRIDED)
    return nn.Sequential(pad, nn.Conv2d(c_in, c_out, 3, stride), nn.BatchNorm2d(c_out, eps=1e-3))


class ResNet8(nn.Module):
    """Takes pixels 0..255, (N, 3, 32, 32), gives scores (N, 10)."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        a, b, c = width, 2 * width, 4 * width
        self.stem, self.b1a, self.b1b = _layer(3, a), _layer(a, a), _layer(a, a)
        self.b2a, self.b2b, self.b2s = _layer(a, b, 2), _layer(b, b), nn.Conv2d(a, b, 1, 2)
        self.b3a, self.b3b, self.b3s = _layer(b, c, 2), _layer(c, c), nn.Conv2d(b, c, 1, 2)
        self.fc = nn.Linear(c, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Three residual blocks, mean over the map, one dense layer."""
        x = F.relu(self.stem(x))
        x = F.relu(x + self.b1b(F.relu(self.b1a(x))))
        x = F.relu(self.b2s(x) + self.b2b(F.relu(self.b2a(x))))
        x = F.relu(self.b3s(x) + self.b3b(F.relu(self.b3a(x))))
        scores: torch.Tensor = self.fc(x.mean((2, 3)))
        return scores


NARROW = {
    "1.50": Recipe(kq.Codebook("network", 376), keep=(("stem.1", 6), *SHORTCUTS)),
    "1.10": Recipe(kq.Codebook("network", 127), keep=(("stem.1", 4), *SHORTCUTS)),
}
WIDE = {
    "1.20": Recipe(kq.Codebook("network", 512), keep=(("stem.1", 6), *SHORTCUTS), widths=(("b3a.1", 9), ("b3b.1", 9)), epochs=66, renew=10),
    "1.00": Recipe(kq.Codebook("network", 194), keep=(("stem.1", 6), *SHORTCUTS), widths=(("b3a.1", 8), ("b3b.1", 7)), epochs=45),
}


def main() -> None:
    """Trains, saves and judges one network."""
    wide = "--wide" in sys.argv
    sys.argv = [each for each in sys.argv if each != "--wide"]
    recipes = WIDE if wide else NARROW
    options = arguments(__doc__ or "", list(recipes))
    name, width = ("resnet8_wide", 40) if wide else ("resnet8", 16)
    net: nn.Module = ResNet8(width)
    if options.state is not None:
        net = load(net, options.state)
    else:
        net = train_float(net, cifar10(options.data)[0], epochs=80, rate=0.1, seed=options.seed, device=options.device)
    teacher = net
    if options.teacher_state is not None:
        teacher = load(VGG16() if wide else ResNet8(40), options.teacher_state)
    out = options.out or Path(__file__).with_name(f"{name}-{options.bits}.kq.safetensors")
    compress(name, net, teacher, recipes[options.bits], options, out)


if __name__ == "__main__":
    main()
