"""Armv8.1-M instructions the disassembler lacks: low-overhead loops, conditional selects, shifts of register pairs, vectors.

Vector instructions (Helium) are told apart by class only, which is all the cycle model asks: load, store, multiply, other.
Encodings: Armv8-M Architecture Reference Manual, C2.4.
"""

from __future__ import annotations

from kqgen.thumb_insn import LR, Insn, Kind

_NONE: frozenset[int] = frozenset()


def _loop(address: int, first: int, second: int) -> Insn:
    rn, tail = first & 15, bool(second & 0x1000) or not first & 0x40
    distance = (second >> 1 & 0x3FF) << 2 | (second >> 11 & 1) << 1
    if second == 0xE001:
        base, target = "lctp" if rn == 15 else "dlstp" if tail else "dls", None
    elif rn == 15:
        base, target = "letp" if first & 0x10 else "le", address + 4 - distance
    else:
        base, target = "wlstp" if tail else "wls", address + 4 + distance
    kind = Kind.SYSTEM if base == "lctp" else Kind.BRANCH
    reads = frozenset({LR} if base in ("le", "letp") else () if rn == 15 else {rn})
    return Insn(address, 4, base, base, kind, reads=reads, writes=frozenset({LR}), target=target)


def _select(address: int, first: int, second: int) -> Insn:
    sources = frozenset({first & 15, second & 15} - {15})
    base = ("csel", "csinc", "csinv", "csneg")[second >> 12 & 3]
    return Insn(address, 4, base, base, Kind.ALU, reads=sources,
                writes=frozenset({second >> 8 & 15}), conditional=True)


def _long_shift(address: int, first: int, second: int) -> Insn:
    pair = frozenset({first & 14, second >> 8 & 15})
    amount = frozenset({second >> 12}) if first & 1 else frozenset()
    return Insn(address, 4, "lsll", "lsll", Kind.ALU, reads=pair | amount, writes=pair)


def _vector_transfer(address: int, first: int, second: int) -> Insn:
    """Loads, stores, and moves of two core registers to or from two lanes."""
    rn = frozenset({first & 15})
    if first & 0xFFE0 == 0xEC00:
        pair = frozenset({first & 15, second & 15})
        to_lanes = bool(first & 0x10)
        return Insn(address, 4, "vmov", "vmov", Kind.VECTOR_ALU, reads=pair if to_lanes else _NONE, writes=_NONE if to_lanes else pair)
    name, kind = ("vldr", Kind.VECTOR_LOAD) if first & 0x10 else ("vstr", Kind.VECTOR_STORE)
    if first & 0xFF00 == 0xFD00:  # gathers and scatters whose addresses are lanes
        return Insn(address, 4, name, name, kind)
    return Insn(address, 4, name, name, kind, reads=rn, writes=rn if first & 0x20 else _NONE)


def _multiplies(first: int, second: int) -> bool:
    """Whether an operation on whole vectors, or on a vector and a core register, is a product."""
    if first & 0xEF80 == 0xEF00:
        return second & 0x0F50 in (0x0950, 0x0B40, 0x0C50)
    if first & 0xEF80 != 0xEE00:
        return False
    if first & 0x30 == 0x30:  # no size of lanes: conversions and carries but for vqdmull
        return first & 1 == 0 and (second & 0x0F51 == 0x0F01 or second & 0x0F60 == 0x0F60)
    reverses = first & 0xFF81 == 0xFE01 and second & 0x1FF0 == 0x1E60
    return second & 0x0F80 == 0x0E00 and not reverses


def _arithmetic(address: int, first: int, second: int) -> Insn:
    kind = Kind.VECTOR_MAC if _multiplies(first, second) else Kind.VECTOR_ALU
    if first & 0xEF80 != 0xEE00 or second & 0x0E40 != 0x0E40 or second & 0x0FFF == 0x0F4D:
        return Insn(address, 4, "v.inst", "v.inst", kind)
    if first & 0x31 != 0x31 and first & 1 and second & 0x0F60 == 0x0F60:
        rn, rm = frozenset({first & 14}), frozenset({second & 14 | 1} - {15})
        return Insn(address, 4, "vidup", "vidup", kind, reads=rn | rm, writes=rn)
    return Insn(address, 4, "v.inst", "v.inst", kind, reads=frozenset({second & 15}))


def _vector(address: int, first: int, second: int) -> Insn | None:
    coprocessor = second >> 9 & 7
    if first & 0xEE00 == 0xEC00:
        return _vector_transfer(address, first, second) if coprocessor == 7 else None
    if first & 0xEE00 != 0xEE00:
        return None
    if first & 0xFFEE == 0xEEEC and second & 0x0FFF == 0x0A10:  # p0 and vpr, which hold predicates
        rt, name = frozenset({second >> 12}), "vmrs" if first & 0x10 else "vmsr"
        return Insn(address, 4, name, name, Kind.SYSTEM, reads=_NONE if name == "vmrs" else rt, writes=rt if name == "vmrs" else _NONE)
    low = second >> 12 & 14
    if first & 0xFF80 == 0xEE00 and second & 0x0F1F == 0x0B10:  # one lane
        rt = frozenset({second >> 12})
        from_lane = first & 0x10
        return Insn(address, 4, "vmov", "vmov", Kind.VECTOR_ALU, reads=_NONE if from_lane else rt, writes=rt if from_lane else _NONE)
    if first & 0xFFB0 == 0xEEA0 and second & 0x0F5F == 0x0B10:
        return Insn(address, 4, "vdup", "vdup", Kind.VECTOR_ALU, reads=frozenset({second >> 12}))
    if coprocessor == 5 and first & 0x1000 == 0:
        return None
    if first & 0xEFF3 == 0xEEE2 and coprocessor == 7:
        rda = frozenset({second >> 12})
        return Insn(address, 4, "vmaxv", "vmaxv", Kind.VECTOR_ALU, reads=rda, writes=rda)
    if first & 0xEF80 == 0xEE80 and coprocessor == 7 and (first & 1 == 0 or first & 0xEFF3 == 0xEEF1):
        high = (first >> 4 & 7) << 1 | 1
        rda = frozenset({low} if high == 15 else {low, high})
        return Insn(address, 4, "vmladav", "vmladav", Kind.VECTOR_MAC, reads=rda, writes=rda)
    return _arithmetic(address, first, second)


def decode_v81(address: int, first: int, second: int) -> Insn | None:
    """The wide instruction of these two halfwords as Armv8.1-M reads it; None when it is none of this module's."""
    if first & 0xFFC0 == 0xF000 and second == 0xE801:
        return Insn(address, 4, "vctp", "vctp", Kind.VECTOR_ALU, reads=frozenset({first & 15}))
    if first & 0xF800 == 0xF000 and second & 0xD001 == 0xC001:
        return _loop(address, first, second)
    if first & 0xFFF0 == 0xEA50 and second & 0xC000 == 0x8000:
        return _select(address, first, second)
    if first & 0xFFF0 == 0xEA50 and (second & 0x800F == 0x000F or (first & 1 and second & 0x010F == 0x010D)):
        return _long_shift(address, first, second)
    return _vector(address, first, second)
