"""Functions of one value: PyTorch's, and nowhere a NaN."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from kqgen import unary
from kqgen.errors import InternalError
from kqgen.ir import UNARY

PAIRS: dict[str, tuple[tuple[float, ...], Callable[[torch.Tensor], torch.Tensor]]] = {
    "sigmoid": ((), torch.sigmoid),
    "tanh": ((), torch.tanh),
    "hardsigmoid": ((), F.hardsigmoid),
    "hardswish": ((), F.hardswish),
    "silu": ((), F.silu),
    "gelu": ((), F.gelu),
    "gelu_tanh": ((), lambda x: F.gelu(x, approximate="tanh")),
    "leaky_relu": ((0.2,), lambda x: F.leaky_relu(x, 0.2)),
    "prelu": ((0.3,), lambda x: F.prelu(x, torch.tensor([0.3], dtype=torch.float64))),
    "elu": ((0.7, 1.1, 0.9), lambda x: torch.ops.aten.elu.default(x, 0.7, 1.1, 0.9)),
    "softplus": ((2.0, 5.0), lambda x: F.softplus(x, 2.0, 5.0)),
    "mish": ((), F.mish),
    "abs": ((), torch.abs),
    "square": ((), torch.square),
    "exp": ((), torch.exp),
}


@pytest.mark.parametrize("kind", UNARY)
def test_functions_are_pytorch_s(kind: str) -> None:
    arguments, wanted = PAIRS[kind]
    x = np.concatenate([np.linspace(-12, 12, 4001), [0.0, -1e-9, 1e-9, -60.0, 60.0]])
    found = unary.evaluate(kind, arguments, x)
    np.testing.assert_allclose(found, wanted(torch.from_numpy(x)).numpy(), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("kind", UNARY)
def test_no_number_is_too_large(kind: str) -> None:
    arguments = PAIRS[kind][0]
    assert not np.isnan(unary.evaluate(kind, arguments, [-1e30, -1e4, 1e4, 1e30])).any()


def test_an_unknown_function_is_a_bug() -> None:
    with pytest.raises(InternalError, match="sine"):
        unary.evaluate("sine", (), 0.0)
