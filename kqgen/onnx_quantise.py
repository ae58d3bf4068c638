"""QuantizeLinear and DequantizeLinear on computed tensors: a pair becomes a fake quantisation, whose scale the compiler keeps."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from kqgen import onnx_modules as modules
from kqgen.onnx_site import Site, Tensor, Value

_LEAST, _GREATEST = 1e-20, 1e20
_WANTED = "one scale and zero point a tensor, int8 or uint8"
_DO = "quantise activations per tensor in 8 bits (weights may be per channel)"


def _parameters(site: Site) -> tuple[float, int, bool]:
    """Scale, zero point and whether the codes are unsigned."""
    scale = site.constant(1)
    zero = site.constant(2) if site.has(2) else np.zeros(1, np.uint8 if site.attribute("output_dtype", 2) in (0, 2) else np.int8)
    if scale.size != 1 or zero.size != 1:
        raise site.refuse(f"{scale.size} scales of an activation", wanted=_WANTED, do=_DO)
    if zero.dtype not in (np.int8, np.uint8):
        raise site.refuse(f"codes of {zero.dtype}", wanted=_WANTED, do=_DO)
    value = float(scale.reshape(()))
    if not _LEAST < value < _GREATEST:
        raise site.wrong(f"scale {value:g}", f"a scale of an activation, between {_LEAST:g} and {_GREATEST:g}")
    return value, int(zero.reshape(())), zero.dtype == np.uint8


def quantise(site: Site) -> Value:
    """QuantizeLinear: values rounded to codes, still as reals; a uint8 zero point is shifted by 128 to that of int8."""
    x = site.tensor()
    scale, zero, unsigned = _parameters(site)
    shifted = zero - 128 if unsigned else zero
    made = site.emit(
        modules.Function(torch.fake_quantize_per_tensor_affine, scale=scale, zero_point=shifted, quant_min=-128, quant_max=127), x
    )
    return replace(made, codes=(scale, shifted))


def dequantise(site: Site) -> Value:
    """DequantizeLinear of what a QuantizeLinear of the same scale made, or of raw uint8 pixels."""
    value = site.tensor()
    scale, zero, unsigned = _parameters(site)
    shifted = zero - 128 if unsigned else zero
    if value.codes is None:
        if value.fake.dtype != torch.uint8 or not unsigned:
            raise site.refuse("no codes of a QuantizeLinear", wanted="the result of a QuantizeLinear, or uint8 pixels")
        return site.emit(modules.Function(modules.pixels, scale=scale, zero_point=zero), value)
    if value.codes != (scale, shifted):
        raise site.refuse(
            f"scale {scale:g} and zero point {shifted} of codes with {value.codes[0]:g} and {value.codes[1]}",
            wanted="the scale and zero point of the QuantizeLinear",
        )
    return replace(value, codes=None)


def check_codes(site: Site, keeps: bool) -> tuple[float, int] | None:
    """The quantisation of this node's operands, None where none is quantised; refused where the node would compute on codes."""
    tensors = [each for each in site.operands if isinstance(each, Tensor)]
    found = {each.codes for each in tensors} - {None}
    if not found:
        return None
    if not keeps or len({each.codes for each in tensors}) != 1:
        raise site.refuse(
            "it computes on quantised integers",
            wanted="the QDQ format: every operator between DequantizeLinear and QuantizeLinear",
            do="quantise with quant_format=QuantFormat.QDQ",
        )
    return tensors[0].codes
