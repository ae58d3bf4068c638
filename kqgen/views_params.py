"""Views of the runtime's parameter structs (SPEC 8): one dataclass a struct, every value checked against its C field.

A field is the number or the C name that the template prints. `template` names the template that writes the struct.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from kqgen import fixed_tflite
from kqgen.conv_shape import geometry
from kqgen.errors import InternalError
from kqgen.index_check import index_misfit
from kqgen.intgraph import (
    Addend,
    IntAdd,
    IntAvgPool,
    IntClamp,
    IntConv2d,
    IntGraph,
    IntMaxPool,
    IntMeanWindow,
    IntNode,
    IntSlicePad,
    KqWeights,
    Padding,
    Pair,
    QTensor,
)
from kqgen.shared_tables import needs_pad_table
from kqgen.views_maps import MapParams, map_params
from kqgen.views_text import int32_literal, within

UINT8, UINT16, INT8, INT16, COUNT = (0, 255), (0, 65535), (-128, 127), (-32768, 32767), (1, 2**31 - 1)
INT32 = (1 - 2**31, 2**31 - 1)

BIAS = "bias"
"""The field of `kq_pool` that takes a bias."""

ADDEND = "addend"
"""What follows a layer's C name in that of the addition it does."""


@dataclass(frozen=True, slots=True)
class WindowParams:
    """`kq_window`."""

    h_in: int
    w_in: int
    c_in: int
    h_out: int
    w_out: int
    c_out: int
    k_h: int
    k_w: int
    stride_h: int
    stride_w: int
    pad_top: int
    pad_left: int
    tile: int


@dataclass(frozen=True, slots=True)
class ConvTables:
    """C names of a convolution's tables; `pad_values` is NULL where every padded position reads `pad_value`."""

    weights: str
    bias: str
    multiplier: str
    shift: str
    pad_values: str


@dataclass(frozen=True, slots=True)
class RequantParams:
    """`kq_requant`: three table names and the scalars; `multiplier_field` is the field that takes the multipliers."""

    bias: str
    multiplier_field: str
    multiplier: str
    shift: str
    sum: str
    acc_shift: int
    zero_point: int
    lo: int
    hi: int


@dataclass(frozen=True, slots=True)
class Conv2dParams:
    """`kq_conv2d`."""

    template: str
    window: WindowParams
    requant: RequantParams
    pad_values: str
    pad_value: int
    weights: str
    bits: int


@dataclass(frozen=True, slots=True)
class Conv2dKqParams:
    """`kq_conv2d_kq`."""

    template: str
    window: WindowParams
    requant: RequantParams
    pad_values: str
    pad_value: int
    indices: str
    codebook: str
    codewords: int
    strip: int
    index_bits: int
    sign: int
    stages: int


@dataclass(frozen=True, slots=True)
class AddParams:
    """`kq_add`; `bias` is a C literal."""

    template: str
    count: int
    multiplier_a: int
    multiplier_b: int
    bias: str
    shift: int
    lo: int
    hi: int


@dataclass(frozen=True, slots=True)
class PoolParams:
    """`kq_pool`; `bias` is a C literal for `bias_field`. A maximum leaves bias, multiplier, shifts and zero point 0."""

    template: str
    window: WindowParams
    bias_field: str
    bias: str
    multiplier: int
    shift: int
    acc_shift: int
    zero_point: int
    lo: int
    hi: int
    pad_value: int


@dataclass(frozen=True, slots=True)
class ClampParams:
    """`kq_clamp`."""

    template: str
    count: int
    lo: int
    hi: int


@dataclass(frozen=True, slots=True)
class SlicePadParams:
    """`kq_slice_pad`."""

    template: str
    h_in: int
    w_in: int
    c_in: int
    h_out: int
    w_out: int
    c_out: int
    start_h: int
    start_w: int
    step_h: int
    step_w: int
    c_before: int
    pad_value: int


Params = Conv2dParams | Conv2dKqParams | AddParams | PoolParams | ClampParams | SlicePadParams | MapParams


def conv_tables(prefix: str, node: IntConv2d) -> ConvTables:
    """Names of the tables of a layer whose own C name is `prefix`."""
    weights = "indices" if isinstance(node.weights, KqWeights) else "weights"
    pad_values = f"{prefix}_pad_values" if needs_pad_table(node) else "NULL"
    return ConvTables(f"{prefix}_{weights}", f"{prefix}_bias", f"{prefix}_multiplier", f"{prefix}_shift", pad_values)


def params(graph: IntGraph, node: IntNode, tiling: tuple[int, int], prefix: str, codebooks: Mapping[str, str]) -> Params:
    """The parameters of one layer.

    Args:
        graph: the network.
        node: the layer.
        tiling: tile and strip, as planned.
        prefix: the layer's C name, with which its tables begin.
        codebooks: C name of each codebook's table.

    Raises: InternalError naming layer and field when a value does not fit the C field.
    """
    lo, hi = (_fits(node, value, INT8, "clamp") for value in (node.lo, node.hi))
    _fits(node, node.output.zero_point, INT8, "zero_point")
    source = graph.tensor(node.inputs[0])
    match node:
        case IntConv2d():
            return _conv(graph, node, tiling, prefix, codebooks)
        case IntAdd():
            return _add(node, node)
        case IntAvgPool():
            window = _window(node, (source.h, source.w, source.c), node.kernel, node.stride, node.padding, 0)
            field, bias, scale = _mean_scale(node)
            pad_value = _fits(node, node.pad_value, INT8, "pad_value")
            return PoolParams("params/pool.j2", window, field, bias, *scale, node.output.zero_point, lo, hi, pad_value)
        case IntMaxPool() | IntMeanWindow():
            window = _window(node, (source.h, source.w, source.c), node.kernel, node.stride, node.padding, 0)
            return PoolParams("params/pool.j2", window, BIAS, "0", 0, 0, 0, 0, lo, hi, 0)
        case IntClamp():
            return ClampParams("params/clamp.j2", _count(node), lo, hi)
        case IntSlicePad():
            return _slice_pad(node, source)
        case _:
            made = map_params(graph, node, prefix)
            if made is None:
                raise InternalError(f"layer {node.name}: the runtime has no parameters for {type(node).__name__}")
            return made


def addend_params(node: IntNode) -> AddParams | None:
    """The addition a convolution does as it stores its results; None where it does none."""
    return _add(node, node.addend) if isinstance(node, IntConv2d) and node.addend is not None else None


def _add(node: IntNode, add: IntAdd | Addend) -> AddParams:
    return AddParams(
        template="params/add.j2",
        count=_count(node),
        multiplier_a=_fits(node, add.multiplier_a, INT32, "multiplier_a"),
        multiplier_b=_fits(node, add.multiplier_b, INT32, "multiplier_b"),
        bias=int32_literal(add.bias),
        shift=_fits(node, add.shift, (1, 20), "shift"),
        lo=_fits(node, node.lo, INT8, "clamp"),
        hi=_fits(node, node.hi, INT8, "clamp"),
    )


def _conv(graph: IntGraph, node: IntConv2d, tiling: tuple[int, int], prefix: str, codebooks: Mapping[str, str]) -> Params:
    tables, (tile, strip) = conv_tables(prefix, node), tiling
    seen, requant = geometry(node), node.requant
    window = _window(node, seen.in_shape, seen.kernel, seen.stride, seen.padding, tile, seen.out_size)
    twice = fixed_tflite.is_rule(requant.acc_shift)
    acc_shift = requant.acc_shift if twice else _fits(node, requant.acc_shift, (0, 15), "acc_shift")
    field = "multiplier_q31" if twice else "multiplier"
    made, lo, hi = node.result
    addend = "NULL" if node.addend is None else f"&{prefix}_{ADDEND}"
    requant_params = RequantParams(tables.bias, field, tables.multiplier, tables.shift, addend, acc_shift, made.zero_point, lo, hi)
    pad_value = int(node.pad_values[0]) if tables.pad_values == "NULL" else 0
    stored = node.weights
    if not isinstance(stored, KqWeights):
        return Conv2dParams("params/conv2d.j2", window, requant_params, tables.pad_values, pad_value, tables.weights, stored.bits)
    codebook = graph.codebook(stored.codebook)
    if codebook.values.shape[1:] != node.kernel:
        found, wanted = f"{node.kernel} kernels", f"{codebook.values.shape[1:]} kernels"
        raise InternalError(f"layer {node.name} does not suit codebook {codebook.name}", found=found, wanted=wanted)
    field, found = index_misfit(stored, codebook)
    if field:
        raise InternalError(f"layer {node.name}: {field} do not suit codebook {codebook.name}", found=found)
    return Conv2dKqParams(
        template="params/conv2d_kq.j2",
        window=window,
        requant=requant_params,
        pad_values=tables.pad_values,
        pad_value=pad_value,
        indices=tables.weights,
        codebook=codebooks[codebook.name],
        codewords=_fits(node, codebook.codewords if codebook.additive else codebook.named(stored.index_bits), UINT16, "codewords"),
        strip=_fits(node, strip, UINT16, "strip"),
        index_bits=_fits(node, stored.index_bits, (1, 12), "index_bits"),
        sign=int(codebook.sign),
        stages=codebook.stages,
    )


def _slice_pad(node: IntSlicePad, source: QTensor) -> SlicePadParams:
    if (node.lo, node.hi) != (-128, 127):
        raise InternalError(f"layer {node.name}: a slice does not clamp", found=f"{node.lo}..{node.hi}", wanted="-128..127")
    return SlicePadParams(
        "params/slice_pad.j2",
        *_shape(node, (source.h, source.w, source.c)),
        *_shape(node, (node.output.h, node.output.w, node.output.c)),
        _fits(node, node.start[0], INT16, "start"),
        _fits(node, node.start[1], INT16, "start"),
        *_bytes(node, *node.step, "step"),
        c_before=_fits(node, node.c_before, INT16, "c_before"),
        pad_value=_fits(node, node.pad_value, INT8, "pad_value"),
    )


def _window(
    node: IntNode, in_shape: tuple[int, int, int], kernel: Pair, stride: Pair, padding: Padding, tile: int, out_size: Pair | None = None
) -> WindowParams:
    return WindowParams(
        *_shape(node, in_shape),
        *_shape(node, (*(out_size or (node.output.h, node.output.w)), node.output.c)),
        *_bytes(node, *kernel, "kernel"),
        *_bytes(node, *stride, "stride"),
        *_bytes(node, padding[0], padding[2], "padding"),
        tile=_fits(node, tile, UINT16, "tile"),
    )


def _mean_scale(node: IntAvgPool) -> tuple[str, str, tuple[int, int, int]]:
    """A mean's (bias_field, bias, (multiplier, shift, acc_shift)): by SPEC 3.5 the multiplier takes the place of the bias."""
    if not fixed_tflite.is_rule(node.acc_shift):
        return BIAS, int32_literal(node.bias), _scale(node, node.multiplier, node.shift, node.acc_shift)
    multiplier, shift = _fits(node, node.multiplier, (0, COUNT[1]), "multiplier"), _fits(node, node.shift, (1, 62), "shift")
    return "multiplier_q31", str(multiplier), (0, shift, node.acc_shift)


def _scale(node: IntNode, multiplier: int, shift: int, acc_shift: int) -> tuple[int, int, int]:
    return (
        _fits(node, multiplier, (0, 32767), "multiplier"),
        _fits(node, shift, (1, 22), "shift"),
        _fits(node, acc_shift, (0, 15), "acc_shift"),
    )


def _shape(node: IntNode, shape: tuple[int, int, int]) -> tuple[int, int, int]:
    h, w, c = (_fits(node, side, UINT16, "shape") for side in shape)
    return h, w, c


def _bytes(node: IntNode, rows: int, columns: int, field: str) -> Pair:
    return _fits(node, rows, UINT8, field), _fits(node, columns, UINT8, field)


def _count(node: IntNode) -> int:
    return _fits(node, node.output.size_bytes, COUNT, "size of the map")


def _fits(node: IntNode, value: int, limits: tuple[int, int], field: str) -> int:
    return within(value, *limits, f"layer {node.name}: {field}")
