"""Labelled arrays as a training loader: shuffled and augmented by a seed and the epoch alone, so that a run can be taken up anywhere."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

from kqgen.errors import InputError

AUGMENTATIONS = ("crop", "flip")
_CROP = 4


@dataclass(frozen=True, slots=True, eq=False)
class Labelled:
    """Inputs and their classes.

    Attributes:
        inputs: (N, C, H, W) or (N, n), float32 or uint8, as the network takes them.
        labels: (N,) int64.
    """

    inputs: torch.Tensor
    labels: torch.Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def to(self, device: torch.device | str) -> Labelled:
        """The same on another device."""
        return Labelled(self.inputs.to(device), self.labels.to(device))

    def split(self, held_out: int, seed: int) -> tuple[Labelled, Labelled]:
        """(the rest, `held_out` samples drawn by `seed`)."""
        order = torch.randperm(len(self), generator=torch.Generator().manual_seed(seed)).to(self.labels.device)
        kept, held = order[held_out:], order[:held_out]
        return Labelled(self.inputs[kept], self.labels[kept]), Labelled(self.inputs[held], self.labels[held])


def read_labelled(path: Path) -> Labelled:
    """An .npz with integer `labels` (N,) and one other array of N inputs, float32 or uint8.

    Raises:
        InputError: the file is missing, damaged or holds something else.
    """
    wanted = "an .npz with `images` (N, C, H, W), float32 or uint8, and integer `labels` (N,)"
    do = "numpy.savez('train.npz', images=images, labels=labels)"
    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
            arrays: dict[str, npt.NDArray[np.generic]] = {name: file[name] for name in file.files}
        for name, array in arrays.items():
            if not isinstance(array, np.ndarray):
                raise ValueError(f"{name} is no array")
    except FileNotFoundError as error:
        raise InputError(f"no such file: {path}", wanted=wanted, do="check the path") from error
    except (OSError, ValueError, EOFError, TypeError, KeyError, NotImplementedError, zipfile.BadZipFile, zlib.error) as error:
        raise InputError(f"cannot read {path}", found=f"{type(error).__name__}: {error}", wanted=wanted, do=do) from error
    labels = arrays.pop("labels", None)
    if labels is None or len(arrays) != 1:
        raise InputError(f"{path} is no labelled set", found=", ".join(arrays) or "no inputs", wanted=wanted, do=do)
    name, inputs = next(iter(arrays.items()))
    if labels.ndim != 1 or labels.dtype.kind not in "iu" or inputs.shape[:1] != labels.shape or len(labels) == 0:
        raise InputError(
            f"{path}: labels do not belong to {name}",
            found=f"labels {labels.dtype} {labels.shape}, {name} {inputs.shape}",
            wanted=wanted,
            do=do,
        )
    if inputs.dtype not in (np.dtype(np.float32), np.dtype(np.uint8)):
        raise InputError(f"{path}: {name} has the wrong dtype", found=str(inputs.dtype), wanted="float32 or uint8", do=do)
    if inputs.dtype == np.float32 and not bool(np.isfinite(np.asarray(inputs, np.float32)).all()):
        raise InputError(f"{path}: {name} holds NaN or infinity", wanted="finite inputs", do="check how the file was made")
    return Labelled(torch.from_numpy(inputs), torch.from_numpy(labels.astype(np.int64)))


class ArrayLoader:
    """Batches of (inputs float32, labels int64) out of arrays, on the arrays' device.

    Every epoch has its own order and augmentation, drawn on the CPU from (seed, epoch): the same on every device and in every process.
    Of several processes each takes its share of every batch.

    Args:
        data: all samples.
        batch: samples a step, over all processes; each takes as many.
        seed: of order and augmentation.
        augment: of "crop" (shifts by up to 4 pixels, zeros around) and "flip" (left to right).
        rank, world: which of how many processes this is.
    """

    def __init__(
        self, data: Labelled, batch: int, *, seed: int = 0, augment: tuple[str, ...] = (), rank: int = 0, world: int = 1
    ) -> None:
        for each in augment:
            if each not in AUGMENTATIONS:
                raise InputError(f"unknown augmentation {each!r}", wanted=" or ".join(AUGMENTATIONS), do="--augment crop,flip")
        if augment and data.inputs.dim() != 4:
            raise InputError("only maps can be cropped or flipped", found=f"inputs {tuple(data.inputs.shape)}", wanted="(N, C, H, W)")
        self.data, self.seed, self.augment = data, seed, augment
        self.batch = min(batch, len(data)) // world * world
        if self.batch == 0:
            raise InputError(
                "there are fewer samples a step than processes", found=f"{min(batch, len(data))} samples, {world} processes",
                wanted="a batch that every process has a part of", do="raise --batch, or start fewer processes",
            )  # fmt: skip
        self.rank, self.world, self.epoch = rank, world, 0

    def __len__(self) -> int:
        return len(self.data) // self.batch

    def set_epoch(self, epoch: int) -> None:
        """The epoch the next iteration stands for."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        generator = torch.Generator().manual_seed((self.seed * 1_000_003 + self.epoch) % 2**63)
        order = torch.randperm(len(self.data), generator=generator)
        device = self.data.labels.device
        for start in range(0, len(self) * self.batch, self.batch):
            shifts = torch.randint(0, 2 * _CROP + 1, (2, self.batch), generator=generator)
            flips = torch.rand(self.batch, generator=generator) < 0.5
            mine = slice(self.rank, self.batch, self.world)
            picked = order[start : start + self.batch][mine].to(device)
            inputs = self.data.inputs[picked].float()
            yield _augmented(inputs, self.augment, shifts[:, mine].to(device), flips[mine].to(device)), self.data.labels[picked]


def _augmented(inputs: torch.Tensor, augment: tuple[str, ...], shifts: torch.Tensor, flips: torch.Tensor) -> torch.Tensor:
    if not augment:
        return inputs
    count, channels, height, width = inputs.shape
    rows = torch.arange(height, device=inputs.device).expand(count, height)
    columns = torch.arange(width, device=inputs.device).expand(count, width)
    if "flip" in augment:
        columns = torch.where(flips[:, None], columns.flip(1), columns)
    if "crop" in augment:
        inputs = F.pad(inputs, (_CROP, _CROP, _CROP, _CROP))
        rows, columns = rows + shifts[0][:, None], columns + shifts[1][:, None]
    number = torch.arange(count, device=inputs.device)
    channel = torch.arange(channels, device=inputs.device)
    return inputs[number[:, None, None, None], channel[None, :, None, None], rows[:, None, :, None], columns[:, None, None, :]]
