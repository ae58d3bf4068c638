"""The README's table of the model zoo says what docs/zoo.json says, and that holds every network that the script knows."""

from __future__ import annotations

import sys

from conftest import ROOT

sys.path.insert(0, str(ROOT / "examples"))
import model_zoo


def test_the_readme_has_the_rows_that_were_measured() -> None:
    assert model_zoo.table(tuple(model_zoo.known().values())) in (ROOT / "README.md").read_text(encoding="utf-8")


def test_every_network_was_measured() -> None:
    assert list(model_zoo.known()) == [entry.name for entry in model_zoo.ENTRIES]
