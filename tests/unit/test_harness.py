"""What the harness is made of and what is made of its files; semihosting in Python."""

from __future__ import annotations

import struct

import pytest
import tiny

from kqgen.board import load_board
from kqgen.errors import InputError, ToolchainError
from kqgen.harness import IoBuffer, ModelApi, Tap, decode_run, encode_inputs, harness_source, linker_script
from kqgen.semihost import SYS_CLOSE, SYS_OPEN, SYS_READ, SYS_WRITE, SemihostFiles

TWO = ModelApi("net", (IoBuffer("a", 2), IoBuffer("b", 3)), (IoBuffer("y", 4),))


def _stats(status: int = 0, begun: int = 2, succeeded: int = 2, stack: int = 100, reached: int = 0) -> bytes:
    return struct.pack("<5I", status & 0xFFFFFFFF, begun, succeeded, stack, reached)


def test_macros_of_one_and_of_several_tensors() -> None:
    text = harness_source(TWO)
    assert "_Static_assert(NET_INPUT_A_BYTES == 2u" in text
    assert "_Static_assert(NET_INPUT_B_BYTES == 3u" in text
    assert "_Static_assert(NET_OUTPUT_BYTES == 4u" in text
    assert "net_run(arena, input_0, input_1, output_0)" in text
    assert "void net_tap(uint32_t step, const int8_t *data, uint32_t size_bytes)" in text


def test_inputs_lie_in_the_arena_where_the_header_says() -> None:
    text = harness_source(TWO)
    assert "static int8_t *const input_0 = (int8_t *)arena + NET_INPUT_A_OFFSET;" in text
    assert "static int8_t *const input_1 = (int8_t *)arena + NET_INPUT_B_OFFSET;" in text
    assert "kq_sh_read(file, input_0, NET_INPUT_A_BYTES)" in text
    assert "static int8_t output_0[NET_OUTPUT_BYTES];" in text
    assert "arena + TINY_INPUT_OFFSET;" in harness_source(tiny.API)


def test_linker_script_has_the_boards_regions() -> None:
    text = linker_script(load_board("nucleo-h7a3zi"))
    assert "ram : ORIGIN = 0x24000000, LENGTH = 1048576" in text
    assert "dtcm : ORIGIN = 0x20000000, LENGTH = 131072" in text


def test_inputs_are_checked() -> None:
    assert encode_inputs(TWO, [b"12345", b"67890"]) == b"1234567890"
    with pytest.raises(InputError, match="image 1 does not fit net"):
        encode_inputs(TWO, [b"12345", b"6789"])


def test_outputs_are_split_into_images() -> None:
    run = decode_run(TWO, 2, b"abcdefgh", None, _stats(), "emulator")
    assert (run.outputs, run.taps, run.stack_bytes, run.instructions) == ((b"abcd", b"efgh"), (), 100, None)


def test_taps_are_split_into_images() -> None:
    record = struct.pack("<2I", 0, 3) + b"xyz" + struct.pack("<2I", 1, 0)
    run = decode_run(TWO, 2, b"abcdefgh", record * 2, _stats(), "emulator")
    assert run.taps == ((Tap(0, b"xyz"), Tap(1, b"")),) * 2
    assert run.stack_bytes is None
    for cut in (record * 2 + b"\0", record + record[:8] + b"xy", record[:11] * 3):
        with pytest.raises(ToolchainError, match="cut short"):
            decode_run(TWO, 2, b"abcdefgh", cut, _stats(), "emulator")


@pytest.mark.parametrize(
    ("outputs", "stats", "message"),
    [
        (b"abcdefgh", b"", "left no figures"),
        (b"abcd", _stats(status=-2, begun=2, succeeded=1), "net_run returned status -2 on image 1"),
        (b"abcdefg", _stats(), "not every image"),
        (b"abcd", _stats(begun=1, succeeded=1), "not every image"),
        (b"abcdefgh", _stats(reached=1), "reached the end of the room"),
    ],
)
def test_runs_that_went_wrong(outputs: bytes, stats: bytes, message: str) -> None:
    with pytest.raises(ToolchainError, match=message):
        decode_run(TWO, 2, outputs, None, stats, "emulator")


class _Memory:
    """64 bytes of target memory."""

    def __init__(self) -> None:
        self.data = bytearray(64)

    def mem_read(self, address: int, size: int) -> bytearray:
        return self.data[address : address + size]

    def at_32(self) -> bytes:
        """The four bytes the test reads into."""
        return bytes(self.data[32:36])

    def mem_write(self, address: int, data: bytes) -> None:
        self.data[address : address + len(data)] = data


def test_semihosting_files() -> None:
    memory, host = _Memory(), SemihostFiles({"in": bytearray(b"abcdef")})
    memory.mem_write(0, b"in\0out\0")
    memory.mem_write(8, struct.pack("<3I", 0, 1, 2))
    source = host.call(memory, SYS_OPEN, 8)
    memory.mem_write(8, struct.pack("<3I", 3, 5, 3))
    target = host.call(memory, SYS_OPEN, 8)
    assert source != target
    memory.mem_write(8, struct.pack("<3I", source, 32, 4))
    assert (host.call(memory, SYS_READ, 8), memory.at_32()) == (0, b"abcd")
    assert (host.call(memory, SYS_READ, 8), memory.at_32()) == (2, b"efcd")
    assert host.call(memory, SYS_READ, 8) == 4
    memory.mem_write(8, struct.pack("<3I", target, 32, 4))
    assert host.call(memory, SYS_WRITE, 8) == 0
    assert host.call(memory, SYS_WRITE, 8) == 0
    assert host.files["out"] == b"efcdefcd"
    assert host.call(memory, SYS_CLOSE, 8) == 0
    with pytest.raises(ToolchainError, match="not open"):
        host.call(memory, SYS_WRITE, 8)
    with pytest.raises(ToolchainError, match="semihosting call 0x7f"):
        host.call(memory, 0x7F, 0)
    memory.mem_write(8, struct.pack("<3I", 3, 1, 4))
    assert host.call(memory, SYS_OPEN, 8) == 0xFFFF_FFFF


def test_the_tiny_model_is_what_the_tests_think() -> None:
    assert (tiny.API.input_bytes, tiny.API.output_bytes) == (48, 16)
    first = tiny.steps(bytes(48))
    assert first[0] == b"\xff" * 48
    assert first[1] == b"\xff" * 48
