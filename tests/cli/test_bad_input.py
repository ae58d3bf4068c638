"""Bad input: each gives one clear error and its exit status, no traceback, and leaves nothing behind."""

from __future__ import annotations

import io
import json
import os
import pickle
import re
import resource
import signal
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
import torch
from torch import nn

from cli import tinynet
from cli.running import BOARD, Run, entries, kqgen, ok, snapshot
from kqgen import deliver, pipeline


@pytest.fixture
def work(tmp_path: Path) -> Iterator[Path]:
    """A folder for the output, in which nothing may be left."""
    folder = tmp_path / "work"
    folder.mkdir()
    yield folder
    assert entries(folder) == set()


def compile_into(work: Path, inputs: Path, *options: str | Path, **other: str | Path) -> Run:
    """`kqgen compile` into work/fw, of tiny.pt2 unless told otherwise."""
    given = {"model": inputs / "tiny.pt2", "board": BOARD, "calibration": inputs / "images.npz", **other}
    fixed = ("--board", given["board"], "--calibration", given["calibration"], "--out", work / "fw")
    return kqgen("compile", given["model"], *fixed, *options)


def refused(run: Run, status: int, *says: str) -> None:
    """One error that holds every text of `says`, and nothing on standard output."""
    assert run.status == status, run.err
    assert run.out == ""
    assert run.err.startswith("kqgen: ")
    assert "Traceback" not in run.err
    assert [text for text in says if text not in run.err] == []
    assert run.err.endswith("  nothing was written\n")
    assert len(re.findall("^kqgen: ", run.err, re.MULTILINE)) == 1


# Calibration data

ARRAYS: dict[str, tuple[Callable[[], np.ndarray], tuple[str, ...]]] = {
    "dtype": (lambda: tinynet.images().astype(np.float64), ("wrong dtype for input x", "float64", "array.astype(numpy.float32)")),
    "integers": (lambda: np.zeros((2, 3, 8, 8), np.int8), ("wrong dtype", "int8")),
    "shape": (lambda: np.zeros((2, 3, 9, 8), np.float32), ("wrong shape for input x", "(2, 3, 9, 8)", "(N, 3, 8, 8)")),
    "channels last": (lambda: np.zeros((2, 8, 8, 3), np.float32), ("wrong shape", "array.transpose(0, 3, 1, 2)")),
    "one image": (lambda: np.zeros((3, 8, 8), np.float32), ("wrong shape", "array[None]")),
    "NaN": (lambda: np.full((2, 3, 8, 8), np.nan, np.float32), ("input x has NaN or infinity", "2 of 2 images")),
    "infinity": (lambda: np.full((2, 3, 8, 8), np.inf, np.float32), ("input x has NaN or infinity",)),
    "no image": (lambda: np.zeros((0, 3, 8, 8), np.float32), ("holds no image", "(0, 3, 8, 8)")),
    "objects": (lambda: np.array([{"a": 1}], dtype=object), ("holds Python objects", "never loads")),
}


@pytest.mark.parametrize("case", ARRAYS)
def test_calibration_arrays(work: Path, inputs: Path, tmp_path: Path, case: str) -> None:
    make, says = ARRAYS[case]
    np.savez(tmp_path / "bad.npz", images=make())
    refused(compile_into(work, inputs, calibration=tmp_path / "bad.npz"), 2, "bad.npz", *says)


def test_calibration_files(work: Path, inputs: Path, tmp_path: Path) -> None:
    (tmp_path / "text.npz").write_text("no zip", encoding="utf-8")
    refused(compile_into(work, inputs, calibration=tmp_path / "text.npz"), 2, "cannot read", "text.npz", "numpy.savez")
    refused(compile_into(work, inputs, calibration=tmp_path / "none.npz"), 2, "no such file", "none.npz")
    np.savez(tmp_path / "two.npz", a=tinynet.images(), b=tinynet.images())
    refused(compile_into(work, inputs, calibration=tmp_path / "two.npz"), 2, "do not match the model's inputs", "'a', 'b'", "'x'")
    with zipfile.ZipFile(tmp_path / "images.npz", "w") as archive:
        archive.writestr("images.npy", (np.lib.format.MAGIC_PREFIX + b"\x01\x00") + b"\x00" * 40)
    refused(compile_into(work, inputs, calibration=tmp_path / "images.npz"), 2, "cannot read")


def test_no_calibration(work: Path, inputs: Path) -> None:
    run = kqgen("compile", inputs / "tiny.pt2", "--board", BOARD, "--out", work / "fw")
    refused(run, 2, "compile needs --calibration", "numpy.savez")


# Models

def _weights(value: float) -> nn.Module:
    module = tinynet.make()
    assert isinstance(module, tinynet.TinyNet)
    with torch.no_grad():
        module.body.weight[1, 2, 0, 0] = value
    return module


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite(work: Path, inputs: Path, tmp_path: Path, value: float) -> None:
    model = tinynet.save(_weights(value), tmp_path / "bad.pt2")
    refused(compile_into(work, inputs, model=model), 2, "body.weight", "1 of 576")


def test_an_operator_that_is_not_supported_names_its_module(work: Path, inputs: Path, tmp_path: Path) -> None:
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Sequential(nn.ReLU(), nn.LogSoftmax(1)))
    model = tinynet.save(module, tmp_path / "net.pt2")
    refused(compile_into(work, inputs, model=model), 2, "cannot compile layer 1.1 (torch.ops.aten.", "(N, 4, 6, 6)", "nn.Softmax")


def test_all_operators_that_are_not_supported_are_told_at_once(work: Path, inputs: Path, tmp_path: Path) -> None:
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.LogSoftmax(1), nn.GroupNorm(2, 4), nn.Conv2d(4, 4, 3), nn.LogSoftmax(1))
    model = tinynet.save(module, tmp_path / "net.pt2")
    told = ("cannot compile 3 operations of net", "log_softmax (2x): layer 1, layer 4", "group_norm (1x): layer 2", "nn.BatchNorm2d")
    refused(compile_into(work, inputs, model=model), 2, *told)


def test_an_operator_nobody_expects_points_at_the_list(work: Path, inputs: Path, tmp_path: Path) -> None:
    model = tinynet.save(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Threshold(0.1, 20.0)), tmp_path / "net.pt2")
    refused(compile_into(work, inputs, model=model), 2, "cannot compile layer 1 (torch.ops.aten.", "`kqgen ops` lists them")


def test_axes_without_size(work: Path, inputs: Path, tmp_path: Path) -> None:
    rows = torch.export.Dim("rows", min=4, max=32)
    exported = torch.export.export(nn.Conv2d(3, 4, 3).eval(), (torch.zeros(1, 3, 8, 8),), dynamic_shapes={"input": {2: rows}})
    torch.export.save(exported, tmp_path / "free.pt2")
    refused(compile_into(work, inputs, model=tmp_path / "free.pt2"), 2, "an axis other than the batch has no fixed size")


def test_a_free_batch_axis_compiles_as_one(inputs: Path, tmp_path: Path) -> None:
    exported = torch.export.export(tinynet.make(), (torch.zeros(2, 3, 8, 8),), dynamic_shapes={"x": {0: torch.export.Dim.DYNAMIC}})
    torch.export.save(exported, tmp_path / "free.pt2")
    (tmp_path / "work").mkdir()
    run = compile_into(tmp_path / "work", inputs, "--no-build", "--weights", "int8", model=tmp_path / "free.pt2")
    assert run.status == 0, run.err
    assert "#define FREE_INPUT_BYTES 192u" in re.sub(" +", " ", (tmp_path / "work" / "fw" / "free.h").read_text(encoding="utf-8"))


def test_models_that_are_none(work: Path, inputs: Path, tmp_path: Path) -> None:
    (tmp_path / "text.pt2").write_text("no zip", encoding="utf-8")
    refused(compile_into(work, inputs, model=tmp_path / "text.pt2"), 2, "text.pt2 is no .pt2", "torch.export.save")
    refused(compile_into(work, inputs, model=tmp_path / "none.pt2"), 2, "no such file")
    refused(compile_into(work, inputs, model="net.h5"), 2, "cannot tell what model 'net.h5' is", ".onnx", "package.module:factory")
    refused(compile_into(work, inputs, model="cli.tinynet:nothing"), 2, "cli.tinynet has no nothing", "TinyNet")
    refused(compile_into(work, inputs, model="no_such_package:make"), 2, "cannot import no_such_package")
    refused(compile_into(work, inputs, model="cli.tinynet:images"), 2, "made no model", "ndarray")
    refused(compile_into(work, inputs, "--state", inputs / "tiny.pt"), 2, "brings its weights along")


class _Hostile:
    """Unpickling it makes the folder that its argument names."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
        return os.mkdir, (str(self.path),)


def test_a_hostile_model_is_refused_and_nothing_of_it_runs(work: Path, inputs: Path, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    stream = io.BytesIO()
    torch.save(_Hostile(mark), stream)
    hostile = tmp_path / "tiny.pt2"
    with zipfile.ZipFile(inputs / "tiny.pt2") as old, zipfile.ZipFile(hostile, "w") as new:
        for item in old.infolist():
            new.writestr(item.filename, stream.getvalue() if "sample_inputs" in item.filename else old.read(item))
    refused(compile_into(work, inputs, model=hostile), 2, "sample_inputs", "weights_only")
    assert not mark.exists()


def test_hostile_weights_are_refused_and_nothing_of_them_runs(work: Path, inputs: Path, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    torch.save({"body.weight": _Hostile(mark)}, tmp_path / "weights.pt")
    refused(compile_into(work, inputs, "--state", tmp_path / "weights.pt", model="cli.tinynet:make"), 2, "holds Python objects")
    (tmp_path / "plain.pt").write_bytes(pickle.dumps(_Hostile(mark)))
    refused(compile_into(work, inputs, "--state", tmp_path / "plain.pt", model="cli.tinynet:make"), 2, "plain.pt")
    (tmp_path / "weights.safetensors").write_bytes(b"\xff" * 64)
    refused(compile_into(work, inputs, "--state", tmp_path / "weights.safetensors", model="cli.tinynet:make"), 2, "cannot read")
    assert not mark.exists()


def test_weights_of_another_network(work: Path, inputs: Path, tmp_path: Path) -> None:
    other = {**tinynet.make().state_dict(), "tail.weight": torch.zeros(3)}
    del other["head.bias"]
    torch.save(other, tmp_path / "other.pt")
    run = compile_into(work, inputs, "--state", tmp_path / "other.pt", model="cli.tinynet:make")
    refused(run, 2, "does not fit the model", "without head.bias", "surplus tail.weight")


# Options

@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--codewords", "0"), ("a codebook of 0 codewords", "1 to 2048")),
        (("--codewords", "2049"), ("a codebook of 2049 codewords", "1 to 2048")),
        (("--codewords", "4097", "--no-sign"), ("a codebook of 4097 codewords", "1 to 4096")),
        (("--keep", "stem.0"), ("cannot read --keep stem.0", "LAYER=BITS")),
        (("--keep", "stem.0=7"), ("layer stem.0 cannot be kept at 7 bits", "8, 6 or 4")),
        (("--keep", "stm.0=8"), ("no layer 'stm.0' to keep", "stem.0, body, point, head")),
        (("--name", "3d"), ("cannot be called '3d'", "--name net_3d")),
        (("--name", "my-net"), ("cannot be called 'my-net'", "--name my_net")),
        (("--name", "while"), ("cannot be called 'while'", "--name while_")),
        (("--name", "kq_net"), ("cannot be called 'kq_net'",)),
        (("--seed", "-1"), ("Invalid value for '--seed'", "`kqgen compile --help`")),
        (("--weights", "int4"), ("Invalid value for '--weights'", "'kq', 'int8'")),
        (("--json", "report.json"), ("Invalid value for '--json'",)),
        (("--keeep", "a=8"), ("No such option '--keeep'", "--keep")),
    ],
    ids=lambda value: " ".join(value[:2]) if value[0].startswith("--") else "",
)
def test_options(work: Path, inputs: Path, options: tuple[str, ...], says: tuple[str, ...]) -> None:
    refused(compile_into(work, inputs, *options), 2, *says)


def test_boards(work: Path, inputs: Path, tmp_path: Path) -> None:
    refused(compile_into(work, inputs, board="nucleo-g0b1"), 2, "unknown board 'nucleo-g0b1'", "did you mean nucleo-g0b1re")
    refused(compile_into(work, inputs, board=tmp_path / "own.toml"), 2, "cannot read board file", "own.toml")
    text = (Path(__file__).parents[2] / "boards" / "microbit.toml").read_text(encoding="utf-8")
    (tmp_path / "own.toml").write_text(text.replace("clock_hz", "clock_mhz"), encoding="utf-8")
    refused(compile_into(work, inputs, board=tmp_path / "own.toml"), 2, "own.toml: unknown key clock_mhz", "did you mean clock_hz?")
    (tmp_path / "own.toml").write_text(text.replace("16_384", "-1"), encoding="utf-8")
    refused(compile_into(work, inputs, board=tmp_path / "own.toml"), 2, "own.toml: key", "-1")


def test_commands() -> None:
    refused(kqgen("compiel"), 2, "No such command 'compiel'", "compile")
    refused(kqgen("compile"), 2, "compile needs MODEL")
    assert kqgen().status == 2
    assert kqgen("--version").status == 0


# The output folder

def test_a_folder_of_someone_else_is_left_alone(inputs: Path, tmp_path: Path) -> None:
    out = tmp_path / "fw"
    out.mkdir()
    (out / "thesis.tex").write_text("years of work", encoding="utf-8")
    before = snapshot(tmp_path)
    refused(compile_into(tmp_path, inputs), 2, f"--out {out} holds files that kqgen did not write", "thesis.tex")
    assert snapshot(tmp_path) == before


def test_a_file_added_to_a_folder_of_ours_is_kept(firmware: Path, inputs: Path) -> None:
    (firmware / "main.c").write_text("int main(void);", encoding="utf-8")
    (firmware / "runtime" / "notes.txt").write_text("mine", encoding="utf-8")
    before = snapshot(firmware.parent)
    refused(compile_into(firmware.parent, inputs), 2, "main.c, runtime/notes.txt")
    assert snapshot(firmware.parent) == before


def test_a_file_in_the_place_of_the_folder(inputs: Path, tmp_path: Path) -> None:
    (tmp_path / "fw").write_text("a file", encoding="utf-8")
    refused(compile_into(tmp_path, inputs), 2, f"--out {tmp_path / 'fw'} cannot be a folder")
    refused(compile_into(tmp_path / "fw", inputs), 2, f"{tmp_path / 'fw'} is a file")
    assert entries(tmp_path) == {"fw"}


def test_the_working_directory_is_not_replaced(inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run = kqgen("compile", inputs / "tiny.pt2", "--board", BOARD, "--calibration", inputs / "images.npz", "--out", ".")
    refused(run, 2, "is the folder you are in")


# What does not fit

def test_a_network_that_does_not_fit_is_refused_with_what_takes_the_room(work: Path, inputs: Path, tmp_path: Path) -> None:
    module = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 4, 1))
    model = tinynet.save(module, tmp_path / "wide.pt2", 1, 3, 32, 32)
    np.savez(tmp_path / "wide.npz", np.zeros((1, 3, 32, 32), np.float32))
    whole = ("--weights", "int8", "--optimise", "speed")  # other plans stream the rows of this network
    run = compile_into(work, inputs, *whole, model=model, calibration=tmp_path / "wide.npz", board="microbit")
    refused(run, 3, "wide does not fit microbit: RAM ", " 15 360 usable of 16 384", "boards/microbit.toml", "--board ")
    rows = [re.fullmatch(r"(?:  found  )? *(\S.*?) {2,}([\d ]+)", line) for line in run.err.splitlines()]
    sizes = {row.group(1): int(row.group(2).replace(" ", "")) for row in rows if row}
    assert sizes["0 32x32x16"] == sizes["2 32x32x16"] == 16384
    assert sizes["output"] == 4096
    arena = sizes["RAM: arena, fullest at 2"]
    assert sizes["in all"] == arena + 4096
    assert arena >= 32768 + sizes["scratch of 2 (direct)"]


def test_code_that_does_not_fit_is_found_by_the_build(work: Path, inputs: Path, tmp_path: Path) -> None:
    text = (Path(__file__).parents[2] / "boards" / "microbit.toml").read_text(encoding="utf-8")
    small = text.replace("262_144", "4_096").replace("8_192", "0")
    (tmp_path / "small.toml").write_text(small, encoding="utf-8")
    run = compile_into(work, inputs, board=tmp_path / "small.toml")
    refused(run, 3, "tiny does not fit small: the linker finds no room", "flash: tables", "head dense 6->5", "overflowed by")


# Disk, compiler, emulator, interrupt

@pytest.fixture
def small_disk() -> Iterator[Callable[[int], None]]:
    """Lets this process write files of so many bytes at most, as a disk does that runs full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("room_bytes", [1000, 20000])
def test_a_full_disk(work: Path, inputs: Path, small_disk: Callable[[int], None], room_bytes: int) -> None:
    """1000 bytes stop the first source, 20000 the float model that is written last."""
    assert (inputs / "tiny.pt2").stat().st_size > 20000
    small_disk(room_bytes)
    run = compile_into(work, inputs, "--no-build")
    small_disk(1 << 40)
    refused(run, 2, "cannot read or write", "File too large", "check the disk")


def test_a_full_disk_leaves_an_older_result_alone(inputs: Path, tmp_path: Path, small_disk: Callable[[int], None]) -> None:
    model, images = inputs / "tiny.pt2", inputs / "images.npz"
    ok("compile", model, "--board", "host", "--calibration", images, "--weights", "int8", "--out", tmp_path / "fw")
    before = snapshot(tmp_path)
    small_disk(1000)
    run = compile_into(tmp_path, inputs, "--no-build")
    small_disk(1 << 40)
    refused(run, 2, "File too large")
    assert snapshot(tmp_path) == before


def fake_compiler(folder: Path, name: str, script: str) -> Path:
    """An executable that takes the place of a compiler."""
    folder.mkdir(exist_ok=True)
    path = folder / name
    path.write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
    path.chmod(0o755)
    return folder


BROKEN = "if [ \"$1\" = -dumpfullversion ]; then echo 13.2.1; exit 0; fi; echo 'tiny.c:7:1: error: the moon is full' >&2; exit 1"


def test_a_compiler_that_fails_is_quoted(work: Path, inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = fake_compiler(tmp_path / "bin", "arm-none-eabi-gcc", BROKEN)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    run = compile_into(work, inputs, "--weights", "int8")
    refused(run, 4, "compiling ", " for the Cortex-M0+ failed", "arm-none-eabi-gcc returned 1", "tiny.c:7:1: error: the moon is full")


@pytest.fixture
def no_tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No program on PATH, and neither ziglang nor unicorn in Python."""
    (tmp_path / "empty").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    _hide(monkeypatch, "ziglang", "unicorn")


def _hide(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    import importlib.util  # noqa: PLC0415 - patched here
    import sys  # noqa: PLC0415

    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name in names else find_spec(name, *rest))
    for name in list(sys.modules):
        if name.partition(".")[0] in names:
            monkeypatch.delitem(sys.modules, name)
    for name in names:
        monkeypatch.setitem(sys.modules, name, None)


@pytest.mark.usefixtures("no_tools")
def test_no_compiler_at_all(work: Path, inputs: Path) -> None:
    run = compile_into(work, inputs)
    refused(run, 4, "no compiler for Arm Cortex-M", "pip install ziglang", "apt install gcc-arm-none-eabi", "--no-build")
    refused(compile_into(work, inputs, "--toolchain", "gcc"), 4, "no gcc compiler for Arm Cortex-M")
    refused(compile_into(work, inputs, "--toolchain", "zig"), 4, "no zig compiler for Arm Cortex-M", "pip install ziglang")


@pytest.mark.usefixtures("no_tools")
def test_verify_without_tools_proves_nothing(firmware: Path, inputs: Path) -> None:
    run = kqgen("verify", firmware, "--inputs", inputs / "images.npz")
    assert run.status == 4
    document: dict[str, Any] = json.loads((firmware / "verify.json").read_text(encoding="utf-8"))
    assert document["exact"] is None
    assert [(target["name"], target["exact"], target["first_difference"]) for target in document["targets"]] == [
        ("host", None, None), ("unicorn", None, None),
    ]  # fmt: skip
    assert run.out.startswith("NOT PROVEN   tiny on nucleo-g0b1re\n")
    assert "no C compiler for this computer" in run.out
    assert "no compiler for Arm Cortex-M" in run.out
    assert "pip install ziglang" in run.out


@pytest.mark.usefixtures("no_tools")
def test_bench_without_tools(compiled: Path) -> None:
    refused(kqgen("bench", compiled, "--json", "-"), 4, "no compiler for Arm Cortex-M", "pip install ziglang")


def test_verify_without_the_emulator(firmware: Path, inputs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _hide(monkeypatch, "unicorn")
    run = kqgen("verify", firmware, "--inputs", inputs / "images.npz", "--limit", "2", "--targets", "unicorn")
    assert run.status == 4
    assert "the emulator unicorn is not installed" in run.out
    assert "pip install 'kqgen[emulate]'" in run.out
    refused(kqgen("bench", firmware, "--json", "-"), 4, "the emulator unicorn is not installed")


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupt_leaves_nothing(
    work: Path, inputs: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals, status: int
) -> None:
    """The signal comes when the sources stand in the temporary folder."""
    seen: list[set[str]] = []

    def interrupted(*_: object) -> None:
        seen.append(entries(work))
        signal.raise_signal(number)

    monkeypatch.setattr(deliver, "_write_sources", interrupted)
    run = compile_into(work, inputs, "--no-build", "--weights", "int8")
    assert len(seen[0]) == 1
    assert run.status == status
    assert "Traceback" not in run.err
    assert "fw" not in entries(work)


def test_a_bug_of_ours_is_no_mismatch(work: Path, inputs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError("oops")

    monkeypatch.setattr(pipeline, "simplify", broken)
    run = compile_into(work, inputs)
    assert run.status == 70
    assert "ZeroDivisionError: oops" in run.err
    assert "a bug in kqgen: ZeroDivisionError" in run.err


# Output folders that are none

def test_folders_that_are_none(compiled: Path, inputs: Path, tmp_path: Path) -> None:
    images = inputs / "images.npz"
    refused(kqgen("verify", tmp_path / "none", "--inputs", images), 2, "none is no folder of kqgen", "no such folder")
    refused(kqgen("bench", tmp_path), 2, "is no folder of kqgen", "0 files *.kqgen.safetensors")
    refused(kqgen("bench", images), 2, "is no folder of kqgen")


@pytest.mark.parametrize("content", [b"", b"\xff" * 64, b"{}" * 40, None], ids=["empty", "huge header", "text", "foreign"])
def test_hostile_graphs_are_refused(firmware: Path, inputs: Path, content: bytes | None) -> None:
    path = firmware / "tiny.kqgen.safetensors"
    if content is None:
        safetensors.numpy.save_file({"a": np.zeros(3, np.int8)}, path, {"kqgen": '{"schema": 1, "graph": {"type": "os.system"}}'})
    else:
        path.write_bytes(content)
    refused(kqgen("verify", firmware, "--inputs", inputs / "images.npz"), 2, "tiny.kqgen.safetensors")


def test_a_folder_that_lost_its_sources(firmware: Path, inputs: Path) -> None:
    (firmware / "tiny_tables.c").unlink()
    run = kqgen("verify", firmware, "--inputs", inputs / "images.npz", "--targets", "host")
    refused(run, 2, "does not hold the generated C of tiny", "no tiny_tables.c")

