"""All ways to run a convolution on a core: what the planner chooses from."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from kqgen import form_depthwise, form_dilated, form_dsp, form_mve, form_packed, form_portable, form_reuse, form_winograd
from kqgen.board import Core
from kqgen.conv_shape import Candidate, ConvShape
from kqgen.plan import Form

Engine = Callable[[ConvShape, str], tuple[Candidate, ...]]


def _ordinary(engine: Engine) -> Engine:
    """The engine, kept from layers whose windows it does not know."""
    return lambda shape, core: () if shape.depthwise or shape.dilation != (1, 1) else engine(shape, core)


ORDINARY: tuple[Engine, ...] = tuple(map(_ordinary, (
    form_dsp.candidates, form_winograd.candidates, form_portable.candidates, form_packed.candidates, form_reuse.candidates,
    form_mve.candidates,
)))  # fmt: skip
"""One function a family of forms of ordinary convolutions, in order of preference among equals."""

SPECIAL: tuple[Engine, ...] = (form_depthwise.candidates, form_dilated.candidates)
"""Those of other layers; each offers one function a core and kind of weights."""

ENGINES = (*ORDINARY, *SPECIAL)
"""All of them."""


def engine_core(core: Core) -> str:
    """The name by which forms know a core: one without DSP instructions runs the M3's, the host those of the M4."""
    if core.is_host:
        return "m4"
    return core.name if core.has_dsp or not core.has_long_multiply else "m3"


def leanest(shapes: Sequence[ConvShape], core: Core) -> tuple[Engine, ...]:
    """The one engine that runs all ordinary layers among these, the fastest of several, and those of other layers; all engines where no
    single one does.

    An engine's functions share most of their code, so a network that takes one alone is small.
    """
    name = engine_core(core)
    ordinary = [shape for shape in shapes if not any(engine(shape, name) for engine in SPECIAL)]
    able = [engine for engine in ORDINARY if all(engine(shape, name) for shape in ordinary)]
    fastest = min(able, key=lambda engine: sum(min(each.cycles for each in engine(shape, name)) for shape in ordinary), default=None)
    return ENGINES if fastest is None else (fastest, *SPECIAL)


def candidates(
    shape: ConvShape, core: Core, form: Form | None = None, engines: Sequence[Engine] | None = None
) -> tuple[Candidate, ...]:
    """Every way to run the layer on `core` that is worth its scratch: by scratch, rising, each faster than the one before.

    Args:
        form: only ways of this form; there may be none.
        engines: only these; None: all.
    """
    name = engine_core(core)
    every = (each for engine in (ENGINES if engines is None else engines) for each in engine(shape, name) if form in (None, each.form))
    kept: list[Candidate] = []
    for each in sorted(every, key=lambda each: (each.scratch_bytes, each.cycles)):
        if not kept or each.cycles < kept[-1].cycles:
            kept.append(each)
    return tuple(kept)
