"""What Kernel Quantization hands on, and which layers it indexes: stored weights per layer, and the choice with its reason."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from kqgen.errors import InputError
from kqgen.intgraph import Int8, IntCodebook, KqWeights, UniformWeights, effective_kernels, frozen
from kqgen.ir import Conv2d, Float32, Graph
from kqgen.kq_runs import cut, inputs_of, lengths, natural_length, why_no_runs
from kqgen.options import Compression, index_bits

_FIRST_LAYER_SHARE, _LAST_LAYER_SHARE = 0.02, 0.03
"""A layer that reads the network's input stays at 8 bits when indexing it would save less than this part of all weights; so does one
without kernels that makes an output."""


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


@dataclass(frozen=True, slots=True, eq=False)
class Quantised:
    """The stored weights of a network.

    Attributes:
        layers: (node name, weights) of every Conv2d, in execution order; those of runs as `ir.Conv2d.run` has them.
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
        run: length of the runs that are indexed; 1 where kernels are.
    """

    layer: str
    codebook: str
    bits: int
    reason: str
    index_bits: int = 0
    run: int = 1


def convolutions(graph: Graph) -> tuple[Conv2d, ...]:
    """The layers with weights, in execution order."""
    return tuple(node for node in graph if isinstance(node, Conv2d))


def codebook_name(node: Conv2d, compression: Compression) -> str:
    """The C identifier of the codebook that serves `node` if it is indexed."""
    k_h, k_w = node.kernel
    for number, group in enumerate(compression.groups, 1):
        if node.name in group or (node.path and node.path in group):
            return f"group_{number}_codebook"
    if node.run > 1 and compression.codebook.scope == "network":
        return f"codebook_run{node.run}"
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

    Indexed are kernels, and runs of input channels where a layer has no kernels (1x1, fully connected), unless the layer is named in
    `keep` or so small that 8-bit weights serve better; a layer with a width or a run length of its own is never too small.

    Raises:
        InputError: `keep`, `widths`, `groups` or `runs` names no layer, one layer twice, or a layer for which it cannot hold.
    """
    kept = _named(graph, compression.keep, "keep", "at {} bits")
    widths = _named(graph, compression.widths, "width", "with indices of {} bits")
    runs = _named(graph, compression.runs, "run", "in runs of {} input channels")
    nodes = tuple(_with_kernels(node, compression, kept, widths, runs) for node in convolutions(graph))
    _check_groups(nodes, compression)
    plain = {node.name: _plain_reason(node, compression, runs.get(node.name)) for node in nodes}
    candidates = [node for node in nodes if node.name not in kept and not plain[node.name]]
    total = sum(node.weight.size for node in nodes)
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
            small = "" if width or node.name in runs else _too_small(node, candidates, total, graph, compression)
            name = codebook_name(node, compression)
            how = f"runs of {node.run} input channels indexed" if node.run > 1 else "indexed"
            chosen = Choice(node.name, name, 8, f"{how} into {name}", width, node.run)
            out.append(Choice(node.name, "", 8, small) if small else chosen)
    return tuple(out)


def with_runs(graph: Graph, compression: Compression) -> Graph:
    """The graph with every layer cut into runs whose runs will be indexed (`ir.Conv2d.run`); cut layers stay as they are."""
    lengths_of = {choice.layer: choice.run for choice in choose(graph, compression) if choice.codebook}
    nodes = tuple(cut(node, lengths_of.get(node.name, 1)) if isinstance(node, Conv2d) else node for node in graph)
    return replace(graph, nodes=nodes)


def _with_kernels(
    node: Conv2d, compression: Compression, kept: Mapping[str, int], widths: Mapping[str, int], runs: Mapping[str, int]
) -> Conv2d:
    """The layer cut into runs, where it may be indexed that way; else as it is."""
    if compression.weights == "int8" or node.name in kept:
        return node
    asked = runs.get(node.name)
    if asked and node.run == 1 and asked not in lengths(node):
        found = why_no_runs(node) if node.dense or node.kernel == (1, 1) else f"a kernel of {node.kernel[0]}x{node.kernel[1]}"
        raise InputError(
            f"layer {node.path or node.name} cannot be indexed in runs of {asked} input channels",
            found=found or f"{inputs_of(node)} inputs",
            wanted="a 1x1 or fully connected layer, and a length that divides its inputs",
            do=f"drop the option, or write --run {node.path or node.name}={lengths(node)[-1] if lengths(node) else 0}",
        )
    if asked is None:
        asked = natural_length(node, widths.get(node.name, compression.codebook.index_bits))
    return cut(node, asked or 1)


def _named(graph: Graph, wishes: Iterable[tuple[str, int]], option: str, phrase: str) -> dict[str, int]:
    """Node name -> number, of (layer, bits) pairs that name layers by path or by node name."""
    found: dict[str, int] = {}
    for wanted, bits in wishes:
        named = [node for node in convolutions(graph) if wanted in (node.path, node.name) and wanted]
        if not named:
            raise InputError(
                f"no layer {wanted!r} to {'keep' if option == 'keep' else 'store'} {phrase.format(bits)}",
                found=repr(wanted),
                wanted=_layers(convolutions(graph)),
                do=f"write --{option} with one of these names and ={bits}",
            )
        for node in named:
            if found.get(node.name, bits) != bits:
                what = {"keep": "kept at two widths", "width": "stored at two widths"}.get(option, "cut into runs of two lengths")
                raise InputError(
                    f"layer {wanted} is {what}",
                    found=f"{found[node.name]} and {bits}{'' if option == 'run' else ' bits'}",
                    wanted="one number a layer" if option == "run" else "one width a layer",
                    do=f"drop one of the two --{option} options",
                )
            found[node.name] = bits
    return found


def _layers(nodes: tuple[Conv2d, ...]) -> str:
    layers = ", ".join(node.path or node.name for node in nodes)
    return f"one of {layers}" if layers else "a layer with weights; this network has none"


def _check_groups(nodes: tuple[Conv2d, ...], compression: Compression) -> None:
    """Every member is a layer, stands in one group, and has the kernel of the others."""
    placed: dict[str, int] = {}
    for number, group in enumerate(compression.groups):
        kernels: dict[tuple[int, int, int], str] = {}
        for wanted in group:
            named = [node for node in nodes if wanted in (node.path, node.name) and wanted]
            if not named:
                raise InputError(f"no layer {wanted!r} to group", found=repr(wanted), wanted=_layers(nodes))
            for node in named:
                if placed.setdefault(node.name, number) != number:
                    raise InputError(f"layer {wanted} stands in two groups", wanted="one group a layer", do="drop it from one of them")
                kernels.setdefault((*node.kernel, node.run), wanted)
        if len(kernels) > 1:
            (one, first), (two, second) = list(kernels.items())[:2]
            shapes = [f"runs of {run}" if run > 1 else f"kernels of {k_h}x{k_w}" for k_h, k_w, run in (one, two)]
            raise InputError(
                f"layers {first} and {second} cannot share a codebook",
                found=" and ".join(shapes),
                wanted="one kernel shape in a group",
                do="put them into groups of their own",
            )


def _plain_reason(node: Conv2d, compression: Compression, asked: int | None) -> str:
    if compression.weights == "int8":
        return "8 bits for every weight as asked"
    if node.run > 1 or (node.kernel != (1, 1) and not node.dense):
        return ""
    kind = "fully connected" if node.dense else "1x1 kernel"
    if asked == 0:
        return f"{kind}, uniform as asked"
    why = why_no_runs(node)
    return f"{kind}: {why or 'its indices have too few bits for runs'}"


def _too_small(node: Conv2d, candidates: list[Conv2d], total: int, graph: Graph, compression: Compression) -> str:
    """Why indexing this layer does not pay, or "".

    `candidates` are all layers that might be indexed, `total` the weights of the network. Runs and the kernels of depthwise layers must
    do better than 4 bits a weight: up to there plain weights of 4 or 6 bits serve as well.
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
    bits = 4 if node.run > 1 or node.depthwise else 8
    saved = plain_bytes - index_bytes - share_bytes
    unit = f"runs of {node.run}" if node.run > 1 else "kernels"
    if index_bytes + share_bytes >= plain_bytes * bits // 8:
        return (
            f"only {kernels} {unit}: {index_bytes} bytes of indices and {share_bytes} of codebook "
            f"are no less than {plain_bytes * bits // 8} at {bits} bits"
        )
    part = f"would save {saved} bytes, {100 * saved / total:.1f} % of the network's weights"
    if any(each.name in node.inputs for each in graph.inputs) and saved < _FIRST_LAYER_SHARE * total:
        return f"first layer: indexing its {kernels} {unit} {part}"
    if node.run > 1 and node.name in graph.outputs and saved < _LAST_LAYER_SHARE * total:
        return f"last layer: indexing its {kernels} {unit} {part}"
    return ""
