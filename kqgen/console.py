"""What people see: tables, progress and errors, drawn with rich. Figures are decided elsewhere; this module only lays them out."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console, ConsoleRenderable
from rich.markup import escape
from rich.padding import Padding
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from kqgen.board import Board
from kqgen.errors import KqgenError
from kqgen.peer import NAME as PEER
from kqgen.report import DeadReport, LayerReport, Report, grouped

if TYPE_CHECKING:
    from kqgen.bench import BenchReport
    from kqgen.fidelity import Waterfall
    from kqgen.frontend_table import OperatorRow
    from kqgen.verify import TargetResult, VerifyReport

Tell = Callable[[str, float], None]
"""Progress: what is being done, and the share of it that is done, 0..1."""

WIDE_COLUMNS = 118
"""Width when standard output is no terminal: tables keep their columns in logs and files."""

SOURCE_COLUMNS = 100
"""Terminals narrower than this are not shown where a board's figures are from."""


def make_console(*, stderr: bool = False) -> Console:
    """A console for standard output or standard error; colours only on a terminal."""
    stream = sys.stderr if stderr else sys.stdout
    return Console(file=stream, width=None if stream.isatty() else WIDE_COLUMNS, highlight=False, soft_wrap=False)


def bits(value: float | None) -> str:
    """Bits a weight with two decimals; a dash for None."""
    return "-" if value is None else f"{value:.2f}"


def kilobytes(size_bytes: int | None) -> str:
    """Bytes as KB of 1024 with one decimal; a dash for None."""
    return "-" if size_bytes is None else f"{size_bytes / 1024:.1f}"


@contextmanager
def progress_bar(console: Console, title: str) -> Iterator[Tell]:
    """A bar that follows the label and fraction it is told; it vanishes when done, and is not drawn where nobody looks."""
    columns = (TextColumn("{task.description:<34}"), BarColumn(), TextColumn("{task.percentage:>3.0f} %"), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        state: list[tuple[str, TaskID]] = [(title, bar.add_task(title, total=1.0))]

        def tell(label: str, fraction: float) -> None:
            current, task = state[0]
            if label != current:
                bar.update(task, completed=1.0, visible=False)
                state[0] = (label, bar.add_task(escape(label), total=1.0))
            bar.update(state[0][1], completed=min(1.0, max(0.0, fraction)))

        yield tell


def _say(console: Console, text: Text | str) -> None:
    """One line, left to the terminal to wrap: logs and pipes get it whole."""
    console.print(text if isinstance(text, Text) else Text(text), soft_wrap=True)


def show_error(console: Console, error: KqgenError, *, nothing_written: bool) -> None:
    """An error: headline, found, wanted, do; and that nothing was written, where that is so."""
    if console.is_terminal:
        _say(console, Text("kqgen: ", style="bold red").append(error.what, style="default"))
        _show_grid(console, [(label, text) for label, text in (("found", error.found), ("wanted", error.wanted), ("do", error.do)) if text])
    else:
        _say(console, f"kqgen: {error.render()}")
    if nothing_written:
        _say(console, "  nothing was written")


def _show_grid(console: Console, rows: Sequence[tuple[str, str]]) -> None:
    """`label  text` lines, indented; what is wider than the terminal goes on under the text."""
    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column(style="bold", min_width=7, no_wrap=True)
    grid.add_column(overflow="fold")
    for label, text in rows:
        grid.add_row(label, Text(text))
    console.print(Padding(grid, (0, 0, 0, 2)))


def show_warnings(console: Console, warnings: Sequence[str]) -> None:
    """Warnings, a line each."""
    for warning in warnings:
        _say(console, Text("warning: ", style="bold yellow").append(warning, style="default"))


def _table(*columns: str, left: Sequence[str] = (), fold: Sequence[str] = ()) -> Table:
    """A table without lines; columns in `left` are words, those in `fold` may break."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for column in columns:
        table.add_column(column, justify="left" if column in left else "right", no_wrap=column not in fold, overflow="fold")
    return table


def _rendered(console: Console, renderable: ConsoleRenderable, width: int) -> list[Text]:
    """The lines a renderable takes, without the blanks at their ends."""
    with console.capture() as captured:
        console.print(renderable, width=width, crop=False)
    lines = list(Text.from_ansi(captured.get()).split("\n"))
    for line in lines:
        line.rstrip()
    return lines


def _show_table(console: Console, table: Table, *, totals: int = 0, width: int | None = None) -> None:
    """A table, indented, with a line above its last `totals` rows; as wide as its content unless `width` is given."""
    lines = _rendered(console, table, width or 4 * WIDE_COLUMNS)
    rule = Text("-" * max(line.cell_len for line in lines))
    for number, line in enumerate(lines):
        if totals and number == len(lines) - totals:
            _say(console, Text("  ").append_text(rule))
        _say(console, Text("  ").append_text(line))


def show_report(console: Console, report: Report, board: Board) -> None:
    """The table of a compiled network: layers, then flash, RAM and bits in all."""
    _say(console, Text(report.model, style="bold").append(f"  ->  {board.name}   {board_line(board)}", style="default"))
    _say(console, "")
    unit, divisor, digits = ("M", 1e6, 2) if report.macs >= 1e6 else ("k", 1e3, 1)
    words = ("layer", "op", "out", "weights", "form")
    table = _table("layer", "op", "out", "weights", "bits/w", "form", "table B", f"{unit} MAC", left=words)
    for layer in report.layers:
        table.add_row(
            layer.name, layer.title, layer.output, layer.weights, _bits_of(layer), "" if layer.form == "plain" else layer.form,
            grouped(layer.flash_bytes), f"{layer.macs / divisor:.{digits}f}" if layer.macs else "",
        )  # fmt: skip
    for codebook in report.codebooks:
        count = f"{'2 x ' if codebook.stages == 2 else ''}{codebook.codewords // codebook.stages} codewords"
        table.add_row(codebook.name, count, "", "int6", "", "", grouped(codebook.flash_bytes), "")
    widths = report.bits_per_weight
    total = ("total", "", "", "", bits(widths.conv), "over conv", grouped(report.flash_bytes.tables), f"{report.macs / divisor:.{digits}f}")
    table.add_row(*total)
    _show_table(console, table, totals=1)
    _say(console, "")
    say_labelled(console, _summary(report, board))


def _bits_of(layer: LayerReport) -> str:
    return "" if layer.bits_per_weight is None else bits(layer.bits_per_weight)


def _summary(report: Report, board: Board) -> Iterator[tuple[str, str]]:
    flash, ram, widths = report.flash_bytes, report.ram_bytes, report.bits_per_weight
    of_flash = "" if board.core.is_host else f" of {grouped(board.flash.size_bytes // 1024)}"
    of_ram = "" if board.core.is_host else f" of {grouped(board.ram.size_bytes // 1024)}"
    int8 = f"   (int8 weights: tables {kilobytes(report.int8_tables_bytes)})" if report.weights == "kq" else ""
    built = flash.total is not None
    parts = f"tables {kilobytes(flash.tables)}" + (f"  code {kilobytes(flash.code)}" if built else "")
    yield "flash", (f"{kilobytes(flash.total)} KB{of_flash}   {parts}" if built else f"{parts} KB{of_flash}, code not built") + int8
    if report.dead is not None and (report.dead.channels or report.dead.layers):
        yield "dead", _dead(report.dead, report)
    buffers = f"arena {kilobytes(ram.arena)} at {report.fullest}, input included  output {kilobytes(ram.output)}"
    known = ram.total if ram.total is not None else ram.arena + ram.output
    stack = f"  stack {kilobytes(ram.stack)}" if built else "  stack not built"
    yield "RAM", f"{kilobytes(known)} KB{of_ram}   {buffers}{stack}"
    indexed = "" if widths.kq is None else f"{bits(widths.kq)} indexed layers, "
    yield "bits/w", f"{indexed}{bits(widths.conv)} convolutions, {bits(widths.all)} all layers; codebooks and padding counted"
    if report.toolchain:
        yield "built", f"by {report.toolchain}"


def _dead(dead: DeadReport, report: Report) -> str:
    """What was removed, and what the tables are of those of int8 with and without it."""
    parts = f"{dead.channels} channels, {grouped(dead.weights)} of {grouped(dead.of_weights)} weights removed"
    before, after = dead.padded_int8_tables_bytes, dead.int8_tables_bytes
    sizes = f"int8 tables {kilobytes(before)} with them, {kilobytes(after)} without"
    of_both = f"; these are {report.flash_bytes.tables / before:.0%} and {report.flash_bytes.tables / after:.0%}"
    return f"{parts}   {sizes}{of_both if report.weights == 'kq' else ''}"


def show_written(console: Console, path: Path) -> None:
    """Where a file lies."""
    say_labelled(console, [("written", f"to {path}")])


def show_next(console: Console, folder: Path, inputs: Path | None, board: Board) -> None:
    """Where the result lies, and the commands that come next."""
    where, images = shlex.quote(str(folder)), shlex.quote(str(inputs or "images.npz"))
    rows = [("exact", f"not compared yet: kqgen verify {where} --inputs {images}")]
    if not board.core.is_host:
        rows.append(("speed", f"not counted yet:  kqgen bench {where}"))
    say_labelled(console, [*rows, ("written", f"to {folder}")])


def say_labelled(console: Console, rows: Iterable[tuple[str, str]]) -> None:
    """One line a row, never broken: a label and what it says."""
    for label, text in rows:
        _say(console, Text(f"  {label:<9}", style="bold").append(text, style="default"))


def board_line(board: Board) -> str:
    """Core, clock and memories of a board in one line."""
    if board.core.is_host:
        return "this computer"
    return (
        f"{board.core.title}, {board.clock_hz / 1e6:g} MHz, {grouped(board.flash.size_bytes // 1024)} KB flash, "
        f"{grouped(board.ram.size_bytes // 1024)} KB RAM"
    )


def show_verify(console: Console, model: str, report: VerifyReport, board: Board) -> None:
    """The verdict of a verification, target by target."""
    verdict = {True: "EXACT", False: "NOT EXACT", None: "NOT PROVEN"}[report.exact]
    style = {True: "bold green", False: "bold red", None: "bold yellow"}[report.exact]
    _say(console, Text(verdict, style=style).append(f"   {model} on {board.name}", style="default"))
    for target in report.targets:
        say_labelled(console, [(target.name, _verdict_of(target, report.inputs))])
        if target.exact is None:
            _say(console, "\n".join(f"{'':11}{line}" for line in target.detail.splitlines()))
        difference = target.first_difference
        if difference is not None:
            where = ", ".join(f"{axis} {value}" for axis, value in zip("yxc", difference.index, strict=True))
            _say(console, f"{'':11}wanted {difference.expected}, got {difference.found} at [{where}]; every layer before it agrees")
    if report.float is None:
        say_labelled(console, [("float", "not compared: the folder holds no float model")])
    else:
        ratio = "SQNR not defined (no noise or no signal)" if report.float.sqnr_db is None else f"SQNR {report.float.sqnr_db:.1f} dB"
        share = report.float.argmax_agreement
        same = "" if share is None else f", largest output the same on {100 * share:.1f} % of inputs"
        say_labelled(console, [("float", f"{ratio}{same}")])


def _verdict_of(target: TargetResult, inputs: int) -> str:
    if target.exact is None:
        return "could not run"
    difference = target.first_difference
    if difference is not None:
        return f"first difference at layer {difference.layer}, input {difference.input}   ({target.detail})"
    counted = f"{grouped(inputs)} of {grouped(inputs)} inputs, every layer of {grouped(target.layer_inputs)}"
    return f"exact on {counted}   ({target.detail})"


def show_bench(console: Console, model: str, report: BenchReport) -> None:
    """Exact instruction counts and modelled cycles, per layer and in all."""
    _say(console, Text(model, style="bold").append(f"  on {report.core_title}   {report.toolchain}", style="default"))
    _say(console, "")
    columns = ("MACs", "instructions", "cycles", "MAC/cycle", "expected", "scratch", "CMSIS-NN", "ratio")
    table = _table("layer", "form", *columns, left=("layer", "form"))
    for layer in report.layers:
        cycles, peer = layer.cycles_modelled, layer.cmsis_nn_cycles
        table.add_row(
            layer.name, layer.form, _counted(layer.macs), grouped(layer.instructions), grouped(cycles), _rate(layer.macs, cycles),
            _expected(layer.cycles_expected, cycles), _counted(layer.scratch_bytes), _counted(peer or 0), _share(cycles, peer),
        )  # fmt: skip
    macs, total = sum(layer.macs for layer in report.layers), report.cycles_modelled
    peers = [layer.cmsis_nn_cycles for layer in report.layers]
    peer = sum(each for each in peers if each is not None) if all(each is not None for each in peers) else None
    table.add_row(
        "total", "", grouped(macs), grouped(report.instructions), grouped(total), _rate(macs, total), "", "",
        _counted(peer or 0), _share(total, peer),
    )  # fmt: skip
    _show_table(console, table, totals=1)
    _say(console, "")
    modelled, waiting = (
        f"{_milliseconds(cycles, report.clock_hz)}{grouped(cycles)} cycles"
        for cycles in (report.cycles_modelled, report.cycles_with_wait_states)
    )
    rows = [("time", f"{modelled} with zero wait states")]
    if report.clock_hz is not None:
        rows.append(("", f"{waiting} with the wait states of the board's flash and no cache"))
    rows.append(("stack", f"{grouped(report.stack_bytes)} bytes"))
    say_labelled(console, [*rows, ("note", "instructions are counted; cycles are a model of the core (docs/DESIGN.md, decision 27)"),
                           ("", f"{PEER}: modelled cycles of its kernels for the same layers in int8, by the same model")])  # fmt: skip


def _counted(number: int) -> str:
    return grouped(number) if number else ""


def _rate(macs: int, cycles: int) -> str:
    return f"{macs / cycles:.2f}" if macs else ""


def _expected(expected: int | None, cycles: int) -> str:
    """How far the plan's expectation was from what was counted."""
    return "" if expected is None else f"{100 * (expected / cycles - 1):+.0f} %"


def _share(cycles: int, peer: int | None) -> str:
    return "" if not peer else f"{100 * cycles / peer:.0f} %"


def _milliseconds(cycles: int, clock_hz: int | None) -> str:
    if not clock_hz:
        return ""
    milliseconds = f"{1e3 * cycles / clock_hz:,.1f}".replace(",", " ")
    return f"{milliseconds} ms at {clock_hz / 1e6:g} MHz, "


def show_fidelity(console: Console, report: Waterfall) -> None:
    """Where accuracy goes: step by step, layer by layer, and the largest share of each."""
    widths = report.bits_per_weight
    _say(console, Text(report.model, style="bold").append(f"  on {grouped(report.inputs)} inputs", style="default"))
    _say(console, "")
    labelled = report.steps[0].accuracy is not None
    columns = (*(("accuracy %", "lost") if labelled else ()), "same class %", "SQNR dB", "weights B")
    table, before = _table("after", *columns, left=("after",)), report.steps[0].accuracy
    for step in report.steps:
        judged = (_percent(step.accuracy), _points(before, step.accuracy)) if labelled else ()
        table.add_row(step.title, *judged, _percent(step.same_class), _tenths(step.sqnr_db), grouped(step.weights_bytes))
        before = step.accuracy
    _show_table(console, table)
    _say(console, "")
    judged_columns = ("accuracy %",) if labelled else ("same class %",)
    columns = ("bits/w", "weights B", "weights dB", "alone dB", "all dB", "net dB", *judged_columns, "noise %")
    table = _table("up to layer", "weights", *columns, left=("up to layer", "weights"))
    for layer in report.layers:
        decibels = (_tenths(value) for value in (layer.weights_db, layer.alone_db, layer.all_db, layer.network_db))
        table.add_row(
            layer.name, layer.weights, "" if layer.bits_per_weight is None else bits(layer.bits_per_weight),
            grouped(layer.weights_bytes) if layer.weights else "", *(value if layer.weights or number else "" for number, value in
            enumerate(decibels)), _percent(layer.accuracy if labelled else layer.same_class), _percent(layer.noise_share),
        )  # fmt: skip
    for codebook in report.codebooks:
        table.add_row(codebook.name, f"{grouped(codebook.codewords)} codewords", "", grouped(codebook.weights_bytes))
    total = report.steps[-1].weights_bytes
    table.add_row("total", "", bits(widths.all), grouped(total))
    _show_table(console, table, totals=1)
    _say(console, "")
    say_labelled(console, _blamed(report))


def _blamed(report: Waterfall) -> Iterator[tuple[str, str]]:
    blame, titles = report.blame, {step.step: step.title for step in report.steps}
    yield "blame", "no step: none changes the outputs" if blame.step is None else f"{titles[blame.step]} adds most noise to the outputs"
    if blame.compensated:
        yield "", "no layer: they make up for each other, so a network quantised half way tells little; see alone and all"
    elif blame.layer is not None:
        number = next(number for number, layer in enumerate(report.layers) if layer.name == blame.layer)
        before = "" if number == 0 else f" from {_tenths(report.layers[number - 1].network_db)}"
        yield "", f"layer {blame.layer} most of it: it takes the network{before} to {_tenths(report.layers[number].network_db)} dB"
    yield "layers", f"on {grouped(report.layer_inputs)} inputs; dB are SQNR against the float model"
    yield "weights", "of the layer's weights"
    yield "alone", "of its output, the layers before it float"
    yield "all", "of its output, the layers before it quantised too"
    yield "net", "of the network's outputs, the layers after it float; so are the figures after it"
    yield "noise", "its share of the noise at the outputs; below 0 it makes up for layers before it"
    for missing in report.left_out:
        yield "left out", f"{missing.what}: {missing.why}"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"


def _tenths(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


def _points(before: float | None, after: float | None) -> str:
    """Percentage points lost; nothing for none."""
    if before is None or after is None or before == after:
        return ""
    return f"{100 * (before - after):.2f}"


def show_boards(console: Console, boards: Sequence[Board]) -> None:
    """The boards kqgen knows."""
    wide = console.width >= SOURCE_COLUMNS
    columns = ("board", "core", "MHz", "flash KB", "RAM KB", "emulator", *(("figures from",) if wide else ()))
    table = _table(*columns, left=("board", "core", "emulator", "figures from"), fold=("figures from",))
    for board in boards:
        figures = ("", "", "", "")
        if not board.core.is_host:
            flash, ram = (grouped(region.size_bytes // 1024) for region in (board.flash, board.ram))
            figures = (f"{board.clock_hz / 1e6:g}", flash, ram, _emulators(board))
        table.add_row(board.name, board.core.title, *figures, *((board.source,) if wide else ()))
    _show_table(console, table, width=console.width - 2)


def _emulators(board: Board) -> str:
    also = ("qemu",) if board.qemu_machine and board.emulator != "qemu" else ()
    return ", ".join((*((board.emulator,) if board.emulator != "none" else ()), *also))


def show_ops(console: Console, rows: Sequence[OperatorRow]) -> None:
    """The operators kqgen compiles, a table a source."""
    for source in dict.fromkeys(row.source for row in rows):
        table = _table(*(names := (f"{source} operator", "conditions", "what becomes of it")), left=names, fold=names)
        for row in (each for each in rows if each.source == source):
            table.add_row(Text(row.operator), Text(row.conditions), Text(row.note))
        _show_table(console, table, width=console.width - 2)
