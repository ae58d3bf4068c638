"""VGG-16 with batch norms on CIFAR-10 at 0.7 and 1.05 bits a weight, one codebook a layer.

    python examples/vgg16/vgg16.py --state vgg16.pt --teacher-state vgg16.pt

Without --state the float network is trained first and kept as vgg16.pt beside the script; that wants a GPU.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parents[1]))
from cifar10 import Recipe, arguments, cifar10, compress, load, train_float

from kqgen import kq

WIDTHS = (64, 64, 0, 128, 128, 0, 256, 256, 256, 0, 512, 512, 512, 0, 512, 512, 512, 0)
"""Channels of each convolution; 0 is a max pooling."""
WIDE_LAYERS = ("features.24", "features.27", "features.30", "features.34", "features.37", "features.40")


class VGG16(nn.Module):
    """Takes pixels 0..255, (N, 3, 32, 32), gives scores (N, 10)."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        c_in = 3
        for width in WIDTHS:
            if width == 0:
                layers.append(nn.MaxPool2d(2))
            else:
                layers += [nn.Conv2d(c_in, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
                c_in = width
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(512, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Thirteen convolutions and one dense layer."""
        scores: torch.Tensor = self.classifier(self.features((x - 120.0) / 64.0).flatten(1))
        return scores


RECIPES = {
    "1.05": Recipe(kq.Codebook("layer", 256), epochs=44, rate=1e-3, renew=50),
    "0.70": Recipe(kq.Codebook("layer", 128), widths=tuple((layer, 6) for layer in WIDE_LAYERS), epochs=20, rate=1e-3, renew=5),
}


def main() -> None:
    """Trains, saves and judges one network."""
    options = arguments(__doc__ or "", list(RECIPES))
    net: nn.Module = VGG16()
    if options.state is not None:
        net = load(net, options.state)
    else:
        net = train_float(net, cifar10(options.data)[0], epochs=80, rate=0.12, seed=options.seed, device=options.device)
        torch.save(net.state_dict(), Path(__file__).with_name("vgg16.pt"))
    teacher = net if options.teacher_state is None else load(VGG16(), options.teacher_state)
    out = options.out or Path(__file__).with_name(f"vgg16-{options.bits}.kq.safetensors")
    compress("vgg16", net, teacher, RECIPES[options.bits], options, out)


if __name__ == "__main__":
    main()
