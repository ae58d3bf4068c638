"""DS-CNN of MLPerf Tiny, the keyword spotter: 49 frames of 10 MFCC in, depthwise and 1x1 layers, 12 words out. Compressed after training.

    python examples/kws/dscnn.py --state dscnn_kws.pt --clips kws01_1000.npz --bits 3.0

The state is MLPerf Tiny's network (converted from its Keras file), the .npz its 1000 labelled clips of Speech Commands: `mfcc_int8`, int8
(1000, 49, 10) in steps of 0.5847029 from 83, and `label`. 100 clips, drawn by --seed, calibrate; accuracy is that of the other 900. Bits a
weight are those of all tables over the weights of all convolutions and the fully connected layer. --bits 8 is plain int8; 3.0 has a
recipe, other sizes are allocated.
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
from kqgen.intgraph import IntGraph

SCALE, ZERO_POINT = 0.5847029, 83
CALIBRATION_CLIPS = 100
DEPTH, WIDTH = 4, 64
AT_3_BITS: dict[str, Any] = {
    "codebook": kqgen.Codebook("network", 192),
    "runs": [(f"f.{number}.1", 4) for number in (4, 8, 12, 16)],
    "keep": [*((f"f.{number}.1", 4) for number in (0, 2, 6, 10, 14)), ("fc", 6)],
    "reconstruct": 150,
}
"""The 1x1 layers in runs of 4, one codebook for all; the first layer and the depthwise ones in 4 bits, the last in 6."""


def _layer(c_in: int, kernel: tuple[int, int], *, stride: int = 1, padding: tuple[int, int, int, int], groups: int = 1) -> list[nn.Module]:
    conv = nn.Conv2d(c_in, WIDTH, kernel, stride, groups=groups)
    pad = nn.ZeroPad2d(padding) if any(padding) else nn.Identity()
    return [nn.Sequential(pad, conv, nn.BatchNorm2d(WIDTH, eps=1e-3)), nn.ReLU()]


class DSCNN(nn.Module):
    """Takes MFCC (N, 1, 49, 10), gives scores (N, words)."""

    def __init__(self, words: int = 12) -> None:
        super().__init__()
        layers = _layer(1, (10, 4), stride=2, padding=(1, 1, 4, 5))
        for _ in range(DEPTH):
            layers += _layer(WIDTH, (3, 3), padding=(1, 1, 1, 1), groups=WIDTH)
            layers += _layer(WIDTH, (1, 1), padding=(0, 0, 0, 0))
        self.f, self.fc = nn.Sequential(*layers), nn.Linear(WIDTH, words)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """A first convolution, four separable ones, mean over the map, one dense layer."""
        scores: torch.Tensor = self.fc(self.f(x).mean((2, 3)))
        return scores


def load(words: int, path: Path) -> DSCNN:
    """The network with the weights of a file, in eval mode."""
    net = DSCNN(words)
    state = torch.load(path, map_location="cpu", weights_only=True)
    net.load_state_dict({name: value.float() if value.is_floating_point() else value for name, value in state.items()})
    return net.eval()


def weights_of(net: nn.Module) -> int:
    """Weights of all convolutions and fully connected layers."""
    return sum(layer.weight.numel() for layer in net.modules() if isinstance(layer, (nn.Conv2d, nn.Linear)))


def clips(path: Path) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    """MFCC (N, 1, 49, 10) and words (N,)."""
    with np.load(path, allow_pickle=False) as arrays:
        mfcc, words = arrays["mfcc_int8"], arrays["label"]
    return ((mfcc.astype(np.float32) - ZERO_POINT) * np.float32(SCALE))[:, None], words.astype(np.int64)


def scores(integers: IntGraph, inputs: npt.NDArray[np.float32]) -> npt.NDArray[np.int8]:
    """What the C answers, by the integer reference: (N, outputs) int8."""
    codes = oracle.input_codes(integers.inputs[0], inputs)
    return oracle.run(integers, {integers.inputs[0].name: codes})[integers.outputs[0]].reshape(len(inputs), -1)


def main() -> None:
    """Compresses, and prints accuracies."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--state", type=Path, required=True)
    parser.add_argument("--clips", type=Path, required=True)
    parser.add_argument("--bits", type=float, default=3.0, help="bits a weight over all layers (default: %(default)s)")
    parser.add_argument("--board", default="nucleo-g0b1re")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="folder for the C; without it none is written")
    options = parser.parse_args()
    net = load(12, options.state)
    mfcc, words = clips(options.clips)
    order = np.random.default_rng(options.seed).permutation(len(mfcc))
    calibration, judged = order[:CALIBRATION_CLIPS], order[CALIBRATION_CLIPS:]
    size: dict[str, Any] = {"weights": "int8"} if options.bits >= 8 else {"target_bytes": int(options.bits * weights_of(net) / 8)}
    size = AT_3_BITS if options.bits == 3 else size
    made = kqgen.compile(
        net, (torch.zeros(1, 1, 49, 10),), calibration=mfcc[calibration], board=options.board, name="dscnn", out=options.out, **size
    )
    with torch.no_grad():
        float_right = net(torch.from_numpy(mfcc[judged])).argmax(1).numpy() == words[judged]
    right = scores(made.plan.graph, mfcc[judged]).argmax(1) == words[judged]
    print(  # noqa: T201 - what the script is for
        f"{100 * right.mean():.2f} % of {len(judged)} clips at {made.report.bits_per_weight.all:.3f} bits a weight, "
        f"float {100 * float_right.mean():.2f} %"
    )


if __name__ == "__main__":
    main()
