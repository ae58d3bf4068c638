"""The runtime's kernels as a library of this computer, called with every buffer in an allocation of exactly its size.

Run as a program it calls every case once: `python kernellib.py FOLDER` with a library that `build` made, for sanitisers.
"""

from __future__ import annotations

import importlib.machinery
import importlib.util
import re
import sys
import sysconfig
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cffi
import mapcases
import numpy as np
from kernelcases import (
    Array,
    ConvCase,
    Indexed,
    Uniform,
    additive_cases,
    depthwise_cases,
    dilated_cases,
    expected,
    indexed_cases,
    narrow_cases,
    summing,
    uniform_cases,
)

from kqgen import bits
from kqgen.board import CORES
from kqgen.conv_shape import ConvShape, WeightsKind
from kqgen.forms import ENGINES, engine_core
from kqgen.hostlib import STRICT_FLAGS
from kqgen.toolchain import find_host_compiler, run_tool

ROOT = Path(__file__).resolve().parent.parent
RUNTIME = ROOT / "runtime_c"
NAME = "_kqkernels"
ENGINE_CORES = tuple(dict.fromkeys(engine_core(core) for core in CORES))

PLAIN_FLAGS = ("-O2",)
SANITIZE_FLAGS = ("-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")

_PROBES = """\
#include <stdlib.h>
#include <string.h>
#include "kq.h"
#include "kq_bits.h"
#include "kq_fixed.h"

static void probe_scale(size_t count, const int32_t *acc, const int16_t *m, const uint8_t *s, const uint8_t *a, int32_t *out)
{
    for (size_t i = 0; i < count; ++i) {
        out[i] = kq_scale((uint32_t)acc[i], (uint32_t)m[i], s[i], a[i]);
    }
}

static void probe_bits(const uint8_t *table, uint32_t entry, uint32_t bits, size_t count, uint16_t *out)
{
    kq_bit_reader reader = kq_bits_at(table, entry, bits);
    for (size_t i = 0; i < count; ++i) {
        out[i] = (uint16_t)kq_bits_next(&reader, bits);
    }
}

static void probe_product(size_t count, const int32_t *a, const int32_t *b, int32_t *out)
{
    for (size_t i = 0; i < count; ++i) {
        out[i] = kq_product_q31(a[i], b[i], 0x4000u);
    }
}

static int32_t probe_signed(uint32_t value, uint32_t bits)
{
    return kq_sign_extend(value, bits);
}
"""

_PROBE_DECLARATIONS = """
void *malloc(size_t size);
void free(void *pointer);
void *memcpy(void *to, const void *from, size_t size);
void probe_scale(size_t count, const int32_t *acc, const int16_t *m, const uint8_t *s, const uint8_t *a, int32_t *out);
void probe_bits(const uint8_t *table, uint32_t entry, uint32_t bits, size_t count, uint16_t *out);
void probe_product(size_t count, const int32_t *a, const int32_t *b, int32_t *out);
int32_t probe_signed(uint32_t value, uint32_t bits);
#define KQ_RUNTIME_VERSION ...
"""


def declarations() -> str:
    """Structs and functions of the runtime, as its own headers write them."""
    types = re.sub(r"/\*.*?\*/", "", (RUNTIME / "kq_types.h").read_text(encoding="utf-8"), flags=re.DOTALL)
    calls = (RUNTIME / "kq.h").read_text(encoding="utf-8")
    structs = re.findall(r"typedef struct \{.*?\} \w+;", types, flags=re.DOTALL)
    functions = re.findall(r"^(?:void|uint32_t) kq_\w+\(.*?\);", calls, flags=re.MULTILINE)
    return "\n".join([*structs, *functions])


def build(folder: Path, flags: Sequence[str]) -> None:
    """Compiles runtime and probes into `folder` with the strict warnings."""
    compiler = find_host_compiler()
    ffi = cffi.FFI()
    ffi.cdef(declarations() + _PROBE_DECLARATIONS)
    ffi.set_source(NAME, _PROBES)
    ffi.emit_c_code(str(folder / f"{NAME}.c"))
    sources = sorted(str(path) for path in RUNTIME.glob("*.c"))
    common = [*compiler.compiler, "-fPIC", "-DKQ_WITH_TFLITE=1", *flags, "-I", str(RUNTIME)]
    run_tool([*common, *STRICT_FLAGS, "-c", *sources], cwd=folder, what="compiling the runtime", kind=compiler.kind)
    python = sysconfig.get_paths()["include"]
    objects = [f"{Path(source).stem}.o" for source in sources]
    command = [*common, "-I", python, "-shared", f"{NAME}.c", *objects, "-o", f"{NAME}.so"]
    run_tool(command, cwd=folder, what="linking the kernels", kind=compiler.kind)


@dataclass(frozen=True, slots=True)
class Kernels:
    """The loaded library."""

    ffi: Any
    lib: Any

    @contextmanager
    def memory(self) -> Iterator[Callable[..., Any]]:
        """place(bytes, type, offset): a pointer to a copy that begins `offset` bytes into an allocation and ends with it."""
        blocks: list[Any] = []

        def place(data: bytes, kind: str = "uint8_t *", offset: int = 0) -> Any:
            block = self.lib.malloc(len(data) + offset)
            blocks.append(block)
            start = self.ffi.cast("uint8_t *", block) + offset
            self.lib.memcpy(start, data, len(data))
            return self.ffi.cast(kind, start)

        try:
            yield place
        finally:
            for block in blocks:
                self.lib.free(block)

    def conv(self, case: ConvCase, way: Way, in_place: bool = False) -> Array:
        """Runs a layer one way: (h, w, c_out) int8; `in_place`: the output takes the input's place, of the same shape."""
        h, w, c_out = case.out_shape
        with self.memory() as place:
            # Tables, maps and pads lie at odd addresses: nothing may read them by words.
            window = {
                "h_in": case.x.shape[0], "w_in": case.x.shape[1], "c_in": case.x.shape[2], "h_out": h, "w_out": w, "c_out": c_out,
                "k_h": case.kernel[0], "k_w": case.kernel[1], "stride_h": case.stride[0], "stride_w": case.stride[1],
                "pad_top": case.padding[0], "pad_left": case.padding[2], "tile": way.tile,
            }  # fmt: skip
            addend = self.ffi.NULL
            if case.addend is not None:
                addend = self.ffi.new("kq_add *", {
                    "multiplier_a": case.addend.multiplier_a, "multiplier_b": case.addend.multiplier_b, "bias": case.addend.bias,
                    "shift": case.addend.shift, "lo": case.addend.lo, "hi": case.addend.hi,
                })  # fmt: skip
            requant = {
                "bias": place(case.bias.astype(np.int32).tobytes(), "int32_t *"),
                "multiplier": place(case.multiplier.astype(np.int16).tobytes(), "int16_t *"),
                "shift": place(case.shift.astype(np.uint8).tobytes(), "uint8_t *", 1), "sum": addend,
                "acc_shift": case.acc_shift, "zero_point": case.zero_point, "lo": case.lo, "hi": case.hi,
            }  # fmt: skip
            pads = self.ffi.NULL if case.pad_values is None else place(case.pad_values.astype(np.int8).tobytes(), "int8_t *", 1)
            common = {"window": window, "requant": requant, "pad_values": pads, "pad_value": case.pad_value}
            if isinstance(case.weights, Uniform):
                table = place(bits.pack_uniform(case.weights.values, case.weights.bits), "uint8_t *", 1)
                layer = self.ffi.new("kq_conv2d *", {**common, "weights": table, "bits": case.weights.bits})
            else:
                indices, book = indexed_tables(case.weights)
                tables = {"indices": place(indices, "uint8_t *", 1), "codebook": place(book, "uint8_t *", 3)}
                summed = case.weights.second is not None
                sizes = {
                    "codewords": case.weights.codewords if summed else case.weights.nameable, "index_bits": case.weights.index_bits,
                    "sign": int(case.weights.sign), "strip": way.strip, "stages": 2 if summed else 1,
                }  # fmt: skip
                layer = self.ffi.new("kq_conv2d_kq *", {**common, **tables, **sizes})
            garbage = np.random.default_rng(len(case.label)).integers(0, 256, way.scratch_bytes).astype(np.uint8)
            # A multiple of 4 and of no higher power of two: no more is promised.
            scratch = place(garbage.tobytes(), "void *", 4)
            held = bytes([0x55]) * (h * w * c_out) if case.addend is None else case.addend.held.astype(np.int8).tobytes()
            output = place(held, "int8_t *", 1)
            given = place(case.x.tobytes(), "int8_t *", 3)
            output = given if in_place else output
            getattr(self.lib, way.function)(layer, given, output, scratch)
            return np.frombuffer(self.ffi.buffer(output, h * w * c_out), np.int8).reshape(h, w, c_out).copy()


def indexed_tables(weights: Indexed) -> tuple[bytes, bytes]:
    """(indices, codebook) as they are stored."""
    book = bits.pack_codebook(weights.codebook, weights.second is not None)
    return bits.pack_indices(weights.stored_codes, weights.negative, weights.index_bits), book


@dataclass(frozen=True, slots=True)
class Way:
    """One call of a kernel: which function, with which tile, strip and scratch."""

    function: str
    tile: int
    strip: int
    scratch_bytes: int


def shape_of(case: ConvCase) -> ConvShape:
    """What the forms are told of a case."""
    indexed = case.weights if isinstance(case.weights, Indexed) else None
    values = np.abs(case.weights.values.astype(np.int64))
    kind: WeightsKind = "uniform"
    if indexed is not None:
        kind = "indexed" if indexed.second is None else "additive"
    (h, w, c_in), (h_out, w_out, c_out) = case.x.shape, case.out_shape
    return ConvShape(
        h, w, c_in, h_out, w_out, c_out, case.kernel, case.stride, case.padding, kind=kind,
        bits=case.weights.bits if isinstance(case.weights, Uniform) else case.weights.index_bits,
        sign=indexed is not None and indexed.sign, codewords=0 if indexed is None else indexed.nameable,
        sums=case.addend is not None, largest_weight=int(values.max()), largest_sum=int(values.reshape(len(values), -1).sum(axis=1).max()),
        depthwise=case.depthwise, dilation=case.dilation,
    )  # fmt: skip


def ways(case: ConvCase, every: bool = False) -> tuple[Way, ...]:
    """Every function that can run a case, with the least and the most scratch any core's candidates give it (all of them if `every`),
    and the plain twins."""
    shape = shape_of(case)
    found = {
        Way(each.function, each.tile, each.strip, each.scratch_bytes)
        for core in ENGINE_CORES for engine in ENGINES for each in engine(shape, core)
    }  # fmt: skip
    chosen: list[Way] = []
    for function in sorted({way.function for way in found}):
        own = sorted((way for way in found if way.function == function), key=lambda way: (way.scratch_bytes, way.tile, way.strip))
        chosen += own if every else dict.fromkeys((own[0], own[-1]))
    return (*chosen, *_twins(case))


def _twins(case: ConvCase) -> tuple[Way, ...]:
    if case.dilation != (1, 1):
        return ()
    if case.depthwise:
        return (Way(f"kq_depthwise_{'' if isinstance(case.weights, Uniform) else 'decode_'}s8_ref", 1, 0, 0),)
    if isinstance(case.weights, Uniform):
        return (Way("kq_conv2d_s8_ref", 1, 0, 0),)
    if case.weights.second is not None:
        return (Way("kq_conv2d_decode_additive_s8_ref", 1, 0, 0),)
    sums_bytes = 4 * case.out_shape[2] + 4 * case.weights.nameable
    return (Way("kq_conv2d_decode_s8_ref", 1, 0, 0), Way("kq_conv2d_reuse_s8_ref", 2, 0, sums_bytes))


def load(folder: Path) -> Kernels:
    """The library that `build` left in `folder`."""
    loader = importlib.machinery.ExtensionFileLoader(NAME, str(folder / f"{NAME}.so"))
    spec = importlib.util.spec_from_file_location(NAME, folder / f"{NAME}.so", loader=loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return Kernels(module.ffi, module.lib)


def main(folder: str) -> None:
    """Runs every case in every form and compares; prints how many."""
    kernels = load(Path(folder))
    runs = 0
    cases = [*uniform_cases(), *indexed_cases(), *narrow_cases(), *additive_cases(), *depthwise_cases(), *dilated_cases()]
    for case in [*cases, *(summing(case) for case in cases[::4])]:
        wanted = expected(case)
        for way in ways(case):
            if not np.array_equal(kernels.conv(case, way), wanted):
                sys.exit(f"{way} differs on {case.label}")
            runs += 1
    for each in mapcases.cases():
        for over in (None, *each.over):
            if not np.array_equal(mapcases.run(kernels, each, over), each.wanted):
                sys.exit(f"{each.function} differs on {each.label}")
            runs += 1
    sys.stdout.write(f"{runs} runs\n")


if __name__ == "__main__":
    main(sys.argv[1])
