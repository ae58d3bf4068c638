"""From an integer graph to its one plan: forms, places, and the independent check that they hold."""

from __future__ import annotations

from collections.abc import Mapping

from kqgen import memory, plan_check
from kqgen.intgraph import IntGraph
from kqgen.plan import Form, Plan
from kqgen.schedule import ROOMS, Room, schedule


def make_plan(graph: IntGraph, forms: Mapping[str, Form] | None = None) -> Plan:
    """The plan of a graph; the same graph always gets the same one.

    Steps first get little scratch. Then each step, in order, gets the roomiest by which the arena does not grow: most steps run
    while the arena, sized by the fullest of them, stands half empty.

    Args:
        graph: integer graph.
        forms: layers for which the form is given instead of chosen.

    Raises:
        InternalError: the check refused the plan, or a form given does not suit its layer.
    """
    rooms: dict[str, Room] = {}
    made = memory.plan(graph, schedule(graph, forms))
    for node in graph.nodes:
        for room in reversed(ROOMS[1:]):
            steps = schedule(graph, forms, {**rooms, node.name: room})
            wider = made if steps == made.steps else memory.plan(graph, steps)
            if wider.arena_bytes <= made.arena_bytes:
                made, rooms = wider, {**rooms, node.name: room}
                break
    plan_check.check(made)
    return made
