"""Board files: the ones that come with kqgen, and what a wrong one is told."""

from __future__ import annotations

from pathlib import Path

import pytest

from kqgen.board import CORES, all_boards, bench_board, load_board, load_core, parse_board
from kqgen.errors import InputError, InternalError

GOOD = """
title = "a board"
core = "m4"
clock_hz = 100_000_000
flash_wait_states = 3
reserve_flash_bytes = 1024
reserve_ram_bytes = 512
emulator = "unicorn"
source = "a datasheet"

[memory.flash]
origin = 0x0800_0000
size_bytes = 65_536

[memory.ram]
origin = 0x2000_0000
size_bytes = 16_384
"""


def test_boards_that_come_with_kqgen() -> None:
    cores = {board.name: board.core.name for board in all_boards()}
    assert cores == {
        "host": "host",
        "microbit": "m0",
        "mps2-an385": "m3",
        "mps2-an386": "m4",
        "mps2-an500": "m7",
        "mps2-an521": "m33",
        "mps3-an547": "m55",
        "nucleo-f446re": "m4",
        "nucleo-g0b1re": "m0p",
        "nucleo-h7a3zi": "m7",
        "nucleo-u575zi": "m33",
        "rpi-pico": "m0p",
        "stm32vldiscovery": "m3",
    }


def test_usable_memory_leaves_the_reserve() -> None:
    board = parse_board(GOOD, "own", "own.toml")
    assert (board.usable_flash_bytes, board.usable_ram_bytes) == (65_536 - 1024, 16_384 - 512)
    assert (board.flash.end, board.ram.origin) == (0x0801_0000, 0x2000_0000)


def test_host_has_no_limits_and_no_regions() -> None:
    host = load_board("host")
    assert host.is_host
    assert host.usable_flash_bytes is None
    assert host.usable_ram_bytes is None
    with pytest.raises(InternalError, match="flash"):
        _ = host.flash


def test_microbit_figures() -> None:
    board = load_board("microbit")
    assert (board.flash.size_bytes, board.ram.size_bytes, board.clock_hz) == (256 << 10, 16 << 10, 16_000_000)
    assert board.qemu_machine == "microbit"


def test_dsp_false_builds_the_m33_without_it() -> None:
    board = load_board("mps2-an521")
    assert (board.core.name, board.core.has_dsp, board.core.gcc_cpu) == ("m33", False, "cortex-m33+nodsp")
    assert load_board("nucleo-u575zi").core == load_core("m33")


@pytest.mark.parametrize(
    ("old", "new", "key", "found"),
    [
        ("clock_hz = 100_000_000", 'clock_hz = "100 MHz"', "clock_hz", "'100 MHz' (str)"),
        ("clock_hz = 100_000_000", "clock_hz = 0", "clock_hz", "0"),
        ("clock_hz = 100_000_000", "clock_hz = true", "clock_hz", "True (bool)"),
        ("flash_wait_states = 3", "flash_wait_states = -1", "flash_wait_states", "-1"),
        ("flash_wait_states = 3", "", "flash_wait_states", "no such key"),
        ('core = "m4"', 'core = "m5"', "core", "'m5'"),
        ('source = "a datasheet"', 'source = " "', "source", "' '"),
        ('emulator = "unicorn"', 'emulator = "renode"', "emulator", "'renode'"),
        ('emulator = "unicorn"', 'emulator = "qemu"', "qemu_machine", "no such key"),
        ('core = "m4"', 'core = "m55"', "emulator", "unicorn"),
        ('core = "m4"', 'core = "m4"\ndsp = false', "dsp", "false"),
        ("reserve_ram_bytes = 512", "reserve_ram_bytes = 16384", "reserve_ram_bytes", "16384"),
        ("size_bytes = 16_384", "size_bytes = 0", "memory.ram.size_bytes", "0"),
        ("size_bytes = 16_384", "", "memory.ram.size_bytes", "no such key"),
        ("origin = 0x2000_0000", "origin = 0x2000_0001", "memory.ram.origin", "0x20000001"),
        ("origin = 0x2000_0000", "origin = 0x0800_8000", "memory.ram.origin", "0x08008000, inside flash (0x08000000 to 0x0800ffff)"),
        ("[memory.ram]", "[memory.sram]", "memory.ram", "no such table"),
    ],
)
def test_wrong_figures_name_file_key_and_finding(old: str, new: str, key: str, found: str) -> None:
    assert old in GOOD
    with pytest.raises(InputError) as caught:
        parse_board(GOOD.replace(old, new), "own", "boards/own.toml")
    assert caught.value.what == f"boards/own.toml: key {key} is wrong"
    assert found in caught.value.found
    assert caught.value.exit_status == 2


@pytest.mark.parametrize(
    ("old", "new", "key"), [("title", "titel", "titel"), ("size_bytes = 65_536", "size_bytes = 1\nsize = 64", "memory.flash.size")]
)
def test_unknown_keys_are_refused(old: str, new: str, key: str) -> None:
    with pytest.raises(InputError, match=f"unknown key {key}"):
        parse_board(GOOD.replace(old, new), "own", "own.toml")


def test_text_that_is_not_toml() -> None:
    with pytest.raises(InputError, match=r"own\.toml is not TOML"):
        parse_board("title = ", "own", "own.toml")


def test_unknown_board_lists_near_names() -> None:
    with pytest.raises(InputError) as caught:
        load_board("nucleo-f446")
    assert "did you mean nucleo-f446re" in caught.value.do
    assert "rpi-pico" in caught.value.wanted


def test_board_of_the_users_own(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(GOOD, encoding="utf-8")
    assert load_board(path).name == "mine"
    with pytest.raises(InputError, match="cannot read board file"):
        load_board(tmp_path / "none.toml")


def test_every_core_has_a_bench_board() -> None:
    for core in CORES:
        assert bench_board(core).core == core
    assert bench_board(load_core("m0p")).usable_ram_bytes == 4 << 20


def test_unknown_core() -> None:
    with pytest.raises(InputError, match="unknown core 'm1'"):
        load_core("m1")
