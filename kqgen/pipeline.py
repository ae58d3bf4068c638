"""The pipeline, top to bottom: what happens between a PyTorch module and a folder of proven C.

    frontend   PyTorch            -> float graph
    simplify   float graph        -> fewer nodes, the same meaning
    calibrate  images             -> scale and zero point of every tensor
    post_training kernels         -> indices, codebooks of 6-bit integers
    lower      reals              -> integers, with proofs
    schedule, memory              -> forms, arena
    emit       plan               -> C
    build      C                  -> image, measured sizes
    report                        -> report.json
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch.export import ExportedProgram

from kqgen import oracle, prune_record, store
from kqgen.allocate import Allocation, settle
from kqgen.bench import BenchReport, bench
from kqgen.board import CORES, Board, bench_board, load_board, load_core
from kqgen.calibrate import Ranges, calibrate
from kqgen.compare import FloatAgreement, float_agreement
from kqgen.deliver import GOLDEN_VECTORS, deliver, drawn_inputs, quantised_inputs, write_for
from kqgen.emit import SourceTree
from kqgen.errors import InputError
from kqgen.firmware import GRAPH_SUFFIXES, Firmware, check_replaceable
from kqgen.floatmodel import as_maps, float_outputs
from kqgen.frontend import export_module, import_exported
from kqgen.frontend_names import c_identifier
from kqgen.goal import Goal, goal_or_options
from kqgen.image import build_image
from kqgen.intgraph import IntGraph
from kqgen.ir import Graph, Input
from kqgen.kq_layers import with_runs
from kqgen.loading import LoadedModel, load_model, with_examples
from kqgen.lower import lower
from kqgen.options import Codebook, Compression, Weights
from kqgen.plan import Form, Optimise, Plan, Planning
from kqgen.planned import spelled
from kqgen.post_training import quantise
from kqgen.prune_record import Dead, before_compression
from kqgen.pt2 import load_pt2
from kqgen.report import Report
from kqgen.samples import DEFAULT_LIMIT, Samples, misgivings, npz_shapes, read_samples
from kqgen.simplify import simplify
from kqgen.targets import ToolchainName, join_inputs, make_targets
from kqgen.tflite_integers import integers_of, is_int8
from kqgen.tflite_read import read_tflite
from kqgen.toolchain import find_toolchain
from kqgen.verify import Target, TargetResult, Tensors, VerifyReport, reference_outputs, summarise, verify_target
from kqgen.views_text import check_model_name

TFLITE_SUFFIX = ".tflite"
RECONSTRUCTION_IMAGES = 2048
"""Calibration images taken when all layers are refined together, at most; few would be learned by heart."""
FLOAT_INPUTS = 256
"""Inputs on which integers are compared with float PyTorch, at most: a ratio of energies settles long before."""

Tell = Callable[[str, float], None]


def _silent(label: str, fraction: float) -> None:
    del label, fraction


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Compiled:
    """Everything a compilation made.

    Attributes:
        program: the float model, None for a network that came as integers.
        plan: integer graph, forms and places.
        board: what it was compiled for.
        tree: the generated text files.
        report: sizes and bits; measured figures are None when nothing was built.
        warnings: sentences for the user.
        folder: where it was written, None when it was not.
        allocation: what a target size came to, None when there was none.
    """

    program: ExportedProgram | None
    plan: Plan
    board: Board
    tree: SourceTree
    report: Report
    warnings: tuple[str, ...]
    folder: Path | None
    allocation: Allocation | None = None

    def __repr__(self) -> str:
        where = "not written" if self.folder is None else f"in {self.folder}"
        return f"<kqgen.Compiled {self.report.model} for {self.board.name}, {self.report.flash_bytes.tables} bytes of tables, {where}>"


def compile(  # noqa: A001 - what users call it
    module: torch.nn.Module,
    example_inputs: Sequence[torch.Tensor],
    *,
    calibration: object,
    board: str | Path | Board,
    codebook: Codebook | None = None,
    weights: Weights = "kq",
    keep: Sequence[tuple[str, int]] = (),
    widths: Sequence[tuple[str, int]] = (),
    groups: Sequence[Sequence[str]] = (),
    runs: Sequence[tuple[str, int]] = (),
    target_bits: float | None = None,
    target_bytes: int | None = None,
    seed: int = 0,
    reconstruct: int = 0,
    optimise: Optimise = "balanced",
    forms: Sequence[tuple[str, Form]] = (),
    keep_dead: bool = False,
    name: str = "model",
    out: str | Path | None = None,
    build: bool = True,
    toolchain: ToolchainName = None,
    tell: Tell = _silent,
) -> Compiled:
    """Compiles a PyTorch module to C for a board.

    Args:
        module: any torch.nn.Module that torch.export follows; it is not changed.
        example_inputs: one tensor an input, (N, C, H, W) or (N, n); values do not matter.
        calibration: path of an .npz, an array, or an iterable of batches, as the module takes them.
        board: name, path of a board file, or a Board.
        codebook, weights, keep, widths, groups, runs, seed, reconstruct: see `Compression`.
        target_bits, target_bytes: see `Target`; either chooses codewords, widths, groups and, without `codebook`, the scope.
        optimise, forms, keep_dead: see `Planning`.
        name: C identifier of the network.
        out: folder to write; None keeps the result in memory and builds nothing.
        build: False writes sources only.
        toolchain: "gcc", "zig", or None for the first found.
        tell: progress, called with a label and the fraction done.

    Raises:
        KqgenError: see kqgen.errors; nothing has been written then.
    """
    target = board if isinstance(board, Board) else load_board(board)
    wish = goal_or_options(
        weights, codebook, keep=keep, widths=widths, groups=groups, runs=runs, seed=seed, reconstruct=reconstruct,
        target_bits=target_bits, target_bytes=target_bytes,
    )
    tell("reading the model", 0.0)
    program = export_module(module, example_inputs)
    folder, planning = Path(out) if out is not None else None, Planning(optimise, tuple(forms), keep_dead)
    return _compile(program, name, calibration, target, wish, folder, build, toolchain, tell, planning=planning)


def compile_file(
    model: str, *, state: Path | None, calibration: Path, board: Board, wish: Goal | Compression, name: str | None, out: Path,
    build: bool, toolchain: ToolchainName, tell: Tell = _silent, write_report: bool = True, planning: Planning | None = None,
) -> Compiled:  # fmt: skip
    """Compiles a .pt2 file or package.module:factory; see `compile`."""
    tell("reading the model", 0.0)
    if name is not None:
        _check_name(name)
    loaded = load_model(model, state)
    program = loaded.program or _export(loaded, calibration)
    name = name or c_identifier(loaded.name)
    return _compile(program, name, calibration, board, wish, out, build, toolchain, tell, write_report, planning)


def _check_name(name: str) -> None:
    """Refuses a name that C would not take as it is: a file's stem is made an identifier, the user's own word is not changed."""
    identifier = c_identifier(name)
    if name != identifier:
        raise InputError(
            f"the network cannot be called {name!r} in C", found=name, wanted="a C identifier that is no keyword", do=f"--name {identifier}"
        )
    check_model_name(name)


def _export(loaded: LoadedModel, calibration: Path) -> ExportedProgram:
    """A factory's module as a program; an example shape that it did not give is that of the calibration images."""
    shapes = [] if loaded.example_inputs else [shape for _, shape in npz_shapes(calibration)]
    complete = with_examples(loaded, shapes)
    assert complete.module is not None
    return export_module(complete.module, complete.example_inputs)


def _compile(
    program: ExportedProgram, name: str, calibration: object, board: Board, wish: Goal | Compression, out: Path | None, build: bool,
    toolchain: ToolchainName, tell: Tell, write_report: bool = True, planning: Planning | None = None,
) -> Compiled:  # fmt: skip
    _check_name(name)
    if out is not None:
        check_replaceable(out)
    compiler = find_toolchain(toolchain) if out is not None and build and not board.core.is_host else None
    graph = simplify(import_exported(program, name))
    samples = read_samples(calibration, graph, limit=RECONSTRUCTION_IMAGES if wish.reconstruct else DEFAULT_LIMIT)
    ranges = calibrate(graph, samples, tell)
    allocation, dead = None, None
    if (isinstance(wish, Goal) or wish.weights == "kq") and not (planning or Planning()).keep_dead:
        graph, dead = before_compression(graph, ranges)
    if isinstance(wish, Goal):
        allocation = settle(graph, wish, samples, ranges, tell)
        wish = replace(allocation.compression, reconstruct=wish.reconstruct)
    integers, warnings = compress(graph, samples, wish, tell, ranges)
    golden = quantised_inputs(integers, samples, GOLDEN_VECTORS)
    made = deliver(integers, board, golden, spelled(wish), program, out, compiler, tell, write_report, planning, dead)
    warnings = (*misgivings(samples), *warnings)
    return Compiled(program, made.plan, board, made.tree, made.report, warnings, out, allocation)


def holds_integers(model: str, wish: Goal | Compression) -> bool:
    """Whether `model` is compiled by `compile_integers`: a file of integers, or an int8 .tflite whose weights shall stay int8."""
    if model.endswith(TFLITE_SUFFIX):
        return isinstance(wish, Compression) and wish.weights == "int8" and is_int8(read_tflite(Path(model)))
    return model.endswith(GRAPH_SUFFIXES)


def compile_integers(
    path: Path, *, board: Board, calibration: Path | None = None, name: str | None, out: Path, build: bool, toolchain: ToolchainName,
    tell: Tell = _silent, write_report: bool = True, planning: Planning | None = None,
) -> Compiled:  # fmt: skip
    """Compiles a file of integers: what training saved, what an earlier compilation kept, or an int8 .tflite as it is.

    Args:
        calibration: inputs for the self-test, as the float module took them; without them codes are drawn.

    Raises:
        KqgenError: see `compile`.
    """
    tell("reading the network", 0.0)
    if name is not None:
        _check_name(name)
    check_replaceable(out)
    graph, dead = _integers(path)
    graph = replace(graph, name=name or graph.name)
    compiler = find_toolchain(toolchain) if build and not board.core.is_host else None
    golden = drawn_inputs(graph)
    if calibration is not None:
        golden = quantised_inputs(graph, read_samples(calibration, _input_graph(graph)), GOLDEN_VECTORS)
    made = deliver(graph, board, golden, "trained", None, out, compiler, tell, write_report, planning, dead)
    return Compiled(None, made.plan, board, made.tree, made.report, (), out)


def _integers(path: Path) -> tuple[IntGraph, Dead | None]:
    """The integer graph of a file, and what was removed from it when it was made."""
    if path.suffix == TFLITE_SUFFIX:
        return integers_of(read_tflite(path), c_identifier(path.stem)), None
    graph, extra = store.read(path)
    return graph, prune_record.read(extra, path.name)


def compress(
    graph: Graph, samples: Samples, compression: Compression, tell: Tell = _silent, ranges: Ranges | None = None
) -> tuple[IntGraph, tuple[str, ...]]:
    """The integer graph of a simplified float graph, and warnings for the user; `ranges` where they are known already."""
    ranges = ranges or calibrate(graph, samples, tell)
    graph = with_runs(graph, compression)
    quantised = quantise(graph, compression, samples, ranges, tell)
    tell("lowering to integers", 0.0)
    return lower(graph, ranges, quantised, compression.weights), quantised.warnings


def verify_firmware(
    firmware: Firmware, inputs: object, *, targets: Sequence[str] | None = None, limit: int | None = None,
    toolchain: ToolchainName = None, tell: Tell = _silent,
) -> VerifyReport:  # fmt: skip
    """Compares integer reference, host C and emulated board on `inputs`, and integers with float PyTorch.

    Args:
        inputs: path of an .npz, an array, or an iterable of batches, as the float module takes them.
        targets: of `host`, `unicorn`, `qemu`; default the host and the board's emulator.
    """
    graph = firmware.graph
    samples = read_samples(inputs, _input_graph(graph), limit=limit)
    codes = quantised_inputs(graph, samples)
    expected = reference_outputs(graph, codes, lambda fraction: tell("integer reference", fraction))
    results = []
    with make_targets(firmware.folder, graph, firmware.api, firmware.board, list(targets) if targets else None, toolchain) as made:
        for target in made:
            results.append(_verify(graph, target, codes, expected, tell))
    tell("float PyTorch", 0.0)
    return summarise(samples.count, expected, results, _float_agreement(firmware, samples, expected))


def _verify(graph: IntGraph, target: Target, codes: Tensors, expected: Tensors, tell: Tell) -> TargetResult:
    """One target, with its progress under its own name."""
    tell(f"running on {target.name}", 0.0)
    return verify_target(graph, target, codes, expected, lambda fraction: tell(f"running on {target.name}", fraction))


def _input_graph(graph: IntGraph) -> Graph:
    """The inputs of an integer graph as a float graph, which is what samples are checked against."""
    return Graph(graph.name, tuple(Input(t.name, "", (), (t.c, t.h, t.w)) for t in graph.inputs), ())


def _float_agreement(firmware: Firmware, samples: Samples, outputs: Tensors) -> FloatAgreement | None:
    if firmware.float_model is None:
        return None
    count = min(samples.count, FLOAT_INPUTS)
    expected = as_maps(firmware.graph, float_outputs(load_pt2(firmware.float_model), samples, count))
    tensors = [firmware.graph.tensor(name) for name in firmware.graph.outputs]
    found = [
        oracle.dequantise(tensor, codes[:count]).transpose(0, 3, 1, 2).reshape(count, -1)
        for tensor, codes in zip(tensors, outputs, strict=True)
    ]
    return float_agreement([values.reshape(count, -1) for values in expected], found)


def bench_firmware(
    firmware: Firmware, *, core: str | None = None, toolchain: ToolchainName = None, tell: Tell = _silent
) -> BenchReport:
    """Counts one run on the board's core, or on another core that the stored graph is rebuilt for.

    Raises:
        InputError: an unknown core, or none where the folder was compiled for this computer.
        ToolchainError: no compiler or emulator; for the M55 (QEMU) no compiler for this computer either.
        CapacityError: the network does not fit the M55's machine (512 KB for code and tables, 512 KB of RAM).
    """
    board = firmware.board if core in (None, firmware.board.core.name) else bench_board(load_core(str(core)))
    if board.core.unicorn_model is None and board.qemu_machine is None:
        # An M55 on a board that QEMU has not: counted on the machine that it has.
        board = bench_board(board.core)
    if board.is_host:
        counted = [each.name for each in CORES if not each.is_host]
        raise InputError(
            f"instructions of the {board.core.title} cannot be counted",
            found=f"--core {core}" if core else f"a folder compiled for {board.name}",
            wanted=f"one of {', '.join(counted)}",
            do=f"kqgen bench {firmware.folder} --core m4",
        )
    own = board is firmware.board
    zero = tuple(np.full((1, t.h, t.w, t.c), t.zero_point, np.int8) for t in firmware.graph.inputs)
    with tempfile.TemporaryDirectory(prefix="kqgen-") as scratch:
        tell("building", 0.2)
        folder, plan = firmware.folder, firmware.plan
        if board.core != firmware.board.core:
            folder = Path(scratch) / "sources"
            plan = write_for(folder, firmware.graph, board, firmware.planning)
        image = build_image(folder, firmware.api, board, find_toolchain(toolchain), Path(scratch) / "build")
        tell("counting", 0.5)
        return bench(plan, image, join_inputs(zero)[0], board.clock_hz if own else None)
