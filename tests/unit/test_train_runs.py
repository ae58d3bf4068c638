"""Training of layers without k x k kernels: runs of input channels, depthwise kernels, weights that are turned parameters."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import zoo
from torch import nn
from trainnets import Batches, make, one_thread, outputs_of_c, pixels, plain_loop

from kqgen import kq, training
from kqgen.errors import InputError
from kqgen.intgraph import IntConv2d, KqWeights
from kqgen.kq_runs import cut_weight
from kqgen.options import Codebook
from kqgen.train_integers import weight_of
from kqgen.train_modules import IndexedWeight, KernelLayout

_one_thread = one_thread


class Separable(nn.Module):
    """(N, 3, 12, 12) pixels -> (N, 5): scaled input, depthwise and 1x1 layers with and without batch norm (negative gammas in the first),
    a branch gated by a sigmoid, a concatenation, a fully connected layer on a map."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, stride=2, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(16)
        self.deep = nn.Conv2d(16, 16, 3, padding=1, groups=16, bias=False)
        self.deep_norm = nn.BatchNorm2d(16)
        self.point = nn.Conv2d(16, 32, 1, bias=False)
        self.point_norm = nn.BatchNorm2d(32)
        self.gate = nn.Conv2d(32, 32, 1)
        self.side = nn.Conv2d(16, 8, 1, stride=2)
        self.head = nn.Linear(40 * 9, 5)
        with torch.no_grad():
            self.norm.weight[::3] *= -1.0
            self.deep_norm.weight[1::3] *= -1.0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = (x - 118.0) / 60.0
        x = F.relu6(self.norm(self.stem(x)))
        x = F.relu(self.deep_norm(self.deep(x)))
        wide = F.max_pool2d(F.relu(self.point_norm(self.point(x))), 2)
        wide = wide * torch.sigmoid(self.gate(wide.mean((2, 3), keepdim=True)))
        return cast(torch.Tensor, self.head(torch.cat([wide, F.relu(self.side(x))], 1).flatten(1)))


@functools.cache
def trained(additive: bool) -> training.KqModule:
    """The separable network after a few steps of a plain loop, in eval mode; not to be changed."""
    images, labels = pixels(64)
    torch.manual_seed(0)
    model = training.prepare(
        make(Separable), example_inputs=(images[:1],), codebook=Codebook("network", 8 if additive else 64, additive=additive),
        runs=(("point", 4), ("side", 8), ("gate", 0), ("head", 4)), widths=(("deep", 5),), keep=(("stem", 8),),
    )  # fmt: skip
    plain_loop(model, Batches(images, labels, 16), 6)
    return model.eval()


@pytest.mark.parametrize("additive", [False, True])
def test_eval_mode_is_the_c(additive: bool, tmp_path: Path) -> None:
    model = trained(additive)
    images, _ = pixels(40, seed=7)
    found = model(images)
    assert np.array_equal(outputs_of_c(model, tmp_path, images), found.numpy())
    assert len({tuple(row) for row in found.tolist()}) > 20
    layers = {node.path: node for node in training.integers(model).nodes if isinstance(node, IntConv2d)}
    kernels = {path: node.kernel for path, node in layers.items() if isinstance(node.weights, KqWeights)}
    assert kernels == {"deep": (3, 3), "point": (1, 4), "side": (1, 8), "head": (1, 4)}
    assert layers["gate"].reason == "1x1 kernel, uniform as asked"


def test_the_simulation_is_near_the_integers() -> None:
    model = trained(False)
    images, _ = pixels(40, seed=8)
    scale = training.integers(model).tensor(training.integers(model).outputs[0]).scale
    steps = (model(images) - model.simulate(images)).detach().abs() / scale
    assert float(steps.mean()) < 0.7
    assert float(steps.max()) <= 4


def test_training_moves_runs_and_depthwise_kernels() -> None:
    model = trained(False)
    for parameter in ("point.weight", "side.weight", "head.weight", "deep.weight"):
        made, latent = weight_of(model.net, parameter)
        assert isinstance(made, IndexedWeight)
        assert latent.shape == made.layout.shape
        assert latent.grad is not None
        assert float(latent.grad.abs().sum()) > 0
        assert len(made.codes) == latent.shape[0] * latent.shape[1]
        shown = made(latent)
        assert shown.shape == made.layout.parameter


@pytest.mark.parametrize("shape", [(6, 16, 1, 1), (6, 4, 3, 2)])
def test_a_layout_orders_values_as_the_graph_does(shape: tuple[int, int, int, int]) -> None:
    values = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    for parameter in (torch.Size(shape), torch.Size((6, values[0].numel()))):
        layout = KernelLayout(parameter, shape, 4)
        kernels = layout.kernels(values.reshape(parameter))
        assert np.array_equal(kernels.numpy(), cut_weight(values.numpy(), 4))
        assert torch.equal(layout.whole(kernels), values.reshape(parameter))
        inputs = torch.arange(shape[1]).float()
        assert torch.equal(layout.per_kernel(inputs)[0], layout.kernels(inputs.reshape(1, -1, 1, 1).expand(shape).contiguous())[0])


class Rising(nn.Module):
    """(N, 3, 12, 12) -> (N, 5): a transposed and a grouped convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Conv2d(3, 12, 3, stride=2, padding=1)
        self.grouped = nn.Conv2d(12, 12, 3, padding=1, groups=3)
        self.rise = nn.ConvTranspose2d(12, 8, 2, stride=2)
        self.head = nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.rise(F.relu(self.grouped(F.relu(self.down(x))))))
        return cast(torch.Tensor, self.head(x.mean((2, 3))))


def prepared(**options: Any) -> training.KqModule:
    images, _ = pixels(16)
    return training.prepare(make(Rising), example_inputs=(images[:1],), calibration=images.numpy(), **options)


def test_turned_parameters_are_rounded_to_8_bits(tmp_path: Path) -> None:
    model = prepared(codebook=Codebook("network", 8))
    assert model.blueprint.refusal is None
    assert model.blueprint.derived
    images, labels = pixels(32)
    plain_loop(model, Batches(images, labels, 16), 3)
    model.eval()
    found = model(images)
    assert np.array_equal(outputs_of_c(model, tmp_path, images), found.numpy())
    reasons = {node.path: node.reason for node in training.integers(model).nodes if isinstance(node, IntConv2d)}
    assert reasons["rise"].startswith("8 bits")


def test_turned_parameters_cannot_be_narrowed_in_training() -> None:
    with pytest.raises(InputError, match="rise cannot be trained at 4 bits"):
        prepared(keep=(("rise", 4),))


def test_fidelity_of_a_network_of_runs() -> None:
    images, labels = pixels(30, seed=3)
    found = kq.fidelity(trained(False), images, labels)
    layers = {layer.name: layer for layer in found.layers}
    for name in ("deep", "point", "side", "head"):
        assert layers[name].weights.startswith("KQ")
        assert (layers[name].weights_db or 0.0) > 3


@pytest.mark.parametrize("name", ["yolo", "shufflenet"])
def test_whole_networks_train_as_their_integers_compute(name: str) -> None:
    """Tables, products, concatenations, gates and outputs with channels last: gradients reach all, and eval mode is near the simulation."""
    module, given = zoo.build(name), zoo.inputs(name, 8)
    first = [each[:1] for each in given]
    model = training.prepare(module, example_inputs=first, codebook=Codebook("network", 16), calibration=given[0].numpy())
    assert model.blueprint.refusal is None
    optimiser = torch.optim.SGD(model.parameters(), lr=1e-3)
    model.train()
    sum(each.square().mean() for each in listed(model(*given))).backward()  # type: ignore[union-attr]
    optimiser.step()
    for parameter, tensor in model.named_parameters():
        assert not tensor.requires_grad or (tensor.grad is not None and bool(tensor.grad.isfinite().all())), parameter
    model.eval()
    integers = training.integers(model)
    with torch.no_grad():
        pairs = zip(integers.outputs, listed(model(*given)), listed(model.simulate(*given)), strict=True)
        for output, exact, simulated in pairs:
            steps = (exact - simulated).abs() / integers.tensor(output).scale
            assert float(steps.mean()) < 1
            assert float(steps.max()) <= 4


def listed(outputs: Any) -> list[torch.Tensor]:
    return [outputs] if isinstance(outputs, torch.Tensor) else list(outputs)
