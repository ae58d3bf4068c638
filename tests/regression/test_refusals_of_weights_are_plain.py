"""A weights file or factory that is refused: the message is ours, in plain words, and says what to do.

Once it quoted torch's advice to load the file unsafely, cut short and with terminal codes; or a bare key; or a line of Python's
import machinery.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from kqgen.errors import InputError
from kqgen.loading import load_model


def refused(tmp_path: Path, name: str) -> str:
    with pytest.raises(InputError) as caught:
        load_model("torch.nn:Flatten", tmp_path / name)
    return caught.value.render()


def test_a_pickled_module_is_not_explained_by_torch(tmp_path: Path) -> None:
    torch.save(nn.Linear(2, 2), tmp_path / "whole.pt")
    text = refused(tmp_path, "whole.pt")
    assert "torch.save(model) writes such" in text
    assert "torch.save(model.state_dict()" in text
    assert "\x1b" not in text
    assert "trust" not in text


@pytest.mark.parametrize("content", [b"", b"hello world"], ids=["empty", "text"])
def test_a_file_of_something_else_names_the_reason_and_the_way_out(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "weights.pt").write_bytes(content)
    text = refused(tmp_path, "weights.pt")
    found = next(line for line in text.splitlines() if line.startswith("  found"))
    assert any(word in found for word in ("KeyError", "empty or cut")), text
    assert "  do " in text


def test_a_cut_archive_says_so_in_one_sentence(tmp_path: Path) -> None:
    torch.save(nn.Linear(2, 2).state_dict(), tmp_path / "weights.pt")
    whole = (tmp_path / "weights.pt").read_bytes()
    (tmp_path / "weights.pt").write_bytes(whole[: len(whole) // 2])
    text = refused(tmp_path, "weights.pt")
    assert "cannot read" in text
    assert "  do " in text
    assert max(map(len, text.splitlines())) < 140 + len(str(tmp_path))


def test_a_missing_package_shows_no_line_of_the_import_machinery() -> None:
    with pytest.raises(InputError) as caught:
        load_model("no_such_package.net:make")
    assert "ModuleNotFoundError" in caught.value.render()
    assert "frozen" not in caught.value.render()
