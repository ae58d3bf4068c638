"""kqgen compiles a PyTorch CNN to small, exact, plain C for Cortex-M by Kernel Quantization.

Public names load on first use: importing the package does not yet import torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from kqgen.version import __version__

if TYPE_CHECKING:
    from kqgen import kq
    from kqgen.errors import (
        CapacityError,
        InputError,
        InternalError,
        KqgenError,
        MismatchError,
        ToolchainError,
        UnsupportedError,
    )
    from kqgen.net import Net, load
    from kqgen.onnx_import import load_onnx
    from kqgen.options import Codebook
    from kqgen.pipeline import Compiled, compile  # noqa: A004 - what users call it
    from kqgen.tflite_module import load_tflite

_HOMES = {
    "CapacityError": "errors",
    "Codebook": "options",
    "Compiled": "pipeline",
    "InputError": "errors",
    "InternalError": "errors",
    "KqgenError": "errors",
    "MismatchError": "errors",
    "Net": "net",
    "ToolchainError": "errors",
    "UnsupportedError": "errors",
    "compile": "pipeline",
    "load": "net",
    "load_onnx": "onnx_import",
    "load_tflite": "tflite_module",
}

__all__ = [
    "CapacityError",
    "Codebook",
    "Compiled",
    "InputError",
    "InternalError",
    "KqgenError",
    "MismatchError",
    "Net",
    "ToolchainError",
    "UnsupportedError",
    "__version__",
    "compile",
    "kq",
    "load",
    "load_onnx",
    "load_tflite",
]


def __getattr__(name: str) -> Any:
    if name == "kq":
        return importlib.import_module("kqgen.kq")
    if name not in _HOMES:
        raise AttributeError(f"module 'kqgen' has no attribute {name!r}")
    return getattr(importlib.import_module(f"kqgen.{_HOMES[name]}"), name)
