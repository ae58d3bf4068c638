"""kqgen compiles a PyTorch CNN to small, exact, plain C for Cortex-M by Kernel Quantization."""

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
from kqgen.options import Codebook
from kqgen.pipeline import Compiled, compile  # noqa: A004 - what users call it
from kqgen.version import __version__

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
    "load",
]
