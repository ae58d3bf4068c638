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
    """What a user may choose about how the network is laid out.

    Attributes:
        optimise: see `Optimise`.
        forms: layers whose form is given instead of chosen: (node name or PyTorch module path, form).
        keep_dead: leave channels and layers in place that no output depends on.
    """

    optimise: Optimise = "balanced"
    forms: tuple[tuple[str, Form], ...] = ()
    keep_dead: bool = False


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
        size_bytes: its size; of a tensor inside a stream, that of the buffer which holds a few of its rows at a time.
        place: where it lies.
        first, last: numbers of the step that makes it (-1: the caller) and of the last step that reads it (len(steps): the caller).
    """

    name: str
    size_bytes: int
    place: Place
    first: int
    last: int


@dataclass(frozen=True, slots=True)
class Job:
    """A piece of a stream: some rows of a step, or rows moved to the front of the buffer they lie in (SPEC 6.8).

    Attributes:
        step: number of the step; of a move, the step that makes the rows.
        moves: whether it moves rows.
        row, rows: the first output row, or the first row moved, and how many.
        input, output: byte offsets of the first row it reads and of the first it writes: in the arena, or in the caller's buffer
            where the tensor lies in one.
        pad_top, h_in: rows of padding above those it reads, and how many it reads; 0 for a move.
    """

    step: int
    moves: bool
    row: int
    rows: int
    input: int
    output: int
    pad_top: int
    h_in: int


@dataclass(frozen=True, slots=True)
class Stream:
    """Consecutive steps that run together, some rows of each in turn.

    Attributes:
        first, last: numbers of its steps.
        jobs: in the order they run.
    """

    first: int
    last: int
    jobs: tuple[Job, ...]

    def rows(self, step: int) -> int:
        """The most rows of `step` made at a time."""
        return max(job.rows for job in self.jobs if job.step == step and not job.moves)


@dataclass(frozen=True, slots=True, eq=False)
class Plan:
    """An integer graph with its steps and its memory.

    Attributes:
        graph: what is computed.
        steps: one a node, in order.
        tensors: every input and node output.
        scratch_offsets: arena offset of each step's scratch (0 where it has none).
        arena_bytes: size of the one buffer the caller gives, a multiple of ARENA_ALIGN_BYTES.
        streams: steps that run some rows at a time, in order; all others run one after the other.
    """

    graph: IntGraph
    steps: tuple[Step, ...]
    tensors: tuple[PlacedTensor, ...]
    scratch_offsets: tuple[int, ...]
    arena_bytes: int
    streams: tuple[Stream, ...] = ()

    @property
    def calls(self) -> tuple[int, ...]:
        """The number of the step that each call of a layer's function belongs to, in the order of the calls; moves left out."""
        steps: list[int] = []
        for number in range(len(self.steps)):
            stream = self.stream(number)
            if stream is None:
                steps.append(number)
            elif number == stream.first:
                steps += [job.step for job in stream.jobs if not job.moves]
        return tuple(steps)

    def stream(self, step: int) -> Stream | None:
        """The stream that step number `step` is part of, None where it runs by itself."""
        return next((stream for stream in self.streams if stream.first <= step <= stream.last), None)

    def form_text(self, step: int) -> str:
        """In which form a step runs, as people read it: `winograd2`, or `winograd2, rows of 4` in a stream; empty for a plain step."""
        stream, form = self.stream(step), self.steps[step].form
        parts = [] if form == "plain" else [str(form)]
        return ", ".join(parts if stream is None else [*parts, f"rows of {stream.rows(step)}"])

    def place(self, tensor: str) -> Place:
        """Where `tensor` lies; KeyError if it is unknown."""
        for placed in self.tensors:
            if placed.name == tensor:
                return placed.place
        raise KeyError(tensor)
