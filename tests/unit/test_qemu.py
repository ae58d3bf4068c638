"""QEMU: the same outputs as unicorn's, and its failures told."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny
from conftest import ArmCompiler, ImageBuilder, require_tool

from kqgen.board import Board, all_boards, load_board
from kqgen.errors import InputError, ToolchainError
from kqgen.image import Image, build_image
from kqgen.qemu import run_qemu
from kqgen.toolchain import find_toolchain

COMPILERS: tuple[ArmCompiler, ...] = ("gcc", "zig")
BOARDS = [board for board in all_boards() if board.qemu_machine is not None]
IMAGES = [tiny.image(seed) for seed in range(4)]


@pytest.mark.parametrize("compiler", COMPILERS)
@pytest.mark.parametrize("board", BOARDS, ids=lambda board: board.name)
def test_outputs_taps_and_stack_on_every_machine(tiny_image: ImageBuilder, compiler: ArmCompiler, board: Board) -> None:
    require_tool("qemu")
    image = tiny_image(board, compiler)
    run = run_qemu(image, IMAGES)
    assert list(run.outputs) == [tiny.steps(data)[-1] for data in IMAGES]
    frames = [image.frame_bytes(name) for name in ("tiny_run", "kq_fold")]
    assert run.stack_bytes is not None
    assert 48 < run.stack_bytes <= sum(frame for frame in frames if frame is not None)
    assert run.emulator.startswith("QEMU ")
    tapped = run_qemu(tiny_image(board, compiler, tap=True), IMAGES)
    assert tapped.outputs == run.outputs
    assert [[tap.data for tap in taps] for taps in tapped.taps] == [tiny.steps(data) for data in IMAGES]


def _build_with(tmp_path: Path, statement: str, board: str = "microbit") -> Image:
    require_tool("gcc", "qemu")
    runtime = tiny.RUNTIME.replace("{\n    uint32_t at = 0u;", "{\n    uint32_t at = 0u;\n    " + statement)
    sources = tiny.write_sources(tmp_path / "sources", runtime=runtime)
    return build_image(sources, tiny.API, load_board(board), find_toolchain("gcc"), tmp_path / "image")


def test_a_fault_is_told_with_its_place(tmp_path: Path) -> None:
    image = _build_with(tmp_path, '__asm__ volatile("ldr %0, [%1]" : "=l"(at) : "l"(((uintptr_t)in | 3u)));')
    with pytest.raises(ToolchainError) as caught:
        run_qemu(image, IMAGES)
    assert "ended with status 5" in caught.value.what
    place = int(caught.value.found.split("fault at pc 0x")[1][:8], 16)
    function = image.elf.function_at(place)
    assert function is not None
    assert function.name == "kq_weigh"


def test_a_run_without_end_is_stopped(tmp_path: Path) -> None:
    image = _build_with(tmp_path, 'for (;;) {\n        __asm__ volatile("nop");\n    }', "mps2-an386")
    with pytest.raises(ToolchainError, match="did not end within 1 s"):
        run_qemu(image, IMAGES, timeout_s=1.0)


def test_boards_without_a_machine(tiny_image: ImageBuilder) -> None:
    with pytest.raises(InputError, match="QEMU has no machine for nucleo-f446re"):
        run_qemu(tiny_image("nucleo-f446re", "gcc"), IMAGES)


def test_missing_qemu_says_what_to_install(tiny_image: ImageBuilder, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    image = tiny_image("microbit", "gcc")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ToolchainError, match="apt install qemu-system-arm"):
        run_qemu(image, IMAGES)
