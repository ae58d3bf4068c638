"""Golden vectors: the inputs a real board runs by itself, and what must come out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from kqgen.errors import InternalError
from kqgen.plan import Plan
from kqgen.views_text import array_rows, flow, thousands

SELFTEST_FUNCTION = "kq_crc32"
"""The runtime's function that a test build with taps calls."""

@dataclass(frozen=True, slots=True)
class GoldenVector:
    """One input and its results.

    Attributes:
        inputs, outputs: bytes of each input and output tensor, in the graph's order.
        step_crcs: CRC-32 of the bytes of each step's output, in execution order (SPEC 7.4).
    """

    inputs: tuple[bytes, ...]
    outputs: tuple[bytes, ...]
    step_crcs: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Golden:
    """The vectors of the self-test, at least one."""

    vectors: tuple[GoldenVector, ...]


@dataclass(frozen=True, slots=True)
class GoldenRowsView:
    """One tensor of one vector: rows of initialisers."""

    rows: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class GoldenBufferView:
    """One input or output over all vectors.

    Attributes:
        ident: C name of the golden array.
        local: C name of the array that the network writes, for outputs.
        size_bytes: of one vector.
        vectors: initialisers, a vector each.
    """

    ident: str
    local: str
    size_bytes: int
    vectors: tuple[GoldenRowsView, ...]


@dataclass(frozen=True, slots=True)
class SelftestView:
    """What the self-test holds.

    Attributes:
        count: vectors; `count_text`: the same in words.
        steps: steps of the network.
        buffers: the golden tensors, inputs first; `outputs`: those that are outputs.
        crcs: per vector, rows of the steps' CRCs.
        call: lines of the run function's call for vector n.
        stack_text: what the header says of the stack it takes.
    """

    count: int
    count_text: str
    steps: int
    buffers: tuple[GoldenBufferView, ...]
    outputs: tuple[GoldenBufferView, ...]
    crcs: tuple[GoldenRowsView, ...]
    call: tuple[str, ...]
    stack_text: str


def selftest_view(plan: Plan, golden: Golden) -> SelftestView:
    """The self-test's view.

    Raises: InternalError when there is no vector, or one has other tensors or steps than the plan.
    """
    graph, vectors = plan.graph, golden.vectors
    input_sizes = tuple(tensor.size_bytes for tensor in graph.inputs)
    output_sizes = tuple(graph.tensor(name).size_bytes for name in graph.outputs)
    if not vectors:
        raise InternalError("a self-test needs at least one golden vector")
    for number, vector in enumerate(vectors):
        found = (tuple(map(len, vector.inputs)), tuple(map(len, vector.outputs)), len(vector.step_crcs))
        if found != (input_sizes, output_sizes, len(plan.steps)):
            raise InternalError(
                f"golden vector {number} is not of this network",
                found=f"inputs {found[0]}, outputs {found[1]} bytes, {found[2]} steps",
                wanted=f"inputs {input_sizes}, outputs {output_sizes} bytes, {len(plan.steps)} steps",
            )
    inputs = _buffers("input", input_sizes, [vector.inputs for vector in vectors])
    outputs = _buffers("output", output_sizes, [vector.outputs for vector in vectors])
    arguments = ["arena", *(f"{buffer.ident}[n]" for buffer in inputs), *(buffer.local for buffer in outputs)]
    return SelftestView(
        count=len(vectors),
        count_text="the golden input" if len(vectors) == 1 else f"the {len(vectors)} golden inputs",
        steps=len(plan.steps),
        buffers=inputs + outputs,
        outputs=outputs,
        crcs=tuple(GoldenRowsView(array_rows([f"0x{crc:08x}u" for crc in vector.step_crcs], 8)) for vector in vectors),
        call=flow(f"status = {graph.name}_run(", arguments, ", ", ");", indent=8),
        stack_text=f"Its outputs lie on the stack: {thousands(sum(output_sizes))} bytes.",
    )


def _buffers(kind: str, sizes: Sequence[int], vectors: Sequence[tuple[bytes, ...]]) -> tuple[GoldenBufferView, ...]:
    """The golden arrays of all inputs or all outputs; `vectors` holds one tuple of tensors a vector."""
    numbers = [""] if len(sizes) == 1 else [f"_{position}" for position in range(len(sizes))]
    return tuple(
        GoldenBufferView(f"golden_{kind}{numbers[position]}", f"{kind}{numbers[position]}", size,
                         tuple(_int8_rows(vector[position]) for vector in vectors))
        for position, size in enumerate(sizes)
    )  # fmt: skip


def _int8_rows(data: bytes) -> GoldenRowsView:
    return GoldenRowsView(array_rows([str(value) for value in np.frombuffer(data, np.int8).tolist()]))
