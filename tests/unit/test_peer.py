"""Which recorded figure of CMSIS-NN stands beside which layer."""

from __future__ import annotations

from dataclasses import replace

from nets import Builder

from kqgen import peer
from kqgen.intgraph import IntConv2d, QTensor

POINTWISE_M4, DEPTHWISE_M4 = 1_249_912, 720_109


def _pointwise() -> IntConv2d:
    """64 to 64 channels on 25 x 5, as DS-CNN has it."""
    builder = Builder("net")
    builder.input("x", 25, 5, 64)
    builder.conv("pw", 64, (1, 1))
    node = builder.nodes[-1]
    assert isinstance(node, IntConv2d)
    return node


def test_a_pointwise_layer_is_found_however_its_channels_are_cut() -> None:
    node = _pointwise()
    assert peer.cycles(node, "m4") == POINTWISE_M4
    for run in (2, 8):
        cut = replace(node, in_shape=(25, 5 * run, 64 // run), kernel=(1, run), stride=(1, run))
        assert peer.cycles(cut, "m4") == POINTWISE_M4


def test_a_true_kernel_of_one_row_is_none() -> None:
    node = replace(_pointwise(), in_shape=(25, 8, 32), kernel=(1, 4), stride=(1, 1))
    assert peer.cycles(node, "m4") is None


def test_a_depthwise_layer_is_not_taken_for_a_dense_one() -> None:
    node = replace(_pointwise(), kernel=(3, 3), padding=(1, 1, 1, 1), depthwise=True)
    assert peer.cycles(node, "m4") == DEPTHWISE_M4
    assert peer.cycles(replace(node, depthwise=False), "m4") is None
    assert peer.cycles(replace(node, output=QTensor("y", 24, 5, 64, 1.0, 0)), "m4") is None
    assert peer.cycles(node, "m3") is None
