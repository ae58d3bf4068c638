"""Reads an .onnx file into plain records, checked: what the file says about sizes, places and names is believed only after a look.

The parser is the package `onnx` (an extra of kqgen). Nothing in the file is run; weights in other files are read only from the
model's own folder.
"""

from __future__ import annotations

import heapq
import importlib
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

from kqgen.errors import InputError, ToolchainError, UnsupportedError
from kqgen.onnx_tensor import LARGEST_BYTES, LARGEST_VALUES, SAVE_AGAIN, Array, damaged, read_array, text

OLDEST, NEWEST = 7, 23
"""Operator sets that kqgen knows."""
_LARGEST_NODES = 20000
_OWN_DOMAINS = ("", "ai.onnx")


@dataclass(frozen=True, slots=True, eq=False)
class OnnxNode:
    """One node of the file.

    Attributes:
        name: as in the file; where it has none, the operator and the node's number.
        operator: with its domain in front where that is not ONNX's own.
        inputs: names of tensors, "" for one left out.
        outputs: names of tensors, "" for one left out.
        attributes: numbers, texts, tuples of them, arrays; None for what kqgen does not read (subgraphs).
        proto: the node as the parser gave it, for the reference implementation that folds constants.
    """

    name: str
    operator: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Any]
    proto: Any = None


@dataclass(frozen=True, slots=True)
class OnnxInput:
    """A tensor the caller gives: shape with 1 for a free batch axis, `uint8` for raw pixels."""

    name: str
    shape: tuple[int, ...]
    uint8: bool


@dataclass(frozen=True, slots=True, eq=False)
class OnnxFile:
    """A checked file.

    Attributes:
        opset: version of ONNX's own operator set.
        nodes: each after those whose tensors it reads; those that no output needs are gone.
        inputs, outputs: of the graph, in the file's order; outputs are names of tensors.
        constants: the file's initialisers.
    """

    opset: int
    nodes: tuple[OnnxNode, ...]
    inputs: tuple[OnnxInput, ...]
    outputs: tuple[str, ...]
    constants: Mapping[str, Array]


def parser() -> ModuleType:
    """The package onnx.

    Raises:
        ToolchainError: it is not installed.
    """
    try:
        return importlib.import_module("onnx")
    except ImportError as error:
        raise ToolchainError(
            "ONNX files need the parser onnx, which is not installed", wanted="the package onnx", do="pip install 'kqgen[onnx]'"
        ) from error


def read_onnx(path: Path) -> OnnxFile:
    """The checked contents of an .onnx file.

    Raises:
        InputError: no such file, damaged, absurdly large, weights missing or outside the model's folder, a cycle, names twice or
            nowhere, no inputs or outputs, sizes that are not fixed.
        UnsupportedError: an operator set or a kind of value that kqgen does not read.
        ToolchainError: the package onnx is not installed.
    """
    onnx = parser()
    try:
        if path.stat().st_size > LARGEST_BYTES:
            raise InputError(
                f"{path} is absurdly large for a microcontroller", found=f"{path.stat().st_size} bytes", wanted=f"at most {LARGEST_BYTES}"
            )
        data = path.read_bytes()
    except FileNotFoundError as error:
        raise InputError(f"no such file: {path}", wanted="an .onnx file", do="check the path") from error
    model = onnx.ModelProto()
    try:
        model.ParseFromString(data)
        return _read(onnx, path, model)
    except (importlib.import_module("google.protobuf.message").Error, ValueError, TypeError, KeyError, AttributeError, IndexError,
            OverflowError, RuntimeError) as error:  # fmt: skip
        lines = str(error).strip().splitlines()
        raise damaged(path, lines[0][:160] if lines else type(error).__name__) from error


def _read(onnx: ModuleType, path: Path, model: Any) -> OnnxFile:
    if not model.HasField("graph") or not model.graph.node:
        raise damaged(path, "a file that holds no graph" if not model.HasField("graph") else "a graph without nodes")
    graph = model.graph
    if len(graph.node) > _LARGEST_NODES:
        raise InputError(f"{path} is absurdly large for a microcontroller", found=f"{len(graph.node)} nodes", wanted=f"{_LARGEST_NODES}")
    if model.functions:
        raise UnsupportedError(
            f"cannot compile {path}: it defines operators of its own",
            found=", ".join(sorted({text(path, each.name) for each in model.functions})[:8]),
            wanted="ONNX's own operators",
            do="onnx.save(onnx.inliner.inline_local_functions(onnx.load('net.onnx')), 'flat.onnx')",
        )
    opset = _opset(path, model)
    constants = _constants(onnx, path, graph)
    nodes = _named(_node(onnx, path, each, number) for number, each in enumerate(graph.node))
    inputs = tuple(_input(onnx, path, each) for each in graph.input if each.name not in constants)
    outputs = tuple(text(path, each.name) for each in graph.output)
    if not inputs or not outputs:
        raise InputError(
            f"{path} has no {'outputs' if inputs else 'inputs'}", wanted="a network that computes something of an input", do=SAVE_AGAIN
        )
    _check_names(path, nodes, [each.name for each in inputs], constants, outputs)
    given = frozenset((*constants, *(each.name for each in inputs)))
    return OnnxFile(opset, _ordered(path, nodes, given, outputs), inputs, outputs, constants)


def _opset(path: Path, model: Any) -> int:
    versions = [each.version for each in model.opset_import if each.domain in _OWN_DOMAINS]
    if not versions or not OLDEST <= max(versions) <= NEWEST:
        raise UnsupportedError(
            f"cannot compile {path}: its operator set is not known",
            found=f"opset {max(versions)}" if versions else "no opset_import of ONNX's own operators",
            wanted=f"opset {OLDEST} to {NEWEST}",
            do="onnx.save(onnx.version_converter.convert_version(onnx.load('net.onnx'), 21), 'net21.onnx')\n"
            "or torch.onnx.export(..., opset_version=18)",
        )
    return int(max(versions))


def _node(onnx: ModuleType, path: Path, proto: Any, number: int) -> OnnxNode:
    operator, domain = text(path, proto.op_type), text(path, proto.domain)
    return OnnxNode(
        name=text(path, proto.name) or f"{operator}_{number}",
        operator=operator if domain in _OWN_DOMAINS else f"{domain}.{operator}",
        inputs=tuple(text(path, each) for each in proto.input),
        outputs=tuple(text(path, each) for each in proto.output),
        attributes={text(path, each.name): _attribute(onnx, path, each) for each in proto.attribute},
        proto=proto,
    )


def _named(nodes: Iterable[OnnxNode]) -> tuple[OnnxNode, ...]:
    """The nodes, the second of one name with a number behind it."""
    taken: set[str] = set()
    named = []
    for node in nodes:
        name, count = node.name, 0
        while name in taken:
            count += 1
            name = f"{node.name}_{count}"
        taken.add(name)
        named.append(replace(node, name=name))
    return tuple(named)


def _attribute(onnx: ModuleType, path: Path, proto: Any) -> Any:
    kinds = onnx.AttributeProto
    match proto.type:
        case kinds.INT:
            return int(proto.i)
        case kinds.FLOAT:
            return float(proto.f)
        case kinds.STRING:
            return proto.s.decode("utf-8")
        case kinds.INTS:
            return tuple(int(each) for each in proto.ints)
        case kinds.FLOATS:
            return tuple(float(each) for each in proto.floats)
        case kinds.TENSOR:
            return read_array(onnx, path, proto.t)
    return None


def _constants(onnx: ModuleType, path: Path, graph: Any) -> dict[str, Array]:
    found: dict[str, Array] = {}
    if graph.sparse_initializer:
        raise UnsupportedError(f"cannot compile {path}: sparse weights", wanted="dense initialisers", do="store the weights densely")
    for proto in graph.initializer:
        name = text(path, proto.name)
        if not name or name in found:
            raise InputError(f"{path} has two initialisers of one name", found=name or "no name", wanted="one of each name", do=SAVE_AGAIN)
        found[name] = read_array(onnx, path, proto)
    return found


def _input(onnx: ModuleType, path: Path, proto: Any) -> OnnxInput:
    name, kinds = text(path, proto.name), onnx.TensorProto
    tensor = proto.type.tensor_type
    if not proto.type.HasField("tensor_type") or tensor.elem_type not in (kinds.FLOAT, kinds.FLOAT16, kinds.DOUBLE, kinds.UINT8):
        known = tensor.elem_type in kinds.DataType.values()
        raise UnsupportedError(
            f"cannot compile input {name} of {path}",
            found=kinds.DataType.Name(tensor.elem_type).lower() if known else "no tensor",
            wanted="float32, or uint8 pixels",
            do="export the float model",
        )
    axes = [each.dim_value if each.HasField("dim_value") else each.dim_param or "?" for each in tensor.shape.dim]
    shown = f"({', '.join(map(str, axes))})" if tensor.HasField("shape") else "no shape"
    free = [each for each in axes[1:] if not isinstance(each, int)]
    if free or not axes:
        example = ", ".join(str(each) if isinstance(each, int) else "SIZE" for each in ([1, *axes[1:]] if axes else [1, 3, "SIZE"]))
        raise UnsupportedError(
            f"cannot compile input {name} of {path}: an axis other than the batch has no fixed size",
            found=shown,
            wanted="fixed sizes but for the first axis",
            do="torch.onnx.export without dynamic_axes or dynamic_shapes; or fix the file:\n"
            f"onnx.tools.update_model_dims.update_inputs_outputs_dims(model, {{'{name}': [{example}]}}, {{...}})",
        )
    sizes = tuple(each if isinstance(each, int) else 1 for each in axes)
    if min(sizes) < 1:
        raise InputError(f"input {name} of {path} has an axis of no size", found=shown, wanted="sizes of 1 and more", do=SAVE_AGAIN)
    if math.prod(sizes) > LARGEST_VALUES:
        raise InputError(f"{path} is absurdly large for a microcontroller", found=f"input {name} {shown}", wanted="sizes that fit a board")
    return OnnxInput(name, sizes, tensor.elem_type == kinds.UINT8)


def _check_names(
    path: Path, nodes: Iterable[OnnxNode], inputs: list[str], constants: Mapping[str, Array], outputs: tuple[str, ...]
) -> None:
    """Every tensor is made once, and everything that is read is made."""
    made: dict[str, str] = dict.fromkeys(constants, "an initialiser") | dict.fromkeys(inputs, "an input")
    if len(set(inputs)) != len(inputs):
        raise InputError(f"{path} has two inputs of one name", found=", ".join(inputs), wanted="one of each name", do=SAVE_AGAIN)
    for node in nodes:
        for name in filter(None, node.outputs):
            if name in made:
                raise InputError(
                    f"{path}: tensor {name} is made twice",
                    found=f"by {made[name]} and by {node.name}",
                    wanted="one origin each",
                    do=SAVE_AGAIN,
                )
            made[name] = f"node {node.name}"
    missing = {name: node.name for node in nodes for name in node.inputs if name and name not in made}
    missing |= {name: "the outputs" for name in outputs if name not in made}
    if missing:
        shown = "\n".join(f"{name}, read by {reader}" for name, reader in list(missing.items())[:8])
        more = f"\nand {len(missing) - 8} more" if len(missing) > 8 else ""
        raise InputError(
            f"{path} lacks tensors that it reads", found=shown + more, wanted="an initialiser, input or node that makes each", do=SAVE_AGAIN
        )


def _ordered(path: Path, nodes: tuple[OnnxNode, ...], given: frozenset[str], outputs: tuple[str, ...]) -> tuple[OnnxNode, ...]:
    """The nodes that the outputs need, each after those it reads, otherwise in the file's order."""
    maker = {name: number for number, node in enumerate(nodes) for name in node.outputs if name}
    needed: set[int] = set()
    waiting = [maker[name] for name in outputs if name in maker]
    while waiting:
        number = waiting.pop()
        if number not in needed:
            needed.add(number)
            waiting.extend(maker[name] for name in nodes[number].inputs if name in maker)
    readers: dict[str, list[int]] = {}
    waits: dict[int, int] = {}
    for number in needed:
        read = {name for name in nodes[number].inputs if name} - set(given)
        waits[number] = len(read)
        for name in read:
            readers.setdefault(name, []).append(number)
    ready = [number for number in needed if waits[number] == 0]
    heapq.heapify(ready)
    order: list[OnnxNode] = []
    while ready:
        number = heapq.heappop(ready)
        order.append(nodes[number])
        for name in nodes[number].outputs:
            for reader in readers.pop(name, ()):
                waits[reader] -= 1
                if waits[reader] == 0:
                    heapq.heappush(ready, reader)
    if len(order) != len(needed):
        stuck = [nodes[number].name for number in sorted(needed) if waits[number]]
        raise InputError(f"{path} holds a cycle", found=", ".join(stuck[:6]), wanted="nodes in an order", do=SAVE_AGAIN)
    return tuple(order)
