"""The command line. Options in, one call of the pipeline each, tables out; every error is one message and its exit status.

    0 did what it says   1 mismatch   2 usage or input   3 does not fit   4 tool missing or failed
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, TypeVar, cast

import click

from kqgen import board as boards
from kqgen import console, pipeline
from kqgen.errors import InputError, KqgenError
from kqgen.firmware import Firmware, open_firmware
from kqgen.options import Codebook, Compression
from kqgen.report import document
from kqgen.version import __version__

F = TypeVar("F", bound=Callable[..., Any])
EXIT_BUG = 70


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="kqgen")
def cli() -> None:
    """Compiles a PyTorch CNN to small, exact, plain C for Cortex-M by Kernel Quantization."""


def _toolchain_option(function: F) -> F:
    return click.option(
        "--toolchain", type=click.Choice(["gcc", "zig"]), help="Arm compiler: arm-none-eabi-gcc or zig cc (default: gcc when installed)."
    )(function)


def _json_option(function: F) -> F:
    return click.option("--json", "json_target", metavar="-", help="'-' prints the JSON instead of writing it into the folder.")(function)


@cli.command()
@click.argument("model")
@click.option("--board", "board_name", required=True, help="Board name (see `kqgen boards`) or path of a board file.")
@click.option("--calibration", required=True, type=click.Path(path_type=Path), help=".npz with one float32 array (N, C, H, W).")
@click.option("--out", required=True, type=click.Path(path_type=Path, file_okay=False), help="Folder to write; replaced as a whole.")
@click.option("--state", type=click.Path(path_type=Path), help="Weights for package.module:factory, .pt or .safetensors.")
@click.option("--weights", type=click.Choice(["kq", "int8"]), default="kq", show_default=True, help="int8 turns Kernel Quantization off.")
@click.option("--codebook", type=click.Choice(["layer", "network"]), default="network", show_default=True, help="Scope of a codebook.")
@click.option("--codewords", type=int, default=256, show_default=True, metavar="K", help="Stored codewords of a codebook.")
@click.option("--sign/--no-sign", default=True, show_default=True, help="Let each codeword also serve as its negative.")
@click.option("--keep", multiple=True, metavar="LAYER=BITS", help="Store this layer uniformly in 8, 6 or 4 bits; repeatable.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of the clustering.")
@click.option("--name", help="C identifier of the network (default: the file's stem).")
@click.option("--no-build", is_flag=True, help="Write sources only; measured figures become null.")
@_toolchain_option
@_json_option
def compile(  # noqa: A001 - the command is called so
    model: str, board_name: str, calibration: Path, out: Path, state: Path | None, weights: Literal["kq", "int8"],
    codebook: Literal["layer", "network"], codewords: int, sign: bool, keep: tuple[str, ...], seed: int, name: str | None, no_build: bool,
    toolchain: Literal["gcc", "zig"] | None, json_target: str | None,
) -> None:  # fmt: skip
    """Compile MODEL, a .pt2 file (torch.export.save) or package.module:factory, into a folder of C.

    A factory is your own code and is run; a .pt2 and a state file are data and run nothing.
    """
    compression = Compression(weights, Codebook(codebook, codewords, sign), tuple(_keep(entry) for entry in keep), seed)
    target = boards.load_board(board_name)
    with console.progress_bar(console.make_console(stderr=True), "compiling") as tell:
        result = pipeline.compile_file(
            model, state=state, calibration=calibration, board=target, compression=compression, name=name, out=out,
            build=not no_build, toolchain=toolchain, tell=tell, write_report=json_target is None,
        )  # fmt: skip
    people = _people(json_target)
    console.show_warnings(console.make_console(stderr=True), result.warnings)
    console.show_report(people, result.report, target)
    people.print(f"  written to {out}   kqgen verify {out} --inputs {calibration}   kqgen bench {out}", soft_wrap=True)
    _print_json(json_target, document(result.report))


def _keep(entry: str) -> tuple[str, int]:
    layer, _, width = entry.rpartition("=")
    if not layer or not width.isdecimal():
        raise InputError(f"cannot read --keep {entry}", found=entry, wanted="LAYER=BITS", do="write for example --keep stem=8")
    return layer, int(width)


@cli.command()
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False))
@click.option("--inputs", required=True, type=click.Path(path_type=Path), help=".npz with one float32 array (N, C, H, W).")
@click.option("--targets", help="Comma-separated: host, unicorn, qemu (default: host and the board's emulator).")
@click.option("--limit", type=click.IntRange(min=1), help="Use only the first inputs.")
@_toolchain_option
@_json_option
def verify(
    folder: Path, inputs: Path, targets: str | None, limit: int | None, toolchain: Literal["gcc", "zig"] | None, json_target: str | None
) -> None:
    """Compare integer reference, host C and emulated board in every byte, and integers with float PyTorch."""
    firmware = open_firmware(folder)
    with console.progress_bar(console.make_console(stderr=True), "verifying") as tell:
        report = pipeline.verify_firmware(
            firmware, inputs, targets=targets.split(",") if targets else None, limit=limit, toolchain=toolchain, tell=tell
        )
    _write_json(json_target, firmware, "verify.json", document(report))
    console.show_verify(_people(json_target), firmware.graph.name, report)
    if report.exact is None:
        sys.exit(4)
    if not report.exact:
        sys.exit(1)


@cli.command()
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False))
@click.option("--core", type=click.Choice([core.name for core in boards.CORES if not core.is_host]), help="Default: the board's core.")
@_toolchain_option
@_json_option
def bench(folder: Path, core: str | None, toolchain: Literal["gcc", "zig"] | None, json_target: str | None) -> None:
    """Count instructions and model cycles of one run on an emulated core, per layer."""
    firmware = open_firmware(folder)
    with console.progress_bar(console.make_console(stderr=True), "counting") as tell:
        report = pipeline.bench_firmware(firmware, core=core, toolchain=toolchain, tell=tell)
    _write_json(json_target, firmware, "bench.json", document(report))
    console.show_bench(_people(json_target), firmware.graph.name, report)


@cli.command(name="boards")
def boards_command() -> None:
    """List the boards kqgen knows."""
    console.show_boards(console.make_console(), boards.all_boards())


@cli.command(name="ops")
def ops_command() -> None:
    """List the PyTorch operators kqgen compiles, and on what conditions."""
    console.show_ops(console.make_console())


def _people(json_target: str | None) -> console.Console:
    """Tables go to standard error when standard output carries JSON."""
    return console.make_console(stderr=json_target is not None)


def _print_json(json_target: str | None, content: dict[str, Any]) -> None:
    if json_target is not None:
        _check_target(json_target)
        click.echo(json.dumps(content, indent=2, allow_nan=False))


def _check_target(json_target: str) -> None:
    if json_target != "-":
        raise InputError(f"--json takes only '-', not {json_target}", do="leave it out to write the JSON into the folder")


def _write_json(json_target: str | None, firmware: Firmware, name: str, content: dict[str, Any]) -> None:
    if json_target is None:
        firmware.write_json(name, content)
    else:
        _print_json(json_target, content)


def main(arguments: list[str] | None = None) -> None:
    """Runs the command line and leaves with its exit status; errors are one message, never a traceback."""
    stderr = console.make_console(stderr=True)
    try:
        cli(args=arguments, prog_name="kqgen", standalone_mode=False)
    except KqgenError as error:
        console.show_error(stderr, error, nothing_written=error.exit_status in (2, 3))
        sys.exit(error.exit_status)
    except click.ClickException as error:
        error.show()
        sys.exit(2)
    except click.exceptions.Abort:
        sys.exit(130)
    except OSError as error:
        where = f" ({error.filename})" if error.filename else ""
        failure = InputError(f"cannot read or write{where}", found=cast(str, error.strerror or str(error)), do="check the disk and the path")
        console.show_error(stderr, failure, nothing_written=True)
        sys.exit(failure.exit_status)
