"""A network whose layers can run some rows at a time, of odd sizes, strides and paddings, and plans of it with streams given by hand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import nets

from kqgen import lifetimes, memory, stream_jobs
from kqgen.board import Board
from kqgen.fuse import fuse
from kqgen.intgraph import IntGraph
from kqgen.plan import Form, Plan, Planning
from kqgen.planner import make_plan
from kqgen.stream_jobs import Pattern

LAST = 9
"""The last step that can be part of a stream."""


def rows() -> IntGraph:
    """Two residual blocks, a 5x3 kernel with stride 2x1, both pools and a 1x1 kernel; then a dense layer."""
    net = nets.Builder("rows", seed=11)
    net.input("x", 23, 9, 3)
    net.codebook("book", 24, (3, 3), True)
    net.conv("stem", 6, (3, 3), padding=(1, 1, 1, 1), bits=6, mixed_pads=True)
    net.conv("b1_conv1", 6, (3, 3), padding=(1, 1, 1, 1), codebook="book", lo=-20)
    net.conv("b1_conv2", 6, (3, 3), padding=(1, 1, 1, 1), codebook="book", mixed_pads=True)
    net.add("b1_add", "stem", "b1_conv2", lo=-30)
    net.conv("b2_conv1", 9, (3, 3), stride=(2, 2), padding=(1, 1, 1, 1), codebook="book")
    net.conv("b2_conv2", 9, (3, 3), padding=(1, 1, 1, 1), codebook="book")
    net.conv("b2_skip", 9, (1, 1), stride=(2, 2), bits=4, source="b1_add")
    net.add("b2_add", "b2_conv2", "b2_skip")
    net.conv("tall", 7, (5, 3), stride=(2, 1), padding=(2, 1, 1, 1))
    net.max_pool("largest", (3, 3), (1, 1), (1, 1, 1, 1))
    net.avg_pool("mean", (2, 2))
    net.conv("four", 8, (1, 1), bits=4)
    net.conv("fc", 10, (1, 1), dense=True)
    return fuse(net.graph())


def pattern(graph: IntGraph, first: int, strips: Sequence[int]) -> Pattern:
    """The stream of some steps in given strips."""
    found = stream_jobs.pattern(graph, lifetimes.chains(graph), first, strips)
    assert found is not None
    return found


def streamed(
    graph: IntGraph, streams: Mapping[int, Sequence[int]], board: Board | None = None, forms: Mapping[str, Form] | None = None
) -> Plan:
    """A plan with streams: the strips of their steps by their first step."""
    steps = make_plan(graph, board, Planning(forms=tuple((forms or {}).items()))).steps
    return memory.plan(graph, steps, tuple(pattern(graph, first, strips) for first, strips in streams.items()))
