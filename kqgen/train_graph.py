"""From an exported program to a module that trains: the same operators on live parameters, with batch norms and dropouts that follow
train() and eval(), and room for rounding at chosen values.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import fx, nn
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind, OutputKind

from kqgen.errors import UnsupportedError
from kqgen.frontend_names import module_path
from kqgen.train_modules import BatchNormSwitch

_STORED = (InputKind.PARAMETER, InputKind.BUFFER, InputKind.CONSTANT_TENSOR)
_DROPOUTS = ("torch.nn.modules.dropout.Dropout", "torch.nn.modules.dropout.Dropout2d", "torch.nn.modules.dropout.Dropout1d")
QUANT_PREFIX = "quant_"


def trainable(program: ExportedProgram, source: nn.Module | None, points: Mapping[str, nn.Module]) -> fx.GraphModule:
    """A module that computes what `program` does, on copies of its tensors.

    Args:
        program: functional, of a module in eval mode.
        source: the module it was exported from; says which clones were dropouts, and which parameters are trained. None: no dropouts,
            and all parameters are.
        points: value name -> the module that is applied to this value.

    Returns:
        Inputs one by one, outputs as a flat tuple. Parameters and buffers keep their dotted names.

    Raises:
        UnsupportedError: the program changes a buffer in eval mode, or holds an object that is no tensor.
    """
    root = nn.Module()
    graph = fx.Graph()
    known: dict[fx.Node, Any] = {}
    stored = _stored(program, source)
    batch = _fixed_batch(program)
    for node in program.graph.nodes:
        if node.op == "placeholder":
            known[node] = _placeholder(program, node, graph, root, stored)
        elif node.op == "output":
            graph.output(tuple(known[each] if isinstance(each, fx.Node) else each for each in _user_outputs(program, node)))
            continue
        elif node.users:
            known[node] = _operator(node, graph, root, known, source, batch)
        if node.name in points and isinstance(known.get(node), fx.Node):
            name = f"{QUANT_PREFIX}{node.name}"
            root.add_module(name, points[node.name])
            known[node] = graph.call_module(name, (known[node],))
    graph.lint()
    return fx.GraphModule(root, graph)


def _fixed_batch(program: ExportedProgram) -> int | None:
    """The batch size that a program was exported for, None when any will do."""
    users = set(program.graph_signature.user_inputs)
    made = [node.meta.get("val") for node in program.graph.nodes if node.name in users]
    sizes = [each.shape[0] for each in made if isinstance(each, torch.Tensor) and each.dim() > 0]
    return sizes[0] if sizes and isinstance(sizes[0], int) else None


def _stored(program: ExportedProgram, source: nn.Module | None) -> dict[str, torch.Tensor]:
    """Every tensor of the program as a tensor of its own; parameters that were one tensor stay one."""
    parameters = set(program.graph_signature.parameters)
    learned = parameters
    if source is not None:
        learned = {name for name, parameter in source.named_parameters(remove_duplicate=False) if parameter.requires_grad}
        parameters = {name for name, _ in source.named_parameters(remove_duplicate=False)}
    copies: dict[int, torch.Tensor] = {}
    out: dict[str, torch.Tensor] = {}
    for name, tensor in {**program.constants, **program.state_dict}.items():
        if not isinstance(tensor, torch.Tensor):
            continue
        if id(tensor) not in copies:
            copy = tensor.detach().clone()
            copies[id(tensor)] = nn.Parameter(copy, requires_grad=name in learned) if name in parameters else copy
        out[name] = copies[id(tensor)]
    return out


def _placeholder(program: ExportedProgram, node: fx.Node, graph: fx.Graph, root: nn.Module, stored: Mapping[str, torch.Tensor]) -> Any:
    spec = next(spec for spec in program.graph_signature.input_specs if spec.arg.name == node.name)
    if spec.kind == InputKind.USER_INPUT:
        return graph.placeholder(node.name) if "val" in node.meta else getattr(spec.arg, "value", None)
    if spec.kind not in _STORED or spec.target not in stored:
        raise UnsupportedError(f"cannot train {spec.target}: an object that is no tensor", found=str(spec.kind))
    if not node.users:
        return None  # what never computes would get no gradient, which an exchange between processes waits for
    _attach(root, spec.target, stored[spec.target])
    return graph.get_attr(spec.target)


def _attach(root: nn.Module, name: str, tensor: torch.Tensor) -> None:
    """Puts a parameter or buffer under its dotted name, making the modules on the way."""
    *path, leaf = name.split(".")
    holder = root
    for part in path:
        if part not in holder._modules:
            holder.add_module(part, nn.Module())
        holder = cast(nn.Module, holder._modules[part])
    if isinstance(tensor, nn.Parameter):
        holder.register_parameter(leaf, tensor)
    else:
        holder.register_buffer(leaf, tensor)


def _user_outputs(program: ExportedProgram, node: fx.Node) -> list[Any]:
    made: list[Any] = []
    values = node.args[0] if isinstance(node.args[0], (list, tuple)) else ()
    for spec, value in zip(program.graph_signature.output_specs, values, strict=True):
        if spec.kind != OutputKind.USER_OUTPUT:
            raise UnsupportedError(
                f"cannot train forward() of the model: in eval mode it changes {spec.target}",
                wanted="a forward() that keeps no state but batch norm statistics in training",
                do="take the update out of forward()",
            )
        made.append(value)
    return made


def _operator(
    node: fx.Node, graph: fx.Graph, root: nn.Module, known: Mapping[fx.Node, Any], source: nn.Module | None, batch: int | None
) -> Any:
    args = fx.map_arg(node.args, lambda each: known[each])
    kwargs = fx.map_arg(node.kwargs, lambda each: known[each])
    target = node.target
    if target is operator.getitem and isinstance(node.args[0], fx.Node) and is_batch_norm(node.args[0]):
        return known[node.args[0]]
    if is_batch_norm(node):
        return _batch_norm(node, graph, root, args)
    dropped = _dropout(node, source) if source is not None else None
    if dropped is not None:
        root.add_module(f"drop_{node.name}", dropped)
        return graph.call_module(f"drop_{node.name}", (args[0],))
    if target is torch.ops.aten.view.default:
        target = torch.ops.aten.reshape.default  # maps may lie otherwise in memory than where the program was exported
    return graph.create_node("call_function", cast(Any, target), _any_batch(node, args, batch), kwargs, node.name)


def _any_batch(node: fx.Node, args: tuple[Any, ...], batch: int | None) -> tuple[Any, ...]:
    """The operands of a reshape that names the exported batch size, with that left open."""
    reshapes = operator_name(node) in ("view", "reshape", "_unsafe_view") and len(args) > 1
    if batch is None or not reshapes or node.meta["val"].shape[0] != batch:
        return args
    sizes = list(args[1])
    return (args[0], [-1, *sizes[1:]], *args[2:]) if sizes[0] == batch and -1 not in sizes else args


def operator_name(node: fx.Node) -> str:
    """The operator without its namespace and overload, such as conv2d; "" for what is none."""
    target = node.target
    return target._opname if isinstance(target, torch._ops.OpOverload) else ""


def is_batch_norm(node: fx.Node) -> bool:
    """Whether the node is an inference batch norm, of one result or of three."""
    return operator_name(node) in ("batch_norm", "_native_batch_norm_legit_no_training")


def _batch_norm(node: fx.Node, graph: fx.Graph, root: nn.Module, args: tuple[Any, ...]) -> fx.Node:
    momentum, eps = (args[6], args[7]) if operator_name(node) == "batch_norm" else (args[5], args[6])
    root.add_module(f"norm_{node.name}", BatchNormSwitch(float(eps), float(momentum)))
    return graph.call_module(f"norm_{node.name}", tuple(args[:5]))


def _dropout(node: fx.Node, source: nn.Module) -> nn.Module | None:
    """The dropout a node was, if it was one: export in eval mode leaves a clone (or the operator, told not to drop)."""
    if operator_name(node) not in ("clone", "dropout", "feature_dropout"):
        return None
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    if not stack:
        return None
    path, kind = stack[-1][0], stack[-1][1]
    kind = kind if isinstance(kind, str) else f"{kind.__module__}.{kind.__qualname__}"
    if kind not in _DROPOUTS:
        return None
    made = source.get_submodule(module_path(path)) if path else None
    rate = getattr(made, "p", None)
    return type(made)(float(rate)) if made is not None and rate is not None else None
