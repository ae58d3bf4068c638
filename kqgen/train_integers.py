"""From a network in training to the integers it stands for: the same codes, codewords, ranges and statistics that it computed with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import cast

import numpy as np
import numpy.typing as npt
import torch
from torch import fx, nn
from torch.nn.utils import parametrize

from kqgen.calibrate import Ranges, TensorRange, range_roots
from kqgen.errors import InternalError
from kqgen.intgraph import IntCodebook, IntGraph, KqWeights, UniformWeights, effective_kernels, frozen
from kqgen.ir import Conv2d, Float32, Graph, Node, frozen_array
from kqgen.kq_layers import LayerWeights, Quantised
from kqgen.kq_runs import cut
from kqgen.kq_uniform import scale_floor, uniform, usable_scale
from kqgen.lower import lower
from kqgen.options import index_bits
from kqgen.train_blueprint import Blueprint, with_state
from kqgen.train_graph import QUANT_PREFIX
from kqgen.train_modules import FakeQuant, IndexedWeight, LearnedCodebook, UniformWeight


@dataclass(frozen=True, slots=True, eq=False)
class Trained:
    """What training made of a network.

    Attributes:
        integers: what the C computes.
        codewords: (codebook name, values before rounding to integers, in steps: (stored codewords, k_h, k_w) float32).
        warnings: sentences for the user.
    """

    integers: IntGraph
    codewords: tuple[tuple[str, Float32], ...]
    warnings: tuple[str, ...]


@dataclass(frozen=True, slots=True, eq=False)
class _Book:
    """A codebook as stored: codewords in use only, and the number each of the old ones has now (-1: dropped)."""

    stored: IntCodebook
    numbers: npt.NDArray[np.int64]
    real: Float32


def weight_of(net: nn.Module, parameter: str) -> tuple[IndexedWeight | UniformWeight, nn.Parameter]:
    """The parametrisation of a weight and its latent values."""
    path, _, leaf = parameter.rpartition(".")
    holder = net.get_submodule(path)
    entry = cast(nn.ModuleDict, holder.parametrizations)[leaf]
    assert isinstance(entry, parametrize.ParametrizationList)
    made, latent = entry[0], entry.original
    if not isinstance(made, (IndexedWeight, UniformWeight)) or not isinstance(latent, nn.Parameter):
        raise InternalError(f"{parameter} is parametrised by {type(made).__name__}")
    return made, latent


def effective_state(net: fx.GraphModule) -> dict[str, torch.Tensor]:
    """Every tensor of the program under its own name, weights as the network computes with them, on the CPU."""
    out: dict[str, torch.Tensor] = {}
    for path, module in net.named_modules():
        if isinstance(module, (parametrize.ParametrizationList, LearnedCodebook, IndexedWeight, UniformWeight, FakeQuant)):
            continue
        prefix = f"{path}." if path else ""
        for name, tensor in (*module._parameters.items(), *module._buffers.items()):
            if tensor is not None:
                out[f"{prefix}{name}"] = tensor.detach().cpu()
        if parametrize.is_parametrized(module):
            for name in module.parametrizations:
                with torch.no_grad():
                    out[f"{prefix}{name}"] = getattr(module, str(name)).detach().cpu()
    return out


def to_integers(net: fx.GraphModule, blueprint: Blueprint, names: Mapping[str, str], reasons: Mapping[str, str]) -> Trained:
    """The integer graph of a network in training.

    Args:
        names: weight parameter -> name of its codebook, for indexed layers.
        reasons: weight parameter -> why it is stored so.

    Raises:
        UnsupportedError: the network holds operators that do not compile, or values that do not fit (see `lower`).
    """
    graph = with_state(blueprint, effective_state(net))
    ranges = _ranges(net, blueprint, graph)
    graph = replace(graph, nodes=tuple(_cut(net, node, names) if isinstance(node, Conv2d) else node for node in graph))
    convs = [node for node in graph if isinstance(node, Conv2d) and node.name not in blueprint.derived]
    books = _books(net, convs, names)
    layers: list[tuple[str, LayerWeights]] = []
    warnings: list[str] = []
    for conv in convs:
        layer, flat = _layer(net, conv, books.get(names.get(conv.parameter, "")), ranges, reasons)
        layers.append((conv.name, layer))
        if flat:
            warnings.append(
                f"{conv.path or conv.name}: the batch norm of {flat} output {'channel' if flat == 1 else 'channels'} changed its sign, "
                f"which a codebook without signs cannot follow; the integers give these channels a constant."
            )
    layers += [(name, _derived(graph.node(name), ranges)) for name in blueprint.derived]
    quantised = Quantised(tuple(layers), tuple(book.stored for book in books.values()))
    integers = lower(graph, ranges, quantised, "kq" if books else "int8")
    real = tuple((name, book.real) for name, book in books.items())
    return Trained(integers, real, tuple(warnings))


def _cut(net: nn.Module, conv: Conv2d, names: Mapping[str, str]) -> Conv2d:
    """The layer in the runs that training indexed."""
    if conv.parameter not in names:
        return conv
    made, _ = weight_of(net, conv.parameter)
    return cut(conv, made.layout.run) if isinstance(made, IndexedWeight) else conv


def _derived(node: Node, ranges: Ranges) -> LayerWeights:
    """A layer that training left as it was, in 8 bits."""
    assert isinstance(node, Conv2d)
    flat = node.weight.reshape(len(node.weight), -1).astype(np.float64)
    whole, scale = uniform(flat, None, 8, scale_floor(node.bias, ranges[node.inputs[0]].scale))
    values = frozen(whole.reshape(node.weight.shape).transpose(0, 2, 3, 1), np.int8)
    return LayerWeights(UniformWeights(8, values), frozen_array(scale), node.bias, "8 bits: its weight is a parameter turned or split")


def _ranges(net: fx.GraphModule, blueprint: Blueprint, graph: Graph) -> Ranges:
    roots = range_roots(graph)
    entries: dict[str, TensorRange] = {}
    for point in blueprint.points:
        quant = getattr(net, f"{QUANT_PREFIX}{point.value}")
        entries[point.tensor] = TensorRange(point.tensor, float(quant.scale), int(quant.zero_point))
    for node in graph:
        if roots[node.name] == node.name and node.name not in entries:
            entries[node.name] = _joint_range(node, graph, roots, entries)
    return Ranges(tuple(TensorRange(node.name, entries[roots[node.name]].scale, entries[roots[node.name]].zero_point) for node in graph))


def _joint_range(node: Node, graph: Graph, roots: Mapping[str, str], entries: Mapping[str, TensorRange]) -> TensorRange:
    """The range of values that come from several tensors: from the least that one of these can hold to the largest."""
    parts = [
        entries[root] if root in entries else _joint_range(graph.node(root), graph, roots, entries)
        for root in dict.fromkeys(roots[name] for name in node.inputs)
    ]
    quant = FakeQuant()
    lows, highs = ([(end - part.zero_point) * part.scale for part in parts] for end in (-128, 127))
    quant.set_range(min(lows), max(highs))
    return TensorRange(node.name, float(quant.scale), int(quant.zero_point))


def _books(net: fx.GraphModule, convs: list[Conv2d], names: Mapping[str, str]) -> dict[str, _Book]:
    """Stored codebooks by name, in order of first use."""
    members: dict[str, list[tuple[Conv2d, IndexedWeight]]] = {}
    for conv in convs:
        made, _ = weight_of(net, conv.parameter)
        if isinstance(made, IndexedWeight):
            members.setdefault(names[conv.parameter], []).append((conv, made))
    out: dict[str, _Book] = {}
    for name, layers in members.items():
        book = layers[0][1].book
        integers = book.integers().detach().cpu().numpy()
        real = book.values.detach().cpu().numpy()
        if book.additive:
            used = np.arange(book.codewords)
        else:
            used = np.unique(np.concatenate([np.unique(made.codes.cpu().numpy()) for _, made in layers]))
        numbers = np.full(book.codewords, -1)
        numbers[used] = np.arange(len(used))
        rows = np.concatenate([used, book.codewords + used]) if book.additive else used
        shape = (-1, *layers[0][0].kernel)
        stored = IntCodebook(name, frozen(integers[rows].reshape(shape), np.int8), book.sign, book.additive)
        out[name] = _Book(stored, numbers, frozen_array(real[rows].reshape(shape)))
    return out


def _layer(
    net: fx.GraphModule, conv: Conv2d, book: _Book | None, ranges: Ranges, reasons: Mapping[str, str]
) -> tuple[LayerWeights, int]:
    """A layer's stored weights, and how many output channels had to be made constant."""
    made, latent = weight_of(net, conv.parameter)
    floor = scale_floor(conv.bias, ranges[conv.inputs[0]].scale)
    reason = reasons[conv.parameter]
    if isinstance(made, UniformWeight):
        whole = made.integers(latent).detach().cpu().numpy().reshape(conv.weight.shape)
        scale = _scale(conv, whole)
        whole = np.where(scale < 0, -1, 1)[:, None, None, None] * whole
        values = frozen(whole.transpose(0, 2, 3, 1), np.int8)
        weights = UniformWeights(made.bits, values)
        return LayerWeights(weights, frozen_array(usable_scale(np.abs(scale), floor)), conv.bias, reason), 0
    assert book is not None
    indexed = _indexed(made, book, (conv.weight.shape[0], conv.weight.shape[1]))
    scale = _scale(conv, effective_kernels(indexed, book.stored).transpose(0, 3, 1, 2).astype(np.float64))
    flat = 0
    if book.stored.sign:
        turned = indexed.negative ^ (scale < 0)[:, None]
        indexed = KqWeights(indexed.codebook, indexed.index_bits, indexed.codes, frozen(turned, np.bool_))
        scale = np.abs(scale)
    else:
        flat = int((scale < 0).sum())
    return LayerWeights(indexed, frozen_array(usable_scale(np.maximum(scale, 0), floor)), conv.bias, reason), flat


def _indexed(made: IndexedWeight, book: _Book, shape: tuple[int, int]) -> KqWeights:
    """Codes renumbered to the stored codewords, in indices as narrow as they allow."""
    codes = made.codes.cpu().numpy()
    negative = frozen(made.signs.cpu().numpy().reshape(shape) < 0, np.bool_)
    sign = book.stored.sign
    if book.stored.additive:
        count = made.count or made.book.codewords
        width = index_bits(count, sign, additive=True)
        stage_bits = (width - int(sign)) // 2
        codes = (codes % count) | (codes // count) << stage_bits
    else:
        codes = book.numbers[codes]
        width = index_bits(int(codes.max()) + 1, sign)
    return KqWeights(book.stored.name, width, frozen(codes.reshape(shape), np.int16), negative)


def _scale(conv: Conv2d, whole: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """What one integer is worth in each output channel of the folded weight, (c_out,), signed; 0 where all integers are."""
    folded = conv.weight.reshape(len(conv.weight), -1).astype(np.float64)
    flat = whole.reshape(len(whole), -1).astype(np.float64)
    power = (flat * flat).sum(axis=1)
    return np.where(power > 0, (folded * flat).sum(axis=1) / np.where(power > 0, power, 1.0), 0.0)
