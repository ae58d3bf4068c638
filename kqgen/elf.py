"""What kqgen reads out of ELF files, over pyelftools: segments, symbols, sections, build attributes, frame sizes."""

from __future__ import annotations

import bisect
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from elftools.common.exceptions import ELFError
from elftools.elf.elffile import ELFFile
from elftools.elf.sections import ARMAttributesSection, SymbolTableSection

from kqgen.board import Core
from kqgen.errors import ToolchainError

SymbolKind = Literal["function", "object", "other"]

_KINDS: dict[str, SymbolKind] = {"STT_FUNC": "function", "STT_OBJECT": "object"}
_SHF_ALLOC = 2
_MICROCONTROLLER = ord("M")


@dataclass(frozen=True, slots=True)
class Segment:
    """A loadable segment: where it runs, where it is stored, its bytes, and its size in memory (zeros follow the bytes)."""

    address: int
    load_address: int
    data: bytes
    memory_bytes: int
    executable: bool
    writable: bool


@dataclass(frozen=True, slots=True)
class Symbol:
    """A defined symbol; the address of a function has its Thumb bit cleared."""

    name: str
    address: int
    size_bytes: int
    kind: SymbolKind
    is_global: bool
    section: str


@dataclass(frozen=True, slots=True)
class Section:
    """A section: name, address, size in bytes, and whether it takes room on the target."""

    name: str
    address: int
    size_bytes: int
    allocated: bool


@dataclass(frozen=True, slots=True)
class Frame:
    """A function's stack frame as the compiler states it, in bytes, pushed registers included."""

    function: str
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Elf:
    """An ELF file, read.

    Attributes:
        symbols: defined ones, in address order.
        undefined: names of the undefined symbols, sorted.
        cpu_arch, cpu_arch_profile: Tag_CPU_arch and Tag_CPU_arch_profile, None without build attributes.
        frames: the .stack_sizes section (clang's -fstack-size-section), empty without one.
    """

    path: Path
    segments: tuple[Segment, ...]
    symbols: tuple[Symbol, ...]
    sections: tuple[Section, ...]
    undefined: tuple[str, ...]
    cpu_arch: int | None
    cpu_arch_profile: int | None
    frames: tuple[Frame, ...]

    def symbol(self, name: str) -> Symbol:
        """The defined symbol of that name.

        Raises: ToolchainError when there is none.
        """
        for symbol in self.symbols:
            if symbol.name == name:
                return symbol
        raise ToolchainError(f"{self.path.name} has no symbol {name}", found=f"{len(self.symbols)} other symbols", wanted=name)

    def section_bytes(self, name: str) -> int:
        """Size of the section of that name, 0 when there is none."""
        return sum(section.size_bytes for section in self.sections if section.name == name)

    def function_at(self, address: int) -> Symbol | None:
        """The function whose code holds `address`, None for an address outside every function."""
        functions = [symbol for symbol in self.symbols if symbol.kind == "function"]
        place = bisect.bisect_right([symbol.address for symbol in functions], address & ~1)
        for symbol in reversed(functions[:place]):
            if address & ~1 < symbol.address + symbol.size_bytes:
                return symbol
        return None


def _symbols(elf: ELFFile) -> tuple[tuple[Symbol, ...], tuple[str, ...]]:
    table = elf.get_section_by_name(".symtab")
    if not isinstance(table, SymbolTableSection):
        return (), ()
    defined: list[Symbol] = []
    undefined: set[str] = set()
    for entry in table.iter_symbols():
        kind = entry["st_info"]["type"]
        if not entry.name or kind in ("STT_FILE", "STT_SECTION") or entry.name.startswith("$"):
            continue
        index = entry["st_shndx"]
        if index == "SHN_UNDEF":
            undefined.add(entry.name)
            continue
        is_function = kind == "STT_FUNC"
        defined.append(
            Symbol(
                name=entry.name,
                address=entry["st_value"] & ~1 if is_function else entry["st_value"],
                size_bytes=entry["st_size"],
                kind=_KINDS.get(kind, "other"),
                is_global=entry["st_info"]["bind"] != "STB_LOCAL",
                section=elf.get_section(index).name if isinstance(index, int) else str(index),
            )
        )
    return tuple(sorted(defined, key=lambda symbol: (symbol.address, symbol.name))), tuple(sorted(undefined))


def _attributes(elf: ELFFile) -> tuple[int | None, int | None]:
    section = elf.get_section_by_name(".ARM.attributes")
    arch: int | None = None
    profile: int | None = None
    if isinstance(section, ARMAttributesSection):
        for subsection in section.iter_subsections():
            for group in subsection.iter_subsubsections():
                for attribute in group.iter_attributes():
                    if attribute.tag == "TAG_CPU_ARCH":
                        arch = int(attribute.value)
                    elif attribute.tag == "TAG_CPU_ARCH_PROFILE":
                        profile = int(attribute.value)
    return arch, profile


def _uleb128(data: bytes, at: int) -> tuple[int, int]:
    value, shift = 0, 0
    while True:
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if not byte & 0x80:
            return value, at


def _frames(elf: ELFFile, symbols: tuple[Symbol, ...]) -> tuple[Frame, ...]:
    """Entries of .stack_sizes: a 4-byte function address and a ULEB128 size each (LLVM, "Emitting function stack size information")."""
    by_place = {(symbol.section, symbol.address): symbol.name for symbol in symbols if symbol.kind == "function"}
    by_address = {symbol.address: symbol.name for symbol in symbols if symbol.kind == "function"}
    frames: list[Frame] = []
    for section in elf.iter_sections():
        if section.name != ".stack_sizes" or section["sh_type"] == "SHT_NOBITS":
            continue
        home = elf.get_section(section["sh_link"]).name if _is_relocatable(elf) else None
        data, at = section.data(), 0
        while at < len(data):
            address = int.from_bytes(data[at : at + 4], "little") & ~1
            size, at = _uleb128(data, at + 4)
            name = by_address.get(address) if home is None else by_place.get((home, address))
            if name is not None:
                frames.append(Frame(name, size))
    return tuple(sorted(frames, key=lambda frame: (frame.function, frame.size_bytes)))


def _is_relocatable(elf: ELFFile) -> bool:
    return bool(elf["e_type"] == "ET_REL")


def _segments(elf: ELFFile) -> tuple[Segment, ...]:
    return tuple(
        Segment(
            address=header["p_vaddr"],
            load_address=header["p_paddr"],
            data=header.data(),
            memory_bytes=header["p_memsz"],
            executable=bool(header["p_flags"] & 1),
            writable=bool(header["p_flags"] & 2),
        )
        for header in elf.iter_segments()
        if header["p_type"] == "PT_LOAD" and header["p_memsz"]
    )


def read_elf(path: Path) -> Elf:
    """Reads an object or executable.

    Raises: ToolchainError when the file cannot be read or is no ELF file.
    """
    try:
        with path.open("rb") as stream:
            elf = ELFFile(stream)
            symbols, undefined = _symbols(elf)
            arch, profile = _attributes(elf)
            return Elf(
                path=path,
                segments=_segments(elf),
                symbols=symbols,
                sections=tuple(
                    Section(section.name, section["sh_addr"], section["sh_size"], bool(section["sh_flags"] & _SHF_ALLOC))
                    for section in elf.iter_sections()
                    if section.name
                ),
                undefined=undefined,
                cpu_arch=arch,
                cpu_arch_profile=profile,
                frames=_frames(elf, symbols),
            )
    except (OSError, ELFError) as error:
        raise ToolchainError(f"cannot read {path.name} as an ELF file", found=str(error), wanted="what the compiler wrote") from error


def check_cpu_arch(elf: Elf, core: Core) -> None:
    """Checks that an ELF file holds code for `core`: emulators let instructions pass that the core lacks.

    Raises: ToolchainError naming both architectures.
    """
    if elf.cpu_arch in core.elf_cpu_arch and elf.cpu_arch_profile == _MICROCONTROLLER:
        return
    raise ToolchainError(
        f"{elf.path.name} is not code for the {core.title}",
        found=f"Tag_CPU_arch {elf.cpu_arch}, profile {elf.cpu_arch_profile}",
        wanted=f"Tag_CPU_arch {' or '.join(str(value) for value in core.elf_cpu_arch)}, profile {_MICROCONTROLLER} ('M')",
        do=f"compile every source with -mcpu={core.gcc_cpu}",
    )
