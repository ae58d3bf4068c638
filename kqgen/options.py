"""What a user may choose about compression: frozen, checked on construction."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from kqgen.errors import InputError

Scope = Literal["layer", "network"]
Weights = Literal["kq", "int8"]

MAX_INDEX_BITS = 12
UNIFORM_BITS = (8, 6, 4)
RUNS = (2, 4, 8, 16)
"""Lengths of the runs of input channels that serve 1x1 and fully connected layers as kernels."""


def index_bits(codewords: int, sign: bool, additive: bool = False) -> int:
    """Bits of one stored index: ceil(log2 codewords), twice where two codewords are summed, one for the sign; at least 1 (SPEC 4.2)."""
    return max(1, (codewords - 1).bit_length() * (2 if additive else 1) + int(sign))


@dataclass(frozen=True, slots=True)
class Codebook:
    """How kernels are indexed.

    Attributes:
        scope: `layer` gives every layer its own codebook (the paper's way), `network` one for all layers of a kernel shape.
        codewords: stored codewords K; the index takes ceil(log2 K) bits, plus one when `sign` is set, 12 at most.
        sign: each codeword c also serves as -c, chosen by the index's top bit.
        additive: a kernel is the sum of two codewords, the second out of K more; the index takes ceil(log2 K) bits for each.

    Raises:
        InputError: K below 1, or an index wider than 12 bits.
    """

    scope: Scope = "network"
    codewords: int = 256
    sign: bool = True
    additive: bool = False

    def __post_init__(self) -> None:
        if self.scope not in ("layer", "network"):
            raise InputError(
                f"unknown codebook scope {self.scope!r}", wanted="layer or network", do="choose one with --codebook"
            )
        if self.codewords < 1 or self.index_bits > MAX_INDEX_BITS:
            limit = 2 ** ((MAX_INDEX_BITS - int(self.sign)) // (2 if self.additive else 1))
            raise InputError(
                f"a codebook of {self.codewords} codewords cannot be indexed",
                found=f"{self.codewords} codewords {'with' if self.sign else 'without'} a sign bit",
                wanted=f"1 to {limit} codewords (an index has at most {MAX_INDEX_BITS} bits, its sign included)",
                do="choose another --codewords",
            )

    @property
    def stages(self) -> int:
        """How many codewords add up to a kernel."""
        return 2 if self.additive else 1

    @property
    def index_bits(self) -> int:
        """Bits of one stored index."""
        return index_bits(self.codewords, self.sign, self.additive)


@dataclass(frozen=True, slots=True)
class Compression:
    """Everything that decides the stored weights.

    Attributes:
        weights: `kq` indexes convolution kernels, `int8` stores every weight in 8 bits (the control).
        codebook: the codebook's form, used when weights is `kq`.
        keep: (layer, bits) pairs: this layer is stored uniformly in 8, 6 or 4 bits whatever else holds. A layer is named by
            its PyTorch module path or by its node name.
        widths: (layer, bits) pairs: this layer's indices have so many bits, the sign counted. In a shared codebook it then uses the
            first codewords alone; with a codebook of its own it stores so many.
        groups: layers that share one codebook, whatever the scope says; a layer stands in one group at most.
        runs: (layer, length) pairs: the kernels of this layer, 1x1 or fully connected, are runs of so many input channels; 0 leaves its
            weights uniform. What the index has for a weight decides the length for layers not named.
        seed: of the clustering; the same seed gives the same bytes.
        reconstruct: steps of gradient descent by which all layers are refined together on the calibration images; 0: none.

    Raises:
        InputError: a width that is not 8, 6 or 4, or an unknown kind of weights.
    """

    weights: Weights = "kq"
    codebook: Codebook = field(default_factory=Codebook)
    keep: tuple[tuple[str, int], ...] = ()
    widths: tuple[tuple[str, int], ...] = ()
    groups: tuple[tuple[str, ...], ...] = ()
    seed: int = 0
    reconstruct: int = 0
    runs: tuple[tuple[str, int], ...] = ()

    def __post_init__(self) -> None:
        if self.weights not in ("kq", "int8"):
            raise InputError(f"unknown kind of weights {self.weights!r}", wanted="kq or int8", do="choose one with --weights")
        for layer, bits in self.keep:
            if bits not in UNIFORM_BITS:
                raise InputError(
                    f"layer {layer} cannot be kept at {bits} bits",
                    wanted="8, 6 or 4 bits",
                    do=f"write --keep {layer}=8",
                )
        if self.reconstruct < 0:
            raise InputError(
                f"cannot reconstruct for {self.reconstruct} steps", wanted="0 steps or more", do="write --reconstruct 0 for none"
            )
        for layer, length in self.runs:
            if length not in (0, *RUNS):
                raise InputError(
                    f"layer {layer} cannot have runs of {length} input channels",
                    wanted="2, 4, 8 or 16 input channels, or 0 to leave its weights uniform",
                    do=f"write --run {layer}=4",
                )
        for layer, bits in self.widths:
            if not 1 <= bits <= self.codebook.index_bits:
                raise InputError(
                    f"layer {layer} cannot have indices of {bits} bits",
                    wanted=f"1 to {self.codebook.index_bits} bits, what the codebook's indices have",
                    do=f"write --width {layer}={self.codebook.index_bits}, or raise --codewords",
                )
