"""What people see: tables, progress and errors, drawn with rich. Figures are decided elsewhere; this module only lays them out."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from kqgen.bench import BenchReport
from kqgen.board import Board
from kqgen.errors import KqgenError
from kqgen.frontend import SUPPORTED
from kqgen.report import Report
from kqgen.verify import VerifyReport

Tell = Callable[[str, float], None]
"""Progress: what is being done, and the share of it that is done, 0..1."""

WIDE_COLUMNS = 118
"""Width when standard output is no terminal: tables keep their columns in logs and files."""


def make_console(*, stderr: bool = False) -> Console:
    """A console for standard output or standard error; colours only on a terminal."""
    stream = sys.stderr if stderr else sys.stdout
    return Console(file=stream, width=None if stream.isatty() else WIDE_COLUMNS, highlight=False, soft_wrap=False)


def grouped(value: int | float | None) -> str:
    """A number with thin groups of three: 16 688; a dash for None."""
    return "-" if value is None else f"{value:,.0f}".replace(",", " ")


def bits(value: float | None) -> str:
    """Bits a weight with two decimals; a dash for None."""
    return "-" if value is None else f"{value:.2f}"


def kilobytes(size_bytes: int | None) -> str:
    """Bytes as KB of 1024 with one decimal; a dash for None."""
    return "-" if size_bytes is None else f"{size_bytes / 1024:.1f}"


@contextmanager
def progress_bar(console: Console, title: str) -> Iterator[Tell]:
    """A bar that follows the label and fraction it is told; it vanishes when done."""
    columns = (TextColumn("{task.description:<34}"), BarColumn(), TextColumn("{task.percentage:>3.0f} %"), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        state: list[tuple[str, TaskID]] = [(title, bar.add_task(title, total=1.0))]

        def tell(label: str, fraction: float) -> None:
            current, task = state[0]
            if label != current:
                bar.update(task, completed=1.0, visible=False)
                state[0] = (label, bar.add_task(escape(label), total=1.0))
            bar.update(state[0][1], completed=min(1.0, max(0.0, fraction)))

        yield tell


def show_error(console: Console, error: KqgenError, *, nothing_written: bool) -> None:
    """An error as looks: headline, found, wanted, do; and that nothing was written, where that is so."""
    console.print(Text("kqgen: ", style="bold red").append(error.what, style="default"))
    for label, text in (("found", error.found), ("wanted", error.wanted), ("do", error.do)):
        if text:
            console.print(Text(f"  {label:<8} ", style="bold").append(text, style="default"))
    if nothing_written:
        console.print("  nothing was written")


def show_warnings(console: Console, warnings: Sequence[str]) -> None:
    """Warnings, a line each."""
    for warning in warnings:
        console.print(Text("warning: ", style="bold yellow").append(warning, style="default"))


def _table(*columns: str, left: Sequence[str] = ()) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, justify="left" if column in left else "right", no_wrap=True)
    return table


def show_report(console: Console, report: Report, board: Board) -> None:
    """The table of a compiled network: layers, then flash, RAM and bits in all."""
    console.print()
    console.print(Text(report.model, style="bold").append(f"  ->  {board.name}   {board_line(board)}", style="default"))
    table = _table("layer", "op", "out", "weights", "bits/w", "form", "flash B", "M MAC", left=("layer", "op", "out", "weights", "form"))
    for layer in report.layers:
        table.add_row(
            layer.path or layer.name, layer.shape, layer.output, _weights(layer.index_bits, layer.weight_bits, layer.bits_per_weight),
            bits(layer.bits_per_weight), "" if layer.form == "plain" else layer.form, grouped(layer.flash_bytes),
            f"{layer.macs / 1e6:.2f}" if layer.macs else "",
        )  # fmt: skip
    for codebook in report.codebooks:
        table.add_row(codebook.name, f"{codebook.codewords} codewords", "", "6-bit", "", "", grouped(codebook.flash_bytes), "")
    table.add_section()
    table.add_row(
        "total", "", "", "", f"{bits(report.bits_per_weight.conv)} conv", "", grouped(report.flash_bytes.tables), f"{report.macs / 1e6:.2f}"
    )
    console.print(table)
    flash, ram = report.flash_bytes, report.ram_bytes
    of_flash = "" if board.core.is_host else f" of {board.flash.size_bytes // 1024}"
    of_ram = "" if board.core.is_host else f" of {board.ram.size_bytes // 1024}"
    console.print(f"  flash   {kilobytes(flash.total)} KB{of_flash}   tables {kilobytes(flash.tables)}  code {kilobytes(flash.code)}")
    console.print(
        f"  RAM     {kilobytes(ram.total)} KB{of_ram}   arena {kilobytes(ram.arena)}  input {kilobytes(ram.input)}  "
        f"output {grouped(ram.output)} B  stack {grouped(ram.stack)} B"
    )
    widths = report.bits_per_weight
    console.print(f"  bits    {bits(widths.kq)} a weight where indexed, {bits(widths.conv)} over convolutions, {bits(widths.all)} over all")
    if report.toolchain:
        console.print(f"  built   {report.toolchain}")


def _weights(index_bits: int | None, weight_bits: int, per_weight: float | None) -> str:
    if index_bits is not None:
        return f"KQ {index_bits}-bit index"
    return f"{round(per_weight or 0)}-bit" if weight_bits else ""


def board_line(board: Board) -> str:
    """Core, clock and memories of a board in one line."""
    if board.core.is_host:
        return "this computer"
    return (
        f"{board.core.title}, {board.clock_hz / 1e6:g} MHz, {board.flash.size_bytes // 1024} KB flash, "
        f"{board.ram.size_bytes // 1024} KB RAM"
    )


def show_verify(console: Console, model: str, report: VerifyReport) -> None:
    """The verdict of a verification, target by target."""
    verdict = {True: "EXACT", False: "NOT EXACT", None: "NOT PROVEN"}[report.exact]
    style = {True: "bold green", False: "bold red", None: "bold yellow"}[report.exact]
    console.print(Text(verdict, style=style).append(f"   {model}, {grouped(report.inputs)} inputs", style="default"))
    for target in report.targets:
        if target.exact:
            says = f"every output of {grouped(report.inputs)} inputs, {grouped(target.layers_compared)} layer outputs, equal"
        elif target.exact is None:
            says = "could not run"
        else:
            says = "differs"
        console.print(Text(f"  {target.name:<9} ", style="bold").append(f"{says}   ({target.detail})" if target.exact is not None else says))
        if target.exact is None:
            console.print(Text("\n".join(f"    {line}" for line in target.detail.splitlines())))
        difference = target.first_difference
        if difference is not None:
            where = ", ".join(f"{axis} {value}" for axis, value in zip("yxc", difference.index, strict=True))
            console.print(
                f"    first difference at layer {escape(difference.layer)}, input {difference.input}, \\[{where}]: "
                f"wanted {difference.expected}, got {difference.found}"
            )
    if report.float is not None:
        ratio = "no noise" if report.float.sqnr_db is None else f"SQNR {report.float.sqnr_db:.1f} dB"
        share = report.float.argmax_agreement
        console.print(f"  float     {ratio}" + ("" if share is None else f", same largest output on {100 * share:.1f} % of the inputs"))


def show_bench(console: Console, model: str, report: BenchReport) -> None:
    """Exact instruction counts and modelled cycles, per layer and in all."""
    console.print(Text(model, style="bold").append(f"  on {report.core}   {report.toolchain}", style="default"))
    table = _table("layer", "instructions", "modelled cycles", "cycles/MAC", left=("layer",))
    for layer in report.layers:
        per_mac = f"{layer.cycles_modelled / layer.macs:.2f}" if layer.macs and layer.cycles_modelled else ""
        table.add_row(layer.name, grouped(layer.instructions), grouped(layer.cycles_modelled), per_mac)
    table.add_section()
    macs = sum(layer.macs for layer in report.layers)
    per_mac = f"{report.cycles_modelled / macs:.2f}" if macs and report.cycles_modelled else ""
    table.add_row("total", grouped(report.instructions), grouped(report.cycles_modelled), per_mac)
    console.print(table)
    console.print(f"  with flash wait states   {grouped(report.cycles_with_wait_states)} cycles (no cache, prefetch of straight code)")
    console.print(f"  stack                    {grouped(report.stack_bytes)} bytes")


def show_boards(console: Console, boards: Sequence[Board]) -> None:
    """The boards kqgen knows."""
    table = _table("board", "core", "MHz", "flash KB", "RAM KB", "emulator", "source", left=("board", "core", "emulator", "source"))
    for board in boards:
        host = board.core.is_host
        table.add_row(
            board.name, board.core.title, "" if host else f"{board.clock_hz / 1e6:g}", "" if host else str(board.flash.size_bytes // 1024),
            "" if host else str(board.ram.size_bytes // 1024), "" if board.emulator == "none" else board.emulator, board.source,
        )  # fmt: skip
    console.print(table)


def show_ops(console: Console) -> None:
    """The operators kqgen compiles."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold")
    for column in ("operator", "conditions", "note"):
        table.add_column(column, overflow="fold")
    for row in SUPPORTED:
        table.add_row(row.operator, row.conditions, row.note)
    console.print(table)
