"""`kqgen finetune`, and what the other commands make of the file it writes."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import ROOT, require_tool

import kqgen as package
from cli import tinynet
from cli.running import BOARD, Run, entries, kqgen, ok, read_json, require_arm, snapshot
from kqgen import store
from kqgen.intgraph import IntConv2d, KqWeights

COUNT, HELD = 88, 24
QUICK = ("--epochs", "2", "--batch", "16", "--hold-out", str(HELD), "--codewords", "12")


@pytest.fixture(scope="module")
def train(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tinynet.write_labelled(tmp_path_factory.mktemp("data") / "train.npz", COUNT)


@pytest.fixture(scope="module")
def trained_run(inputs: Path, train: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, Path]:
    """`kqgen finetune tiny.pt2` and the file it wrote, not to be written to."""
    file = tmp_path_factory.mktemp("trained") / "net.kq.safetensors"
    return ok("finetune", inputs / "tiny.pt2", "--train", train, *QUICK, "--out", file), file


@pytest.fixture
def trained(trained_run: tuple[Run, Path]) -> Path:
    return trained_run[1]


@pytest.fixture
def firmware(trained: Path, tmp_path: Path) -> Path:
    """What `kqgen compile` makes of the trained file for the M0+ board."""
    require_arm()
    ok("compile", trained, "--board", BOARD, "--out", tmp_path / "fw")
    return tmp_path / "fw"


# Training


def test_it_tells_each_epoch_and_what_came_of_it(trained_run: tuple[Run, Path]) -> None:
    run, file = trained_run
    assert entries(file.parent) == {"net.kq.safetensors"}
    lines = run.err.splitlines()
    assert [line.split()[:3] for line in lines] == [["epoch", "1/2", "hard"], ["epoch", "2/2", "settled"]]
    assert all(" loss " in line and " accuracy " in line and line.endswith(" bits") for line in lines)
    rows = [line.strip().split(maxsplit=1) for line in run.out.splitlines()]
    assert [row[0] for row in rows] == ["accuracy", "of", "bits", "bytes", "written", "next"]
    assert rows[1][1] == f"{HELD} samples that were not trained on"
    assert rows[4][1] == str(file)
    assert rows[5][1] == f"kqgen compile {file} --board BOARD --out firmware"
    graph, header = store.read(file)
    assert graph.name == "net"
    stored = sum(node.weights.packed_bytes for node in graph.nodes if isinstance(node, IntConv2d))
    assert f"{stored + sum(book.packed_bytes for book in graph.codebooks)} of indices" in run.out
    assert float(rows[2][1].split()[0]) == pytest.approx(header["bits_per_weight"], abs=1e-3)


def test_the_accuracy_it_tells_is_that_of_the_c(trained_run: tuple[Run, Path], train: Path, tmp_path: Path) -> None:
    """On the samples held out, drawn by the seed."""
    require_tool("cc")
    run, file = trained_run
    ok("compile", file, "--board", "host", "--out", tmp_path / "fw")
    with np.load(train) as data:
        held = torch.randperm(COUNT, generator=torch.Generator().manual_seed(0))[:HELD].numpy()
        images, labels = data["images"][held], data["labels"][held]
    made = package.load(tmp_path / "fw")(images)
    assert isinstance(made, np.ndarray)
    assert f"{100 * (made.argmax(1) == labels).mean():.2f} % in integers" in run.out


def finetune(inputs: Path, train: Path, out: Path, *options: str | Path) -> Run:
    return kqgen("finetune", inputs / "tiny.pt2", "--train", train, *QUICK, "--out", out, *options)


STOPPED = """
import os, signal, sys
sys.path.insert(0, {tests!r})
import torch
torch.set_num_threads(1)
from kqgen import cli, train_loop
write, count = train_loop.write_checkpoint, [0]

def once(*given):
    write(*given)
    os.kill(os.getpid(), signal.SIGKILL)

train_loop.write_checkpoint = once
cli.main(sys.argv[1:])
"""


def test_a_killed_run_is_taken_up_by_the_same_command(inputs: Path, train: Path, trained: Path, tmp_path: Path) -> None:
    """And writes the file that the unbroken one wrote; until then there is its checkpoint alone."""
    out = tmp_path / "net.kq.safetensors"
    argv = ["finetune", str(inputs / "tiny.pt2"), "--train", str(train), *QUICK, "--out", str(out)]
    code = STOPPED.format(tests=str(ROOT / "tests"))
    done = subprocess.run([sys.executable, "-c", code, *argv], cwd=ROOT, check=False, capture_output=True, timeout=120, env={**os.environ})
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert entries(tmp_path) == {"net.kq.safetensors.checkpoint"}

    before = snapshot(tmp_path)
    run = finetune(inputs, train, out, "--rate", "0.001")
    assert run.status == 2
    assert "is the checkpoint of another run" in run.err
    assert "rate 0.004" in run.err
    assert "rate 0.001" in run.err
    for options, says in ((("--augment", "flip"), "augment flip"), (("--batch", "8"), "batch 8"), (("--hold-out", "23"), "held out 23")):
        assert says in finetune(inputs, train, out, *options).err
    assert snapshot(tmp_path) == before

    run = finetune(inputs, train, out)
    assert run.status == 0, run.err
    assert [line.split()[1] for line in run.err.splitlines()] == ["2/2"]
    assert entries(tmp_path) == {out.name}
    assert out.read_bytes() == trained.read_bytes()


def test_a_target_decides_codewords_and_widths(inputs: Path, train: Path, tmp_path: Path) -> None:
    """With augmentation, a validation set of its own, renewal in every other step, soft codes, and a name."""
    out, judged = tmp_path / "net.kq.safetensors", tinynet.write_labelled(tmp_path / "judged.npz", 30, seed=6)
    run = ok(
        "finetune", inputs / "tiny.pt2", "--train", train, "--epochs", "1", "--batch", "16", "--target-bits", "2", "--augment", "crop,flip",
        "--validation", judged, "--renew", "2", "--soft", "0.5", "--name", "watch", "--out", out, "--device", "cpu",
    )  # fmt: skip
    bits = float(next(line.split()[1] for line in run.out.splitlines() if line.strip().startswith("bits")))
    assert 1.5 < bits <= 2.0
    assert "of 30 samples that were not trained on" in run.out
    graph, _ = store.read(out)
    assert graph.name == "watch"
    assert any(isinstance(node.weights, KqWeights) for node in graph.nodes if isinstance(node, IntConv2d))
    assert entries(tmp_path) == {out.name, judged.name}


def test_a_factory_with_its_weights_and_a_teacher(inputs: Path, train: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT / "tests")
    out = tmp_path / "net.kq.safetensors"
    state = inputs / "tiny.safetensors"
    factory = ("finetune", "cli.tinynet:blank", "--state", state, "--teacher", "cli.tinynet:blank", "--teacher-state", state)
    run = ok(*factory, "--train", train, *QUICK, "--out", out)
    assert "% in float" in run.out
    assert store.read(out)[0].name == "net"


@pytest.fixture
def work(tmp_path: Path) -> Path:
    folder = tmp_path / "work"
    folder.mkdir()
    return folder


def written(path: Path, **changed: Any) -> Path:
    """A labelled file with arrays changed."""
    with np.load(tinynet.write_labelled(path, COUNT)) as file:
        arrays = {**dict(file.items()), **changed}
    np.savez(path, **arrays)
    return path


REFUSED: dict[str, tuple[tuple[str, ...], dict[str, Any], tuple[str, ...]]] = {
    "no file": (("--train", "none.npz"), {}, ("no such file: none.npz",)),
    "ending": (("--out", "{work}/net.bin"), {}, ("net.bin does not end in .kq.safetensors", "--out net.kq.safetensors")),
    "folder": (("--out", "{work}/none/a.kq.safetensors"), {}, ("no folder to write", "mkdir -p")),
    "checkpoint": (("--checkpoint", "{work}/none/a"), {}, ("no folder to write", "none")),
    "hold-out": (("--hold-out", "88"), {}, ("too small to keep samples for judging", "88 samples, 88", "smaller --hold-out")),
    "epochs": (("--epochs", "0"), {}, ("finetune: Invalid value for '--epochs'",)),
    "rate": (("--rate", "-1"), {}, ("the learning rate must be a positive number", "-1.0")),
    "soft": (("--soft", "1.5"), {}, ("soft part is no part", "1.5")),
    "augment": (("--augment", "flip,rotate"), {}, ("unknown augmentation 'rotate'", "crop or flip")),
    "keep": (("--keep", "stem=8"), {}, ("stem",)),
    "target": (("--target-bits", "0.05", "--codebook", "network"), {}, ("no allocation reaches 0.05 bits a weight", "at the least")),
    "state": (("--state", "tiny.pt"), {}, ("brings its weights along",)),
    "teacher": (("--teacher", "none.pt2"), {}, ("no such file: none.pt2",)),
    "device": (("--device", "cuda"), {}, ("there is no CUDA device", "--device cpu")),
    "reconstruct": (("--reconstruct", "5"), {}, ("does not reconstruct", "leave it out")),
    "below": ((), {"labels": np.full(COUNT, -1)}, ("a label of", "is out of range", "found    -1", "0 to 4")),
    "above": ((), {"labels": np.full(COUNT, 5)}, ("is out of range", "found    5", "5 outputs")),
    "shape": ((), {"images": np.zeros((COUNT, 3, 9, 8), np.float32)}, ("do not fit net", "(88, 3, 9, 8)", "(N, 3, 8, 8)")),
    "vectors": ((), {"images": np.zeros((COUNT, 192), np.float32)}, ("do not fit net", "(88, 192)", "(N, 3, 8, 8)")),
    "infinite": ((), {"images": np.full((COUNT, 3, 8, 8), np.inf, np.float32)}, ("holds NaN or infinity",)),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_is_said_before_anything_is_written(case: str, inputs: Path, train: Path, work: Path, tmp_path: Path) -> None:
    options, arrays, says = REFUSED[case]
    if arrays:
        train = written(tmp_path / "bad.npz", **arrays)
    if case == "device" and torch.cuda.is_available():
        options = ("--device", "tpu")
        says = ("--device",)
    chosen = [str(option).replace("{work}", str(work)) for option in options]
    fixed = [option for option in QUICK if not ("--target-bits" in chosen and option in ("--codewords", "12"))]
    run = kqgen("finetune", inputs / "tiny.pt2", "--train", train, *fixed, "--out", work / "net.kq.safetensors", *chosen)
    assert (run.status, run.out) == (2, ""), run.err
    assert run.err.startswith("kqgen: ")
    assert "Traceback" not in run.err
    assert [text for text in says if text not in run.err] == [], run.err
    assert run.err.endswith("  nothing was written\n")
    assert run.err.count("kqgen: ") == 1
    assert entries(work) == set()


def test_a_loss_that_is_no_number_keeps_the_last_checkpoint(inputs: Path, train: Path, work: Path) -> None:
    out = work / "net.kq.safetensors"
    run = finetune(inputs, train, out, "--rate", "1e30")
    assert (run.status, run.out) == (2, "")
    assert "became NaN or infinite at step " in run.err
    assert "lower the learning rate" in run.err
    assert entries(work) <= {"net.kq.safetensors.checkpoint"}


# The file


def test_the_file_compiles_with_and_without_images(trained: Path, inputs: Path, tmp_path: Path) -> None:
    """The same network either way; images are for its self-test only."""
    images = inputs / "images.npz"
    run = ok("compile", trained, "--board", BOARD, "--no-build", "--out", tmp_path / "drawn")
    ok("compile", trained, "--board", BOARD, "--no-build", "--out", tmp_path / "given", "--calibration", images, "--name", "net")
    assert "--calibration" not in run.err
    drawn, given = snapshot(tmp_path / "drawn"), snapshot(tmp_path / "given")
    assert {name for name in drawn if drawn[name] != given[name]} == {"net_selftest.c"}
    assert drawn.keys() == given.keys()
    assert not any(name.endswith(".pt2") for name in drawn)


@pytest.mark.parametrize(
    "options",
    [
        ("--state", "a.pt"), ("--codewords", "16"), ("--codebook", "layer"), ("--no-sign",), ("--keep", "head=8"),
        ("--width", "body=4"), ("--group", "stem.0,body"), ("--target-bits", "3"), ("--target-bytes", "900"), ("--weights", "kq"),
        ("--seed", "1"), ("--reconstruct", "10"),
    ],
)  # fmt: skip
def test_a_file_of_integers_leaves_nothing_to_choose(options: tuple[str, ...], trained: Path, work: Path) -> None:
    run = kqgen("compile", trained, "--board", BOARD, *options, "--out", work / "fw")
    assert (run.status, run.out) == (2, "")
    assert "holds integers already: nothing is left to choose" in run.err
    assert f"found    {options[0].replace('--no-sign', '--sign')}" in run.err
    assert entries(work) == set()


@pytest.mark.parametrize("damage", ["missing", "cut", "foreign", "float"])
def test_files_that_are_no_integers(damage: str, trained: Path, inputs: Path, work: Path, tmp_path: Path) -> None:
    file = tmp_path / "net.kq.safetensors"
    if damage == "cut":
        file.write_bytes(trained.read_bytes()[:-7])
    elif damage == "foreign":
        shutil.copyfile(inputs / "tiny.pt2", file)
    elif damage == "float":
        shutil.copyfile(inputs / "tiny.safetensors", file)
    run = kqgen("compile", file, "--board", BOARD, "--out", work / "fw")
    assert (run.status, run.out) == (2, ""), run.err
    assert file.name in run.err
    assert "Traceback" not in run.err
    assert entries(work) == set()


def test_the_float_model_still_needs_calibration(inputs: Path, work: Path) -> None:
    run = kqgen("compile", inputs / "tiny.pt2", "--board", BOARD, "--out", work / "fw")
    assert run.status == 2
    assert "compile needs --calibration" in run.err
    assert entries(work) == set()


# The other commands on its folder and on the file


def test_its_folder_is_verified_and_counted(firmware: Path, inputs: Path) -> None:
    require_tool("unicorn")
    run = ok("verify", firmware, "--inputs", inputs / "images.npz", "--targets", "unicorn", "--limit", "2")
    assert run.out.startswith(f"EXACT   net on {BOARD}")
    found = read_json(firmware / "verify.json")
    assert (found["exact"], found["float"]) == (True, None)
    assert "  float    not compared: the folder holds no float model" in run.out
    ok("bench", firmware)
    assert [layer["name"] for layer in read_json(firmware / "bench.json")["layers"]] == list(tinynet.LAYERS)


def test_fidelity_and_picture_take_folder_and_file(trained: Path, inputs: Path, train: Path, tmp_path: Path) -> None:
    ok("picture", trained, "--out", tmp_path / "a.svg")
    assert (tmp_path / "a.svg").read_text(encoding="utf-8").startswith("<")
    told = kqgen("fidelity", trained, "--inputs", train)
    assert told.status == 2
    assert "--model" in told.err
    run = ok("fidelity", trained, "--inputs", train, "--model", inputs / "tiny.pt2")
    assert [line.split("  ")[1] for line in run.out.splitlines()[3:5]] == ["float model", "folded graph"]
    assert "the codewords before their rounding to 6 bits are not at hand" in run.out
