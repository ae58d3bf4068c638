"""Small PyTorch networks, and the comparison of a float graph with the module it came from."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from conftest import require_data
from torch import nn

from kqgen import ir
from kqgen.floatexec import run
from kqgen.frontend import import_module
from kqgen.simplify import KEPT, simplify


class Lambda(nn.Module):
    """A module whose forward() is a function of itself and its inputs; keyword arguments become attributes or buffers."""

    def __init__(self, function: Callable[..., Any], **parts: Any) -> None:
        super().__init__()
        self.function = function
        for name, part in parts.items():
            if isinstance(part, torch.Tensor):
                self.register_buffer(name, part)
            else:
                setattr(self, name, part)

    def forward(self, *inputs: torch.Tensor) -> Any:
        return self.function(self, *inputs)


def let(value: torch.Tensor, function: Callable[[torch.Tensor], Any]) -> Any:
    """function(value): a name for a tensor that a lambda needs twice."""
    return function(value)


def randomise(module: nn.Module, seed: int = 0) -> nn.Module:
    """Weights and running statistics from a fixed seed, batch norms far from the identity, in eval mode."""
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in module.state_dict().items():
        if name.endswith("running_var"):
            tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)
        elif tensor.is_floating_point() and ("weight" in name or "bias" in name or "running" in name):
            tensor.copy_(torch.randn(tensor.shape, generator=generator) * 0.5)
    return module.eval()


def images(*shape: int, seed: int = 1) -> torch.Tensor:
    """Standard normal values from a fixed seed."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def tolerance(reference: torch.Tensor, terms: int, layers: int) -> float:
    """How far two ways of computing `reference` in float32 may differ.

    A sum of `terms` rounded products wanders by about sqrt(terms) * 2^-24 of its size a layer. The factor 8 covers partial sums
    larger than the result, and the roundings of folded scales, weights and biases. A wrong tap or scale is off by far more.
    """
    return 8 * 2.0**-24 * math.sqrt(terms) * layers * max(1.0, float(reference.abs().max()))


def check(module: nn.Module, inputs: Sequence[torch.Tensor], *, terms: int = 200, layers: int = 4) -> tuple[ir.Graph, ir.Graph]:
    """Both levels of the graph, after comparing each with the module on `inputs` (N images each)."""
    graph = import_module(module, [each[:1] for each in inputs], "net")
    simple = simplify(graph)
    with torch.no_grad():
        wanted = module(*inputs)
    wanted = wanted if isinstance(wanted, (tuple, list)) else (wanted,)
    assert all(isinstance(node, KEPT) for node in simple)
    for level in (graph, simple):
        assert len({node.name for node in level}) == len(level.nodes)
        made = run(level, {node.name: each.float().reshape(-1, *node.shape) for node, each in zip(level.inputs, inputs, strict=True)})
        assert len(level.outputs) == len(wanted)
        for name, reference in zip(level.outputs, wanted, strict=True):
            found = made[name].permute(0, 2, 3, 1) if name in level.channels_last else made[name]
            assert found.numel() == reference.numel(), name
            assert (name in level.flattened) == (reference.dim() == 2), name
            found = found.reshape(reference.shape)
            assert float((found - reference).abs().max()) <= tolerance(reference, terms, layers), name
    return graph, simple


def loaders() -> Any:
    """The module loaders.py of the shared data; skips (fails in CI) when it is not there."""
    spec = importlib.util.spec_from_file_location("loaders", require_data("loaders.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
