"""Second moments of a layer's inputs, and the weights that make the most of inputs that are already quantised.

A layer sees patches p (n = c_in * k_h * k_w numbers, input channel slowest) and should give outputs y. Means are taken out of both,
for the bias makes up for any mean: only the covariances count. The weights of least squared output error are
cross @ inverse(second); the quantisers then lose (W - Q) second (W - Q)^T more. In a depthwise layer each output channel sees patches of
its own input channel alone, and has covariances of its own.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

from kqgen.floatexec import conv_input, conv_stride
from kqgen.ir import Conv2d

Float64 = npt.NDArray[np.float64]

WIDEST = 4608
"""Layers with more inputs to an output than this get no full second moments: the matrix would not pay its memory."""
_DAMPING = 0.01
_CHUNK_VALUES = 1 << 21
_PATCHES = 65536
_PATCHES_BY_WIDTH = 1.1e10


@dataclass(frozen=True, slots=True, eq=False)
class Moments:
    """Covariances over the patches of a layer, in codes of the input: one unit is the input's scale.

    Attributes:
        second: (n, n) float64, of the patches with themselves; of a depthwise layer (c_out, n, n), for each output channel.
        cross: (c_out, n) float64, of the wanted outputs, divided by the input's scale, with the patches.
        count: patches seen.
    """

    second: Float64
    cross: Float64
    count: int


def codes_of(node: Conv2d, x: torch.Tensor, scale: float) -> torch.Tensor:
    """What the layer multiplies its weights with, in units of the input's scale: (N, c_in, h, w) float32, cut into runs where it has them.

    Whole numbers unless the layer has an input offset, so that sums of their products are exact in any order.
    """
    if node.input_offset is None:
        return conv_input(node, torch.round(x / scale))
    return conv_input(node, (x - torch.from_numpy(node.input_offset.copy())[:, None, None]) / scale)


def collect(node: Conv2d, codes: torch.Tensor, wanted: torch.Tensor, scale: float) -> Moments:
    """Covariances of the layer's patches, and of its wanted outputs with them; evenly spaced patches when there are very many.

    Args:
        codes: (N, c_in, h, w) from `codes_of`.
        wanted: (N, c_out, h_out, w_out) real, before any clamp.
        scale: of the input.
    """
    c_out, n = node.weight.shape[0], node.weight[0].size
    images, places = wanted.shape[0], wanted.shape[2] * wanted.shape[3]
    limit = max(min(_PATCHES, int(_PATCHES_BY_WIDTH / n**2)), 4 * n)
    # An odd distance visits all columns and rows of maps with even sides.
    taken = torch.arange(0, images * places, (images * places // limit) | 1)
    if node.groups > 1:
        return _collect_apart(node, codes, wanted, scale)
    windows = windows_of(node, codes)
    outputs_at = wanted.flatten(2)
    second, cross = torch.zeros((n, n), dtype=torch.float64), torch.zeros((c_out, n), dtype=torch.float64)
    patch_sum, wanted_sum, count = torch.zeros(n, dtype=torch.float64), torch.zeros(c_out, dtype=torch.float64), len(taken)
    for part in torch.split(taken, max(1, _CHUNK_VALUES // n)):
        image, place = part // places, part % places
        row, column = place // wanted.shape[3], place % wanted.shape[3]
        patches = windows[image, :, row, column].reshape(-1, n).double()
        outputs = outputs_at[image, :, place].double() / scale
        second += patches.T @ patches
        cross += outputs.T @ patches
        patch_sum += patches.sum(0)
        wanted_sum += outputs.sum(0)
    second = second / count - torch.outer(patch_sum, patch_sum) / count**2
    cross = cross / count - torch.outer(wanted_sum, patch_sum) / count**2
    return Moments(second.numpy(), cross.numpy(), count)


def _collect_apart(node: Conv2d, codes: torch.Tensor, wanted: torch.Tensor, scale: float) -> Moments:
    """The covariances of a depthwise layer, channel by channel."""
    c_out, n = node.weight.shape[0], node.weight[0].size
    images, rows, columns = wanted.shape[0], wanted.shape[2], wanted.shape[3]
    step = max(1, images * rows * columns // _PATCHES) | 1
    windows = windows_of(node, codes).flatten(4).permute(1, 0, 2, 3, 4)
    second, cross = torch.zeros((c_out, n, n), dtype=torch.float64), torch.zeros((c_out, n), dtype=torch.float64)
    count = 0
    for channel in range(c_out):
        patches = windows[channel * codes.shape[1] // c_out].reshape(-1, n)[::step].double()
        outputs = wanted[:, channel].reshape(-1)[::step].double() / scale
        count = len(outputs)
        patch_mean = patches.sum(0) / count
        second[channel] = patches.T @ patches / count - torch.outer(patch_mean, patch_mean)
        cross[channel] = outputs @ patches / count - outputs.sum() / count * patch_mean
    return Moments(second.numpy(), cross.numpy(), count)


def windows_of(node: Conv2d, codes: torch.Tensor) -> torch.Tensor:
    """A view of what each output covers, (N, c_in, h_out, w_out, k_h, k_w), padded taps 0; `codes` as `conv_input` makes them."""
    top, bottom, left, right = node.padding
    padded = F.pad(codes, (left, right, top, bottom)) if any(node.padding) else codes
    (k_h, k_w), (s_h, s_w), (d_h, d_w) = node.kernel, conv_stride(node), node.dilation
    whole = padded.unfold(2, (k_h - 1) * d_h + 1, s_h).unfold(3, (k_w - 1) * d_w + 1, s_w)
    return whole[..., ::d_h, ::d_w]


def damped(moments: Moments) -> Float64:
    """`second` plus a ridge: a hundredth of the mean variance, more when there are few patches for the unknowns."""
    n = moments.second.shape[-1]
    mean = np.trace(moments.second, axis1=-2, axis2=-1)[..., None, None] / n
    ridge = max(_DAMPING, n / moments.count) * mean
    out: Float64 = moments.second + np.where(ridge > 0, ridge, 1.0) * np.eye(n)
    return out


def best_weights(node: Conv2d, moments: Moments) -> Float64:
    """The weights (c_out, n) that bring the outputs nearest to the wanted ones, drawn to the float weights by the ridge.

    Channels without weights stay without: their wanted outputs are constant but for rounding.
    """
    system = damped(moments)
    ridge = system - moments.second
    flat = node.weight.reshape(len(node.weight), -1).astype(np.float64)
    if system.ndim == 3:
        right = moments.cross[:, :, None] + ridge @ flat[:, :, None]
        solved = np.asarray(np.linalg.solve(system, right)[:, :, 0], np.float64)
    else:
        solved = np.asarray(np.linalg.solve(system, (moments.cross + flat @ ridge).T).T, np.float64)
    alive = np.asarray(np.any(flat != 0, axis=1))
    return np.where(alive[:, None], solved, 0.0)
