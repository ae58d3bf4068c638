"""What a user asks of compression: options that say how every layer is stored, or a size that decides them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from kqgen.errors import InputError
from kqgen.options import Codebook, Compression, Scope, Weights


@dataclass(frozen=True, slots=True)
class Target:
    """How small a network shall be; exactly one of the two is given.

    Attributes:
        bits_per_weight: over all weights of convolutions, codebooks and padding counted, fully connected layers not.
        table_bytes: of all indices, codebooks and uniform weights, fully connected layers counted, requantisation tables not.

    Raises:
        InputError: none or both are given, or one that is not positive.
    """

    bits_per_weight: float | None = None
    table_bytes: int | None = None

    def __post_init__(self) -> None:
        if (self.bits_per_weight is None) == (self.table_bytes is None):
            raise InputError(
                "a target is either bits for a weight or bytes of tables",
                found="neither" if self.bits_per_weight is None else "both",
                wanted="one of the two",
                do="give --target-bits or --target-bytes",
            )
        value = self.bits_per_weight if self.bits_per_weight is not None else self.table_bytes
        if value is None or not 0 < value < math.inf:
            raise InputError("a target must be a positive number", found=str(value), do="for example --target-bits 1.5")

    def __str__(self) -> str:
        return f"{self.bits_per_weight:g} bits a weight" if self.bits_per_weight is not None else f"{self.table_bytes} bytes of tables"


@dataclass(frozen=True, slots=True)
class Goal:
    """A target size, and what the user fixed beside it.

    Attributes:
        target: what the tables may take.
        codebook: its sign and additive hold, its scope when it is the only one in `scopes`; its codewords are chosen.
        scopes: those to choose among.
        keep: (layer, bits) pairs, see `Compression`.
        seed: of the clustering.
        reconstruct: steps, see `Compression`.
    """

    target: Target
    codebook: Codebook
    scopes: tuple[Scope, ...] = ("network", "layer")
    keep: tuple[tuple[str, int], ...] = ()
    seed: int = 0
    reconstruct: int = 0


def goal_or_options(
    weights: Weights, codebook: Codebook | None, *, keep: Sequence[tuple[str, int]], widths: Sequence[tuple[str, int]],
    groups: Sequence[Sequence[str]], seed: int, target_bits: float | None, target_bytes: int | None,
    scopes: tuple[Scope, ...] | None = None, reconstruct: int = 0, runs: Sequence[tuple[str, int]] = (),
) -> Goal | Compression:  # fmt: skip
    """A goal when a target is given, else the options as they are.

    Args:
        scopes: that a target may choose among; None means the codebook's own, or all where there is none.

    Raises:
        InputError: a target beside options that it decides itself.
    """
    if target_bits is None and target_bytes is None:
        named = tuple(tuple(group) for group in groups)
        return Compression(weights, codebook or Codebook(), tuple(keep), tuple(widths), named, seed, reconstruct, tuple(runs))
    target = Target(target_bits, target_bytes)
    decided = (("--width", widths), ("--group", groups), ("--run", runs), ("--weights int8", weights == "int8"))
    given = [name for name, value in decided if value]
    if given:
        raise _conflict(target, given[0])
    free = scopes or ((codebook.scope,) if codebook else ("network", "layer"))
    return Goal(target, codebook or Codebook(), free, tuple(keep), seed, reconstruct)


def _conflict(target: Target, option: str) -> InputError:
    name = "--target-bits" if target.bits_per_weight is not None else "--target-bytes"
    return InputError(
        f"{name} decides how every layer is stored; {option} would decide it too", found=f"{name} and {option}",
        wanted="one of the two", do=f"drop {option}, or fix layers with --keep",
    )  # fmt: skip


def refuse_codewords(target_bits: float | None, target_bytes: int | None, codewords: int | None) -> None:
    """A number of codewords may not stand beside a target.

    Raises:
        InputError: it does.
    """
    if codewords is not None and (target_bits is not None or target_bytes is not None):
        raise _conflict(Target(target_bits, target_bytes), "--codewords")
