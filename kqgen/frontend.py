"""From PyTorch to the float graph, by torch.export: every operator is known and kept, or refused with its place and the way out.

A program is first made functional (no operator writes into its operands), at the level of aten operators that torch.export gives,
then read once from top to bottom. Programs already lowered to core aten are read as well. The batch axis, fixed or symbolic, goes:
the compiled network takes one image.
"""

from __future__ import annotations

import copy
import operator
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx
from torch.export import ExportedProgram
from torch.export.graph_signature import ConstantArgument, InputKind, InputSpec, OutputKind, TensorArgument

from kqgen.errors import InputError, UnsupportedError
from kqgen.frontend_axes import as_map, channels_last
from kqgen.frontend_call import Builder, Call, Constant, Operand, Value, not_finite
from kqgen.frontend_names import c_identifier
from kqgen.frontend_refusals import UNKNOWN, Refusals, stand_in
from kqgen.frontend_table import CONSTANT_OPERATORS, HANDLERS, HINTS, IGNORED, SUPPORTED, Supported
from kqgen.ir import Flatten, Graph, Input, Shape

__all__ = ["SUPPORTED", "Supported", "export_module", "import_exported", "import_module"]

_LARGEST_CONSTANT = 1 << 26
_KEEPS_NUMBERS = frozenset(
    name for row in SUPPORTED if row.handler.__module__.endswith("frontend_moves") or row.operator == "torch.argmax" for name in row.aten
)
"""Operators that may give other numbers than float32: pixels not yet converted, and places of the largest."""


def export_module(
    module: torch.nn.Module, example_inputs: Sequence[torch.Tensor], dynamic_shapes: Sequence[dict[int, Any]] | None = None
) -> ExportedProgram:
    """The module in eval mode as an exported program; the module itself is not changed.

    Args:
        example_inputs: one tensor an input, (N, C, H, W) or (N, n), float32 or uint8; their values do not matter.
        dynamic_shapes: as torch.export takes it; None fixes every size.

    Raises:
        InputError: no module, or example inputs that are no tuple or list of tensors; torch.export cannot follow the module's forward().
    """
    if not isinstance(module, torch.nn.Module):
        raise InputError(
            "there is no module to compile",
            found=type(module).__name__,
            wanted="a torch.nn.Module",
            do="give the module itself; a .pt2 file is compiled by the command kqgen compile",
        )
    lone = not isinstance(example_inputs, (tuple, list))  # a tensor is a sequence of tensors too
    if lone or not all(isinstance(each, torch.Tensor) for each in example_inputs):
        raise InputError(
            "the example inputs are no tuple of tensors",
            found=type(example_inputs).__name__ if lone else ", ".join(type(each).__name__ for each in example_inputs),
            wanted="one torch tensor an input, in a tuple",
            do="for example (torch.zeros(1, 3, 32, 32),)",
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            twin = copy.deepcopy(module).cpu().eval()
            inputs = tuple(each.detach().cpu() for each in example_inputs)
            shapes = None if dynamic_shapes is None else tuple(dynamic_shapes)
            return torch.export.export(twin, inputs, dynamic_shapes=shapes, strict=False)
    except Exception as error:  # torch.export raises what the user's forward() raises, besides its own many kinds
        raise InputError(
            f"torch.export cannot follow {type(module).__name__}.forward()",
            found=_first_line(error),
            wanted="a forward() without branches that depend on the data, for the example inputs "
            + ", ".join(str(tuple(each.shape)) for each in example_inputs),
            do="check the input shape, and that torch.export.export(module.eval(), example_inputs) works",
        ) from error


def import_module(module: torch.nn.Module, example_inputs: Sequence[torch.Tensor], name: str) -> Graph:
    """The float graph of a module, called `name` (made a C identifier); see `export_module` and `import_exported`."""
    return import_exported(export_module(module, example_inputs), name)


def import_exported(program: ExportedProgram, name: str) -> Graph:
    """The float graph of an exported program, called `name` (made a C identifier).

    Raises:
        UnsupportedError: operators, shapes or values that kqgen does not compile, all of them, with their module paths.
        InputError: a weight holds NaN or infinity, or torch cannot make the program functional.
    """
    for key, tensor in (*program.state_dict.items(), *program.constants.items()):
        if isinstance(tensor, torch.Tensor) and tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise not_finite(key, tensor.detach().double().numpy())
    return import_functional(functional(program, name), name)


def functional(program: ExportedProgram, name: str) -> ExportedProgram:
    """The same program without operators that write into their operands; `name` is for the error.

    Raises:
        InputError: torch cannot make it so.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            made: ExportedProgram = program.run_decompositions({})
    except Exception as error:  # decomposition runs operator code of every kind on shapes
        raise InputError(
            f"torch cannot make {name} functional", found=_first_line(error), do="check that program.run_decompositions({}) works"
        ) from error
    return made


def import_functional(program: ExportedProgram, name: str, state: Mapping[str, torch.Tensor] | None = None) -> Graph:
    """The float graph of a functional program, see `import_exported`; tensors in `state` stand for those the program holds."""
    return _Reader(program, state or {}).read(c_identifier(name))


@dataclass(slots=True)
class _Environment:
    """What each fx node stands for."""

    operands: dict[fx.Node, Operand]

    def resolve(self, raw: Any) -> Any:
        """`raw` with every fx node in it, at any depth of lists, replaced by what it stands for."""
        if isinstance(raw, fx.Node):
            return self.operands[raw]
        if isinstance(raw, (list, tuple)):
            return [self.resolve(item) for item in raw]
        return raw


class _Reader:
    """Reads one functional program."""

    def __init__(self, program: ExportedProgram, state: Mapping[str, torch.Tensor]) -> None:
        self.program = program
        self.tensors: Mapping[str, Any] = {**program.constants, **program.state_dict, **state}
        self.builder = Builder()
        self.known = _Environment({})
        self.batch: Any = None
        self.refusals = Refusals()

    def read(self, name: str) -> Graph:
        specs = {spec.arg.name: spec for spec in self.program.graph_signature.input_specs}
        outputs: tuple[str, ...] = ()
        flattened: frozenset[str] = frozenset()
        backwards: frozenset[str] = frozenset()
        for node in self.program.graph.nodes:
            if node.op == "placeholder":
                self.known.operands[node] = self._placeholder(node, specs[node.name])
            elif node.op == "call_function":
                self.known.operands[node] = self._tried(node)
            elif node.op == "output":
                self.refusals.raise_all(name)
                outputs, flattened, backwards = self._outputs()
            else:
                raise UnsupportedError(
                    f"cannot compile {node.op} {node.target}",
                    wanted="plain operators",
                    do="take control flow and gradient switches (torch.no_grad, torch.cond) out of forward()",
                )
        return Graph(name=name, nodes=self.builder.nodes(), outputs=outputs, flattened=flattened, channels_last=backwards)

    def _placeholder(self, node: fx.Node, spec: InputSpec) -> Operand:
        if spec.kind == InputKind.USER_INPUT:
            return self._input(node) if isinstance(spec.arg, TensorArgument) else getattr(spec.arg, "value", None)
        tensor = self.tensors.get(spec.target or "")
        if not isinstance(tensor, torch.Tensor):
            raise UnsupportedError(f"cannot compile {spec.target}: an object that is no tensor", found=str(spec.kind))
        return Constant(tensor.detach(), spec.target or node.name, stored=True)

    def _input(self, node: fx.Node) -> Value:
        made = node.meta["val"]
        wanted = "(N, C, H, W), (N, C, L) or (N, features)"
        if made.dim() not in (2, 3, 4) or 0 in made.shape:
            do = "reshape outside the network" if made.dim() > 1 else "give each input a batch axis: example.unsqueeze(0)"
            raise UnsupportedError(f"cannot compile input {node.name}", found=str(tuple(made.shape)), wanted=wanted, do=do)
        batch, *rest = made.shape
        if not all(isinstance(size, int) for size in rest):
            raise UnsupportedError(
                f"cannot compile input {node.name}: an axis other than the batch has no fixed size",
                found=str(tuple(made.shape)),
                wanted=f"{wanted} with fixed sizes but for N",
                do="export with dynamic_shapes for axis 0 alone",
            )
        if made.dtype not in (torch.float32, torch.uint8):
            raise UnsupportedError(
                f"cannot compile input {node.name}", found=str(made.dtype), wanted="float32 or uint8", do="export model.float()"
            )
        if self.batch is not None and str(batch) != str(self.batch):
            raise UnsupportedError(
                f"cannot compile input {node.name}: its batch differs from the first input's",
                found=f"{batch}",
                wanted=f"{self.batch}",
                do="export all inputs with one batch size",
            )
        self.batch = batch
        c, h, w = (rest[0], 1, rest[1]) if len(rest) == 2 else (*rest, 1, 1)[:3]
        shape: Shape = (int(c), int(h), int(w))
        uint8 = made.dtype == torch.uint8
        made_input = self.builder.add(
            c_identifier(node.name, "input"), lambda free: Input(name=free, path="", inputs=(), shape=shape, uint8=uint8, value=node.name)
        )
        return Value(made_input.name, tuple(int(size) for size in rest))

    def _tried(self, node: fx.Node) -> Operand:
        """What an operator makes; of one that is refused a stand-in, so that the rest can be judged too."""
        try:
            return self._call(node)
        except UnsupportedError as refusal:
            self.refusals.note(node, refusal)
            return stand_in(self.builder, node, self.batch)

    def _call(self, node: fx.Node) -> Operand:
        if node.target is operator.getitem:
            return self._item(node)
        if not isinstance(node.target, torch._ops.OpOverload):
            symbolic = node.meta.get("val")
            if isinstance(symbolic, (int, float, bool, torch.SymInt, torch.SymFloat, torch.SymBool)):
                return symbolic
            raise Call(self.builder, node, {}).refuse(wanted="plain operators", do="take control flow out of forward()")
        name = node.target._opname
        if name in IGNORED:
            return node.meta.get("val")
        call = Call(self.builder, node, self._bind(node, node.target))
        operands = self.known.resolve(list(node.args) + list(node.kwargs.values()))
        if not _holds_value(operands):
            return self._constant(call, node, node.target)
        handler = HANDLERS.get(name) if node.target.namespace == "aten" else None
        if handler is None:
            wanted, do = HINTS.get(name, ("", ""))
            raise call.refuse(wanted=wanted, do=do)
        if _holds_unknown(operands):
            return stand_in(self.builder, node, self.batch)
        result = handler(call)
        self._check_result(call, node)
        return result

    def _bind(self, node: fx.Node, target: torch._ops.OpOverload) -> dict[str, Operand]:
        bound: dict[str, Operand] = {}
        for index, argument in enumerate(target._schema.arguments):
            if index < len(node.args):
                bound[argument.name] = self.known.resolve(node.args[index])
            elif argument.name in node.kwargs:
                bound[argument.name] = self.known.resolve(node.kwargs[argument.name])
            else:
                bound[argument.name] = argument.default_value
        return bound

    def _item(self, node: fx.Node) -> Operand:
        source, index = node.args
        results = self.known.resolve(source)
        if results is UNKNOWN:
            return stand_in(self.builder, node, self.batch)
        made: Operand = results[index] if isinstance(results, (tuple, list)) and isinstance(index, int) else None
        if made is None:
            raise Call(self.builder, source if isinstance(source, fx.Node) else node, {}).refuse(
                f"result {index} is read", wanted="its first result alone"
            )
        return made

    def _check_result(self, call: Call, node: fx.Node) -> None:
        made = node.meta["val"]
        made = made[0] if isinstance(made, (tuple, list)) else made
        if made.dim() == 0 or str(made.shape[0]) != str(self.batch):
            raise call.refuse(
                f"output {tuple(made.shape)}", wanted=f"the batch axis ({self.batch}) first", do="torch.flatten(x, 1) keeps it"
            )
        whole = made.dtype in (torch.uint8, torch.int32, torch.int64) and call.operator.rpartition(".")[2] in _KEEPS_NUMBERS
        if made.dtype != torch.float32 and not whole:
            raise call.refuse(f"output {made.dtype}", wanted="float32 throughout", do="x.float() before any arithmetic on pixels")

    def _constant(self, call: Call, node: fx.Node, target: torch._ops.OpOverload) -> Operand:
        """The value of an operator without computed operands."""
        shapes = [each.shape for each in torch.utils._pytree.tree_leaves(node.meta.get("val")) if isinstance(each, torch.Tensor)]
        fits = all(isinstance(size, int) for shape in shapes for size in shape) and all(s.numel() <= _LARGEST_CONSTANT for s in shapes)
        if target.namespace != "aten" or target._opname not in CONSTANT_OPERATORS or not fits:
            raise call.refuse("on constants alone", do="compute it once in __init__ and keep it as a buffer")
        args = _tensors(self.known.resolve(node.args))
        kwargs = {key: _tensors(self.known.resolve(value)) for key, value in node.kwargs.items() if key not in ("device", "pin_memory")}
        with torch.no_grad():
            made = target(*args, **kwargs)
        label = ".".join(part for part in (call.path, node.name) if part)
        if isinstance(made, (tuple, list)):
            return tuple(Constant(each, label) for each in made)
        return Constant(made, label)

    def _outputs(self) -> tuple[tuple[str, ...], frozenset[str], frozenset[str]]:
        """Names of the outputs, of those that come as vectors, and of those with channels last."""
        by_name = {node.name: node for node in self.program.graph.nodes}
        names: list[str] = []
        flattened: set[str] = set()
        backwards: set[str] = set()
        for spec in self.program.graph_signature.output_specs:
            if spec.kind != OutputKind.USER_OUTPUT:
                raise UnsupportedError(
                    f"cannot compile forward() of the model: it changes {spec.target}",
                    found=spec.kind.name.lower().replace("_", " "),
                    wanted="a forward() that keeps no state",
                    do="call model.eval() before torch.export.export",
                )
            value = None if isinstance(spec.arg, ConstantArgument) else self.known.operands.get(by_name[spec.arg.name])
            if not isinstance(value, Value):
                raise UnsupportedError(f"cannot compile output {spec.arg.name}: it does not depend on the inputs")
            call = Call(self.builder, by_name[spec.arg.name], {})
            if channels_last(call, value):
                tensor = value.tensor
                backwards.add(tensor)
            else:
                value = value if value.order is None else as_map(call, value)
                tensor = self._output(value)
            if isinstance(self.builder.node(tensor), Input):
                raise UnsupportedError(f"cannot compile output {spec.arg.name}: it is the input {tensor} itself", do="return it no more")
            if tensor in names:
                raise UnsupportedError(f"cannot compile output {spec.arg.name}: it is returned twice", do="return it once")
            names.append(tensor)
            if len(value.dims) == 1:
                flattened.add(tensor)
        return tuple(names), frozenset(flattened), frozenset(backwards)

    def _output(self, value: Value) -> str:
        """The tensor that is the output; a vector that was a map gets a node of its own."""
        shape = self.builder.shape(value.tensor)
        size = shape[0] * shape[1] * shape[2]
        if len(value.dims) > 1 or shape == (size, 1, 1):
            return value.tensor
        return self.builder.add(
            f"{value.tensor}_flat", lambda name: Flatten(name=name, path="", inputs=(value.tensor,), shape=(size, 1, 1))
        ).name


def _holds_unknown(operand: Any) -> bool:
    if isinstance(operand, (list, tuple)):
        return any(_holds_unknown(item) for item in operand)
    return operand is UNKNOWN


def _holds_value(operand: Any) -> bool:
    if isinstance(operand, (list, tuple)):
        return any(_holds_value(item) for item in operand)
    return isinstance(operand, Value) or operand is UNKNOWN


def _tensors(operand: Any) -> Any:
    if isinstance(operand, (list, tuple)):
        return [_tensors(item) for item in operand]
    return operand.tensor if isinstance(operand, Constant) else operand


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
