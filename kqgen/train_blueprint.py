"""Where a program is quantised in training: its layers with weights, and the values that the integers will round to int8.

For a network that compiles both come from the simplified graph, so that training rounds exactly where the C does. For one that holds
operators which do not compile they come from the operators themselves: every value is rounded that some operator computes and no batch
norm or activation takes up at once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import fx
from torch.export import Dim, ExportedProgram
from torch.export.graph_signature import InputKind

from kqgen.calibrate import range_roots
from kqgen.errors import InputError, UnsupportedError
from kqgen.frontend import export_module, functional, import_functional
from kqgen.frontend_names import c_identifier, module_path, unique
from kqgen.ir import ArgMax, Concat, Conv2d, Float32, Graph, Input, Interleave, Node, Softmax, frozen_array
from kqgen.simplify import simplify
from kqgen.train_graph import is_batch_norm, operator_name

_CONVOLUTIONS = ("conv2d", "convolution", "conv1d", "conv_transpose2d", "conv_transpose1d")
_WEIGHTED = (*_CONVOLUTIONS, "linear", "addmm", "mm")
_MOVING = frozenset((
    "view", "_unsafe_view", "reshape", "flatten", "permute", "transpose", "t", "clone", "alias", "contiguous", "slice", "select", "squeeze",
    "unsqueeze", "expand", "max_pool2d", "max_pool1d", "max_pool2d_with_indices", "pad", "constant_pad_nd", "dropout", "feature_dropout",
    "upsample_nearest2d", "pixel_shuffle", "split", "split_with_sizes", "chunk", "_to_copy", "to", "sym_size",
))  # fmt: skip
_ACTIVATIONS = frozenset((
    "relu", "relu6", "hardtanh", "clamp", "clamp_min", "leaky_relu", "prelu", "elu", "silu", "gelu", "hardswish", "hardsigmoid", "sigmoid",
    "tanh", "threshold",
))  # fmt: skip


@dataclass(frozen=True, slots=True, eq=False)
class TrainedLayer:
    """A layer whose weight is quantised.

    Attributes:
        parameter: dotted name of the weight.
        conv: the layer, with the float weight as the graph has it.
        plain: the weight has no kernels: that of a linear layer, or where the network does not compile of a grouped, transposed or
            one-dimensional convolution.
        channel_axis: of the weight, on which the output channels lie.
        normed: a batch norm follows, so that a scale of the layer's own would change nothing.
        factor: (c_out,) float32, what is multiplied to each output channel on the way to the integers.
        input_scale: (c_in,) float32, > 0 or < 0, what is multiplied to each input channel before the layer.
    """

    parameter: str
    conv: Conv2d
    plain: bool
    channel_axis: int
    normed: bool
    factor: Float32
    input_scale: Float32


@dataclass(frozen=True, slots=True)
class Point:
    """A value that is rounded to int8.

    Attributes:
        value: its name in the program.
        tensor: its name in the float graph, "" where there is no such graph.
        is_input: it is an input of the network.
        fixed: (scale, zero point) where training may not choose them.
    """

    value: str
    tensor: str
    is_input: bool
    fixed: tuple[float, int] | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Blueprint:
    """A program and what training does to it.

    Attributes:
        program: functional, with a free batch axis where the module allows it.
        graph: the simplified float graph; where the network does not compile, its convolutions alone.
        refusal: why the network does not compile, None when it does.
        layers, points: in execution order.
        derived: names of the layers of `graph` whose weight is not a parameter as it is, but one turned, split or reordered (transposed
            and grouped convolutions): training leaves it as it is, and the integers round it to 8 bits.
    """

    program: ExportedProgram
    graph: Graph
    refusal: UnsupportedError | None
    layers: tuple[TrainedLayer, ...]
    points: tuple[Point, ...]
    derived: tuple[str, ...] = ()


def draw(module: torch.nn.Module | ExportedProgram, example_inputs: Sequence[torch.Tensor], name: str) -> Blueprint:
    """The blueprint of a module, which is not changed, or of an exported program.

    Args:
        example_inputs: one tensor an input, with a batch axis; values do not matter.
        name: C identifier of the network.

    Raises:
        InputError: torch.export cannot follow forward(), or a weight that would be quantised is itself computed of parameters.
    """
    exported = module if isinstance(module, ExportedProgram) else _export(module, example_inputs)
    program = functional(exported, name)
    try:
        return _of_graph(program, simplify(import_functional(program, name)), name)
    except UnsupportedError as refusal:
        return _of_operators(program, name, refusal)


def _export(module: torch.nn.Module, example_inputs: Sequence[torch.Tensor]) -> ExportedProgram:
    """Exported with a batch axis that stays free: two examples, since torch.export takes one for a fixed size."""
    doubled = [each[:1].repeat(2, *(1 for _ in each.shape[1:])) if each.dim() > 0 else each for each in example_inputs]
    try:
        return export_module(module, doubled, dynamic_shapes=[{0: Dim.AUTO} for _ in doubled])
    except InputError:
        return export_module(module, example_inputs)


def _of_graph(program: ExportedProgram, graph: Graph, name: str) -> Blueprint:
    _refuse_computed(program)
    every = [node for node in graph if isinstance(node, Conv2d)]
    convs = [conv for conv in every if _is_whole(program, conv)]
    ones = {conv.parameter: torch.ones_like(program.state_dict[conv.parameter]) for conv in convs}
    probe = simplify(import_functional(program, name, ones))
    operators = _operators(program)
    layers = []
    for conv in convs:
        factor, input_scale = _rank_one(probe, conv)
        normed = _normed(operators.get(conv.parameter))
        layers.append(TrainedLayer(conv.parameter, conv, conv.dense, 0, normed, factor, input_scale))
    roots = range_roots(graph)
    own = [node for node in graph if roots[node.name] == node.name]
    for node in own:
        if not node.value and not _joins(node, roots):
            raise UnsupportedError(
                f"cannot train {node.path or node.name} as integers: the C rounds a value there that no operator of the module makes",
                wanted="operators that compile one by one", do="compress the network after training, or split the operator into its parts",
            )  # fmt: skip
    points = tuple(Point(node.value, node.name, isinstance(node, Input), _given_range(node)) for node in own if node.value)
    whole = {conv.name for conv in convs}
    return Blueprint(program, graph, None, _once(layers), points, tuple(conv.name for conv in every if conv.name not in whole))


def _joins(node: Node, roots: Mapping[str, str]) -> bool:
    """Whether the tensor only gathers values that are rounded before: its range is then theirs."""
    return isinstance(node, (Concat, Interleave)) and all(roots[name] != node.name for name in node.inputs)


def _given_range(node: Node) -> tuple[float, int] | None:
    """(scale, zero point) of a tensor whose steps are not training's to choose; `calibrate` has the same."""
    if node.pinned is not None:
        return node.pinned
    return {Softmax: (1 / 256, -128), ArgMax: (1.0, -128)}.get(type(node))


def _is_whole(program: ExportedProgram, conv: Conv2d) -> bool:
    """Whether the layer's weight is a parameter of its own, scaled at most."""
    weight = program.state_dict.get(conv.parameter)
    return weight is not None and weight.numel() == conv.weight.size and len(weight) == len(conv.weight)


def _refuse_computed(program: ExportedProgram) -> None:
    """Refuses convolutions whose weights the program computes of other tensors."""
    for node in program.graph.nodes:
        weight = node.args[1] if operator_name(node) in (*_CONVOLUTIONS, "linear") else None
        if isinstance(weight, fx.Node) and weight.op != "placeholder":
            stack = list((node.meta.get("nn_module_stack") or {}).values())
            raise _computed(module_path(stack[-1][0]) if stack else node.name)


def _computed(layer: str) -> InputError:
    return InputError(
        f"the weight of layer {layer} is computed of other tensors",
        wanted="a weight that is a parameter of its own",
        do="remove weight_norm, spectral_norm or other parametrisations first",
    )


def _rank_one(probe: Graph, conv: Conv2d) -> tuple[Float32, Float32]:
    """What folding multiplied to each output and to each input channel, read off a graph whose weights were all ones."""
    node = probe.node(conv.name)
    assert isinstance(node, Conv2d)
    folded = node.weight[:, :, 0, 0].astype(np.float64)
    strongest = folded[np.argmax(np.abs(folded).max(axis=1))]
    peak = strongest[np.argmax(np.abs(strongest))]
    input_scale = np.where(strongest == 0, 1.0, strongest / peak) if peak != 0 else np.ones(folded.shape[1])
    factor = folded @ input_scale / (input_scale @ input_scale)
    return frozen_array(factor), frozen_array(input_scale)


def _operators(program: ExportedProgram) -> dict[str, fx.Node]:
    """The operator that reads each parameter as its weight."""
    names = {spec.arg.name: spec.target for spec in program.graph_signature.input_specs if spec.kind == InputKind.PARAMETER}
    out: dict[str, fx.Node] = {}
    for node in program.graph.nodes:
        if operator_name(node) in _WEIGHTED:
            place = 2 if operator_name(node) == "addmm" else 1
            weight = node.args[place] if len(node.args) > place else None
            if isinstance(weight, fx.Node) and weight.name in names:
                out.setdefault(str(names[weight.name]), node)
    return out


def _normed(node: fx.Node | None) -> bool:
    return node is not None and len(node.users) == 1 and is_batch_norm(next(iter(node.users)))


def _once(layers: Sequence[TrainedLayer]) -> tuple[TrainedLayer, ...]:
    """A parameter that serves several layers is quantised once, as the first of them needs it."""
    first: dict[str, TrainedLayer] = {}
    for layer in layers:
        first.setdefault(layer.parameter, layer)
    return tuple(first.values())


def _of_operators(program: ExportedProgram, name: str, refusal: UnsupportedError) -> Blueprint:
    inputs = {
        spec.arg.name for spec in program.graph_signature.input_specs
        if spec.kind == InputKind.USER_INPUT
    }  # fmt: skip
    shapes = {node.name: _shape(node) for node in program.graph.nodes if node.name in inputs}
    nodes: list[Node] = [Input(node_name, "", (), shape) for node_name, shape in shapes.items()]
    layers = []
    _refuse_computed(program)
    for parameter, node in _operators(program).items():
        layer = _layer(program, parameter, node, {each.name for each in nodes})
        layers.append(layer)
        if not layer.plain:
            nodes.append(layer.conv)
    graph = Graph(name, tuple(nodes), ())
    points = [Point(node.name, "", True) for node in program.graph.nodes if node.name in inputs and _is_real(node)]
    points += [Point(node.name, "", False) for node in program.graph.nodes if node.op == "call_function" and _rounds(node)]
    return Blueprint(program, graph, refusal, tuple(layers), tuple(points))


def _layer(program: ExportedProgram, parameter: str, node: fx.Node, taken: set[str]) -> TrainedLayer:
    weight = frozen_array(program.state_dict[parameter].detach().double().numpy())
    operator = operator_name(node)
    transposed = operator.startswith("conv_transpose") or (operator == "convolution" and bool(node.args[6]))
    axis = 1 if transposed or operator in ("addmm", "mm") else 0
    groups = int(_argument(node, "groups", 1))
    kernels = operator in ("conv2d", "convolution") and weight.ndim == 4 and groups == 1 and not transposed
    path = parameter.removesuffix(".weight")
    source = node.args[0]
    shown = weight if kernels else frozen_array(np.moveaxis(weight, axis, 0).reshape(weight.shape[axis], -1, 1, 1))
    conv = Conv2d(
        name=unique(c_identifier(module_path(path)), taken),
        path=path,
        inputs=(source.name if isinstance(source, fx.Node) else "",),
        shape=(shown.shape[0], 1, 1),
        weight=shown,
        bias=frozen_array(np.zeros(shown.shape[0])),
        dense=not kernels,
        parameter=parameter,
    )
    ones: npt.NDArray[np.float32] = frozen_array(np.ones(shown.shape[0]))
    return TrainedLayer(parameter, conv, not kernels, axis, _normed(node), ones, frozen_array(np.ones(shown.shape[1])))


def _argument(node: fx.Node, name: str, default: int) -> int:
    """An integer operand of an operator by the name it has in the operator's schema."""
    target = node.target
    if isinstance(target, torch._ops.OpOverload):
        for index, argument in enumerate(target._schema.arguments):
            if argument.name == name:
                value = node.args[index] if index < len(node.args) else node.kwargs.get(name, default)
                return int(value) if isinstance(value, int) else default
    return default


def _shape(node: fx.Node) -> tuple[int, int, int]:
    sizes = [size if isinstance(size, int) else 1 for size in node.meta["val"].shape[1:]]
    c, h, w = (*sizes, 1, 1, 1)[:3]
    return (int(c), int(h), int(w))


def _is_real(node: fx.Node) -> bool:
    made = node.meta.get("val")
    return isinstance(made, torch.Tensor) and made.is_floating_point() and made.dim() >= 2


def _rounds(node: fx.Node) -> bool:
    """Whether the value of this operator is one that int8 code would hold."""
    if is_batch_norm(node):
        readers = [user for item in node.users for user in item.users] if operator_name(node) != "batch_norm" else list(node.users)
        return bool(readers) and not _taken_up(readers)
    if not _is_real(node) or operator_name(node) in _MOVING or operator_name(node) == "" or not node.users:
        return False
    return not _taken_up(list(node.users))


def _taken_up(readers: list[fx.Node]) -> bool:
    """Whether one reader alone takes the value up without rounding: a batch norm or an activation."""
    return len(readers) == 1 and (is_batch_norm(readers[0]) or operator_name(readers[0]) in _ACTIVATIONS)


def with_state(blueprint: Blueprint, state: dict[str, torch.Tensor]) -> Graph:
    """The simplified graph with other tensors in place of the program's.

    Raises:
        UnsupportedError: the network does not compile.
    """
    if blueprint.refusal is not None:
        raise blueprint.refusal
    return simplify(import_functional(blueprint.program, blueprint.graph.name, state))

