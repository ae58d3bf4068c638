"""The command that fine-tunes: options in, one run, a live line and a table out."""

from __future__ import annotations

import math
import os
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.text import Text

from kqgen import console
from kqgen.cli_options import compression_options
from kqgen.errors import InputError
from kqgen.goal import Goal
from kqgen.options import Compression
from kqgen.report import grouped

if TYPE_CHECKING:
    from kqgen.train_job import Outcome
    from kqgen.train_loop import Progress as Reached



@click.command(short_help="Train the codebooks: accuracy back at few bits, float model in, integers out.")
@click.argument("model")
@click.option(
    "--train", required=True, type=click.Path(path_type=Path), metavar="NPZ", help="Inputs as the model takes them, and `labels` (N,)."
)
@click.option("--epochs", required=True, type=click.IntRange(min=1), metavar="N", help="Passes over the training set.")
@click.option(
    "--out", required=True, type=click.Path(path_type=Path, dir_okay=False), metavar="FILE", help="File to write, .kq.safetensors."
)
@click.option("--state", type=click.Path(path_type=Path), metavar="FILE", help="Weights for package.module:factory.")
@click.option("--validation", type=click.Path(path_type=Path), metavar="NPZ", help="Samples to judge on (default: some of --train).")
@click.option("--hold-out", type=click.IntRange(min=1), default=1000, show_default=True, metavar="N", help="Of --train, to judge on.")
@click.option("--teacher", metavar="MODEL", help="Float model to imitate (default: MODEL itself); a stronger one helps.")
@click.option("--teacher-state", type=click.Path(path_type=Path), metavar="FILE", help="Weights for the teacher's factory.")
@click.option("--rate", type=float, default=4e-3, show_default=True, metavar="LR", help="Peak learning rate of Adam.")
@click.option("--batch", type=click.IntRange(min=1), default=256, show_default=True, metavar="N", help="Samples a step, of all processes.")
@click.option("--augment", default="", metavar="LIST", help="Of crop,flip.")
@click.option("--renew", type=click.IntRange(min=1), default=1, show_default=True, metavar="N", help="Steps between renewals of the codes.")
@click.option("--soft", type=float, default=0.0, show_default=True, metavar="PART", help="Part of the run with soft codes, at its start.")
@click.option(
    "--checkpoint", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE", help="Kept every epoch (default: beside --out)."
)
@click.option("--device", type=click.Choice(["cpu", "cuda"]), help="Default: cuda where there is one.")
@click.option("--name", metavar="IDENT", help="C identifier of the network (default: the stem of --out).")
@compression_options
def finetune(
    model: str, train: Path, epochs: int, out: Path, state: Path | None, validation: Path | None, hold_out: int, teacher: str | None,
    teacher_state: Path | None, rate: float, batch: int, augment: str, renew: int, soft: float, checkpoint: Path | None, device: str | None,
    name: str | None, wish: Goal | Compression,
) -> None:  # fmt: skip
    """Fine-tune MODEL with learned codebooks and write the integers that kqgen compile takes.

    A run that was killed is taken up by the same command. Several processes: torchrun --nproc-per-node 2 -m kqgen finetune ...

    \b
    kqgen finetune net.pt2 --train train.npz --epochs 80 --target-bits 1.5 --augment crop,flip --out net.kq.safetensors
    kqgen compile net.kq.safetensors --board nucleo-g0b1re --out firmware
    """
    from kqgen.train_job import Job, run_job  # noqa: PLC0415 - torch takes seconds to load
    from kqgen.train_loop import Settings  # noqa: PLC0415
    from kqgen.train_model import Tempo  # noqa: PLC0415

    if wish.reconstruct:
        raise InputError(
            "fine-tuning does not reconstruct: it trains all layers anyway", found=f"--reconstruct {wish.reconstruct}", do="leave it out"
        )
    tempo = Tempo(period_steps=renew, revival_steps=renew * max(1, math.ceil(100 / renew)), soft_part=soft)
    job = Job(
        model, state, train, validation, hold_out, out, wish, Settings(epochs, rate=rate, seed=wish.seed, tempo=tempo), batch,
        tuple(part for part in augment.split(",") if part), teacher, teacher_state,
        checkpoint or out.with_name(f"{out.name}.checkpoint"), device, name,
    )  # fmt: skip
    screen = console.make_console(stderr=True)
    silent = os.environ.get("RANK", "0") != "0"
    with _bar(screen, silent) as bar:
        task = bar.add_task("starting", total=1.0, line="")

        def report(now: Reached, bits: float) -> None:
            renewed = f"codes renewed {100 * now.changed:.1f} %"
            line = f"{now.phase:<7} loss {now.loss:.3f}  accuracy {100 * now.accuracy:.1f} %  {renewed}  {bits:.2f} bits"
            bar.update(task, description=f"epoch {now.epoch}/{now.epochs}", total=now.steps, completed=now.step, line=line)
            if not screen.is_terminal and now.step % max(1, now.steps // now.epochs) == 0:
                screen.print(Text(f"epoch {now.epoch}/{now.epochs}  {line}"), soft_wrap=True)

        outcome = run_job(job, report, lambda label: bar.update(task, description=label))
    if outcome.first:
        _show(console.make_console(), job.out, outcome)


def _bar(screen: Console, silent: bool) -> Progress:
    columns = (
        TextColumn("{task.description:<18}"), BarColumn(bar_width=24), TextColumn("{task.fields[line]}"), TimeElapsedColumn(),
        TimeRemainingColumn(),
    )  # fmt: skip
    return Progress(*columns, console=screen, transient=True, disable=silent or not screen.is_terminal)


def _show(people: Console, out: Path, outcome: Outcome) -> None:
    lost = 100 * (outcome.float_accuracy - outcome.accuracy)
    whole, real = f"{100 * outcome.accuracy:.2f} % in integers", f"{100 * outcome.float_accuracy:.2f} % in float"
    console.say_labelled(
        people,
        [
            ("accuracy", f"{whole}, {real}, {lost:.2f} lost"),
            ("", f"of {grouped(outcome.samples)} samples that were not trained on"),
            ("bits", f"{outcome.bits_per_weight:.3f} a weight of the convolutions, codebooks and padding counted"),
            ("bytes", f"{grouped(outcome.table_bytes)} of indices, codebooks and weights"),
            ("written", str(out)),
            ("next", f"kqgen compile {shlex.quote(str(out))} --board BOARD --out firmware"),
        ],
    )
