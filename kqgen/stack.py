"""The worst stack of a call tree: frame sizes the compiler states, over the calls found in the linked code.

Interrupts and the caller's own frame are not in it. The figure is checked against the emulator's high-water mark.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import pairwise

from kqgen.callgraph import Call, Flow, FunctionRange, follow
from kqgen.elf import Elf, Frame
from kqgen.errors import InternalError
from kqgen.thumb import Program

__all__ = ["FunctionRange", "StackBound", "worst_stack", "worst_stack_of"]

_CLONE_NUMBER = re.compile(r"\.\d+")
_SAME_NAME = "@"


@dataclass(frozen=True, slots=True)
class StackBound:
    """The most stack a call may take, in bytes, and the functions from the root down that take it."""

    bytes: int
    path: tuple[str, ...]


@dataclass(slots=True)
class _Tree:
    """A call tree on its way to a bound; `bounds` holds the functions that are done."""

    program: Program
    functions: Mapping[str, FunctionRange]
    frames: Mapping[str, int]
    entries: Mapping[int, str]
    bounds: dict[str, StackBound] = field(default_factory=dict)

    def _recorded(self, name: str) -> int | None:
        """The compiler's figure. GCC leaves the numbers of clones out: `f.constprop` is the larger of f.constprop.0 and .1."""
        plain = name.partition(_SAME_NAME)[0]
        known = self.frames.get(plain, self.frames.get(_CLONE_NUMBER.sub("", plain)))
        aliases = [self.frames[other] for other, place in self.functions.items() if other in self.frames
                   and place.address == self.functions[name].address]
        return max(aliases, default=known)

    def _flow(self, name: str) -> Flow:
        cold = sorted(other for other in self.functions if other.startswith(f"{name}.cold"))
        body = [self.functions[name], *(self.functions[other] for other in cold)]
        return follow(self.program, name, body, {entry: self.functions[entry] for entry in self.entries.values() if entry not in cold})

    def bound(self, name: str, trail: tuple[str, ...]) -> StackBound:
        if name in trail:
            raise InternalError(f"{name} calls itself, so its stack has no bound", found=" > ".join((*trail, name)),
                                wanted="no recursion", do="keep recursion out of generated code and of functions it calls")
        if name in self.bounds:
            return self.bounds[name]
        flow, recorded = self._flow(name), self._recorded(name)
        known = [size for size in (flow.depth_bytes, recorded) if size is not None]
        if not known:
            raise InternalError(f"cannot tell the stack frame of {name}", found="no figure of the compiler, and sp set to a computed value",
                                wanted="-fstack-usage or -fstack-size-section, or pushes and constant steps of sp")
        # GCC's figure leaves out the arguments a variadic function pushes; the code shows them.
        frame = max(known)
        worst = StackBound(frame, (name,))
        for call in flow.calls:
            worst = max(worst, self._through(name, frame, call, (*trail, name)), key=lambda bound: bound.bytes)
        return self.bounds.setdefault(name, worst)

    def _through(self, name: str, frame: int, call: Call, trail: tuple[str, ...]) -> StackBound:
        callee = self.bound(self.entries[call.target], trail)
        held = call.depth_bytes if call.tail and call.depth_bytes is not None else frame
        return StackBound(held + callee.bytes, (name, *callee.path))


def worst_stack(program: Program, functions: Mapping[str, FunctionRange], frames: Mapping[str, int], root: str) -> StackBound:
    """The most stack `root` may take with all it calls.

    Calls are `bl`, `blx` and `bx` of a known address, and branches to another function, whose caller's frame is gone by then.

    Args:
        functions: every function of the image, by name.
        frames: frame sizes in bytes the compiler states, pushed registers included; a function without one (memcpy, assembly)
            is read from its code. Where both are known the larger counts.

    Raises: InternalError naming the function for recursion, an indirect call, or a frame nothing tells.
    """
    if root not in functions:
        raise InternalError(f"the image has no function {root}", found=f"{len(functions)} others", wanted=root)
    entries: dict[int, str] = {}
    for name in sorted(functions):
        entries.setdefault(functions[name].address, name)
    return _Tree(program, functions, frames, entries).bound(root, ())


def function_ranges(elf: Elf) -> dict[str, FunctionRange]:
    """The functions of a linked image by name; equal names of several files get their address added.

    One without a size (assembly) reaches to the next function.
    """
    functions = [symbol for symbol in elf.symbols if symbol.kind == "function"]
    addresses = sorted({symbol.address for symbol in functions})
    following = dict(pairwise(addresses))
    ranges: dict[str, FunctionRange] = {}
    for symbol in functions:
        end = following.get(symbol.address, symbol.address)
        name = symbol.name if symbol.name not in ranges else f"{symbol.name}{_SAME_NAME}{symbol.address:#x}"
        ranges[name] = FunctionRange(symbol.address, symbol.size_bytes or end - symbol.address)
    return ranges


def worst_stack_of(elf: Elf, frames: Iterable[Frame], root: str) -> StackBound:
    """`worst_stack` of a linked image; equal names among `frames` keep the larger.

    Raises: InternalError as `worst_stack` does.
    """
    largest: dict[str, int] = {}
    for frame in frames:
        largest[frame.function] = max(frame.size_bytes, largest.get(frame.function, 0))
    return worst_stack(Program.of_elf(elf), function_ranges(elf), largest, root)
