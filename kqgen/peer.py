"""What the open library takes for the same layer: modelled cycles of CMSIS-NN, recorded as data (peer_cmsis_nn.csv says how)."""

from __future__ import annotations

import csv
import functools
from collections.abc import Mapping
from importlib import resources

from kqgen.intgraph import IntAdd, IntAvgPool, IntConv2d, IntMeanWindow, IntNode, IntRescaledAdd, IntSoftmax

NAME = "CMSIS-NN"
CORES = ("m0p", "m4", "m33", "m7", "m55")
"""Cores with figures, in the order of the file's columns."""

_Key = tuple[str, str, str, int, int, int, int]


def cycles(node: IntNode, core: str) -> int | None:
    """Modelled cycles of the same layer in int8 by CMSIS-NN, None where it was not measured; a fused addition counts as its own layer."""
    if core not in CORES:
        return None
    parts = [_figures().get(key) for key in _keys(node)]
    known = [part[CORES.index(core)] for part in parts if part is not None]
    return sum(known) if known and len(known) == len(parts) else None


def _keys(node: IntNode) -> tuple[_Key, ...]:
    out = node.output
    added: _Key = ("add", "1x1", "1", out.c, out.c, out.h, out.w)
    match node:
        case IntConv2d(dense=True):
            return (("dense", "1x1", "1", node.plain[2], out.c, 1, 1),)
        case IntConv2d():
            (k_h, k_w), (down, across), c_in = node.plain
            stride = str(down) if down == across else f"{down}x{across}"
            op = "depthwise" if node.depthwise else "conv"
            conv: _Key = (op, f"{k_h}x{k_w}", stride, c_in, out.c, out.h, out.w)
            return (conv,) if node.addend is None else (conv, added)
        case IntAdd() | IntRescaledAdd():
            return (added,)
        case IntAvgPool() | IntMeanWindow():
            return (("avg_pool", f"{node.kernel[0]}x{node.kernel[1]}", "1", out.c, out.c, out.h, out.w),)
        case IntSoftmax():
            return (("softmax", "1x1", "1", out.c, out.c, out.h, out.w),)
        case _:
            return ()


@functools.cache
def _figures() -> Mapping[_Key, tuple[int, ...]]:
    text = resources.files("kqgen").joinpath("peer_cmsis_nn.csv").read_text(encoding="utf-8")
    figures: dict[_Key, tuple[int, ...]] = {}
    for op, kernel, stride, *numbers in csv.reader(line for line in text.splitlines() if not line.startswith("#")):
        c_in, c_out, h_out, w_out, *counted = (int(number) for number in numbers)
        figures[op, kernel, stride, c_in, c_out, h_out, w_out] = tuple(counted)
    return figures
