"""From a fresh PyTorch CNN to proven C on an emulated Cortex-M0+, in about a minute: the whole way, once.

Trains a small network on scikit-learn's 8x8 digits, compresses it by Kernel Quantization and as plain int8, generates C
for a board, builds it, and compares PyTorch integers, host C and the emulated board in every byte.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from rich.table import Table
from sklearn.datasets import load_digits
from torch import nn

import kqgen
from kqgen import console, pipeline
from kqgen.firmware import Firmware, open_firmware
from kqgen.report import Report, grouped
from kqgen.verify import VerifyReport

EPOCHS = 14
BATCH = 50
CALIBRATION_IMAGES = 256
EMULATED_IMAGES = 20


class DigitsNet(nn.Module):
    """Four 3x3 convolutions with a residual block; takes pixels 0..16 as scikit-learn has them."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU())
        self.block1 = nn.Sequential(nn.Conv2d(16, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU())
        self.block2 = nn.Sequential(nn.Conv2d(16, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16))
        self.down = nn.Sequential(nn.Conv2d(16, 32, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(32), nn.ReLU())
        self.head = nn.Linear(32, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, 1, 8, 8) pixels 0..16 -> (N, 10) scores."""
        x = self.stem(x / 16)
        x = torch.relu(x + self.block2(self.block1(x)))
        scores: torch.Tensor = self.head(self.down(x).mean((2, 3)))
        return scores


Images = npt.NDArray[np.float32]
Labels = npt.NDArray[np.int64]


def split() -> tuple[Images, Labels, Images, Labels]:
    """Training and test images (N, 1, 8, 8) float32 0..16 with labels; every third image is for testing."""
    digits = load_digits()
    images = digits.images.astype(np.float32)[:, None]
    labels = digits.target.astype(np.int64)
    test = np.arange(len(labels)) % 3 == 0
    return images[~test], labels[~test], images[test], labels[test]


def train(images: Images, labels: Labels, console_tell: console.Tell) -> DigitsNet:
    """A trained network; the seed is fixed."""
    torch.manual_seed(0)
    net = DigitsNet()
    steps = EPOCHS * (len(images) // BATCH)
    optimiser = torch.optim.Adam(net.parameters(), 1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 1e-2, steps)
    generator = torch.Generator().manual_seed(0)
    done = 0
    for _ in range(EPOCHS):
        order = torch.randperm(len(images), generator=generator).numpy()
        for start in range(0, len(images) - BATCH + 1, BATCH):
            chosen = order[start : start + BATCH]
            loss = nn.functional.cross_entropy(net(torch.from_numpy(images[chosen])), torch.from_numpy(labels[chosen]))
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            schedule.step()
            done += 1
            console_tell("training on 1198 digits", done / steps)
    return net.eval()


def accuracy(scores: npt.NDArray[np.float32], labels: Labels) -> float:
    """Share of images whose largest score is the label's."""
    return float((scores.argmax(axis=1) == labels).mean())


def main(arguments: list[str]) -> int:
    """Runs the demo; 0 when everything is exact."""
    parser = argparse.ArgumentParser(description="Train, compress, generate and prove a small CNN.")
    parser.add_argument("--board", default="nucleo-g0b1re")
    parser.add_argument("--out", type=Path, default=Path("build/demo"))
    options = parser.parse_args(arguments)
    people = console.make_console()
    images, labels, test_images, test_labels = split()
    with console.progress_bar(people, "training") as tell:
        net = train(images, labels, tell)
        with torch.no_grad():
            float_accuracy = accuracy(net(torch.from_numpy(test_images)).numpy(), test_labels)
        results = [
            compile_and_verify(net, images, test_images, test_labels, options.board, options.out / name, weights, tell)
            for name, weights in (("digits_int8", "int8"), ("digits_kq", "kq"))
        ]
    kq_firmware, kq_report, kq_verify, _ = results[1]
    console.show_report(people, kq_report, kq_firmware.board)
    people.print()
    console.show_verify(people, kq_firmware.graph.name, kq_verify, kq_firmware.board)
    people.print()
    people.print(summary(float_accuracy, results))
    people.print(f"  the C is in {kq_firmware.folder}: its README says how to call it")
    return 0 if all(verified.exact for _, _, verified, _ in results) else 1


def compile_and_verify(
    net: DigitsNet, images: Images, test_images: Images, test_labels: Labels, board: str, out: Path, weights: str, tell: console.Tell
) -> tuple[Firmware, Report, VerifyReport, float]:
    """One output folder, its report, its verification, and the accuracy of its C on all test images."""
    compiled = kqgen.compile(
        net, (torch.zeros(1, 1, 8, 8),), calibration=images[:CALIBRATION_IMAGES], board=board,
        codebook=kqgen.Codebook("network", 64), weights="int8" if weights == "int8" else "kq", name=out.name, out=out, tell=tell,
    )  # fmt: skip
    firmware = open_firmware(out)
    verified = pipeline.verify_firmware(firmware, test_images[:EMULATED_IMAGES], tell=tell)
    scores = kqgen.load(out)(test_images)
    assert isinstance(scores, np.ndarray)
    return firmware, compiled.report, verified, accuracy(scores, test_labels)


def summary(float_accuracy: float, results: list[tuple[Firmware, Report, VerifyReport, float]]) -> Table:
    """What was gained: accuracy, bits, flash and RAM of int8 and KQ."""
    table = Table(title="599 test digits, accuracy of the C", title_justify="left", box=None, pad_edge=True, header_style="bold")
    for column in ("", "accuracy", "bits/weight", "tables B", "flash KB", "RAM KB", "exact"):
        table.add_column(column, justify="left" if not column else "right")
    table.add_row("float PyTorch", f"{100 * float_accuracy:.1f} %", "32.00", "", "", "", "")
    for firmware, report, verified, share in results:
        table.add_row(
            firmware.graph.name, f"{100 * share:.1f} %", console.bits(report.bits_per_weight.conv),
            grouped(report.flash_bytes.tables), console.kilobytes(report.flash_bytes.total),
            console.kilobytes(report.ram_bytes.total), "yes" if verified.exact else "NO",
        )  # fmt: skip
    return table


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
