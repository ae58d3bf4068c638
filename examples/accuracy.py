"""The accuracy of generated C on labelled images: every image through the C, compiled for this computer.

    python examples/accuracy.py firmware/ images.npz

The .npz holds `images`, float32 or uint8 (N, C, H, W) as the network takes them, and `labels`, integers (N,).
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np

import kqgen


def accuracy(folder: Path, data: Path) -> tuple[float, int]:
    """Share of images whose largest output is the label's, and the number of images."""
    with np.load(data, allow_pickle=False) as arrays:
        images, labels = arrays["images"], arrays["labels"]
    scores = kqgen.load(folder)(images)
    if isinstance(scores, tuple):
        raise SystemExit("the network has several outputs; accuracy is about one")
    return float((scores.reshape(len(labels), -1).argmax(axis=1) == labels).mean()), len(labels)


def main(arguments: list[str]) -> int:
    """Prints the accuracy; always 0."""
    parser = argparse.ArgumentParser(description="Accuracy of generated C on labelled images.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("data", type=Path)
    options = parser.parse_args(arguments)
    share, count = accuracy(options.folder, options.data)
    print(f"{100 * share:.2f} % of {count} images")  # noqa: T201 - what the script is for
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
