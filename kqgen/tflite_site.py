"""One operator of an int8 .tflite file while it becomes integer nodes: its tensors, constants and refusal."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from kqgen import fixed_tflite as rule
from kqgen.errors import UnsupportedError
from kqgen.intgraph import QTensor
from kqgen.nodes_tflite import Place
from kqgen.tflite_read import Array, Model, Operator, Tensor

Sides = tuple[int, int, int]

_LIMITS: Mapping[str, tuple[float, float]] = {
    "NONE": (-math.inf, math.inf), "RELU": (0.0, math.inf), "RELU6": (0.0, 6.0), "RELU_N1_TO_1": (-1.0, 1.0),
}  # fmt: skip
"""Fused activations as limits."""


def sides_of(shape: tuple[int, ...]) -> Sides | None:
    """(h, w, c) of a tensor with a batch of 1; None for shapes that are no map."""
    if len(shape) not in (2, 3, 4) or shape[0] != 1:
        return None
    h, w, c = ((1, 1, *shape[1:])[-3:])
    return (h, w, c)


@dataclass(frozen=True, slots=True, eq=False)
class Site:
    """An operator and what it reads.

    Attributes:
        model: the network.
        operator: one of its operators.
        names: C identifier of each tensor.
        known: the int8 maps so far, by tensor number; a reshaped map has the shape it had before.
    """

    model: Model
    operator: Operator
    names: tuple[str, ...]
    known: Mapping[int, QTensor]

    def refuse(self, found: str, *, wanted: str = "", do: str = "") -> UnsupportedError:
        """The error for this operator."""
        return UnsupportedError(
            f"cannot take over {self.operator.label(self.model)}", found=found, wanted=wanted,
            do=do or "without --weights int8 the network is dequantised and quantised anew, with --calibration",
        )  # fmt: skip

    def has(self, place: int) -> bool:
        """Whether there is an input at `place`."""
        return place < len(self.operator.inputs) and self.operator.inputs[place] >= 0

    def tensor(self, place: int) -> Tensor:
        """The file's tensor at input `place`."""
        if not self.has(place):
            raise self.refuse(f"{len(self.operator.inputs)} inputs", wanted=f"input {place}")
        return self.model.tensors[self.operator.inputs[place]]

    def is_constant(self, place: int) -> bool:
        """Whether input `place` is known before the network runs."""
        return self.tensor(place).values is not None

    def values(self, place: int) -> Array:
        """The constant at input `place`, as the file has it."""
        values = self.tensor(place).values
        if values is None:
            raise self.refuse(f"input {place} is computed", wanted="a constant")
        return values

    def whole(self, place: int) -> tuple[int, ...]:
        """The constant at input `place` as whole numbers."""
        return tuple(int(each) for each in self.values(place).ravel())

    def source(self, place: int = 0) -> QTensor:
        """The map at input `place`, with the sides the file gives it there."""
        tensor = self.tensor(place)
        if tensor.values is not None:
            raise self.refuse(f"input {place} is a constant", wanted="a computed tensor")
        known = self.known[self.operator.inputs[place]]
        if sides_of(tensor.shape) != (known.h, known.w, known.c):
            raise self.refuse(
                f"a map {(known.h, known.w, known.c)} reshaped to {tensor.shape}", wanted="maps that no reshape has changed",
                do="reshape only before a fully connected layer, or the network's input",
            )  # fmt: skip
        return known

    def output(self, place: int = 0) -> QTensor:
        """The map that result `place` is."""
        return int8_map(self.model, self.operator.outputs[place], self.names)

    def clamp(self, output: QTensor) -> tuple[int, int]:
        """(lo, hi): the fused activation as codes of `output`."""
        kind = self.operator.options.activation
        if kind not in _LIMITS:
            raise self.refuse(f"activation {kind}", wanted=", ".join(_LIMITS))
        return rule.activation_codes(output.scale, output.zero_point, *_LIMITS[kind])

    def place(self, output: QTensor, *sources: QTensor) -> Place:
        """Where a node that makes `output` stands, with the fused activation."""
        return Place(output.name, output.name, tuple(each.name for each in sources), sources, output, *self.clamp(output))

    def plain(self, output: QTensor, *sources: QTensor) -> Place:
        """Where a node stands that moves or looks up codes: such operators have no activation."""
        if self.operator.options.activation != "NONE":
            raise self.refuse(f"activation {self.operator.options.activation}", wanted="none")
        return self.place(output, *sources)

    def same_quantisation(self, source: QTensor, output: QTensor) -> None:
        """Refuses an operator that moves codes between different quantisations."""
        if (source.scale, source.zero_point) != (output.scale, output.zero_point):
            found = f"scale {source.scale:g}, zero point {source.zero_point} to {output.scale:g}, {output.zero_point}"
            raise self.refuse(found, wanted="one scale and zero point, as TFLite itself wants")


def int8_map(model: Model, number: int, names: tuple[str, ...]) -> QTensor:
    """Tensor `number` as an int8 map.

    Raises:
        UnsupportedError: it is not of int8, has several scales, or is no map of one image.
    """
    tensor = model.tensors[number]
    sides = sides_of(tensor.shape)
    if tensor.dtype != "int8" or len(tensor.scale) != 1 or not -128 <= int(tensor.zero_point[0]) <= 127:
        kind = f"{tensor.dtype}, {len(tensor.scale)} scales"
        raise UnsupportedError(
            f"cannot take over the integers of {model.path.name}: tensor {names[number] or tensor.name}", found=kind,
            wanted="int8 with one scale, in all computed tensors",
            do="convert with full integer quantisation to int8; without --weights int8 the network is dequantised and quantised anew",
        )  # fmt: skip
    if sides is None:
        raise UnsupportedError(
            f"cannot take over the integers of {model.path.name}: tensor {names[number] or tensor.name}", found=str(tensor.shape),
            wanted="(1, rows, columns, channels), (1, length, channels) or (1, features)", do="convert with a batch of 1",
        )  # fmt: skip
    h, w, c = sides
    return QTensor(names[number], h, w, c, float(tensor.scale[0]), int(tensor.zero_point[0]))
