"""The mixes of index widths and uniform bits that an allocation chooses among, with their bytes and expected errors.

A partition says which layers share a codebook. A mix gives every layer of it one option. Within a mix the number of codewords K is
free in one octave, 2**(octave - 1) < K <= 2**octave, in which no index changes its width.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from kqgen.bits import packed_bytes
from kqgen.ir import Conv2d
from kqgen.kq_curves import Curve, index_curves, sample_kernels, uniform_error
from kqgen.kq_runs import has_kernels, lengths, plans
from kqgen.options import MAX_INDEX_BITS, UNIFORM_BITS, Codebook, Compression, Scope, index_bits
from kqgen.planned import codebook_bytes, kernels_of, stored_codewords
from kqgen.sensitivity import Sensitivity

_PRICES = 121
_CHEAPEST, _DEAREST = 1e-6, 1e4
"""Of a byte, in units of all errors over all bytes at 8 bits."""
_APART = 1.2
"""Estimates for codebooks of some layers are raised so much: beside one codebook of all layers they did no better on ResNet-8 (CIFAR-10,
1.5 and 2.0 bits a weight, no training) where they were estimated to err a tenth less."""
_BUCKET = math.log(1.03)
"""Mixes whose bytes differ by less than this ratio are of nearly one size."""


@dataclass(frozen=True, slots=True)
class Layer:
    """A layer with what its options cost.

    Attributes:
        label: how options name it: its module path where that is its own, else its node's name.
        uniform: (bits, expected error) that it may be stored in.
        natural: bits it is stored in when nothing is said, 0 when it may be indexed then.
        importance: of its error.
        run: length of the runs that are its kernels, 1 where it has kernels.
    """

    name: str
    label: str
    weights: int
    kernels: int
    uniform: tuple[tuple[int, float], ...]
    natural: int
    importance: float
    run: int = 1


@dataclass(frozen=True, slots=True)
class Book:
    """A codebook: the numbers of the layers that may share it, their curves, and the values of a codeword."""

    members: tuple[int, ...]
    curves: tuple[Curve, ...]
    d: int


@dataclass(frozen=True, slots=True)
class Partition:
    """Which layers share codebooks.

    Attributes:
        form: scope, sign and additive hold, codewords do not.
        groups: see `Compression`; by label.
        layers: in execution order.
        books: no layer stands in two.
    """

    form: Codebook
    groups: tuple[tuple[str, ...], ...]
    layers: tuple[Layer, ...]
    books: tuple[Book, ...]


@dataclass(frozen=True, slots=True, order=True)
class Mix:
    """One option a layer: level j names the first 2**j codewords, level `octave` all K of them; minus b is uniform in b bits."""

    octave: int
    options: tuple[int, ...]

    def indexed(self, partition: Partition) -> frozenset[str]:
        """Names of the layers that are indexed."""
        return frozenset(layer.name for layer, option in zip(partition.layers, self.options, strict=True) if option >= 0)

    @property
    def codewords(self) -> tuple[int, int]:
        """The least and the largest K."""
        return (1 << self.octave) // 2 + 1 if self.octave else 1, 1 << self.octave


def partitions_of(
    nodes: Sequence[Conv2d], known: Mapping[str, Sensitivity], kept: Mapping[str, int], form: Codebook, *, scopes: Sequence[Scope],
    fixed_dense: bool, seed: int, progress: Callable[[str, float], None],
) -> tuple[Partition, ...]:  # fmt: skip
    """One partition a scope, and where both scopes are free, one in which layers of one width share a codebook; each for several lengths
    of runs where the network has layers without kernels.

    Args:
        known: sensitivities by node name.
        kept: uniform bits of layers that have no choice, by node name.
        fixed_dense: fully connected layers stay at 8 bits.
    """
    paths = [node.path for node in nodes]
    labels = tuple(node.path if node.path and paths.count(node.path) == 1 else node.name for node in nodes)
    uniform = tuple(_uniform(node, known[node.name], kept.get(node.name), fixed_dense) for node in nodes)
    free = tuple(node.name not in kept and not (node.dense and fixed_dense) for node in nodes)
    ways = plans([node for node, is_free in zip(nodes, free, strict=True) if is_free])
    learned: dict[tuple[tuple[int, int], ...], Book] = {}
    out: list[Partition] = []
    for number, way in enumerate(ways):
        cut_nodes = {node.name: node for node in way}
        shaped = tuple(cut_nodes.get(node.name, node) for node in nodes)
        layers = tuple(
            _layer(plain, node, label, bits, known[node.name].importance)
            for plain, node, label, bits in zip(nodes, shaped, labels, uniform, strict=True)
        )
        open_layers = [place for place, node in enumerate(shaped) if free[place] and has_kernels(node)]
        tell = functools.partial(_tell_part, progress, number, len(ways))
        found = _partitions(shaped, layers, open_layers, known, form, scopes, learned, seed, tell)
        out += [each for each in found if all((each.books, each.layers) != (other.books, other.layers) for other in out)]
    return tuple(out)


def _tell_part(progress: Callable[[str, float], None], number: int, count: int, label: str, fraction: float) -> None:
    progress(label, (number + fraction) / count)


def _partitions(
    nodes: Sequence[Conv2d], layers: tuple[Layer, ...], open_layers: Sequence[int], known: Mapping[str, Sensitivity], form: Codebook,
    scopes: Sequence[Scope], learned: dict[tuple[tuple[int, int], ...], Book], seed: int, progress: Callable[[str, float], None],
) -> list[Partition]:  # fmt: skip
    """The partitions of layers whose runs are chosen; `learned` keeps codebooks by their layers and run lengths."""

    def shape(number: int) -> tuple[int, ...]:
        return (*nodes[number].kernel, nodes[number].run)

    def book(members: tuple[int, ...]) -> Book:
        key = tuple((number, nodes[number].run) for number in members)
        if key not in learned:
            # Each codebook draws from its own stream, so that other partitions leave its curves alone.
            rng = np.random.default_rng([seed % 2**64, *members])
            samples = [sample_kernels(nodes[number], known[nodes[number].name]) for number in members]
            found = index_curves(samples, form.sign, form.additive, rng)
            shared_by_all = len(members) == sum(shape(number) == shape(members[0]) for number in open_layers)
            surcharge = 1.0 if shared_by_all else _APART
            curves = tuple(
                curve.handed_on(known[nodes[number].name].of(nodes[number]).gain, surcharge)
                for curve, number in zip(found, members, strict=True)
            )
            learned[key] = Book(members, curves, math.prod(nodes[members[0]].kernel))
        return learned[key]

    keys: list[tuple[Scope, Callable[[int], object]]] = [
        ("network", shape),
        ("layer", lambda number: number),
        ("layer", lambda number: (shape(number), len(nodes[number].weight))),
    ]
    chosen = [(scope, _gathered(open_layers, key)) for scope, key in (keys if len(scopes) > 1 else keys[:2]) if scope in scopes]
    out: list[Partition] = []
    total = sum(len(shared) for _, shared in chosen)
    done = 0
    for scope, shared in chosen:
        books = []
        for members in shared.values():
            progress(f"trying codebooks for {', '.join(layers[number].label for number in members[:2])}", done / max(total, 1))
            books.append(book(members))
            done += 1
        several = [each.members for each in books if scope == "layer" and len(each.members) > 1]
        groups = tuple(tuple(layers[number].label for number in members) for members in several)
        partition = Partition(replace(form, scope=scope, codewords=1), groups, layers, tuple(books))
        if all(partition.books != other.books for other in out):
            out.append(partition)
    return out


def _gathered(numbers: Sequence[int], key: Callable[[int], object]) -> dict[object, tuple[int, ...]]:
    out: dict[object, tuple[int, ...]] = {}
    for number in numbers:
        out[key(number)] = (*out.get(key(number), ()), number)
    return out


def _uniform(node: Conv2d, known: Sensitivity, kept: int | None, fixed_dense: bool) -> tuple[tuple[int, float], ...]:
    """(bits, expected error) that a layer may be stored in."""
    widths = (kept,) if kept is not None else (8,) if node.dense and fixed_dense else UNIFORM_BITS
    return tuple((bits, known.gain * uniform_error(node, known, bits)) for bits in widths)


def _layer(plain: Conv2d, node: Conv2d, label: str, uniform: tuple[tuple[int, float], ...], importance: float) -> Layer:
    natural = 0 if has_kernels(plain) or lengths(plain) else 8
    return Layer(node.name, label, int(node.weight.size), kernels_of(node), uniform, natural, importance, node.run)


def mixes_of(partition: Partition, allowed: frozenset[str]) -> tuple[Mix, ...]:
    """For every octave and many prices of a byte, the mix of least error plus price; only `allowed` layers are indexed.

    The price of a byte runs over all that matter, so the mixes serve any target.
    """
    layers = partition.layers
    scale = sum(layer.importance for layer in layers) / max(1, sum(layer.weights for layer in layers))
    prices = np.geomspace(_CHEAPEST, _DEAREST, _PRICES) * scale
    widths = np.full((len(layers), _PRICES), 8)
    costs = np.zeros((len(layers), _PRICES))
    for number, layer in enumerate(layers):
        each = np.array([layer.importance * error + prices * packed_bytes(layer.weights, bits) for bits, error in layer.uniform])
        costs[number] = each.min(axis=0)
        widths[number] = np.array([bits for bits, _ in layer.uniform])[each.argmin(axis=0)]
    found: dict[Mix, None] = {}
    form = partition.form
    for octave in range(_last_octave(form) + 1):
        options = -widths.copy()
        for book in partition.books:
            _choose_book(partition, book, octave, prices, costs, options, allowed)
        for column in options.T:
            choice = tuple(map(int, column))
            if octave in choice or (octave == 0 and max(choice, default=-1) < 0):
                found[Mix(octave, choice)] = None
    return tuple(found)


def varied(partition: Partition, mixes: Sequence[Mix], allowed: frozenset[str]) -> tuple[Mix, ...]:
    """`mixes`, and the best of them with one layer changed at a time: prices alone leave gaps between sizes.

    The best are those of least error among the mixes of nearly their size, unless a smaller one errs less.
    """
    best: dict[int, tuple[int, float, Mix]] = {}
    for placed in (_placed(partition, mix, codewords) for mix in mixes for codewords in _middle_and_last(mix)):
        bucket = math.floor(math.log(max(1, placed[0])) / _BUCKET)
        if bucket not in best or (placed[1], placed[0]) < (best[bucket][1], best[bucket][0]):
            best[bucket] = placed
    front: dict[Mix, None] = {}
    least = math.inf
    for _, error, mix in sorted(best.values()):
        if error < least:
            least, front[mix] = error, None
    indexable = {number for book in partition.books for number in book.members if partition.layers[number].name in allowed}
    out = dict.fromkeys(mixes)
    for mix in front:
        levels = [level for level, _ in _levels(partition.form, mix.octave)]
        for number, layer in enumerate(partition.layers):
            plain_options = [-bits for bits, _ in layer.uniform]
            near = [level for level in levels if abs(level - mix.options[number]) == 1] if mix.options[number] >= 0 else levels[-1:]
            for option in (*plain_options, *(near if number in indexable else ())):
                if option != mix.options[number]:
                    out[Mix(mix.octave, (*mix.options[:number], option, *mix.options[number + 1 :]))] = None
    return tuple(out)


def _placed(partition: Partition, mix: Mix, codewords: int) -> tuple[int, float, Mix]:
    return mix_bytes(partition, mix, codewords), total_error(partition, mix_errors(partition, mix, codewords)), mix


def _middle_and_last(mix: Mix) -> tuple[int, ...]:
    low, high = mix.codewords
    return (low,) if low == high else ((low + high) // 2, high)


def _last_octave(form: Codebook) -> int:
    return (MAX_INDEX_BITS - int(form.sign)) // (2 if form.additive else 1)


def _levels(form: Codebook, octave: int) -> list[tuple[int, int]]:
    """(level, codewords) of an octave, its middle standing for K. One codeword needs a bit all the same, so two cost no more."""
    first = 0 if form.sign or form.additive else 1
    narrow = [(level, 1 << level) for level in range(first, octave)]
    return [*narrow, (octave, max(1, round(2 ** (octave - 0.5))))]


def _choose_book(
    partition: Partition, book: Book, octave: int, prices: npt.NDArray[np.float64], costs: npt.NDArray[np.float64],
    options: npt.NDArray[np.int_], allowed: frozenset[str],
) -> None:  # fmt: skip
    """Writes the best levels of the book's layers into `options` (layers, prices), where indexing pays."""
    form, levels = partition.form, _levels(partition.form, octave)
    members = [(number, curve) for number, curve in zip(book.members, book.curves, strict=True) if partition.layers[number].name in allowed]
    if not members:
        return
    tables = 2 if form.additive else 1
    totals = np.array([prices * codebook_bytes(tables * min(count, book.curves[0].kernels), book.d) for _, count in levels])
    best: list[tuple[int, npt.NDArray[np.float64], npt.NDArray[np.int_]]] = []
    for number, curve in members:
        layer = partition.layers[number]
        each = np.array(
            [
                layer.importance * curve.at(count) + prices * packed_bytes(layer.kernels, index_bits(count, form.sign, form.additive))
                for _, count in levels
            ]
        )
        least = np.minimum.accumulate(each, axis=0)
        # The level of the least cost up to each level: where a cost is the least so far, its own.
        argument = np.maximum.accumulate(np.where(each <= least, np.arange(len(levels))[:, None], 0), axis=0)
        best.append((number, least, argument))
        totals += np.minimum(least, costs[number])
    alone = sum((costs[number] for number, _ in members), np.zeros(len(prices)))
    top, columns = totals.argmin(axis=0), np.arange(len(prices))
    pays = totals[top, columns] < alone
    numbers = np.array([level for level, _ in levels])
    for number, least, argument in best:
        index = pays & (least[top, columns] < costs[number])
        options[number] = np.where(index, numbers[argument[top, columns]], options[number])


def mix_bytes(partition: Partition, mix: Mix, codewords: int) -> int:
    """Bytes of all tables of a mix with K codewords, as `planned_bytes` has them."""
    form, layers = partition.form, partition.layers
    total = sum(packed_bytes(layer.weights, -option) for layer, option in zip(layers, mix.options, strict=True) if option < 0)
    for book in partition.books:
        members = [number for number in book.members if mix.options[number] >= 0]
        if not members:
            continue
        asked = [codewords if mix.options[number] == mix.octave else 1 << mix.options[number] for number in members]
        stored = stored_codewords(asked, sum(layers[number].kernels for number in members))
        total += codebook_bytes((2 if form.additive else 1) * stored, book.d)
        for number, reach in zip(members, asked, strict=True):
            total += packed_bytes(layers[number].kernels, index_bits(min(reach, stored), form.sign, form.additive))
    return total


def mix_errors(partition: Partition, mix: Mix, codewords: int) -> tuple[float, ...]:
    """The expected error of each layer, a share of its own output power."""
    errors = [dict(layer.uniform).get(-option, 0.0) for layer, option in zip(partition.layers, mix.options, strict=True)]
    for book in partition.books:
        for number, curve in zip(book.members, book.curves, strict=True):
            if mix.options[number] >= 0:
                errors[number] = curve.at(codewords if mix.options[number] == mix.octave else 1 << mix.options[number])
    return tuple(errors)


def codewords_that_fit(partition: Partition, mix: Mix, budget: float) -> int | None:
    """The most codewords with which a mix stays within the budget of bytes; None when even the fewest do not."""
    low, high = mix.codewords
    if mix_bytes(partition, mix, low) > budget:
        return None
    while low < high:
        middle = (low + high + 1) // 2
        if mix_bytes(partition, mix, middle) <= budget:
            low = middle
        else:
            high = middle - 1
    return low


def total_error(partition: Partition, errors: Sequence[float]) -> float:
    """Errors times importances, summed."""
    return sum(layer.importance * error for layer, error in zip(partition.layers, errors, strict=True))


def compression_of(partition: Partition, mix: Mix, codewords: int, keep: Sequence[tuple[str, int]], seed: int) -> Compression:
    """The options that make a mix; `keep` holds the user's own, which stay as they are."""
    form = partition.form
    kept = {name for name, _ in keep}
    uniform = tuple(
        (layer.label, -option)
        for layer, option in zip(partition.layers, mix.options, strict=True)
        if option < 0 and -option != layer.natural and not kept & {layer.label, layer.name}
    )
    widths = tuple(
        (layer.label, index_bits(1 << option, form.sign, form.additive))
        for layer, option in zip(partition.layers, mix.options, strict=True)
        if 0 <= option < mix.octave
    )
    cut = [layer for layer, option in zip(partition.layers, mix.options, strict=True) if option >= 0 and layer.run > 1]
    indexed = {layer.label for layer, option in zip(partition.layers, mix.options, strict=True) if option >= 0}
    groups = tuple(tuple(label for label in group if label in indexed) for group in partition.groups)
    shared = tuple(group for group in groups if len(group) > 1)
    return Compression(
        codebook=replace(form, codewords=codewords), keep=(*keep, *uniform), widths=widths, groups=shared, seed=seed,
        runs=tuple((layer.label, layer.run) for layer in cut),
    )
