"""One operator of an exported program while it is read: its operands by name, its place, its refusal, and the nodes built so far."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import fx

from kqgen.errors import InputError, UnsupportedError
from kqgen.frontend_names import c_identifier, module_path, unique
from kqgen.ir import ChannelAffine, Float32, Input, Node, Shape, frozen_array

_N = TypeVar("_N", bound=Node)
_Float64 = npt.NDArray[np.float64]
_OPERATOR_TYPES = ("torch.nn.modules.", "kqgen.onnx_modules.")
_CONTAINER_TYPES = "torch.nn.modules.container."


Order = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class Value:
    """A tensor of the graph as PyTorch sees it at one point.

    Attributes:
        tensor: name of the node that makes it.
        dims: its axes without the batch axis.
        order: which number of the node's tensor, counted through (c, h, w), stands at each place of `dims`; None: all of them in order.
    """

    tensor: str
    dims: tuple[int, ...]
    order: Order | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Constant:
    """A tensor known before the network runs: a weight or buffer as the module stores it, or something computed of these."""

    tensor: torch.Tensor
    name: str
    stored: bool = False


Operand = Value | Constant | tuple["Value | None", ...] | object
"""What a place of an operator holds: a graph tensor, a constant, several results, or a plain Python value."""


class Builder:
    """The nodes made so far, and their names; the one thing that changes while a program is read."""

    def __init__(self) -> None:
        self._nodes: dict[str, Node] = {}

    def nodes(self) -> tuple[Node, ...]:
        """All nodes in the order they were made."""
        return tuple(self._nodes.values())

    def shape(self, name: str) -> Shape:
        """(c, h, w) of tensor `name`."""
        return self._nodes[name].shape

    def node(self, name: str) -> Node:
        """The node that makes tensor `name`."""
        return self._nodes[name]

    def reshape_input(self, name: str, shape: Shape) -> bool:
        """Takes the input `name`, in PyTorch's order, as another map; False where a node reads it already or it is no input."""
        node = self._nodes[name]
        if not isinstance(node, Input) or any(name in each.inputs for each in self._nodes.values()):
            return False
        self._nodes[name] = replace(node, shape=shape)
        return True

    def add(self, wanted: str, make: Callable[[str], _N]) -> _N:
        """Makes a node under a free name close to `wanted`."""
        node = make(unique(wanted, set(self._nodes)))
        self._nodes[node.name] = node
        return node


class Call:
    """One operator with its operands bound to the names of its schema."""

    def __init__(self, builder: Builder, node: fx.Node, bound: Mapping[str, Operand]) -> None:
        self.builder, self.node, self._bound = builder, node, bound
        stack = list((node.meta.get("nn_module_stack") or {}).values())
        raw, kind = (stack[-1][0], stack[-1][1]) if stack else ("", "")
        kind = kind if isinstance(kind, str) else f"{kind.__module__}.{kind.__qualname__}"
        self.path = module_path(raw) if not raw.startswith("_empty_nn_module_stack") else ""
        self._leaf = kind.startswith(_OPERATOR_TYPES) and not kind.startswith(_CONTAINER_TYPES)

    @property
    def operator(self) -> str:
        """The operator as PyTorch prints it, such as torch.ops.aten.conv2d."""
        target = self.node.target
        return f"torch.ops.{target.namespace}.{target._opname}" if isinstance(target, torch._ops.OpOverload) else str(target)

    def refuse(self, found: str = "", *, wanted: str = "", do: str = "") -> UnsupportedError:
        """The error for this operator; `found` is preceded by the operator's name and its input shapes."""
        where = f"layer {self.path}" if self.path else "forward() of the model"
        values = [value for operand in self._bound.values() for value in _values(operand)]
        shapes = [f"({', '.join(['N', *map(str, value.dims)])})" for value in values]
        short = self.operator.rpartition(".")[2]
        found = ", ".join(part for part in (f"{short}, input {' and '.join(shapes)}" if shapes else short, found) if part)
        return UnsupportedError(
            f"cannot compile {where} ({self.operator})",
            found=found,
            wanted=wanted,
            do=do or "rewrite it with supported operators and fine-tune; `kqgen ops` lists them",
        )

    def has(self, name: str) -> bool:
        """Whether the operator has the operand `name` and it is not None."""
        return self._bound.get(name) is not None

    def value(self, name: str) -> Value:
        """The operand `name` as a tensor of the graph; refused where it is a constant."""
        operand = self._bound.get(name)
        if not isinstance(operand, Value):
            raise self.refuse(f"{name} is a constant", wanted=f"{name} computed from an input of the model")
        return operand

    def any(self, name: str) -> Operand:
        """The operand `name` as it is."""
        return self._bound.get(name)

    def ints(self, name: str, count: int) -> tuple[int, ...]:
        """The operand `name` as `count` ints; one int stands for all, an empty list gives ()."""
        raw: Any = self._bound.get(name)
        items = [raw] if isinstance(raw, int) else list(raw or ())
        if not all(isinstance(item, int) for item in items):
            raise self.refuse(f"{name} {items} depends on the input", wanted=f"{name} as plain numbers")
        return tuple(items * count if len(items) == 1 else items)

    def pair(self, name: str) -> tuple[int, int]:
        """The operand `name` as (rows, columns)."""
        items = self.ints(name, 2)
        if len(items) != 2:
            raise self.refuse(f"{name} {list(items)}", wanted=f"two numbers in {name}")
        return (items[0], items[1])

    def number(self, name: str, default: float) -> float:
        """The operand `name` as a float, or `default` where it is None."""
        raw: Any = self._bound.get(name)
        if raw is None:
            return default
        if isinstance(raw, Constant) and raw.tensor.numel() == 1:
            return float(raw.tensor)
        if not isinstance(raw, (int, float)):
            raise self.refuse(f"{name} is no plain number", wanted=f"a number known before the network runs as {name}")
        return float(raw)

    def weight(self, name: str, shape: tuple[int, ...] | None = None) -> _Float64:
        """The constant operand `name` as float64.

        Raises:
            InputError: it holds NaN or infinity.
            UnsupportedError: it is computed from an input, or has not the given shape.
        """
        operand = self._bound.get(name)
        if not isinstance(operand, Constant):
            raise self.refuse(f"{name} computed from an input of the model", wanted=f"{name} as a parameter or buffer")
        array: _Float64 = operand.tensor.detach().to("cpu", torch.float64).numpy()
        if not np.isfinite(array).all():
            raise not_finite(operand.name, array)
        if shape is not None and array.shape != shape:
            raise self.refuse(f"{name} {array.shape}", wanted=f"{name} {shape}")
        return array

    def parameter(self, name: str) -> str:
        """The dotted name of the parameter or buffer that the operand `name` is, "" where it is something computed of these."""
        operand = self._bound.get(name)
        return operand.name if isinstance(operand, Constant) and operand.stored else ""

    def out_dims(self) -> tuple[int, ...]:
        """The axes of the (first) result without the batch axis, as torch.export recorded them."""
        return fx_dims(self.node)

    def emit(self, make: Callable[[str], _N], *, role: str = "", dims: Sequence[int] | None = None, order: Order | None = None) -> Value:
        """Makes a node named after the module, and after the operator (or `role`) where the module does more than this operator.

        A node with a `role` is a step on the way to what the operator makes.
        """
        word = role or self._word()
        path = c_identifier(self.path, prefix=word) if self.path else ""
        name = path if path and self._leaf and not role else "_".join(part for part in (path, word) if part)
        made_by = "" if role else self.node.name
        node = self.builder.add(c_identifier(name), lambda free: replace(make(free), value=made_by))
        return Value(node.name, tuple(node.shape if dims is None else dims), order)

    @property
    def sources(self) -> tuple[str, ...]:
        """The module path as the first of a node's sources."""
        return (self.path,) if self.path else ()

    def affine(self, value: Value, scale: _Float64, offset: _Float64, *, role: str = "") -> Value:
        """scale * value + offset; both are (c,) of the tensor below."""
        shape = self.builder.shape(value.tensor)
        if not (np.isfinite(scale).all() and np.isfinite(offset).all()):
            where = f"layer {self.path}" if self.path else "forward() of the model"
            raise InputError(f"{where} ({self.operator}) scales by NaN or infinity", wanted="finite numbers", do="check its buffers")
        return self.emit(
            lambda name: ChannelAffine(
                name=name, path=self.path, inputs=(value.tensor,), shape=shape, scale=_row(scale, shape), offset=_row(offset, shape)
            ),
            role=role,
            dims=value.dims,
            order=value.order,
        )

    def _word(self) -> str:
        target = self.node.target
        return (target._opname if isinstance(target, torch._ops.OpOverload) else self.node.name).strip("_")


def not_finite(name: str, array: npt.NDArray[Any]) -> InputError:
    """The error for a weight `name` (its dotted path) that holds NaN or infinity."""
    path, _, leaf = name.rpartition(".")
    bad = int(np.count_nonzero(~np.isfinite(array)))
    return InputError(
        f"layer {path or 'forward() of the model'} holds NaN or infinity in its {leaf}",
        found=f"{bad} of {array.size} values of {name}",
        wanted="finite weights",
        do="check the training or the state file",
    )


def fx_dims(node: fx.Node) -> tuple[int, ...]:
    """The axes of what `node` makes (the first result of several), without the first, the batch axis; symbols stay symbols."""
    made = node.meta["val"]
    made = made[0] if isinstance(made, (tuple, list)) else made
    return tuple(made.shape[1:])


def _values(operand: Operand) -> list[Value]:
    if isinstance(operand, (list, tuple)):
        return [value for item in operand for value in _values(item)]
    return [operand] if isinstance(operand, Value) else []


def _row(values: _Float64, shape: Shape) -> Float32:
    return frozen_array(np.broadcast_to(values, (shape[0],)))
