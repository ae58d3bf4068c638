"""What was removed from a network as dead, kept beside its integers: for reports, and to compare it with the float model (SPEC 10.6)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import astuple, dataclass
from typing import Any

import numpy as np

from kqgen.calibrate import Ranges
from kqgen.errors import InputError
from kqgen.fuse import split
from kqgen.intgraph import IntConv2d, IntGraph
from kqgen.ir import Graph, frozen_array
from kqgen.prune import Removed, prune, remove, removed, survey
from kqgen.prune_float import Rest, narrowed, rests, rounded
from kqgen.sizes import int8_tables_bytes

KEY = "dead"

RUN = 4
"""Channels that are to be compressed stay in multiples of this: 1x1 layers are indexed in runs of so many input channels."""


@dataclass(frozen=True, slots=True, eq=False)
class Dead:
    """What a network lost, nothing of which its outputs depend on.

    Attributes:
        removed: layers, channels and weights.
        padded_weights: weights of the network with the dead ones.
        padded_int8_tables_bytes: what its tables would take with the dead ones and every weight in 8 bits.
        rests: what stays of the tensors that lost channels, by name.
        twins: layers that were the same as another one, and that one's name.
    """

    removed: Removed
    padded_weights: int
    padded_int8_tables_bytes: int
    rests: Mapping[str, Rest]
    twins: Mapping[str, str]


def weights_of(graph: IntGraph) -> int:
    """How many weights a network has."""
    return sum(node.weight_count for node in graph.nodes if isinstance(node, IntConv2d))


def combined(first: Mapping[str, Rest], then: Mapping[str, Rest]) -> dict[str, Rest]:
    """What stays of each tensor when `then` was found in what `first` left."""
    made = {**first, **{name: each for name, each in then.items() if name not in first}}
    for name in first.keys() & then.keys():
        mask, values = first[name].mask.copy(), first[name].values.copy()
        values[mask] = then[name].values
        mask[mask] = then[name].mask
        made[name] = Rest(mask, frozen_array(values))
    return made


def before_compression(graph: Graph, ranges: Ranges) -> tuple[Graph, Dead]:
    """A simplified float graph without its dead structure, and what that was."""
    integers = rounded(graph, ranges)
    kept = survey(integers, RUN)
    stays = rests(integers, kept)
    gone = removed(integers, remove(integers, kept))
    return narrowed(graph, stays), Dead(gone, weights_of(integers), int8_tables_bytes(integers), stays, {})


def without_dead(integers: IntGraph, before: Dead | None = None) -> tuple[IntGraph, Dead]:
    """The integer graph without its dead structure, and what was removed in all: now, and `before`."""
    whole = split(integers)
    pruned = prune(whole)
    gone, first = removed(whole, pruned.graph), before
    if first is None:
        first = Dead(Removed(0, 0, 0), weights_of(whole), int8_tables_bytes(whole), {}, {})
    layers, channels, weights = (a + b for a, b in zip(astuple(first.removed), astuple(gone), strict=True))
    stays = combined(first.rests, rests(whole, pruned.kept))
    dead = Dead(
        Removed(layers, channels, weights), first.padded_weights, first.padded_int8_tables_bytes, stays, {**first.twins, **pruned.twins}
    )
    return pruned.graph, dead


def record(dead: Dead | None) -> dict[str, Any]:
    """JSON values that `read` understands, none where nothing was removed.

    Of every tensor its channels, and the number and value of each that was removed.
    """
    if dead is None or dead.removed == Removed(0, 0, 0):
        return {}
    tensors = {
        name: [len(rest.mask), [[int(channel), float(rest.values[channel])] for channel in np.flatnonzero(~rest.mask)]]
        for name, rest in sorted(dead.rests.items())
    }
    counts = [*astuple(dead.removed), dead.padded_weights, dead.padded_int8_tables_bytes]
    return {KEY: {"counts": counts, "tensors": tensors, "twins": dict(sorted(dead.twins.items()))}}


def read(extra: Mapping[str, Any], file: str) -> Dead | None:
    """What `record` wrote beside a graph; None where nothing is told.

    Raises:
        InputError: it is damaged.
    """
    if KEY not in extra:
        return None
    try:
        layers, channels, weights, padded_weights, padded_bytes = (int(count) for count in extra[KEY]["counts"])
        twins = {str(name): str(other) for name, other in extra[KEY]["twins"].items()}
        rests = {str(name): _rest(int(count), lost) for name, (count, lost) in extra[KEY]["tensors"].items()}
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        raise InputError(f"{file} does not say what was removed", found=str(error), do="compile the model again") from error
    return Dead(Removed(layers, channels, weights), padded_weights, padded_bytes, rests, twins)


def _rest(count: int, lost: list[list[float]]) -> Rest:
    if not 0 < count <= 1 << 16:
        raise ValueError(f"{count} channels")
    mask, values = np.ones(count, np.bool_), np.zeros(count)
    for channel, value in lost:
        mask[int(channel)], values[int(channel)] = False, value
    return Rest(mask, frozen_array(values))
