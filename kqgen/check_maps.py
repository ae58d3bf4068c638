"""Whether layers without weights of a graph from a file hold together; see `graph_check`."""

from __future__ import annotations

import numpy as np

from kqgen import fixed, fixed_tflite
from kqgen.check_fields import array, need, requant
from kqgen.intgraph import (
    Addend,
    IntAdd,
    IntArgMax,
    IntAssemble,
    IntAvgPool,
    IntClamp,
    IntLookup,
    IntMaxPool,
    IntMeanWindow,
    IntMul,
    IntNode,
    IntRescaledAdd,
    IntSlicePad,
    IntSoftmax,
    Part,
    QTensor,
)

_BYTE, _SHORT = 255, 32767
_MOST_PARTS, _MOST_BYTES = 256, 2**27
_Shape = tuple[int, int, int]


def operands(node: IntNode) -> tuple[int, int]:
    """How many inputs a layer without weights has, at least and at most."""
    if isinstance(node, IntAssemble):
        return 1, _MOST_PARTS
    return (2, 2) if isinstance(node, IntAdd | IntMul | IntRescaledAdd) else (1, 1)


def check(where: str, node: IntNode, sources: list[QTensor]) -> None:
    """Raises InputError naming the layer and field that no compiled network could have."""
    source, shape = _shape(sources[0]), _shape(node.output)
    match node:
        case IntAdd():
            add(where, node)
            need(all(_shape(each) == shape for each in sources), where, "output", str(shape))
        case IntMul():
            _mul(where, node, sources)
        case IntClamp() | IntLookup():
            need(source == shape, where, "output", str(shape))
        case IntRescaledAdd():
            _rescaled_add(where, node, sources)
        case IntAvgPool() | IntMaxPool() | IntMeanWindow():
            _pool(where, node, sources[0])
        case IntSlicePad():
            _slice_pad(where, node, sources[0])
        case IntAssemble():
            _assemble(where, node, sources)
        case IntSoftmax():
            need(source == shape, where, "output", str(shape))
            _softmax(where, node)
        case IntArgMax():
            need(shape == (*source[:2], 1) and source[2] <= 256, where, "output", f"{shape} from {source}")
        case _:
            need(False, where, "type", type(node).__name__)
    _codes(where, node)


def _shape(tensor: QTensor) -> _Shape:
    return tensor.h, tensor.w, tensor.c


def add(where: str, node: IntAdd | Addend) -> None:
    """Needs multipliers, bias and shift of SPEC 5.2."""
    fits = 1 <= node.shift <= fixed.ADD_SHIFT_MAX and fixed.add_fits(node.multiplier_a, node.multiplier_b, node.bias)
    signs = min(abs(node.multiplier_a), abs(node.multiplier_b)) > 0 and max(node.multiplier_a, node.multiplier_b) > 0
    need(fits and signs, where, "multipliers", "beyond the bounds of SPEC 5.2")


def _codes(where: str, node: IntNode) -> None:
    """What SPEC 5.9 to 5.13 say of clamps and of the output's quantisation."""
    if isinstance(node, IntLookup | IntSlicePad | IntAssemble | IntSoftmax | IntArgMax):
        need((node.lo, node.hi) == (-128, 127), where, "clamp", f"{node.lo}..{node.hi}")
    if isinstance(node, IntSoftmax | IntArgMax):
        scale = 1 / 256 if isinstance(node, IntSoftmax) else 1.0
        need((node.output.scale, node.output.zero_point) == (scale, -128), where, "output", f"scale {node.output.scale}")
    if isinstance(node, IntLookup):
        rows = len(node.table) if node.table.ndim else 0
        array(where, "table", node.table, np.int8, (node.output.c if rows != 1 else 1, 256))


def _pool(where: str, node: IntAvgPool | IntMaxPool | IntMeanWindow, source: QTensor) -> None:
    top, bottom, left, right = node.padding
    fits = min(*node.kernel, *node.stride) > 0 and max(*node.kernel, *node.stride, *node.padding) <= _BYTE and min(node.padding) >= 0
    need(fits, where, "window", f"{node.kernel}, {node.stride}, {node.padding}")
    rows = (source.h + top + bottom - node.kernel[0]) // node.stride[0] + 1
    columns = (source.w + left + right - node.kernel[1]) // node.stride[1] + 1
    need((rows, columns, source.c) == _shape(node.output), where, "output", f"{_shape(node.output)} where the window gives {rows, columns}")
    if isinstance(node, IntAvgPool):
        need(-128 <= node.pad_value <= 127, where, "pad_value", str(node.pad_value))
        requant(where, np.array([node.multiplier]), np.array([node.shift]), node.acc_shift)
        count = node.kernel[0] * node.kernel[1]
        most = count * 128 + abs(node.bias)
        if fixed_tflite.is_rule(node.acc_shift):
            # The C has no place for a bias of its own here.
            need((node.bias, node.padding) == (-count * node.pad_value, (0, 0, 0, 0)), where, "bias", str(node.bias))
            left = int(fixed_tflite.left_shift(node.shift))
            need(most << left < fixed_tflite.ACC_LIMIT, where, "shift", str(node.shift))
            return
        need(most << node.acc_shift <= fixed.INT32_MAX, where, "bias", str(node.bias))


def _mul(where: str, node: IntMul, sources: list[QTensor]) -> None:
    shape = _shape(node.output)
    second = (1, 1, shape[2]) if node.broadcast else shape
    found = [_shape(each) for each in sources]
    need(found == [shape, second], where, "output", f"{shape} from {found}")
    left = int(fixed_tflite.left_shift(node.shift)) if fixed_tflite.is_rule(node.acc_shift) else 0
    need(2**16 << left <= fixed_tflite.ACC_LIMIT, where, "shift", str(node.shift))
    need(all(-128 <= each <= 127 for each in (node.zero_point_a, node.zero_point_b)), where, "zero_point", "beyond int8")
    requant(where, np.array([node.multiplier]), np.array([node.shift]), node.acc_shift)


def _rescaled_add(where: str, node: IntRescaledAdd, sources: list[QTensor]) -> None:
    shape = _shape(node.output)
    second = (1, 1, shape[2]) if node.broadcast else shape
    found = [_shape(each) for each in sources]
    need(found == [shape, second], where, "output", f"{shape} from {found}")
    need(all(-128 <= each <= 127 for each in (node.zero_point_a, node.zero_point_b)), where, "zero_point", "beyond int8")
    multipliers, shifts = (node.multiplier_a, node.multiplier_b, node.multiplier), (node.shift_a, node.shift_b, node.shift)
    need(fixed_tflite.fits(multipliers, shifts) and min(shifts) >= 31, where, "requant", "beyond SPEC 5.14")


def _slice_pad(where: str, node: IntSlicePad, source: QTensor) -> None:
    need(min(node.step) > 0 and max(node.step) <= _BYTE, where, "step", str(node.step))
    need(max(abs(each) for each in node.start) <= _SHORT, where, "start", str(node.start))
    need(abs(node.c_before) <= _SHORT, where, "c_before", str(node.c_before))
    need(-128 <= node.pad_value <= 127, where, "pad_value", str(node.pad_value))
    need(source.c + node.c_before + node.c_after == node.output.c, where, "c_after", str(node.c_after))


def _assemble(where: str, node: IntAssemble, sources: list[QTensor]) -> None:
    need(0 < len(node.parts) <= _MOST_PARTS, where, "parts", f"{len(node.parts)} of them")
    need(node.fill is None or -128 <= node.fill <= 127, where, "fill", str(node.fill))
    need(node.output.size_bytes <= _MOST_BYTES, where, "output", f"{node.output.size_bytes} bytes")
    covered = np.zeros(_shape(node.output), np.bool_)
    for part in node.parts:
        need(0 <= part.source < len(sources), where, "source", str(part.source))
        _part(where, part, sources[part.source], node.output)
        (row, column, channel), given = part.start, sources[part.source]
        rows = slice(row, row + (given.h - 1) * part.step[0] + 1, part.step[0])
        columns = slice(column, column + (given.w - 1) * part.step[1] + 1, part.step[1])
        covered[rows, columns, channel : channel + (given.c - 1) * part.channel_step + 1 : part.channel_step] = True
    need(node.fill is not None or bool(covered.all()), where, "parts", "positions that no part covers")
    need({part.source for part in node.parts} == set(range(len(sources))), where, "parts", "an input that is placed nowhere")


def _part(where: str, part: Part, given: QTensor, out: QTensor) -> None:
    (row, column, channel), (down, right) = part.start, part.step
    need(min(row, column, channel) >= 0 and min(down, right) > 0, where, "start", f"{part.start}, {part.step}")
    ends = (row + (given.h - 1) * down, column + (given.w - 1) * right, channel + (given.c - 1) * part.channel_step)
    woven = (part.step, part.channel_step * given.c) == ((1, 1), out.c) and given.w * given.c <= _SHORT
    need(part.channel_step == 1 or (part.channel_step > 1 and woven), where, "channel_step", str(part.channel_step))
    need(all(end < size for end, size in zip(ends, _shape(out), strict=True)), where, "start", f"{part.start} reaches {ends}")
    copies = (part.multiplier, part.bias, part.shift) == (1, 0, 0)
    scales = part.multiplier > 0 and 1 <= part.shift <= fixed.ADD_SHIFT_MAX and fixed.rescale_fits(part.multiplier, part.bias)
    need(copies or scales, where, "multipliers", "beyond the bounds of SPEC 5.11")


def _softmax(where: str, node: IntSoftmax) -> None:
    table = node.exponentials
    array(where, "exponentials", table, np.int32, (min(max(1, table.size), 256),))
    falling = bool(np.all(table >= 0) and np.all(np.diff(table.astype(np.int64)) <= 0)) and int(table[0]) == fixed.INT32_MAX
    need(falling, where, "exponentials", "that do not fall from 1 to 0")
    need(node.output.c <= 4095, where, "output", f"{node.output.c} channels")
