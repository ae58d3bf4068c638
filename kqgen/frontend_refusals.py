"""All that a program holds and kqgen does not compile, told at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import torch
from torch import fx

from kqgen.errors import UnsupportedError
from kqgen.frontend_axes import map_shape
from kqgen.frontend_call import Builder, Operand, Value
from kqgen.ir import Input

UNKNOWN: Final[object] = object()
"""Stands for a result that nothing can be said about."""

_PLACES = 4


class Refusals:
    """Operators refused while a program is read, in its order."""

    def __init__(self) -> None:
        self._met: list[tuple[str, UnsupportedError]] = []

    def note(self, node: fx.Node, refusal: UnsupportedError) -> None:
        """Remembers that `node` does not compile."""
        target = node.target
        self._met.append((target._opname if isinstance(target, torch._ops.OpOverload) else str(target), refusal))

    def raise_all(self, name: str) -> None:
        """Nothing where nothing was refused.

        Raises:
            UnsupportedError: the one refusal, or all by operator with their counts and places; `name` is the network's.
        """
        if not self._met:
            return
        if len(self._met) == 1:
            raise self._met[0][1]
        kinds: dict[str, list[UnsupportedError]] = {}
        for operator, refusal in self._met:
            kinds.setdefault(operator, []).append(refusal)
        found = [f"{operator} ({len(each)}x): {_places(each)}\n  {each[0].found}" for operator, each in kinds.items()]
        wanted = [f"{operator}: {each[0].wanted}" for operator, each in kinds.items() if each[0].wanted]
        ways = dict.fromkeys(refusal.do for each in kinds.values() for refusal in each[:1])
        raise UnsupportedError(
            f"cannot compile {len(self._met)} operations of {name}: {', '.join(kinds)}",
            found="\n".join(found),
            wanted="\n".join(wanted),
            do="\n".join(ways),
        )


def _places(refusals: Sequence[UnsupportedError]) -> str:
    places = list(dict.fromkeys(each.what.removeprefix("cannot compile ").partition(" (torch")[0] for each in refusals))
    more = len(places) - _PLACES
    return ", ".join(places[:_PLACES]) + (f" and {more} more" if more > 0 else "")


def stand_in(builder: Builder, node: fx.Node, batch: Any) -> Operand:
    """A value of the shape that `node` makes, or several; UNKNOWN where its axes are no map's."""
    made = node.meta.get("val")
    if isinstance(made, (tuple, list)):
        return [_value(builder, node, each, batch) for each in made]
    return _value(builder, node, made, batch)


def _value(builder: Builder, node: fx.Node, made: Any, batch: Any) -> Operand:
    if not isinstance(made, torch.Tensor) or made.dim() == 0 or str(made.shape[0]) != str(batch):
        return UNKNOWN
    dims = tuple(made.shape[1:])
    shape = map_shape(dims) if all(isinstance(size, int) and size > 0 for size in dims) else None
    if shape is None:
        return UNKNOWN
    return Value(builder.add(f"unknown_{node.name}", lambda name: Input(name=name, path="", inputs=(), shape=shape)).name, dims)
