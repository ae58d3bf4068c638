"""Depthwise convolution: planes of single input channels in scratch, padding laid in (SPEC 6.9)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import MappingProxyType

from kqgen.conv_shape import Candidate, ConvShape, round4
from kqgen.plan import Form

CYCLES: Mapping[str, float] = MappingProxyType({"m0": 14, "m0p": 14, "m3": 12, "m4": 10, "m33": 9, "m7": 6, "m55": 8})
"""Modelled cycles of a tap in the plain C."""

DSP = ("m4", "m33", "m7")
BLOCK = 16
"""Channels of a vector."""
LIMITS_WORDS = 56
"""Of the parameters of a vector's channels."""


def candidates(shape: ConvShape, core: str) -> tuple[Candidate, ...]:
    """`direct`, `unpack` or `decode` of a depthwise layer; nothing for others."""
    return tuple(_candidates(shape, core)) if shape.depthwise and shape.dilation == (1, 1) else ()


def _candidates(shape: ConvShape, core: str) -> Iterator[Candidate]:
    indexed = shape.kind != "uniform"
    form: Form = "decode" if indexed else "direct" if shape.bits == 8 else "unpack"
    decode = "decode_" if indexed else ""
    if core in DSP:
        for turns in (1, 4):
            yield Candidate(form, f"kq_depthwise_{decode}dsp_s8", turns, 0, _dsp_bytes(shape, turns), (4 - turns / 10) * shape.macs)
        return
    if core == "m55":
        yield Candidate(form, f"kq_depthwise_{decode}mve_s8", 0, 0, _mve_bytes(shape), CYCLES[core] * shape.macs)
        return
    function = f"kq_depthwise_{decode}s8"
    yield Candidate(form, function, 0, 0, scratch_bytes(shape), CYCLES[core] * shape.macs)


def plane(shape: ConvShape) -> tuple[int, int]:
    """Rows and columns of an input channel that the windows cover, padding included."""
    (k_h, k_w), (stride_h, stride_w) = shape.kernel, shape.stride
    return (shape.h_out - 1) * stride_h + k_h, (shape.w_out - 1) * stride_w + k_w


def scratch_bytes(shape: ConvShape) -> int:
    """SPEC 6.4."""
    rows, columns = plane(shape)
    return round4(4 * (rows * columns + shape.n) + 2 * shape.n)


def _dsp_bytes(shape: ConvShape, turns: int) -> int:
    """SPEC 6.4."""
    row_taps = shape.kernel[1] // 2 + 1
    row_words = (shape.w_out - 1) * shape.stride[1] // 2 + row_taps
    return round4(4 * (turns * plane(shape)[0] * row_words + 2 * row_taps * shape.kernel[0]) + shape.w_out + 2 * shape.n)


def _mve_bytes(shape: ConvShape) -> int:
    """SPEC 6.4."""
    k_h = shape.kernel[0]
    return round4(4 * (LIMITS_WORDS + k_h) + BLOCK * (1 + shape.n + k_h * plane(shape)[1]) + 2 * shape.n)
