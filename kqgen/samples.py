"""Calibration and test images: an .npz file, an array or any iterable of batches, checked and held as float32 arrays in RAM.

An .npz is untrusted: object arrays are refused before anything is unpickled, and only the images asked for are read.
"""

from __future__ import annotations

import itertools
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt
import torch

from kqgen.errors import InputError
from kqgen.ir import Float32, Graph, Input

DEFAULT_LIMIT = 512
FEW_IMAGES = 32
"""Fewer than these are worth a warning."""
LABELS = "labels"
"""The array of an .npz that holds the class of each image; it is no input unless the model has one of that name."""

_LARGEST_BYTES = 4 << 30
_BATCH_AXIS = "N"
_Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True, eq=False)
class Samples:
    """Images for every input of a graph.

    Attributes:
        names: the graph's inputs, in order.
        arrays: per input (N, c, h, w) float32, finite, not to be written to; one N for all.
    """

    names: tuple[str, ...]
    arrays: tuple[Float32, ...]

    @property
    def count(self) -> int:
        """N, the number of images."""
        return int(self.arrays[0].shape[0])

    def array(self, name: str) -> Float32:
        """(N, c, h, w) float32 for the input `name`; KeyError if there is none."""
        for known, array in zip(self.names, self.arrays, strict=True):
            if known == name:
                return array
        raise KeyError(name)

    def batches(self, size: int) -> Iterator[dict[str, torch.Tensor]]:
        """The images as torch float32 (n, c, h, w) per input name, n <= `size`, in order; the tensors are copies."""
        for start in range(0, self.count, size):
            yield {
                name: torch.from_numpy(array[start : start + size].copy())
                for name, array in zip(self.names, self.arrays, strict=True)
            }


def read_samples(source: object, graph: Graph, *, limit: int | None = DEFAULT_LIMIT) -> Samples:
    """Images for the inputs of `graph`, the first `limit` of them (None: all).

    `source` is the path of an .npz, one array or tensor (N, c, h, w), a mapping from input name to array, or an iterable of batches;
    a batch is an array, a tensor, a mapping, or a tuple such as the (images, labels) of a DataLoader, whose first entries are taken.
    Values are float32, or uint8 taken as 0..255. A vector input of n features takes (N, n) or (N, n, 1, 1), a map of one row (N, c, w) too.
    The arrays of an .npz are matched by input name, else by their order in the file; `labels` among them is left to `read_labels`.

    Raises:
        InputError: no such file, not an .npz, object arrays, missing or surplus names, wrong dtype or shape, NaN or infinity, no image.
    """
    inputs = graph.inputs
    if limit is not None and limit < 1:
        raise InputError("no images were asked for", found=f"a limit of {limit}", wanted="a limit of at least 1")
    if isinstance(source, (str, Path)):
        where, raw = str(source), [_match(str(source), list(_read_npz(Path(source), limit)), inputs)]
    elif isinstance(source, (np.ndarray, torch.Tensor, Mapping)):
        where, raw = "the calibration data", [_batch("the calibration data", source, inputs)]
    elif isinstance(source, Iterable):
        where, raw = "the calibration data", _take("the calibration data", source, inputs, limit)
    else:
        raise InputError(
            "cannot read calibration data",
            found=type(source).__name__,
            wanted="the path of an .npz, an array, or an iterable of batches",
            do="give some hundred typical inputs, float32 (N, C, H, W)",
        )
    if not raw:
        raise InputError(f"{where} holds no image", found="no batch", wanted="at least one image")
    for batch in raw:
        for node, array in zip(inputs, batch, strict=True):
            _check_form(where, node, array)
    columns = tuple(
        _finish(where, node, np.concatenate([batch[index] for batch in raw])[:limit]) for index, node in enumerate(inputs)
    )
    counts = {array.shape[0] for array in columns}
    if len(counts) != 1:
        found = ", ".join(f"{node.name} {array.shape[0]}" for node, array in zip(inputs, columns, strict=True))
        raise InputError(f"{where}: the inputs have different numbers of images", found=found, wanted="one number for all")
    return Samples(names=tuple(node.name for node in inputs), arrays=columns)


def misgivings(samples: Samples) -> tuple[str, ...]:
    """What calibration on these images may suffer from, one sentence each: too few of them, or inputs that never change."""
    told = []
    if samples.count < FEW_IMAGES:
        found = f"{samples.count} calibration image{'' if samples.count == 1 else 's'}"
        told.append(f"{found}: ranges and codebooks come from these alone; give some hundred typical inputs")
    told += [
        f"input {name} is {array.flat[0]:g} everywhere in the calibration images: its range says nothing"
        for name, array in zip(samples.names, samples.arrays, strict=True)
        if array.min() == array.max()
    ]
    return tuple(told)


def read_labels(path: Path, classes: int, *, limit: int | None = None) -> npt.NDArray[np.int64] | None:
    """The array `labels` of an .npz, (N,) whole numbers 0..classes-1, the first `limit` of them (None: all); None when it has none.

    Raises:
        InputError: no such file, not an .npz, no whole numbers, another count than images, a label out of range.
    """
    shapes = dict(npz_shapes(path))
    if LABELS not in shapes:
        return None
    array = dict(_read_npz(path, None, only=LABELS))[LABELS]
    counts = {shape[:1] for name, shape in shapes.items() if name != LABELS}
    if array.dtype.kind not in "iu" or array.ndim != 1:
        raise InputError(
            f"{path}: the labels have the wrong form", found=f"{array.dtype} {array.shape}", wanted="whole numbers (N,), one an image",
            do="labels.astype(numpy.int64).reshape(-1); of scores take argmax(axis=1)",
        )  # fmt: skip
    if counts and array.shape not in counts:
        images = ", ".join(str(count[0]) if count else "none" for count in sorted(counts))
        raise InputError(
            f"{path}: not as many labels as images", found=f"{len(array)} labels, {images} images", wanted="one label an image",
            do="save images and labels of the same part of the data",
        )  # fmt: skip
    labels = array[:limit].astype(np.int64)
    bad = (labels < 0) | (labels >= classes)
    if bad.any():
        first = int(np.argmax(bad))
        raise InputError(
            f"{path}: a label is no class of the network",
            found=f"label {labels[first]} of image {first}; {int(bad.sum())} such labels",
            wanted=f"0 to {classes - 1}, the numbers of its {classes} outputs",
            do="count the classes from 0 as the network was trained to; drop images without a class",
        )
    return labels


def npz_shapes(path: Path) -> tuple[tuple[str, tuple[int, ...]], ...]:
    """Name and shape, with the image axis, of each array in an .npz, read from the headers alone.

    Raises:
        InputError: no such file, not an .npz, object arrays.
    """
    return tuple((name, array.shape) for name, array in _read_npz(path, 0))


def _read_npz(path: Path, limit: int | None, *, only: str | None = None) -> Iterator[tuple[str, _Array]]:
    """Name and array of each member, or of `only`, each cut to its first `limit` images; 0 reads headers and yields zero-stride arrays."""
    do = "write it by numpy.savez('images.npz', images=array)"
    try:
        with zipfile.ZipFile(path) as archive:
            members = [item for item in archive.infolist() if item.filename.endswith(".npy")]
            if not members:
                raise InputError(f"{path} holds no array", found="an archive without .npy members", wanted="an .npz", do=do)
            for item in members:
                if only not in (None, item.filename.removesuffix(".npy")):
                    continue
                with archive.open(item) as stream:
                    yield item.filename.removesuffix(".npy"), _read_npy(path, item.filename, stream, limit)
    except FileNotFoundError as error:
        raise InputError(f"no such file: {path}", wanted="an .npz of images", do="check the path") from error
    except (OSError, zipfile.BadZipFile, zlib.error, EOFError, ValueError, NotImplementedError) as error:
        raise InputError(f"cannot read {path}", found=str(error), wanted="an .npz of float32 arrays", do=do) from error


def _read_npy(path: Path, member: str, stream: IO[bytes], limit: int | None) -> _Array:
    version = np.lib.format.read_magic(stream)
    if version not in ((1, 0), (2, 0)):
        raise ValueError(f"{member} has .npy version {version}, not 1.0 or 2.0")
    header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = header(stream)
    if dtype.hasobject:
        raise InputError(
            f"{path}: the array {member.removesuffix('.npy')!r} holds Python objects",
            found=f"dtype {dtype}",
            wanted="float32 or uint8",
            do="save numbers only; object arrays are pickles, which kqgen never loads",
        )
    if limit == 0:
        return np.broadcast_to(np.zeros((), dtype=dtype), shape)
    rows = shape[0] if shape else 1
    wanted = shape if limit is None or fortran or not shape else (min(rows, limit), *shape[1:])
    size_bytes = int(np.prod(wanted, dtype=np.int64)) * dtype.itemsize
    if size_bytes > _LARGEST_BYTES:
        raise ValueError(f"{member} holds {size_bytes} bytes, more than the {_LARGEST_BYTES} that kqgen reads")
    data = stream.read(size_bytes)
    if len(data) != size_bytes:
        raise ValueError(f"{member} ends after {len(data)} of {size_bytes} bytes")
    return np.frombuffer(data, dtype=dtype).reshape(wanted, order="F" if fortran else "C")


def _match(where: str, named: Sequence[tuple[str, _Array]], inputs: Sequence[Input]) -> list[_Array]:
    names = [node.name for node in inputs]
    named = [(name, array) for name, array in named if name != LABELS or LABELS in names]
    known = dict(named)
    if all(name in known for name in names):
        return [known[name] for name in names]
    if len(named) == len(names) and not any(name in known for name in names):
        return [array for _, array in named]
    raise InputError(
        f"{where}: the arrays do not match the model's inputs",
        found=", ".join(repr(name) for name, _ in named) or "no array",
        wanted=", ".join(repr(name) for name in names),
        do=f"numpy.savez('images.npz', {', '.join(f'{name}=...' for name in names)})",
    )


def _take(where: str, source: Iterable[object], inputs: Sequence[Input], limit: int | None) -> list[list[_Array]]:
    out: list[list[_Array]] = []
    count = 0
    for item in itertools.islice(source, limit):
        batch = _batch(where, item, inputs)
        for node, array in zip(inputs, batch, strict=True):
            _check_form(where, node, array)
        out.append(batch)
        count += batch[0].shape[0]
        if limit is not None and count >= limit:
            break
    return out


def _batch(where: str, item: object, inputs: Sequence[Input]) -> list[_Array]:
    if isinstance(item, Mapping):
        return _match(where, [(str(name), _array(where, value)) for name, value in item.items()], inputs)
    if isinstance(item, (tuple, list)):
        entries = item[0] if len(inputs) > 1 and item and isinstance(item[0], (tuple, list)) else item
        if len(entries) < len(inputs):
            raise InputError(
                f"{where}: a batch has too few entries",
                found=f"{len(entries)}",
                wanted=f"{len(inputs)}: " + ", ".join(node.name for node in inputs),
            )
        return [_array(where, value) for value in entries[: len(inputs)]]
    if len(inputs) != 1:
        names = ", ".join(node.name for node in inputs)
        raise InputError(f"{where}: the model has {len(inputs)} inputs", found="one array", wanted=f"arrays for {names}")
    return [_array(where, item)]


def _array(where: str, value: object) -> _Array:
    if isinstance(value, torch.Tensor):
        return value.detach().cpu().resolve_conj().numpy()
    if isinstance(value, np.ndarray):
        return value
    raise InputError(f"{where} holds something that is no array", found=type(value).__name__, wanted="numpy arrays or torch tensors")


def _text(shape: Sequence[int]) -> str:
    return "(" + ", ".join([_BATCH_AXIS, *map(str, shape)]) + ")"


def _check_form(where: str, node: Input, array: _Array) -> None:
    c, h, w = node.shape
    if array.dtype not in (np.dtype(np.float32), np.dtype(np.uint8)):
        raise InputError(
            f"{where}: wrong dtype for input {node.name}",
            found=str(array.dtype),
            wanted="float32 as the model takes it, or uint8 pixels",
            do="array.astype(numpy.float32)",
        )
    accepted: list[tuple[int, ...]] = [(c, h, w)]
    if h == 1:  # a sequence (N, c, length), or a vector
        accepted.append((c,) if w == 1 else (c, w))
    if array.ndim > 0 and array.shape[1:] in accepted:
        return
    do = "give the images in the shape that the model takes"
    if array.ndim == 4 and array.shape[1:] == (h, w, c):
        do = "the channels are last: array.transpose(0, 3, 1, 2)"
    elif array.shape in accepted:
        do = "the image axis is missing: array[None]"
    wanted = " or ".join(_text(shape) for shape in accepted)
    raise InputError(f"{where}: wrong shape for input {node.name}", found=str(array.shape), wanted=wanted, do=do)


def _finish(where: str, node: Input, array: _Array) -> Float32:
    if array.shape[0] == 0:
        do = "save some hundred typical inputs"
        raise InputError(f"{where} holds no image", found=str(array.shape), wanted="at least one image", do=do)
    out = np.array(array, dtype=np.float32, order="C").reshape(array.shape[0], *node.shape)
    bad = ~np.isfinite(out).reshape(out.shape[0], -1).all(axis=1)
    if bad.any():
        first = int(np.argmax(bad))
        raise InputError(
            f"{where}: input {node.name} has NaN or infinity",
            found=f"{int(bad.sum())} of {out.shape[0]} images, the first is number {first}",
            wanted="finite numbers",
            do="remove these images",
        )
    if node.uint8 and not bool(((out >= 0) & (out <= 255) & (out == np.rint(out))).all()):
        raise InputError(
            f"{where}: input {node.name} takes uint8 pixels",
            found=f"values from {out.min():g} to {out.max():g}",
            wanted="whole numbers 0 to 255",
            do="give the pixels before any scaling",
        )
    out.setflags(write=False)
    return out
