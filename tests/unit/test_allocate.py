"""Allocation of bits: targets kept and nearly used, more bytes never worse, clear refusals, equal results for equal arguments."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from kqnets import calibrated, chain, changed, conv

from kqgen import ir
from kqgen.allocate import Allocation, Target, allocate
from kqgen.allocate_mixes import compression_of, mix_bytes, mixes_of, partitions_of
from kqgen.errors import InputError
from kqgen.kq_layers import convolutions
from kqgen.options import Codebook
from kqgen.planned import graph_of_weights, planned_bytes
from kqgen.sensitivity import measure, plain

NET = chain((16, 3, 3), (24, 3, 3), (24, 1, 1), (32, 3, 3), (40, 3, 3), (32, 3, 3), side=8)


def plainly(target: Target, codebook: Codebook | None = None, graph: ir.Graph = NET) -> Allocation:
    return allocate(graph, target, None, None, codebook=codebook)


@pytest.mark.parametrize("codebook", [None, Codebook("network"), Codebook("layer", sign=False), Codebook("network", 16, True, True)])
def test_targets_are_kept_and_nearly_used(codebook: Codebook | None) -> None:
    rng = np.random.default_rng(11)
    for bits in (*rng.uniform(1.2, 3.0, 2), 1.5):
        found = plainly(Target(bits_per_weight=float(bits)), codebook)
        planned = planned_bytes(NET, found.compression)
        assert planned.bits_per_weight == found.bits_per_weight <= bits
        assert found.bits_per_weight >= (0.93 if codebook is not None and codebook.additive else 0.97) * bits
        book = found.compression.codebook
        assert codebook is None or (book.scope, book.sign, book.additive) == (codebook.scope, codebook.sign, codebook.additive)
    for size in map(int, rng.integers(9000, 30000, 1)):
        found = plainly(Target(table_bytes=size), codebook)
        assert 0.93 * size <= found.table_bytes <= size
        assert planned_bytes(NET, found.compression).table_bytes == found.table_bytes


def test_more_bits_never_cost_more_error() -> None:
    errors = [plainly(Target(bits_per_weight=bits)).error for bits in np.linspace(0.8, 8.0, 9).tolist()]
    assert all(wider <= narrower for narrower, wider in pairwise(errors))
    assert errors[-1] < 1e-3 < errors[0]


def test_every_mix_takes_the_bytes_it_is_planned_to() -> None:
    """Groups aside, which are the codebooks' own business: a mix's own count is the planner's."""
    nodes = convolutions(NET)
    known = {node.name: plain(node) for node in nodes}
    (partition,) = partitions_of(
        nodes, known, {}, Codebook("network"), scopes=("network",), fixed_dense=False, seed=0, progress=lambda label, fraction: None
    )
    mixes = mixes_of(partition, frozenset(node.name for node in nodes[1:]))
    assert len(mixes) > 30
    for mix in mixes:
        for codewords in mix.codewords:
            planned = planned_bytes(NET, compression_of(partition, mix, codewords, (), 0))
            indexed = {layer.name for layer in planned.layers if layer.codebook}
            if indexed == mix.indexed(partition):  # else `choose` holds a layer too small to be indexed
                assert planned.table_bytes == mix_bytes(partition, mix, codewords)


def test_a_layer_that_matters_more_gets_more() -> None:
    """Of two equal layers, the one whose output is all but drowned by a bypass is given fewer bits."""
    rng = np.random.default_rng(2)
    graph = chain((24, 3, 3), (24, 3, 3), (24, 3, 3), side=8)
    weight = rng.normal(size=(24, 24, 3, 3)) * 0.1
    loud, faint = changed(graph, "c1", weight=weight), 0.02
    bypass = conv("c2", "c1", (24, 8, 8), weight * faint, lo=-np.inf)
    add = ir.Add("sum", "", ("c1", "c2"), (24, 8, 8), lo=0.0)
    nodes = []
    for node in loud:
        nodes += [bypass, add] if node.name == "c2" else [node]
    mean = nodes[-2]
    nodes[-2] = ir.AvgPool(mean.name, "", ("sum",), mean.shape, (8, 8), (8, 8))
    net = ir.Graph("net", tuple(nodes), ("fc",))
    samples, ranges = calibrated(net)
    known = measure(net, samples, ranges, 0, lambda label, fraction: None)
    assert known["c2"].importance < 0.05 * known["c1"].importance
    given = []
    for bits in (1.2, 1.6, 2.2):
        found = {layer.name: layer for layer in allocate(net, Target(bits_per_weight=bits), samples, ranges).layers}
        given.append((found["net.c1"].bits_per_weight, found["net.c2"].bits_per_weight))
    assert all(loudly >= faintly for loudly, faintly in given)
    assert sum(loudly for loudly, _ in given) > sum(faintly for _, faintly in given)


def test_moments_are_those_of_the_patches() -> None:
    samples = calibrated(NET, count=4)[0]
    node = convolutions(NET)[0]
    known = measure(NET, samples, None, 0, lambda label, fraction: None)[node.name]
    padded = np.pad(samples.arrays[0].astype(np.float64), ((0, 0), (0, 0), (1, 1), (1, 1)))
    patches = np.array([padded[:, 1, y : y + 3, x : x + 3].reshape(4, 9) for y in range(8) for x in range(8)]).reshape(-1, 9)
    expected = np.cov(patches.T, bias=True)
    assert np.abs(known.moments[1] - expected).max() < 0.02 * np.trace(known.moments.mean(0)) / 9


def test_equal_arguments_give_equal_allocations() -> None:
    samples, ranges = calibrated(NET)
    first, second = (allocate(NET, Target(bits_per_weight=1.5), samples, ranges, seed=4) for _ in range(2))
    assert first == second
    assert first.compression.seed == 4


def test_what_the_user_keeps_stays() -> None:
    found = allocate(NET, Target(bits_per_weight=2.0), None, None, keep=(("net.c3", 8), ("c2", 6)))
    bits = {layer.name: layer.bits for layer in planned_bytes(NET, found.compression).layers}
    assert (bits["c3"], bits["c2"]) == (8, 6)
    assert found.bits_per_weight <= 2.0


def test_fully_connected_layers_are_narrowed_only_for_bytes() -> None:
    rng = np.random.default_rng(0)
    wide = graph_of_weights("net", [("conv", rng.normal(size=(16, 16, 3, 3)), False), ("fc", rng.normal(size=(64, 512, 1, 1)), True)])
    assert planned_bytes(wide, plainly(Target(bits_per_weight=4.0), graph=wide).compression).layers[1].bits == 8
    narrow = planned_bytes(wide, plainly(Target(table_bytes=20_000), graph=wide).compression).layers[1]
    assert 8 * narrow.stored_bytes <= 4 * narrow.weights


def test_weights_alone_are_enough() -> None:
    bare = graph_of_weights("net", [(node.path, node.weight, node.dense) for node in convolutions(NET)])
    found = allocate(bare, Target(bits_per_weight=1.5), None, None)
    assert 1.45 < found.bits_per_weight <= 1.5
    assert planned_bytes(NET, found.compression).table_bytes == found.table_bytes


def test_a_target_too_small_is_refused_with_the_nearest() -> None:
    with pytest.raises(InputError, match=r"no allocation reaches 0\.01 bits a weight") as caught:
        plainly(Target(bits_per_weight=0.01))
    nearest = float(caught.value.found.split()[0])
    assert "--codewords" in caught.value.found
    assert "--keep" in caught.value.found
    assert plainly(Target(bits_per_weight=nearest * 1.001)).bits_per_weight == pytest.approx(nearest, rel=1e-3)
    with pytest.raises(InputError, match="no allocation reaches 10 bytes of tables") as small:
        plainly(Target(table_bytes=10))
    least = int(small.value.found.split()[0])
    assert plainly(Target(table_bytes=least)).table_bytes == least
    with pytest.raises(InputError, match="no allocation reaches"):
        plainly(Target(table_bytes=least - 1))


def test_a_target_too_large_is_refused_in_bits_and_met_in_bytes() -> None:
    with pytest.raises(InputError, match="no allocation takes as much as 9 bits a weight") as caught:
        plainly(Target(bits_per_weight=9.0))
    assert caught.value.found.startswith("8 bits")
    roomy = plainly(Target(table_bytes=10**7))
    assert roomy.bits_per_weight == 8.0


@pytest.mark.parametrize(("bits", "size"), [(None, None), (1.0, 100), (0.0, None), (float("nan"), None), (None, -5)])
def test_a_target_is_one_positive_number(bits: float | None, size: int | None) -> None:
    with pytest.raises(InputError, match="a target"):
        Target(bits, size)
