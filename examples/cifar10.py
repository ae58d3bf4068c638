"""CIFAR-10 for the examples: the data set, a float network trained from scratch, and one recipe of Kernel Quantization for all of them.

The data set is downloaded once from its own site (170 MB) into the folder given; a machine without a network takes a folder that holds
`train.npz` and `test.npz`, each with `images` (N, 3, 32, 32) uint8 and `labels` (N,).
"""

from __future__ import annotations

import argparse
import hashlib
import tarfile
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from kqgen import kq
from kqgen.train_data import ArrayLoader, Labelled, read_labelled

SOURCE = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
MD5 = "c32a1d4ab5d03f1284b67883e8d87530"
TRAIN_FILES = tuple(f"cifar-10-batches-bin/data_batch_{number}.bin" for number in range(1, 6))
TEST_FILES = ("cifar-10-batches-bin/test_batch.bin",)
BATCH = 256
CALIBRATION_IMAGES = 500


def cifar10(folder: Path) -> tuple[Labelled, Labelled]:
    """(50 000 images to train on, 10 000 to test on)."""
    if not (folder / "train.npz").is_file() or not (folder / "test.npz").is_file():
        _download(folder)
    return read_labelled(folder / "train.npz"), read_labelled(folder / "test.npz")


def _download(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    archive = folder / "cifar-10-binary.tar.gz"
    if not archive.is_file():
        print(f"downloading {SOURCE}")  # noqa: T201 - minutes without a word are unkind
        urllib.request.urlretrieve(SOURCE, archive)
    found = hashlib.md5(archive.read_bytes()).hexdigest()  # noqa: S324 - the sum its authors publish
    if found != MD5:
        archive.unlink()
        raise SystemExit(f"{archive} is not the file that {SOURCE} should give: md5 {found}, wanted {MD5}")
    with tarfile.open(archive) as tar:
        for name, members in (("train", TRAIN_FILES), ("test", TEST_FILES)):
            parts = []
            for member in members:
                file = tar.extractfile(member)
                assert file is not None
                parts.append(np.frombuffer(file.read(), np.uint8).reshape(-1, 1 + 3 * 32 * 32))
            rows = np.concatenate(parts)
            np.savez(folder / f"{name}.npz", images=rows[:, 1:].reshape(-1, 3, 32, 32), labels=rows[:, 0].astype(np.int64))


@dataclass(frozen=True)
class Recipe:
    """How one network is compressed.

    Attributes:
        codebook: scope, codewords, sign.
        keep, widths: see `kqgen.options.Compression`.
        epochs, rate: of fine-tuning.
        renew: steps between two renewals of the codes; 1 unless there are millions of kernels.
    """

    codebook: kq.Codebook
    keep: Sequence[tuple[str, int]] = ()
    widths: Sequence[tuple[str, int]] = ()
    epochs: int = 80
    rate: float = 4e-3
    renew: int = 1


def arguments(description: str, recipes: Sequence[str]) -> argparse.Namespace:
    """The options that all examples share."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--bits", choices=recipes, default=recipes[0], help="bits per weight of all convolutions (default: %(default)s)")
    parser.add_argument("--data", type=Path, default=Path("data/cifar10"), help="folder of the data set; filled when empty")
    parser.add_argument("--state", type=Path, help="float weights; without them the network is trained from scratch first")
    parser.add_argument("--teacher-state", type=Path, help="weights of the stronger teacher; without them the float network teaches itself")
    parser.add_argument("--epochs", type=int, help="of fine-tuning (default: the recipe's)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", type=Path, help="default: beside the script")
    return parser.parse_args()


def load(net: nn.Module, path: Path) -> nn.Module:
    """`net` with the weights of a file, in eval mode."""
    state = torch.load(path, map_location="cpu", weights_only=True)
    state = state.get("state_dict", state)
    net.load_state_dict({name: value.float() if value.is_floating_point() else value for name, value in state.items()}, strict=False)
    return net.eval()


def train_float(net: nn.Module, train: Labelled, *, epochs: int, rate: float, seed: int, device: str) -> nn.Module:
    """A float network trained from scratch: SGD, one cycle, crops and flips."""
    torch.manual_seed(seed)
    net = net.to(device).train()
    loader = ArrayLoader(train.to(device), BATCH, seed=seed, augment=("crop", "flip"))
    optimiser = torch.optim.SGD(net.parameters(), rate, momentum=0.9, nesterov=True, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, rate, total_steps=epochs * len(loader), pct_start=0.2)
    for epoch in range(epochs):
        loader.set_epoch(epoch)
        for images, labels in loader:
            loss = F.cross_entropy(net(images), labels, label_smoothing=0.05)
            optimiser.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            schedule.step()
        print(f"float epoch {epoch + 1}/{epochs}  loss {float(loss):.3f}", flush=True)  # noqa: T201 - hours without a word are unkind
    return net.cpu().eval()


def compress(name: str, net: nn.Module, teacher: nn.Module, recipe: Recipe, options: argparse.Namespace, out: Path) -> None:
    """Fine-tunes `net` by the recipe, saves the integers, and prints their accuracy on all test images."""
    train, test = cifar10(options.data)
    device, epochs = options.device, options.epochs or recipe.epochs
    model = kq.prepare(
        net, example_inputs=(torch.zeros(1, 3, 32, 32),), codebook=recipe.codebook, keep=recipe.keep, widths=recipe.widths,
        calibration=train.inputs[:CALIBRATION_IMAGES].float().numpy(), seed=options.seed, name=name,
    ).to(device)  # fmt: skip
    loader = ArrayLoader(train.to(device), BATCH, seed=options.seed, augment=("crop", "flip"))
    tempo = kq.Tempo(period_steps=recipe.renew, revival_steps=100)
    kq.finetune(
        model, loader, teacher=teacher, epochs=epochs, settings=kq.Settings(epochs, rate=recipe.rate, seed=options.seed, tempo=tempo),
        checkpoint=out.with_suffix(".checkpoint"), report=_say,
    )  # fmt: skip
    kq.save(model, out)
    out.with_suffix(".checkpoint").unlink(missing_ok=True)
    batches = [(test.inputs[start : start + BATCH].float(), test.labels[start : start + BATCH]) for start in range(0, len(test), BATCH)]
    score = kq.accuracy(model.cpu(), batches)
    bits = kq.bits_per_weight(kq.integers(model))
    print(f"{out}: {100 * score:.2f} % of {len(test)} test images at {bits:.3f} bits a weight")  # noqa: T201 - what the script is for


def _say(now: kq.Progress) -> None:
    if now.step % max(1, now.steps // now.epochs) == 0:
        print(f"epoch {now.epoch}/{now.epochs}  {now.phase}  loss {now.loss:.3f}  {100 * now.accuracy:.2f} %", flush=True)  # noqa: T201
