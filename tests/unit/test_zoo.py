"""Whole networks as they are deployed: read, simplified and compared with PyTorch, alive in every layer."""

from __future__ import annotations

from collections import Counter

import pytest
import zoo
from floatnets import check
from torch import nn

from kqgen import ir
from kqgen.floatexec import run

WANTED = {
    "mobilenet_v2": {"Conv2d": 53, "Add": 11, "AvgPool": 1},
    "efficientnet_lite": {"Conv2d": 35, "Add": 4, "AvgPool": 1},
    "unet": {"Conv2d": 15, "MaxPool": 2, "Concat": 2, "Upsample": 1, "Interleave": 1},
    "ecg": {"Conv2d": 12, "MaxPool": 1, "AvgPool": 2, "Add": 4, "SlicePad": 2, "Concat": 1, "Unary": 1, "Softmax": 1},
    "yolo": {"Conv2d": 8, "Unary": 6, "MaxPool": 1, "Upsample": 1, "Concat": 1},
    "mobilenet_v3": {"Conv2d": 17, "Unary": 7, "Mul": 3, "Add": 2, "AvgPool": 4},
    "shufflenet": {"Conv2d": 14, "SlicePad": 11, "Concat": 6, "Unary": 1, "AvgPool": 1},
    "super_resolution": {"Conv2d": 3, "Unary": 2, "SlicePad": 4, "Interleave": 1},
}


@pytest.mark.parametrize("name", zoo.NETS)
def test_a_whole_network_computes_the_same(name: str) -> None:
    module, given = zoo.build(name), zoo.inputs(name, 2)
    layers = sum(isinstance(part, (nn.Conv1d, nn.Conv2d, nn.Linear, nn.ConvTranspose2d)) for part in module.modules())
    _, simple = check(module, given, terms=600, layers=layers)
    kinds = Counter(type(node).__name__ for node in simple)
    assert kinds - Counter(Input=1) == Counter(WANTED[name])
    tensors = run(simple, {node.name: each.reshape(-1, *node.shape) for node, each in zip(simple.inputs, given, strict=True)})
    for node in simple:
        if isinstance(node, (ir.Conv2d, ir.Unary, ir.Mul)):
            assert float(tensors[node.name].std()) > 0.01, f"{node.name} is dead"
