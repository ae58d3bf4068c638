"""DS-CNN on spoken digits, trained with Kernel Quantization: a float network first, then codewords.

    python examples/kws/fsdd.py --features fsdd_mfcc_49x10.npz --bits 2.00

The .npz holds features of the Free Spoken Digit Dataset's 3000 recordings: `mfcc` (3000, 49, 10), `label`, and `index`, each recording's
number of its speaker and digit: those below 5 are for testing (300). Bits a weight are those of all tables over the weights of all
convolutions and the fully connected layer.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

sys.path.insert(0, str(Path(__file__).parents[1]))
from kws.dscnn import DSCNN

from kqgen import kq
from kqgen.report import bits_per_weight

BATCH, SHIFT, CALIBRATION = 100, 3, 200
POINTWISE = ("f.4.1", "f.8.1", "f.12.1", "f.16.1")
DEPTHWISE = ("f.2.1", "f.6.1", "f.10.1", "f.14.1")


@dataclass(frozen=True)
class Recipe:
    """How the network is compressed: codewords, the runs of the 1x1 layers, and the bits of the other layers."""

    codewords: int
    run: int
    keep: int = 4


RECIPES = {"2.00": Recipe(112, 8), "1.50": Recipe(16, 8)}


class Digits:
    """A loader of spoken digits in batches, in an order and with shifts in time that seed and epoch tell."""

    def __init__(self, mfcc: torch.Tensor, labels: torch.Tensor, seed: int, device: str) -> None:
        self.mfcc, self.labels, self.seed, self.epoch = mfcc.to(device), labels.to(device), seed, 0

    def set_epoch(self, epoch: int) -> None:
        """Another order."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.labels) // BATCH

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        rng = np.random.default_rng([self.seed, self.epoch])
        order = torch.from_numpy(rng.permutation(len(self.labels))).to(self.labels.device)
        for start in range(0, len(self) * BATCH, BATCH):
            part = order[start : start + BATCH]
            yield self.mfcc[part].roll(int(rng.integers(-SHIFT, SHIFT + 1)), 2), self.labels[part]


def digits(path: Path) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Features (N, 1, 49, 10) and labels to train on, and the same to test on."""
    with np.load(path, allow_pickle=False) as arrays:
        mfcc, labels, test = arrays["mfcc"], arrays["label"], arrays["index"] < 5
    inputs, classes = torch.from_numpy(mfcc.astype(np.float32))[:, None], torch.from_numpy(labels.astype(np.int64))
    tests = torch.from_numpy(test)
    return inputs[~tests], classes[~tests], inputs[tests], classes[tests]


def train_float(net: nn.Module, data: Digits, epochs: int, rate: float) -> nn.Module:
    """The float network: Adam, one cycle."""
    optimiser = torch.optim.Adam(net.parameters(), rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, rate, epochs * len(data))
    for epoch in range(epochs):
        data.set_epoch(epoch)
        for inputs, labels in data:
            optimiser.zero_grad()
            F.cross_entropy(net(inputs), labels, label_smoothing=0.05).backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            schedule.step()
    return net.eval()


def main() -> None:
    """Trains, saves and judges one network."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--features", type=Path, required=True)
    parser.add_argument("--bits", choices=RECIPES, default="2.00")
    parser.add_argument("--epochs", type=int, default=60, help="of training with codewords (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, help="default: beside the script")
    options = parser.parse_args()
    recipe, seed = RECIPES[options.bits], options.seed
    inputs, labels, test_inputs, test_labels = digits(options.features)
    torch.manual_seed(seed)
    data = Digits(inputs, labels, seed, options.device)
    net = train_float(DSCNN(10).to(options.device).train(), data, epochs=20, rate=3e-3).cpu()
    model = kq.prepare(
        net, example_inputs=(inputs[:1],), calibration=inputs[:: len(inputs) // CALIBRATION].numpy(), seed=seed, name="fsdd",
        codebook=kq.Codebook("network", recipe.codewords), runs=[(layer, recipe.run) for layer in POINTWISE],
        keep=[(layer, recipe.keep) for layer in ("f.0.1", *DEPTHWISE, "fc")],
    ).to(options.device)  # fmt: skip
    kq.finetune(model, data, teacher=net, epochs=options.epochs, rate=3e-3, seed=seed)
    out = options.out or Path(__file__).with_name(f"fsdd-{options.bits}.kq.safetensors")
    kq.save(model, out)
    right = [kq.accuracy(each.cpu(), [(test_inputs, test_labels)]) for each in (net, model)]
    bits = bits_per_weight(kq.integers(model)).all
    print(f"{out}: {100 * right[1]:.2f} % of {len(test_labels)} digits at {bits:.3f} bits a weight, float {100 * right[0]:.2f} %")  # noqa: T201


if __name__ == "__main__":
    main()
