"""The float network that an integer graph stands for: its weights and biases as real numbers, its activations rounded or not.

Between the float model and the integers lie several roundings; with these graphs each can be run without the others.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import torch

from kqgen.calibrate import TensorRange
from kqgen.errors import InputError
from kqgen.floatexec import evaluate
from kqgen.intgraph import IntConv2d, IntGraph, KqWeights, QTensor, codeword_rows
from kqgen.ir import Conv2d, Graph, Input, Node, frozen_array
from kqgen.lower_conv import at_zero, zero_codes
from kqgen.post_training import fake_quantise

Float64 = npt.NDArray[np.float64]
Codewords = Mapping[str, npt.NDArray[np.floating]]
"""Per codebook its codewords before rounding, (stored codewords, k_h, k_w), in steps: those of `IntCodebook.values` but not whole."""


def dequantised(original: Graph, integers: IntGraph, codewords: Codewords | None = None) -> Graph:
    """`original` with the weights and biases that `integers` was lowered to, as real numbers.

    Args:
        original: simplified float graph with the layers of `integers`.
        codewords: stand for the values of the codebooks they name; None: the stored ones.

    Raises:
        InputError: `original` is another network, or codewords have another shape than the codebook.

    Source: SPEC 1.3 and, for the bias, 5.1 solved for the real bias.
    """
    check_same(original, integers)
    layers = {node.name: node for node in integers.nodes if isinstance(node, IntConv2d)}
    nodes = tuple(_real(node, layers[node.name], integers, codewords or {}) if isinstance(node, Conv2d) else node for node in original)
    return replace(original, nodes=nodes)


def _real(node: Conv2d, layer: IntConv2d, integers: IntGraph, codewords: Codewords) -> Conv2d:
    c_out, c_in, k_h, k_w = node.weight.shape
    whole = integers.weights(layer).reshape(c_out, k_h, k_w, c_in).transpose(0, 3, 1, 2).astype(np.float64)
    source = integers.tensor(layer.inputs[0])
    scale = layer.weight_scale.astype(np.float64)
    bias = (layer.requant.bias + at_zero(node, whole.transpose(0, 2, 3, 1), zero_codes(node, source))) * source.scale * scale
    values = _kernels(layer.weights, integers, codewords, whole) if isinstance(layer.weights, KqWeights) else whole
    return replace(node, weight=frozen_array(scale[:, None, None, None] * values), bias=frozen_array(bias))


def _kernels(weights: KqWeights, integers: IntGraph, codewords: Codewords, whole: Float64) -> Float64:
    """(c_out, c_in, k_h, k_w) from real codewords; `whole`, the stored kernels, where none are given."""
    if weights.codebook not in codewords:
        return whole
    values, book = np.asarray(codewords[weights.codebook], np.float64), integers.codebook(weights.codebook)
    if values.shape != book.values.shape:
        raise InputError(
            f"codebook {book.name}: the codewords before rounding have another shape",
            found=str(values.shape), wanted=str(book.values.shape), do="give one codeword for each that is stored, in its place",
        )  # fmt: skip
    kernels: Float64 = values[codeword_rows(weights, book)].sum(axis=0)
    signed = np.where(weights.negative[:, :, None, None], -kernels, kernels)
    # As they lie in memory, where runs of a layer's inputs are the inputs themselves.
    c_out, c_in, k_h, k_w = whole.shape
    return signed.transpose(0, 2, 3, 1).reshape(c_out, k_h, k_w, c_in).transpose(0, 3, 1, 2)


def simulate(graph: Graph, integers: IntGraph, batch: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Every tensor of `graph` with every tensor rounded to its int8 codes, (N, c, h, w) float32 by name.

    Against the integers this leaves out the rounding of multipliers alone.
    """
    tensors: dict[str, torch.Tensor] = {}
    with torch.no_grad():
        for node in graph:
            value = batch[node.name] if isinstance(node, Input) else evaluate(node, [tensors[name] for name in node.inputs])
            tensors[node.name] = rounded(value, integers.tensor(node.name))
    return tensors


def rounded(value: torch.Tensor, tensor: QTensor) -> torch.Tensor:
    """Real values as the int8 codes of `tensor` mean them. Any shape, float32."""
    return fake_quantise(value, TensorRange(tensor.name, tensor.scale, tensor.zero_point))


def check_same(original: Graph, integers: IntGraph) -> None:
    """Raises InputError unless both are the same network: the same tensors, and as many weights in each layer."""
    wanted = {tensor.name: _sizes(tensor) for tensor in (*integers.inputs, *(node.output for node in integers.nodes))}
    found = {node.name: node.shape for node in original}
    weights = {node.name: node.weight_count for node in integers.nodes if isinstance(node, IntConv2d)}
    stored = {node.name: int(node.weight.size) for node in original if isinstance(node, Conv2d)}
    if wanted == found and weights == stored and original.outputs == integers.outputs:
        return
    names = [name for name in (*wanted, *found) if wanted.get(name) != found.get(name) or weights.get(name) != stored.get(name)]
    first = names[0] if names else ", ".join(original.outputs)
    raise InputError(
        f"the float model is not the one that {integers.name} was made of",
        found=f"{first}: {_text(original, first)}",
        wanted=f"{first}: {wanted[first]}" if first in wanted else f"the tensors {', '.join(wanted)}",
        do="give the .pt2 that was compiled",
    )


def _sizes(tensor: QTensor) -> tuple[int, int, int]:
    return (tensor.c, tensor.h, tensor.w)


def _text(graph: Graph, name: str) -> str:
    node: Node | None = next((node for node in graph if node.name == name), None)
    return "no such tensor" if node is None else f"{node.shape}, weights {node.weight.shape if isinstance(node, Conv2d) else 'none'}"
