"""The float weights of MLPerf Tiny's ResNet-8 of 2.5 times the width, out of its .tflite, as resnet8_wide.pt.

    python examples/resnet8/wide_from_tflite.py pretrainedResnet_large_float.tflite resnet8_wide.pt --data data/cifar10

The .tflite has its batch norms folded away, and fine-tuning wants them: each is put back with the statistics of training images, and
with factors that undo it, so that the network computes what it did.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch
from torch import nn

import kqgen

sys.path.insert(0, str(Path(__file__).parents[1]))
from cifar10 import cifar10
from resnet8.resnet8 import ResNet8

LAYERS = ("stem.1", "b1a.1", "b1b.1", "b2a.1", "b2b.1", "b2s", "b3a.1", "b3b.1", "b3s", "fc")
IMAGES = 1000


def main() -> None:
    """Reads, checks and writes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("tflite", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--data", type=Path, default=Path("data/cifar10"))
    options = parser.parse_args()
    net = ResNet8(40).eval()
    found = [layer for layer in kqgen.load_tflite(options.tflite)[0].modules() if isinstance(layer, nn.Conv2d | nn.Linear)]
    for name, source in zip(LAYERS, found, strict=True):
        net.get_submodule(name).load_state_dict(source.state_dict())
    norms = [each for each in net.modules() if isinstance(each, nn.BatchNorm2d)]
    for norm in norms:
        torch.nn.init.constant_(norm.running_var, 1 - norm.eps)  # type: ignore[arg-type]
    images = cifar10(options.data)[0].inputs[:IMAGES].float()
    with torch.no_grad():
        before = net(images)
        for norm in norms:
            seen: list[torch.Tensor] = []
            hook = norm.register_forward_pre_hook(lambda _, inputs, into=seen: into.append(inputs[0]))
            net(images)
            hook.remove()
            values = seen[0].transpose(0, 1).flatten(1)
            mean, variance = values.mean(1), values.var(1)
            assert norm.running_mean is not None
            assert norm.running_var is not None
            norm.running_mean.copy_(mean)
            norm.running_var.copy_(variance)
            norm.weight.copy_((variance + norm.eps).sqrt())
            norm.bias.copy_(mean)
        moved = float((net(images) - before).abs().max())
    torch.save(net.state_dict(), options.out)
    print(f"{options.out}: outputs moved by {moved:.1e} at most")  # noqa: T201 - what the script is for


if __name__ == "__main__":
    main()
