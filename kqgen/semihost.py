"""Semihosting in Python, with files in memory: what the harness asks of an emulator that has no semihosting of its own.

Source: Arm, Semihosting for AArch32 and AArch64. The harness in runtime_c/port uses these operations alone.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from typing import Protocol

from kqgen.errors import ToolchainError

SYS_OPEN, SYS_CLOSE, SYS_WRITE0, SYS_WRITE, SYS_READ, SYS_EXIT, SYS_EXIT_EXTENDED = 0x01, 0x02, 0x04, 0x05, 0x06, 0x18, 0x20

_APPLICATION_EXIT = 0x20026
_FAILED = 0xFFFF_FFFF


class Memory(Protocol):
    """The target's memory, as unicorn gives it."""

    def mem_read(self, address: int, size: int) -> bytearray: ...

    def mem_write(self, address: int, data: bytes) -> None: ...


@dataclass(slots=True)
class _OpenFile:
    name: str
    position: int = 0


@dataclass(slots=True)
class SemihostFiles:
    """Files and messages of one run; it changes as the target works.

    Attributes:
        files: contents by name. messages: what the target printed. exit_status: None until it has ended.
    """

    files: dict[str, bytearray]
    messages: str = ""
    exit_status: int | None = None
    _open: dict[int, _OpenFile] = field(default_factory=dict)

    def position(self, name: str) -> int:
        """Bytes read from (or written to) the open file of that name so far, 0 when it is not open."""
        return max((opened.position for opened in self._open.values() if opened.name == name), default=0)

    def call(self, memory: Memory, operation: int, argument: int) -> int:
        """Performs one call and gives back the value for r0.

        Raises: ToolchainError for an operation the harness does not use, or a handle that is not open.
        """
        if operation == SYS_WRITE0:
            while (byte := memory.mem_read(argument, 1)[0]) != 0:
                self.messages += chr(byte)
                argument += 1
            return 0
        if operation == SYS_EXIT:
            self.exit_status = 0 if argument == _APPLICATION_EXIT else 1
            return 0
        if operation == SYS_EXIT_EXTENDED:
            reason, status = struct.unpack("<2I", memory.mem_read(argument, 8))
            self.exit_status = status if reason == _APPLICATION_EXIT else 1
            return 0
        if operation == SYS_OPEN:
            address, mode, length = struct.unpack("<3I", memory.mem_read(argument, 12))
            return self._open_file(bytes(memory.mem_read(address, length)).decode("ascii", "replace"), mode)
        if operation == SYS_CLOSE:
            handle = int.from_bytes(memory.mem_read(argument, 4), "little")
            return 0 if self._open.pop(handle, None) is not None else _FAILED
        if operation in (SYS_READ, SYS_WRITE):
            handle, address, size = struct.unpack("<3I", memory.mem_read(argument, 12))
            opened = self._open.get(handle)
            if opened is None:
                raise ToolchainError(f"the image uses file handle {handle}, which is not open", found=str(handle))
            content = self.files[opened.name]
            if operation == SYS_READ:
                data = bytes(content[opened.position : opened.position + size])
                memory.mem_write(address, data)
                moved = len(data)
            else:
                content[opened.position : opened.position + size] = memory.mem_read(address, size)
                moved = size
            opened.position += moved
            return int(size) - moved
        raise ToolchainError(f"the image makes semihosting call 0x{operation:02x}", found=hex(operation), wanted="one the harness uses")

    def _open_file(self, name: str, mode: int) -> int:
        """Modes 0 to 3 read, 4 to 7 write anew, 8 to 11 append."""
        if mode < 4 and name not in self.files:
            return _FAILED
        if 4 <= mode < 8 or name not in self.files:
            self.files[name] = bytearray()
        handle = max(self._open, default=0) + 1
        self._open[handle] = _OpenFile(name, len(self.files[name]) if mode >= 8 else 0)
        return handle
