"""Follows a function's control flow in machine code: what it calls, and how deep its stack is at each call.

Literal pools and branch tables lie inside functions, so nothing is swept: flow starts at the entry and goes where branches go.
The stack's depth is followed exactly through pushes, pops and constant steps of sp; where code sets sp in another way the depth
is unknown from there on, and the compiler's own figure has to serve.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from kqgen.errors import InternalError
from kqgen.thumb import Program, insn_size
from kqgen.thumb_insn import LR, PC, SP, Insn, Kind

_UNKNOWN = 1 << 30
_VISITS = 64  # ways of different depth to one place: code that is not a loop of pushes has one or two
# GCC's and lld's jump islands: `__name_veneer`, `__ThumbV7ABSLongThunk_name` and their kin.
_ISLAND = re.compile(r"^__(?:(?P<gnu>.+)_veneer|Thumb\w*?Thunk_(?P<lld>.+))$")
# libgcc's switch helpers for Armv6-M: bytes of a table entry, signed, whether it counts halfwords (else bytes off an aligned table).
_SWITCH_HELPERS: Mapping[str, tuple[int, bool, bool]] = {
    "__gnu_thumb1_case_uqi": (1, False, True), "__gnu_thumb1_case_sqi": (1, True, True), "__gnu_thumb1_case_uhi": (2, False, True),
    "__gnu_thumb1_case_shi": (2, True, True), "__gnu_thumb1_case_si": (4, True, False)}


@dataclass(frozen=True, slots=True)
class FunctionRange:
    """Where a function's code lies: address of its entry (Thumb bit clear) and size in bytes."""

    address: int
    size: int

    def __contains__(self, address: int) -> bool:
        return self.address <= address < self.address + self.size


@dataclass(frozen=True, slots=True, order=True)
class Call:
    """A call: entry of the callee, whether it is a jump that does not come back, and the caller's stack then (None when unknown)."""

    target: int
    tail: bool
    depth_bytes: int | None


@dataclass(frozen=True, slots=True)
class Flow:
    """What a function does: its calls, by target, and the deepest stack it makes itself (None where the code does not tell)."""

    calls: tuple[Call, ...]
    depth_bytes: int | None


def _last_writer(run: Sequence[Insn], register: int) -> int | None:
    return next((k for k in range(len(run) - 1, -1, -1) if register in run[k].writes), None)


def _constant(program: Program, run: Sequence[Insn], register: int) -> int | None:
    """The 32-bit value straight-line code has put into a register, None when it is no constant."""
    place = _last_writer(run, register)
    if place is None or run[place].conditional:
        return None
    insn, before = run[place], run[:place]
    if insn.base in ("ldr", "ldrpc"):
        return _literal(program, insn)
    if insn.base == "mov" and insn.immediate is None and not insn.shifted_operand:
        return _constant(program, before, min(insn.reads))
    if insn.immediate is None or insn.shifted_operand:
        return None
    if insn.base in ("mov", "movw"):
        return insn.immediate
    if insn.base == "mvn":
        return ~insn.immediate & 0xFFFFFFFF
    if len(insn.reads) != 1:
        return None
    source = _constant(program, before, min(insn.reads))
    if source is None:
        return None
    if insn.base == "movt":
        return insn.immediate << 16 | source & 0xFFFF
    value = {"lsl": source << insn.immediate, "add": source + insn.immediate, "sub": source - insn.immediate,
             "rsb": insn.immediate - source}.get(insn.base) if insn.base != "lsl" or insn.immediate < 32 else None
    return None if value is None else value & 0xFFFFFFFF


def _literal_address(insn: Insn) -> int | None:
    if insn.memory_base != PC or insn.memory_offset is None:
        return None
    return (insn.address + 4 & ~3) + insn.memory_offset


def _literal(program: Program, insn: Insn) -> int | None:
    address = _literal_address(insn)
    data = None if address is None else program.read(address, 4)
    return None if data is None else int.from_bytes(data, "little")


def _depth_step(program: Program, run: Sequence[Insn], insn: Insn) -> int | None:
    """Bytes the instruction deepens the stack by (negative: it gives back), None when sp is set to something else."""
    if SP not in insn.writes:
        return 0
    if insn.conditional:
        return 0 if insn.leaves_block else None
    if insn.memory_base == SP:
        return None if insn.immediate is None else -insn.immediate
    if insn.base not in ("add", "addw", "sub", "subw") or SP not in insn.reads or insn.shifted_operand:
        return None
    others = insn.reads - {SP}
    amount = _constant(program, run, min(others)) if others else insn.immediate
    if amount is None:
        return None
    signed = amount - (1 << 32) if amount & 0x80000000 else amount
    return -signed if insn.base.startswith("add") else signed


class _Walker:
    """The state of one function's walk; `walk` makes one and throws it away."""

    def __init__(self, program: Program, name: str, body: Sequence[FunctionRange], functions: Mapping[str, FunctionRange]) -> None:
        self._program, self._name, self._body, self._functions = program, name, list(body), functions
        self._entries = {place.address: other for other, place in functions.items()}
        self._todo: list[tuple[int, int]] = [(body[0].address, 0)]
        self._seen: dict[int, int] = {}
        self._visits: dict[int, int] = {}
        self._literals: set[int] = set()
        self._swept = False
        self._deepest = 0
        self._calls: set[Call] = set()

    def flow(self) -> Flow:
        while self._todo:
            self._follow(*self._todo.pop())
        if self._swept:
            self._calls.update(self._sweep())
        known = self._deepest < _UNKNOWN and not self._swept
        return Flow(tuple(sorted(self._calls, key=lambda call: (call.target, call.tail, call.depth_bytes or 0))),
                    self._deepest if known else None)

    def _inside(self, address: int) -> bool:
        return any(address in part for part in self._body)

    def _error(self, insn: Insn, found: str, do: str) -> InternalError:
        return InternalError(f"cannot bound the stack of {self._name}", found=f"{found} at {insn.address:#010x}: {insn.mnemonic}",
                             wanted="calls of functions known by name", do=do)

    def _next(self, address: int) -> tuple[Insn, ...]:
        """The instruction at `address`; an `it` with all it rules, so that their conditions are seen."""
        insn = self._program.at(address)
        if insn is None:
            raise InternalError(f"control flow of {self._name} leaves the code", found=f"{address:#010x}")
        if insn.kind is not Kind.IT:
            return (insn,)
        code = self._program.read(address, 2) or b""
        mask, end = code[0] & 15, insn.end
        for _ in range(4 - ((mask & -mask).bit_length() - 1)):
            end += insn_size(int.from_bytes(self._program.read(end, 2) or b"", "little"))
        return self._program.block(address, end - address)

    def _follow(self, address: int, depth: int) -> None:
        run: list[Insn] = []
        while self._inside(address) and address not in self._literals and self._seen.get(address, -1) < depth:
            insns = self._next(address)
            self._visits[address] = self._visits.get(address, 0) + 1
            if self._visits[address] > _VISITS:
                raise self._error(insns[0], "a loop that pushes", "keep pushes out of loops")
            for insn in insns:
                self._seen[insn.address] = depth
                step = _depth_step(self._program, run, insn)
                depth = _UNKNOWN if step is None or depth == _UNKNOWN else depth + step
                self._deepest = max(self._deepest, depth)
                place = _literal_address(insn) if insn.kind is Kind.LOAD else None
                if place is not None:
                    self._literals.update((place, place + 2))
                if not self._passes(run, insn, depth):
                    return
                run.append(insn)
                address = insn.end

    def _passes(self, run: Sequence[Insn], insn: Insn, depth: int) -> bool:
        """Notes the jumps and calls `insn` makes; whether flow also goes on behind it."""
        if insn.target is not None:
            return self._direct(insn, insn.target, depth)
        if insn.base in ("bx", "blx", "bxns", "blxns"):
            return self._by_register(run, insn, depth)
        if insn.base in ("tbb", "tbh"):
            self._table(insn.end, 1 if insn.base == "tbb" else 2, signed=False, halfwords=True, depth=depth)
            return False
        if insn.base == "udf":
            return False
        if insn.base == "poppc" or (insn.base == "ldrpc" and insn.memory_base == SP):
            return insn.conditional
        if PC in insn.writes:
            if insn.base == "ldrpc" and (literal := _literal(self._program, insn)) is not None:
                self._call(insn, literal & ~1, depth, tail=True)
            elif insn.reads != {LR}:
                self._swept = True
            return insn.conditional
        return True

    def _direct(self, insn: Insn, target: int, depth: int) -> bool:
        if insn.base == "bl" and target in self._entries:
            self._call(insn, target, depth, tail=False)
            helper = _SWITCH_HELPERS.get(self._entries[target])
            if helper is not None:
                self._table(insn.end, helper[0], signed=helper[1], halfwords=helper[2], depth=depth)
            return helper is None
        if self._inside(target) or self._joins(target):
            self._todo.append((target, depth))
        else:
            self._call(insn, target, depth, tail=True)
        return insn.conditional or insn.base != "b"

    def _joins(self, target: int) -> bool:
        """Whether the jump goes into the midst of another function, as libgcc's assembly does: that is then part of this one."""
        if target in self._entries:
            return False
        shared = [place for place in self._functions.values() if target in place]
        self._body.extend(shared[:1])
        return bool(shared)

    def _by_register(self, run: Sequence[Insn], insn: Insn, depth: int) -> bool:
        register = min(insn.reads)
        link = insn.base.startswith("blx")
        if register == LR and not link:
            return insn.conditional
        constant = _constant(self._program, run, register)
        if constant is not None:
            self._call(insn, constant & ~1, depth, tail=not link)
            return link or insn.conditional
        place = _last_writer(run, register)
        writer = None if place is None else run[place]
        popped = writer is not None and (writer.reads == {LR} if writer.base == "mov" else writer.memory_base == SP)
        if link or not popped:
            raise self._error(insn, "an indirect call", "call functions by name")
        return insn.conditional

    def _call(self, insn: Insn, target: int, depth: int, *, tail: bool) -> None:
        if target not in self._entries:
            raise self._error(insn, f"a jump to {target:#010x}, where no function begins", "keep symbols in the image")
        self._calls.add(Call(target, tail, None if depth == _UNKNOWN else depth))

    def _table(self, start: int, entry_bytes: int, *, signed: bool, halfwords: bool, depth: int) -> None:
        """Goes to each target of a branch table, which reaches at most to the first code behind it that it points to."""
        base = start if halfwords else start + 3 & ~3
        place, end = base, self._body[0].address + self._body[0].size
        while place < end and (data := self._program.read(place, entry_bytes)) is not None:
            offset = int.from_bytes(data, "little", signed=signed)
            target = base + (2 * offset if halfwords else offset)
            if not self._inside(target):
                return
            end = min(end, target) if target > place else end
            self._todo.append((target, depth))
            place += entry_bytes

    def _sweep(self) -> Iterator[Call]:
        """Calls in the parts a computed jump may reach: whatever reads as a branch to the very entry of a known function.

        Data that reads so would only add a call; nothing is missed. Raises InternalError for what reads as an indirect call.
        """
        for part in self._body:
            for address in range(part.address, part.address + part.size - 1, 2):
                insn = None if address in self._seen or address in self._literals else self._program.at(address)
                if insn is None or insn.kind is not Kind.BRANCH:
                    continue
                if insn.base == "blx":
                    raise self._error(insn, "what may be an indirect call", "call functions by name")
                if insn.target is not None and insn.target in self._entries and not self._inside(insn.target):
                    yield Call(insn.target, insn.base != "bl", None)


def follow(program: Program, name: str, body: Sequence[FunctionRange], functions: Mapping[str, FunctionRange]) -> Flow:
    """Follows function `name` from its entry, the start of the first range of `body`.

    Args:
        body: the function's ranges: its own, and those of cold parts the compiler moved away.
        functions: every function of the image that can be called, by name.

    Raises: InternalError naming the function for an indirect call, a jump to where no function begins, or flow out of the code.
    """
    flow = _Walker(program, name, body, functions).flow()
    island = _ISLAND.match(name)
    target = None if island is None else functions.get(island["gnu"] or island["lld"])
    if target is not None and not flow.calls:
        # lld's island for Armv6-M returns to an address it has put on the stack.
        return Flow((Call(target.address, True, 0),), flow.depth_bytes)
    return flow
