"""Building images: sizes, frames, and every way in which a build must fail."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny
from conftest import ArmCompiler, ImageBuilder, require_tool

from kqgen.board import all_boards, load_board
from kqgen.errors import CapacityError, InputError, InternalError, ToolchainError
from kqgen.image import Image, build_image
from kqgen.toolchain import find_toolchain

COMPILERS: tuple[ArmCompiler, ...] = ("gcc", "zig")


def _build(tmp_path: Path, compiler: ArmCompiler, board: str, **replaced: str) -> Image:
    require_tool(compiler)
    sources = tiny.write_sources(tmp_path / "sources", **replaced)
    return build_image(sources, tiny.API, load_board(board), find_toolchain(compiler), tmp_path / "image")


@pytest.mark.parametrize("compiler", COMPILERS)
@pytest.mark.parametrize("board", [board for board in all_boards() if not board.is_host], ids=lambda board: board.name)
def test_every_board_links(tiny_image: ImageBuilder, compiler: ArmCompiler, board: object) -> None:
    image = tiny_image(board, compiler)
    functions = [s for s in image.elf.symbols if s.section == ".kq_code" and s.kind == "function"]
    assert {s.name for s in functions} == {"tiny_run", "kq_negate", "kq_weigh", "kq_fold"}
    code = sum(s.size_bytes for s in functions)
    assert code <= image.code_bytes <= code + 4 * len(functions)
    assert image.tables_bytes == 24
    assert {frame.function for frame in image.frames} == {s.name for s in functions}
    frame = image.frame_bytes("kq_fold")
    assert frame is not None
    assert frame >= 64
    assert image.frame_bytes("main") is None


@pytest.mark.parametrize("compiler", COMPILERS)
def test_image_does_not_depend_on_where_it_is_built(tmp_path: Path, compiler: ArmCompiler) -> None:
    for name in ("one", "another/folder"):
        (tmp_path / name).mkdir(parents=True)
    first = _build(tmp_path / "one", compiler, "microbit")
    second = _build(tmp_path / "another/folder", compiler, "microbit")
    assert first.path.read_bytes() == second.path.read_bytes()
    assert str(tmp_path).encode() not in first.path.read_bytes()


@pytest.mark.parametrize("compiler", COMPILERS)
def test_ram_overflow_is_a_capacity_error(tmp_path: Path, compiler: ArmCompiler) -> None:
    header = tiny.HEADER.replace("TINY_ARENA_BYTES 96u", "TINY_ARENA_BYTES 9000u")
    with pytest.raises(CapacityError) as caught:
        _build(tmp_path, compiler, "stm32vldiscovery", header=header)
    assert "overflowed by" in caught.value.found
    assert caught.value.exit_status == 3


@pytest.mark.parametrize("compiler", COMPILERS)
def test_no_room_for_the_stack_is_a_capacity_error(tmp_path: Path, compiler: ArmCompiler) -> None:
    header = tiny.HEADER.replace("TINY_ARENA_BYTES 96u", "TINY_ARENA_BYTES 7800u")
    with pytest.raises(CapacityError, match="no room for the stack"):
        _build(tmp_path, compiler, "stm32vldiscovery", header=header)


@pytest.mark.parametrize("compiler", COMPILERS)
def test_flash_overflow_is_a_capacity_error(tmp_path: Path, compiler: ArmCompiler) -> None:
    header = tiny.RUNTIME_HEADER.replace("weights[20]", "weights[140000]")
    with pytest.raises(CapacityError, match="overflowed by"):
        _build(tmp_path, compiler, "stm32vldiscovery", runtime_header=header)


@pytest.mark.parametrize("compiler", COMPILERS)
def test_a_division_is_found_by_its_library_function(tmp_path: Path, compiler: ArmCompiler) -> None:
    runtime = tiny.RUNTIME.replace("product >> 5", "product / (int32_t)table->count")
    with pytest.raises(ToolchainError) as caught:
        _build(tmp_path, compiler, "microbit", runtime=runtime)
    assert "model-kq_tiny.o needs __aeabi_idiv" in caught.value.found


@pytest.mark.parametrize("compiler", COMPILERS)
def test_variables_outside_the_arena_are_refused(tmp_path: Path, compiler: ArmCompiler) -> None:
    runtime = tiny.RUNTIME.replace("uint32_t at = 0u;", "uint32_t at = 0u;\n    static volatile uint32_t calls;\n    calls++;")
    with pytest.raises(ToolchainError, match="variables outside the arena"):
        _build(tmp_path, compiler, "microbit", runtime=runtime)


@pytest.mark.parametrize("compiler", COMPILERS)
def test_warnings_are_errors_and_keep_the_compilers_words(tmp_path: Path, compiler: ArmCompiler) -> None:
    runtime = tiny.RUNTIME.replace("out[i] = (int8_t)(product >> 5)", "out[i] = product >> 5")
    with pytest.raises(ToolchainError) as caught:
        _build(tmp_path, compiler, "nucleo-f446re", runtime=runtime)
    assert caught.value.what == "compiling kq_tiny.c for the Cortex-M4 failed"
    assert "conversion" in caught.value.found


def test_a_frame_of_no_fixed_size_is_refused(tmp_path: Path) -> None:
    runtime = tiny.RUNTIME.replace("volatile int8_t row[64]", "volatile int8_t row[3u * count]")
    with pytest.raises(ToolchainError, match="stack frame of kq_fold has no fixed size"):
        _build(tmp_path, "gcc", "nucleo-f446re", runtime=runtime)


def test_sizes_that_differ_from_the_header_do_not_compile(tmp_path: Path) -> None:
    with pytest.raises(ToolchainError, match="TINY_INPUT_BYTES is not what the harness was made for"):
        _build(tmp_path, "gcc", "microbit", header=tiny.HEADER.replace("TINY_INPUT_BYTES 48u", "TINY_INPUT_BYTES 40u"))


@pytest.mark.parametrize("compiler", COMPILERS)
def test_an_output_folder_with_its_runtime_apart(tmp_path: Path, compiler: ArmCompiler) -> None:
    flat = _build(tmp_path, compiler, "nucleo-f446re")
    folder = tiny.write_sources(tmp_path / "firmware")
    (folder / "runtime").mkdir()
    (folder / "kq_tiny.h").rename(folder / "runtime" / "kq_tiny.h")
    # The network may be called like a file of the runtime.
    (folder / "kq_tiny.c").rename(folder / "runtime" / "tiny.c")
    (folder / "tiny_selftest.c").write_text("#error left out\n", encoding="utf-8")
    image = build_image(folder, tiny.API, load_board("nucleo-f446re"), flat.toolchain, tmp_path / "other")
    assert (image.code_bytes, image.tables_bytes, image.frames) == (flat.code_bytes, flat.tables_bytes, flat.frames)


def test_no_sources_and_no_target(tmp_path: Path) -> None:
    require_tool("gcc")
    toolchain = find_toolchain("gcc")
    with pytest.raises(InputError, match="no C sources"):
        build_image(tmp_path, tiny.API, load_board("microbit"), toolchain, tmp_path / "image")
    with pytest.raises(InternalError, match="host"):
        build_image(tmp_path, tiny.API, load_board("host"), toolchain, tmp_path / "image")
