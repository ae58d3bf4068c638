"""The command line. Options in, one call of the pipeline each, tables out; every error is one message and its exit status.

    0 did what it says   1 mismatch   2 usage or input   3 does not fit   4 tool missing or failed   70 a bug of kqgen

The pipeline is imported by the commands that need it: torch takes seconds to load, and help should not.
"""

from __future__ import annotations

import json
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, Literal, NoReturn, TypeVar

import click
from click.core import ParameterSource
from rich.console import Console

from kqgen import board as boards
from kqgen import console
from kqgen.cli_inspect import fidelity, picture
from kqgen.cli_options import CHOICES, compression_options, planning_options
from kqgen.cli_train import finetune
from kqgen.errors import InputError, KqgenError
from kqgen.goal import Goal
from kqgen.options import Compression
from kqgen.plan import Planning
from kqgen.report import document
from kqgen.version import __version__

if TYPE_CHECKING:
    from kqgen.firmware import Firmware

F = TypeVar("F", bound=Callable[..., Any])
ToolchainChoice = Literal["gcc", "zig"] | None

EXIT_BUG = 70
_EXIT_INTERRUPTED = 130
_EXIT_TERMINATED = 143
_IMAGES_DO = "numpy.savez('images.npz', images=array), array float32 (N, C, H, W) as the PyTorch module takes it"


class _InOrder(click.Group):
    """Help lists the commands in the order in which they are used, not by the alphabet."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The commands as they were defined."""
        del ctx
        return list(self.commands)


@click.group(
    cls=_InOrder,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    epilog="Exit status: 0 did what it says, 1 mismatch, 2 usage or input, 3 does not fit the board, 4 tool missing or failed.",
)
@click.version_option(__version__, prog_name="kqgen", message="%(prog)s %(version)s")
def cli() -> None:
    """Compiles a PyTorch CNN to small, exact, plain C for Cortex-M by Kernel Quantization."""


def _toolchain_option(function: F) -> F:
    return click.option(
        "--toolchain", type=click.Choice(["gcc", "zig"]), help="Arm compiler: arm-none-eabi-gcc or zig cc (default: gcc when installed)."
    )(function)


def _json_option(function: F) -> F:
    return click.option(
        "--json", "json_target", type=click.Choice(["-"]), metavar="-", help="Print the JSON instead of writing it into the folder."
    )(function)


@cli.command(short_help="A PyTorch model in, a folder of C out.")
@click.argument("model")
@click.option("--board", "board_name", required=True, metavar="BOARD", help="Name (see `kqgen boards`), or path of a board file.")
@click.option(
    "--calibration", type=click.Path(path_type=Path), metavar="NPZ",
    help="100 typical inputs or more, float32 (N, C, H, W); a trained network needs none.",
)  # fmt: skip
@click.option("--out", required=True, type=click.Path(path_type=Path), metavar="FOLDER", help="Folder to write; replaced as a whole.")
@click.option(
    "--state", type=click.Path(path_type=Path), metavar="FILE", help="Weights for package.module:factory: .safetensors, .pt or .pth."
)
@compression_options
@planning_options
@click.option("--name", metavar="IDENT", help="C identifier of the network (default: the file's stem).")
@click.option("--no-build", is_flag=True, help="Write sources only; measured figures become null.")
@_toolchain_option
@_json_option
def compile(  # noqa: A001 - the command is called so
    model: str, board_name: str, calibration: Path | None, out: Path, state: Path | None, wish: Goal | Compression, planning: Planning,
    name: str | None, no_build: bool, toolchain: ToolchainChoice, json_target: str | None,
) -> None:  # fmt: skip
    """Compile MODEL into a folder of C for a board.

    MODEL is a .pt2 file (torch.export.save), an .onnx, a .tflite, package.module:factory, or a .kq.safetensors that training saved. A
    factory is your own code and is run; the files are data and run nothing. An .onnx in the QDQ format keeps its activations' scales.
    An int8 .tflite with --weights int8 is compiled as it is, its own scales and its results kept to the bit; else it is dequantised.

    \b
    kqgen compile net.pt2 --board nucleo-g0b1re --calibration images.npz --out firmware
    kqgen compile net.pt2 --board nucleo-g0b1re --calibration images.npz --out firmware --target-bits 1.5
    kqgen compile net.onnx --board nucleo-g0b1re --calibration images.npz --out firmware --keep /conv1/Conv=8
    kqgen compile nets.resnet:resnet8 --state resnet8.safetensors --board microbit --calibration images.npz --out firmware
    kqgen compile net.kq.safetensors --board microbit --out firmware
    """
    target = boards.load_board(board_name)
    from kqgen import pipeline  # noqa: PLC0415 - see above
    from kqgen.console_allocation import show_allocation  # noqa: PLC0415

    with console.progress_bar(console.make_console(stderr=True), "compiling") as tell:
        if pipeline.holds_integers(model, wish):
            _refuse_choices(model)
            result = pipeline.compile_integers(
                Path(model), board=target, calibration=calibration, name=name, out=out,
                build=not no_build, toolchain=toolchain, tell=tell, write_report=json_target is None,
                planning=planning,
            )  # fmt: skip
        elif calibration is None:
            raise InputError("compile needs --calibration", wanted="100 typical inputs or more, float32 (N, C, H, W)", do=_IMAGES_DO)
        else:
            result = pipeline.compile_file(
                model, state=state, calibration=calibration, board=target, wish=wish, name=name, out=out,
                build=not no_build, toolchain=toolchain, tell=tell, write_report=json_target is None, planning=planning,
            )  # fmt: skip
    console.show_warnings(console.make_console(stderr=True), result.warnings)
    people = _people(json_target)
    if result.allocation is not None:
        show_allocation(people, result.allocation)
    console.show_report(people, result.report, target)
    console.show_next(people, out, calibration, target)
    _print_json(json_target, document(result.report))


@cli.command(short_help="Prove the C: reference, this computer and the emulated board agree in every byte.")
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--inputs", required=True, type=click.Path(path_type=Path), metavar="NPZ", help="Inputs, float32 (N, C, H, W).")
@click.option("--targets", metavar="LIST", help="Of host,unicorn,qemu (default: host and the board's emulator).")
@click.option("--limit", type=click.IntRange(min=1), metavar="N", help="Use only the first N inputs.")
@_toolchain_option
@_json_option
def verify(
    folder: Path, inputs: Path, targets: str | None, limit: int | None, toolchain: ToolchainChoice, json_target: str | None
) -> None:
    """Compare integer reference, host C and emulated board in every byte, and the integers with float PyTorch.

    FOLDER is what `kqgen compile` wrote. The result goes into its verify.json; a difference names the first layer that has it.
    """
    from kqgen import pipeline  # noqa: PLC0415 - see above
    from kqgen.firmware import open_firmware  # noqa: PLC0415

    firmware = open_firmware(folder)
    chosen = None if targets is None else [name.strip() for name in targets.split(",")]
    with console.progress_bar(console.make_console(stderr=True), "verifying") as tell:
        report = pipeline.verify_firmware(firmware, inputs, targets=chosen, limit=limit, toolchain=toolchain, tell=tell)
    _write_json(json_target, firmware, "verify.json", document(report))
    console.show_verify(_people(json_target), firmware.graph.name, report, firmware.board)
    if report.exact is None:
        sys.exit(4)
    if not report.exact:
        sys.exit(1)


@cli.command(short_help="Count instructions and model cycles, layer by layer.")
@click.argument("folder", type=click.Path(path_type=Path))
@click.option(
    "--core", type=click.Choice([core.name for core in boards.CORES if not core.is_host]), help="Another core than the board's."
)
@_toolchain_option
@_json_option
def bench(folder: Path, core: str | None, toolchain: ToolchainChoice, json_target: str | None) -> None:
    """Count the instructions of one run on the emulated core and model its cycles, layer by layer.

    FOLDER is what `kqgen compile` wrote. The result goes into its bench.json.
    """
    from kqgen import pipeline  # noqa: PLC0415 - see above
    from kqgen.firmware import open_firmware  # noqa: PLC0415

    firmware = open_firmware(folder)
    with console.progress_bar(console.make_console(stderr=True), "counting") as tell:
        report = pipeline.bench_firmware(firmware, core=core, toolchain=toolchain, tell=tell)
    _write_json(json_target, firmware, "bench.json", document(report))
    console.show_bench(_people(json_target), firmware.graph.name, report)


cli.add_command(finetune)
cli.add_command(fidelity)
cli.add_command(picture)


@cli.command(name="boards", short_help="List the boards.")
def boards_command() -> None:
    """List the boards kqgen knows; `--board` takes a file of your own as well."""
    console.show_boards(console.make_console(), boards.all_boards())


@cli.command(name="ops", short_help="List the operators that compile.")
def ops_command() -> None:
    """List the operators of PyTorch, ONNX and TFLite that kqgen compiles, on what conditions, and what becomes of them."""
    from kqgen.operators import operator_rows  # noqa: PLC0415 - see above

    console.show_ops(console.make_console(), operator_rows())


def _refuse_choices(model: str) -> None:
    """Trained integers are compiled as they are: whoever chooses how weights are stored expects that to happen."""
    context = click.get_current_context()
    taken_over = model.endswith(".tflite")
    for name in ("state", *CHOICES):
        if (name != "weights" or not taken_over) and context.get_parameter_source(name) is ParameterSource.COMMANDLINE:
            option = "--" + (name.removesuffix("s") if name in ("widths", "groups") else name.replace("_", "-"))
            raise InputError(
                f"{model} holds integers already: nothing is left to choose", found=option, wanted="no options about weights",
                do="leave it out, or compile the float model",
            )  # fmt: skip


def _people(json_target: str | None) -> Console:
    """Tables go to standard error when standard output carries JSON."""
    return console.make_console(stderr=json_target is not None)


def _print_json(json_target: str | None, content: dict[str, Any]) -> None:
    if json_target is not None:
        click.echo(json.dumps(content, indent=2, allow_nan=False))


def _write_json(json_target: str | None, firmware: Firmware, name: str, content: dict[str, Any]) -> None:
    if json_target is None:
        firmware.write_json(name, content)
    else:
        _print_json(json_target, content)


def _usage(error: click.ClickException) -> InputError:
    """A complaint of click's as an error of ours."""
    context = error.ctx if isinstance(error, click.UsageError) else None
    path = context.command_path if context is not None else "kqgen"
    do, command = f"`{path} --help` lists the options", path.removeprefix("kqgen").strip()
    if isinstance(error, click.MissingParameter) and error.param is not None:
        option = error.param.opts[0] if isinstance(error.param, click.Option) else error.param.human_readable_name
        wanted = (error.param.help or "").rstrip(".") if isinstance(error.param, click.Option) else ""
        return InputError(f"{command} needs {option}", wanted=wanted, do=_IMAGES_DO if option in ("--calibration", "--inputs") else do)
    message = error.format_message().rstrip(".")
    return InputError(f"{command}: {message}" if command else message, do=do)


def _terminated(number: int, frame: FrameType | None) -> NoReturn:
    """Leaves as after Ctrl-C, so that temporary folders go."""
    del number, frame
    sys.exit(_EXIT_TERMINATED)


def main(arguments: list[str] | None = None) -> NoReturn:
    """Runs the command line and leaves with its exit status; errors are one message, never a traceback."""
    before = signal.signal(signal.SIGTERM, _terminated)
    try:
        sys.exit(_status(arguments))
    finally:
        signal.signal(signal.SIGTERM, before)


def _status(arguments: list[str] | None) -> int:
    stderr = console.make_console(stderr=True)
    try:
        status = cli(args=arguments, prog_name="kqgen", standalone_mode=False)
    except KqgenError as error:
        console.show_error(stderr, error, nothing_written=error.exit_status != EXIT_BUG)
        return error.exit_status
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        return InputError.exit_status
    except click.ClickException as error:
        console.show_error(stderr, _usage(error), nothing_written=True)
        return InputError.exit_status
    except click.exceptions.Abort:
        console.show_error(stderr, KqgenError("interrupted"), nothing_written=False)
        return _EXIT_INTERRUPTED
    except OSError as error:
        where = f" {error.filename}" if error.filename else ""
        failure = InputError(f"cannot read or write{where}", found=error.strerror or str(error), do="check the disk and the path")
        console.show_error(stderr, failure, nothing_written=True)
        return failure.exit_status
    except Exception as error:  # noqa: BLE001 - whatever else is a bug of ours, and must not look like exit status 1, a mismatch
        traceback.print_exc()
        console.show_error(
            stderr, KqgenError(f"a bug in kqgen: {type(error).__name__}", do="please report it with the lines above"), nothing_written=False
        )
        return EXIT_BUG
    return status if isinstance(status, int) else 0
