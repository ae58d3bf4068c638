"""What Kernel Quantization hands on, and which layers it indexes: stored weights per layer, and the choice with its reason."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from kqgen.errors import InputError
from kqgen.intgraph import Int8, IntCodebook, KqWeights, UniformWeights, effective_kernels, frozen
from kqgen.ir import Conv2d, Float32, Graph
from kqgen.options import Compression, index_bits

_FIRST_LAYER_SHARE = 0.02
"""A layer that reads the network's input stays at 8 bits when indexing it would save less than this part of all weights."""


@dataclass(frozen=True, slots=True, eq=False)
class LayerWeights:
    """The stored weights of one Conv2d.

    Attributes:
        weights: how they are stored; uniform ones in the float weight's own kernel, (c_out, k_h, k_w, c_in), dense layers too.
        weight_scale: (c_out,) float32, > 0, real weight = weight_scale * stored integer.
        bias: (c_out,) float32, after bias correction.
        reason: why the weights are stored so, in words.
    """

    weights: UniformWeights | KqWeights
    weight_scale: Float32
    bias: Float32
    reason: str

    def integers(self, codebooks: Mapping[str, IntCodebook]) -> Int8:
        """The effective integer weights, (c_out, k_h, k_w, c_in) int8, codebook looked up and sign applied."""
        if isinstance(self.weights, UniformWeights):
            return self.weights.values
        return effective_kernels(self.weights, codebooks[self.weights.codebook])

    def dense_weights(self) -> UniformWeights:
        """A fully connected layer's weights as the 1x1 convolution of SPEC 4.5: values (c_out, 1, 1, k_h * k_w * c_in).

        Raises:
            TypeError: the weights are indexed.
        """
        if not isinstance(self.weights, UniformWeights):
            raise TypeError("a fully connected layer has no kernels to index")
        values = self.weights.values
        return UniformWeights(self.weights.bits, frozen(values.reshape(values.shape[0], 1, 1, -1), np.int8))


@dataclass(frozen=True, slots=True, eq=False)
class Quantised:
    """The stored weights of a network.

    Attributes:
        layers: (node name, weights) of every Conv2d, in execution order.
        codebooks: in order of first use.
        warnings: sentences for the user.
    """

    layers: tuple[tuple[str, LayerWeights], ...]
    codebooks: tuple[IntCodebook, ...]
    warnings: tuple[str, ...] = ()

    def layer(self, name: str) -> LayerWeights:
        """The weights of the Conv2d called `name`; KeyError if there is none."""
        for known, layer in self.layers:
            if known == name:
                return layer
        raise KeyError(name)

    def real_weights(self, name: str) -> Float32:
        """The weights of Conv2d `name` as the integers mean them, (c_out, c_in, k_h, k_w) float32."""
        layer = self.layer(name)
        integers = layer.integers({codebook.name: codebook for codebook in self.codebooks}).astype(np.float32)
        return frozen(layer.weight_scale[:, None, None, None] * integers.transpose(0, 3, 1, 2), np.float32)


@dataclass(frozen=True, slots=True)
class Choice:
    """How one layer will be stored.

    Attributes:
        layer: node name.
        codebook: name of its codebook, or "" when the weights are uniform.
        bits: of uniform weights; 8 for an indexed layer.
        reason: in words.
        index_bits: the width asked for this layer's indices, 0 for the codebook's own.
    """

    layer: str
    codebook: str
    bits: int
    reason: str
    index_bits: int = 0


def convolutions(graph: Graph) -> tuple[Conv2d, ...]:
    """The layers with weights, in execution order."""
    return tuple(node for node in graph if isinstance(node, Conv2d))


def codebook_name(node: Conv2d, compression: Compression) -> str:
    """The C identifier of the codebook that serves `node` if it is indexed."""
    k_h, k_w = node.kernel
    for number, group in enumerate(compression.groups, 1):
        if node.name in group or (node.path and node.path in group):
            return f"group_{number}_codebook"
    return f"codebook_{k_h}x{k_w}" if compression.codebook.scope == "network" else f"{node.name}_codebook"


def codebook_members(graph: Graph, choices: Iterable[Choice]) -> dict[str, tuple[Conv2d, ...]]:
    """The layers of each codebook, codebooks in order of first use."""
    nodes = {node.name: node for node in convolutions(graph)}
    out: dict[str, tuple[Conv2d, ...]] = {}
    for choice in choices:
        if choice.codebook:
            out[choice.codebook] = (*out.get(choice.codebook, ()), nodes[choice.layer])
    return out


def distinct_kernels(weight: npt.NDArray[np.float32], sign: bool) -> npt.NDArray[np.float32]:
    """The kernels of (c_out, c_in, k_h, k_w) that differ after each output channel is scaled to the same size.

    Two kernels that are each other's negative count as one when `sign`. Returns (n, k_h * k_w) float32, sorted; the scale is
    the root mean square, and values are rounded to 2**-16 so that the scale's own rounding tells no two apart.
    """
    flat = weight.reshape(weight.shape[0], -1).astype(np.float64)
    size = np.sqrt((flat * flat).mean(axis=1))
    scaled = flat / np.where(size > 0, size, 1.0)[:, None]
    kernels = np.rint(scaled.reshape(-1, weight.shape[2] * weight.shape[3]) * 2**16) / 2**16 + 0.0
    if sign:
        first = np.argmax(kernels != 0, axis=1)
        lead = kernels[np.arange(len(kernels)), first]
        kernels = np.where(lead[:, None] < 0, -kernels, kernels) + 0.0
    return np.unique(kernels.astype(np.float32), axis=0)


def choose(graph: Graph, compression: Compression) -> tuple[Choice, ...]:
    """How each Conv2d will be stored, in execution order.

    Indexed are layers with kernels larger than 1x1 that are not fully connected, not named in `keep`, and not so small that
    8-bit weights serve better; a layer with a width of its own is never too small.

    Raises:
        InputError: `keep`, `widths` or `groups` names no layer, one layer twice, or a layer for which it cannot hold.
    """
    kept = _named(graph, compression.keep, "keep", "at {} bits")
    widths = _named(graph, compression.widths, "width", "with indices of {} bits")
    _check_groups(graph, compression)
    nodes = convolutions(graph)
    plain = {node.name: _plain_reason(node, compression) for node in nodes}
    candidates = [node for node in nodes if node.name not in kept and not plain[node.name]]
    total = sum(node.weight.size for node in nodes)
    inputs = {node.name for node in graph.inputs}
    for node in nodes:
        if compression.weights == "kq" and node.name in widths and node not in candidates:
            raise InputError(
                f"layer {node.path or node.name} has no indices that could have {widths[node.name]} bits",
                found=f"kept at {kept[node.name]} bits" if node.name in kept else plain[node.name],
                wanted="a width for a layer that is indexed",
                do="drop its --width",
            )
    out: list[Choice] = []
    for node in nodes:
        if node.name in kept:
            out.append(Choice(node.name, "", kept[node.name], f"kept at {kept[node.name]} bits as asked"))
        elif plain[node.name]:
            out.append(Choice(node.name, "", 8, plain[node.name]))
        else:
            width = widths.get(node.name, 0)
            small = "" if width else _too_small(node, candidates, total, bool(inputs & set(node.inputs)), compression)
            name = codebook_name(node, compression)
            out.append(Choice(node.name, "", 8, small) if small else Choice(node.name, name, 8, f"indexed into {name}", width))
    return tuple(out)


def _named(graph: Graph, wishes: Iterable[tuple[str, int]], option: str, phrase: str) -> dict[str, int]:
    """Node name -> bits, of (layer, bits) pairs that name layers by path or by node name."""
    found: dict[str, int] = {}
    for wanted, bits in wishes:
        named = [node for node in convolutions(graph) if wanted in (node.path, node.name) and wanted]
        if not named:
            raise InputError(
                f"no layer {wanted!r} to {'keep' if option == 'keep' else 'store'} {phrase.format(bits)}",
                found=repr(wanted),
                wanted=_layers(graph),
                do=f"write --{option} with one of these names and ={bits}",
            )
        for node in named:
            if found.get(node.name, bits) != bits:
                raise InputError(
                    f"layer {wanted} is {'kept' if option == 'keep' else 'stored'} at two widths",
                    found=f"{found[node.name]} and {bits} bits",
                    wanted="one width a layer",
                    do=f"drop one of the two --{option} options",
                )
            found[node.name] = bits
    return found


def _layers(graph: Graph) -> str:
    layers = ", ".join(node.path or node.name for node in convolutions(graph))
    return f"one of {layers}" if layers else "a layer with weights; this network has none"


def _check_groups(graph: Graph, compression: Compression) -> None:
    """Every member is a layer, stands in one group, and has the kernel of the others."""
    placed: dict[str, int] = {}
    for number, group in enumerate(compression.groups):
        kernels: dict[tuple[int, int], str] = {}
        for wanted in group:
            named = [node for node in convolutions(graph) if wanted in (node.path, node.name) and wanted]
            if not named:
                raise InputError(f"no layer {wanted!r} to group", found=repr(wanted), wanted=_layers(graph))
            for node in named:
                if placed.setdefault(node.name, number) != number:
                    raise InputError(f"layer {wanted} stands in two groups", wanted="one group a layer", do="drop it from one of them")
                kernels.setdefault(node.kernel, wanted)
        if len(kernels) > 1:
            (one, first), (two, second) = list(kernels.items())[:2]
            raise InputError(
                f"layers {first} and {second} cannot share a codebook",
                found=f"kernels {one[0]}x{one[1]} and {two[0]}x{two[1]}",
                wanted="one kernel shape in a group",
                do="put them into groups of their own",
            )


def _plain_reason(node: Conv2d, compression: Compression) -> str:
    if compression.weights == "int8":
        return "8 bits for every weight as asked"
    if node.dense:
        return "fully connected"
    return "1x1 kernel" if node.kernel == (1, 1) else ""


def _too_small(node: Conv2d, candidates: list[Conv2d], total: int, reads_input: bool, compression: Compression) -> str:
    """Why indexing this layer does not pay, or "".

    `candidates` are all layers that might be indexed, `total` the weights of the network.
    """
    name = codebook_name(node, compression)
    sharing = [other for other in candidates if codebook_name(other, compression) == name]
    kernels = node.weight.shape[0] * node.weight.shape[1]
    all_kernels = sum(other.weight.shape[0] * other.weight.shape[1] for other in sharing)
    book = compression.codebook
    codewords = min(book.codewords, all_kernels)
    plain_bytes = node.weight.size
    index_bytes = -(-kernels * index_bits(codewords, book.sign, book.additive) // 8)
    share_bytes = -(-codewords * (2 if book.additive else 1) * (plain_bytes // kernels) * 6 * kernels // (8 * all_kernels))
    saved = plain_bytes - index_bytes - share_bytes
    if saved <= 0:
        return (
            f"only {kernels} kernels: {index_bytes} bytes of indices and {share_bytes} of codebook "
            f"are no less than {plain_bytes} at 8 bits"
        )
    if reads_input and saved < _FIRST_LAYER_SHARE * total:
        return f"first layer: indexing its {kernels} kernels would save {saved} bytes, {100 * saved / total:.1f} % of the network's weights"
    return ""
