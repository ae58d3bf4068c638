"""Whether a network fits a board, and if not, what takes the room and which boards have it."""

from __future__ import annotations

from dataclasses import dataclass

from kqgen.board import Board, all_boards
from kqgen.compare import layer_labels
from kqgen.errors import CapacityError
from kqgen.plan import Plan
from kqgen.report import Report, fullest_step, grouped, live_bytes, live_tensors

LARGEST_LAYERS = 5
"""Layers that the table of flash names one by one."""

SHOWN_BOARDS = 3
"""Boards with room that the message names, the smallest first."""


@dataclass(frozen=True, slots=True)
class Need:
    """What a network takes of one memory of a board.

    Attributes:
        memory: `flash` or `RAM`.
        needed_bytes: as far as known: before a build without code and stack.
        size_bytes, reserved_bytes: of the board's memory, and of that kept for the user's own code.
    """

    memory: str
    needed_bytes: int
    size_bytes: int
    reserved_bytes: int

    @property
    def usable_bytes(self) -> int:
        """What a network may take."""
        return self.size_bytes - self.reserved_bytes

    @property
    def fits(self) -> bool:
        """Whether there is room."""
        return self.needed_bytes <= self.usable_bytes


def needs(report: Report, board: Board) -> tuple[Need, Need]:
    """Flash and RAM that a network takes of a board with memories (not the host)."""
    flash, ram = report.flash_bytes, report.ram_bytes
    return (
        Need("flash", flash.total or flash.tables, board.flash.size_bytes, board.reserve_flash_bytes),
        Need("RAM", ram.total or ram.arena + ram.output, board.ram.size_bytes, board.reserve_ram_bytes),
    )


def check_capacity(plan: Plan, board: Board, report: Report) -> None:
    """Refuses a network that the board cannot hold.

    Raises:
        CapacityError: more flash or RAM is needed than the board has beside what it keeps for the user's code; with what takes
            the room, and the boards that have it.
    """
    if board.core.is_host:
        return
    short = tuple(need for need in needs(report, board) if not need.fits)
    if short:
        raise refusal(plan, board, report, short)


def refusal(plan: Plan, board: Board, report: Report, short: tuple[Need, ...], linker: str = "") -> CapacityError:
    """The error that tells what does not fit.

    Args:
        short: the memories that are too small; where only the linker found out, those that may be.
        linker: its message then.
    """
    parts = [
        f"{need.memory} {grouped(need.needed_bytes)} bytes needed, {grouped(need.usable_bytes)} usable of {grouped(need.size_bytes)}"
        for need in short
    ]
    if linker:
        parts = ["the linker finds no room for tables, code and stack"]
    tables = [room_table(plan, report, need.memory) for need in short]
    kept = " and ".join(f"{grouped(need.reserved_bytes)} bytes of {need.memory}" for need in needs(report, board))
    roomy = [each for each in all_boards() if _has_room(each, board, report, linker=bool(linker))]
    fitting = [each.name for each in sorted(roomy, key=lambda each: (each.ram.size_bytes, each.name))][:SHOWN_BOARDS]
    return CapacityError(
        f"{report.model} does not fit {board.name}: {'; '.join(parts)}",
        found="\n".join((*tables, *([linker] if linker else []))),
        wanted=f"room beside the {kept} that {board.where} keeps for your code",
        do=(f"--board {' or '.join(fitting)}, or " if fitting else "") + _remedy(plan, short, report),
    )


def _has_room(other: Board, board: Board, report: Report, *, linker: bool) -> bool:
    """Whether `other` holds the network as far as is known; after the linker's refusal it must be larger than `board`."""
    if other.core.is_host or not all(need.fits for need in needs(report, other)):
        return False
    return not linker or (other.flash.size_bytes > board.flash.size_bytes and other.ram.size_bytes >= board.ram.size_bytes)


def _remedy(plan: Plan, short: tuple[Need, ...], report: Report) -> str:
    if any(need.memory == "RAM" for need in short):
        return ("" if plan.streams else "--optimise ram, ") + "a smaller input, or fewer channels at the fullest step"
    return "fewer --codewords, or a smaller network" if report.weights == "kq" else "--weights kq, or a smaller network"


def room_table(plan: Plan, report: Report, memory: str) -> str:
    """What takes the room in `flash` or `RAM`: a line each, with bytes, and the sum."""
    rows = _ram_rows(plan, report) if memory == "RAM" else _flash_rows(report)
    label_width = max(len(label) for label, _ in rows)
    return "\n".join(f"{label:<{label_width}}  {grouped(size):>10}" for label, size in rows)


def _ram_rows(plan: Plan, report: Report) -> list[tuple[str, int]]:
    number = fullest_step(plan)
    step, ram = plan.steps[number], report.ram_bytes
    labels = dict(zip((node.name for node in plan.graph.nodes), layer_labels(plan.graph), strict=True))
    rows = [(f"RAM: arena, fullest at {report.fullest}", ram.arena)]
    for placed in live_tensors(plan, number):
        tensor = plan.graph.tensor(placed.name)
        part = f", {placed.size_bytes // (tensor.w * tensor.c)} rows of it" if placed.size_bytes < tensor.size_bytes else ""
        rows.append((f"       {labels.get(placed.name, placed.name)} {tensor.h}x{tensor.w}x{tensor.c}{part}", placed.size_bytes))
    if step.scratch_bytes:
        rows.append((f"       scratch of {report.fullest} ({plan.form_text(number)})", step.scratch_bytes))
    twice = sum(size for _, size in rows[1:]) - live_bytes(plan, number)
    if twice:
        rows.append(("       of these at one place in turn", -twice))
    rows.append(("     output", ram.output))
    if ram.stack is not None:
        rows.append(("     stack", ram.stack))
    return [*rows, ("     in all", ram.total or ram.arena + ram.output)]


def _flash_rows(report: Report) -> list[tuple[str, int]]:
    flash = report.flash_bytes
    largest = sorted(report.layers, key=lambda layer: -layer.flash_bytes)
    rows = [("flash: tables", flash.tables)]
    rows += [(f"         {layer.name} {layer.title}", layer.flash_bytes) for layer in largest[:LARGEST_LAYERS]]
    rest = sum(layer.flash_bytes for layer in largest[LARGEST_LAYERS:])
    if rest:
        rows.append((f"         the other {len(largest) - LARGEST_LAYERS} layers", rest))
    rows += [(f"         {codebook.name}", codebook.flash_bytes) for codebook in report.codebooks]
    if flash.code is not None:
        rows.append(("       code", flash.code))
    return [*rows, ("       in all", flash.total or flash.tables)]
