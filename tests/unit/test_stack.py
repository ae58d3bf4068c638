"""The stack bound holds against what programs really use, and is exact where the worst path runs."""

from __future__ import annotations

import importlib
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from conftest import require_tool

from kqgen.board import load_core
from kqgen.elf import Elf, Frame, read_elf
from kqgen.errors import InternalError
from kqgen.stack import FunctionRange, worst_stack, worst_stack_of
from kqgen.thumb import Program

CORES = ("m0p", "m3", "m4", "m33", "m7")
COMPILERS = ("gcc", "zig")
STACK, STACK_BYTES = 0x30000000, 0x10000
RETURN = 0x00080000

# `sink` writes the whole of its array from the far end on, so frames are seen in full.
PROGRAM = """
volatile int keep;
__attribute__((noinline)) void sink(int *p, int n) { for (int i = 0; i < n; i++) { p[i] = n + i; } keep = p[n / 2]; }
__attribute__((noinline)) int leaf(int a) { int x[10]; sink(x, 10); return x[a & 7]; }
__attribute__((noinline)) int large(int a) { int x[700]; sink(x, 700); return x[a & 7] + leaf(a); }
__attribute__((noinline)) int tail(int a) { int x[50]; sink(x, 50); return leaf(x[a & 7]); }
__attribute__((noinline)) int spread(int a, int b, int c, int d, int e, int f) { return leaf(a + b) * c + leaf(d + e) * f; }
__attribute__((noinline)) int choice(int a, int *p)
{
    switch (a) {
    case 0: sink(p, 1); return 3;
    case 1: sink(p, 2); return tail(a) + 1;
    case 2: return large(a) * 2;
    case 3: return 7;
    case 4: sink(p, 4); return p[1] + 5;
    case 5: return spread(1, 2, 3, 4, 5, a);
    case 6: return p[2] * 3;
    case 7: return leaf(a) ^ 21;
    default: return 0;
    }
}
__attribute__((noinline)) int early(int *p, int n) { if (!p) { return 0; } sink(p, n); return leaf(p[0] & 3) + p[n - 1]; }
int chain(int a) { int x[8]; sink(x, 8); return large(x[a & 7]) + tail(a); }
int several(int a)
{
    int x[8], s = 0;
    sink(x, 8);
    for (int i = 0; i < 9; i++) { s += choice(i, x); }
    return s + early(x, 8) + early(0, a);
}
int plain(int a) { return a + 1; }
"""

BAD_PROGRAM = """
volatile int keep;
__attribute__((noinline)) int again(int n) { volatile int x[4]; x[n & 3] = n; return n < 1 ? 0 : again(n - 1) + x[n & 3]; }
int pong(int n);
__attribute__((noinline)) int ping(int n) { volatile int x[4]; x[n & 3] = n; return n < 1 ? x[1] : pong(n - 1) + 1; }
__attribute__((noinline)) int pong(int n) { volatile int x[4]; x[n & 3] = n; return n < 1 ? x[2] : ping(n - 1) * 3; }
int (*volatile where)(int) = again;
int through(int a) { return where(a) + 1; }
int jumps(int a) { return where(a); }
int calls(int a) { return through(a) * 2; }
int recursive(int a) { return again(a) * 2 + 1; }
int mutual(int a) { return ping(a) * 2 + 1; }
"""


@dataclass(frozen=True)
class Built:
    elf: Elf
    frames: tuple[Frame, ...]
    core: str


def su_frames(text: str) -> tuple[Frame, ...]:
    rows = [line.split("\t") for line in text.splitlines()]
    return tuple(Frame(where.rsplit(":", 1)[1], int(size)) for where, size, _ in rows)


def build(folder: Path, source: str, core: str, compiler: str, *flags: str) -> Built:
    require_tool("gcc" if compiler == "gcc" else "zig")
    (folder / "p.c").write_text(source, encoding="utf-8")
    model = load_core(core)
    common = [*(flags or ("-O2",)), "-ffreestanding", "-nostdlib", "p.c", "-o", "p.elf"]
    if compiler == "gcc":
        command = ["arm-none-eabi-gcc", f"-mcpu={model.gcc_cpu}", "-mthumb", "-fstack-usage", "-Wl,-Ttext=0x10000", "-Wl,-Tdata=0x20000000",
                   "-Wl,-e,0", *common, "-lgcc"]  # fmt: skip
    else:
        command = [sys.executable, "-m", "ziglang", "cc", "-target", "thumb-freestanding-eabi", f"-mcpu={model.zig_cpu}",
                   "-fno-unwind-tables", "-fno-sanitize=undefined", "-fstack-size-section", "-Wl,-e,0", "-Wl,--image-base=0x10000",
                   "-Wl,--no-gc-sections", *common]  # fmt: skip
    subprocess.run(command, cwd=folder, check=True, capture_output=True)
    elf = read_elf(folder / "p.elf")
    frames = su_frames(next(folder.glob("*.su")).read_text(encoding="utf-8")) if compiler == "gcc" else elf.frames
    assert frames
    return Built(elf, frames, core)


def mark_bytes(built: Built, function: str, argument: int) -> int:
    """How far below the stack's top a call writes."""
    require_tool("unicorn")
    unicorn: Any = importlib.import_module("unicorn")
    arm_const: Any = importlib.import_module("unicorn.arm_const")
    engine = unicorn.Uc(unicorn.UC_ARCH_ARM, unicorn.UC_MODE_THUMB)
    engine.ctl_set_cpu_model(getattr(arm_const, f"UC_CPU_ARM_{load_core(built.core).unicorn_model}"))
    engine.mem_map(0, 1 << 20)
    engine.mem_map(0x20000000, 1 << 16)
    engine.mem_map(STACK, STACK_BYTES)
    for segment in built.elf.segments:
        engine.mem_write(segment.address, segment.data)
    top = STACK + STACK_BYTES - 64
    lowest = [top]

    def on_write(_engine: object, _access: int, address: int, _size: int, _value: int, _data: object) -> None:
        lowest[0] = min(lowest[0], address)

    engine.hook_add(unicorn.UC_HOOK_MEM_WRITE, on_write, begin=STACK, end=top - 1)
    registers = {arm_const.UC_ARM_REG_SP: top, arm_const.UC_ARM_REG_LR: RETURN | 1, arm_const.UC_ARM_REG_R0: argument}
    for register, value in registers.items():
        engine.reg_write(register, value)
    engine.emu_start(built.elf.symbol(function).address | 1, RETURN, count=1_000_000)
    assert engine.reg_read(arm_const.UC_ARM_REG_SP) == top
    return top - lowest[0]


@pytest.mark.parametrize("compiler", COMPILERS)
@pytest.mark.parametrize("core", CORES)
def test_bound_holds_and_is_exact_where_the_worst_path_runs(core: str, compiler: str, tmp_path: Path) -> None:
    built = build(tmp_path, PROGRAM, core, compiler)
    for function, argument in (("leaf", 1), ("large", 1), ("tail", 1), ("chain", 1), ("several", 1)):
        bound = worst_stack_of(built.elf, built.frames, function)
        assert bound.path[0] == function
        assert bound.bytes == mark_bytes(built, function, argument), (function, bound)
    plain = worst_stack_of(built.elf, built.frames, "plain")
    assert plain.bytes >= mark_bytes(built, "plain", 1)
    # `choice` as it is called here takes a short way; the bound is that of its longest.
    assert worst_stack_of(built.elf, built.frames, "choice").bytes > mark_bytes(built, "choice", 3)


@pytest.mark.parametrize(("compiler", "level"), [("gcc", "-Os"), ("gcc", "-O1"), ("gcc", "-O3"), ("zig", "-O1"), ("zig", "-O3")])
def test_bound_holds_at_other_levels(compiler: str, level: str, tmp_path: Path) -> None:
    built = build(tmp_path, PROGRAM, "m0p", compiler, level)
    for function in ("chain", "several"):
        assert worst_stack_of(built.elf, built.frames, function).bytes >= mark_bytes(built, function, 1) > 2800


@pytest.mark.parametrize("core", CORES)
def test_path_names_the_functions_that_hold_the_stack(core: str, tmp_path: Path) -> None:
    bound = worst_stack_of((built := build(tmp_path, PROGRAM, core, "gcc")).elf, built.frames, "chain")
    assert bound.path[:3] == ("chain", "large", "leaf")


@pytest.mark.parametrize("core", ["m0p", "m4"])
def test_functions_without_a_recorded_frame_are_read_from_code(core: str, tmp_path: Path) -> None:
    built = build(tmp_path, PROGRAM, core, "gcc")
    for function in ("leaf", "large", "tail", "chain"):
        assert worst_stack_of(built.elf, (), function).bytes == mark_bytes(built, function, 1)


@pytest.mark.parametrize("core", ["m0p", "m4"])
def test_recorded_frames_count_whole_and_pushes_are_in_them(core: str, tmp_path: Path) -> None:
    """A compiler's larger figure is believed, and its true one already holds the pushed registers."""
    built = build(tmp_path, PROGRAM, core, "gcc")
    larger = [Frame(f.function, f.size_bytes + 1000 * (f.function == "leaf")) for f in built.frames]
    assert worst_stack_of(built.elf, larger, "large").bytes == worst_stack_of(built.elf, built.frames, "large").bytes + 1000
    recorded = {f.function: f.size_bytes for f in built.frames}
    below, whole = (worst_stack_of(built.elf, built.frames, function).bytes for function in ("leaf", "large"))
    assert recorded["large"] + below == whole


@pytest.mark.parametrize("compiler", COMPILERS)
@pytest.mark.parametrize("core", ["m0p", "m4"])
@pytest.mark.parametrize(("root", "culprit", "what"), [
    ("through", "through", "indirect call"),
    ("jumps", "jumps", "indirect call"),
    ("calls", "through|calls", "indirect call"),
    ("recursive", "again|recursive", "calls itself"),
    ("mutual", "ping|pong|mutual", "calls itself"),
])  # fmt: skip
def test_unbounded_stacks_are_refused_by_name(root: str, culprit: str, what: str, core: str, compiler: str, tmp_path: Path) -> None:
    built = build(tmp_path, BAD_PROGRAM, core, compiler, "-O1", "-fno-inline")
    with pytest.raises(InternalError, match=what) as caught:
        worst_stack_of(built.elf, built.frames, root)
    assert any(name in str(caught.value).splitlines()[0] for name in culprit.split("|"))


# --- hand-made code -------------------------------------------------------------------------------------------------------------------

V6M, V7M = 12, 10


def image(code: str, cpu_arch: int = V7M, at: int = 0x100) -> Program:
    """Halfwords in hexadecimal as a listing prints them."""
    return Program(cpu_arch, ((at, b"".join(bytes.fromhex(half)[::-1] for half in code.split())),))


def test_literal_pools_are_not_code() -> None:
    """The pool behind the return reads as `bl 0x100`: not a call, so not a recursion."""
    program = image("b510 4801 b086 b006 bd10 46c0 f7ff fff8", V6M)
    assert worst_stack(program, {"f": FunctionRange(0x100, 16)}, {}, "f").bytes == 8 + 24


def test_early_return_in_an_it_block_goes_on_behind_it() -> None:
    program = image("2800 bf08 4770 b5f0 bdf0")  # cmp r0, #0; it eq; bxeq lr; push {r4-r7, lr}; pop {r4-r7, pc}
    assert worst_stack(program, {"f": FunctionRange(0x100, 10)}, {}, "f").bytes == 20


def test_tail_call_has_given_its_frame_back() -> None:
    # f: push {r4, lr}; sub sp, #16; add sp, #16; pop.w {r4, lr}; b.n g      g: push {r4-r7, lr}; pop {r4-r7, pc}
    program = image("b510 b084 b004 e8bd 4010 e7ff b5f0 bdf0")
    functions = {"f": FunctionRange(0x100, 12), "g": FunctionRange(0x10C, 4)}
    bound = worst_stack(program, functions, {"f": 24}, "f")
    assert (bound.bytes, bound.path) == (24, ("f",))
    deeper = worst_stack(program, functions, {"f": 24, "g": 100}, "f")
    assert (deeper.bytes, deeper.path) == (100, ("f", "g"))


def test_call_through_a_literal_is_known() -> None:
    # f: push {r4, lr}; ldr r3, [pc, #4]; blx r3; pop {r4, pc}; literal g|1      g: push {r4-r7, lr}; pop {r4-r7, pc}
    program = image("b510 4b01 4798 bd10 010d 0000 b5f0 bdf0", V6M)
    bound = worst_stack(program, {"f": FunctionRange(0x100, 12), "g": FunctionRange(0x10C, 4)}, {}, "f")
    assert (bound.bytes, bound.path) == (8 + 20, ("f", "g"))


def test_branch_table_targets_are_followed() -> None:
    # tbb [pc, r0] over two entries: bx lr, and push {r4-r7, lr}; pop {r4-r7, pc}
    program = image("e8df f000 0201 4770 b5f0 bdf0")
    assert worst_stack(program, {"f": FunctionRange(0x100, 12)}, {}, "f").bytes == 20


def test_large_frame_from_a_literal() -> None:
    # push {r7, lr}; ldr r7, [pc, #8]; add sp, r7; ldr r7, [pc, #8]; add sp, r7; pop {r7, pc}; -2800; 2800
    program = image("b580 4f02 44bd 4f02 44bd bd80 f510 ffff 0af0 0000", V6M)
    assert worst_stack(program, {"f": FunctionRange(0x100, 20)}, {}, "f").bytes == 8 + 2800


def test_frame_that_nothing_tells_is_refused() -> None:
    program = image("46bd 4770", V6M)  # mov sp, r7; bx lr
    functions = {"odd": FunctionRange(0x100, 4)}
    with pytest.raises(InternalError, match="stack frame of odd"):
        worst_stack(program, functions, {}, "odd")
    assert worst_stack(program, functions, {"odd": 40}, "odd").bytes == 40


def test_loop_that_pushes_is_refused() -> None:
    program = image("b410 e7fd", V6M)  # push {r4}; b to it
    with pytest.raises(InternalError, match="stack of grows"):
        worst_stack(program, {"grows": FunctionRange(0x100, 4)}, {}, "grows")


def test_call_of_nothing_known_is_refused() -> None:
    program = image("f000 f87e 4770", V6M)  # bl 0x200
    with pytest.raises(InternalError, match="stack of f") as caught:
        worst_stack(program, {"f": FunctionRange(0x100, 6)}, {}, "f")
    assert "0x00000200" in str(caught.value)


def test_unknown_root_is_refused() -> None:
    with pytest.raises(InternalError, match="no function run"):
        worst_stack(image("4770"), {"f": FunctionRange(0x100, 2)}, {}, "run")


def test_clone_numbers_are_not_in_the_compilers_figures() -> None:
    program = image("4770 4770")
    functions = {"f.constprop.0": FunctionRange(0x100, 2), "f.isra.0": FunctionRange(0x102, 2)}
    frames = {"f.constprop": 48, "f.isra.0": 16, "f": 96}
    assert worst_stack(program, functions, frames, "f.constprop.0").bytes == 48
    assert worst_stack(program, functions, frames, "f.isra.0").bytes == 16
