"""The commands that look at a compressed network: where its accuracy went, and what its codebooks look like."""

from __future__ import annotations

import json
from pathlib import Path

import click

from kqgen import console
from kqgen.errors import InputError
from kqgen.report import document


@click.command(short_help="Tell which step and which layer cost what accuracy.")
@click.argument("network", type=click.Path(path_type=Path))
@click.option(
    "--inputs", required=True, type=click.Path(path_type=Path), metavar="NPZ", help="Inputs, float32 (N, C, H, W), and their labels (N,)."
)
@click.option("--model", type=click.Path(path_type=Path), metavar="FILE",
    help="The float model, .pt2, .onnx or .tflite (default: the one in the folder).",
)  # fmt: skip
@click.option("--limit", type=click.IntRange(min=1), metavar="N", help="Use only the first N inputs.")
@click.option(
    "--json", "json_target", type=click.Choice(["-"]), metavar="-", help="Print the JSON instead of writing it into the folder."
)
def fidelity(network: Path, inputs: Path, model: Path | None, limit: int | None, json_target: str | None) -> None:
    """Run a network after each step from float model to C, and layer by layer, to see where accuracy is lost.

    \b
    NETWORK is the folder that kqgen compile wrote (the result goes into its fidelity.json),
    or a .kq.safetensors or .kqgen.safetensors file, which needs --model.

    \b
    numpy.savez("test.npz", images=images, labels=labels)
    kqgen fidelity firmware --inputs test.npz
    """
    from kqgen.assess import assess  # noqa: PLC0415 - torch takes seconds to load
    from kqgen.firmware import open_network  # noqa: PLC0415

    opened = open_network(network)
    with console.progress_bar(console.make_console(stderr=True), "reading the model") as tell:
        result = assess(opened, inputs, model=model, limit=limit, tell=tell)
    if json_target is not None:
        click.echo(json.dumps(document(result), indent=2, allow_nan=False))
    elif opened.firmware is not None:
        opened.firmware.write_json("fidelity.json", document(result))
    people = console.make_console(stderr=json_target is not None)
    console.show_fidelity(people, result)


@click.command(short_help="Draw the codebooks: codewords as tiles, and their use by layer.")
@click.argument("network", type=click.Path(path_type=Path))
@click.option("--out", required=True, type=click.Path(path_type=Path, dir_okay=False), metavar="SVG", help="File to write, .svg.")
def picture(network: Path, out: Path) -> None:
    """Draw the learned codebooks as SVG: every codeword a tile, most used first, and how often each layer uses which.

    NETWORK is the folder that kqgen compile wrote, or a .kq.safetensors or .kqgen.safetensors file.

    \b
    kqgen picture firmware --out codebook.svg
    """
    if out.suffix.lower() != ".svg":
        raise InputError(f"--out {out} is no .svg", found=out.suffix or "no suffix", wanted=".svg", do=f"--out {out.with_suffix('.svg')}")
    from kqgen.firmware import open_network, replace_file  # noqa: PLC0415 - numpy takes its time, and help should not
    from kqgen.picture import picture as draw  # noqa: PLC0415

    replace_file(out, draw(open_network(network).graph).encode())
    console.show_written(console.make_console(), out)
