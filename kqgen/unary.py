"""Functions of one real value, as tables are made of them: float64, by `ir.UNARY`'s names and PyTorch's definitions."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from kqgen.errors import InternalError

Float64 = npt.NDArray[np.float64]
_Function = Callable[[Float64, Sequence[float]], Float64]


def evaluate(kind: str, arguments: Sequence[float], x: npt.ArrayLike) -> Float64:
    """`kind` of every x, any shape; infinite where the function leaves float64.

    Args:
        arguments: the function's numbers in PyTorch's order; those left out have PyTorch's defaults. A prelu has one, its slope.

    Raises:
        InternalError: no such function.
    """
    if kind not in _FUNCTIONS:
        raise InternalError(f"no function is called {kind}", wanted=", ".join(_FUNCTIONS))
    with np.errstate(over="ignore", under="ignore"):
        return _FUNCTIONS[kind](np.asarray(x, np.float64), arguments)


def _argument(arguments: Sequence[float], number: int, default: float) -> float:
    return arguments[number] if number < len(arguments) else default


def _sigmoid(x: Float64) -> Float64:
    small = np.exp(-np.abs(x))
    return np.where(x >= 0, 1.0, small) / (1.0 + small)


def _hard(x: Float64) -> Float64:
    return np.clip(x + 3.0, 0.0, 6.0) / 6.0


def _gelu(x: Float64) -> Float64:
    flat = [0.5 * value * (1.0 + math.erf(value / math.sqrt(2.0))) for value in x.ravel().tolist()]
    return np.asarray(flat, np.float64).reshape(x.shape)


def _gelu_tanh(x: Float64) -> Float64:
    return 0.5 * x * (1.0 + np.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * x**3)))


def _slope(x: Float64, slope: float) -> Float64:
    return np.where(x > 0, x, slope * x)


def _elu(x: Float64, arguments: Sequence[float]) -> Float64:
    alpha, scale, inner = (_argument(arguments, number, 1.0) for number in range(3))
    return np.where(x > 0, scale * x, scale * alpha * np.expm1(np.minimum(inner * x, 0.0)))


def _softplus(x: Float64, arguments: Sequence[float]) -> Float64:
    beta, threshold = _argument(arguments, 0, 1.0), _argument(arguments, 1, 20.0)
    return np.where(x * beta > threshold, x, np.logaddexp(0.0, x * beta) / beta)


_FUNCTIONS: Mapping[str, _Function] = {
    "sigmoid": lambda x, _: _sigmoid(x),
    "tanh": lambda x, _: np.tanh(x),
    "hardsigmoid": lambda x, _: _hard(x),
    "hardswish": lambda x, _: x * _hard(x),
    "silu": lambda x, _: x * _sigmoid(x),
    "gelu": lambda x, _: _gelu(x),
    "gelu_tanh": lambda x, _: _gelu_tanh(x),
    "leaky_relu": lambda x, arguments: _slope(x, _argument(arguments, 0, 0.01)),
    "prelu": lambda x, arguments: _slope(x, arguments[0]),
    "elu": _elu,
    "softplus": _softplus,
    "mish": lambda x, _: x * np.tanh(np.logaddexp(0.0, x)),
    "abs": lambda x, _: np.abs(x),
    "square": lambda x, _: x * x,
    "exp": lambda x, _: np.exp(x),
}
