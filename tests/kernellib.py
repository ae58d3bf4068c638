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
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cffi
import numpy as np
from kernelcases import (
    Array,
    ConvCase,
    Indexed,
    Uniform,
    additive_cases,
    expected,
    indexed_cases,
    narrow_cases,
    scratch_bytes,
    uniform_cases,
)

from kqgen import bits
from kqgen.hostlib import STRICT_FLAGS
from kqgen.toolchain import find_host_compiler, run_tool

ROOT = Path(__file__).resolve().parent.parent
RUNTIME = ROOT / "runtime_c"
NAME = "_kqkernels"

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
int32_t probe_signed(uint32_t value, uint32_t bits);
#define KQ_RUNTIME_VERSION ...
"""

REUSE_TILES = (2, 4, 6, 8, 16)


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
    common = [*compiler.compiler, "-fPIC", *flags, "-I", str(RUNTIME)]
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

    def conv(self, case: ConvCase, form: str, ref: bool = False) -> Array:
        """Runs a layer by `direct`, `unpack`, `decode` or `reuse`, or by that form's plain twin: (h, w, c_out) int8."""
        h, w, c_out = case.out_shape
        with self.memory() as place:
            # Tables, maps and pads lie at odd addresses: nothing may read them by words.
            window = {
                "h_in": case.x.shape[0], "w_in": case.x.shape[1], "c_in": case.x.shape[2], "h_out": h, "w_out": w, "c_out": c_out,
                "k_h": case.kernel[0], "k_w": case.kernel[1], "stride_h": case.stride[0], "stride_w": case.stride[1],
                "pad_top": case.padding[0], "pad_left": case.padding[2], "tile": case.tile,
            }  # fmt: skip
            requant = {
                "bias": place(case.bias.astype(np.int32).tobytes(), "int32_t *"),
                "multiplier": place(case.multiplier.astype(np.int16).tobytes(), "int16_t *"),
                "shift": place(case.shift.astype(np.uint8).tobytes(), "uint8_t *", 1),
                "acc_shift": case.acc_shift, "zero_point": case.zero_point, "lo": case.lo, "hi": case.hi,
            }  # fmt: skip
            pads = self.ffi.NULL if case.pad_values is None else place(case.pad_values.astype(np.int8).tobytes(), "int8_t *", 1)
            common = {"window": window, "requant": requant, "pad_values": pads, "pad_value": case.pad_value}
            if isinstance(case.weights, Uniform):
                table = place(bits.pack_uniform(case.weights.values, case.weights.bits), "uint8_t *", 1)
                layer = self.ffi.new("kq_conv2d *", {**common, "weights": table, "bits": case.weights.bits})
                function = "kq_conv2d_s8"
            else:
                indices, book = indexed_tables(case.weights)
                tables = {"indices": place(indices, "uint8_t *", 1), "codebook": place(book, "uint8_t *", 3)}
                summed = case.weights.second is not None
                codewords = case.weights.codewords if summed else case.weights.nameable
                sizes = {"codewords": codewords, "index_bits": case.weights.index_bits, "sign": int(case.weights.sign)}
                layer = self.ffi.new("kq_conv2d_kq *", {**common, **tables, **sizes})
                function = f"kq_conv2d_{form}{'_additive' if summed else ''}_s8"
            garbage = np.random.default_rng(len(case.label)).integers(0, 256, scratch_bytes(case, form)).astype(np.uint8)
            scratch = place(garbage.tobytes(), "void *")
            output = place(bytes([0x55]) * (h * w * c_out), "int8_t *", 1)
            call = getattr(self.lib, function + ("_ref" if ref else ""))
            call(layer, place(case.x.tobytes(), "int8_t *", 3), output, scratch)
            return np.frombuffer(self.ffi.buffer(output, h * w * c_out), np.int8).reshape(h, w, c_out).copy()


def indexed_tables(weights: Indexed) -> tuple[bytes, bytes]:
    """(indices, codebook) as they are stored."""
    book = bits.pack_codebook(weights.codebook, weights.second is not None)
    return bits.pack_indices(weights.stored_codes, weights.negative, weights.index_bits), book


def forms(case: ConvCase) -> list[tuple[str, ConvCase, bool]]:
    """Every way to run a case: (form, case with that form's tile, plain twin)."""
    if isinstance(case.weights, Uniform):
        form = "direct" if case.weights.bits == 8 else "unpack"
        return [(form, case, False), (form, case, True)]
    if case.weights.second is not None:
        return [("decode", case, False), ("decode", case, True)]
    reuse = replace(case, tile=REUSE_TILES[len(case.label) % len(REUSE_TILES)])
    return [("decode", case, False), ("decode", case, True), ("reuse", reuse, False), ("reuse", reuse, True)]


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
    for case in [*uniform_cases(), *indexed_cases(), *narrow_cases(), *additive_cases()]:
        wanted = expected(case)
        for form, variant, ref in forms(case):
            if not np.array_equal(kernels.conv(variant, form, ref), wanted):
                sys.exit(f"{form} differs on {case.label}")
            runs += 1
    sys.stdout.write(f"{runs} runs\n")


if __name__ == "__main__":
    main(sys.argv[1])
