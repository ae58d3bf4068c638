"""Speed, counted and modelled: one run of the network on an emulated core (bench.json)."""

from __future__ import annotations

from dataclasses import dataclass, field

from kqgen import peer
from kqgen.blockcount import step_profiles
from kqgen.compare import layer_labels
from kqgen.cycles import CycleModel, wait_state_cycles
from kqgen.emulate import run_unicorn
from kqgen.errors import InternalError
from kqgen.image import Image
from kqgen.intgraph import IntConv2d
from kqgen.plan import Plan
from kqgen.qemu import run_qemu
from kqgen.report import IN_TABLES
from kqgen.thumb import Program


@dataclass(frozen=True, slots=True)
class LayerBench:
    """One layer.

    Attributes:
        name: as reports call it.
        form: how it runs; empty for a layer without weights.
        macs: multiply-accumulates.
        instructions: exact.
        cycles_modelled: without wait states.
        cycles_expected: what the plan took it for; None for a layer without weights.
        scratch_bytes: its working memory in the arena.
        cmsis_nn_cycles: modelled cycles of the same int8 layer by that library, None where they were not measured.
    """

    name: str
    form: str
    macs: int
    instructions: int
    cycles_modelled: int
    cycles_expected: int | None
    scratch_bytes: int
    cmsis_nn_cycles: int | None


@dataclass(frozen=True, slots=True)
class BenchReport:
    """Instruction counts are exact and repeat everywhere; cycles are a model (docs/DESIGN.md says how far to trust it).

    Attributes:
        core: short name.
        toolchain: compiler and version.
        instructions: of one run.
        cycles_modelled: with zero wait states.
        cycles_with_wait_states: with the board's flash wait states, no cache.
        stack_bytes: high-water mark of the run.
        layers: in execution order.
        core_title: the core as people write it.
        clock_hz: the board's clock, None for a core without a board.
    """

    core: str
    toolchain: str
    instructions: int
    cycles_modelled: int
    cycles_with_wait_states: int
    stack_bytes: int
    layers: tuple[LayerBench, ...]
    core_title: str = field(metadata=IN_TABLES)
    clock_hz: int | None = field(metadata=IN_TABLES)


def bench(plan: Plan, image: Image, inputs: bytes, clock_hz: int | None) -> BenchReport:
    """Runs one input on `image` and counts: under unicorn, or under QEMU where unicorn lacks the core.

    Args:
        plan: what the image was made from.
        image: a build without taps.
        inputs: the bytes of all input tensors.
        clock_hz: to tell milliseconds by, None where there is no board.

    Raises:
        ToolchainError: the emulator, or the host compiler that counting under QEMU takes, is missing, or the run faulted.
        InputError: no emulator has the image's board.
    """
    emulate = run_qemu if image.board.core.unicorn_model is None else run_unicorn
    run = emulate(image, [inputs], profile=True, flash_reads=True)
    if run.profile is None or run.stack_bytes is None:
        raise InternalError("the emulator counted nothing")
    profiles = step_profiles(run.profile, plan.calls)
    program = Program.of_elf(image.elf)
    model = CycleModel(image.board.core.name)
    layers: list[LayerBench] = []
    waiting = 0
    core = image.board.core.name
    for number, (node, label, profile) in enumerate(zip(plan.graph.nodes, layer_labels(plan.graph), profiles, strict=True)):
        step = plan.steps[number]
        cycles = model.cycles(program, profile.blocks)
        waiting += wait_state_cycles(profile, image.board.flash, image.board.flash_wait_states)
        conv = isinstance(node, IntConv2d)
        layers.append(
            LayerBench(
                name=label,
                form=plan.form_text(number),
                macs=node.macs if isinstance(node, IntConv2d) else 0,
                instructions=profile.instructions,
                cycles_modelled=cycles,
                cycles_expected=round(step.cycles) if conv else None,
                scratch_bytes=step.scratch_bytes,
                cmsis_nn_cycles=peer.cycles(node, core),
            )
        )
    total = sum(layer.cycles_modelled for layer in layers)
    return BenchReport(
        core=image.board.core.name,
        toolchain=image.toolchain.title,
        instructions=sum(layer.instructions for layer in layers),
        cycles_modelled=total,
        cycles_with_wait_states=total + waiting,
        stack_bytes=run.stack_bytes,
        layers=tuple(layers),
        core_title=image.board.core.title,
        clock_hz=clock_hz,
    )
