"""PyTorch networks that together have every operator beyond those of plain residual networks."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn


class Gated(nn.Module):
    """Depthwise layers, gates of one value a channel, tables, a difference, softmax."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 12, 3, 2, 1)
        self.dw = nn.Conv2d(12, 24, 3, padding=1, groups=12)
        self.down, self.up = nn.Conv2d(24, 6, 1), nn.Conv2d(6, 24, 1)
        self.point, self.other = nn.Conv2d(24, 24, 1), nn.Conv2d(24, 24, 3, padding=1, groups=24)
        self.act = nn.PReLU(24)
        self.act.weight = nn.Parameter(torch.linspace(-0.3, 0.6, 24))
        self.head = nn.Linear(24, 9)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.silu(self.dw(F.hardswish(self.stem(x))))
        x = x * torch.sigmoid(self.up(F.relu(self.down(F.adaptive_avg_pool2d(x, 1)))))
        x = F.gelu(self.point(x))
        x = self.act(self.other(x)) - x
        return torch.softmax(self.head(x.mean((2, 3))), 1)


class Joined(nn.Module):
    """Enlarging, transposed layers, joined maps, slices, padding and cropping."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 12, 3, padding=1)
        self.turned, self.side = nn.ConvTranspose2d(12, 8, 2, 2), nn.Conv2d(12, 8, 1)
        self.c, self.out = nn.Conv2d(24, 8, 3, padding=1), nn.Conv2d(8, 5, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        a = F.relu(self.a(x))
        b = F.leaky_relu(self.b(F.max_pool2d(a, 2)), 0.1)
        x = torch.cat([a, self.turned(b), F.interpolate(self.side(b), scale_factor=2.0, mode="nearest")], 1)
        x = F.relu(self.c(x))[:, 2:6]
        x = F.pad(x, (1, 1, 2, 0))[:, :, 1:-1]
        made: torch.Tensor = self.out(torch.cat([x, x], 1))
        return made


class Ports(nn.Module):
    """Two sequences in, scores and the best of them out."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv1d(2, 8, 5, padding=2), nn.Conv1d(2, 8, 3, padding=1), nn.Conv1d(8, 8, 3, padding=4, dilation=4)
        self.head = nn.Linear(8, 6)

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        z = self.c(F.max_pool1d(F.relu(self.a(x)) * F.elu(self.b(y)), 2))
        scores = self.head(z.mean(2))
        return scores, scores.argmax(1)
