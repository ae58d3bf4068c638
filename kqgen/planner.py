"""From an integer graph to its one plan: forms, places, and the independent check that they hold."""

from __future__ import annotations

import math

from kqgen import memory, plan_check, stream
from kqgen.board import Board, Core, load_core
from kqgen.compare import layer_labels
from kqgen.errors import InputError
from kqgen.intgraph import IntGraph
from kqgen.plan import Form, Optimise, Plan, Planning, Step
from kqgen.schedule import Choice, choices, step

ROOM_SHARE = 4
"""Scratch may make the arena larger than the maps alone need by one part in so many."""

ROOM_BYTES = 8192
"""Or by so many bytes, whichever is more."""

STACK_BYTES = 1024
"""Left of a board's RAM for the stack: networks need half of it."""

RETRIES = 12

STREAMS_PAY = 0.97
"""A default build has streams where the network is expected to take this share of the cycles, or less: they are code and tables too."""

STREAMED_CYCLES = 1.9
"""For the smallest arena the expected cycles may rise by this factor over those of a default build."""


def make_plan(graph: IntGraph, board: Board | None = None, planning: Planning | None = None) -> Plan:
    """The plan of a graph; the same graph, board and wishes always get the same one.

    Every layer takes the fastest form whose scratch the arena has room for: beside what is alive then, within a limit that
    the maps set. Where the pieces do not fit together as well as their sum says, the limit shrinks. Layers run as a stream of rows where
    that leaves so much more room for scratch that it is worth the decoding of kernels again and again.

    Args:
        board: its core decides which forms there are; None: a Cortex-M0+ with any amount of RAM.

    Raises:
        InternalError: the check refused the plan. InputError: a form given does not suit its layer, or there is no such layer.
    """
    planning = planning or Planning()
    core = load_core("m0p") if board is None else board.core
    asked = _forms(graph, planning)
    options = choices(graph, core, asked, lean=planning.optimise == "size")
    alive = memory.alive_bytes(graph)
    least = memory.plan(graph, _steps(options, alive, 0))
    limit = max(least.arena_bytes, _limit(planning.optimise, max(alive), _room(graph, board)))
    made = least
    for attempt in range(RETRIES):
        tried = memory.plan(graph, _steps(options, alive, limit - attempt * (limit - max(alive)) // RETRIES))
        if tried.arena_bytes <= limit:
            made = tried
            break
    soonest = sum(min((each.cycles for each in choice.candidates), default=0.0) for choice in options)
    if planning.optimise == "balanced" and board is not None and soonest < STREAMS_PAY * _cycles(made.steps):
        other = stream.fastest(graph, core, asked, options, limit)
        made = other if other is not None and _cycles(other.steps) < STREAMS_PAY * _cycles(made.steps) else made
    if planning.optimise == "ram":
        made = _streamed(graph, core, options, asked, _room(graph, board))
    plan_check.check(made)
    return made


def _cycles(steps: tuple[Step, ...]) -> float:
    return sum(each.cycles for each in steps)


def _streamed(graph: IntGraph, core: Core, options: tuple[Choice, ...], asked: dict[str, Form], room_bytes: int | None) -> Plan:
    """The smallest arena that costs few cycles more than the fastest forms in a default build's; if that is too large, the smallest."""
    alive = memory.alive_bytes(graph)
    fast = sum(each.cycles for each in _steps(options, alive, _limit("balanced", max(alive), room_bytes)))
    made = stream.smallest(graph, core, asked, options, STREAMED_CYCLES * fast)
    if room_bytes is not None and made.arena_bytes > room_bytes:
        return stream.smallest(graph, core, asked, options, math.inf)
    return made


def _room(graph: IntGraph, board: Board | None) -> int | None:
    """Bytes of RAM that the board has for the arena; None where it has no end."""
    if board is None or board.is_host:
        return None
    outputs = sum(graph.tensor(name).size_bytes for name in graph.outputs)
    return board.ram.size_bytes - board.reserve_ram_bytes - outputs - STACK_BYTES


def _limit(optimise: Optimise, maps_bytes: int, room_bytes: int | None) -> int:
    """The arena that scratch may fill up."""
    if optimise == "ram":
        return 0
    if optimise == "speed":
        return 2**31 if room_bytes is None else room_bytes
    limit = maps_bytes + max(maps_bytes // ROOM_SHARE, ROOM_BYTES)
    return limit if room_bytes is None else min(limit, room_bytes)


def _forms(graph: IntGraph, planning: Planning) -> dict[str, Form]:
    """The forms asked for, by node name."""
    names = {label: node.name for label, node in zip(layer_labels(graph), graph.nodes, strict=True)}
    names |= {node.name: node.name for node in graph.nodes}
    given: list[str] = []
    for layer, _ in planning.forms:
        if names.get(layer) in given:
            raise InputError(f"--form is given twice for layer {layer}", wanted="one form a layer", do="leave one of them out")
        if layer not in names:
            raise InputError(
                f"there is no layer {layer}", found=f"--form {layer}=...", wanted="one of " + ", ".join(layer_labels(graph)),
                do="name a layer as kqgen bench does",
            )  # fmt: skip
        given.append(names[layer])
    return {names[layer]: form for layer, form in planning.forms}


def _steps(options: tuple[Choice, ...], alive: tuple[int, ...], limit: int) -> tuple[Step, ...]:
    return tuple(step(choice, limit - held) for choice, held in zip(options, alive, strict=True))
