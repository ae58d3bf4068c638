"""What exporters write in several nodes, found and made one again: formulas of activations, and inputs turned to channels first."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from kqgen.onnx_file import OnnxInput, OnnxNode
from kqgen.onnx_tensor import Array

_Match = tuple[OnnxNode, str, tuple[str, ...]]
"""The node that ends a formula, the tensor it is a function of, and the tensors between, which nothing else may read."""


class _Nodes:
    """The nodes by what they make, and how often each tensor is read."""

    def __init__(self, nodes: Sequence[OnnxNode], constants: Mapping[str, Array], outputs: Sequence[str]) -> None:
        self.makers = {name: node for node in nodes for name in node.outputs if name}
        self.constants = constants
        self.reads: dict[str, int] = dict.fromkeys(outputs, 1)
        for node in nodes:
            for name in node.inputs:
                self.reads[name] = self.reads.get(name, 0) + 1

    def made_by(self, name: str, operator: str) -> OnnxNode | None:
        """The node that makes `name` if it is of `operator`."""
        node = self.makers.get(name)
        return node if node is not None and node.operator == operator and len(node.outputs) == 1 else None

    def number(self, name: str) -> float:
        """The constant `name` as one number, NaN where it is none."""
        array = self.constants.get(name)
        return float(array.reshape(())) if array is not None and array.size == 1 else math.nan

    def with_number(self, name: str, operator: str, number: float) -> str:
        """x where `name` is operator(x, number), else ""."""
        node = self.made_by(name, operator)
        if node is None or len(node.inputs) != 2:
            return ""
        left, right = node.inputs
        if math.isclose(self.number(right), number, rel_tol=1e-4):
            return left
        return right if operator in ("Add", "Mul") and math.isclose(self.number(left), number, rel_tol=1e-4) else ""

    def times(self, name: str, factor: float) -> str:
        """x where `name` is x * factor or x / (1 / factor), else ""."""
        return self.with_number(name, "Mul", factor) or self.with_number(name, "Div", 1.0 / factor)

    def operand(self, name: str, operator: str) -> str:
        """x where `name` is operator(x, ...), else ""."""
        node = self.made_by(name, operator)
        return node.inputs[0] if node is not None and node.inputs else ""


def fused(nodes: Sequence[OnnxNode], constants: Mapping[str, Array], outputs: Sequence[str], opset: int) -> tuple[OnnxNode, ...]:
    """The nodes with such formulas replaced; what ends one keeps its name."""
    known = _Nodes(nodes, constants, outputs)
    gone: set[str] = set()
    made: dict[str, OnnxNode] = {}
    for node in nodes:
        for operator, find in _FORMULAS:
            match = find(known, node, opset)
            if match is None or gone.intersection(match[2]):
                continue
            if all(_readers_inside(known, name, (*match[2], node.outputs[0])) for name in match[2]):
                gone.update(match[2])
                made[node.outputs[0]] = replace(node, operator=operator, inputs=(match[1],), attributes={}, proto=None)
                break
    return tuple(made.get(node.outputs[0], node) for node in nodes if node.outputs[0] not in gone)


def channels_first(
    inputs: Sequence[OnnxInput], nodes: Sequence[OnnxNode], constants: Mapping[str, Array]
) -> tuple[tuple[OnnxInput, ...], tuple[OnnxNode, ...]]:
    """Inputs that the network turns from channels last to channels first before all else are taken turned, and not turned again.

    Converters from TensorFlow write such networks; every other network takes its inputs channels first.
    """
    turned: dict[str, OnnxInput] = {}
    for each in inputs:
        shape = (each.shape[0], each.shape[-1], *each.shape[1:-1])
        readers = [node for node in nodes if each.name in node.inputs]
        if len(each.shape) in (3, 4) and readers and all(_turns(node, each, shape, constants) for node in readers):
            turned[each.name] = replace(each, shape=shape)
    kept = tuple(
        replace(node, operator="Identity", inputs=node.inputs[:1], attributes={}) if turned.keys() & set(node.inputs) else node
        for node in nodes
    )
    return tuple(turned.get(each.name, each) for each in inputs), kept


def _turns(node: OnnxNode, given: OnnxInput, shape: tuple[int, ...], constants: Mapping[str, Array]) -> bool:
    """Whether the node only moves the last axis of the input to the second place; a reshape may do so for one channel."""
    if node.operator == "Transpose":
        rank = len(shape)
        return node.attributes.get("perm") == (0, rank - 1, *range(1, rank - 1))
    if node.operator != "Reshape" or node.inputs[0] != given.name or given.shape[-1] != 1 or len(node.inputs) != 2:
        return False
    wanted = constants.get(node.inputs[1])
    if wanted is None or wanted.shape != (len(shape),):
        return False
    return all(int(size) in (have, -1) for size, have in zip(wanted.tolist(), shape, strict=True))


def _readers_inside(known: _Nodes, name: str, inside: Sequence[str]) -> bool:
    """Whether only the formula's own nodes read `name`."""
    own = {id(known.makers[each]): known.makers[each] for each in inside}
    return sum(node.inputs.count(name) for node in own.values()) == known.reads.get(name, 0)


def _gated(node: OnnxNode) -> list[tuple[str, str]]:
    """(x, gate) in both orders where the node is x * gate."""
    if node.operator != "Mul" or len(node.inputs) != 2:
        return []
    left, right = node.inputs
    return [(left, right), (right, left)]


def _swish(known: _Nodes, node: OnnxNode, opset: int) -> _Match | None:
    del opset
    return next(((node, x, (gate,)) for x, gate in _gated(node) if known.operand(gate, "Sigmoid") == x), None)


def _mish(known: _Nodes, node: OnnxNode, opset: int) -> _Match | None:
    del opset
    for x, gate in _gated(node):
        inner = known.operand(gate, "Tanh")
        if inner and known.operand(inner, "Softplus") == x:
            return node, x, (gate, inner)
    return None


def _hard_swish(known: _Nodes, node: OnnxNode, opset: int) -> _Match | None:
    for x, gate in _gated(node):
        if known.operand(gate, "HardSigmoid") == x:
            given = known.makers[gate].attributes
            slope = given.get("alpha", 0.2)
            if isinstance(slope, float) and math.isclose(slope, 1 / 6, rel_tol=1e-5) and given.get("beta", 0.5) == 0.5:
                return node, x, (gate,)
    product = known.times(node.outputs[0], 1 / 6)
    if product:
        inner = known.made_by(product, "Mul")
        for x, gate in [] if inner is None else _gated(inner):
            shifted = _clipped_to_six(known, gate, opset)
            if shifted and known.with_number(shifted, "Add", 3.0) == x:
                return node, x, (product, gate, shifted)
    for x, scaled in _gated(node):
        gate = known.times(scaled, 1 / 6)
        shifted = _clipped_to_six(known, gate, opset) if gate else ""
        if shifted and known.with_number(shifted, "Add", 3.0) == x:
            return node, x, (scaled, gate, shifted)
    return None


def _clipped_to_six(known: _Nodes, name: str, opset: int) -> str:
    """x where `name` is Clip(x, 0, 6), else ""."""
    node = known.made_by(name, "Clip")
    if node is None:
        return ""
    if opset < 11:
        bounds = (node.attributes.get("min"), node.attributes.get("max"))
    else:
        bounds = tuple(known.number(each) for each in node.inputs[1:3])  # type: ignore[assignment]
    return node.inputs[0] if bounds == (0.0, 6.0) else ""


def _gelu(known: _Nodes, node: OnnxNode, opset: int) -> _Match | None:
    del opset
    half = known.times(node.outputs[0], 0.5)
    if half and known.made_by(half, "Mul") is not None:  # (x * (1 + erf)) * 0.5
        for x, sum_ in _gated(known.makers[half]):
            inner = _one_plus_erf(known, sum_, x)
            if inner:
                return node, x, (half, sum_, *inner)
    for first, second in _gated(node):
        x = known.times(first, 0.5)  # (x * 0.5) * (1 + erf)
        inner = _one_plus_erf(known, second, x) if x else ()
        if inner:
            return node, x, (first, second, *inner)
        sum_ = known.times(second, 0.5)  # x * ((1 + erf) * 0.5)
        inner = _one_plus_erf(known, sum_, first) if sum_ else ()
        if inner:
            return node, first, (second, sum_, *inner)
    return None


def _one_plus_erf(known: _Nodes, name: str, x: str) -> tuple[str, ...]:
    """The tensors between where `name` is 1 + erf(x / sqrt(2)), else ()."""
    erf = known.with_number(name, "Add", 1.0)
    scaled = known.operand(erf, "Erf") if erf else ""
    return (erf, scaled) if scaled and known.times(scaled, math.sqrt(0.5)) == x else ()


_FORMULAS: tuple[tuple[str, Callable[[_Nodes, OnnxNode, int], _Match | None]], ...] = (
    ("Swish", _swish), ("HardSwish", _hard_swish), ("Mish", _mish), ("Gelu", _gelu),
)  # fmt: skip
