"""Values and sizes that do not fit the C are refused by layer, and bounds that mean nothing are no reason to refuse.

Each of these once ended as an internal error, or as a refusal without the layer's name.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from kqgen.calibrate import calibrate
from kqgen.errors import UnsupportedError
from kqgen.frontend import import_module
from kqgen.intgraph import IntGraph
from kqgen.lower import lower
from kqgen.options import Compression
from kqgen.post_training import quantise
from kqgen.samples import read_samples
from kqgen.simplify import simplify


class Wrapped(nn.Module):
    """A convolution `layer` and a function of its output."""

    def __init__(self, after: Callable[[torch.Tensor], torch.Tensor], channels: int = 2) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Conv2d(1, channels, 3, padding=1)
        self.after = after

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.after(self.layer(x))


def lowered(module: nn.Module, shape: tuple[int, int]) -> IntGraph:
    images = torch.randn(4, 1, *shape, generator=torch.Generator().manual_seed(1))
    graph = simplify(import_module(module, (images[:1],), "net"))
    samples = read_samples(images, graph)
    ranges = calibrate(graph, samples)
    return lower(graph, ranges, quantise(graph, Compression("int8"), samples, ranges), "int8")


@pytest.mark.parametrize("bound", [1e30, torch.finfo(torch.float32).max])
def test_a_clamp_with_huge_bounds_is_no_clamp(bound: float) -> None:
    graph = lowered(Wrapped(lambda x: torch.clamp(x, -bound, bound)), (6, 6))
    assert [(node.lo, node.hi) for node in graph.nodes] == [(-128, 127)]


@pytest.mark.parametrize(
    ("cut", "found"),
    [(lambda x: x[:, :, :, ::256], r"step \(1, 256\)"), (lambda x: x[:, :, ::300], r"step \(300, 1\)")],
)
def test_a_slice_beyond_its_field_is_refused(cut: Callable[[torch.Tensor], torch.Tensor], found: str) -> None:
    with pytest.raises(UnsupportedError, match=f"slice.*too far(.|\n)*{found}(.|\n)*at most 255(.|\n)*do "):
        lowered(Wrapped(cut, 1), (310, 310))


def test_a_slice_at_the_end_of_its_field_is_lowered() -> None:
    assert lowered(Wrapped(lambda x: x[:, :, 255::255], 1), (511, 3)).nodes[-1].output.h == 2


def test_a_factor_beyond_requantisation_names_the_layer() -> None:
    with pytest.raises(UnsupportedError, match=r"^layer layer: accumulators cannot be requantised(.|\n)*8191.75(.|\n)*narrow range"):
        lowered(Wrapped(lambda x: torch.clamp(x, -1e-8, 1e-8)), (6, 6))
