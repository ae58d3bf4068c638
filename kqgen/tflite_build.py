"""A PyTorch module put together from a TFLite network, operator by operator; channels first, as PyTorch has them.

A TFLite tensor of sizes (n, ..., c) is the PyTorch tensor (n, c, ...). Each operator is run once as it is added, on tensors that have
shapes and no numbers, so that what does not fit is known by its name.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import fx, nn

from kqgen.errors import InputError, UnsupportedError
from kqgen.frontend_names import unique
from kqgen.tflite_read import Float32, Model, Operator, Tensor

Shape = tuple[int, ...]
_ACTIVATIONS: dict[str, tuple[Callable[..., Any], tuple[float, ...]]] = {
    "RELU": (F.relu, ()), "RELU6": (F.relu6, ()), "RELU_N1_TO_1": (F.hardtanh, (-1.0, 1.0)), "TANH": (torch.tanh, ()),
}  # fmt: skip


def channels_first(shape: Shape) -> Shape:
    """(n, ..., c) as (n, c, ...)."""
    return (shape[0], shape[-1], *shape[1:-1]) if len(shape) > 2 else shape


def torch_axis(axis: int, rank: int) -> int:
    """Which axis of the PyTorch tensor is `axis` (it may count from the end) of a TFLite tensor of `rank` axes."""
    axis %= rank
    return axis if rank <= 2 or axis == 0 else 1 if axis == rank - 1 else axis + 1


def real(tensor: Tensor) -> Float32:
    """A constant's real numbers, float32, in the file's order of axes."""
    assert tensor.values is not None
    if not tensor.quantised:
        return np.asarray(tensor.values, np.float32)
    sides = [1] * len(tensor.shape)
    if len(tensor.scale) > 1:
        sides[tensor.axis] = -1
    scale, zero_point = tensor.scale.astype(np.float64), tensor.zero_point
    if len(tensor.scale) > 1:
        scale, zero_point = scale.reshape(sides), zero_point.reshape(sides)
    return np.asarray((tensor.values.astype(np.float64) - zero_point) * scale, np.float32)


@dataclass(frozen=True, slots=True, eq=False)
class Value:
    """A tensor on the way.

    Attributes:
        node: what makes it.
        shape: as TFLite has it.
        example: a tensor of its shape, without numbers.
        scrambled: (h, w, c) of the map whose numbers this vector holds in the order (c, h, w); None: the order is TFLite's.
    """

    node: fx.Node
    shape: Shape
    example: torch.Tensor
    scrambled: Shape | None = None


class Net:
    """The module so far."""

    def __init__(self, model: Model, names: Sequence[str]) -> None:
        self.model, self.names = model, names
        self.root, self.graph = nn.Module(), fx.Graph()
        self.values: dict[int, Value] = {}
        for number in model.inputs:
            shape = model.tensors[number].shape
            example = torch.empty(channels_first(shape), device="meta")
            self.values[number] = Value(self.graph.placeholder(names[number]), shape, example)

    def free(self, wanted: str) -> str:
        """A name for a submodule or buffer close to `wanted`."""
        return unique(wanted, {name for name, _ in (*self.root.named_children(), *self.root.named_buffers(recurse=False))})

    def call(self, function: Callable[..., Any], value: Value, /, *others: Any, **named: Any) -> Value:
        """function(value, ...); among `others` there may be values."""
        nodes = [each.node if isinstance(each, Value) else each for each in others]
        examples = [each.example if isinstance(each, Value) else each for each in others]
        made = function(value.example, *examples, **named)
        return replace(value, node=self.graph.call_function(function, (value.node, *nodes), named), example=made)

    def finish(self) -> tuple[fx.GraphModule, tuple[torch.Tensor, ...]]:
        """The module in eval mode, and zeros for its inputs."""
        made = tuple(self.values[number].node for number in self.model.outputs)
        self.graph.output(made if len(made) > 1 else made[0])
        examples = tuple(torch.zeros(channels_first(self.model.tensors[number].shape)) for number in self.model.inputs)
        return fx.GraphModule(self.root, self.graph).eval(), examples


class Step:
    """One operator while it is added."""

    def __init__(self, net: Net, operator: Operator) -> None:
        self.net, self.operator, self.options = net, operator, operator.options
        self.name = net.names[operator.outputs[0]]

    def refuse(self, found: str, *, wanted: str = "", do: str = "") -> UnsupportedError:
        """The error for this operator."""
        shapes = [str(self.net.model.tensors[number].shape) for number in self.operator.inputs[:1] if number >= 0]
        return UnsupportedError(
            f"cannot compile {self.operator.label(self.net.model)}", found=", ".join((*(f"input {shape}" for shape in shapes), found)),
            wanted=wanted, do=do or "rewrite it with supported operators and convert again; `kqgen ops` lists them",
        )  # fmt: skip

    def has(self, place: int) -> bool:
        """Whether there is an input at `place`."""
        return place < len(self.operator.inputs) and self.operator.inputs[place] >= 0

    def tensor(self, place: int) -> Tensor:
        """The file's tensor at input `place`."""
        if not self.has(place):
            raise self.refuse(f"{len(self.operator.inputs)} inputs", wanted=f"input {place}")
        return self.net.model.tensors[self.operator.inputs[place]]

    def value(self, place: int) -> Value:
        """Input `place`, which must be computed."""
        tensor = self.tensor(place)
        if tensor.values is not None:
            raise self.refuse(f"input {place} is a constant", wanted="a computed tensor")
        value = self.net.values[self.operator.inputs[place]]
        if len(value.shape) < 2:
            raise self.refuse(f"input {place} of {len(value.shape)} axes", wanted="a batch and at least one more")
        return value

    def is_constant(self, place: int) -> bool:
        """Whether input `place` is known before the network runs."""
        return self.tensor(place).values is not None

    def constant(self, place: int) -> Float32:
        """Input `place`, which must be a constant, as real numbers."""
        tensor = self.tensor(place)
        if tensor.values is None:
            raise self.refuse(f"input {place} is computed", wanted="a constant", do="convert a model whose weights are constants")
        return real(tensor)

    def whole(self, place: int) -> tuple[int, ...]:
        """Input `place` as whole numbers."""
        tensor = self.tensor(place)
        if tensor.values is None or tensor.values.dtype.kind not in "iu":
            raise self.refuse(f"input {place} is computed", wanted="whole numbers known before", do="convert with a fixed input shape")
        return tuple(int(each) for each in tensor.values.ravel())

    def output_shape(self, place: int = 0) -> Shape:
        """Sizes of a result, as the file states them."""
        return self.net.model.tensors[self.operator.outputs[place]].shape

    def call(self, function: Callable[..., Any], value: Value, /, *others: Any, **named: Any) -> Value:
        """function(value, ...); among `others` there may be values."""
        with self._naming():
            return self.net.call(function, value, *others, **named)

    def gather(self, function: Callable[..., Any], values: Sequence[Value], *others: Any) -> Value:
        """function([values], ...)."""
        with self._naming():
            made = function([each.example for each in values], *others)
        node = self.net.graph.call_function(function, ([each.node for each in values], *others))
        return replace(values[0], node=node, example=made)

    def module(self, module: nn.Module, value: Value) -> Value:
        """A submodule, named after the file's tensor, of one value."""
        name = self.net.free(self.name)
        self.net.root.add_module(name, module.eval())
        with self._naming():
            made = copy.deepcopy(module).to("meta")(value.example)
        return replace(value, node=self.net.graph.call_module(name, (value.node,)), example=made)

    def buffer(self, values: npt.NDArray[Any]) -> Value:
        """A constant of the module, in PyTorch's order of axes."""
        name = self.net.free(f"{self.name}_constant")
        tensor = torch.from_numpy(np.array(values, np.float32))
        self.net.root.register_buffer(name, tensor)
        return Value(self.net.graph.get_attr(name), tuple(values.shape), tensor.to("meta"))

    def done(self, value: Value, place: int = 0) -> None:
        """Takes `value`, after the operator's activation, as result `place`."""
        kind = self.options.activation
        if kind == "SIGN_BIT":
            raise self.refuse(f"activation {kind}", wanted=", ".join(_ACTIVATIONS))
        if kind != "NONE":
            function, arguments = _ACTIVATIONS[kind]
            value = self.call(function, value, *arguments)
        shape = self.output_shape(place)
        if not shape or tuple(value.example.shape) != channels_first(shape):
            made = tuple(value.example.shape)
            raise InputError(
                f"{self.net.model.path.name}: {self.operator.label(self.net.model)} does not make what the file says",
                found=f"{channels_first(shape) if shape else 'no shape'} stated, {made} computed, channels first",
                wanted="one shape", do="convert the model again with a fixed input shape",
            )  # fmt: skip
        self.net.values[self.operator.outputs[place]] = replace(value, shape=shape)

    @contextmanager
    def _naming(self) -> Iterator[None]:
        """What PyTorch says of shapes that do not fit, as an error that names the operator."""
        try:
            with torch.no_grad():
                yield
        except (RuntimeError, ValueError, TypeError, IndexError) as error:
            first = next(iter(str(error).strip().splitlines()), type(error).__name__)
            raise InputError(
                f"{self.net.model.path.name}: the parts of {self.operator.label(self.net.model)} do not fit together", found=first,
                wanted="shapes that belong together", do="convert the model again",
            ) from error  # fmt: skip
