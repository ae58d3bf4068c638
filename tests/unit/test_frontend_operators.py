"""Each operator beyond plain ResNets: read and simplified it computes what PyTorch does."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from floatnets import Lambda, check, images, let, randomise
from torch import nn

from kqgen import ir
from kqgen.frontend import import_exported, import_module
from kqgen.simplify import simplify

MAP = (2, 6, 12, 10)
SEQUENCE = (2, 4, 48)
Makers = dict[str, Callable[[], nn.Module]]


def conv(c_in: int = 6, c_out: int = 4, **options: Any) -> nn.Conv2d:
    return nn.Conv2d(c_in, c_out, **({"kernel_size": 3} | options))


def conv1(c_in: int = 4, c_out: int = 5, **options: Any) -> nn.Conv1d:
    return nn.Conv1d(c_in, c_out, **({"kernel_size": 5} | options))


CONVOLUTIONS: Makers = {
    "depthwise": lambda: conv(6, 6, groups=6, padding=1),
    "depthwise with multiplier 2": lambda: conv(6, 12, groups=6, stride=2),
    "grouped": lambda: conv(6, 9, groups=3, padding=1, bias=False),
    "dilated": lambda: conv(dilation=(2, 3), padding=(2, 1)),
    "dilated, same": lambda: conv(kernel_size=(4, 3), dilation=2, padding="same"),
    "dilated depthwise": lambda: conv(6, 6, groups=6, dilation=2),
    "transposed 2x2": lambda: nn.ConvTranspose2d(6, 4, 2, stride=2),
    "transposed 4x4": lambda: nn.ConvTranspose2d(6, 4, 4, stride=2, padding=1),
    "transposed 3x3 with output padding": lambda: nn.ConvTranspose2d(6, 4, 3, stride=(2, 3), padding=1, output_padding=(1, 2)),
    "transposed of stride 1": lambda: nn.ConvTranspose2d(6, 4, 3, padding=2),
    "transposed, cropped": lambda: nn.ConvTranspose2d(6, 4, 2, stride=3, padding=1),
    "transposed, grouped and dilated": lambda: nn.ConvTranspose2d(6, 4, 3, stride=2, padding=1, groups=2, dilation=2),
    "transposed depthwise": lambda: nn.ConvTranspose2d(6, 6, 2, stride=2, groups=6, bias=False),
    "linear over channels": lambda: Lambda(lambda m, x: m.fc(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2).mean((2, 3)), fc=nn.Linear(6, 4)),
    "linear over shuffled channels": lambda: nn.Sequential(
        nn.ChannelShuffle(2), Lambda(lambda m, x: F.relu(m.fc(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)), fc=nn.Linear(6, 4))
    ),
    "flattened rows first": lambda: Lambda(lambda m, x: m.fc(F.relu(x).permute(0, 2, 3, 1).flatten(1)), fc=nn.Linear(720, 4)),
    "last row": lambda: Lambda(lambda m, x: m.fc(x[:, :, -1].flatten(1)), fc=nn.Linear(60, 4)),
    "batch norm alone": lambda: nn.BatchNorm2d(6),
}

SEQUENCES: Makers = {
    "conv": lambda: nn.Sequential(conv1(padding=2), nn.BatchNorm1d(5), nn.ReLU()),
    "strided and dilated": lambda: conv1(stride=2, dilation=3, padding=4),
    "depthwise": lambda: conv1(4, 4, groups=4),
    "same": lambda: conv1(kernel_size=4, padding="same"),
    "transposed": lambda: nn.ConvTranspose1d(4, 3, 4, stride=2, padding=1),
    "max pool": lambda: nn.MaxPool1d(3, 2, 1),
    "max pool, ceil": lambda: nn.MaxPool1d(5, 4, ceil_mode=True),
    "avg pool": lambda: nn.AvgPool1d(4, 2, 1),
    "adaptive": lambda: nn.Sequential(nn.AdaptiveAvgPool1d(12), nn.AdaptiveMaxPool1d(3)),
    "global": lambda: Lambda(lambda m, x: m.fc(m.conv(x).mean(-1)), conv=conv1(), fc=nn.Linear(5, 3)),
    "maximum": lambda: Lambda(lambda m, x: x.amax(2, keepdim=True)),
    "last step": lambda: Lambda(lambda m, x: m.fc(m.conv(x)[:, :, -1]), conv=conv1(), fc=nn.Linear(5, 3)),
    "dense over time": lambda: Lambda(lambda m, x: m.fc(x.transpose(1, 2)).transpose(1, 2), fc=nn.Linear(4, 3)),
    "dense over time as output": lambda: Lambda(lambda m, x: F.relu(m.fc(x.transpose(1, 2))), fc=nn.Linear(4, 3)),
    "two-dimensional over one row": lambda: Lambda(lambda m, x: m.conv(x.unsqueeze(2)), conv=conv(4, 3, kernel_size=(1, 3))),
    "two-dimensional over one column": lambda: Lambda(lambda m, x: m.conv(x.unsqueeze(-1)), conv=conv(4, 3, kernel_size=(3, 1))),
    "upsampled": lambda: nn.Sequential(conv1(padding=2), nn.Upsample(scale_factor=3), nn.ReLU()),
    "padded and cropped": lambda: Lambda(lambda m, x: F.pad(F.pad(x, (3, -1))[..., 2:-5:3], (0, 0, 1, 0))),
    "squeeze-excite": lambda: Lambda(lambda m, x: x * torch.sigmoid(m.fc(x.mean(2))).unsqueeze(2), fc=nn.Linear(4, 4)),
    "concatenated": lambda: Lambda(
        lambda m, x: torch.cat([torch.cat([x, m.conv(x)], 2), x.repeat(1, 1, 2)], 1), conv=conv1(4, 4, padding=2)
    ),
}  # fmt: skip

FUNCTIONS: Makers = {
    "sigmoid": nn.Sigmoid,
    "tanh": nn.Tanh,
    "hardsigmoid": nn.Hardsigmoid,
    "hardswish": nn.Hardswish,
    "silu": nn.SiLU,
    "gelu": nn.GELU,
    "gelu tanh": lambda: nn.GELU("tanh"),
    "leaky relu": lambda: nn.LeakyReLU(0.3),
    "prelu": nn.PReLU,
    "prelu per channel": lambda: nn.PReLU(4),
    "elu": lambda: nn.ELU(0.7),
    "celu": lambda: nn.CELU(0.7),
    "selu": nn.SELU,
    "softplus": lambda: nn.Softplus(2.0),
    "mish": nn.Mish,
    "abs": lambda: Lambda(lambda m, x: x.abs()),
    "square": lambda: Lambda(lambda m, x: x.square() + x**2),
    "exp": lambda: Lambda(lambda m, x: (-x.abs()).exp()),
    "softmax": lambda: nn.Softmax(1),
    "argmax": lambda: Lambda(lambda m, x: x.argmax(1)),
    "argmax, axis kept": lambda: Lambda(lambda m, x: x.argmax(1, keepdim=True)),
}

MAPS: Makers = {
    "max pool, ceil": lambda: nn.MaxPool2d(3, 2, padding=1, ceil_mode=True),
    "padding by ones": lambda: nn.Sequential(nn.ConstantPad2d((1, 0, 2, 1), 1.5), conv()),
    "padding of channels by twos": lambda: Lambda(lambda m, x: F.pad(x, (0, 0, 0, 0, 1, 2), value=2.0)),
    "crop by padding": lambda: Lambda(lambda m, x: m.conv(F.pad(x, (-1, 2, 3, -2, -1, 0))), conv=conv(5)),
    "padding at the end": lambda: nn.Sequential(conv(), nn.ReLU(), nn.ZeroPad2d((0, 1, 2, 0))),
    "concatenated channels": lambda: Lambda(lambda m, x: F.relu(torch.cat([m.conv(x), x], 1)), conv=conv(padding=1)),
    "concatenated rows and columns": lambda: Lambda(
        lambda m, x: torch.cat([torch.cat([x, x[:, :, 3:]], 2), x.repeat(1, 1, 2, 1)[:, :, :21]], 3)
    ),
    "chunks": lambda: Lambda(lambda m, x: let(x.chunk(3, 1), lambda y: y[0] * y[2] - y[1])),
    "split in unequal parts": lambda: Lambda(lambda m, x: let(x.split([1, 5], 1), lambda y: torch.cat([y[1], y[0]], 1))),
    "narrow and select": lambda: Lambda(lambda m, x: x.narrow(1, 2, 3).narrow(3, 1, 4)[:, 1].unsqueeze(1)),
    "unbound rows": lambda: Lambda(lambda m, x: let(x.unbind(2), lambda y: y[0] + y[-1])),
    "channel list": lambda: Lambda(lambda m, x: m.conv(F.relu(x)[:, [5, 0, 3]]), conv=conv(3)),
    "channels selected": lambda: Lambda(lambda m, x: x.index_select(1, m.places), places=torch.tensor([4, 4, 1])),
    "difference": lambda: Lambda(lambda m, x: F.relu(m.a(x) - m.b(x)), a=conv(), b=conv()),
    "weighted difference": lambda: Lambda(lambda m, x: torch.sub(x, F.relu(x), alpha=0.5) + torch.rsub(F.relu(x), x)),
    "flipped rows and channels": lambda: Lambda(lambda m, x: m.conv(x.flip(1, 2)) + 1, conv=conv()),
    "gating": lambda: Lambda(lambda m, x: m.a(x) * torch.tanh(m.b(x)), a=conv(), b=conv()),
    "squeeze-excite by linear layers": lambda: Lambda(
        lambda m, x: x * m.up(F.relu(m.down(x.mean((2, 3))))).sigmoid()[:, :, None, None], down=nn.Linear(6, 2), up=nn.Linear(2, 6)
    ),
    "squeeze-excite by convolutions": lambda: Lambda(
        lambda m, x: F.hardsigmoid(m.up(F.relu(m.down(F.adaptive_avg_pool2d(x, 1))))).expand_as(x) * x,
        down=conv(6, 2, kernel_size=1), up=conv(2, 6, kernel_size=1),
    ),
    "spatial attention": lambda: Lambda(lambda m, x: x * m.conv(x.mean(1, keepdim=True)).sigmoid(), conv=conv(1, 1, padding=1)),
    "sum of a map and a vector": lambda: Lambda(lambda m, x: x + m.fc(x.mean((2, 3)))[:, :, None, None], fc=nn.Linear(6, 6)),
    "products by row and column": lambda: Lambda(lambda m, x: x * x.mean(3, keepdim=True) * x.mean(2, keepdim=True)),
    "sum of rows and columns": lambda: Lambda(lambda m, x: x.sum((2, 3)) + x.sum(1).amax((1, 2), keepdim=True)[:, :, 0]),
    "hardswish written out": lambda: Lambda(lambda m, x: let(m.conv(x), lambda y: y * F.relu6(y + 3) / 6), conv=conv()),
    "silu written out": lambda: Lambda(lambda m, x: let(m.conv(x), lambda y: y * torch.sigmoid(y)), conv=conv()),
    "upsample by size": lambda: nn.Sequential(conv(), nn.Upsample((20, 24)), nn.LeakyReLU(0.1)),
    "pixel shuffle": lambda: nn.Sequential(conv(6, 8), nn.ReLU(), nn.PixelShuffle(2), conv(2, 3)),
    "pixel shuffle at the end": lambda: nn.Sequential(conv(6, 12), nn.PixelShuffle(2)),
    "pixel shuffle, softmax, mean, flattened": lambda: nn.Sequential(
        conv(6, 12), nn.PixelShuffle(2), nn.SiLU(), nn.Softmax(1), nn.Flatten()
    ),
    "mean of a pixel shuffle": lambda: Lambda(lambda m, x: F.relu(F.pixel_shuffle(m.conv(x), 2)).mean((2, 3)), conv=conv(6, 12)),
    "shuffled by views and flattened": lambda: Lambda(
        lambda m, x: F.relu(x.view(-1, 2, 3, 12, 10).transpose(1, 2)).reshape(-1, 6, 12, 10).flatten(1)
    ),
    "pixel unshuffle": lambda: nn.Sequential(nn.PixelUnshuffle(2), conv(24, 3)),
    "focus": lambda: Lambda(
        lambda m, x: m.conv(torch.cat([x[..., ::2, ::2], x[..., 1::2, ::2], x[..., ::2, 1::2], x[..., 1::2, 1::2]], 1)), conv=conv(24, 3)
    ),
    "channel shuffle by views": lambda: Lambda(
        lambda m, x: m.conv(m.first(x).view(-1, 2, 4, 10, 8).transpose(1, 2).reshape(-1, 8, 10, 8)), first=conv(6, 8), conv=conv(8, 3)
    ),
    "channel shuffle at the end": lambda: nn.Sequential(nn.MaxPool2d(2), nn.ChannelShuffle(3)),
    "channels last at the end": lambda: Lambda(lambda m, x: m.conv(x).permute(0, 2, 3, 1), conv=conv()),
    "anchors at the end": lambda: Lambda(lambda m, x: m.conv(x).permute(0, 2, 3, 1).reshape(x.shape[0], -1, 2), conv=conv()),
    "rows of a concatenation, channels last": lambda: Lambda(
        lambda m, x: let(x.permute(0, 2, 3, 1), lambda y: torch.cat([F.relu(y), y], 1)).permute(0, 3, 1, 2)
    ),
    "large flattened map among vectors": lambda: Lambda(
        lambda m, x: m.fc(torch.cat([F.max_pool2d(x, 4, 3).flatten(1), x.mean((2, 3))], 1)), fc=nn.Linear(60, 4)
    ),
    "three outputs": lambda: Lambda(lambda m, x: let(m.conv(x), lambda y: (y, F.silu(y), x.mean((2, 3)))), conv=conv()),
}  # fmt: skip


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_convolutions_and_dense_layers(name: str) -> None:
    check(randomise(CONVOLUTIONS[name]()), [images(*MAP)])


@pytest.mark.parametrize(
    ("name", "kernels"),
    [
        ("transposed 2x2", [(1, 1)] * 4),
        ("transposed 4x4", [(2, 2)] * 4),
        ("transposed depthwise", [(1, 1)] * 4),
        ("transposed, cropped", [(2, 2)]),
        ("transposed 3x3 with output padding", [(3, 3)]),
    ],
)
def test_transposed_convolutions_multiply_no_zeros_where_phases_are_whole(name: str, kernels: list[tuple[int, int]]) -> None:
    simple = simplify(import_module(randomise(CONVOLUTIONS[name]()), [images(*MAP)], "net"))
    assert [node.kernel for node in simple if isinstance(node, ir.Conv2d)] == kernels


@pytest.mark.parametrize("name", SEQUENCES)
def test_sequences(name: str) -> None:
    check(randomise(SEQUENCES[name]()), [images(*SEQUENCE)])


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions(name: str) -> None:
    check(randomise(nn.Sequential(conv(), FUNCTIONS[name]())), [images(*MAP)])


@pytest.mark.parametrize("name", MAPS)
def test_maps_put_together_and_taken_apart(name: str) -> None:
    check(randomise(MAPS[name]()), [images(*MAP)])


def test_raw_audio_is_taken_as_a_sequence_of_one_channel() -> None:
    module = Lambda(lambda m, x: m.conv(x.unsqueeze(1)).amax(2), conv=conv1(1, 4))
    graph, _ = check(randomise(module), [images(2, 64)])
    assert graph.inputs[0].shape == (1, 1, 64)


def test_several_inputs_of_all_ranks() -> None:
    module = Lambda(
        lambda m, x, s, v: (m.a(x).mean((2, 3)) * v, m.b(s)), a=conv(6, 4), b=conv1(),
    )  # fmt: skip
    graph, simple = check(randomise(module), [images(*MAP), images(*SEQUENCE), images(2, 4)])
    assert [node.shape for node in graph.inputs] == [(6, 12, 10), (4, 1, 48), (4, 1, 1)]
    assert len(simple.outputs) == 2


def test_functions_written_out_become_one_node() -> None:
    for name in ("hardswish written out", "silu written out"):
        simple = simplify(import_module(randomise(MAPS[name]()), [images(*MAP)], "net"))
        assert [type(node) for node in simple] == [ir.Input, ir.Conv2d, ir.Unary], name


def test_hardsigmoid_of_a_convolution_is_its_clamp() -> None:
    _, simple = check(randomise(nn.Sequential(conv(), nn.Hardsigmoid())), [images(*MAP)])
    (made,) = (node for node in simple if isinstance(node, ir.Conv2d))
    assert (len(simple.nodes), made.lo, made.hi) == (2, 0.0, 1.0)


def quantised(m: Any, x: torch.Tensor) -> torch.Tensor:
    x = torch.fake_quantize_per_tensor_affine(x, 1 / 64, 3, -128, 127)
    y = torch.fake_quantize_per_tensor_affine(F.relu(m.conv(x)), 1 / 32, 0, 0, 255)
    pooled = torch.fake_quantize_per_tensor_affine(F.max_pool2d(y, 2).flatten(1), 1 / 32, 0, 0, 255)
    return torch.fake_quantize_per_tensor_affine(m.fc(pooled), 1 / 8, -5, -128, 127)


@pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")
@pytest.mark.parametrize("lowered", [False, True])
def test_quantisations_of_the_model_become_those_of_tensors(lowered: bool) -> None:
    module = randomise(Lambda(quantised, conv=conv(), fc=nn.Linear(80, 3)))
    program = torch.export.export(module, (images(*MAP),))
    graph = simplify(import_exported(program.run_decompositions() if lowered else program, "net"))
    assert [type(node) for node in graph] == [ir.Input, ir.Conv2d, ir.MaxPool, ir.Conv2d]
    assert [node.pinned for node in graph] == [(1 / 64, 3), (1 / 32, -128), None, (1 / 8, -5)]


def test_another_quantisation_of_a_tensor_that_others_read_is_a_node() -> None:
    def forward(m: Any, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = m.conv(x)
        return torch.fake_quantize_per_tensor_affine(y, 0.5, 0, -128, 127) + y

    graph = simplify(import_module(randomise(Lambda(forward, conv=conv())), [images(*MAP)], "net"))
    assert [type(node) for node in graph] == [ir.Input, ir.Conv2d, ir.AvgPool, ir.Add]
    assert [node.pinned for node in graph] == [None, None, (0.5, 0), None]


def test_random_networks_of_random_operators() -> None:
    generator = np.random.default_rng(5)
    for seed in range(12):
        layers: list[nn.Module] = []
        c = 6
        for _ in range(6):
            wider = int(generator.integers(1, 4)) * 2
            choice: list[Callable[[], nn.Module]] = [
                partial(nn.Conv2d, c, wider, int(generator.integers(1, 4)), padding=1),
                partial(nn.Conv2d, c, c, 3, padding=1, groups=c),
                partial(nn.BatchNorm2d, c),
                nn.Hardswish,
                nn.ReLU6,
                partial(nn.ChannelShuffle, 2) if c % 2 == 0 else nn.Identity,
                lambda: nn.MaxPool2d(2, 1, 1),
                lambda: nn.ZeroPad2d((1, 0, -1, 1)),
                lambda: nn.AvgPool2d(2, 1),
                lambda: nn.Upsample(scale_factor=2),
                lambda: Lambda(lambda m, x: x * x.mean((2, 3), keepdim=True)),
                lambda: Lambda(lambda m, x: torch.cat([x[:, 1:], x[:, :1]], 1) - x),
                lambda: Lambda(lambda m, x: x[:, :, 1:, ::2]),
            ]
            number = int(generator.integers(len(choice)))
            layers.append(choice[number]())
            c = wider if number == 0 else c
        check(randomise(nn.Sequential(*layers), seed), [images(2, 6, 16, 16)], layers=8)
