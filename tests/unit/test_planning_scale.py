"""Planning networks of the size that people deploy: MobileNetV2 in few steps of work, in an arena next to the lower bound."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from kqgen import memory, plan_check, stream_jobs
from kqgen.board import load_board
from kqgen.fuse import fuse
from kqgen.intgraph import IntAdd, IntAvgPool, IntConv2d, IntGraph, IntNode, Padding, QTensor, Requant, UniformWeights, frozen
from kqgen.plan import Planning
from kqgen.planner import make_plan
from kqgen.reorder import reorder

BLOCKS = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
"""Expansion, channels, blocks, stride of the first (Sandler et al., 2018, table 2)."""

CLOSE = 1.05
"""An arena may take so many times what is alive when most is."""


class Network:
    """MobileNetV2 in integers, with weights drawn at random."""

    def __init__(self, side: int, width: float) -> None:
        self.rng = np.random.default_rng(0)
        self.nodes: list[IntNode] = []
        self.tensors = {"x": QTensor("x", side, side, 3, 1 / 255, -128)}
        self.width = width

    def channels(self, count: int) -> int:
        """Of a layer, in multiples of 8."""
        made = max(8, int(count * self.width + 4) // 8 * 8)
        return made + 8 if made < 0.9 * count * self.width else made

    def put(self, node: IntNode) -> str:
        self.nodes.append(node)
        self.tensors[node.name] = node.output
        return node.name

    def conv(self, source: str, c_out: int, side: int = 1, stride: int = 1, depthwise: bool = False) -> str:
        given, name = self.tensors[source], f"n{len(self.nodes)}"
        pad = side // 2
        padding: Padding = (pad, pad, pad, pad)
        h, w = ((size + 2 * pad - side) // stride + 1 for size in (given.h, given.w))
        weights = self.rng.integers(-40, 41, (c_out, side, side, 1 if depthwise else given.c))
        rows = np.ones(c_out)
        requant = Requant(frozen(0 * rows, np.int32), frozen(20000 * rows, np.int16), frozen(9 * rows, np.uint8))
        return self.put(IntConv2d(
            name, name, (name,), (source,), QTensor(name, h, w, c_out, 0.1, 0), -128, 127, dense=False,
            in_shape=(given.h, given.w, given.c), kernel=(side, side), stride=(stride, stride), padding=padding,
            pad_values=frozen(np.zeros(given.c), np.int8), weights=UniformWeights(8, frozen(weights, np.int8)), requant=requant,
            weight_scale=frozen(np.ones(c_out), np.float32), reason="drawn", depthwise=depthwise,
        ))  # fmt: skip

    def add(self, a: str, b: str) -> str:
        name = f"n{len(self.nodes)}"
        output = replace(self.tensors[a], name=name)
        return self.put(IntAdd(name, "", (name,), (a, b), output, -128, 127, 8192, 8192, 4096, 13))

    def graph(self) -> IntGraph:
        x = self.conv("x", self.channels(32), 3, 2)
        for expansion, count, blocks, first in BLOCKS:
            for number in range(blocks):
                source, given, stride = x, self.tensors[x].c, first if number == 0 else 1
                x = self.conv(x, expansion * given) if expansion > 1 else x
                x = self.conv(x, expansion * given, 3, stride, depthwise=True)
                x = self.conv(x, self.channels(count))
                x = self.add(source, x) if stride == 1 and self.tensors[x].c == given else x
        x = self.conv(x, max(1280, self.channels(1280)))
        last, kernel = self.tensors[x], (self.tensors[x].h, self.tensors[x].w)
        x = self.put(IntAvgPool(
            "mean", "", ("mean",), (x,), QTensor("mean", 1, 1, last.c, 0.1, 0), -128, 127, kernel, kernel, (0, 0, 0, 0), 0, 0, 20000, 6, 0,
        ))  # fmt: skip
        x = self.conv(x, 1000)
        return reorder(fuse(IntGraph("mobilenetv2", (self.tensors["x"],), tuple(self.nodes), (x,), frozenset(), ())))


@pytest.mark.parametrize(("side", "width"), [(96, 0.35), (160, 1.0), (224, 0.35), (224, 1.0)])
def test_the_arena_is_next_to_what_is_alive(side: int, width: float) -> None:
    graph = Network(side, width).graph()
    alive = memory.alive_bytes(graph)
    wide = max((node for node in graph.nodes if isinstance(node, IntConv2d) and node.depthwise), key=lambda node: node.output.size_bytes)
    assert alive[graph.nodes.index(wide)] < 1.5 * wide.output.size_bytes + graph.inputs[0].size_bytes, "depthwise layers run in place"
    plan = make_plan(graph, None)
    bare = memory.plan(graph, tuple(replace(step, scratch_bytes=0) for step in plan.steps))
    assert max(alive) <= bare.arena_bytes <= CLOSE * max(alive)
    least = max(held + step.scratch_bytes for held, step in zip(alive, plan.steps, strict=True))
    assert plan.arena_bytes <= CLOSE * least
    plan_check.check(plan)


class Work:
    """Counts what the search for streams is made of."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.done: Counter[str] = Counter()
        pattern, first_fit = stream_jobs.pattern, memory._Meetings.first_fit

        def counted(*arguments: object) -> object:
            self.done["patterns"] += 1
            return pattern(*arguments)  # type: ignore[arg-type]

        def fitted(*arguments: object) -> object:
            self.done["orders"] += 1
            return first_fit(*arguments)  # type: ignore[arg-type]

        monkeypatch.setattr(stream_jobs, "pattern", counted)
        monkeypatch.setattr(memory._Meetings, "first_fit", fitted)


def test_streams_are_searched_where_they_can_gain_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """The fastest forms of all layers together are hardly faster than those that there is room for: no stream is tried."""
    work = Work(monkeypatch)
    assert make_plan(Network(224, 1.0).graph(), load_board("nucleo-h7a3zi")).streams == ()
    assert work.done["patterns"] == 0
    assert work.done["orders"] < 500


def test_streams_take_most_of_the_arena_away_in_few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    work = Work(monkeypatch)
    graph = Network(96, 0.35).graph()
    plan = make_plan(graph, load_board("nucleo-g0b1re"), Planning("ram"))
    assert plan.arena_bytes < max(memory.alive_bytes(graph)) / 4
    assert any(graph.nodes[job.step].depthwise for stream in plan.streams for job in stream.jobs)  # type: ignore[attr-defined]
    assert work.done["patterns"] < 900
    assert work.done["orders"] < 12000
