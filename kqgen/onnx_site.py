"""One ONNX node while it is read: its operands, its refusals, and the modules made so far."""

from __future__ import annotations

import keyword
import logging
import math
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from kqgen.errors import InputError, UnsupportedError
from kqgen.frontend_names import c_identifier
from kqgen.onnx_file import OnnxNode
from kqgen.onnx_tensor import LARGEST_VALUES, Array

_LONGEST_NAME = 160


@dataclass(frozen=True, slots=True, eq=False)
class Constant:
    """An array known before the network runs, and the initialiser or node it comes from."""

    array: Array
    name: str


@dataclass(frozen=True, slots=True, eq=False)
class Tensor:
    """Something computed of the inputs.

    Attributes:
        node: what makes it in the module.
        fake: its shape and type, without values.
        codes: (scale, zero point of int8) between a QuantizeLinear and its DequantizeLinear, else None.
    """

    node: fx.Node
    fake: torch.Tensor
    codes: tuple[float, int] | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """All axes, the batch first."""
        return tuple(self.fake.shape)


Value = Constant | Tensor


@contextmanager
def _without_log() -> Iterator[None]:
    """Without torch's log of sizes that do not fit: the error tells."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(before)


class ModuleBuilder:
    """The module that is being made: submodules named after the nodes, and the order they are called in."""

    def __init__(self) -> None:
        self.root, self.graph, self._mode = nn.Module(), fx.Graph(), FakeTensorMode(allow_non_fake_inputs=True)
        self._arguments = {"self"}

    def add_input(self, name: str, shape: Sequence[int], uint8: bool) -> Tensor:
        """An argument of forward(), named as the file's input."""
        wanted = c_identifier(name, "input")
        wanted = f"{wanted}_" if keyword.iskeyword(wanted) else wanted
        free, count = wanted, 0
        while free in self._arguments:
            count += 1
            free = f"{wanted}_{count}"
        self._arguments.add(free)
        with self._mode:
            fake = torch.empty(*shape, dtype=torch.uint8 if uint8 else torch.float32)
        return Tensor(self.graph.placeholder(free), fake)

    def call(self, name: str, module: nn.Module, operands: Sequence[Tensor]) -> Tensor:
        """Adds `module` under a place as close to `name` as modules allow, and a call of it."""
        module.eval()
        with _without_log(), self._mode, torch.no_grad():
            fake = module(*(each.fake for each in operands))
        return Tensor(self.graph.call_module(self._place(name, module), tuple(each.node for each in operands)), fake)

    def finished(self, outputs: Sequence[Tensor]) -> fx.GraphModule:
        """The module; one output alone is returned as it is, several as a tuple."""
        nodes = tuple(each.node for each in outputs)
        self.graph.output(nodes[0] if len(nodes) == 1 else nodes)
        return fx.GraphModule(self.root, self.graph).eval()

    def _place(self, name: str, module: nn.Module) -> str:
        plain = re.sub(r"[^\w/.\-]+", "_", name, flags=re.ASCII)
        plain = re.sub(r"\.+", ".", plain).strip(".")[:_LONGEST_NAME].strip(".") or "node"
        parent, parts = self.root, plain.split(".")
        for part in parts[:-1]:
            child = parent._modules.get(part)
            if child is None and hasattr(parent, part):
                break
            if child is None:
                child = nn.Module()
                parent.add_module(part, child)
            parent = child
        else:
            if not hasattr(parent, parts[-1]):
                parent.add_module(parts[-1], module)
                return plain
        flat = plain.replace(".", "_")
        while hasattr(self.root, flat):
            flat += "_"
        self.root.add_module(flat, module)
        return flat


class Site:
    """One node with its operands."""

    def __init__(self, node: OnnxNode, operands: Sequence[Value | None], opset: int, builder: ModuleBuilder) -> None:
        self.node, self.operands, self.opset, self._builder = node, tuple(operands), opset, builder

    def refuse(self, found: str = "", *, wanted: str = "", do: str = "") -> UnsupportedError:
        """The error for this node; `found` follows the operator and its input shapes."""
        shapes = [f"({', '.join(['N', *map(str, each.shape[1:])])})" for each in self.operands if isinstance(each, Tensor)]
        head = f"{self.node.operator}, input {' and '.join(shapes)}" if shapes else self.node.operator
        return UnsupportedError(
            f"cannot compile layer {self.node.name} ({self.node.operator})",
            found=", ".join(part for part in (head, found) if part),
            wanted=wanted,
            do=do or "rewrite it with supported operators and fine-tune; `kqgen ops` lists them",
        )

    def wrong(self, found: str, wanted: str = "") -> InputError:
        """The error for a node that contradicts itself or its operands."""
        return InputError(
            f"layer {self.node.name} ({self.node.operator}) is wrong", found=found, wanted=wanted, do="check how the file was exported"
        )

    def has(self, index: int) -> bool:
        """Whether operand `index` is given."""
        return index < len(self.operands) and self.operands[index] is not None

    def tensor(self, index: int = 0) -> Tensor:
        """Operand `index`, computed of the inputs; refused where it is a constant."""
        value = self.operands[index] if self.has(index) else None
        if value is None:
            raise self.wrong(f"operand {index} is left out")
        if isinstance(value, Constant):
            raise self.refuse(f"operand {index} is the constant {value.name}", wanted="a tensor computed of the network's inputs there")
        return value

    def constant(self, index: int) -> Array:
        """Operand `index` as an array; refused where it depends on the inputs."""
        value = self.operands[index] if self.has(index) else None
        if value is None:
            raise self.wrong(f"operand {index} is left out")
        if isinstance(value, Tensor):
            raise self.refuse(
                f"operand {index} depends on the network's input",
                wanted="a constant there",
                do="export with fixed shapes and constants folded: do_constant_folding=True, no dynamic_axes",
            )
        return value.array

    def weight(self, index: int) -> torch.Tensor:
        """Constant operand `index` as float32; it must be finite."""
        array = self.constant(index)
        value = self.operands[index]
        made = array.astype(np.float32)
        if not np.isfinite(made).all():
            bad = int(np.count_nonzero(~np.isfinite(made)))
            name = value.name if isinstance(value, Constant) else ""
            raise InputError(
                f"layer {self.node.name} ({self.node.operator}) holds NaN or infinity in its weights",
                found=f"{bad} of {made.size} values of {name}",
                wanted="finite weights",
                do="check the training or the export",
            )
        if made.size == 0:
            raise self.wrong(f"operand {index} of shape {made.shape}", "weights of at least one value")
        return torch.from_numpy(made.copy())

    def ints(self, index: int) -> tuple[int, ...]:
        """Constant operand `index` as whole numbers."""
        array = self.constant(index)
        if array.dtype.kind not in "iu" and array.size:
            raise self.wrong(f"operand {index} of {array.dtype}", "whole numbers")
        return tuple(int(each) for each in array.reshape(-1))

    def number(self, index: int, default: float) -> float:
        """Constant operand `index` as one number, or `default` where it is left out."""
        if not self.has(index):
            return default
        array = self.constant(index)
        if array.size != 1:
            raise self.refuse(f"operand {index} of shape {array.shape}", wanted="one number")
        return float(array.reshape(()))

    def attribute(self, name: str, default: Any) -> Any:
        """Attribute `name`, of the kind of `default`, or `default` where the node has none."""
        value = self.node.attributes.get(name, default)
        if isinstance(default, float) and isinstance(value, int):
            value = float(value)
        if not isinstance(value, type(default)):
            raise self.wrong(f"attribute {name} is {value!r:.60}", f"{type(default).__name__}, such as {default!r}")
        if isinstance(value, float) and math.isnan(value):
            raise self.wrong(f"attribute {name} is NaN", "a number")
        return value

    def numbers(self, name: str) -> tuple[int, ...]:
        """Attribute `name` as whole numbers, () where the node has none."""
        given: tuple[int, ...] = self.attribute(name, ())
        if not all(isinstance(each, int) for each in given):
            raise self.wrong(f"attribute {name} is {given}", "whole numbers")
        return given

    def emit(self, module: nn.Module, *operands: Tensor, role: str = "") -> Tensor:
        """Calls `module`, named after the node (and `role` where the node makes several); its sizes must fit."""
        name = f"{self.node.name}.{role}" if role else self.node.name
        try:
            made = self._builder.call(name, module, operands)
        except Exception as error:  # torch meets sizes that do not fit with errors of every kind
            lines = str(error).strip().splitlines()
            shapes = " and ".join(str(each.shape) for each in operands)
            raise self.wrong(
                f"operands {shapes}: {type(error).__name__}: {lines[0][:160] if lines else 'no reason given'}", "sizes that fit each other"
            ) from error
        self._check(made)
        return made

    def _check(self, made: Tensor) -> None:
        if 0 in made.shape:
            raise self.wrong(f"its result {made.shape} has an axis of no size", "sizes of 1 and more")
        if math.prod(made.shape) > LARGEST_VALUES:
            raise InputError(
                f"layer {self.node.name} ({self.node.operator}) is absurdly large for a microcontroller",
                found=f"a result of {' x '.join(map(str, made.shape))} values",
                wanted="sizes that fit a board",
            )
        batch = next(each.shape[0] for each in self.operands if isinstance(each, Tensor))
        if made.fake.dim() == 0 or made.shape[0] != batch:
            raise self.refuse(
                f"its result {made.shape}", wanted=f"the batch axis ({batch}) first", do="keep the first axis: Flatten(axis=1) does"
            )
