"""The Jinja environment refuses what a view does not have."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from kqgen.errors import InternalError
from kqgen.render import environment, render


@dataclass(frozen=True)
class Short:
    generator: str


def test_a_missing_field_is_an_error() -> None:
    with pytest.raises(InternalError, match="graph_digest"):
        render("banner.c.j2", Short("kqgen"))


def test_a_missing_template_is_an_error() -> None:
    with pytest.raises(InternalError, match=r"nothing\.j2"):
        render("nothing.j2", Short("kqgen"))


def test_block_tags_leave_no_trace_and_nothing_is_escaped() -> None:
    template = environment().from_string("a\n    {% for x in m %}\n    {{ x }};\n    {% endfor %}\nb\n")
    assert template.render(m=["<1>", "&2"]) == "a\n    <1>;\n    &2;\nb\n"
