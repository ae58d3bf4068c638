"""Views of streams: the table of jobs, and the calls among which each job chooses (SPEC 6.8)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from kqgen.intgraph import IntConv2d
from kqgen.plan import Job, Plan, Stream
from kqgen.views_steps import ARENA, MOVE_FUNCTION, StepView, part_function, shape_text
from kqgen.views_text import comment_lines, flow, within


@dataclass(frozen=True, slots=True)
class RowsCallView:
    """One of the calls of a stream.

    Attributes:
        condition: what opens its branch, and closes the one before.
        comment: lines of the comment in it.
        step: the layer of which it makes rows; None for a call that moves rows.
        part_function: the runtime's function that makes the layer's parameters for a job; empty for a move.
        call: lines of the call.
        result: C expression of the rows it makes.
        row_bytes: of one of them.
    """

    condition: str
    comment: tuple[str, ...]
    step: StepView | None
    part_function: str
    call: tuple[str, ...]
    result: str
    row_bytes: int


@dataclass(frozen=True, slots=True)
class StreamView:
    """A stream as the generated function runs it.

    Attributes:
        title: lines of the comment above the table.
        comment: lines of the comment above the loop.
        ident: C name of the table of jobs.
        count: jobs.
        jobs: initialisers, a line each.
        calls: in the order of their numbers.
    """

    title: tuple[str, ...]
    comment: tuple[str, ...]
    ident: str
    count: int
    jobs: tuple[str, ...]
    calls: tuple[RowsCallView, ...]


@dataclass(frozen=True, slots=True)
class UnitView:
    """What the generated function does next: a step, or a stream of several."""

    step: StepView | None
    stream: StreamView | None


def unit_views(plan: Plan, steps: Sequence[StepView], bases: Mapping[str, str]) -> tuple[UnitView, ...]:
    """The steps and streams of a plan in order.

    Args:
        steps: the views of all steps.
        bases: C expression of the start of the buffer in which a tensor lies, by tensor name.
    """
    units: list[UnitView] = []
    for view in steps:
        stream = plan.stream(view.number)
        if stream is None:
            units.append(UnitView(view, None))
        elif view.number == stream.first:
            units.append(UnitView(None, _stream_view(plan, stream, steps, bases)))
    return tuple(units)


def _stream_view(plan: Plan, stream: Stream, steps: Sequence[StepView], bases: Mapping[str, str]) -> StreamView:
    numbers = range(stream.first, stream.last + 1)
    moved = sorted({job.step for job in stream.jobs if job.moves})
    order = {(number, False): call for call, number in enumerate(numbers)}
    order |= {(number, True): len(order) + call for call, number in enumerate(moved)}
    calls = [_layer_call(plan, steps[number], call, bases) for call, number in enumerate(numbers)]
    calls += [_move_call(plan, number, order[number, True]) for number in moved]
    layers = f"{steps[stream.first].layer} to {steps[stream.last].layer}"
    return StreamView(
        title=comment_lines(f"{stream.first} to {stream.last}  {layers}, some rows at a time: input, output, call, pad_top, h_in, h_out."),
        comment=comment_lines(
            f"{stream.first} to {stream.last}  {layers}: some rows of each in turn, in {len(stream.jobs)} jobs; of the maps between "
            "them, only the rows still needed are kept.", indent=4,
        ),
        ident=f"kq_jobs_{stream.first}",
        count=len(stream.jobs),
        jobs=tuple(_job_row(job, order[job.step, job.moves]) for job in stream.jobs),
        calls=tuple(calls),
    )  # fmt: skip


def _job_row(job: Job, call: int) -> str:
    what = f"a job of step {job.step}"
    small = [within(value, 0, 255, what) for value in (call, job.pad_top, job.h_in, job.rows)]
    return f"{{{job.input}u, {job.output}u, {', '.join(f'{value}u' for value in small)}}},"


def _condition(call: int) -> str:
    return f"{'} else ' if call else ''}if (job->call == {call}u) {{"


def _layer_call(plan: Plan, view: StepView, call: int, bases: Mapping[str, str]) -> RowsCallView:
    node = plan.graph.nodes[view.number]
    result = f"{bases[node.output.name]} + job->output"
    arguments = ["&part", f"{bases[node.inputs[0]]} + job->input", result]
    if isinstance(node, IntConv2d):
        arguments.append(f"{ARENA} + {plan.scratch_offsets[view.number]}" if plan.steps[view.number].scratch_bytes else "NULL")
    return RowsCallView(
        condition=_condition(call),
        comment=comment_lines(view.comment_text, indent=12),
        step=view,
        part_function=part_function(view.c_type),
        call=flow(f"{view.function}(", arguments, ", ", ");", indent=12),
        result=result,
        row_bytes=node.output.w * node.output.c,
    )


def _move_call(plan: Plan, number: int, call: int) -> RowsCallView:
    output = plan.graph.nodes[number].output
    arguments = [f"{ARENA} + job->input", f"{ARENA} + job->output", f"job->h_out * {output.w * output.c}u"]
    return RowsCallView(
        condition=_condition(call),
        comment=comment_lines(f"Rows of {output.name}, {shape_text(output)}, to the front of their buffer.", indent=12),
        step=None,
        part_function="",
        call=flow(f"{MOVE_FUNCTION}(", arguments, ", ", ");", indent=12),
        result="",
        row_bytes=0,
    )
