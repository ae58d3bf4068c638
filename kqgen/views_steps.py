"""Views of the steps: words, parameter struct and runtime call of each layer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from kqgen import views_maps
from kqgen.errors import InternalError
from kqgen.intgraph import (
    IntAdd,
    IntAssemble,
    IntAvgPool,
    IntClamp,
    IntConv2d,
    IntGraph,
    IntMaxPool,
    IntMeanWindow,
    IntNode,
    IntSlicePad,
    KqWeights,
    Pair,
    QTensor,
)
from kqgen.plan import Plan, Step
from kqgen.schedule import suits
from kqgen.sizes import struct_name
from kqgen.views_maps import FILL_FUNCTION, part_calls
from kqgen.views_params import ADDEND, AddParams, Params, addend_params, params
from kqgen.views_text import comment_lines, flow

ARENA = "mem"
"""Name of the arena's bytes inside the generated function."""

MOVE_FUNCTION = "kq_rows_move"
"""The runtime's function that moves rows of a stream to the front of their buffer."""


@dataclass(frozen=True, slots=True)
class StepView:
    """One layer as the generated function runs it.

    Attributes:
        number: counts from 0 in execution order.
        layer: the node's name.
        comment: lines of the comment above the call; comment_text: its text.
        title: lines of the comment above the struct.
        ident: C name of the struct.
        c_type: its type.
        params: its fields.
        addend, addend_ident: the addition done on the way and its C name, if any.
        function: the runtime's function.
        call: lines of the call.
        result: C expression of the step's output.
        result_bytes: its size.
    """

    number: int
    layer: str
    comment: tuple[str, ...]
    comment_text: str
    title: tuple[str, ...]
    ident: str
    c_type: str
    params: Params
    addend: AddParams | None
    addend_ident: str
    function: str
    call: tuple[str, ...]
    result: str
    result_bytes: int


def shape_text(tensor: QTensor) -> str:
    """32x32x16 for a map, 10 for a vector."""
    return str(tensor.c) if tensor.h == tensor.w == 1 else f"{tensor.h}x{tensor.w}x{tensor.c}"


def op_text(node: IntNode) -> str:
    """What a layer does, in a few words: `conv 3x3 /2, 16 -> 32`; `conv 3x3, 32 -> 32, + shortcut` where it adds another's result."""
    match node:
        case IntConv2d():
            kernel, stride, c_in = node.plain
            runs = f", runs of {node.run}" if node.run > 1 else ""
            if node.dense:
                return f"dense, {c_in} -> {node.output.c}{runs}"
            added = "" if node.addend is None else f", + {node.inputs[1]}"
            kind = "depthwise" if node.depthwise else "conv"
            apart = "" if node.dilation == (1, 1) else f" dilated {node.dilation[0]}x{node.dilation[1]}"
            return f"{kind} {_window_text(kernel, stride, (1, 1))}{apart}, {c_in} -> {node.output.c}{runs}{added}"
        case IntAdd():
            return "add" if node.multiplier_b > 0 else "subtract"
        case IntAvgPool() | IntMeanWindow():
            return f"average pool {_window_text(node.kernel, node.stride, node.kernel)}"
        case IntMaxPool():
            return f"max pool {_window_text(node.kernel, node.stride, node.kernel)}"
        case IntClamp():
            return f"clamp {node.lo}..{node.hi}"
        case IntSlicePad():
            steps = f"/{node.step[0]}" if node.step[0] == node.step[1] else f"/{node.step[0]}x{node.step[1]}"
            start = "" if node.start == (0, 0) else f" from {node.start[0]}, {node.start[1]}"
            return f"slice {steps}{start}, {node.c_before} + {node.c_after} channels added"
        case _:
            made = views_maps.words(node)
            if not made:
                raise InternalError(f"layer {node.name}: no words for {type(node).__name__}")
            return made


def _window_text(kernel: Pair, stride: Pair, usual: Pair) -> str:
    """3x3, or 3x3 /2 where the stride is not the usual one."""
    size = f"{kernel[0]}x{kernel[1]}"
    if stride == usual:
        return size
    return f"{size} /{stride[0]}" if stride[0] == stride[1] else f"{size} /{stride[0]}x{stride[1]}"


def modules_text(node: IntNode) -> str:
    """The PyTorch module paths a layer came from, each once; forward() for operators the model calls itself."""
    return ", ".join(dict.fromkeys(path or "forward()" for path in node.sources or (node.path,)))


def weights_text(graph: IntGraph, node: IntNode) -> str:
    """How a layer's weights are stored, empty for a layer without any: `8-bit`, `KQ 6-bit`, `KQ 9+sign`, `KQ 2x6-bit`, `KQ 2x5+sign`."""
    if not isinstance(node, IntConv2d):
        return ""
    if not isinstance(node.weights, KqWeights):
        return f"{node.weights.bits}-bit"
    codebook = graph.codebook(node.weights.codebook)
    return f"KQ {codebook.index_text(node.weights.index_bits)}{'' if codebook.sign else '-bit'}"


def bits_per_weight_text(node: IntNode) -> str:
    """Stored bits of a weight, its share of the codebook not counted; empty for a layer without any."""
    if not isinstance(node, IntConv2d):
        return ""
    return f"{8 * node.weights.packed_bytes / node.weight_count:.2f}"


def step_views(plan: Plan, idents: Mapping[str, str], codebooks: Mapping[str, str], buffers: Mapping[str, str]) -> tuple[StepView, ...]:
    """One view a step.

    Args:
        plan: the network.
        idents: C name of each layer's struct and prefix of its tables, by node name.
        codebooks: C name of each codebook's table, by codebook name.
        buffers: C expression of the place of every tensor, by tensor name.

    Raises: InternalError when plan and graph do not belong together, or a value does not fit its C field.
    """
    if [step.node for step in plan.steps] != [node.name for node in plan.graph.nodes]:
        raise InternalError("the plan's steps are not the graph's nodes")
    return tuple(_step_view(plan, number, idents, codebooks, buffers) for number in range(len(plan.steps)))


def _step_view(
    plan: Plan, number: int, idents: Mapping[str, str], codebooks: Mapping[str, str], buffers: Mapping[str, str]
) -> StepView:
    node, step = plan.graph.nodes[number], plan.steps[number]
    ident = idents[node.name]
    read, over = (node.inputs[:1], node.inputs[1:]) if isinstance(node, IntConv2d) else (node.inputs, ())
    reads = " + ".join(shape_text(plan.graph.tensor(name)) for name in read)
    shapes = f"{reads} -> {shape_text(node.output)}" + "".join(f" over {name}" for name in over)
    how = ", ".join(text for text in (shapes, weights_text(plan.graph, node), plan.form_text(number)) if text)
    words, function = f"{number}  {node.name}: {op_text(node)}; {how}. PyTorch: {modules_text(node)}", _function(plan.graph, node, step)
    arguments = [f"&{ident}", *(buffers[name] for name in read), buffers[node.output.name]]
    if isinstance(node, IntConv2d):
        arguments.append(f"{ARENA} + {plan.scratch_offsets[number]}" if step.scratch_bytes else "NULL")
    call = flow(f"{function}(", arguments, ", ", ");", indent=4)
    if isinstance(node, IntAssemble):
        call = part_calls(node, ident, arguments[1:-1], arguments[-1])
    return StepView(
        number=number,
        layer=node.name,
        comment=comment_lines(words, indent=4),
        comment_text=words,
        title=comment_lines(f"{number}  {node.name}: {op_text(node)}. PyTorch: {modules_text(node)}"),
        ident=ident,
        c_type=struct_name(node),
        params=params(plan.graph, node, (step.tile, step.strip), ident, codebooks),
        addend=addend_params(node),
        addend_ident=f"{ident}_{ADDEND}",
        function=function,
        call=call,
        result=buffers[node.output.name],
        result_bytes=node.output.size_bytes,
    )


def step_functions(plan: Plan) -> tuple[str, ...]:
    """The runtime's function that each step calls, in order; behind them those that streams and gaps in assemblies need besides."""
    steps = tuple(_function(plan.graph, node, step) for node, step in zip(plan.graph.nodes, plan.steps, strict=True))
    parts = {part_function(struct_name(plan.graph.nodes[job.step])) for stream in plan.streams for job in stream.jobs}
    moves = {MOVE_FUNCTION for stream in plan.streams for job in stream.jobs if job.moves}
    fills = {FILL_FUNCTION for node in plan.graph.nodes if isinstance(node, IntAssemble) and node.fill is not None}
    return (*steps, *sorted(parts | moves | fills))


def part_function(c_type: str) -> str:
    """The runtime's function that makes a layer's parameters for some of its rows, by their type."""
    return f"kq_rows_{c_type.removeprefix('kq_')}"


def _function(graph: IntGraph, node: IntNode, step: Step) -> str:
    match node:
        case IntConv2d():
            if not suits(graph, node, step.form, step.function):
                raise InternalError(f"layer {node.name}: form {step.form} does not suit its weights", found=step.function)
            return step.function
        case IntAdd():
            return "kq_add_s8"
        case IntAvgPool():
            return "kq_avg_pool_s8"
        case IntMaxPool():
            return "kq_max_pool_s8"
        case IntClamp():
            return "kq_clamp_s8"
        case IntSlicePad():
            return "kq_slice_pad_s8"
        case _:
            function = views_maps.function(node)
            if not function:
                raise InternalError(f"layer {node.name}: the runtime has no function for {type(node).__name__}")
            return function
