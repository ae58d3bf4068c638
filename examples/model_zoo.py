"""The model zoo: one command a network, run for three cores, and the table of the README.

    python examples/model_zoo.py --data DATA                 every network; writes docs/zoo.json
    python examples/model_zoo.py --data DATA dscnn-int8      one of them; its row alone is written anew
    python examples/model_zoo.py --list                      the commands

DATA holds the files that the commands name: of github.com/mlcommons/tiny the .tflite files under benchmark/training/*/trained_models,
their weights as PyTorch state files, the keyword clips as features (kws01_1000.npz), of Arm's ML-KWS-for-MCU the DS-CNN-S.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import shlex
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parent))
from autoencoder.autoencoder import noise
from kws.dscnn import CALIBRATION_CLIPS, clips
from kws.fsdd import digits

import kqgen
from kqgen.cli import cli
from kqgen.floatmodel import float_outputs
from kqgen.pt2 import load_pt2
from kqgen.samples import Samples

ROOT = Path(__file__).resolve().parents[1]
TABLE = ROOT / "docs" / "zoo.json"
BOARDS = {"m0p": "nucleo-g0b1re", "m4": "nucleo-f446re", "m55": "mps3-an547"}
MEMORY_CORE = "m4"
ARM_WORDS = ("silence", "unknown", "yes", "no", "up", "down", "left", "right", "on", "off", "stop", "go")
VERIFIED = 4
"""Inputs compared byte by byte on the emulated boards; on this computer it is all that judge."""


@dataclass(frozen=True)
class Entry:
    """One row.

    Attributes:
        name: what to call it by on the command line.
        network, source: as the table says.
        arguments: of `kqgen compile`, paths relative to DATA, or to the repository where they begin with examples.
        inputs: the .npz that judges and verifies, made by `write_inputs`.
        labelled: whether it has labels.
    """

    name: str
    network: str
    source: str
    arguments: tuple[str, ...]
    inputs: str
    labelled: bool = False


def _tflite(file: str, *options: str) -> tuple[str, ...]:
    return (f"mlperf_tiny/{file}.tflite", *options)


def _module(factory: str, state: str, calibration: str, *options: str) -> tuple[str, ...]:
    return (f"examples.mlperf_tiny:{factory}", "--state", state, "--calibration", calibration, *options)


_DSCNN = ("dscnn", "mlperf_tiny/pytorch/dscnn_kws.pt", "kws_calibration.npz")
_MOBILENET = ("mobilenet", "mlperf_tiny/pytorch/mobilenetv1_025_vww.pt", "vww_calibration.npz")
_AUTOENCODER = ("autoencoder", "mlperf_tiny/pytorch/fc_autoencoder_ad.pt", "ad_calibration.npz")
_FRAMES = ("--calibration", "sww_test.npz")
_ARM = ("dscnn", "arm_kws/ds_cnn_s.pt", "arm_calibration.npz")

_CIFAR = "cifar_test.npz"
_TRAINED = "trained codebooks"

ENTRIES = (
    Entry("resnet8-tflite", "ResNet-8", "int8 .tflite", _tflite("ic/pretrainedResnet_quant", "--weights", "int8"), _CIFAR, True),
    Entry("resnet8-kq", "ResNet-8", _TRAINED, ("examples/resnet8/resnet8-1.50.kq.safetensors",), _CIFAR, True),
    Entry("dscnn-tflite", "DS-CNN", "int8 .tflite", _tflite("kws/kws_ref_model", "--weights", "int8"), "kws_test.npz", True),
    Entry("dscnn-int8", "DS-CNN", "PyTorch", _module(*_DSCNN, "--weights", "int8"), "kws_test.npz", True),
    Entry("dscnn-kq", "DS-CNN", "PyTorch", _module(*_DSCNN, "--target-bits", "3.0"), "kws_test.npz", True),
    Entry("dscnn-s-kq", "DS-CNN-S of Arm", "PyTorch", _module(*_ARM, "--target-bits", "3.0"), "arm_test.npz", True),
    Entry("digits-kq", "DS-CNN, spoken digits", _TRAINED, ("examples/kws/fsdd-2.00.kq.safetensors",), "fsdd_test.npz", True),
    Entry("mobilenet-tflite", "MobileNetV1-0.25", "int8 .tflite", _tflite("vww/vww_96_int8", "--weights", "int8"), "vww_test.npz"),
    Entry("mobilenet-int8", "MobileNetV1-0.25", "PyTorch", _module(*_MOBILENET, "--weights", "int8"), "vww_test.npz"),
    Entry("mobilenet-kq", "MobileNetV1-0.25", "PyTorch", _module(*_MOBILENET), "vww_test.npz"),
    Entry("autoencoder-tflite", "Autoencoder", "int8 .tflite", _tflite("ad/ad01_int8", "--weights", "int8"), "ad_test.npz"),
    Entry("autoencoder-kq", "Autoencoder", "PyTorch", _module(*_AUTOENCODER), "ad_test.npz"),
    Entry("wakeword-tflite", "Wake word", "int8 .tflite", _tflite("sww/str_ww_ref_model", "--weights", "int8"), "sww_test.npz"),
    Entry("wakeword-kq", "Wake word", "int8 .tflite", _tflite("sww/str_ww_ref_model", *_FRAMES), "sww_test.npz"),
)


@dataclass(frozen=True)
class Row:
    """What one network came to.

    Attributes:
        network, source: of its `Entry`.
        bits_per_weight: stored bits over all weights.
        accuracy_float, accuracy: of the float model and of the C, 0..1, None without labels or float model.
        inputs: how many judged.
        sqnr_db: of the outputs against the float model's, where there is one.
        flash_bytes, ram_bytes: on the Cortex-M4, code and stack counted.
        cycles: modelled, by core.
        int8_bytes: tables of the same network in int8, without dead structure.
    """

    network: str
    source: str
    bits_per_weight: float
    accuracy_float: float | None
    accuracy: float | None
    inputs: int
    sqnr_db: float | None
    flash_bytes: int
    ram_bytes: int
    cycles: Mapping[str, int]
    int8_bytes: int


def write_inputs(data: Path, folder: Path) -> None:
    """The .npz files that the commands name, from what is published.

    Of the keyword clips 100, drawn, calibrate, and the other 900 judge. There are no pictures for the visual wake words here: CIFAR-10's,
    enlarged threefold, calibrate and verify. There is no machine's sound for the autoencoder: shaped noise calibrates and verifies.
    """
    source = data / "mlperf_tiny" / "perf" / "kws01_1000.npz"
    features, labels = clips(source)
    order = np.random.default_rng(0).permutation(len(labels))
    with np.load(source) as known:
        arm_features, names = known["arm_tf_mfcc_f32"][:, None].astype(np.float32), known["classes"]
    arm_labels = np.array([ARM_WORDS.index(str(names[label]).lower()) for label in labels])
    for name, images, words in (("kws", features, labels), ("arm", arm_features, arm_labels)):
        np.savez(folder / f"{name}_calibration.npz", images=images[order[:CALIBRATION_CLIPS]])
        judged = order[CALIBRATION_CLIPS:]
        np.savez(folder / f"{name}_test.npz", images=images[judged], labels=words[judged])
    _, _, spoken, said = digits(data / "fsdd" / "fsdd_mfcc_49x10_f16.npz")
    np.savez(folder / "fsdd_test.npz", images=spoken.numpy(), labels=said.numpy())
    pictures, classes = _cifar_test(data)
    np.savez(folder / _CIFAR, images=pictures, labels=classes)
    enlarged = pictures[:300].repeat(3, axis=2).repeat(3, axis=3).astype(np.float32) / np.float32(255)
    np.savez(folder / "vww_calibration.npz", images=enlarged[:200])
    np.savez(folder / "vww_test.npz", images=enlarged[200:])
    np.savez(folder / "ad_calibration.npz", images=noise(300, 1))
    np.savez(folder / "ad_test.npz", images=noise(100, 2))
    frames = np.load(data / "mlperf_tiny" / "sww" / "calibration_samples.npz")["specs"].astype(np.float32)
    np.savez(folder / "sww_test.npz", images=np.ascontiguousarray(frames.transpose(0, 3, 1, 2)))


def _cifar_test(data: Path) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    """The 10 000 test images (N, 3, 32, 32): `test.npz` of examples/cifar10.py, or its sheets."""
    if (data / "test.npz").is_file():
        with np.load(data / "test.npz") as known:
            return known["images"], known["labels"]
    parts = []
    for path in sorted((data / "cifar10").glob("test_*.webp")):
        sheet = np.asarray(Image.open(path))
        tiles = sheet.reshape(sheet.shape[0] // 32, 32, sheet.shape[1] // 32, 32, 3).transpose(0, 2, 4, 1, 3)
        parts.append(tiles.reshape(-1, 3, 32, 32))
    return np.concatenate(parts), np.load(data / "cifar10" / "labels.npz")["test"].astype(np.int64)


def command(entry: Entry, board: str, out: Path | str, data: Path | str = "DATA", inputs: Path | str = "") -> list[str]:
    """The one command that compiles the network for a board."""
    words = ["compile"]
    for word in entry.arguments:
        here = word.startswith(("examples", "--")) or "/" not in word
        words.append(str(Path(inputs) / word) if word.endswith(".npz") else word if here else str(Path(data) / word))
    return [*words, "--name", _identifier(entry), "--board", board, "--out", str(out)]


def _kqgen(*words: str) -> None:
    """The command, in this process: to load PyTorch for each would take longer than most of them."""
    with contextlib.redirect_stdout(io.StringIO()) as told, contextlib.chdir(ROOT):
        status = cli(args=list(words), prog_name="kqgen", standalone_mode=False)
    if status:
        raise SystemExit(f"kqgen {shlex.join(words)}\n{told.getvalue()}")


def measure(entry: Entry, data: Path, inputs: Path, work: Path) -> Row:
    """Compiles one network for the Cortex-M4, then its integers for the other cores; verifies and counts each."""
    first = work / f"{entry.name}-{MEMORY_CORE}"
    _kqgen(*command(entry, BOARDS[MEMORY_CORE], first, data, inputs))
    integers = first / f"{_identifier(entry)}.kqgen.safetensors"
    cycles: dict[str, int] = {}
    for core, board in BOARDS.items():
        out = work / f"{entry.name}-{core}"
        if core != MEMORY_CORE:
            _kqgen("compile", str(integers), "--board", board, "--out", str(out))
        _kqgen("verify", str(out), "--inputs", str(inputs / entry.inputs), "--limit", str(VERIFIED))
        _kqgen("bench", str(out))
        cycles[core] = json.loads((out / "bench.json").read_text(encoding="utf-8"))["cycles_modelled"]
    accuracy_float, accuracy, count, sqnr_db = _judge(entry, first, inputs / entry.inputs)
    report = json.loads((first / "report.json").read_text(encoding="utf-8"))
    return Row(
        entry.network, entry.source, report["bits_per_weight"]["all"], accuracy_float, accuracy, count, sqnr_db,
        report["flash_bytes"]["total"], report["ram_bytes"]["total"], cycles, report["dead"]["int8_tables_bytes"],
    )  # fmt: skip


def _identifier(entry: Entry) -> str:
    return entry.name.replace("-", "_")


def _judge(entry: Entry, folder: Path, path: Path) -> tuple[float | None, float | None, int, float | None]:
    """Accuracy of the float model and of the C, how many inputs, and the SQNR of the C's outputs in dB."""
    with np.load(path) as arrays:
        images, labels = arrays["images"], arrays["labels"] if entry.labelled else None
    net = kqgen.load(folder)
    found = np.asarray(net(images)).reshape(len(images), -1)
    wanted = None
    if net.firmware.float_model is not None:
        graph = net.firmware.graph
        samples = Samples((graph.inputs[0].name,), (images.astype(np.float32),))
        wanted = float_outputs(load_pt2(net.firmware.float_model), samples, len(images))[0].reshape(len(images), -1)
    shares = [None if labels is None or scores is None else float((scores.argmax(1) == labels).mean()) for scores in (wanted, found)]
    sqnr_db = None
    if wanted is not None:
        sqnr_db = round(float(10 * np.log10((wanted.astype(np.float64) ** 2).sum() / ((wanted - found).astype(np.float64) ** 2).sum())), 1)
    return shares[0], shares[1], len(images), sqnr_db


def table(rows: Sequence[Row]) -> str:
    """The rows as the README has them."""
    head = "| network | weights from | bits/weight | accuracy float | accuracy of the C | flash, B | RAM, B | M0+ | M4 | M55 |"
    lines = [head, "|" + "---|" * 10]
    for row in rows:
        judged = "no data here" if row.accuracy is None else f"{100 * row.accuracy:.2f} %"
        real = "" if row.accuracy_float is None else f"{100 * row.accuracy_float:.2f} %"
        counts = " | ".join(f"{row.cycles[core] / 1e6:.2f} M" for core in BOARDS)
        sizes = " | ".join(f"{size:,}".replace(",", " ") for size in (row.flash_bytes, row.ram_bytes))
        lines.append(f"| {row.network} | {row.source} | {row.bits_per_weight:.2f} | {real} | {judged} | {sizes} | {counts} |")
    return "\n".join(lines)


def known() -> dict[str, Row]:
    """The rows of docs/zoo.json by name."""
    return {name: Row(**row) for name, row in json.loads(TABLE.read_text(encoding="utf-8")).items()}


def _keep(name: str, row: Row) -> None:
    rows = {**(known() if TABLE.exists() else {}), name: row}
    kept = {entry.name: asdict(rows[entry.name]) for entry in ENTRIES if entry.name in rows}
    TABLE.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")


def main(arguments: list[str]) -> int:
    """Measures what is asked for; always 0."""
    parser = argparse.ArgumentParser(description="The model zoo.")
    parser.add_argument("names", nargs="*", choices=[[], *(entry.name for entry in ENTRIES)])
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data")
    parser.add_argument("--list", action="store_true")
    options = parser.parse_args(arguments)
    if options.list:
        for entry in ENTRIES:
            print("kqgen", shlex.join(command(entry, BOARDS[MEMORY_CORE], "firmware/")))  # noqa: T201 - what was asked for
        return 0
    with tempfile.TemporaryDirectory() as scratch:
        write_inputs(options.data, Path(scratch))
        for entry in ENTRIES:
            if not options.names or entry.name in options.names:
                row = measure(entry, options.data, Path(scratch), Path(scratch))
                print(table([row]).splitlines()[-1], flush=True)  # noqa: T201 - minutes without a word are unkind
                _keep(entry.name, row)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
