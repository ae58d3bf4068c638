"""Engine `mve` on an emulated M55: the kernel tests' layers in every tile, by both compilers, with no byte beside a buffer touched.

The engine's plain twin, which all other cores compile, is tested with the other kernels.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import nets
import numpy as np
import numpy.typing as npt
import pytest
from conftest import require_tool
from kernelcases import (
    ConvCase,
    Indexed,
    Uniform,
    additive,
    additive_cases,
    codebook,
    conv_case,
    expected,
    indexed,
    indexed_cases,
    inputs,
    summing,
    uniform,
    uniform_cases,
)
from kernellib import RUNTIME, Way, indexed_tables, shape_of

from kqgen import bits, form_mve, oracle
from kqgen.board import Region, load_board
from kqgen.emit import Meta, emit
from kqgen.firmware import model_api
from kqgen.harness import linker_script
from kqgen.image import build_image
from kqgen.qemu import find_qemu, run_qemu
from kqgen.toolchain import WARNING_FLAGS, compile_object, find_toolchain, link_image

END = 0x2008_0000
"""End of the data TCM of QEMU's mps3-an547; an access there faults."""

BATCH_BYTES = 300_000
"""Of constants in one image."""

MAIN = """\
#include "kq.h"
#include "kq_semihost.h"

#define CANARY 16u

typedef struct {
    const kq_conv2d *uniform;
    const kq_conv2d_kq *indexed;
    const int8_t *x, *held, *wanted;
    const uint8_t *table, *book;
    uint32_t x_bytes, table_bytes, book_bytes, out_bytes, scratch_bytes;
} layer_run;

static uint32_t scratch[SCRATCH_WORDS];
static int8_t output[OUTPUT_BYTES];

/* A copy that ends where memory ends. */
static void *at_end(const void *from, uint32_t size_bytes)
{
    uint8_t *to = (uint8_t *)(END - size_bytes);
    for (uint32_t i = 0; i < size_bytes; ++i) {
        to[i] = ((const uint8_t *)from)[i];
    }
    return to;
}

/* Whether the run gives the wanted bytes and no others, its input (which = 0), table (1) or codebook (2) lying at the end of memory. */
static int right(const layer_run *run, uint32_t which)
{
    const int8_t *x = which == 0 ? at_end(run->x, run->x_bytes) : run->x;
    int8_t *bytes = (int8_t *)scratch;
    for (uint32_t i = 0; i < run->scratch_bytes + CANARY; ++i) {
        bytes[i] = (int8_t)(i * 37u);
    }
    for (uint32_t i = 0; i < run->out_bytes + CANARY; ++i) {
        output[i] = i < run->out_bytes ? run->held[i] : 0x55;
    }
    if (run->uniform != NULL) {
        kq_conv2d layer = *run->uniform;
        layer.weights = which == 1u ? at_end(run->table, run->table_bytes) : run->table;
        kq_conv2d_mve_s8(&layer, x, output, scratch);
    } else {
        kq_conv2d_kq layer = *run->indexed;
        layer.indices = which == 1u ? at_end(run->table, run->table_bytes) : run->table;
        layer.codebook = which == 2u ? at_end(run->book, run->book_bytes) : run->book;
        kq_conv2d_decode_mve_s8(&layer, x, output, scratch);
    }
    for (uint32_t i = 0; i < run->out_bytes + CANARY; ++i) {
        if (output[i] != (i < run->out_bytes ? run->wanted[i] : 0x55)) {
            return 0;
        }
    }
    for (uint32_t i = run->scratch_bytes; i < run->scratch_bytes + CANARY; ++i) {
        if (bytes[i] != (int8_t)(i * 37u)) {
            return 0;
        }
    }
    return 1;
}

/* Prints the number of a run that went wrong, in four digits. */
static void tell(uint32_t number)
{
    for (uint32_t place = 1000u; place != 0; place = place == 1000u ? 100u : place == 100u ? 10u : place == 10u ? 1u : 0) {
        uint32_t digit = 0;
        for (; number >= place; number -= place) {
            ++digit;
        }
        const uint8_t text[2] = {(uint8_t)('0' + digit), 0};
        kq_sh_print(text);
    }
    kq_sh_print(" ");
}

int main(void);
int main(void)
{
    for (uint32_t number = 0; number < sizeof runs / sizeof runs[0]; ++number) {
        for (uint32_t which = 0; which < 3u; ++which) {
            if (!right(&runs[number], which)) {
                tell(number);
            }
        }
    }
    return 0;
}
"""


def array(kind: str, name: str, values: npt.NDArray[np.generic] | bytes) -> str:
    """A constant array in C."""
    numbers = np.frombuffer(values, np.uint8) if isinstance(values, bytes) else values
    return f"static const {kind} {name}[] = {{{','.join(map(str, numbers.ravel().tolist()))}}};\n"


def mve_ways(case: ConvCase) -> list[Way]:
    """All of the engine's candidates."""
    found = form_mve.candidates(shape_of(case), "m55")
    return [Way(each.function, each.tile, each.strip, each.scratch_bytes) for each in found]


def case_source(case: ConvCase, name: str) -> tuple[str, list[str]]:
    """The constants of a case, and the initialiser of each of its runs."""
    h, w, c_out = case.out_shape
    held = np.full((h, w, c_out), 0x55) if case.addend is None else case.addend.held
    wanted = expected(case)
    text = [
        array("int8_t", f"{name}_x", case.x), array("int8_t", f"{name}_held", held), array("int8_t", f"{name}_wanted", wanted),
        array("int32_t", f"{name}_bias", case.bias), array("int16_t", f"{name}_m", case.multiplier),
        array("uint8_t", f"{name}_s", case.shift),
    ]  # fmt: skip
    if case.addend is not None:
        add = case.addend
        values = f"0, {add.multiplier_a}, {add.multiplier_b}, {add.bias}, {add.shift}, {add.lo}, {add.hi}, 0"
        text.append(f"static const kq_add {name}_add = {{{values}}};\n")
    if case.pad_values is not None:
        text.append(array("int8_t", f"{name}_pads", case.pad_values))
    stored = case.weights
    table, book = (bits.pack_uniform(stored.values, stored.bits), b"") if isinstance(stored, Uniform) else indexed_tables(stored)
    text += [array("uint8_t", f"{name}_table", table), array("uint8_t", f"{name}_book", book or b"\0")]
    sum_ = "NULL" if case.addend is None else f"&{name}_add"
    pads = "NULL" if case.pad_values is None else f"{name}_pads"
    requant = f"{{{name}_bias, {name}_m, {name}_s, {sum_}, {case.acc_shift}, {case.zero_point}, {case.lo}, {case.hi}}}"
    runs = []
    for number, way in enumerate(mve_ways(case)):
        window = (*case.x.shape, h, w, c_out, *case.kernel, *case.stride, case.padding[0], case.padding[2], way.tile)
        start = f"{{{{{', '.join(map(str, window))}}}, {requant}, {pads}, NULL, "
        struct = f"{name}_{number}"
        if isinstance(stored, Uniform):
            text.append(f"static const kq_conv2d {struct} = {start}{case.pad_value}, {stored.bits}, {{0, 0}}}};\n")
            which = f"&{struct}, NULL"
        else:
            codewords, stages = (stored.nameable, 1) if stored.second is None else (stored.codewords, 2)
            sizes = f"{codewords}, {way.strip}, {stored.index_bits}, {int(stored.sign)}, {case.pad_value}, {stages}"
            text.append(f"static const kq_conv2d_kq {struct} = {start}NULL, {sizes}}};\n")
            which = f"NULL, &{struct}"
        arrays = ", ".join(f"{name}_{part}" for part in ("x", "held", "wanted", "table", "book"))
        runs.append(f"{{{which}, {arrays}, {case.x.size}, {len(table)}, {len(book)}, {wanted.size}, {way.scratch_bytes}}}")
    return "".join(text), runs


def batches(cases: Sequence[ConvCase]) -> Iterator[list[ConvCase]]:
    """The cases in lots that fit the machine's memory."""
    lot: list[ConvCase] = []
    size = 0
    for case in cases:
        stored = case.weights
        table = stored.values.size if isinstance(stored, Uniform) else stored.codes.size * 2 + stored.codebook.size
        own = case.x.size + 2 * int(np.prod(case.out_shape)) + table + 1000
        if lot and size + own > BATCH_BYTES:
            yield lot
            lot, size = [], 0
        lot.append(case)
        size += own
    yield lot


def check(cases: Sequence[ConvCase], kind: Literal["gcc", "zig"], folder: Path) -> None:
    """Runs every case in every way on the machine."""
    require_tool(kind, "qemu")
    for number, lot in enumerate(batches(cases)):
        here = folder / str(number)
        here.mkdir()
        run_lot(lot, kind, here)


def run_lot(cases: Sequence[ConvCase], kind: Literal["gcc", "zig"], folder: Path) -> None:
    toolchain = find_toolchain(kind)
    board = replace(load_board("mps3-an547"), regions=(Region("flash", 0, 512 << 10), Region("ram", 0x2000_0000, 0x6_0000)))
    sources = [case_source(case, f"c{number}") for number, case in enumerate(cases)]
    runs = [(case, way) for case in cases for way in mve_ways(case)]
    words = max(way.scratch_bytes for _, way in runs) // 4 + 8
    largest = max(int(np.prod(case.out_shape)) for case in cases) + 16
    head, _, tail = MAIN.partition("static uint32_t scratch")
    table = ",\n".join(run for _, own in sources for run in own)
    text = "".join(text for text, _ in sources) + f"static const layer_run runs[] = {{{table}}};\n"
    (folder / "main.c").write_text(head + text + "static uint32_t scratch" + tail, encoding="ascii")
    (folder / "link.ld").write_text(linker_script(board), encoding="ascii")
    defines = (f"-DSCRATCH_WORDS={words}u", f"-DOUTPUT_BYTES={largest}u", f"-DEND={END:#x}u")
    port = RUNTIME / "port"
    for source, name, flags in (
        (RUNTIME / "kq_conv2d_mve.c", "model-mve.o", WARNING_FLAGS), (folder / "main.c", "port-main.o", defines),
        (port / "kq_start.c", "port-start.o", ("-fno-builtin",)), (port / "kq_memory.c", "port-memory.o", ("-fno-builtin",)),
    ):  # fmt: skip
        compile_object(toolchain, board.core, source, folder / name, include=(RUNTIME, port), flags=flags)
    link_image(toolchain, board.core, folder, ("model-mve.o", "port-main.o", "port-start.o", "port-memory.o"), "link.ld", "cases.elf")
    argv = [
        find_qemu(), "-M", "mps3-an547", "-display", "none", "-monitor", "none", "-serial", "null", "-nic", "none",
        "-chardev", "stdio,id=sh", "-semihosting-config", "enable=on,target=native,chardev=sh", "-kernel", "cases.elf",
    ]  # fmt: skip
    done = subprocess.run(argv, cwd=folder, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout
    wrong = [runs[int(word)] for word in done.stdout.split()]
    assert not wrong, [f"{way}: {case.label}, adds: {case.addend is not None}" for case, way in wrong[:3]]


def special_cases() -> list[ConvCase]:
    """Rows and tiles with odd ends, vectors filled to the last byte and just over, indices over three bytes, tables beyond halfwords."""
    cases = []
    sizes = ((1, 16, 1), (2, 16, 2), (3, 15, 3), (5, 17, 9), (8, 32, 16), (7, 33, 10), (4, 4, 7), (1, 1, 1))
    for number, (w, c_in, c_out) in enumerate(sizes):
        rng = np.random.default_rng(500 + number)
        x = inputs(rng, (3, w, c_in), "ends" if number % 3 == 0 else "any")
        pads = (1, 1, 1, 1)
        label = f"{w}x{c_in}->{c_out}"
        stored = uniform(rng, c_out, c_in, (3, 3), (8, 6, 4)[number % 3])
        cases.append(conv_case(rng, f"odd ends {label}", x, stored, padding=pads))
        plain = indexed(rng, c_out, c_in, codebook(rng, 700, (3, 3)), True)
        cases.append(conv_case(rng, f"11 bits {label}", x, plain, padding=pads, stride=(1, 2)))
        summed = additive(rng, c_out, c_in, (3, 3), 30, number % 2 == 0)
        cases.append(conv_case(rng, f"two stages {label}", x, summed, padding=pads))
    rng = np.random.default_rng(600)
    x = inputs(rng, (5, 5, 3), "any")
    cases.append(conv_case(rng, "large codebook", x, indexed(rng, 9, 3, codebook(rng, 2700, (5, 5)), False), padding=(2, 2, 2, 2)))
    x = inputs(rng, (5, 5, 330), "any")
    cases.append(conv_case(rng, "large windows", x, indexed(rng, 3, 330, codebook(rng, 20, (5, 5)), True)))
    wide = indexed(rng, 12, 40, codebook(rng, 64, (3, 3)), True)
    cases.append(conv_case(rng, "rows past the map", inputs(rng, (2, 2, 40), "any"), wide, (1, 1), (4, 4, 5, 5)))
    return cases


def test_special_cases_are_what_they_say() -> None:
    weights = [case.weights for case in special_cases() if isinstance(case.weights, Indexed)]
    assert 11 in {stored.index_bits for stored in weights}
    assert max(stored.codebook.size for stored in weights) > 0xFFFF
    assert max(8 * stored.values[0].size for stored in weights) > 0xFFFF


@pytest.mark.parametrize("kind", ["gcc", "zig"])
def test_special_cases(kind: Literal["gcc", "zig"], tmp_path: Path) -> None:
    cases = special_cases()
    check([*cases, *(summing(case) for case in cases[::2])], kind, tmp_path)


def test_uniform_weights(tmp_path: Path) -> None:
    cases = uniform_cases()
    check([*cases, *(summing(case) for case in cases[::3])], "gcc", tmp_path)


def test_indexed_kernels(tmp_path: Path) -> None:
    cases = [*indexed_cases()[::2], *additive_cases()]
    check([*cases, *(summing(case) for case in cases[::3])], "gcc", tmp_path)


@pytest.mark.parametrize("kind", ["gcc", "zig"])
@pytest.mark.parametrize("channels", [1, 4, 7, 24])
def test_maps_without_weights(channels: int, kind: Literal["gcc", "zig"], tmp_path: Path) -> None:
    """Means over windows with and without padding, and a sum, of whole vectors of channels and of what is left over."""
    require_tool(kind, "qemu")
    net = nets.Builder("maps", channels)
    net.input("image", 9, 8, channels)
    net.avg_pool("half", (2, 2), padding=(1, 0, 0, 0))
    net.add("twice", "half", "half", lo=-100)
    net.avg_pool("window", (3, 4), (1, 2), (1, 1, 1, 2))
    net.avg_pool("all", (5, 2))
    plan = nets.make_plan(net.graph())
    board = load_board("mps3-an547")
    inputs = nets.random_inputs(plan.graph, 1, seed=channels)
    nets.write(emit(plan, board, nets.make_golden(plan.graph, inputs), Meta("test", "")), tmp_path / "src")
    image = build_image(tmp_path / "src", model_api(plan.graph), board, find_toolchain(kind), tmp_path / "build", tap=True)
    run = run_qemu(image, [inputs[0].tobytes()])
    wanted = oracle.run(plan.graph, {"image": inputs[0]})
    assert run.taps is not None
    assert [tap.data for tap in run.taps[0]] == [wanted[node.name][0].tobytes() for node in plan.graph.nodes]
