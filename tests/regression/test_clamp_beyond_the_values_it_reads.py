"""A clamp whose bounds lie beyond all values of the tensor that it reads, and which shares that tensor's codes, still gives its bound.

Calibration once saw the tensor alone, so that no code stood for the bound and the integers came out far too small, without a word.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from kqgen import oracle
from kqgen.calibrate import calibrate
from kqgen.frontend import import_module
from kqgen.lower import lower
from kqgen.options import Compression
from kqgen.post_training import quantise
from kqgen.samples import read_samples
from kqgen.simplify import simplify


class ReadTwice(nn.Module):
    """The convolution's clamped output is read twice, so the second clamp cannot be folded into the convolution."""

    def __init__(self, lo: float, hi: float) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.lo, self.hi = nn.Conv2d(1, 2, 3), lo, hi

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        y = torch.clamp(self.conv(x), -1, 1)
        # Means, for outputs keep all their values anyway; no weights, whose bias would make up for the loss.
        return nn.functional.avg_pool2d(torch.clamp(y, self.lo, self.hi), 2), nn.functional.avg_pool2d(y, 2)


@pytest.mark.parametrize(("lo", "hi"), [(5.0, 10.0), (-9.0, -4.0), (-0.5, 0.5)])
def test_the_bound_has_a_code(lo: float, hi: float) -> None:
    module, images = ReadTwice(lo, hi), torch.randn(8, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    graph = simplify(import_module(module, (images[:1],), "net"))
    samples = read_samples(images, graph)
    ranges = calibrate(graph, samples)
    integers = lower(graph, ranges, quantise(graph, Compression("int8"), samples, ranges), "int8")
    codes = oracle.quantise(integers.inputs[0], samples.arrays[0]).transpose(0, 2, 3, 1)
    tensors = oracle.run(integers, {integers.inputs[0].name: np.ascontiguousarray(codes)})
    with torch.no_grad():
        expected = [each.numpy() for each in module(images)]
    for name, wanted in zip(integers.outputs, expected, strict=True):
        found = oracle.dequantise(integers.tensor(name), tensors[name]).transpose(0, 3, 1, 2)
        assert np.square(wanted - found).sum() < 0.01 * np.square(wanted).sum()
