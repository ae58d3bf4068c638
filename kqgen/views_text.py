"""How names, numbers and comments look in C: pure functions on text, nothing about networks."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterable, Sequence

import numpy as np

from kqgen.errors import InputError, InternalError

COLUMNS = 120
"""Longest line of any generated file."""

_IDENTIFIER = re.compile(r"[A-Za-z][A-Za-z0-9_]*")
_MAX_NAME = 48

# Files named like these would hide the C library's own headers from the user's code.
_C_HEADERS = """
    assert complex ctype errno fenv float inttypes iso646 limits locale math setjmp signal stdalign stdarg stdatomic stdbool stddef
    stdint stdio stdlib stdnoreturn string tgmath threads time uchar wchar wctype
"""


def check_model_name(name: str) -> None:
    """Raises InputError when `name` cannot prefix C identifiers and name files beside the runtime's."""
    lower = name.lower()
    reserved = lower == "kq" or lower.startswith("kq_") or lower in _C_HEADERS.split()
    if reserved or len(name) > _MAX_NAME or not _IDENTIFIER.fullmatch(name):
        raise InputError(
            f"the model cannot be called {name!r} in C",
            found=name,
            wanted=f"a letter, then letters, digits, underscores; {_MAX_NAME} at most; not kq, kq_... or a header of the C library",
            do="choose another name with --name",
        )


def distinct(names: Sequence[str], taken: Iterable[str] = (), suffixes: Sequence[str] = ("",)) -> tuple[str, ...]:
    """The names, each with a number at its end where it would meet an earlier one or one of `taken`; case is ignored.

    Every name also claims itself with each of `suffixes` behind it.

    >>> distinct(("a", "A", "run"), taken=("run",))
    ('a', 'A_2', 'run_2')
    >>> distinct(("a", "a_bias"), suffixes=("", "_bias"))
    ('a', 'a_bias_2')
    """
    seen = {name.lower() for name in taken}
    result: list[str] = []
    for name in names:
        candidate, number = name, 2
        while any((candidate + suffix).lower() in seen for suffix in suffixes):
            candidate, number = f"{name}_{number}", number + 1
        seen.update((candidate + suffix).lower() for suffix in suffixes)
        result.append(candidate)
    return tuple(result)


def within(value: int, low: int, high: int, what: str) -> int:
    """`value`, when it lies in low..high.

    Raises: InternalError saying `what` is out of its C field's range (an earlier stage should have refused it).
    """
    if not low <= value <= high:
        raise InternalError(f"{what} does not fit its field in C", found=str(value), wanted=f"{low}..{high}")
    return int(value)


def thousands(value: int) -> str:
    """A count as a person reads it: 34716 is "34 716"."""
    return f"{value:,}".replace(",", " ")


def decimal(value: float) -> str:
    """The shortest decimal that reads back as `value`: in single precision when that holds it exactly, else in double.

    >>> decimal(0.5), decimal(float(np.float32(0.1))), decimal(0.1), decimal(2.0**-20)
    ('0.5', '0.1', '0.1', '9.536743e-07')
    """
    single = np.float32(value)
    return str(single) if float(single) == value else repr(float(value))


def int32_literal(value: int) -> str:
    """A C constant of type int: the smallest one has no literal of its own."""
    return "INT32_MIN" if value == -(2**31) else str(int(value))


def array_rows(literals: Sequence[str], most: int = 16) -> tuple[str, ...]:
    """Initialisers in aligned rows that fit COLUMNS with an indent of four, every one followed by a comma."""
    width = max(len(literal) for literal in literals)
    each = max(1, min(most, (COLUMNS - 4) // (width + 2)))
    rows = (literals[start : start + each] for start in range(0, len(literals), each))
    return tuple(", ".join(literal.rjust(width) for literal in row) + "," for row in rows)


def hex_rows(packed: bytes) -> tuple[str, ...]:
    """Bytes as rows of hexadecimal initialisers, sixteen a row."""
    return array_rows([f"0x{byte:02x}" for byte in packed])


def comment_lines(text: str, indent: int = 0) -> tuple[str, ...]:
    """`text` as the lines of one C comment, wrapped at COLUMNS; without the indent itself.

    >>> comment_lines("short")
    ('/* short */',)
    """
    safe = text.replace("*/", "* /").replace("/*", "/ *")
    room = COLUMNS - indent - 6
    lines = textwrap.wrap(safe, room, break_long_words=True, break_on_hyphens=False) or [""]
    if len(lines) == 1:
        return (f"/* {lines[0]} */",)
    return (f"/* {lines[0]}", *(f" * {line}" for line in lines[1:-1]), f" * {lines[-1]} */")


def flow(opening: str, items: Sequence[str], separator: str, closing: str, indent: int = 0) -> tuple[str, ...]:
    """`opening`, the items with `separator` between them, `closing`: on one line, or on several filled to COLUMNS.

    Lines after the first begin with four blanks; `indent` is how far the template indents all of them.

    >>> flow("f(", ["a", "b"], ", ", ");")
    ('f(a, b);',)
    """
    ends = [separator] * (len(items) - 1) + [closing]
    lines = [opening]
    for item, end in zip(items, ends, strict=True):
        if len(lines[-1]) + len(item) + len(end.rstrip()) + indent > COLUMNS:
            lines.append("    ")
        lines[-1] += item + end
    return tuple(line.rstrip() for line in lines)


def aligned_rows(rows: Sequence[Sequence[str]], right: Sequence[int] = ()) -> tuple[str, ...]:
    """Rows of cells as text columns two blanks apart; columns numbered in `right` are set to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]

    def line(row: Sequence[str]) -> str:
        cells = enumerate(zip(row, widths, strict=True))
        return "  ".join(cell.rjust(width) if column in right else cell.ljust(width) for column, (cell, width) in cells)

    return tuple(line(row).rstrip() for row in rows)
