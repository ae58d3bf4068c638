"""A compiled network as a Python object: the host's C called on numpy arrays, beside its integer reference."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from kqgen import oracle
from kqgen.errors import InputError
from kqgen.firmware import Firmware, open_firmware
from kqgen.hostlib import HostLibrary, build_library
from kqgen.intgraph import Int8, IntGraph, QTensor
from kqgen.verify import reference_outputs

Arrays = npt.NDArray[Any] | tuple[npt.NDArray[Any], ...]


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Net:
    """The host library of an output folder. Several inputs are given, and several outputs returned, as tuples.

    Attributes:
        firmware: the folder it was built from.
        library: its C, compiled for this computer.
    """

    firmware: Firmware
    library: HostLibrary

    def __repr__(self) -> str:
        return f"<kqgen.Net {self.firmware.graph.name}, the C of {self.firmware.folder} on this computer>"

    def __call__(self, *images: npt.ArrayLike) -> Arrays:
        """Real values in, real values out, by the C in between.

        Shapes: images (N, c, h, w) or (N, n), float32 or uint8, as the PyTorch model takes them; results float32, (N, c, h, w), or
            (N, n) where the output is a vector.

        Raises:
            InputError: another number of inputs, shape or dtype, or NaN.
        """
        graph = self.firmware.graph
        _check_count(graph, len(images))
        codes = tuple(_codes(graph.name, tensor, np.asarray(image)) for tensor, image in zip(graph.inputs, images, strict=True))
        outputs = self.library.run(codes)
        return _single(
            tuple(
                _real(graph, graph.tensor(name), output) for name, output in zip(graph.outputs, outputs, strict=True)
            )
        )

    def run(self, *codes: Int8) -> Arrays:
        """The C alone: int8 (N, h, w, c) in, int8 (N, h, w, c) out.

        Raises:
            InputError: another number of inputs, shape or dtype.
        """
        return _single(self.library.run(codes))

    def reference(self, *codes: Int8) -> Arrays:
        """The same by the integer reference."""
        _check_count(self.firmware.graph, len(codes))
        return _single(reference_outputs(self.firmware.graph, codes))

    @property
    def report(self) -> Mapping[str, Any]:
        """report.json of the folder."""
        return self.firmware.read_report()


def load(folder: str | Path) -> Net:
    """The network in an output folder, compiled for this computer and ready to be called.

    Raises:
        InputError: not a folder that kqgen wrote. ToolchainError: no C compiler on this computer.
    """
    firmware = open_firmware(Path(folder))
    with tempfile.TemporaryDirectory(prefix="kqgen-") as scratch:
        return Net(firmware, build_library(firmware.folder, firmware.graph, cache_dir=Path(scratch)))


def _single(arrays: tuple[npt.NDArray[Any], ...]) -> Arrays:
    return arrays[0] if len(arrays) == 1 else arrays


def _check_count(graph: IntGraph, given: int) -> None:
    if given != len(graph.inputs):
        raise InputError(
            f"{graph.name} has {len(graph.inputs)} input{'' if len(graph.inputs) == 1 else 's'}",
            found=f"{given} arrays",
            wanted="one array each for " + ", ".join(tensor.name for tensor in graph.inputs),
        )


def _codes(model: str, tensor: QTensor, image: npt.NDArray[Any]) -> Int8:
    wanted = (tensor.c, tensor.h, tensor.w)
    vector = tensor.h == tensor.w == 1
    flat = (tensor.c,) if vector else (tensor.c, tensor.w)
    if image.dtype not in (np.float32, np.uint8) or not (image.shape[1:] == wanted or (tensor.h == 1 and image.shape[1:] == flat)):
        form = f"{tensor.c}" if vector else ", ".join(str(side) for side in wanted)
        do = "give it as the PyTorch module takes it"
        if image.shape == wanted:
            do = "the image axis is missing: array[None]"
        elif image.shape[1:] == (tensor.h, tensor.w, tensor.c):
            do = "the channels are last: array.transpose(0, 3, 1, 2)"
        elif image.shape[1:] == wanted:
            do = "array.astype(numpy.float32)"
        raise InputError(
            f"input {tensor.name} of {model} has the wrong form",
            found=f"{image.dtype} {image.shape}",
            wanted=f"float32 or uint8 (N, {form})",
            do=do,
        )
    if np.isnan(image).any():
        raise InputError(f"input {tensor.name} of {model} has NaN", found=f"{int(np.isnan(image).sum())} values", wanted="numbers")
    return oracle.input_codes(tensor, image)


def _real(graph: IntGraph, tensor: QTensor, codes: Int8) -> npt.NDArray[np.float32]:
    if tensor.name in graph.channels_last:
        return oracle.dequantise(tensor, codes)
    planes = np.ascontiguousarray(oracle.dequantise(tensor, codes).transpose(0, 3, 1, 2))
    return planes.reshape(len(planes), -1) if tensor.name in graph.flattened or tensor.h == tensor.w == 1 else planes
