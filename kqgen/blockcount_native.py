"""The block hooks in C (runtime_c/tools/kq_block_counter.c), compiled for this computer when first needed."""

from __future__ import annotations

import ctypes
import importlib
import tempfile
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar

from kqgen.assets import runtime_dir
from kqgen.blockcount import END, START, CountScope, Edge, RawCounts
from kqgen.errors import InternalError, ToolchainError
from kqgen.toolchain import find_host_compiler, run_tool

MAX_RANGES, MAX_HELPERS, MAX_LAYERS = 8, 8, 4096
"""Sizes of the arrays in the C file."""

_SLOTS = 1 << 18
"""Room for 196 608 edges: a network has a few thousand."""


class _Edge(ctypes.Structure):
    _fields_: ClassVar[list[tuple[str, Any]]] = [(name, ctypes.c_uint64) for name in ("previous", "block", "times", "layer")]


class _Counter(ctypes.Structure):
    _fields_: ClassVar[list[tuple[str, Any]]] = [
        ("edges", ctypes.POINTER(_Edge)),
        *((name, ctypes.c_uint64) for name in ("slots", "used", "previous")),
        *((name, ctypes.c_uint32) for name in ("layer", "inside", "called", "full", "range_count", "helper_count")),
        ("low", ctypes.c_uint32 * MAX_RANGES),
        ("high", ctypes.c_uint32 * MAX_RANGES),
        ("helpers", ctypes.c_uint32 * MAX_HELPERS),
        ("reads", ctypes.c_uint64 * MAX_LAYERS),
    ]


@cache
def native_library() -> ctypes.CDLL | None:
    """The compiled hooks, None where there is no C compiler that can make a shared library for this Python."""
    source = runtime_dir() / "tools" / "kq_block_counter.c"
    folder = Path(tempfile.mkdtemp(prefix="kqgen-count-"))
    library = folder / "kq_block_counter.so"
    try:
        compiler = find_host_compiler()
        argv = [*compiler.compiler, "-std=c11", "-O2", "-shared", "-fPIC", str(source), "-o", str(library)]
        run_tool(argv, cwd=folder, what=f"compiling {source.name}", kind=compiler.kind)
        return ctypes.CDLL(str(library))
    except (ToolchainError, OSError):
        return None
    finally:
        # A loaded library stays mapped without its file; systems that forbid that keep the file until they clean up.
        library.unlink(missing_ok=True)
        if not library.exists():
            folder.rmdir()


class NativeHooks:
    """The same hooks as blockcount.PythonHooks, in C."""

    def __init__(self, uc: Any, scope: CountScope, library: ctypes.CDLL) -> None:
        if len(scope.run_ranges) > MAX_RANGES or len(scope.helpers) > MAX_HELPERS:
            raise InternalError(f"more than the hooks can hold: {len(scope.run_ranges)} pieces of run, {len(scope.helpers)} helpers")
        self._uc, self._scope, self._library = uc, scope, library
        self._hooks: list[ctypes.c_size_t] = []
        self._edges = (_Edge * _SLOTS)()
        self._counter = _Counter(edges=self._edges, slots=_SLOTS, previous=START, inside=1)
        self._counter.range_count = len(scope.run_ranges)
        for position, (low, high) in enumerate(scope.run_ranges):
            self._counter.low[position], self._counter.high[position] = low, high
        self._counter.helper_count = len(scope.helpers)
        for position, address in enumerate(sorted(scope.helpers)):
            self._counter.helpers[position] = address

    def _add(self, kind: int, function: Any, first: int, last: int) -> None:
        # The Python binding takes Python functions only; its own library handle takes any.
        library = importlib.import_module("unicorn.unicorn_py3.unicorn").uclib
        handle = ctypes.c_size_t()
        status = library.uc_hook_add(
            self._uc._uch, ctypes.byref(handle), ctypes.c_int(kind), ctypes.cast(function, ctypes.c_void_p),
            ctypes.cast(ctypes.byref(self._counter), ctypes.c_void_p), ctypes.c_uint64(first), ctypes.c_uint64(last),
        )  # fmt: skip
        if status != 0:
            raise ToolchainError("unicorn refuses a hook", found=f"status {status}", wanted="0")
        self._hooks.append(handle)

    def __enter__(self) -> NativeHooks:
        unicorn = importlib.import_module("unicorn")
        self._uc.ctl_flush_tb()
        self._add(unicorn.UC_HOOK_BLOCK, self._library.kq_on_block, 1, 0)
        if self._scope.flash is not None:
            self._add(unicorn.UC_HOOK_MEM_READ, self._library.kq_on_read, self._scope.flash.origin, self._scope.flash.end - 1)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        library = importlib.import_module("unicorn.unicorn_py3.unicorn").uclib
        for handle in self._hooks:
            library.uc_hook_del(self._uc._uch, handle)
        self._uc.ctl_flush_tb()

    def counts(self) -> RawCounts:
        """What was gathered, after the context was left.

        Raises: InternalError when the edges or layers did not fit.
        """
        if self._counter.full:
            raise InternalError(f"the network has more than {_SLOTS * 3 // 4} edges between blocks, or {MAX_LAYERS} layers")
        edges = [Edge(edge.layer, edge.previous, edge.block, edge.times) for edge in self._edges if edge.times]
        edges.append(Edge(self._counter.layer, self._counter.previous, END, 1))
        return RawCounts(tuple(edges), tuple(self._counter.reads[: self._counter.layer + 1]), bool(self._counter.called))
