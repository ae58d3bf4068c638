"""Streams: which rows are made when, where they lie, and that the plan check refuses any other list of jobs."""

from __future__ import annotations

from dataclasses import replace

import nets
import pytest
import streamnets

from kqgen import memory, plan_check
from kqgen.blockcount import step_profiles
from kqgen.blocks import BlockCount, LayerProfile
from kqgen.board import load_board
from kqgen.errors import InternalError
from kqgen.plan import Job, Plan, Planning, Stream
from kqgen.planner import make_plan
from kqgen.report import fullest_step, live_tensors
from kqgen.stream_jobs import Window

ONES = {0: (1,) * 10}
TALL = {0: (6, 5, 4, 3, 3, 2, 2, 3, 1, 1)}
APART = {0: (4, 2, 3), 3: (2, 3, 2, 1), 8: (2, 2)}
MANY = [ONES, TALL, APART, {1: (3, 2)}, {2: (2, 2, 2, 2)}, {4: (5, 1, 2)}, {7: (2, 1)}, {0: (23,) * 3}]


def changed(plan: Plan, number: int, job: Job | None) -> Plan:
    """The plan with another job in place of one of its first stream, or without that one."""
    stream = plan.streams[0]
    jobs = (*stream.jobs[:number], *([] if job is None else [job]), *stream.jobs[number + 1 :])
    return replace(plan, streams=(replace(stream, jobs=jobs), *plan.streams[1:]))


WINDOWS = [Window(3, 1, 1, 9, 9), Window(3, 2, 1, 9, 5), Window(1, 2, 0, 9, 5), Window(5, 3, 0, 11, 3), Window(2, 4, 1, 9, 3)]
OTHER = "reads other bytes than|does not find|overwrite its input|reaches"


@pytest.mark.parametrize("window", WINDOWS)
def test_windows_count_rows_as_their_taps_do(window: Window) -> None:
    def read(row: int) -> list[int]:
        return [at for tap in range(window.kernel) if 0 <= (at := row * window.stride - window.pad_top + tap) < window.h_in]

    for row in range(window.h_out):
        assert window.first(row) == min(read(row))
        assert window.end(row + 1) == max(read(row)) + 1
    for rows in range(1, window.h_in + 1):
        ready = window.ready(rows)
        assert all(at < rows for row in range(ready) for at in read(row))
        assert ready == window.h_out or max(read(ready)) >= rows
        beyond = window.beyond(rows)
        assert all(at >= rows for row in range(beyond, window.h_out) for at in read(row))
        assert beyond == 0 or window.beyond(rows) * window.stride - window.pad_top >= rows or beyond == window.h_out


@pytest.mark.parametrize("streams", MANY, ids=str)
def test_plans_with_streams_pass_the_check(streams: dict[int, tuple[int, ...]]) -> None:
    graph = streamnets.rows()
    plan = streamnets.streamed(graph, streams)
    plan_check.check(plan)
    assert [stream.first for stream in plan.streams] == list(streams)
    for stream in plan.streams:
        for step, strip in zip(range(stream.first, stream.last + 1), streams[stream.first], strict=True):
            rows = [row for job in stream.jobs if job.step == step and not job.moves for row in range(job.row, job.row + job.rows)]
            assert rows == list(range(graph.nodes[step].output.h))
            assert stream.rows(step) <= strip
    streamed = {step for stream in plan.streams for step in range(stream.first, stream.last + 1)}
    assert sorted(set(plan.calls)) == list(range(len(graph.nodes)))
    assert all(plan.calls.count(step) == 1 for step in range(len(graph.nodes)) if step not in streamed)


def test_few_rows_lie_in_ram() -> None:
    """Row by row a 3x3 layer keeps three rows of its input. A block's sum lies over the rows it was added to, which are two rows ahead."""
    graph = streamnets.rows()
    pattern = streamnets.pattern(graph, 0, (1, 1, 1, 1, 1, 1))
    assert pattern.lines == {"stem": 5, "b1_conv1": 3, "b1_add": 5, "b2_conv1": 3}
    plan = streamnets.streamed(graph, {0: (1, 1, 1, 1, 1, 1)})
    assert plan.place("b1_add") == plan.place("stem")
    bare = tuple(replace(step, scratch_bytes=0) for step in plan.steps)
    assert memory.plan(graph, bare, (pattern,)).arena_bytes < memory.plan(graph, bare).arena_bytes * 2 // 3


def test_rows_of_the_input_make_room_for_the_last_map() -> None:
    """The input's bytes are taken by rows of another map, written after the rows of the input that lay there were read."""
    graph = streamnets.rows()
    plan = streamnets.streamed(graph, {0: (1, 1, 1, 1, 1, 1)})
    place, size_bytes = plan.place("x"), graph.inputs[0].size_bytes
    over = [tensor for tensor in plan.tensors if tensor.place.kind == "arena" and tensor.first <= 5]
    starts = [(tensor.place.offset, tensor.place.offset + tensor.size_bytes) for tensor in over]
    assert any(start < place.offset + size_bytes and place.offset < end for start, end in starts)


@pytest.mark.parametrize(
    ("find", "change", "message"),
    [
        (lambda job: not job.moves, lambda job: replace(job, input=job.input + 1), OTHER),
        (lambda job: not job.moves and job.row > 2, lambda job: replace(job, input=job.input - 27), OTHER),
        (lambda job: not job.moves, lambda job: replace(job, output=job.output + 1), OTHER),
        (lambda job: job.pad_top == 1, lambda job: replace(job, pad_top=0), "of its window for row"),
        (lambda job: job.h_in == 3, lambda job: replace(job, h_in=2), "of its window for row"),
        (lambda job: job.rows > 1, lambda job: replace(job, rows=job.rows - 1), rf"{OTHER}|of its window|rows were made"),
        (lambda job: not job.moves and job.row, lambda job: replace(job, row=job.row - 1), "rows were made"),
        (lambda job: not job.moves, lambda job: None, rf"{OTHER}|rows were made|make .* rows"),
        (lambda job: job.moves, lambda job: None, OTHER),
        (lambda job: job.moves, lambda job: replace(job, rows=job.rows - 1), OTHER),
        (lambda job: job.moves, lambda job: replace(job, output=job.output + 54), rf"{OTHER}|lower place"),
        (lambda job: job.moves, lambda job: replace(job, output=job.input), "lower place in the arena"),
        (lambda job: not job.moves, lambda job: replace(job, step=10), "has a job of step 10"),
        (lambda job: not job.moves, lambda job: replace(job, input=1 << 20), "reaches"),
        (lambda job: not job.moves, lambda job: replace(job, output=-4), "reaches"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("streams", [ONES, TALL], ids=["ones", "tall"])
def test_the_check_sees_a_job_that_is_wrong(streams: object, find: object, change: object, message: str) -> None:
    """Wherever in the stream the first, a middle and the last such job are changed."""
    assert callable(find)
    assert callable(change)
    assert isinstance(streams, dict)
    plan = streamnets.streamed(streamnets.rows(), streams)
    numbers = [number for number, job in enumerate(plan.streams[0].jobs) if find(job)]
    for number in {numbers[0], numbers[len(numbers) // 2], numbers[-1]}:
        with pytest.raises(InternalError, match=message):
            plan_check.check(changed(plan, number, change(plan.streams[0].jobs[number])))


def test_the_check_sees_jobs_in_another_order() -> None:
    plan = streamnets.streamed(streamnets.rows(), TALL)
    stream = plan.streams[0]
    for number in range(len(stream.jobs) - 1):
        a, b = stream.jobs[number : number + 2]
        reads = plan.graph.nodes[b.step].inputs
        if not a.moves and not b.moves and plan.graph.nodes[a.step].name in reads:
            swapped = replace(stream, jobs=(*stream.jobs[:number], b, a, *stream.jobs[number + 2 :]))
            with pytest.raises(InternalError, match=OTHER):
                plan_check.check(replace(plan, streams=(swapped,)))


def test_the_check_sees_what_lies_on_rows_still_needed() -> None:
    plan = streamnets.streamed(streamnets.rows(), TALL)
    line = plan.place("b1_conv1")
    for name in ("stem", "b2_conv1", "x"):
        tensors = tuple(replace(t, place=replace(t.place, offset=line.offset)) if t.name == name else t for t in plan.tensors)
        with pytest.raises(InternalError, match=rf"{OTHER}|shares"):
            plan_check.check(replace(plan, tensors=tensors, arena_bytes=plan.arena_bytes + 4096))
    offsets = tuple(line.offset if step == 2 else offset for step, offset in enumerate(plan.scratch_offsets))
    with pytest.raises(InternalError, match=rf"{OTHER}|its own scratch|unaligned"):
        plan_check.check(replace(plan, scratch_offsets=offsets, arena_bytes=plan.arena_bytes + 4096))


def test_a_layer_that_has_no_rows_is_no_part_of_a_stream() -> None:
    graph = streamnets.rows()
    assert len(graph.nodes) == streamnets.LAST + 2
    with pytest.raises(AssertionError):
        streamnets.pattern(graph, streamnets.LAST, (1, 1))
    plan = streamnets.streamed(nets.residual(), {})
    stream = Stream(3, 3, (Job(3, False, 0, 11, 0, 0, 0, 11),))
    with pytest.raises(InternalError, match="cannot run some rows at a time"):
        plan_check.check(replace(plan, streams=(stream,)))


def test_asked_for_little_ram_the_planner_streams() -> None:
    graph = streamnets.rows()
    board = load_board("nucleo-g0b1re")
    plain, small = make_plan(graph, board), make_plan(graph, board, Planning("ram"))
    assert plain.streams == ()
    assert small.streams != ()
    assert small.arena_bytes < plain.arena_bytes * 3 // 4
    number = small.streams[0].first
    assert small.form_text(number).endswith(f"rows of {small.streams[0].rows(number)}")
    assert f"{small.streams[0].rows(number)} rows at a time" in small.steps[number].form_reason
    again = make_plan(graph, board, Planning("ram"))
    assert (small.streams, small.tensors, small.steps) == (again.streams, again.tensors, again.steps)


def test_the_report_counts_shared_bytes_once() -> None:
    """Where rows of one map take the place of another's, the fullest moment is not the sum of both."""
    plan = streamnets.streamed(streamnets.rows(), {0: (1, 1, 1, 1, 1, 1)})
    number = fullest_step(plan)
    held = {byte for tensor in live_tensors(plan, number) for byte in range(tensor.place.offset, tensor.place.offset + tensor.size_bytes)}
    start = plan.scratch_offsets[number]
    held |= set(range(start, start + plan.steps[number].scratch_bytes))
    assert len(held) <= plan.arena_bytes


def test_profiles_of_pieces_add_up() -> None:
    a, b = BlockCount(16, 4, 3, 1), BlockCount(32, 2, 5, 5)
    calls = [LayerProfile(10, (a,), 2), LayerProfile(7, (b,), 1), LayerProfile(30, (a, b), 4)]
    assert step_profiles(calls, (0, 1, 0)) == (LayerProfile(40, (BlockCount(16, 4, 6, 2), b), 6), calls[1])
    assert step_profiles(calls, (0, 1, 2)) == tuple(calls)
    with pytest.raises(InternalError, match="counted 3 calls where the plan has 2"):
        step_profiles(calls, (0, 1))
