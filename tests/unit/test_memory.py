"""Memory plan and its independent check."""

from __future__ import annotations

from dataclasses import replace

import nets
import pytest

from kqgen import memory, plan_check
from kqgen.errors import InternalError
from kqgen.intgraph import IntGraph
from kqgen.plan import Place, Plan, Step


def overlaps(plan: Plan) -> list[tuple[str, str]]:
    """Pairs of tensors in the arena, inputs too, whose bytes and lifetimes meet, operands overwritten in place left out."""
    placed = [tensor for tensor in plan.tensors if tensor.place.kind != "output"]
    found = []
    for number, a in enumerate(placed):
        for b in placed[number + 1 :]:
            alive = a.first < b.last and b.first < a.last
            if alive and a.place.offset < b.place.offset + b.size_bytes and b.place.offset < a.place.offset + a.size_bytes:
                found.append((a.name, b.name))
    return found


@pytest.mark.parametrize("graph", [nets.residual(), nets.two_ports(), nets.single()], ids=lambda graph: graph.name)
def test_no_two_live_tensors_share_a_byte(graph: IntGraph) -> None:
    plan = nets.make_plan(graph)
    assert overlaps(plan) == []
    ends = [t.place.offset + t.size_bytes for t in plan.tensors if t.place.kind != "output"]
    ends += [offset + step.scratch_bytes for offset, step in zip(plan.scratch_offsets, plan.steps, strict=True)]
    assert plan.arena_bytes == -(-max(ends, default=0) // 4) * 4


def test_an_addition_writes_over_an_operand_nobody_needs() -> None:
    plan = nets.make_plan(nets.residual())
    node = next(node for node in plan.graph.nodes if type(node).__name__ == "IntAdd" and node.name not in plan.graph.outputs)
    assert plan.place(node.name) in [plan.place(name) for name in node.inputs]


def test_the_arena_is_no_larger_than_the_fullest_step() -> None:
    plan = nets.make_plan(nets.residual())

    def live(step: int) -> int:
        places = {t.place.offset: -(-t.size_bytes // 4) * 4 for t in plan.tensors if t.place.kind != "output" and t.first <= step <= t.last}
        return sum(places.values()) + plan.steps[step].scratch_bytes

    assert plan.arena_bytes == max(live(step) for step in range(len(plan.steps)))


def moved(plan: Plan, name: str, place: Place) -> Plan:
    return replace(plan, tensors=tuple(replace(t, place=place) if t.name == name else t for t in plan.tensors))


def test_the_check_sees_a_tensor_moved_onto_a_live_one() -> None:
    plan = nets.make_plan(nets.residual())
    placed = [t for t in plan.tensors if t.place.kind == "arena"]
    a = max(placed, key=lambda tensor: tensor.last - tensor.first)
    b = next(t for t in placed if a.first < t.first < a.last)
    with pytest.raises(InternalError, match=r"after its bytes were reused|overwrite its input"):
        plan_check.check(moved(plan, b.name, a.place))


def test_the_check_sees_scratch_on_a_live_tensor() -> None:
    plan = nets.make_plan(nets.residual())
    reads = [plan.place(node.inputs[0]) for node in plan.graph.nodes]
    number = next(n for n, step in enumerate(plan.steps) if step.scratch_bytes and reads[n].kind == "arena")
    victim = plan.place(plan.graph.nodes[number].inputs[0])
    offsets = tuple(victim.offset if n == number else offset for n, offset in enumerate(plan.scratch_offsets))
    roomy = replace(plan, arena_bytes=plan.arena_bytes + plan.steps[number].scratch_bytes)
    plan_check.check(roomy)
    with pytest.raises(InternalError, match="after its bytes were reused"):
        plan_check.check(replace(roomy, scratch_offsets=offsets))


def test_inputs_have_places_of_their_own_that_last_until_they_are_read() -> None:
    plan = nets.make_plan(nets.two_ports())
    left, right = (plan.place(tensor.name) for tensor in plan.graph.inputs)
    assert (left.kind, left.index, right.kind, right.index) == ("input", 0, "input", 1)
    with pytest.raises(InternalError, match="input right shares bytes of the arena with another input"):
        plan_check.check(moved(plan, "right", replace(right, offset=left.offset)))
    with pytest.raises(InternalError, match="reads right after its bytes were reused"):
        plan_check.check(moved(plan, "right", replace(right, offset=plan.scratch_offsets[0])))
    with pytest.raises(InternalError, match="would overwrite its input Left"):
        plan_check.check(moved(plan, "Left", replace(left, offset=plan.place("a").offset)))


def test_an_input_is_never_written_over_in_place() -> None:
    """An addition may write over an operand, but not over what the caller may have put anywhere."""
    net = nets.Builder("given", seed=4)
    net.input("x", 6, 6, 4)
    net.input("y", 6, 6, 4)
    net.add("total", "x", "y")
    net.conv("last", 2, (1, 1))
    plan = nets.make_plan(net.graph())
    assert plan.place("total").offset not in {plan.place("x").offset, plan.place("y").offset}


@pytest.mark.parametrize("offset", [2, 1 << 20])
def test_the_check_sees_an_offset_that_is_unaligned_or_outside(offset: int) -> None:
    plan = nets.make_plan(nets.residual())
    name = next(t.name for t in plan.tensors if t.place.kind == "arena")
    with pytest.raises(InternalError, match="unaligned or outside"):
        plan_check.check(moved(plan, name, Place("arena", offset=offset)))


def test_the_check_sees_an_output_that_is_not_the_callers() -> None:
    plan = nets.make_plan(nets.single())
    roomy = replace(plan, arena_bytes=plan.arena_bytes + 64)
    with pytest.raises(InternalError, match="does not write an output to the caller's buffer"):
        plan_check.check(moved(roomy, plan.graph.outputs[0], Place("arena", offset=plan.arena_bytes)))


def test_scratch_lives_only_for_its_step() -> None:
    graph = nets.residual()
    steps = nets.make_plan(graph).steps
    large = tuple(replace(step, scratch_bytes=4096) if number in (1, 2) else step for number, step in enumerate(steps))
    both = memory.plan(graph, large)
    one = memory.plan(graph, tuple(replace(step, scratch_bytes=4096) if number == 1 else step for number, step in enumerate(steps)))
    plan_check.check(both)
    assert both.arena_bytes < one.arena_bytes + 4096


def test_a_schedule_for_another_graph_is_refused() -> None:
    plan = nets.make_plan(nets.residual())
    swapped = (plan.steps[1], plan.steps[0], *plan.steps[2:])
    with pytest.raises(InternalError, match="the graph has"):
        plan_check.check(replace(plan, steps=swapped))
    assert isinstance(swapped[0], Step)
