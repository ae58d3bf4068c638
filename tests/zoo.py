"""Small networks with the topologies that people deploy, with weights from a fixed seed that keep activations alive."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

import torch
import torch.nn.functional as F
from torch import nn

Activation = Callable[[], nn.Module]


@dataclass(frozen=True, slots=True)
class Net:
    """One network.

    Attributes:
        make: builds it, without its weights.
        shapes: of its inputs, without the batch axis.
    """

    make: Callable[[], nn.Module]
    shapes: tuple[tuple[int, ...], ...]


def conv_bn(c_in: int, c_out: int, kernel: int, stride: int = 1, groups: int = 1, act: Activation | None = nn.ReLU6) -> nn.Sequential:
    """Convolution, batch norm and activation."""
    layers: list[nn.Module] = [
        nn.Conv2d(c_in, c_out, kernel, stride, kernel // 2, groups=groups, bias=False), nn.BatchNorm2d(c_out)
    ]
    return nn.Sequential(*layers, *([] if act is None else [act()]))


class SqueezeExcite(nn.Module):
    """Channel weights of the mean over the map."""

    def __init__(self, c: int, gate: Activation = nn.Hardsigmoid) -> None:
        super().__init__()
        self.down, self.up, self.gate = nn.Conv2d(c, max(4, c // 4), 1), nn.Conv2d(max(4, c // 4), c, 1), gate()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        made: torch.Tensor = x * self.gate(self.up(F.relu(self.down(F.adaptive_avg_pool2d(x, 1)))))
        return made


class InvertedResidual(nn.Module):
    """Expansion, depthwise convolution, perhaps squeeze-excite, projection, and a sum where shapes allow it."""

    def __init__(
        self, c_in: int, c_out: int, stride: int, expand: int, kernel: int = 3, act: Activation = nn.ReLU6, gate: Activation | None = None
    ) -> None:
        super().__init__()
        hidden = c_in * expand
        layers: list[nn.Module] = [conv_bn(c_in, hidden, 1, act=act)] if expand > 1 else []
        layers.append(conv_bn(hidden, hidden, kernel, stride, hidden, act))
        layers += [SqueezeExcite(hidden, gate)] if gate is not None else []
        self.body = nn.Sequential(*layers, conv_bn(hidden, c_out, 1, act=None))
        self.adds = stride == 1 and c_in == c_out

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        made: torch.Tensor = self.body(x)
        return x + made if self.adds else made


def _widths(value: float) -> int:
    return max(8, int(value + 4) // 8 * 8)


def mobilenet_v2(width: float = 0.35, classes: int = 10) -> nn.Module:
    """MobileNetV2: 17 inverted residuals."""
    rows = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
    c = _widths(32 * width)
    layers: list[nn.Module] = [conv_bn(3, c, 3, 2)]
    for expand, channels, repeats, stride in rows:
        for number in range(repeats):
            layers.append(InvertedResidual(c, _widths(channels * width), stride if number == 0 else 1, expand))
            c = _widths(channels * width)
    return nn.Sequential(*layers, conv_bn(c, 256, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.2), nn.Linear(256, classes))


def efficientnet_lite() -> nn.Module:
    """EfficientNet-Lite0's stages, thinner: kernels of 3 and 5, ReLU6, no squeeze-excite."""
    rows = ((1, 16, 1, 1, 3), (6, 24, 2, 2, 3), (6, 40, 2, 2, 5), (6, 80, 2, 2, 3), (6, 112, 1, 1, 5), (6, 192, 2, 2, 5), (6, 320, 1, 1, 3))
    c = 16
    layers: list[nn.Module] = [conv_bn(3, c, 3, 2)]
    for expand, channels, repeats, stride, kernel in rows:
        for number in range(repeats):
            layers.append(InvertedResidual(c, _widths(channels / 4), stride if number == 0 else 1, expand, kernel))
            c = _widths(channels / 4)
    return nn.Sequential(*layers, conv_bn(c, 128, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(128, 10))


class UNet(nn.Module):
    """Two levels down and up, by transposed convolution and by enlarging, with skips by concatenation."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.ModuleList([self.pair(1, 8), self.pair(8, 16), self.pair(16, 24)])
        self.grow = nn.ModuleList([nn.ConvTranspose2d(24, 16, 2, stride=2), nn.Upsample(scale_factor=2)])
        self.up = nn.ModuleList([self.pair(32, 16), self.pair(24, 8)])
        self.head = nn.Conv2d(8, 2, 1)

    @staticmethod
    def pair(c_in: int, c_out: int) -> nn.Module:
        """Two convolutions."""
        return nn.Sequential(conv_bn(c_in, c_out, 3, act=nn.ReLU), conv_bn(c_out, c_out, 3, act=nn.ReLU))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        kept = []
        for number, block in enumerate(self.down):
            x = block(x if number == 0 else F.max_pool2d(x, 2))
            kept.append(x)
        for grow, block, skip in zip(self.grow, self.up, kept[-2::-1], strict=True):
            x = block(torch.cat([skip, grow(x)], 1))
        made: torch.Tensor = self.head(x)
        return made


class Ecg(nn.Module):
    """Residual convolutions over time with growing dilation."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv1d(1, 16, 7, 2, 3), nn.BatchNorm1d(16), nn.ReLU(), nn.MaxPool1d(2))
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Conv1d(16, 16, 3, padding=rate, dilation=rate), nn.BatchNorm1d(16), nn.ReLU(), nn.Conv1d(16, 16, 1))
            for rate in (1, 2, 4, 8)
        )
        self.tail = nn.Sequential(nn.AvgPool1d(4), nn.Conv1d(16, 24, 3, groups=2), nn.ELU(), nn.AdaptiveAvgPool1d(1), nn.Flatten())
        self.head = nn.Linear(24, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = F.relu(x + block(x))
        return F.softmax(self.head(self.tail(x)), 1)


class Yolo(nn.Module):
    """A backbone with leaky ReLU and two heads, the finer one fed by the coarser through enlarging and concatenation."""

    def __init__(self) -> None:
        super().__init__()
        def leaky() -> nn.Module:
            return nn.LeakyReLU(0.1)

        self.stages = nn.ModuleList([conv_bn(3, 8, 3, 2, act=leaky), conv_bn(8, 16, 3, 2, act=leaky), conv_bn(16, 24, 3, 2, act=leaky)])
        self.deep = nn.Sequential(nn.MaxPool2d(2), conv_bn(24, 32, 3, act=leaky))
        self.lateral = conv_bn(32, 16, 1, act=leaky)
        self.coarse, self.fine = nn.Conv2d(32, 18, 1), nn.Sequential(conv_bn(40, 24, 3, act=leaky), nn.Conv2d(24, 18, 1))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        for stage in self.stages:
            x = stage(x)
        deep = self.deep(x)
        fine = self.fine(torch.cat([F.interpolate(self.lateral(deep), scale_factor=2.0), x], 1))
        return self.coarse(deep).permute(0, 2, 3, 1), fine


class ShuffleUnit(nn.Module):
    """ShuffleNetV2's unit: half of the channels pass, the other half is convolved, then all take turns."""

    def __init__(self, c: int) -> None:
        super().__init__()
        half = c // 2
        self.branch = nn.Sequential(conv_bn(half, half, 1, act=nn.ReLU), conv_bn(half, half, 3, groups=half, act=None),
                                    conv_bn(half, half, 1, act=nn.ReLU))  # fmt: skip

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        kept, changed = x.chunk(2, 1)
        y = torch.cat([kept, self.branch(changed)], 1)
        n, c, h, w = y.shape
        return y.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)


def mobilenet_v3() -> nn.Module:
    """MobileNetV3's blocks: hardswish, squeeze-excite."""
    return nn.Sequential(
        conv_bn(3, 8, 3, 2, act=nn.Hardswish),
        InvertedResidual(8, 8, 1, 1, 3, nn.ReLU, nn.Hardsigmoid),
        InvertedResidual(8, 16, 2, 4, 5, nn.Hardswish, nn.Hardsigmoid),
        InvertedResidual(16, 16, 1, 4, 5, nn.Hardswish, nn.Sigmoid),
        nn.AdaptiveAvgPool2d(1), nn.Conv2d(16, 32, 1), nn.Hardswish(), nn.Flatten(), nn.Linear(32, 10),
    )  # fmt: skip


def shufflenet() -> nn.Module:
    """Three shuffle units and a grouped convolution with a channel shuffle."""
    units = (ShuffleUnit(16), ShuffleUnit(16), ShuffleUnit(16))
    grouped = (nn.Conv2d(16, 24, 1, groups=2), nn.ChannelShuffle(2), nn.Conv2d(24, 24, 3, 2, 1, groups=24), nn.SiLU())
    return nn.Sequential(conv_bn(3, 16, 3, 2), *units, *grouped, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(24, 10))


def super_resolution() -> nn.Module:
    """ESPCN: sub-pixel convolution."""
    return nn.Sequential(nn.Conv2d(1, 16, 5, padding=2), nn.Tanh(), nn.Conv2d(16, 8, 3, padding=1), nn.PReLU(8),
                         nn.Conv2d(8, 4, 3, padding=1), nn.PixelShuffle(2))  # fmt: skip


NETS: dict[str, Net] = {
    "mobilenet_v2": Net(mobilenet_v2, ((3, 96, 96),)),
    "efficientnet_lite": Net(efficientnet_lite, ((3, 64, 64),)),
    "unet": Net(UNet, ((1, 32, 32),)),
    "ecg": Net(Ecg, ((1, 256),)),
    "yolo": Net(Yolo, ((3, 64, 64),)),
    "mobilenet_v3": Net(mobilenet_v3, ((3, 48, 48),)),
    "shufflenet": Net(shufflenet, ((3, 32, 32),)),
    "super_resolution": Net(super_resolution, ((1, 16, 16),)),
}


def inputs(name: str, count: int, seed: int = 1) -> tuple[torch.Tensor, ...]:
    """Standard normal inputs of the network `name`, smoothed a little, as signals are."""
    generator = torch.Generator().manual_seed(seed)
    made = []
    for shape in NETS[name].shapes:
        noise = torch.randn(count, *shape, generator=generator)
        made.append((noise + noise.roll(1, -1) + noise.roll(2, -1)) / 3**0.5)
    return tuple(made)


@cache
def build(name: str, seed: int = 0) -> nn.Module:
    """The network in eval mode: weights by fan-in, and running statistics as they are on inputs, a little off."""
    generator = torch.Generator().manual_seed(seed)
    module = NETS[name].make()
    for part in module.modules():
        if isinstance(part, (nn.Conv1d, nn.Conv2d, nn.Linear, nn.ConvTranspose2d)):
            fan = part.weight[0].numel()
            part.weight.data.normal_(0, (2 / fan) ** 0.5, generator=generator)
            if part.bias is not None:
                part.bias.data.normal_(0, 0.1, generator=generator)
        elif isinstance(part, (nn.BatchNorm1d, nn.BatchNorm2d)):
            part.weight.data.uniform_(0.6, 1.4, generator=generator)
            part.bias.data.normal_(0, 0.3, generator=generator)
            part.momentum = None
    module.train()
    with torch.no_grad():
        module(*inputs(name, 16, seed=2))
    return module.eval()


def outputs(module: nn.Module, given: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
    """What the module makes, as a tuple."""
    with torch.no_grad():
        made = module(*given)
    return tuple(made) if isinstance(made, (tuple, list)) else (made,)
