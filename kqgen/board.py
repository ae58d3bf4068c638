"""Cores and boards: what a network is compiled for, read from boards/*.toml and checked on construction."""

from __future__ import annotations

import difflib
import itertools
import tomllib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from kqgen.assets import boards_dir
from kqgen.errors import InputError, InternalError

EmulatorKind = Literal["unicorn", "qemu", "none"]

EMULATORS: tuple[EmulatorKind, ...] = ("unicorn", "qemu", "none")


@dataclass(frozen=True, slots=True)
class Core:
    """A processor core and how compilers, ELF files and emulators call it.

    Attributes:
        name: kqgen's short name, as `kqgen bench --core` takes it.
        title: as a person writes it.
        gcc_cpu: GCC's -mcpu value; "" for the host.
        zig_cpu: the value of `zig cc -mcpu`.
        elf_cpu_arch: values of Tag_CPU_arch (Arm "ELF for the Arm Architecture" addenda, build attributes) that code for it has.
        has_long_multiply: UMULL and SMULL exist.
        has_dsp: the DSP extension is there (SMLAD and its kin).
        has_mve: integer vectors are there (Helium, MVE-I).
        unicorn_model: name of unicorn's CPU model (the end of UC_CPU_ARM_*), None where unicorn has none.
    """

    name: str
    title: str
    gcc_cpu: str
    zig_cpu: str
    elf_cpu_arch: tuple[int, ...]
    has_long_multiply: bool
    has_dsp: bool
    has_mve: bool
    unicorn_model: str | None

    def without_dsp(self) -> Core:
        """The same core built without the DSP extension, an option its maker has on the M33."""
        return replace(self, gcc_cpu=self.gcc_cpu + "+nodsp", zig_cpu=self.zig_cpu + "-dsp", has_dsp=False)

    @property
    def float_abi(self) -> Literal["soft", "softfp"]:
        """The value of -mfloat-abi. Under softfp arguments travel as under soft: objects of the two link."""
        return "softfp" if self.has_mve else "soft"

    @property
    def is_host(self) -> bool:
        """True for the machine kqgen itself runs on."""
        return self.name == "host"


# Tag_CPU_arch: 10 v7 (with profile M: ARMv7-M), 11 v6-M, 12 v6S-M, 13 v7E-M, 17 v8-M.mainline, 21 v8.1-M.mainline.
# No core's FPU is used: the generated code holds no float, so it is compiled for the soft float ABI and links into firmware of the soft
# and softfp ABI. GCC offers Helium (MVE) under the hard and softfp ABIs only, so the M55 takes softfp, with integer vectors and no FPU
# (clang leaves MVE out of its M55 without an FPU unless asked).
CORES: tuple[Core, ...] = (
    Core("host", "host computer", "", "", (), True, False, False, None),
    Core("m0", "Cortex-M0", "cortex-m0", "cortex_m0", (11, 12), False, False, False, "CORTEX_M0"),
    Core("m0p", "Cortex-M0+", "cortex-m0plus", "cortex_m0plus", (11, 12), False, False, False, "CORTEX_M0"),
    Core("m3", "Cortex-M3", "cortex-m3", "cortex_m3", (10,), True, False, False, "CORTEX_M3"),
    Core("m4", "Cortex-M4", "cortex-m4", "cortex_m4", (13,), True, True, False, "CORTEX_M4"),
    Core("m7", "Cortex-M7", "cortex-m7", "cortex_m7", (13,), True, True, False, "CORTEX_M7"),
    Core("m33", "Cortex-M33", "cortex-m33", "cortex_m33", (17,), True, True, False, "CORTEX_M33"),
    Core("m55", "Cortex-M55", "cortex-m55+nofp", "cortex_m55+mve-mve_fp", (21,), True, True, True, None),
)


def load_core(name: str) -> Core:
    """The core of that short name.

    Raises: InputError for a name not in CORES.
    """
    for core in CORES:
        if core.name == name:
            return core
    raise InputError(
        f"unknown core {name!r}", found=name, wanted="one of " + ", ".join(core.name for core in CORES), do="choose one of these"
    )


@dataclass(frozen=True, slots=True)
class Region:
    """A stretch of memory: `name`, address of its first byte, size in bytes."""

    name: str
    origin: int
    size_bytes: int

    @property
    def end(self) -> int:
        """Address of the first byte after it."""
        return self.origin + self.size_bytes


@dataclass(frozen=True, slots=True)
class Board:
    """A board: core, clock, memories in bytes, and what can emulate it. Checks itself on construction.

    Attributes:
        name: the file's stem.
        regions: `flash` and `ram` on every board but a host one, others (tightly coupled memories) where the board has them.
        flash_wait_states: extra cycles of an uncached flash access at `clock_hz`.
        reserve_flash_bytes, reserve_ram_bytes: kept for the user's own code; a network may not use them.
        emulator: what runs it by default. qemu_machine: QEMU's -M name, None where QEMU has no such machine.
        source: where the figures are from.
        where: the file, for messages.

    Raises: InputError naming file and key for a figure that cannot be.
    """

    name: str
    title: str
    core: Core
    clock_hz: int
    flash_wait_states: int
    regions: tuple[Region, ...]
    reserve_flash_bytes: int
    reserve_ram_bytes: int
    emulator: EmulatorKind
    qemu_machine: str | None
    source: str
    notes: str
    where: str

    def __post_init__(self) -> None:
        names = [region.name for region in self.regions]
        if self.core.is_host:
            if self.regions or self.emulator != "none":
                raise _bad(self.where, "memory", "a host board with memory regions or an emulator", "neither")
            return
        for needed in ("flash", "ram"):
            if needed not in names:
                raise _bad(self.where, f"memory.{needed}", "no such table", "origin and size_bytes of the main " + needed)
        if self.clock_hz <= 0:
            raise _bad(self.where, "clock_hz", str(self.clock_hz), "a frequency in hertz, above 0")
        if self.flash_wait_states < 0:
            raise _bad(self.where, "flash_wait_states", str(self.flash_wait_states), "0 or more")
        for region in self.regions:
            self._check_region(region)
        for low, high in itertools.pairwise(sorted(self.regions, key=lambda region: region.origin)):
            if low.end > high.origin:
                found = f"0x{high.origin:08x}, inside {low.name} (0x{low.origin:08x} to 0x{low.end - 1:08x})"
                raise _bad(self.where, f"memory.{high.name}.origin", found, "regions that do not overlap")
        self._check_reserves()
        self._check_emulator()

    def _check_reserves(self) -> None:
        for key, reserve, region in (
            ("reserve_flash_bytes", self.reserve_flash_bytes, self.flash),
            ("reserve_ram_bytes", self.reserve_ram_bytes, self.ram),
        ):
            if not 0 <= reserve < region.size_bytes:
                raise _bad(self.where, key, str(reserve), f"0 to {region.size_bytes - 1}: less than {region.name} holds")

    def _check_emulator(self) -> None:
        if self.emulator == "unicorn" and self.core.unicorn_model is None:
            raise _bad(self.where, "emulator", "unicorn", f"qemu or none: unicorn has no {self.core.title}")
        if self.emulator == "qemu" and self.qemu_machine is None:
            raise _bad(self.where, "qemu_machine", "no such key", "QEMU's machine name, because emulator is qemu")

    def _check_region(self, region: Region) -> None:
        where = f"memory.{region.name}"
        if not 0 <= region.origin < 1 << 32 or region.origin % 4 != 0:
            raise _bad(self.where, f"{where}.origin", hex(region.origin), "an address of 32 bits, divisible by 4")
        if region.size_bytes <= 0 or region.end > 1 << 32:
            raise _bad(self.where, f"{where}.size_bytes", str(region.size_bytes), "above 0, ending within 4 GB")

    def region(self, name: str) -> Region:
        """The region of that name.

        Raises: InternalError when the board has none (the host has no regions at all).
        """
        for region in self.regions:
            if region.name == name:
                return region
        raise InternalError(f"board {self.name} has no memory region {name!r}")

    @property
    def is_host(self) -> bool:
        """True for the machine kqgen itself runs on; it has no regions and no limits."""
        return self.core.is_host

    @property
    def flash(self) -> Region:
        """Where code and tables go."""
        return self.region("flash")

    @property
    def ram(self) -> Region:
        """Where arena, buffers and stack go."""
        return self.region("ram")

    @property
    def usable_flash_bytes(self) -> int | None:
        """Flash a network may take, None (no limit) on the host."""
        return None if self.is_host else self.flash.size_bytes - self.reserve_flash_bytes

    @property
    def usable_ram_bytes(self) -> int | None:
        """RAM a network may take, None (no limit) on the host."""
        return None if self.is_host else self.ram.size_bytes - self.reserve_ram_bytes


def _bad(where: str, key: str, found: str, wanted: str) -> InputError:
    return InputError(f"{where}: key {key} is wrong", found=found, wanted=wanted, do=f"correct {key} in {where}")


_INT_KEYS = ("clock_hz", "flash_wait_states", "reserve_flash_bytes", "reserve_ram_bytes")
_TEXT_KEYS = ("title", "core", "emulator", "source")
_OPTIONAL_TEXT_KEYS = ("qemu_machine", "notes")


def _integer(where: str, key: str, value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise _bad(where, key, f"{value!r} ({type(value).__name__})", "an integer")
    return value


def _text(where: str, key: str, value: object) -> str:
    if not isinstance(value, str) or not value.strip():
        raise _bad(where, key, f"{value!r} ({type(value).__name__})", "a text that is not empty")
    return value


def _known(where: str, prefix: str, table: dict[str, object], required: tuple[str, ...], optional: tuple[str, ...]) -> None:
    for key in table:
        if key not in (*required, *optional):
            near = difflib.get_close_matches(key, (*required, *optional), 1)
            raise InputError(
                f"{where}: unknown key {prefix}{key}",
                found=prefix + key,
                wanted="only " + ", ".join((*required, *optional)),
                do=f"did you mean {prefix}{near[0]}?" if near else "remove it",
            )
    for key in required:
        if key not in table:
            raise _bad(where, prefix + key, "no such key", "it is required")


def parse_board(text: str, name: str, where: str) -> Board:
    """A board from the text of its TOML file; `where` is the file's name in messages.

    Raises: InputError naming file and key for text that is not TOML, and for unknown, missing or impossible keys.
    """
    try:
        table: dict[str, object] = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"{where} is not TOML", found=str(error), wanted="a board description", do=f"correct {where}") from error
    _known(where, "", table, (*_INT_KEYS, *_TEXT_KEYS), (*_OPTIONAL_TEXT_KEYS, "dsp", "memory"))
    texts = {key: _text(where, key, table[key]) for key in (*_TEXT_KEYS, *_OPTIONAL_TEXT_KEYS) if key in table}
    numbers = {key: _integer(where, key, table[key]) for key in _INT_KEYS}
    if texts["emulator"] not in EMULATORS:
        raise _bad(where, "emulator", repr(texts["emulator"]), "one of " + ", ".join(EMULATORS))
    if texts["core"] not in [core.name for core in CORES]:
        raise _bad(where, "core", repr(texts["core"]), "one of " + ", ".join(core.name for core in CORES))
    core = load_core(texts["core"])
    dsp = table.get("dsp", core.has_dsp)
    if not isinstance(dsp, bool):
        raise _bad(where, "dsp", repr(dsp), "true or false")
    if dsp != core.has_dsp and core.name != "m33":
        raise _bad(where, "dsp", str(dsp).lower(), f"no such key: only the M33 comes with and without, the {core.title} does not")
    memory = table.get("memory", {})
    if not isinstance(memory, dict):
        raise _bad(where, "memory", repr(memory), "tables memory.<region>")
    regions = []
    for region_name, entry in memory.items():
        prefix = f"memory.{region_name}"
        if not isinstance(entry, dict):
            raise _bad(where, prefix, repr(entry), "a table with origin and size_bytes")
        _known(where, prefix + ".", entry, ("origin", "size_bytes"), ())
        origin, size = (_integer(where, f"{prefix}.{key}", entry[key]) for key in ("origin", "size_bytes"))
        regions.append(Region(region_name, origin, size))
    return Board(
        name=name,
        title=texts["title"],
        core=core if dsp == core.has_dsp else core.without_dsp(),
        clock_hz=numbers["clock_hz"],
        flash_wait_states=numbers["flash_wait_states"],
        regions=tuple(regions),
        reserve_flash_bytes=numbers["reserve_flash_bytes"],
        reserve_ram_bytes=numbers["reserve_ram_bytes"],
        emulator=texts["emulator"],
        qemu_machine=texts.get("qemu_machine"),
        source=texts["source"],
        notes=texts.get("notes", ""),
        where=where,
    )


def board_names() -> tuple[str, ...]:
    """Names of the boards that come with kqgen, sorted."""
    return tuple(sorted(path.stem for path in boards_dir().glob("*.toml")))


def load_board(name_or_path: str | Path) -> Board:
    """A board by its name, or from a .toml file of the user's own.

    Raises: InputError for an unknown name (near names listed), a file that cannot be read, or a wrong description.
    """
    given = str(name_or_path)
    is_file = given.endswith(".toml")
    path = Path(given) if is_file else boards_dir() / f"{given}.toml"
    if not is_file and given not in board_names():
        near = difflib.get_close_matches(given, board_names(), 3, 0.4)
        raise InputError(
            f"unknown board {given!r}",
            found=given,
            wanted="one of " + ", ".join(board_names()),
            do=("did you mean " + " or ".join(near) + "? " if near else "") + "`kqgen boards` lists all; a path to a .toml file works too",
        )
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read board file {given}", found=str(error), wanted="a TOML file in UTF-8", do="check the path") from error
    return parse_board(text, path.stem, given if is_file else f"boards/{path.name}")


def all_boards() -> tuple[Board, ...]:
    """Every board that comes with kqgen, in order of name."""
    return tuple(load_board(name) for name in board_names())


def bench_board(core: Core) -> Board:
    """A roomy board that exists nowhere (4 MB flash, 4 MB RAM, no wait states), for timing code on a bare core.

    The M55's memories are those of QEMU's mps3-an547, the only machine that can run it.
    """
    if core.is_host:
        return load_board("host")
    if core.unicorn_model is None:
        return load_board("mps3-an547")
    return Board(
        name=f"bench-{core.name}",
        title=f"bare {core.title}",
        core=core,
        clock_hz=1_000_000,
        flash_wait_states=0,
        regions=(Region("flash", 0x0000_0000, 4 << 20), Region("ram", 0x2000_0000, 4 << 20)),
        reserve_flash_bytes=0,
        reserve_ram_bytes=0,
        emulator="unicorn",
        qemu_machine=None,
        source="no board: a core with memory enough",
        notes="",
        where=f"bench board of {core.name}",
    )
