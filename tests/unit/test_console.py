"""What people see on a terminal and in a log: widths, alignment, colours, progress."""

from __future__ import annotations

import io
import re

import nets
import pytest
from rich.console import Console

from kqgen import console
from kqgen.board import all_boards, load_board
from kqgen.compare import FirstDifference, FloatAgreement
from kqgen.errors import InputError
from kqgen.operators import operator_rows
from kqgen.planner import make_plan
from kqgen.report import build
from kqgen.verify import TargetResult, VerifyReport


def log() -> Console:
    """A console that writes into a log."""
    return Console(file=io.StringIO(), width=console.WIDE_COLUMNS, highlight=False)


def terminal(width: int) -> Console:
    """A console that believes to be a terminal with colours."""
    return Console(file=io.StringIO(), width=width, force_terminal=True, highlight=False, color_system="standard", legacy_windows=False)


def lines(made: Console) -> list[str]:
    """What was written, without colours."""
    assert isinstance(made.file, io.StringIO)
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", made.file.getvalue()).split("\n")


ERROR = InputError("x is wrong", found="first\n  second", wanted="w " * 60, do="this")


def test_an_error_in_a_log_keeps_its_lines() -> None:
    made = log()
    console.show_error(made, ERROR, nothing_written=True)
    assert lines(made) == [
        "kqgen: x is wrong", "  found    first", "             second", f"  wanted   {'w ' * 60}", "  do       this",
        "  nothing was written", "",
    ]  # fmt: skip


def test_an_error_on_a_terminal_goes_on_under_its_text() -> None:
    made = terminal(60)
    console.show_error(made, ERROR, nothing_written=False)
    found = [line.rstrip() for line in lines(made)]
    assert found[:3] == ["kqgen: x is wrong", "  found    first", "             second"]
    assert re.fullmatch(r"  wanted   (w ?){20,}", found[3])
    assert re.fullmatch(r" {11}(w ?){20,}", found[4])
    assert max(len(line) for line in found) <= 60


def test_square_brackets_are_text() -> None:
    made = log()
    console.show_error(made, InputError("layer [bold]x[/bold]", found="shape [1, 2]"), nothing_written=False)
    console.show_warnings(made, ["codebook [red]b[/red]"])
    assert lines(made)[:3] == ["kqgen: layer [bold]x[/bold]", "  found    shape [1, 2]", "warning: codebook [red]b[/red]"]


def test_codewords_of_two_stages_are_told_apart() -> None:
    board = load_board("nucleo-g0b1re")
    made = log()
    console.show_report(made, build(make_plan(nets.summed()), board, None), board)
    words = [" ".join(line.split()) for line in lines(made)]
    assert any(line.startswith("pairs 2 x 13 codewords int6 176") for line in words)
    assert any(line.startswith("plain 21 codewords int6 142") for line in words)
    assert any(line.startswith("narrow.sum conv 3x3 9->11 ") and " KQ 2x2+sign " in line for line in words)


@pytest.mark.parametrize("width", [100, 120])
def test_boards_are_readable(width: int) -> None:
    made = terminal(width)
    console.show_boards(made, all_boards())
    found = lines(made)
    assert max(len(line) for line in found) <= width
    for board in all_boards():
        (row,) = [line for line in found if line.split()[:1] == [board.name]]
        if not board.core.is_host:
            assert board.core.title in row
            assert board.source.split()[0] in row
    assert [line for line in found if line != line.rstrip()] == []


def test_a_narrow_terminal_is_not_told_where_figures_are_from() -> None:
    made = terminal(80)
    console.show_boards(made, all_boards())
    assert max(len(line) for line in lines(made)) <= 80
    assert "datasheet" not in "".join(lines(made))


@pytest.mark.parametrize("width", [80, 100, 120])
def test_operators_are_readable(width: int) -> None:
    made = terminal(width)
    console.show_ops(made, operator_rows())
    found = lines(made)
    assert max(len(line) for line in found) <= width
    assert "x[:, :, ::2]" in "\n".join(found)
    words = " ".join(found).split()
    assert all(word in words for row in operator_rows() for word in row.operator.split())


def report(*targets: TargetResult, exact: bool | None, agreement: FloatAgreement | None = None) -> VerifyReport:
    return VerifyReport(exact, 64, 640, targets, agreement)


def test_a_verdict_names_what_differs() -> None:
    made = log()
    difference = FirstDifference(0, "b2a", (3, 15, 7), -12, -11)
    results = (TargetResult("host", True, None, 64, "gcc 12"), TargetResult("unicorn", False, difference, 4, "zig cc 0.15"))
    console.show_verify(made, "net", report(*results, exact=False), load_board("nucleo-g0b1re"))
    assert lines(made)[:4] == [
        "NOT EXACT   net on nucleo-g0b1re",
        "  host     exact on 64 of 64 inputs, every layer of 64   (gcc 12)",
        "  unicorn  first difference at layer b2a, input 0   (zig cc 0.15)",
        "           wanted -12, got -11 at [y 3, x 15, c 7]; every layer before it agrees",
    ]


def test_a_missing_tool_and_a_float_model_are_told() -> None:
    made = log()
    result = TargetResult("qemu", None, None, 0, "no qemu\n  do       install it")
    console.show_verify(made, "net", report(result, exact=None, agreement=FloatAgreement(None, None)), load_board("host"))
    assert lines(made)[:5] == [
        "NOT PROVEN   net on host", "  qemu     could not run", "           no qemu", "             do       install it",
        "  float    SQNR not defined (no noise or no signal)",
    ]  # fmt: skip


def test_progress_is_drawn_on_a_terminal_alone() -> None:
    for made, drawn in ((log(), False), (terminal(100), True)):
        with console.progress_bar(made, "compiling") as tell:
            tell("clustering [x]", 0.5)
            tell("clustering [x]", 2.0)
        assert bool("".join(lines(made)).strip()) is drawn


def test_progress_of_a_label_with_brackets_is_text() -> None:
    made = terminal(100)
    with console.progress_bar(made, "compiling") as tell:
        tell("layer [0]", 0.5)
    assert "layer [0]" in "".join(lines(made))


def test_numbers() -> None:
    assert [console.bits(value) for value in (None, 1.0, 1.005)] == ["-", "1.00", "1.00"]
    assert [console.kilobytes(value) for value in (None, 0, 1024, 1536)] == ["-", "0.0", "1.0", "1.5"]
