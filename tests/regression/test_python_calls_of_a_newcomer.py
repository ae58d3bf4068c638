"""What a newcomer types in Python: results print in one line, and wrong arguments are refused in words of ours.

Once a result printed every table and source, a lone tensor was taken for a sequence, and other arguments ended in errors of torch.export.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import kqgen
from kqgen.errors import InputError

IMAGE = torch.zeros(1, 2, 4, 4)


def compiled(module: Any, examples: Any) -> kqgen.Compiled:
    images = np.random.default_rng(0).standard_normal((4, 2, 4, 4)).astype(np.float32)
    return kqgen.compile(module, examples, calibration=images, board="host", weights="int8", name="small")


def test_a_result_prints_in_one_line() -> None:
    torch.manual_seed(0)
    text = repr(compiled(nn.Conv2d(2, 3, 3), (IMAGE,)))
    assert text.startswith("<kqgen.Compiled small for host, ")
    assert text.endswith(" bytes of tables, not written>")
    assert len(text) < 100


@pytest.mark.parametrize(
    ("module", "examples", "words"),
    [
        (nn.ReLU(), IMAGE, "found    Tensor"),
        (nn.ReLU(), (IMAGE.numpy(),), "found    ndarray"),
        ("net.pt2", (IMAGE,), "wanted   a torch.nn.Module"),
    ],
    ids=["a lone tensor", "an array", "a path"],
)
def test_wrong_arguments_are_refused_with_a_way_out(module: Any, examples: Any, words: str) -> None:
    with pytest.raises(InputError) as caught:
        compiled(module, examples)
    assert words in caught.value.render()
    assert "  do " in caught.value.render()
    assert "torch.export" not in caught.value.render()
