"""Keeps an integer graph in a file: `<model>.kqgen.safetensors` (SPEC 9.2).

Arrays lie in the safetensors container under `<place>.<field>`; everything else is JSON in its metadata. The file is data
only: reading it runs nothing, and every class it may name is listed here.
"""

from __future__ import annotations

import dataclasses
import json
import typing
from collections.abc import Mapping
from pathlib import Path
from types import UnionType
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

from kqgen.bits import pack_indices, unpack_indices
from kqgen.errors import InputError, InternalError
from kqgen.graph_check import check
from kqgen.intgraph import (
    Addend,
    Array,
    IntAdd,
    IntArgMax,
    IntAssemble,
    IntAvgPool,
    IntClamp,
    IntCodebook,
    IntConv2d,
    IntGraph,
    IntLookup,
    IntMaxPool,
    IntMeanWindow,
    IntMul,
    IntNode,
    IntRescaledAdd,
    IntSlicePad,
    IntSoftmax,
    KqWeights,
    Part,
    QTensor,
    Requant,
    UniformWeights,
    frozen,
)
from kqgen.options import MAX_INDEX_BITS

SCHEMA = 3
WINDOW_SCHEMA = 2
"""Of files written before there were depthwise and dilated layers: theirs are neither."""

PLAIN_SCHEMA = 1
"""Of files written, moreover, before codebooks could be additive: theirs are not."""

METADATA_KEY = "kqgen"

_CLASSES: Mapping[str, type] = {
    cls.__name__: cls
    for cls in (
        IntGraph, IntConv2d, Addend, IntAdd, IntAvgPool, IntMaxPool, IntClamp, IntSlicePad, IntLookup, IntMul, IntAssemble, Part,
        IntSoftmax, IntArgMax, IntRescaledAdd, IntMeanWindow, IntCodebook, KqWeights, UniformWeights, Requant, QTensor,
    )
}  # fmt: skip


def to_bytes(graph: IntGraph, extra: Mapping[str, Any] | None = None) -> bytes:
    """The file's bytes; the same graph gives the same bytes.

    Args:
        graph: to be kept.
        extra: JSON values kept beside it (what the plan was made with).
    """
    arrays: dict[str, Array] = {}
    document = {"schema": SCHEMA, "graph": _encode(graph, graph.name, arrays), "extra": dict(extra or {})}
    metadata = {METADATA_KEY: json.dumps(document, sort_keys=True, allow_nan=False)}
    return safetensors.numpy.save(arrays, metadata=metadata)


def read(path: Path) -> tuple[IntGraph, Mapping[str, Any]]:
    """The integer graph kept in `path`, and what was kept beside it.

    Raises:
        InputError: the file is missing, damaged, of another schema, not one of ours, or its parts do not belong together.
    """
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            arrays = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - safe_open is no mapping
        document = json.loads(metadata[METADATA_KEY])
        if document["schema"] not in (PLAIN_SCHEMA, WINDOW_SCHEMA, SCHEMA):
            found, wanted = str(document["schema"]), f"{PLAIN_SCHEMA} to {SCHEMA}"
            raise InputError(f"{path.name} has another schema", found=found, wanted=wanted, do="compile the model again")
        graph = _decode(IntGraph, _of_this_schema(document["graph"], document["schema"]), arrays)
    except InputError:
        raise
    except (OSError, KeyError, TypeError, ValueError, safetensors.SafetensorError) as error:
        raise InputError(
            f"{path.name} cannot be read as an integer graph",
            found=f"{type(error).__name__}: {error}",
            wanted="the .kqgen.safetensors that kqgen compile wrote",
            do="compile the model again",
        ) from error
    if not isinstance(graph, IntGraph):
        raise InputError(f"{path.name} holds no integer graph", do="compile the model again")
    check(graph)
    return graph, document["extra"]


def _of_this_schema(stored: Mapping[str, Any], schema: int) -> Mapping[str, Any]:
    """A stored graph with the fields that files of its schema did not have."""
    if schema == PLAIN_SCHEMA:
        stored = {**stored, "codebooks": [{**codebook, "additive": False} for codebook in stored["codebooks"]]}
    if schema < SCHEMA:
        plain = {"depthwise": False, "dilation": [1, 1]}
        nodes = [{**node, **plain} if node["type"] == IntConv2d.__name__ else node for node in stored["nodes"]]
        stored = {**stored, "nodes": nodes, "channels_last": []}
    return stored


def _encode(value: Any, place: str, arrays: dict[str, Array]) -> Any:
    if isinstance(value, KqWeights):
        return _encode_indices(value, place, arrays)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {
            field.name: _encode(getattr(value, field.name), f"{_name_of(value, place)}.{field.name}", arrays)
            for field in dataclasses.fields(value)
            if not (getattr(value, field.name) is None and field.default is None)
        }
        return {"type": type(value).__name__, **fields}
    if isinstance(value, np.ndarray):
        arrays[place] = np.ascontiguousarray(value)
        return {"array": place}
    if isinstance(value, tuple):
        return [_encode(item, f"{place}.{number}", arrays) for number, item in enumerate(value)]
    if isinstance(value, frozenset):
        return sorted(value)
    if isinstance(value, np.generic):
        return value.item()
    return value


def _encode_indices(value: KqWeights, place: str, arrays: dict[str, Array]) -> Any:
    """Indices as the C has them (SPEC 4.2): they are most of a network."""
    table = pack_indices(value.codes, value.negative, value.index_bits)
    arrays[f"{place}.table"] = np.frombuffer(table, np.uint8)
    return {
        "type": KqWeights.__name__, "codebook": value.codebook, "index_bits": value.index_bits, "shape": list(value.codes.shape),
        "signs": bool(value.negative.any()), "table": f"{place}.table",
    }  # fmt: skip


def _decode_indices(value: Mapping[str, Any], arrays: Mapping[str, Array]) -> KqWeights:
    c_out, c_in = (int(size) for size in value["shape"])
    width = int(value["index_bits"])
    if min(c_out, c_in) < 1 or not 1 <= width <= MAX_INDEX_BITS or not isinstance(value["codebook"], str):
        raise ValueError(f"{c_out} x {c_in} indices of {width} bits into {value['codebook']}")
    try:
        codes, negative = unpack_indices(arrays[value["table"]].tobytes(), width, bool(value["signs"]), c_out, c_in)
    except InternalError as error:
        raise ValueError(str(error)) from error
    return KqWeights(value["codebook"], width, frozen(codes, np.int16), frozen(negative, np.bool_))


def _name_of(value: Any, place: str) -> str:
    """Nodes and codebooks go by their own name, so that keys stay short; parts go by their place."""
    return value.name if isinstance(value, IntNode | IntCodebook) else place


def _decode(expected: Any, value: Any, arrays: Mapping[str, Array]) -> Any:
    origin = typing.get_origin(expected)
    if isinstance(value, dict) and "array" in value:
        kinds = {typing.get_origin(each) for each in typing.get_args(expected)} if origin in (typing.Union, UnionType) else {origin}
        if kinds != {np.ndarray}:
            raise ValueError(f"an array where {expected} belongs")
        array = arrays[value["array"]].copy()
        array.setflags(write=False)
        return array
    if isinstance(value, dict) and "type" in value:
        cls = _CLASSES[value["type"]]
        if not any(isinstance(kind, type) and issubclass(cls, kind) for kind in typing.get_args(expected) or (expected,)):
            raise ValueError(f"{cls.__name__} where {expected} belongs")
        if cls is KqWeights and "table" in value:
            return _decode_indices(value, arrays)
        hints = typing.get_type_hints(cls)
        # Only what may be None may be left out: `_encode` leaves out no other default.
        given = (field for field in dataclasses.fields(cls) if field.name in value or field.default is not None)
        return cls(**{field.name: _decode(hints[field.name], value[field.name], arrays) for field in given})
    if origin is frozenset:
        return frozenset(value)
    if origin is tuple and isinstance(value, list):
        inner = typing.get_args(expected)
        if len(inner) == 2 and inner[1] is Ellipsis:
            return tuple(_decode(inner[0], item, arrays) for item in value)
        if len(inner) != len(value):
            raise ValueError(f"{len(value)} entries where {len(inner)} belong")
        return tuple(_decode(kind, item, arrays) for kind, item in zip(inner, value, strict=True))
    allowed = typing.get_args(expected) if origin in (typing.Union, UnionType, typing.Literal) else (expected,)
    if origin is typing.Literal:
        if value not in allowed:
            raise ValueError(f"{value!r} where one of {allowed} belongs")
    elif not isinstance(value, tuple(kind for kind in (*allowed, *((int,) if float in allowed else ())) if isinstance(kind, type))):
        raise ValueError(f"{value!r} where {expected} belongs")
    return value
