"""The autoencoder of MLPerf Tiny for anomaly detection: ten fully connected layers, 264 192 weights. Compressed after training.

    python examples/autoencoder/autoencoder.py --state fc_autoencoder_ad.pt
    python examples/autoencoder/autoencoder.py --state fc_autoencoder_ad.pt --bytes 99000

Its recordings are not at hand, so it is calibrated and judged on noise shaped like its input, 5 frames of 128 log-mel bands: a level, a
slope over the bands, a part that neighbouring bands share, and one of its own for each value. What is said of it is therefore not
accuracy but the signal-to-noise ratio of weights and outputs against the float network, means taken out of the outputs.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

import kqgen
from kqgen import oracle
from kqgen.dequantised import dequantised
from kqgen.frontend import import_exported
from kqgen.intgraph import IntConv2d
from kqgen.ir import Conv2d
from kqgen.simplify import simplify

FRAMES, BANDS, WIDTH, NARROW = 5, 128, 128, 8
LOWEST, HIGHEST = -84.9, 14.9
CALIBRATION, JUDGED = 300, 200


class AutoEncoder(nn.Module):
    """Takes 5 frames of 128 log-mel bands (N, 640), gives them back (N, 640)."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        width = FRAMES * BANDS
        for out in (WIDTH,) * 4 + (NARROW,) + (WIDTH,) * 4:
            layers += [nn.Linear(width, out), nn.BatchNorm1d(out, eps=1e-3), nn.ReLU()]
            width = out
        self.f = nn.Sequential(*layers, nn.Linear(width, FRAMES * BANDS))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Down to 8 values and up again."""
        made: torch.Tensor = self.f(x)
        return made


def noise(count: int, seed: int) -> npt.NDArray[np.float32]:
    """(count, 640) float32, shaped like log-mel frames in decibels."""
    rng = np.random.default_rng(seed)
    level = rng.normal(size=(count, 1, 1)) * 8 - 25
    slope = np.linspace(12, -12, BANDS)
    shared = rng.normal(size=(count, 1, BANDS // 4)).repeat(4, axis=2) * 5
    own = rng.normal(size=(count, FRAMES, BANDS)) * 4
    return np.clip(level + slope + shared + own, LOWEST, HIGHEST).astype(np.float32).reshape(count, -1)


def decibels(signal: npt.NDArray[np.floating], error: npt.NDArray[np.floating]) -> float:
    """The ratio of energies."""
    return float(10 * np.log10(np.square(signal, dtype=np.float64).sum() / np.square(error, dtype=np.float64).sum()))


def main() -> None:
    """Compresses, and prints bytes and signal-to-noise ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--state", type=Path, required=True)
    parser.add_argument("--bytes", type=int, help="of all tables of weights; without it the default options decide")
    parser.add_argument("--weights", choices=["kq", "int8"], default="kq")
    parser.add_argument("--board", default="nucleo-f446re")
    parser.add_argument("--out", type=Path, help="folder for the C; without it none is written")
    options = parser.parse_args()
    net = AutoEncoder()
    net.load_state_dict(torch.load(options.state, map_location="cpu", weights_only=True))
    net.eval()
    more: dict[str, Any] = {"target_bytes": options.bytes} if options.bytes else {"weights": options.weights}
    made = kqgen.compile(
        net, (torch.zeros(1, FRAMES * BANDS),), calibration=noise(CALIBRATION, 1), board=options.board, name="autoencoder",
        out=options.out, **more,
    )  # fmt: skip
    integers, inputs = made.plan.graph, noise(JUDGED, 2)
    with torch.no_grad():
        wanted = net(torch.from_numpy(inputs)).numpy()
    codes = oracle.run(integers, {integers.inputs[0].name: oracle.input_codes(integers.inputs[0], inputs)})[integers.outputs[0]]
    found = oracle.dequantise(integers.tensor(integers.outputs[0]), codes).reshape(wanted.shape)
    assert made.program is not None
    original = simplify(import_exported(made.program, integers.name))
    stored = dequantised(original, integers)
    pairs = [(node.weight, other.weight) for node, other in zip(original, stored, strict=True)
             if isinstance(node, Conv2d) and isinstance(other, Conv2d)]  # fmt: skip
    ratios = [decibels(real, real - kept) for real, kept in pairs]
    size = sum(node.weights.packed_bytes for node in integers.nodes if isinstance(node, IntConv2d))
    size += sum(book.packed_bytes for book in integers.codebooks)
    print(  # noqa: T201 - what the script is for
        f"{size} bytes of weights, {made.report.bits_per_weight.all:.2f} bits a weight; weights {min(ratios):.1f} to {max(ratios):.1f} dB, "
        f"outputs {decibels(wanted - wanted.mean(0), wanted - found):.1f} dB"
    )


if __name__ == "__main__":
    main()
