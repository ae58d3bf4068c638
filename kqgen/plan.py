"""The plan: in which form each layer runs and where every tensor lies. Types only; `schedule` and `memory` fill them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from kqgen.intgraph import IntGraph

Form = Literal["direct", "unpack", "decode", "winograd2", "winograd4", "reuse", "plain"]
"""direct: 8-bit weights. unpack: 6- or 4-bit weights expanded for a tile of output channels. decode, winograd2, winograd4, reuse: the
forms of lookup (SPEC 6). plain: the layer has no weights."""

FORMS: tuple[Form, ...] = ("direct", "unpack", "decode", "winograd2", "winograd4", "reuse")
"""Those a layer may be asked to run in."""

Optimise = Literal["balanced", "speed", "size", "ram"]
"""balanced: fast within an arena little larger than the maps. speed: as fast as the board's RAM allows. size: as little code as can be.
ram: as small an arena as can be."""

OPTIMISE: tuple[Optimise, ...] = ("balanced", "speed", "size", "ram")

ARENA_ALIGN_BYTES = 4


@dataclass(frozen=True, slots=True)
class Planning:
    """What a user may choose about the plan.

    Attributes:
        optimise: see `Optimise`.
        forms: layers whose form is given instead of chosen: (node name or PyTorch module path, form).
    """

    optimise: Optimise = "balanced"
    forms: tuple[tuple[str, Form], ...] = ()


@dataclass(frozen=True, slots=True)
class Step:
    """One layer as it will run.

    Attributes:
        node: name of the integer node.
        form: see `Form`.
        function: the runtime's function.
        tile: output channels expanded at a time (unpack, decode, winograd), output pixels at a time (reuse), else 0.
        strip: tiles of pixels transformed at a time (winograd), else 0.
        scratch_bytes: working memory of this step, inside the arena.
        cycles: predicted modelled cycles on the board's core; 0 for layers without weights.
        form_reason: why this form, for reports.
    """

    node: str
    form: Form
    function: str
    tile: int
    strip: int
    scratch_bytes: int
    cycles: float
    form_reason: str


@dataclass(frozen=True, slots=True)
class Place:
    """Where a tensor lies: at `offset` bytes in the arena, or in the caller's buffer number `index`.

    An input has an offset too: the caller may put it there, in the arena, or anywhere outside.
    """

    kind: Literal["arena", "input", "output"]
    index: int = 0
    offset: int = 0


@dataclass(frozen=True, slots=True)
class PlacedTensor:
    """A tensor, its place, and the steps between which it must be kept.

    Attributes:
        name: the tensor.
        size_bytes: its size.
        place: where it lies.
        first, last: numbers of the step that makes it (-1: the caller) and of the last step that reads it (len(steps): the caller).
    """

    name: str
    size_bytes: int
    place: Place
    first: int
    last: int


@dataclass(frozen=True, slots=True, eq=False)
class Plan:
    """An integer graph with its steps and its memory.

    Attributes:
        graph: what is computed.
        steps: one a node, in order.
        tensors: every input and node output.
        scratch_offsets: arena offset of each step's scratch (0 where it has none).
        arena_bytes: size of the one buffer the caller gives, a multiple of ARENA_ALIGN_BYTES.
    """

    graph: IntGraph
    steps: tuple[Step, ...]
    tensors: tuple[PlacedTensor, ...]
    scratch_offsets: tuple[int, ...]
    arena_bytes: int

    def place(self, tensor: str) -> Place:
        """Where `tensor` lies; KeyError if it is unknown."""
        for placed in self.tensors:
            if placed.name == tensor:
                return placed.place
        raise KeyError(tensor)
