"""The options of the command line that say how weights are stored, read into one argument."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import click

from kqgen.errors import InputError
from kqgen.goal import Goal, goal_or_options, refuse_codewords
from kqgen.options import Codebook, Compression, Scope, Weights
from kqgen.plan import FORMS, OPTIMISE, Form, Optimise, Planning

F = TypeVar("F", bound=Callable[..., Any])

DEFAULT_CODEWORDS = 256
CHOICES = (
    "target_bits", "target_bytes", "weights", "codebook", "codewords", "sign", "additive", "widths", "groups", "runs", "keep", "seed",
    "reconstruct",
)  # fmt: skip
"""Names of the options below."""

_OPTIONS = (
    click.option(
        "--target-bits", type=float, metavar="BITS",
        help="Choose codewords, widths and scope for so many bits per weight of the convolutions, codebooks counted.",
    ),
    click.option(
        "--target-bytes", type=int, metavar="N", help="The same for so many bytes of indices, codebooks and weights of all layers."
    ),
    click.option(
        "--weights", type=click.Choice(["kq", "int8"]), default="kq", show_default=True, help="int8 turns Kernel Quantization off."
    ),
    click.option(
        "--codebook", type=click.Choice(["layer", "network"]), show_default="network, or chosen for a target",
        help="One codebook a layer, or one for all kernels of a shape.",
    ),
    click.option(
        "--codewords", type=int, show_default=str(DEFAULT_CODEWORDS), metavar="K", help="Stored codewords of a codebook."
    ),
    click.option("--sign/--no-sign", default=True, show_default=True, help="Let each codeword also serve as its negative."),
    click.option("--additive", is_flag=True, help="Make each kernel the sum of two codewords, of K each."),
    click.option(
        "--width", "widths", multiple=True, metavar="LAYER=BITS",
        help="Bits of this layer's indices, its sign included: it then names the first codewords only; repeatable.",
    ),
    click.option(
        "--group", "groups", multiple=True, metavar="LAYER,LAYER,...", help="Let these layers share a codebook of their own; repeatable."
    ),
    click.option(
        "--run", "runs", multiple=True, metavar="LAYER=G",
        help="Index this 1x1 or fully connected layer in runs of 2, 4, 8 or 16 input channels, 0 leaves it uniform; repeatable.",
    ),
    click.option("--keep", multiple=True, metavar="LAYER=BITS", help="Store this layer uniformly in 8, 6 or 4 bits; repeatable."),
    click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, metavar="N", help="Of the clustering."),
    click.option(
        "--reconstruct", type=click.IntRange(min=0), default=0, show_default=True, metavar="STEPS",
        help="Refine all layers together on the calibration images; 600 steps take minutes and want 1000 images or more.",
    ),
)  # fmt: skip


def compression_options(function: F) -> F:
    """Gives a command the options of compression; it receives them as one argument, `wish`: a `Goal` or a `Compression`."""

    @functools.wraps(function)
    def command(
        *arguments: Any, target_bits: float | None, target_bytes: int | None, weights: Weights, codebook: Scope | None,
        codewords: int | None, sign: bool, additive: bool, widths: tuple[str, ...], groups: tuple[str, ...], runs: tuple[str, ...],
        keep: tuple[str, ...], seed: int, reconstruct: int, **others: Any,
    ) -> Any:  # fmt: skip
        refuse_codewords(target_bits, target_bytes, codewords)
        targeted = target_bits is not None or target_bytes is not None
        wish: Goal | Compression = goal_or_options(
            weights,
            Codebook(codebook or "network", codewords if codewords is not None else 1 if targeted else DEFAULT_CODEWORDS, sign, additive),
            keep=[_layer_bits("--keep", entry, "BITS 8, 6 or 4", "stem=8") for entry in keep],
            widths=[_layer_bits("--width", entry, "BITS of an index, its sign included", "layer1=7") for entry in widths],
            groups=[_group(entry) for entry in groups],
            runs=[_layer_bits("--run", entry, "G input channels", "layer1=4") for entry in runs],
            seed=seed, target_bits=target_bits, target_bytes=target_bytes,
            scopes=(codebook,) if codebook else ("network", "layer"), reconstruct=reconstruct,
        )  # fmt: skip
        return function(*arguments, wish=wish, **others)

    out: Any = command
    for option in reversed(_OPTIONS):
        out = option(out)
    wrapped: F = out
    return wrapped


def planning_options(function: F) -> F:
    """Gives a command the options of planning; it receives them as one argument, `planning`."""

    @functools.wraps(function)
    def command(*arguments: Any, optimise: Optimise, forms: tuple[str, ...], keep_dead: bool, **others: Any) -> Any:
        return function(*arguments, planning=Planning(optimise, tuple(_layer_form(entry) for entry in forms), keep_dead), **others)

    out: Any = command
    for option in reversed(_PLANNING):
        out = option(out)
    wrapped: F = out
    return wrapped


_PLANNING = (
    click.option(
        "--optimise", type=click.Choice(OPTIMISE), default="balanced", show_default=True,
        help="balanced: fast within an arena little larger than the maps; speed: as fast as the board's RAM allows; size: least code; "
        "ram: least RAM.",
    ),
    click.option(
        "--form", "forms", multiple=True, metavar="LAYER=FORM", help=f"Run this layer in this form: {', '.join(FORMS)}; repeatable."
    ),
    click.option("--keep-dead", is_flag=True, help="Keep channels and layers that no output depends on."),
)  # fmt: skip


def _layer_form(entry: str) -> tuple[str, Form]:
    layer, _, form = entry.rpartition("=")
    found = next((each for each in FORMS if each == form), None)
    if not layer or found is None:
        raise InputError(f"cannot read --form {entry}", found=entry, wanted=f"LAYER=FORM, one of {', '.join(FORMS)}",
                         do="for example --form layer1=reuse")  # fmt: skip
    return layer, found


def _layer_bits(option: str, entry: str, bits: str, example: str) -> tuple[str, int]:
    layer, _, width = entry.rpartition("=")
    if not layer or not (width.isascii() and width.isdecimal()):
        wanted = f"LAYER={bits.partition(' ')[0]}, {bits}"
        raise InputError(f"cannot read {option} {entry}", found=entry, wanted=wanted, do=f"for example {option} {example}")
    return layer, int(width)


def _group(entry: str) -> tuple[str, ...]:
    layers = tuple(layer.strip() for layer in entry.split(","))
    if len(layers) < 2 or not all(layers):
        raise InputError(
            f"cannot read --group {entry}", found=entry, wanted="two layers or more, commas between", do="for example --group layer1,layer2"
        )
    return layers
