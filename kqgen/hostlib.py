"""The generated C as a library of this computer, called on numpy arrays through cffi's API mode.

cffi writes the C of an extension module, our own compiler call builds it under the flags of the C tests, and it is imported
by path: no setuptools, no change of directory. Where Python's headers are missing the same C becomes a plain shared library
(cffi's ABI mode). A batch is one call into C with the interpreter lock released.
"""

from __future__ import annotations

import hashlib
import importlib.machinery
import importlib.util
import os
import sys
import sysconfig
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cffi
import numpy as np

from kqgen.emit import RUNTIME_FOLDER
from kqgen.errors import InputError, InternalError, ToolchainError
from kqgen.intgraph import Int8, IntGraph, QTensor
from kqgen.render import render
from kqgen.toolchain import Toolchain, find_host_compiler, run_tool
from kqgen.views import BufferView, buffer_views
from kqgen.views_project import defines
from kqgen.views_text import array_rows

STRICT_FLAGS = (
    "-std=c11", "-Wall", "-Wextra", "-Wpedantic", "-Wconversion", "-Wsign-conversion", "-Wshadow", "-Wmissing-prototypes", "-Werror",
)  # fmt: skip
"""What model, runtime and batch loop are compiled with; cffi's own C is not held to it."""

_COMMON_FLAGS = ("-fPIC", "-fno-common")
_ZIG_FLAGS = ("-fno-sanitize=undefined",)  # zig cc turns traps on by itself
_PLAIN_FLAGS = ("-O3",)
_SANITIZE_FLAGS = ("-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer")

_WRONG_TAPS = -100

CHUNK_IMAGES = 64
"""Images of one call into C: few enough that progress is told and an interrupt heard, enough that Python's share is nothing."""

_DECLARATIONS = """\
uint32_t kqgen_host_arena_bytes(void);
int32_t kqgen_host_run(void *arena, size_t count, const int8_t *const *inputs, int8_t *const *outputs, int8_t *const *layers);
"""

_HEADER = f"""\
#ifndef KQGEN_HOST_H
#define KQGEN_HOST_H

#include <stddef.h>
#include <stdint.h>

#define KQGEN_HOST_WRONG_TAPS ({_WRONG_TAPS})

{_DECLARATIONS}
#endif
"""


Tell = Callable[[float], None]


@dataclass(frozen=True, slots=True)
class HostView:
    """What templates/hostlib.c.j2 prints.

    Attributes:
        model, macro: the model's C name, and the same in capitals.
        buffers: its inputs and outputs.
        arguments: of the run function, arena excepted, a line each.
        steps: of the network.
        layer_rows: rows of the bytes of each step's output.
    """

    model: str
    macro: str
    buffers: tuple[BufferView, ...]
    arguments: tuple[str, ...]
    steps: int
    layer_rows: tuple[str, ...]


@dataclass(frozen=True, slots=True, eq=False)
class HostLibrary:
    """The C of an output folder, loaded into this process. Re-entrant: threads may call it at once.

    Attributes:
        graph: the integer graph it was generated from.
        compiler: name and version of the compiler that built it.
        tap: whether it hands over every layer.
    """

    graph: IntGraph
    compiler: str
    tap: bool
    _ffi: Any
    _lib: Any

    def run(self, inputs: Int8 | Sequence[Int8], threads: int | None = None, tell: Tell | None = None) -> tuple[Int8, ...]:
        """Runs a batch.

        Args:
            inputs: one array an input tensor, in the graph's order; a network of one input also takes the array alone.
            threads: at most so many at once, each with an arena of its own; None: one a processor.
            tell: progress, called with the fraction done.

        Shapes: inputs and results (N, h, w, c) int8.

        Raises: InputError when number, dtype or shape of the arrays is wrong.
        """
        return self._run(inputs, threads, tell)[0]

    def run_tapped(
        self, inputs: Int8 | Sequence[Int8], threads: int | None = None, tell: Tell | None = None
    ) -> tuple[tuple[Int8, ...], tuple[Int8, ...]]:
        """Runs a batch; (outputs, the output of every step in execution order), all (N, h, w, c) int8. Arguments as of `run`.

        Raises: as `run`; InternalError when the library was built without taps.
        """
        if not self.tap:
            raise InternalError(f"the host library of {self.graph.name} was built without taps")
        return self._run(inputs, threads, tell)

    def _run(
        self, inputs: Int8 | Sequence[Int8], threads: int | None, tell: Tell | None
    ) -> tuple[tuple[Int8, ...], tuple[Int8, ...]]:
        given = _checked(self.graph, inputs)
        count = len(given[0])
        outputs = tuple(_empty(count, self.graph.tensor(name)) for name in self.graph.outputs)
        layers = tuple(_empty(count, node.output) for node in self.graph.nodes) if self.tap else ()
        workers = max(1, min(threads or _processors(), count))
        chunk = max(1, min(CHUNK_IMAGES, -(-count // workers)))
        pieces = [slice(start, min(start + chunk, count)) for start in range(0, count, chunk)]

        def run_piece(piece: slice) -> int:
            self._call([array[piece] for array in given], [array[piece] for array in outputs], [array[piece] for array in layers])
            return int(piece.stop)

        if workers == 1:
            for piece in pieces:
                _told(tell, run_piece(piece) / count)
            return outputs, layers
        with ThreadPoolExecutor(workers) as pool:
            try:
                for stop in pool.map(run_piece, pieces):
                    _told(tell, stop / count)
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
        return outputs, layers

    def _call(self, inputs: Sequence[Int8], outputs: Sequence[Int8], layers: Sequence[Int8]) -> None:
        """One call of the batch loop; every array is C-ordered and they have one length."""
        ffi = self._ffi
        arena = ffi.new("int64_t[]", -(-self._lib.kqgen_host_arena_bytes() // 8))
        buffers = [[ffi.from_buffer("int8_t[]", array) for array in arrays] for arrays in (inputs, outputs, layers)]
        pointers = [ffi.new("const int8_t *[]", buffers[0]), ffi.new("int8_t *[]", buffers[1]), ffi.new("int8_t *[]", buffers[2])]
        status = self._lib.kqgen_host_run(arena, len(inputs[0]), *pointers)
        if status == _WRONG_TAPS:
            raise InternalError(f"the C of {self.graph.name} has other layers than its graph", do="compile the model again")
        if status != 0:
            raise InternalError(f"{self.graph.name}_run returned status {status} on this computer", wanted="0 (KQ_OK)")


def build_library(
    folder: Path, graph: IntGraph, *, tap: bool = False, cache_dir: Path | None = None, sanitize: bool = False
) -> HostLibrary:
    """Compiles the C in an output folder for this computer and loads it.

    Args:
        folder: output folder, sources as generated.
        graph: integer graph they were generated from; a mismatch of buffer sizes fails to compile.
        tap: build with KQGEN_TAP, so that `run_tapped` works.
        cache_dir: where built libraries are kept under a name that is the hash of all that went into them; processes may share
            it. None builds in a temporary folder that is gone once the library is loaded.
        sanitize: with ASan and UBSan, for tests; the process must have been started with `sanitizer_preload`.

    Raises:
        InputError: the folder lacks a source. ToolchainError: no C compiler, or it refused the C; its messages are kept.
    """
    sources = _sources(folder, graph.name)
    compiler = find_host_compiler()
    own = _SANITIZE_FLAGS if sanitize else (*_PLAIN_FLAGS, *(_ZIG_FLAGS if compiler.kind == "zig" else ()))
    flags = (*_COMMON_FLAGS, *own, *(f"-D{each}" for each in defines(graph)), *(("-DKQGEN_TAP",) if tap else ()))
    glue = render("hostlib.c.j2", _host_view(graph))
    key = _key(folder, [*sources, *_headers(folder)], (glue, _HEADER, *flags, *STRICT_FLAGS, compiler.title))
    name = f"_kqgen_{graph.name}_{key}"
    ffi = cffi.FFI()
    ffi.cdef(_DECLARATIONS)
    with tempfile.TemporaryDirectory(prefix="kqgen-host-", ignore_cleanup_errors=True) as temporary:
        library = (cache_dir or Path(temporary)) / f"{name}{_suffix()}"
        if not library.is_file():
            library.parent.mkdir(parents=True, exist_ok=True)
            _build(compiler, folder.resolve(), sources, glue, flags, ffi, name, library)
        loaded_ffi, lib = _load(ffi, name, library)
    return HostLibrary(graph, compiler.title, tap, loaded_ffi, lib)


def sanitizer_preload() -> str:
    """The value of LD_PRELOAD under which a process can load a library built with `sanitize`.

    Raises: ToolchainError when the host compiler has no AddressSanitizer runtime of its own.
    """
    compiler = find_host_compiler()
    path = run_tool(
        (*compiler.compiler, "-print-file-name=libasan.so"), cwd=None, what="looking for the sanitizer's runtime", kind=compiler.kind
    ).strip()
    if not Path(path).is_absolute():
        raise ToolchainError("the host compiler has no libasan.so", found=compiler.title, wanted="GCC with its sanitizers")
    return path


def _sources(folder: Path, model: str) -> list[Path]:
    """Model, tables and runtime; the self-test brings a tap of its own and stays out."""
    sources = [folder / f"{model}.c", folder / f"{model}_tables.c", *sorted((folder / RUNTIME_FOLDER).glob("*.c"))]
    missing = [path.name for path in (*sources, folder / f"{model}.h") if not path.is_file()]
    if missing or len(sources) == 2:
        raise InputError(
            f"{folder} does not hold the generated C of {model}",
            found=f"no {missing[0] if missing else RUNTIME_FOLDER + '/*.c'}",
            wanted="the folder as kqgen wrote it",
            do="compile the model again",
        )
    return sources


def _headers(folder: Path) -> list[Path]:
    return [*sorted(folder.glob("*.h")), *sorted((folder / RUNTIME_FOLDER).glob("*.h"))]


def _host_view(graph: IntGraph) -> HostView:
    inputs, outputs = buffer_views(graph)
    places = [(f"inputs[{number}]", buffer) for number, buffer in enumerate(inputs)]
    places += [(f"outputs[{number}]", buffer) for number, buffer in enumerate(outputs)]
    ends = [","] * (len(places) - 1) + [""]
    return HostView(
        model=graph.name,
        macro=graph.name.upper(),
        buffers=inputs + outputs,
        arguments=tuple(f"{place} + image * {buffer.macro}_BYTES{end}" for (place, buffer), end in zip(places, ends, strict=True)),
        steps=len(graph.nodes),
        layer_rows=array_rows([f"{node.output.size_bytes}u" for node in graph.nodes]),
    )


def _key(folder: Path, files: Sequence[Path], texts: Sequence[str]) -> str:
    """The hash of everything that decides the library's bytes."""
    digest = hashlib.sha256()
    for path in files:
        data = path.read_bytes()
        digest.update(f"{path.relative_to(folder).as_posix()} {len(data)}\n".encode())
        digest.update(data)
    for text in (*texts, _suffix(), sys.version, cffi.__version__):
        digest.update(f"{len(text)} {text}\n".encode())
    return digest.hexdigest()[:20]


def _python_header() -> Path | None:
    """The folder of Python.h, None where Python came without it."""
    folder = Path(sysconfig.get_path("include"))
    return folder if (folder / "Python.h").is_file() else None


def _suffix() -> str:
    return importlib.machinery.EXTENSION_SUFFIXES[0] if _python_header() is not None else ".so"


def _build(
    compiler: Toolchain, folder: Path, sources: Sequence[Path], glue: str, flags: Sequence[str], ffi: Any, name: str, library: Path
) -> None:
    """Compiles in a folder of its own beside `library`, then puts the result in place in one move."""
    with tempfile.TemporaryDirectory(dir=library.parent, prefix=".build-") as temporary:
        work = Path(temporary)
        (work / "kqgen_host.h").write_text(_HEADER, encoding="utf-8")
        (work / "kqgen_host.c").write_text(glue, encoding="utf-8")
        include = [f"-I{path}" for path in (work, folder, folder / RUNTIME_FOLDER)]
        jobs: list[tuple[Path, str, tuple[str, ...]]] = [
            (path.resolve(), f"{number}.o", STRICT_FLAGS) for number, path in enumerate((*sources, work / "kqgen_host.c"))
        ]
        python = _python_header()
        if python is not None:
            ffi.set_source(name, '#include "kqgen_host.h"\n', compiler_verbose=0)
            ffi.emit_c_code(str(work / "module.c"))
            jobs.append((work / "module.c", "module.o", (f"-I{python}", "-w")))

        def compile_one(job: tuple[Path, str, tuple[str, ...]]) -> None:
            source, output, own = job
            argv = (*compiler.compiler, *flags, *own, *include, "-c", str(source), "-o", output)
            run_tool(argv, cwd=work, what=f"compiling {source.name} for this computer", kind=compiler.kind)

        with ThreadPoolExecutor(_processors()) as pool:
            list(pool.map(compile_one, jobs))
        shared = ("-shared", *(("-undefined", "dynamic_lookup") if sys.platform == "darwin" else ()))
        sanitizers = [flag for flag in flags if flag.startswith("-fsanitize")]
        argv = (*compiler.compiler, *shared, *sanitizers, *(output for _, output, _ in jobs), "-o", library.name)
        run_tool(argv, cwd=work, what=f"linking {library.name}", kind=compiler.kind)
        os.replace(work / library.name, library)


def _load(ffi: Any, name: str, library: Path) -> tuple[Any, Any]:
    """cffi's (ffi, lib) of a built library."""
    if _python_header() is None:
        return ffi, ffi.dlopen(str(library))
    spec = importlib.util.spec_from_file_location(name, library)
    if spec is None or spec.loader is None:
        raise InternalError(f"{library.name} is no extension module of this Python")
    try:
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    except ImportError as error:
        raise ToolchainError(f"the library built for this computer cannot be loaded: {library.name}", found=str(error)) from error
    return module.ffi, module.lib


def _checked(graph: IntGraph, given: Int8 | Sequence[Int8]) -> list[Int8]:
    """The inputs in C order, when there is one of the right dtype and shape for each input tensor."""
    inputs = [given] if isinstance(given, np.ndarray) else list(given)
    if len(inputs) != len(graph.inputs):
        raise InputError(
            f"{graph.name} has {len(graph.inputs)} inputs",
            found=f"{len(inputs)} arrays",
            wanted="one array each for " + ", ".join(tensor.name for tensor in graph.inputs),
        )
    for tensor, array in zip(graph.inputs, inputs, strict=True):
        shape = (len(inputs[0]), tensor.h, tensor.w, tensor.c)
        if array.dtype != np.int8 or array.shape != shape:
            raise InputError(
                f"input {tensor.name} of {graph.name} has the wrong form",
                found=f"{array.dtype} {array.shape}",
                wanted=f"int8 (N, {tensor.h}, {tensor.w}, {tensor.c}), the same N for every input",
                do="quantise as the header says: q = real / scale + zero point, channels last",
            )
    return [np.ascontiguousarray(array) for array in inputs]


def _told(tell: Tell | None, fraction: float) -> None:
    if tell is not None:
        tell(fraction)


def _empty(count: int, tensor: QTensor) -> Int8:
    return np.empty((count, tensor.h, tensor.w, tensor.c), np.int8)


def _processors() -> int:
    """Processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
