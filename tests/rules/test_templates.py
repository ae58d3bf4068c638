"""House rules on templates: they print what a view has decided, and decide nothing."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from jinja2 import meta, nodes

from kqgen.render import environment

ROOT = Path(__file__).resolve().parents[2]
TEMPLATES = sorted((ROOT / "templates").rglob("*.j2"))

FORBIDDEN: tuple[type[nodes.Node], ...] = (
    nodes.BinExpr, nodes.UnaryExpr, nodes.Compare, nodes.Test, nodes.CondExpr, nodes.Concat, nodes.Assign, nodes.AssignBlock, nodes.Call,
    nodes.Slice, nodes.Extends, nodes.Block, nodes.With, nodes.ExprStmt,
)  # fmt: skip
"""Everything but for, if-present, include, names, attributes and filters."""


def parse(path: Path) -> nodes.Template:
    return environment().parse(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.name)
def test_a_template_knows_one_variable(path: Path) -> None:
    wanted = {"s"} if path.parent.name == "params" else {"m"}
    assert meta.find_undeclared_variables(parse(path)) == wanted


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.name)
def test_a_template_computes_nothing(path: Path) -> None:
    found = {type(node).__name__ for node in parse(path).find_all(FORBIDDEN)}
    assert found == set()


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.name)
def test_block_tags_stand_alone_on_their_lines(path: Path) -> None:
    lines = path.read_text(encoding="utf-8").splitlines()
    shared = [line for line in lines if "{%" in line and not re.fullmatch(r"\s*\{% [^%]+ %\}", line)]
    assert shared == []


def test_every_template_is_used() -> None:
    texts = [path.read_text(encoding="utf-8") for path in (*TEMPLATES, *(ROOT / "kqgen").glob("*.py"))]
    unused = [path.name for path in TEMPLATES if not any(f'"{path.relative_to(ROOT / "templates").as_posix()}"' in text for text in texts)]
    assert unused == []


@pytest.mark.parametrize("bad", ["{{ m.a + 1 }}", "{% set x = 1 %}", "{% if m.a is string %}{% endif %}", "{{ m.a() }}"])
def test_the_rule_sees_what_it_forbids(bad: str) -> None:
    assert list(environment().parse(bad).find_all(FORBIDDEN)) != []
