"""Which layer gets how many bits: codebook size, index widths, scope and uniform bits for a target size.

Every layer has a few options: indices that name the first 2**j codewords of its codebook or all of them, or uniform weights of 8, 6 or
4 bits. Each option costs bytes (kqgen.planned) and an error (kqgen.kq_curves) that counts by the layer's importance
(kqgen.sensitivity). For every scope, every width of the widest index and many prices of a byte, each layer takes its cheapest option;
each such mix then gets as many codewords as the target has room for, and the mix of least error wins. More bytes never give more
expected error, because the mixes tried do not depend on the target.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from kqgen.allocate_mixes import (
    Mix,
    Partition,
    codewords_that_fit,
    compression_of,
    mix_bytes,
    mix_errors,
    mixes_of,
    partitions_of,
    total_error,
    varied,
)
from kqgen.calibrate import Ranges
from kqgen.errors import InputError, InternalError
from kqgen.goal import Goal, Target
from kqgen.ir import Graph
from kqgen.kq_layers import convolutions
from kqgen.options import Codebook, Compression, Scope
from kqgen.planned import Planned, PlannedLayer, planned_bytes, spelled
from kqgen.samples import Samples
from kqgen.sensitivity import measure, plain

Progress = Callable[[str, float], None]

__all__ = ["AllocatedLayer", "Allocation", "Goal", "Progress", "Target", "allocate", "met", "settle"]


@dataclass(frozen=True, slots=True)
class AllocatedLayer:
    """What one layer was given, and why it matters.

    Attributes:
        name: module path, or node name where there is none.
        weights: how many it has.
        choice: in words: `index 9+sign`, `6 bits`.
        stored_bytes: its codebook not counted.
        bits_per_weight: of `stored_bytes`.
        error: expected, a share of the layer's own output power.
        importance: what that share costs at the network's outputs.
    """

    name: str
    weights: int
    choice: str
    stored_bytes: int
    bits_per_weight: float
    error: float
    importance: float


@dataclass(frozen=True, slots=True)
class Allocation:
    """A compression that meets a target.

    Attributes:
        compression: to be given to `quantise`.
        bits_per_weight, table_bytes: as planned; see `Target`.
        requant_bytes: beside `table_bytes`, the same for every choice.
        error: expected at the network's outputs, the sum over layers of error times importance.
        layers: in execution order.
        reasons: sentences for the user.
    """

    compression: Compression
    bits_per_weight: float
    table_bytes: int
    requant_bytes: int
    error: float
    layers: tuple[AllocatedLayer, ...]
    reasons: tuple[str, ...]


def met(target: Target, planned: Planned) -> bool:
    """Whether a network that stores so much keeps within the target."""
    if target.bits_per_weight is not None:
        return 8 * planned.conv_bytes <= target.bits_per_weight * planned.conv_weights + 1e-9
    return planned.table_bytes <= (target.table_bytes or 0)


def _budget_bytes(target: Target, planned: Planned) -> float:
    """The bytes that all tables may take, fully connected layers counted as they are in `planned`."""
    if target.bits_per_weight is None:
        return float(target.table_bytes or 0)
    return target.bits_per_weight * planned.conv_weights / 8 + planned.table_bytes - planned.conv_bytes + 1e-9


def _silent(label: str, fraction: float) -> None:
    del label, fraction


def allocate(
    graph: Graph, target: Target, samples: Samples | None, ranges: Ranges | None, *, codebook: Codebook | None = None,
    scopes: tuple[Scope, ...] | None = None, keep: Sequence[tuple[str, int]] = (), seed: int = 0, progress: Progress | None = None,
) -> Allocation:  # fmt: skip
    """The compression of least expected error that stores no more than `target`.

    Args:
        graph: simplified; without samples only its Conv2d nodes, their weights and the names of its inputs matter.
        samples: calibration images; without them every layer and every weight counts the same.
        ranges: of every tensor, for the codes that layers see; None leaves them in float.
        codebook: fixes scope, sign and additive; its codewords are chosen. None chooses the scope too, of signed codewords.
        scopes: to choose among, whatever the codebook says.
        keep: (layer, bits) pairs that stay as they are.
        seed: of the clustering; equal arguments give equal allocations.
        progress: told what is being done and the fraction done, 0..1.

    Raises:
        InputError: no allocation is that small or that large, with the nearest one; or `keep` names no layer.
    """
    tell = progress or _silent
    form = codebook or Codebook()
    nodes = convolutions(graph)
    kept = {node.name: bits for wanted, bits in keep for node in nodes if wanted in (node.path, node.name)}
    widest = planned_bytes(graph, _all_at_8_bits(graph, form, keep, seed))
    if target.bits_per_weight is not None and widest.bits_per_weight < target.bits_per_weight:
        raise _too_large(target, widest)
    known = {node.name: plain(node) for node in nodes}
    if samples is not None:
        known = measure(graph, samples, ranges, seed, lambda label, fraction: tell(label, 0.4 * fraction))
    partitions = partitions_of(
        nodes, known, kept, form, scopes=scopes or ((codebook.scope,) if codebook else ("network", "layer")),
        fixed_dense=target.bits_per_weight is not None, seed=seed, progress=lambda label, fraction: tell(label, 0.4 + 0.5 * fraction),
    )  # fmt: skip
    tell("choosing widths", 0.9)
    found = _best(graph, partitions, _budget_bytes(target, widest), tuple(keep), seed)
    if not met(target, found.planned):
        raise _too_small(target, found)
    tell("widths chosen", 1.0)
    return _allocation(found)


def settle(graph: Graph, goal: Goal, samples: Samples | None, ranges: Ranges | None, progress: Progress | None = None) -> Allocation:
    """The allocation for a goal; see `allocate`."""
    return allocate(
        graph, goal.target, samples, ranges, codebook=goal.codebook, scopes=goal.scopes, keep=goal.keep, seed=goal.seed, progress=progress
    )


@dataclass(frozen=True, slots=True)
class _Found:
    """The best mix, and what it stores."""

    partition: Partition
    mix: Mix
    compression: Compression
    planned: Planned


def _best(graph: Graph, partitions: Sequence[Partition], budget: float, keep: tuple[tuple[str, int], ...], seed: int) -> _Found:
    """The mix of least error within the budget; the smallest of all when none is."""
    allowed = frozenset(node.name for node in convolutions(graph))
    while True:
        partition, mix, codewords = _least(partitions, allowed, budget)
        compression = compression_of(partition, mix, codewords, keep, seed)
        planned = planned_bytes(graph, compression)
        # Some layers are too small to be indexed whatever is asked for: `choose` has the last word.
        refused = mix.indexed(partition) & {layer.name for layer in planned.layers if not layer.codebook}
        if not refused:
            return _Found(partition, mix, compression, planned)
        allowed -= refused


def _least(partitions: Sequence[Partition], allowed: frozenset[str], budget: float) -> tuple[Partition, Mix, int]:
    best: tuple[tuple[float, int], tuple[Partition, Mix, int]] | None = None
    smallest: tuple[int, tuple[Partition, Mix, int]] | None = None
    for partition in partitions:
        for mix in varied(partition, varied(partition, mixes_of(partition, allowed), allowed), allowed):
            if best is not None and total_error(partition, mix_errors(partition, mix, mix.codewords[1])) > best[0][0]:
                continue
            codewords = codewords_that_fit(partition, mix, budget)
            if codewords is None:
                size = mix_bytes(partition, mix, mix.codewords[0])
                if smallest is None or size < smallest[0]:
                    smallest = (size, (partition, mix, mix.codewords[0]))
                continue
            rank = (total_error(partition, mix_errors(partition, mix, codewords)), mix_bytes(partition, mix, codewords))
            if best is None or rank < best[0]:
                best = (rank, (partition, mix, codewords))
    chosen = best or smallest
    if chosen is None:
        raise InternalError("no mix of widths was made")
    return chosen[1]


def _all_at_8_bits(graph: Graph, form: Codebook, keep: Sequence[tuple[str, int]], seed: int) -> Compression:
    return Compression("int8", form, tuple(keep), seed=seed)


def _allocation(found: _Found) -> Allocation:
    partition, planned, codewords = found.partition, found.planned, found.compression.codebook.codewords
    errors = mix_errors(partition, found.mix, codewords)
    layers = tuple(
        AllocatedLayer(
            layer.label,
            layer.weights,
            _choice_text(stored, found.compression.codebook, layer.run),
            stored.stored_bytes,
            8 * stored.stored_bytes / layer.weights,
            error,
            layer.importance,
        )
        for layer, stored, error in zip(partition.layers, planned.layers, errors, strict=True)
    )
    error = total_error(partition, errors)
    return Allocation(
        found.compression, planned.bits_per_weight, planned.table_bytes, planned.requant_bytes, error, layers, _reasons(found, layers)
    )


def _choice_text(layer: PlannedLayer, codebook: Codebook, run: int) -> str:
    if not layer.codebook:
        return f"{layer.bits} bits"
    stages = "2x" if codebook.additive else ""
    free = (layer.bits - int(codebook.sign)) // (2 if codebook.additive else 1)
    return f"index {stages}{free}{'+sign' if codebook.sign else ''}{f', runs of {run}' if run > 1 else ''}"


def _reasons(found: _Found, layers: Sequence[AllocatedLayer]) -> tuple[str, ...]:
    """Why it came out so, a sentence each."""
    planned, out = found.planned, []
    books = ", ".join(f"{book.name} of {book.codewords} codewords in {book.stored_bytes} bytes" for book in planned.codebooks)
    out.append(
        f"{planned.bits_per_weight:.3f} bits a weight of the convolutions, {planned.table_bytes} bytes of tables: {books or 'no codebook'}."
    )
    if found.partition.groups and found.compression.groups:
        out.append("Layers with the same number of output channels share a codebook, which costs less error than one for all or one each.")
    indexed = [layer for layer, stored in zip(layers, planned.layers, strict=True) if stored.codebook]
    if len({layer.choice for layer in indexed}) > 1:
        most, least = max(indexed, key=lambda layer: layer.bits_per_weight), min(indexed, key=lambda layer: layer.bits_per_weight)
        out.append(
            f"{most.name} gets {most.choice}, {least.name} {least.choice}: losing 1 % of its output power costs the network "
            f"{most.importance:.2f} % of its own there, {least.importance:.2f} % here, for {most.weights} and {least.weights} weights."
        )
    narrow = [f"{layer.name} in {layer.choice}" for layer, stored in zip(layers, planned.layers, strict=True) if not stored.codebook]
    if narrow:
        out.append(f"Uniform weights: {', '.join(narrow)}.")
    return tuple(out)


def _too_small(target: Target, found: _Found) -> InputError:
    planned = found.planned
    nearest = f"{planned.bits_per_weight:.4g} bits a weight" if target.bits_per_weight is not None else f"{planned.table_bytes} bytes"
    return InputError(
        f"no allocation reaches {target}",
        found=f"{nearest} at the least, with {spelled(found.compression)}",
        wanted=f"a target of {nearest} or more",
        do="raise the target, or let go of a --keep or of a --codebook",
    )


def _too_large(target: Target, widest: Planned) -> InputError:
    return InputError(
        f"no allocation takes as much as {target}",
        found=f"{widest.bits_per_weight:.4g} bits a weight at the most, every weight as wide as it may be",
        wanted=f"a target of at most {widest.bits_per_weight:.4g} bits",
        do="compile with --weights int8 for 8 bits a weight",
    )
