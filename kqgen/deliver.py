"""From an integer graph to a folder of C: planned, refused where it does not fit, written as a whole, built and measured."""

from __future__ import annotations

import io
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch.export import ExportedProgram

from kqgen import oracle, prune_record, stack, store
from kqgen import report as reports
from kqgen.board import Board
from kqgen.capacity import check_capacity, needs, refusal
from kqgen.emit import Golden, GoldenVector, Meta, SourceTree, emit
from kqgen.errors import CapacityError
from kqgen.firmware import BOARD_FILE, FLOAT_SUFFIX, GRAPH_SUFFIX, board_text, is_builtin, json_bytes, model_api, planned_for, staged
from kqgen.fixed import crc32
from kqgen.fuse import fuse
from kqgen.image import Image, build_image
from kqgen.intgraph import IntGraph
from kqgen.plan import Plan, Planning
from kqgen.planner import make_plan
from kqgen.prune_record import Dead, without_dead
from kqgen.reorder import reorder
from kqgen.report import Measured, Report
from kqgen.samples import Samples
from kqgen.toolchain import Toolchain
from kqgen.verify import Tensors

GOLDEN_VECTORS = 1

Tell = Callable[[str, float], None]


@dataclass(frozen=True, slots=True, eq=False)
class Delivered:
    """What became of an integer graph.

    Attributes:
        plan: forms and places.
        tree: the generated text files.
        report: sizes and bits; measured figures are None when nothing was built.
    """

    plan: Plan
    tree: SourceTree
    report: Report


def deliver(
    integers: IntGraph, board: Board, golden: Tensors, options: str, program: ExportedProgram | None, out: Path | None,
    compiler: Toolchain | None, tell: Tell, write_report: bool, planning: Planning | None = None, dead: Dead | None = None,
) -> Delivered:  # fmt: skip
    """Removes what is dead, plans, generates and, when `out` is given, writes and builds.

    Args:
        golden: inputs of the self-test, per input (N, h, w, c) int8.
        options: what shaped the weights, for the header's comment.
        program: the float model, kept in the folder for comparison.
        compiler: None builds nothing.
        planning: what the user chose about forms and room.
        dead: what was removed from the network before.

    Raises:
        CapacityError: it does not fit the board. ToolchainError: the compiler failed. Nothing has been written then.
    """
    planning = planning or Planning()
    if not planning.keep_dead:
        integers, dead = without_dead(integers, dead)
    integers = reorder(fuse(integers))
    plan = make_plan(integers, board, planning)
    report = reports.build(plan, board, None, dead)
    check_capacity(plan, board, report)
    tell("generating C", 0.0)
    tree = emit(plan, board, _golden(integers, golden), Meta(reports.GENERATOR, options))
    if out is None:
        return Delivered(plan, tree, report)
    with staged(out) as stage:
        _write_sources(stage, tree, integers, {**planned_for(board, planning), **prune_record.record(dead)}, board, program)
        if compiler is not None:
            tell("building", 0.3)
            report, image = build_report(stage, plan, board, compiler, stage.parent / "build", dead)
            check_capacity(plan, board, report)
            shutil.copyfile(image.path, stage / f"{integers.name}.elf")
        if write_report:
            (stage / "report.json").write_bytes(json_bytes(reports.document(report)))
    return Delivered(plan, tree, report)


def write_for(folder: Path, graph: IntGraph, board: Board, planning: Planning) -> Plan:
    """Writes the C of a network for another board into a new folder, to be measured there; returns its plan."""
    plan = make_plan(graph, board, planning)
    tree = emit(plan, board, _golden(graph, drawn_inputs(graph)), Meta(reports.GENERATOR, ""))
    _write_tree(folder, tree)
    return plan


def drawn_inputs(graph: IntGraph, count: int = GOLDEN_VECTORS) -> Tensors:
    """Inputs for the self-test of a network without calibration images: all codes alike, drawn from a fixed seed."""
    rng = np.random.default_rng(0)
    return tuple(rng.integers(-128, 128, (count, each.h, each.w, each.c), dtype=np.int8) for each in graph.inputs)


def _golden(graph: IntGraph, inputs: Tensors) -> Golden:
    """Vectors for the self-test: `inputs` as the integer reference computes them."""
    tensors = oracle.run(graph, {tensor.name: array for tensor, array in zip(graph.inputs, inputs, strict=True)})
    return Golden(
        tuple(
            GoldenVector(
                inputs=tuple(array[number].tobytes() for array in inputs),
                outputs=tuple(tensors[name][number].tobytes() for name in graph.outputs),
                step_crcs=tuple(crc32(tensors[node.name][number].tobytes()) for node in graph.nodes),
            )
            for number in range(len(inputs[0]))
        )
    )


def quantised_inputs(graph: IntGraph, samples: Samples, limit: int | None = None) -> Tensors:
    """The samples as the C takes them: per input (N, h, w, c) int8."""
    return tuple(
        oracle.input_codes(tensor, array[:limit]) for tensor, array in zip(graph.inputs, samples.arrays, strict=True)
    )


def _write_sources(
    stage: Path, tree: SourceTree, graph: IntGraph, extra: Mapping[str, object], board: Board, program: ExportedProgram | None
) -> None:
    _write_tree(stage, tree)
    (stage / f"{graph.name}{GRAPH_SUFFIX}").write_bytes(store.to_bytes(graph, extra))
    if program is not None:
        archive = io.BytesIO()  # torch's own writer answers a full disk with an error that tells nothing
        torch.export.save(program, archive)
        (stage / f"{graph.name}{FLOAT_SUFFIX}").write_bytes(archive.getvalue())
    if not is_builtin(board):
        (stage / BOARD_FILE).write_text(board_text(board), encoding="utf-8", newline="\n")


def _write_tree(folder: Path, tree: SourceTree) -> None:
    for path, text in tree.files.items():
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text, encoding="utf-8", newline="\n")


def build_report(
    folder: Path, plan: Plan, board: Board, compiler: Toolchain, build_dir: Path, dead: Dead | None = None
) -> tuple[Report, Image]:
    """Builds the image of an output folder's sources and reports what it takes.

    Raises:
        CapacityError: the linker ran out of memory. ToolchainError: the compiler failed.
    """
    try:
        image = build_image(folder, model_api(plan.graph), board, compiler, build_dir)
    except CapacityError as error:
        planned = reports.build(plan, board, None)
        raise refusal(plan, board, planned, needs(planned, board), error.found) from error
    bound = stack.worst_stack_of(image.elf, image.frames, image.api.run_function)
    measured = Measured(image.toolchain.title, image.code_bytes, image.tables_bytes, bound.bytes)
    return reports.build(plan, board, measured, dead), image
