"""From an .onnx file to a torch.nn.Module, whose submodules are called as the file's nodes are and hold their weights."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from kqgen.errors import KqgenError, UnsupportedError
from kqgen.onnx_file import OnnxFile, OnnxNode, parser, read_onnx
from kqgen.onnx_patterns import channels_first, fused
from kqgen.onnx_quantise import check_codes
from kqgen.onnx_site import Constant, ModuleBuilder, Site, Tensor, Value
from kqgen.onnx_table import FOLDED, ONNX_HANDLERS, WAYS_OUT
from kqgen.onnx_tensor import LARGEST_VALUES, Array

_ELEMENTWISE = frozenset(
    ("Add", "Sub", "Mul", "Div", "Pow", "Mod", "And", "Or", "Equal", "Greater", "Less", "Max", "Min", "Where")
)
_SHOWN = 20
_FEW = 64
"""Operands that tell sizes have no more values."""


def load_onnx(path: str | Path) -> tuple[torch.nn.Module, tuple[torch.Tensor, ...]]:
    """The network in an .onnx file as a module, and example inputs for it: kqgen.compile(*kqgen.load_onnx("net.onnx"), ...).

    The module is an ordinary float32 one (torch.fx.GraphModule) and may be trained. Its submodules bear the names of the file's
    nodes, its arguments those of the file's inputs. Maps are (N, C, H, W) as in the file, and also where the file takes an input
    (N, H, W, C) and first turns it so; a free batch axis becomes 1 in the examples.
    Nodes QuantizeLinear and DequantizeLinear become torch.fake_quantize_per_tensor_affine; quantised weights become float32.

    Raises:
        InputError: no such file, damaged or hostile, weights that are missing or not finite; see `read_onnx`.
        UnsupportedError: operators (all of them named), sizes or values that kqgen does not compile.
        ToolchainError: the package onnx is not installed.
    """
    file = read_onnx(Path(path))
    constants, nodes = _folded(file)
    inputs, nodes = channels_first(file.inputs, fused(nodes, constants, file.outputs, file.opset), constants)
    _refuse_unknown(Path(path), nodes)
    builder = ModuleBuilder()
    values: dict[str, Value] = {name: Constant(array, name) for name, array in constants.items()}
    for each in inputs:
        values[each.name] = builder.add_input(each.name, each.shape, each.uint8)
    read = {name for node in nodes for name in node.inputs} | set(file.outputs)
    for node in nodes:
        values |= _results(node, values, file.opset, builder, read)
    outputs = [values[name] for name in file.outputs]
    for name, value in zip(file.outputs, outputs, strict=True):
        if isinstance(value, Constant):
            raise UnsupportedError(f"cannot compile output {name} of {path}: it does not depend on the inputs", do="leave it out")
    module = builder.finished([value for value in outputs if isinstance(value, Tensor)])
    return module, tuple(torch.zeros(each.shape, dtype=torch.uint8 if each.uint8 else torch.float32) for each in inputs)


def _folded(file: OnnxFile) -> tuple[dict[str, Array], tuple[OnnxNode, ...]]:
    """Initialisers and what follows from them alone, and the nodes that are left."""
    constants, left, builder = dict(file.constants), [], ModuleBuilder()
    for node in file.nodes:
        if node.operator in FOLDED and all(not name or name in constants for name in node.inputs):
            operands = [Constant(constants[name], name) if name else None for name in node.inputs]
            constants |= _fold(Site(node, operands, file.opset, builder))
        else:
            left.append(node)
    return constants, tuple(left)


def _fold(site: Site) -> dict[str, Array]:
    """What a node makes of constants, by ONNX's reference implementation."""
    node = site.node
    operands = {name: value.array for name, value in zip(node.inputs, site.operands, strict=True) if isinstance(value, Constant)}
    count = _grown(site)
    if not count <= LARGEST_VALUES:
        raise site.wrong(f"a constant of {count:g} values", f"at most {LARGEST_VALUES}")
    try:
        with np.errstate(all="ignore"):
            made = _own(site) if node.operator in ("Constant", "ConstantOfShape") else _reference(node.proto, site.opset, operands)
        return {name: np.asarray(array) for name, array in zip(node.outputs, made, strict=False) if name}
    except KqgenError:
        raise
    except Exception as error:  # operands of any kind and size meet code of every kind
        lines = str(error).strip().splitlines()
        raise site.wrong(f"{type(error).__name__}: {lines[0][:160] if lines else 'no reason given'}", "operands that fit") from error


def _own(site: Site) -> tuple[Array]:
    """Constant and ConstantOfShape, whose attribute is an array that was checked when the file was read."""
    given = site.node.attributes
    if site.node.operator == "ConstantOfShape":
        value = np.asarray(given.get("value", np.zeros(1, np.float32)))
        return (np.full(site.ints(0), value.reshape(-1)[0], value.dtype),)
    if isinstance(given.get("value"), np.ndarray):
        return (given["value"],)
    kinds = (("value_float", np.float32), ("value_floats", np.float32), ("value_int", np.int64), ("value_ints", np.int64))
    for name, kind in kinds:
        if given.get(name) is not None:
            return (np.asarray(given[name], kind),)
    raise site.refuse(f"attributes {', '.join(given) or 'none'}", wanted="numbers: value, value_float, value_int")


def _reference(proto: Any, opset: int, operands: Mapping[str, Array]) -> Sequence[Any]:
    onnx = parser()
    from onnx.reference import ReferenceEvaluator  # noqa: PLC0415 - an extra

    untyped = onnx.helper.make_empty_tensor_value_info
    graph = onnx.helper.make_graph([proto], "one", [untyped(name) for name in operands], [untyped(name) for name in proto.output])
    quantises = proto.op_type in ("QuantizeLinear", "DequantizeLinear")  # which the reference knows from opset 19 on, in the same words
    return list(ReferenceEvaluator(graph, opsets={"": max(opset, 19) if quantises else opset}).run(None, dict(operands)))


def _grown(site: Site) -> float:
    """A bound on the values of what the node makes, 0 where it cannot be larger than its operands."""
    arrays = [site.constant(index) for index in range(len(site.operands)) if site.has(index)]
    numbers = [each.astype(np.float64).reshape(-1) if each.size <= _FEW else np.full(1, math.inf) for each in arrays]
    match site.node.operator:
        case "ConstantOfShape" if arrays:
            return float(math.prod(numbers[0].tolist()))
        case "Range" if len(arrays) == 3 and all(each.size == 1 for each in arrays):
            start, limit, delta = (float(each[0]) for each in numbers)
            return float((limit - start) / delta) if delta else math.inf
        case "Pad" if arrays:
            counts = numbers[1].tolist() if len(numbers) > 1 else list(site.numbers("pads"))
            return float(math.prod(size + sum(map(abs, counts)) for size in arrays[0].shape))
        case "Expand" | "Tile" if len(arrays) == 2:
            return float(arrays[0].size * math.prod(max(each, 1.0) for each in numbers[1].tolist()))
        case "Gather" if len(arrays) == 2:
            return float(arrays[0].size) * arrays[1].size / max(1, min(arrays[0].shape, default=1))
        case "DequantizeLinear" | "QuantizeLinear" if len(arrays) > 1:
            fits = arrays[1].size == 1 or arrays[1].ndim == arrays[0].ndim or arrays[1].size in arrays[0].shape
            return 0.0 if fits else math.inf
        case operator if operator in _ELEMENTWISE:
            rank = max((each.ndim for each in arrays), default=0)
            shapes = [(1,) * (rank - each.ndim) + each.shape for each in arrays]
            return float(math.prod(max(sizes) for sizes in zip(*shapes, strict=True)))
    return 0.0


def _refuse_unknown(path: Path, nodes: Sequence[OnnxNode]) -> None:
    """One error with all operators that do not compile."""
    unknown: dict[str, list[OnnxNode]] = {}
    for node in nodes:
        if node.operator not in ONNX_HANDLERS and node.operator not in FOLDED:
            unknown.setdefault(node.operator, []).append(node)
    if not unknown:
        return
    rows = [f"{operator}: {len(found)} (first {found[0].name})" for operator, found in unknown.items()]
    more = [f"and {len(rows) - _SHOWN} more operators"] if len(rows) > _SHOWN else []
    ways = [f"{operator}: {WAYS_OUT[operator]}" for operator in unknown if operator in WAYS_OUT][:_SHOWN]
    foreign = sorted({operator.rpartition(".")[0] for operator in unknown if "." in operator})
    if foreign:
        ways.append(f"operators of {', '.join(foreign)}: save the model before the runtime optimises it")
    raise UnsupportedError(
        f"cannot compile {path}: {len(rows)} operator{'s' if len(rows) > 1 else ''} that kqgen does not know",
        found="\n".join(rows[:_SHOWN] + more),
        wanted="operators that `kqgen ops` lists",
        do="\n".join(ways) or "replace them and fine-tune",
    )


def _results(
    node: OnnxNode, values: Mapping[str, Value], opset: int, builder: ModuleBuilder, read: set[str]
) -> dict[str, Value]:
    """What a node makes."""
    site = Site(node, [values[name] if name else None for name in node.inputs], opset, builder)
    if node.operator in FOLDED and not any(isinstance(each, Tensor) for each in site.operands):
        return {name: Constant(array, node.name) for name, array in _fold(site).items()}
    if node.operator not in ONNX_HANDLERS:
        raise site.refuse("its operands depend on the network's input", wanted="constants", do="export with fixed shapes")
    if not any(isinstance(each, Tensor) for each in site.operands):
        raise site.refuse("constants alone", wanted="an operand computed of the network's inputs", do="fold constants when exporting")
    handler, keeps = ONNX_HANDLERS[node.operator]
    own = node.operator in ("DequantizeLinear",)
    codes = None if own else check_codes(site, keeps)
    made = handler(site)
    results = made if isinstance(made, tuple) else (made,)
    unread = [name for name in node.outputs[len(results):] if name in read]
    if unread:
        raise site.refuse(f"its result {unread[0]} is read", wanted="its first result alone")
    if codes is not None:
        results = tuple(_with_codes(each, codes) for each in results)
    return {name: value for name, value in zip(node.outputs, results, strict=False) if name}


def _with_codes(value: Value, codes: tuple[float, int]) -> Value:
    return Tensor(value.node, value.fake, codes) if isinstance(value, Tensor) else value
