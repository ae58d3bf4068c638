"""unicorn: right outputs, exact counts, and every forbidden thing seen."""

from __future__ import annotations

import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
import tiny
import unicorn
from conftest import ArmCompiler, ImageBuilder, require_tool

from kqgen.blockcount import count_instructions
from kqgen.blockcount_native import native_library
from kqgen.board import Board, all_boards, bench_board, load_board, load_core
from kqgen.elf import check_cpu_arch
from kqgen.emulate import Machine, run_unicorn
from kqgen.errors import InputError, ToolchainError
from kqgen.harness import INPUTS_FILE
from kqgen.image import Image, build_image
from kqgen.semihost import SemihostFiles
from kqgen.toolchain import find_toolchain

COMPILERS: tuple[ArmCompiler, ...] = ("gcc", "zig")
BOARDS = [board for board in all_boards() if board.core.unicorn_model is not None]
ONE_BOARD_A_CORE = ("microbit", "stm32vldiscovery", "nucleo-f446re", "nucleo-h7a3zi", "nucleo-u575zi")
IMAGES = [tiny.image(seed) for seed in range(4)]


@pytest.fixture(autouse=True)
def _unicorn() -> None:
    require_tool("unicorn")


def _build(tmp_path: Path, compiler: ArmCompiler, board: str, **replaced: str) -> Image:
    require_tool(compiler)
    sources = tiny.write_sources(tmp_path / "sources", **replaced)
    return build_image(sources, tiny.API, load_board(board), find_toolchain(compiler), tmp_path / "image")


def _with_statement(statement: str) -> str:
    """The runtime with a statement at the start of kq_weigh."""
    return tiny.RUNTIME.replace("{\n    uint32_t at = 0u;", "{\n    uint32_t at = 0u;\n    " + statement)


@pytest.mark.parametrize("compiler", COMPILERS)
@pytest.mark.parametrize("board", BOARDS, ids=lambda board: board.name)
def test_outputs_on_every_board(tiny_image: ImageBuilder, compiler: ArmCompiler, board: Board) -> None:
    run = run_unicorn(tiny_image(board, compiler), IMAGES)
    assert list(run.outputs) == [tiny.steps(data)[-1] for data in IMAGES]
    assert run.taps == ()
    assert run.profile is None


def test_one_changed_table_entry_changes_the_step_it_feeds(tmp_path: Path) -> None:
    require_tool("gcc")
    sources = tiny.write_sources(tmp_path / "sources", tables=tiny.TABLES.replace("{3u, 1u", "{67u, 1u"))
    image = build_image(sources, tiny.API, load_board("microbit"), find_toolchain("gcc"), tmp_path / "image", tap=True)
    found = [tap.data for tap in run_unicorn(image, IMAGES[:1]).taps[0]]
    assert [a == b for a, b in zip(found, tiny.steps(IMAGES[0]), strict=True)] == [True, False, False, False]


@pytest.mark.parametrize("compiler", COMPILERS)
@pytest.mark.parametrize("board", ONE_BOARD_A_CORE)
def test_taps_are_every_step_in_order(tiny_image: ImageBuilder, compiler: ArmCompiler, board: str) -> None:
    run = run_unicorn(tiny_image(board, compiler, tap=True), IMAGES)
    assert [[tap.data for tap in taps] for taps in run.taps] == [tiny.steps(data) for data in IMAGES]
    assert [[tap.step for tap in taps] for taps in run.taps] == [list(range(tiny.STEPS))] * len(IMAGES)
    assert run.stack_bytes is None


@pytest.mark.parametrize("compiler", COMPILERS)
@pytest.mark.parametrize("board", ONE_BOARD_A_CORE)
def test_stack_mark_lies_between_what_is_written_and_the_frames(tiny_image: ImageBuilder, compiler: ArmCompiler, board: str) -> None:
    image = tiny_image(board, compiler)
    frames = [image.frame_bytes(name) for name in ("tiny_run", "kq_fold")]
    stack = run_unicorn(image, IMAGES).stack_bytes
    assert stack is not None
    assert 48 < stack <= sum(frame for frame in frames if frame is not None)


def _counted_by_instruction(image: Image) -> int:
    """Instructions of the network on the first image, by a hook on every single one.

    The hook does not see those that an IT block skips: an IT instruction counts for itself and all it covers.
    """

    machine = Machine(image)
    host = SemihostFiles({INPUTS_FILE: bytearray(IMAGES[0])})
    entry = image.elf.symbol("tiny_run").address
    deadline = time.monotonic() + 60
    while machine.resume(entry, deadline):
        machine.write("R0", host.call(machine.uc, machine.read("R0"), machine.read("R1")))
        machine.pc += 2
    count = covered_end = 0

    def on_instruction(uc: Any, address: int, _size: int, _data: object) -> None:
        nonlocal count, covered_end
        if address < covered_end:
            return
        count += 1
        covered_end = 0
        mask, opcode = uc.mem_read(address, 2)
        if opcode == 0xBF and mask & 0xF:
            covered = 4 - ((mask & -mask).bit_length() - 1)
            covered_end = address + 2
            for _ in range(covered):
                covered_end += 4 if uc.mem_read(covered_end, 2)[1] >> 3 >= 29 else 2
            count += covered

    machine.uc.ctl_flush_tb()
    machine.uc.hook_add(unicorn.UC_HOOK_CODE, on_instruction)
    assert not machine.resume(machine.read("LR"), deadline)
    return count


@pytest.mark.parametrize("compiler", COMPILERS)
@pytest.mark.parametrize("board", ONE_BOARD_A_CORE)
def test_block_counts_equal_counts_by_instruction(tiny_image: ImageBuilder, compiler: ArmCompiler, board: str) -> None:
    image = tiny_image(board, compiler)
    run = run_unicorn(image, IMAGES[:1], profile=True)
    assert run.instructions == _counted_by_instruction(image)


@pytest.mark.parametrize("board", ONE_BOARD_A_CORE)
def test_layers_of_the_profile(tiny_image: ImageBuilder, board: str) -> None:
    image = tiny_image(board, "gcc")
    run = run_unicorn(image, IMAGES, profile=True, flash_reads=True)
    assert list(run.outputs) == [tiny.steps(data)[-1] for data in IMAGES]
    assert run.profile is not None
    assert len(run.profile) == tiny.STEPS
    functions = ("kq_negate", "kq_weigh", "kq_weigh", "kq_fold")
    for name, layer in zip(functions, run.profile, strict=True):
        seen = {symbol.name for block in layer.blocks if (symbol := image.elf.function_at(block.pc)) is not None}
        assert seen == {name, "tiny_run"}
        assert all(0 <= block.taken <= block.executions and block.executions > 0 for block in layer.blocks)
        entry = image.elf.symbol(name).address
        assert [block.executions for block in layer.blocks if block.pc == entry] == [1]
        # The branch back of the longest loop, which runs 48 times; its first pass belongs to the block before the loop.
        taken_at: defaultdict[int, int] = defaultdict(int)
        for block in layer.blocks:
            taken_at[block.pc + block.size_bytes] += block.taken
        assert max(taken_at.values()) == 47
    reads = [layer.flash_reads for layer in run.profile]
    assert reads[0] is not None
    assert reads[1] is not None
    # A weight and the table's length for each of 48 elements at most, and literals; kq_negate reads no table.
    assert reads[0] <= 4
    assert 48 <= reads[1] <= 100


def test_counts_repeat(tiny_image: ImageBuilder) -> None:
    image = tiny_image("microbit", "gcc")
    first, second = (run_unicorn(image, IMAGES[:1], profile=True, flash_reads=True) for _ in range(2))
    assert first == second
    assert first.instructions is not None
    assert first.instructions > 48 * 4 * tiny.STEPS


def test_hooks_in_c_and_python_count_the_same(tiny_image: ImageBuilder, monkeypatch: pytest.MonkeyPatch) -> None:
    require_tool("cc")
    assert native_library() is not None
    for board in ONE_BOARD_A_CORE:
        image = tiny_image(board, "zig")
        native = run_unicorn(image, IMAGES[:1], profile=True, flash_reads=True)
        with monkeypatch.context() as patch:
            patch.setattr("kqgen.emulate.native_library", lambda: None)
            assert run_unicorn(image, IMAGES[:1], profile=True, flash_reads=True) == native


def test_a_tail_call_and_a_struct_copy_do_not_move_layers(tmp_path: Path) -> None:
    model = tiny.MODEL.replace("kq_fold(a, output, 16u);", "return kq_fold(a, output, 16u);").replace(
        "    kq_weigh(&tiny_table, a, b, 48u);\n", "    memcpy(a + 64, a, count);\n    kq_weigh(&tiny_table, a, b, 48u);\n", 1
    )
    model = model.replace("return KQ_OK;\n", "", 1).replace("    TAP(3u, output, 16u);\n", "")
    model = model.replace("    int8_t *const b", "    const volatile size_t count = 16u;\n    int8_t *const b")
    model = model.replace('#include "tiny.h"', '#include "tiny.h"\nvoid *memcpy(void *to, const void *from, size_t size_bytes);', 1)
    header = tiny.RUNTIME_HEADER.replace("void kq_fold", "kq_status kq_fold")
    runtime = tiny.RUNTIME.replace("void kq_fold", "kq_status kq_fold")
    runtime = runtime.rstrip().removesuffix("}") + "    return KQ_OK;\n}\n"
    image = _build(tmp_path, "gcc", "nucleo-f446re", model=model, runtime=runtime, runtime_header=header)
    run = run_unicorn(image, IMAGES[:1], profile=True)
    assert list(run.outputs) == [tiny.steps(IMAGES[0])[-1]]
    assert run.profile is not None
    places = [image.elf.symbol(name).address for name in ("memcpy", "kq_fold")]
    seen = [{block.pc for block in layer.blocks} for layer in run.profile]
    assert [[place in blocks for place in places] for blocks in seen] == [[False, False], [True, False], [False, False], [False, True]]
    assert run.instructions == _counted_by_instruction(image)


# SMLAD r0, r0, r1, r3: of the DSP extension, which neither M0 nor M0+ has.
SMLAD = '__asm__ volatile(".short 0xfb20, 0x3001" ::: "r0");'
UNALIGNED = '__asm__ volatile("ldr %0, [%1]" : "=l"(at) : "l"(((uintptr_t)in | 3u)));'


@pytest.mark.parametrize(
    ("compiler", "board", "statement", "finding"),
    [
        ("gcc", "microbit", SMLAD, "an instruction this core does not have"),
        ("zig", "microbit", SMLAD, "an instruction this core does not have"),
        ("gcc", "nucleo-g0b1re", SMLAD, "an instruction this core does not have"),
        ("gcc", "microbit", UNALIGNED, "an unaligned access"),
        ("zig", "nucleo-g0b1re", UNALIGNED, "an unaligned access"),
        ("gcc", "nucleo-f446re", '__asm__ volatile("str %0, [%1]" :: "l"(at), "l"(table) : "memory");', "a write to flash, address 0x080"),
        ("zig", "nucleo-f446re", "at = *(volatile uint32_t *)0x60000000u & 0u;", "a read outside the board's memory, address 0x60000000"),
        ("gcc", "nucleo-f446re", "*(volatile uint32_t *)0x20020000u = at;", "a write outside the board's memory, address 0x20020000"),
        ("gcc", "nucleo-u575zi", '__asm__ volatile("bx %0" :: "l"(0x20000101u) : "memory");', "a jump into RAM, address 0x20000100"),
        ("gcc", "nucleo-h7a3zi", '__asm__ volatile("svc 0");', "a supervisor call"),
    ],
    ids=str,
)
def test_faults_name_function_and_address(tmp_path: Path, compiler: ArmCompiler, board: str, statement: str, finding: str) -> None:
    image = _build(tmp_path, compiler, board, runtime=_with_statement(statement))
    with pytest.raises(ToolchainError) as caught:
        run_unicorn(image, IMAGES[:1])
    assert finding in caught.value.found
    if "jump" not in finding:
        assert "function kq_weigh faults" in caught.value.what
    assert image.board.name in caught.value.what
    with pytest.raises(ToolchainError):
        run_unicorn(image, IMAGES[:1], profile=True)


@pytest.mark.parametrize(
    ("statement", "board"),
    [
        (SMLAD, "nucleo-f446re"),
        (SMLAD, "nucleo-u575zi"),
        (UNALIGNED + " at = 0u;", "stm32vldiscovery"),
    ],
)
def test_what_faults_on_the_m0_passes_where_the_core_has_it(tmp_path: Path, statement: str, board: str) -> None:
    run = run_unicorn(_build(tmp_path, "gcc", board, runtime=_with_statement(statement)), IMAGES[:1])
    assert list(run.outputs) == [tiny.steps(IMAGES[0])[-1]]


def test_m3_emulation_lets_dsp_code_pass_so_the_tag_is_checked(tiny_image: ImageBuilder) -> None:
    with pytest.raises(ToolchainError, match="is not code for the Cortex-M3"):
        check_cpu_arch(tiny_image("nucleo-f446re", "gcc").elf, load_core("m3"))


@pytest.mark.parametrize("name", ["m0", "m0p", "m3", "m4", "m7", "m33"])
def test_bench_boards_run(tiny_image: ImageBuilder, name: str) -> None:
    run = run_unicorn(tiny_image(bench_board(load_core(name)), "gcc"), IMAGES[:1])
    assert list(run.outputs) == [tiny.steps(IMAGES[0])[-1]]


def test_an_error_status_of_the_network(tmp_path: Path) -> None:
    image = _build(tmp_path, "gcc", "microbit", model=tiny.MODEL.replace("return KQ_OK;", "return output[0] == 0 ? KQ_OK : KQ_ERR_NULL;"))
    assert tiny.steps(IMAGES[0])[-1][0] != 0
    with pytest.raises(ToolchainError, match="tiny_run returned status -1 on image 0"):
        run_unicorn(image, IMAGES)


def test_a_stack_larger_than_what_is_watched(tmp_path: Path) -> None:
    runtime = tiny.RUNTIME.replace("row[64];", "row[20000];\n    for (uint32_t i = 0u; i < 20000u; i++) {\n        row[i] = 0;\n    }")
    with pytest.raises(ToolchainError, match="reached the end of the room"):
        run_unicorn(_build(tmp_path, "gcc", "mps2-an386", runtime=runtime), IMAGES[:1])


def test_inputs_of_the_wrong_length(tiny_image: ImageBuilder) -> None:
    with pytest.raises(InputError, match="image 1 does not fit tiny"):
        run_unicorn(tiny_image("microbit", "gcc"), [IMAGES[0], IMAGES[1][:-1]])


def test_no_images(tiny_image: ImageBuilder) -> None:
    run = run_unicorn(tiny_image("microbit", "gcc"), [], profile=True)
    assert run.outputs == ()
    assert run.profile is None


def test_cores_and_builds_it_cannot_take(tiny_image: ImageBuilder) -> None:
    with pytest.raises(InputError, match="unicorn has no Cortex-M55"):
        run_unicorn(tiny_image("mps3-an547", "gcc"), IMAGES)
    with pytest.raises(InputError, match="cannot be profiled"):
        run_unicorn(tiny_image("microbit", "gcc", tap=True), IMAGES, profile=True)


def test_progress_counts_images(tiny_image: ImageBuilder) -> None:
    seen: list[tuple[int, int]] = []
    run_unicorn(tiny_image("microbit", "gcc"), IMAGES, progress=lambda done, total: seen.append((done, total)))
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert seen[-1] == (len(IMAGES), len(IMAGES))
    assert {done for done, _ in seen} == set(range(len(IMAGES) + 1))


def test_instruction_lengths() -> None:
    assert count_instructions(bytes.fromhex("7047 2de9f047 fff7feff 00bf")) == 4
    assert count_instructions(b"") == 0
