"""Convolutions whose taps lie apart, depthwise or not, in plain C (SPEC 6.9)."""

from __future__ import annotations

from kqgen.conv_shape import Candidate, ConvShape, round4
from kqgen.plan import Form

CYCLES = {"m0": 25.0, "m0p": 25.0, "m3": 21.0, "m4": 20.0, "m33": 18.0, "m7": 12.0, "m55": 18.0}
"""Modelled cycles of a tap: rough, as there is no other way to run such a layer."""


def candidates(shape: ConvShape, core: str) -> tuple[Candidate, ...]:
    """`direct`, `unpack` or `decode` of a dilated layer; nothing for others."""
    if shape.dilation == (1, 1):
        return ()
    indexed = shape.kind != "uniform"
    form: Form = "decode" if indexed else "direct" if shape.bits == 8 else "unpack"
    function = f"kq_{'depthwise' if shape.depthwise else 'conv2d'}_{'decode_' if indexed else ''}dilated_s8"
    return (Candidate(form, function, 256 * shape.dilation[0] + shape.dilation[1], 0, round4(shape.taps), CYCLES[core] * shape.macs),)
