"""The table of operators in the docs is what `kqgen ops` knows.

After a change that is meant: pytest tests/golden --update-golden
"""

from __future__ import annotations

from pathlib import Path

import pytest

from kqgen.operators import markdown, operator_rows

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "OPERATORS.md"


def test_the_docs_hold_the_table_of_operators(request: pytest.FixtureRequest) -> None:
    text = markdown(operator_rows())
    if request.config.getoption("--update-golden"):
        DOCUMENT.write_text(text, encoding="utf-8", newline="\n")
        pytest.skip("wrote docs/OPERATORS.md")
    assert DOCUMENT.read_text(encoding="utf-8") == text, "docs/OPERATORS.md is not the table; see --update-golden"


def test_every_source_has_rows_and_no_operator_two() -> None:
    rows = operator_rows()
    assert {row.source for row in rows} == {"PyTorch", "ONNX", "TFLite"}
    names = [(row.source, row.operator) for row in rows]
    assert len(names) == len(set(names))
    assert all(row.operator for row in rows)
