"""Runs an image under unicorn: the board's memories and nothing else, and exact counts of what the network executes.

Hooks cost speed, so the plain run has none but those for exceptions; with a profile, blocks are counted between entry and
return of the network on the first image only, and everything else runs without.
"""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import metadata
from typing import Any

from kqgen.blockcount import CountScope, Hooks, PythonHooks, count_scope, layer_profiles
from kqgen.blockcount_native import NativeHooks, native_library
from kqgen.blocks import LayerProfile
from kqgen.errors import InputError, InternalError, ToolchainError
from kqgen.harness import INPUTS_FILE, OUTPUTS_FILE, STATS_FILE, TAPS_FILE, EmulatedRun, decode_run, encode_inputs
from kqgen.image import Image
from kqgen.semihost import SemihostFiles

PAGE_BYTES = 4096
"""unicorn maps whole pages of this size."""

TIMEOUT_S = 3600.0

_NO_STOP = 0xFFFF_FFFE
_BKPT_SEMIHOSTING = b"\xab\xbe"

# unicorn hands over QEMU's exception numbers for Arm (target/arm/cpu.h).
_BREAKPOINT = 7
_EXCEPTIONS = {
    1: "an instruction this core does not have",
    2: "a supervisor call",
    3: "a prefetch abort",
    4: "an unaligned access, which this core cannot do",
    _BREAKPOINT: "a breakpoint that is no semihosting call",
    17: "an instruction of a coprocessor this core does not have",
    18: "code that is not Thumb",
}


@dataclass(frozen=True, slots=True)
class _Access:
    """A memory access that the map forbids."""

    what: str
    address: int


def _unicorn() -> tuple[Any, Any]:
    """The packages unicorn and unicorn.arm_const."""
    try:
        return importlib.import_module("unicorn"), importlib.import_module("unicorn.arm_const")
    except ImportError as error:
        raise ToolchainError(
            "the emulator unicorn is not installed",
            found=str(error),
            wanted="the Python package unicorn",
            do="pip install 'kqgen[emulate]'",
        ) from error


class Machine:
    """A core with the board's memories and the image loaded, halted at its reset handler.

    Flash can be read and executed, every other region read and written (and executed, unless it is the main RAM).

    Raises: InputError when the board's regions are not made of whole pages; ToolchainError without unicorn, or when unicorn
        does not take the core; later, from `resume`, when the code faults.
    """

    def __init__(self, image: Image) -> None:
        unicorn, arm_const = _unicorn()
        board = image.board
        if board.core.unicorn_model is None:
            raise InputError(f"unicorn has no {board.core.title}", found=board.name, wanted="M0 to M7 or M33", do="run it under QEMU")
        model = getattr(arm_const, "UC_CPU_ARM_" + board.core.unicorn_model)
        # Thumb mode alone: with UC_MODE_MCLASS unicorn ignores the model and every core becomes an M33.
        self.uc = unicorn.Uc(unicorn.UC_ARCH_ARM, unicorn.UC_MODE_THUMB)
        self.uc.ctl_set_cpu_model(model)
        if self.uc.ctl_get_cpu_model() != model:
            raise ToolchainError("unicorn did not take the core", found=str(self.uc.ctl_get_cpu_model()), wanted=board.core.title)
        self.image = image
        self.emulator = f"unicorn {metadata.version('unicorn')}"
        self._const, self._error, self._invalid = arm_const, unicorn.UcError, unicorn.UC_ERR_INSN_INVALID
        self._kinds = {
            unicorn.UC_MEM_READ_UNMAPPED: "a read outside the board's memory",
            unicorn.UC_MEM_WRITE_UNMAPPED: "a write outside the board's memory",
            unicorn.UC_MEM_FETCH_UNMAPPED: "a jump outside the board's memory",
            unicorn.UC_MEM_WRITE_PROT: "a write to flash",
            unicorn.UC_MEM_READ_PROT: "a read that is not allowed",
            unicorn.UC_MEM_FETCH_PROT: "a jump into RAM",
        }
        for region in board.regions:
            if region.origin % PAGE_BYTES or region.size_bytes % PAGE_BYTES:
                raise InputError(
                    f"unicorn cannot map {region.name} of {board.name}", found=f"{region.size_bytes} bytes at 0x{region.origin:08x}",
                    wanted=f"multiples of {PAGE_BYTES}", do="round the region in the board file, or run it under QEMU",
                )  # fmt: skip
            read, write, execute = unicorn.UC_PROT_READ, unicorn.UC_PROT_WRITE, unicorn.UC_PROT_EXEC
            rights = {"flash": read | execute, "ram": read | write}.get(region.name, read | write | execute)
            self.uc.mem_map(region.origin, region.size_bytes, rights)
        for segment in image.elf.segments:
            self.uc.mem_write(segment.load_address, segment.data)
        self._interrupts: list[int] = []
        self._accesses: list[_Access] = []
        self.uc.hook_add(unicorn.UC_HOOK_INTR, self._on_interrupt)
        self.uc.hook_add(unicorn.UC_HOOK_MEM_INVALID, self._on_invalid)
        vectors = self.uc.mem_read(board.flash.origin, 8)
        self.write("SP", int.from_bytes(vectors[:4], "little"))
        self.pc = int.from_bytes(vectors[4:], "little") & ~1

    def _on_interrupt(self, uc: Any, number: int, _: object) -> None:
        self._interrupts.append(number)
        uc.emu_stop()

    def _on_invalid(self, _uc: Any, access: int, address: int, _size: int, _value: int, _: object) -> bool:
        self._accesses.append(_Access(self._kinds.get(access, "a forbidden access"), address))
        return False

    def read(self, register: str) -> int:
        """A register by name ("R0", "LR")."""
        return int(self.uc.reg_read(getattr(self._const, "UC_ARM_REG_" + register)))

    def write(self, register: str, value: int) -> None:
        """Sets a register by name."""
        self.uc.reg_write(getattr(self._const, "UC_ARM_REG_" + register), value)

    def resume(self, until: int | None, deadline: float) -> bool:
        """Runs on. True when it stopped before a semihosting call, False when it stopped at address `until`.

        Raises: ToolchainError for a fault, naming the function, pc and address, or when time.monotonic() passes `deadline`.
        """
        self._interrupts.clear()
        self._accesses.clear()
        stop = _NO_STOP if until is None else until & ~1
        left_us = max(1, int((deadline - time.monotonic()) * 1e6))
        try:
            self.uc.emu_start(self.pc | 1, stop, left_us)
        except self._error as error:
            self.pc = self.read("PC") & ~1
            for access in self._accesses:
                raise self._fault(f"{access.what}, address 0x{access.address:08x}") from error
            raise self._fault(_EXCEPTIONS[1] if error.errno == self._invalid else str(error)) from error
        self.pc = self.read("PC") & ~1
        if not self._interrupts:
            if until is not None and self.pc == stop:
                return False
            raise self._fault(f"no end within {TIMEOUT_S:.0f} s of emulation")
        interrupt = self._interrupts[0]
        if interrupt == _BREAKPOINT and bytes(self.uc.mem_read(self.pc, 2)) == _BKPT_SEMIHOSTING:
            return True
        raise self._fault(_EXCEPTIONS.get(interrupt, f"exception {interrupt}"))

    def _fault(self, what: str) -> ToolchainError:
        function = self.image.elf.function_at(self.pc)
        where = f"function {function.name}" if function is not None else "no function"
        board = self.image.board
        return ToolchainError(
            f"{self.emulator}: {where} faults on {board.name} ({board.core.title})",
            found=f"{what}; pc 0x{self.pc:08x}, lr 0x{self.read('LR'):08x}",
        )


def _serve(machine: Machine, host: SemihostFiles) -> None:
    """Performs the semihosting call the machine stands at, and steps over it."""
    machine.write("R0", host.call(machine.uc, machine.read("R0"), machine.read("R1")))
    machine.pc += len(_BKPT_SEMIHOSTING)


def _hooks(machine: Machine, scope: CountScope) -> Hooks:
    """Counting hooks in C, or in Python where they cannot be compiled; both count the same."""
    library = native_library()
    return PythonHooks(machine.uc, scope) if library is None else NativeHooks(machine.uc, scope, library)


def _profile_call(machine: Machine, flash_reads: bool, deadline: float) -> tuple[LayerProfile, ...]:
    """Counts one call of the network; the machine stands at its first instruction and ends at its return."""
    scope = count_scope(machine.image, flash_reads=flash_reads)
    until = machine.read("LR")
    with _hooks(machine, scope) as hooks:
        if machine.resume(until, deadline):
            raise InternalError("the network makes a semihosting call outside a tap build")
    return layer_profiles(hooks.counts(), scope, machine.image)


def run_unicorn(
    image: Image, inputs: Sequence[bytes], *, profile: bool = False, flash_reads: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> EmulatedRun:  # fmt: skip
    """Runs every image of `inputs` (the bytes of all input tensors, in order) on the emulated board.

    Args:
        profile: count blocks and instructions per layer on the first image. flash_reads: count data reads from flash too.
        progress: called with images done and images in all.
    Raises: ToolchainError for a fault (function, pc, address), a status other than KQ_OK, or a missing emulator; InputError for
        inputs of the wrong length, a core unicorn lacks, or a profile of a tap build.
    """
    if profile and image.tap:
        raise InputError("a tap build cannot be profiled", found="profile of a tap build", wanted="an image without taps")
    host = SemihostFiles({INPUTS_FILE: bytearray(encode_inputs(image.api, inputs))})
    machine = Machine(image)
    deadline = time.monotonic() + TIMEOUT_S
    entry = image.elf.symbol(image.api.run_function).address
    layers: tuple[LayerProfile, ...] | None = None
    waiting = profile and len(inputs) > 0
    while host.exit_status is None:
        if not machine.resume(entry if waiting else None, deadline):
            layers = _profile_call(machine, flash_reads, deadline)
            waiting = False
            continue
        _serve(machine, host)
        if progress is not None:
            progress(len(host.files.get(OUTPUTS_FILE, b"")) // image.api.output_bytes, len(inputs))
    stats = bytes(host.files.get(STATS_FILE, b""))
    if not stats:
        raise ToolchainError(f"{machine.emulator}: the harness ended with status {host.exit_status}", found=host.messages.strip())
    taps = bytes(host.files.get(TAPS_FILE, b"")) if image.tap else None
    outputs = bytes(host.files.get(OUTPUTS_FILE, b""))
    return decode_run(image.api, len(inputs), outputs, taps, stats, machine.emulator, layers)
