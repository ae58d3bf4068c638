"""Readable names for a .tflite file's layers: its tensors bear the paths of everything the converter folded into them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from kqgen.frontend_names import c_identifier, unique
from kqgen.tflite_read import Model, Operator

_MARKS = re.compile(r"^serving_default_|:\d+$|_int8$")
_EMPTY = re.compile(r"^(Identity|(Stateful)?PartitionedCall|model|functional|sequential|tfl|main)(_\d+)?$", re.IGNORECASE)
_PARTS = re.compile(
    r"^((BiasAdd|Conv2D|Conv1D|MatMul|depthwise|FusedBatchNormV|ReadVariableOp|Relu|Reshape|AvgPool|MaxPool|AddV|Add|Mul|Sub|Mean|Softmax"
    r"|Sigmoid|Tanh|concat|Pad|ResizeNearestNeighbor|Squeeze|ExpandDims|strided_slice|resource|bias|kernel)\d*(_\d+)?|add|mul|sub)$"
)
_WORDS: Mapping[str, re.Pattern[str]] = {
    "ADD": re.compile("^add", re.IGNORECASE),
    "CONV_2D": re.compile("^(?!depthwise).*conv", re.IGNORECASE),
    "DEPTHWISE_CONV_2D": re.compile("depthwise", re.IGNORECASE),
    "FULLY_CONNECTED": re.compile("dense|fc|linear|logit|classif", re.IGNORECASE),
}


def tensor_names(model: Model) -> tuple[str, ...]:
    """A C identifier for every tensor, by number; unique, for constants too, and "" where none is made of it."""
    made: dict[int, str] = {}
    taken: set[str] = set()
    for number in model.inputs:
        made[number] = unique(c_identifier(_MARKS.sub("", _MARKS.sub("", model.tensors[number].name)), "input"), taken)
        taken.add(made[number])
    for operator in model.operators:
        for number in operator.outputs:
            made[number] = unique(c_identifier(_layer(model.tensors[number].name, operator), "layer"), taken)
            taken.add(made[number])
    return tuple(made.get(number, "") for number in range(len(model.tensors)))


def _layer(raw: str, operator: Operator) -> str:
    """The layer that a tensor's name speaks of: of the paths folded together, that of the operator's own kind, without its inner parts."""
    layers = [name for name in (_last(path.split("/")) for path in raw.split(";")) if name]
    pattern = _WORDS.get(operator.kind)
    fitting = [name for name in layers if pattern is not None and pattern.search(name)]
    return next(iter(fitting or layers), operator.kind.lower().removesuffix("_2d"))


def _last(parts: Sequence[str]) -> str:
    """The innermost part that names a layer."""
    cleaned = [_MARKS.sub("", part.strip()) for part in parts]
    return next((part for part in reversed(cleaned) if part and not _PARTS.match(part) and not _EMPTY.match(part)), "")
