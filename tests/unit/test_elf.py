"""Reading ELF files, on images of the tiny model from both compilers."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import ArmCompiler, ImageBuilder

from kqgen.board import load_core
from kqgen.elf import check_cpu_arch, read_elf
from kqgen.errors import ToolchainError

COMPILERS: tuple[ArmCompiler, ...] = ("gcc", "zig")


@pytest.mark.parametrize("compiler", COMPILERS)
def test_symbols_sections_and_segments(tiny_image: ImageBuilder, compiler: ArmCompiler) -> None:
    elf = tiny_image("nucleo-f446re", compiler).elf
    run = elf.symbol("tiny_run")
    assert (run.kind, run.section, run.is_global, run.address % 2) == ("function", ".kq_code", True, 0)
    table = elf.symbol("tiny_table")
    assert (table.kind, table.section, table.size_bytes) == ("object", ".kq_tables", 24)
    assert elf.section_bytes(".kq_tables") == 24
    first = elf.segments[0]
    assert first.address == 0x0800_0000
    assert int.from_bytes(first.data[:4], "little") == 0x2000_0000 + 131_072
    assert elf.undefined == ()
    with pytest.raises(ToolchainError, match="no symbol tiny_walk"):
        elf.symbol("tiny_walk")


@pytest.mark.parametrize("compiler", COMPILERS)
def test_function_at(tiny_image: ImageBuilder, compiler: ArmCompiler) -> None:
    elf = tiny_image("microbit", compiler).elf
    fold = elf.symbol("kq_fold")
    for address in (fold.address, fold.address + 1, fold.address + fold.size_bytes - 1):
        assert elf.function_at(address) == fold
    assert elf.function_at(fold.address - 1) != fold
    assert elf.function_at(elf.symbol("tiny_table").address) is None
    assert elf.function_at(0x2000_0000) is None


@pytest.mark.parametrize("compiler", COMPILERS)
def test_object_states_what_it_needs(tiny_image: ImageBuilder, compiler: ArmCompiler) -> None:
    image = tiny_image("microbit", compiler)
    assert read_elf(image.path.parent / "model-tiny.o").undefined == ("kq_fold", "kq_negate", "kq_weigh", "tiny_table")
    assert read_elf(image.path.parent / "model-kq_tiny.o").undefined == ()


@pytest.mark.parametrize("compiler", COMPILERS)
@pytest.mark.parametrize(
    ("board", "arch"),
    [("microbit", (12,)), ("nucleo-g0b1re", (12,)), ("stm32vldiscovery", (10,)), ("nucleo-f446re", (13,)), ("nucleo-h7a3zi", (13,)),
     ("nucleo-u575zi", (17,)), ("mps3-an547", (21,))],
)  # fmt: skip
def test_architecture_tag_of_each_core(tiny_image: ImageBuilder, compiler: ArmCompiler, board: str, arch: tuple[int, ...]) -> None:
    elf = tiny_image(board, compiler).elf
    assert elf.cpu_arch in arch
    assert elf.cpu_arch_profile == ord("M")


def test_code_for_another_core_is_refused(tiny_image: ImageBuilder) -> None:
    for board, core in (("nucleo-f446re", "m3"), ("nucleo-f446re", "m0"), ("stm32vldiscovery", "m0p"), ("nucleo-u575zi", "m4")):
        elf = tiny_image(board, "gcc").elf
        check_cpu_arch(elf, tiny_image(board, "gcc").board.core)
        with pytest.raises(ToolchainError, match="is not code for the Cortex-"):
            check_cpu_arch(elf, load_core(core))


def test_frames_of_the_stack_sizes_section(tiny_image: ImageBuilder) -> None:
    image = tiny_image("microbit", "zig")
    frames = {frame.function: frame.size_bytes for frame in read_elf(image.path.parent / "model-kq_tiny.o").frames}
    assert set(frames) == {"kq_negate", "kq_weigh", "kq_fold"}
    assert frames["kq_fold"] >= 64


def test_a_file_that_is_no_elf(tmp_path: Path) -> None:
    path = tmp_path / "text.o"
    path.write_text("not an ELF file", encoding="utf-8")
    for bad in (path, tmp_path / "none.o"):
        with pytest.raises(ToolchainError, match="cannot read"):
            read_elf(bad)
