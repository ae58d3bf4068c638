"""All operators that compile, of PyTorch, ONNX and TFLite, as `kqgen ops` and docs/OPERATORS.md show them."""

from __future__ import annotations

from collections.abc import Sequence

from kqgen.frontend_table import SUPPORTED, OperatorRow
from kqgen.onnx_table import ONNX_OPERATORS
from kqgen.tflite_integers import KINDS
from kqgen.tflite_module import HANDLERS

_INTRODUCTION = """# Operators

What `kqgen ops` prints. Everything else is refused by name, with its place and a way out; all refusals of a network come at once.
ONNX and float TFLite files become PyTorch modules first, so the conditions of the operators they become hold as well.
"""


def operator_rows() -> tuple[OperatorRow, ...]:
    """Every row, sources one after the other, in the order of their tables."""
    onnx = tuple(OperatorRow("ONNX", ", ".join(row.operators), row.conditions, row.torch) for row in ONNX_OPERATORS)
    tflite = tuple(
        OperatorRow("TFLite", name, "" if name in KINDS else "float files, or int8 files compiled anew", _taken(name))
        for name in sorted(set(HANDLERS) | KINDS)
    )
    return (*(row.row for row in SUPPORTED), *onnx, *tflite)


def _taken(name: str) -> str:
    ways = ("a PyTorch operator" if name in HANDLERS else "", "of int8 files the integers as they are" if name in KINDS else "")
    return "; ".join(way for way in ways if way)


def markdown(rows: Sequence[OperatorRow]) -> str:
    """The text of docs/OPERATORS.md."""
    lines = [_INTRODUCTION]
    for source in dict.fromkeys(row.source for row in rows):
        lines += [f"## {source}", "", "| Operator | Conditions | What becomes of it |", "|---|---|---|"]
        lines += [f"| {_cell(row.operator)} | {_cell(row.conditions)} | {_cell(row.note)} |" for row in rows if row.source == source]
        lines.append("")
    return "\n".join(lines)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("*", "\\*")
